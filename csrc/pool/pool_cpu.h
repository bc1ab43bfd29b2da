// What the pooling kernels share: the windows along an axis, and how a row of an NCHW tensor is
// laid out so that every tap of the windows is a contiguous vector over neighbouring outputs.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "common/dispatch.h"
#include "common/loops_cpu.h"
#include "common/parallel.h"
#include "pool/pool.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace pool_detail {

constexpr int64_t kGrain = 16384;  // elements read that are worth waking a thread for

inline int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// n / stride for n >= 0: most strides are 1 or 2, and a division costs as much as a vector's work.
inline int64_t steps_in(int64_t n, int64_t stride) {
  return stride == 1 ? n : stride == 2 ? n >> 1 : n / stride;
}

inline int64_t round_up(int64_t n, int64_t multiple) { return ceil_divide(n, multiple) * multiple; }

// Elements start + t * dilation; the taps t in [first, end) lie inside the input.
struct Window {
  int64_t start, first, end;
  int64_t count() const { return end - first; }
};

inline Window window_at(const PoolAxis& axis, int64_t i) {
  if (axis.kernel == 0) {
    const int64_t start = i * axis.input / axis.output;
    return {start, 0, ceil_divide((i + 1) * axis.input, axis.output) - start};
  }
  const int64_t start = i * axis.stride - axis.padding, d = axis.dilation;
  const int64_t inside = axis.input - start;
  return {start,
          start >= 0 ? 0
          : d == 1   ? -start
                     : ceil_divide(-start, d),
          std::min(axis.kernel, d == 1 ? inside : ceil_divide(inside, d))};
}

// The outputs [first, last] whose windows may have input element i: all of them for dilation 1.
struct Cover {
  int64_t first, last;
  bool operator==(const Cover&) const = default;
};

inline Cover cover_of(const PoolAxis& axis, int64_t i) {
  if (axis.kernel == 0) {
    return {i * axis.output / axis.input, ceil_divide((i + 1) * axis.output, axis.input) - 1};
  }
  const int64_t at = i + axis.padding, reach = (axis.kernel - 1) * axis.dilation;
  return {at <= reach ? 0 : steps_in(at - reach + axis.stride - 1, axis.stride),
          std::min(axis.output - 1, steps_in(at, axis.stride))};
}

// The windows [begin, end) along an axis, adaptive ones from a table: they take divisions.
class Windows {
 public:
  Windows(const PoolAxis& axis, int64_t begin, int64_t end) : axis_(axis), begin_(begin) {
    for (int64_t i = begin; axis.kernel == 0 && i < end; ++i) table_.push_back(window_at(axis, i));
  }
  explicit Windows(const PoolAxis& axis) : Windows(axis, 0, axis.output) {}

  Window operator[](int64_t i) const {
    return table_.empty() ? window_at(axis_, i) : table_[i - begin_];
  }

 private:
  PoolAxis axis_;
  int64_t begin_;
  std::vector<Window> table_;
};

// For each element along an axis the windows that have it, and which of their taps it is.
class Sources {
 public:
  struct Source {
    int64_t output, tap;
  };

  explicit Sources(const PoolAxis& axis) {
    begins_.reserve(axis.input + 1);
    for (int64_t i = 0; i < axis.input; ++i) {
      begins_.push_back(all_.size());
      const Cover cover = cover_of(axis, i);
      for (int64_t output = cover.first; output <= cover.last; ++output) {
        const int64_t past = i - window_at(axis, output).start;
        if (past % axis.dilation == 0) all_.push_back({output, past / axis.dilation});
      }
    }
    begins_.push_back(all_.size());
  }

  std::span<const Source> of(int64_t i) const {
    return {all_.data() + begins_[i], all_.data() + begins_[i + 1]};
  }

 private:
  std::vector<Source> all_;
  std::vector<size_t> begins_;
};

// Calls f(pixel, image, row, col) on the pixels [begin, end) of [images, rows, cols].
template <class F>
void for_pixels(int64_t begin, int64_t end, int64_t rows, int64_t cols, F&& f) {
  int64_t col = begin % cols, row = begin / cols % rows, image = begin / cols / rows;
  for (int64_t pixel = begin; pixel < end; ++pixel) {
    f(pixel, image, row, col);
    if (++col < cols) continue;
    col = 0;
    if (++row < rows) continue;
    row = 0;
    ++image;
  }
}

inline bool takes_all(const PoolAxis& axis) {
  return axis.output == 1 && axis.padding == 0 && longest_window(axis) == axis.input &&
         axis.dilation == 1;
}

// A pooling of whole planes is one of rows; so is one whose planes are single rows already, and
// then planes are rows of one plane. Offsets in a window stay the same.
inline PoolShape simplified(PoolShape shape) {
  if (takes_all(shape.h) && takes_all(shape.w)) {
    const int64_t size = shape.h.input * shape.w.input;
    shape.w = {size, 1, size, 1, 0, 1};
    shape.h = {};
  }
  const bool rows = shape.h.input == 1 && shape.h.output == 1 && shape.h.padding == 0;
  if (rows && shape.inner == 1) {
    shape.h.input = shape.h.output = shape.outer;
    shape.h.kernel = shape.h.stride = shape.h.dilation = 1;
    shape.outer = 1;
  }
  return shape;
}

// Whether a simplified shape pools whole planes of NCHW: each is a row.
inline bool is_of_planes(const PoolShape& shape) {
  return shape.inner == 1 && shape.h.kernel == 1 && shape.h.stride == 1 && takes_all(shape.w);
}

// A block of neighbouring outputs along the width of NCHW, and its rows in scratch memory: padded,
// and for stride 2 split into even and odd elements. For other strides and adaptive windows each
// tap is gathered into a row of its own.
enum class Taps : int8_t { kStride1, kStride2, kGathered };

inline Taps taps_of(const PoolAxis& w) {
  return w.kernel == 0 || w.stride > 2 || w.output == 1 ? Taps::kGathered
         : w.stride == 1                                ? Taps::kStride1
                                                        : Taps::kStride2;
}

struct Columns {
  static constexpr int64_t kMost = 1024;  // outputs of a block

  PoolAxis axis;
  Taps taps;
  int64_t begin, end;  // outputs
  int64_t origin;      // the element at position 0 of the padded row, inside the input or not
  int64_t low, high;   // elements inside the input that the block reads: [low, high)
  int64_t pitch;       // of rows in a phase
  int64_t count() const { return end - begin; }

  Columns(const PoolAxis& w, int64_t begin, int64_t end)
      : axis(w), taps(taps_of(w)), begin(begin), end(end) {
    const Window first = window_at(w, begin), last = window_at(w, end - 1);
    origin = first.start;
    low = std::max<int64_t>(0, first.start);
    high = std::min(w.input, last.start + (longest_window(w) - 1) * w.dilation + 1);
    const int64_t reach = (w.kernel - 1) * w.dilation;
    pitch = taps == Taps::kGathered  ? count()
            : taps == Taps::kStride1 ? round_up(count() + reach, 8)
                                     : round_up(count() + reach / 2, 8);
  }

  int64_t phases() const {
    return taps == Taps::kGathered ? longest_window(axis) : taps == Taps::kStride1 ? 1 : 2;
  }

  // Where tap t of the block's first output lies, in phases of `size` elements.
  int64_t tap_at(int64_t t, int64_t size) const {
    if (taps == Taps::kGathered) return t * size;
    const int64_t at = t * axis.dilation;
    return taps == Taps::kStride1 ? at : at % 2 * size + at / 2;
  }

  // Lays out elements [low, high) of a row; load(i, count) gives those from i on. What lies outside
  // of the input keeps its value. Not for gathered taps.
  template <class T, class F>
  void lay_out(Accumulate<T>* phase, int64_t size, F&& load) const {
    using A = Accumulate<T>;
    constexpr int64_t width = kWidth<T>;
    const int64_t at = low - origin;
    if (taps == Taps::kStride1) {
      for_single_vectors<T>(high - low, [&](int64_t i, auto count) {
        store_vector(phase + at + i, load(low + i, count), count);
      });
      return;
    }
    A* const first = phase + (at % 2 == 0 ? 0 : size) + at / 2;
    A* const second = phase + (at % 2 == 0 ? size : 0) + (at + 1) / 2;
    int64_t i = low;
    for (; i + 2 * width <= high; i += 2 * width) {
      const auto [even, odd] = at::vec::deinterleave2(load(i, kWhole), load(i + width, kWhole));
      store_vector(first + (i - low) / 2, even);
      store_vector(second + (i - low) / 2, odd);
    }
    alignas(64) A rest[2 * width];
    const int64_t left = high - i;
    if (left <= 0) return;
    if (left > width) {
      store_vector(rest, load(i, kWhole));
      store_vector(rest + width, load(i + width, left - width));
    } else {
      store_vector(rest, load(i, left));
    }
    for (int64_t k = 0; k < left; ++k) {
      (k % 2 == 0 ? first : second)[(i - low) / 2 + k / 2] = rest[k];
    }
  }

  static int64_t blocks(const PoolAxis& w) { return ceil_divide(w.output, kMost); }
  static Columns block(const PoolAxis& w, int64_t number) {
    return {w, number * kMost, std::min(w.output, (number + 1) * kMost)};
  }
};

// Calls f(plane, block, first row, last row) on what a task [begin, end) of the outputs'
// [outer, blocks, rows] has of each block of a plane.
template <class F>
void for_rows(const PoolShape& shape, int64_t begin, int64_t end, F&& f) {
  const int64_t blocks = Columns::blocks(shape.w), rows = shape.h.output;
  while (begin < end) {
    const int64_t unit = begin / rows, row = begin % rows;
    const int64_t count = std::min(rows - row, end - begin);
    f(unit / blocks, unit % blocks, row, row + count);
    begin += count;
  }
}

// Calls f(channel, kVectors as a type, count) on all channels, four vectors at a time while they
// fit.
template <class T, class F>
void for_channels(int64_t channels, F&& f) {
  constexpr int64_t width = kWidth<T>;
  int64_t c = 0;
  for (; c + kLanes * width <= channels; c += kLanes * width) {
    f(c, std::integral_constant<int, kLanes>(), kWhole);
  }
  for (; c + width <= channels; c += width) f(c, std::integral_constant<int, 1>(), kWhole);
  if (c < channels) f(c, std::integral_constant<int, 1>(), channels - c);
}

}  // namespace pool_detail
}  // namespace CPU_CAPABILITY
}  // namespace fastdl
