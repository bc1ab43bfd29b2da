// Mean of each window, and its gradient.
//   y = sum of the window's elements / divisor: the taps inside the input (or inside the padded
//   input with count_include_pad) along the height times those along the width, or a number that is
//   given; dx = sum of dy / divisor over the windows that an element lies in
// NCHW: an output row adds the input rows of its windows as vectors into scratch memory, from where
// its taps along the width are contiguous vectors (pool_cpu.h); other strides than 1 and 2 and
// adaptive windows add element by element. The gradient goes the same way back: rows of dy are
// spread along the width, and an input row adds those whose windows have it. channels_last: vectors
// over channels, in both directions. Memory: reads and writes everything once. Floor: its bytes /
// copy bandwidth.
#pragma once

#include "pool/pool_average_channels_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace pool_detail {

template <class T>
inline Accumulate<T> sum_of(const T* x, int64_t count) {
  using A = Accumulate<T>;
  using V = Vec<T>;
  A sum = 0;
  if (count < kWidth<T>) {
    for (int64_t i = 0; i < count; ++i) sum += static_cast<A>(x[i]);
    return sum;
  }
  constexpr int64_t block = 4096;  // many numbers one by one would lose digits
  for (int64_t begin = 0; begin < count; begin += block) {
    V sums[kLanes];
    for (V& each : sums) each = V(A(0));
    for_vectors<T>(std::min(block, count - begin), [&](int64_t i, auto rest, int lane) {
      sums[lane] = sums[lane] + load_vector(x + begin + i, rest, A(0));
    });
    sum += reduce_sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
  }
  return sum;
}

// ---- NCHW, forward

template <class T>
class PlaneMean {
  using A = Accumulate<T>;
  using V = Vec<T>;

 public:
  PlaneMean(const AveragePoolArgs& args, const PoolShape& shape, bool streaming)
      : args_(args), shape_(shape), streaming_(streaming), rows_(shape.h) {}

  void rows(int64_t plane, int64_t block, int64_t first, int64_t last) {
    const PoolAxis &h = shape_.h, &w = shape_.w;
    const Columns columns = Columns::block(w, block);
    if (block != block_) prepare(columns);
    block_ = block;
    const T* const x = static_cast<const T*>(args_.input) + plane * h.input * w.input;
    if (columns.taps == Taps::kGathered) {
      for (int64_t row = first; row < last; ++row) average_gathered(columns, x, plane, row);
      return;
    }
    for (int64_t row = first; row < last; row += group_) {
      const int64_t count = std::min(group_, last - row);
      for (int64_t g = 0; g < count; ++g) {
        const Window window = rows_[row + g];
        const T* const from = x + (window.start + window.first) * w.input;
        columns.lay_out<T>(phase_ + g * columns.pitch, size_, [&](int64_t i, auto rest) {
          return sum_rows(from + i, window.count(), rest);
        });
      }
      for (int64_t g = 0; g < count; ++g) average(columns, plane, row + g, g * columns.pitch);
    }
  }

 private:
  void prepare(const Columns& columns) {
    const int64_t width = kWidth<T>;
    const bool gathered = columns.taps == Taps::kGathered;
    // Some rows at a time: a shifted load of what has just been stored would wait for the stores.
    group_ = gathered ? 1 : std::clamp<int64_t>(512 / columns.pitch, 1, shape_.h.output);
    columns_.emplace(shape_.w, columns.begin, columns.end);
    const int64_t row_size = gathered ? columns.high - columns.low : group_ * columns.pitch;
    size_ = round_up(row_size + width, 16);
    const int64_t phases = gathered ? 1 : columns.phases();
    phase_ = static_cast<A*>(
        thread_scratch((phases * size_ + round_up(columns.count() + width, 16)) * sizeof(A)));
    divisors_ = phase_ + phases * size_;
    std::fill(phase_, divisors_, A(0));
    for (int64_t i = 0; i < columns.count(); ++i) {
      divisors_[i] = static_cast<A>(divisor_at(args_, shape_.w, columns.begin + i));
    }
  }

  template <class Count>
  V sum_rows(const T* x, int64_t rows, Count count) const {
    V sum = load_vector(x, count, A(0));
    for (int64_t i = 1; i < rows; ++i) {
      sum = sum + load_vector(x + i * shape_.w.input, count, A(0));
    }
    return sum;
  }

  // Where the row of the output begins, and what it is divided by
  T* output_row(const Columns& columns, int64_t plane, int64_t row) const {
    const int64_t at = (plane * shape_.h.output + row) * shape_.w.output + columns.begin;
    return static_cast<T*>(args_.output) + at;
  }
  A row_divisor(int64_t row) const {
    return static_cast<A>(divisor_at(args_, shape_.h, row) * common_divisor(args_));
  }

  void average(const Columns& columns, int64_t plane, int64_t row, int64_t begin) const {
    const int64_t taps = shape_.w.kernel;
    const A divisor = row_divisor(row);
    T* const y = output_row(columns, plane, row);
    for_single_vectors<T>(columns.count(), [&](int64_t i, auto count) {
      V sum = load_vector(phase_ + begin + i);
      for (int64_t t = 1; t < taps; ++t) {
        sum = sum + load_vector(phase_ + columns.tap_at(t, size_) + begin + i);
      }
      const V divisors = load_vector(divisors_ + i, count, A(1));
      write_vector(y + i, sum / (divisors * V(divisor)), count, streaming_);
    });
  }

  void average_gathered(const Columns& columns, const T* x, int64_t plane, int64_t row) const {
    const Window rows = rows_[row];
    const T* const from = x + (rows.start + rows.first) * shape_.w.input;
    if (rows.count() > 1) {
      for_single_vectors<T>(columns.high - columns.low, [&](int64_t i, auto rest) {
        store_vector(phase_ + i, sum_rows(from + columns.low + i, rows.count(), rest));
      });
    }
    const A divisor = row_divisor(row);
    T* const y = output_row(columns, plane, row);
    for (int64_t i = 0; i < columns.count(); ++i) {
      const Window window = (*columns_)[columns.begin + i];
      const int64_t at = window.start + window.first;
      const A sum = rows.count() > 1 ? sum_of(phase_ + at - columns.low, window.count())
                                     : sum_of(from + at, window.count());
      y[i] = static_cast<T>(sum / (divisors_[i] * divisor));
    }
  }

  const AveragePoolArgs& args_;
  const PoolShape& shape_;
  const bool streaming_;
  int64_t block_ = -1, group_ = 1, size_ = 0;  // rows at a time; elements of a phase
  A *phase_ = nullptr, *divisors_ = nullptr;
  const Windows rows_;
  std::optional<Windows> columns_;
};

// The means of whole planes, which are rows here.
template <class T>
void average_rows(const AveragePoolArgs& args, const PoolShape& shape, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const int64_t size = shape.w.input;
  const A divisor = static_cast<A>(divisor_at(args, shape.w, 0) * common_divisor(args));
  for (int64_t row = begin; row < end; ++row) {
    const A sum = sum_of(static_cast<const T*>(args.input) + row * size, size);
    static_cast<T*>(args.output)[row] = static_cast<T>(sum / divisor);
  }
}

// ---- NCHW, backward

// Rows of the gradient of a plane's input: output rows are spread along the width, some at a time,
// into rows in scratch memory; an input row is the sum of those whose windows have it.
template <class T>
class PlaneGradient {
  using A = Accumulate<T>;
  using V = Vec<T>;

 public:
  PlaneGradient(const AveragePoolArgs& args, const PoolShape& shape, bool streaming)
      : args_(args),
        shape_(shape),
        taps_(taps_of(shape.w)),
        streaming_(streaming),
        columns_(shape.w) {
    const PoolAxis &h = shape.h, &w = shape.w;
    // Output rows lie between zeros, for taps that no output has.
    const bool gathered = taps_ == Taps::kGathered;
    margin_ = gathered ? 0 : round_up(w.kernel, 16);
    const int64_t line = gathered ? w.output : std::max(w.output, w.input + w.padding);
    size_ = round_up(margin_ + line + 4 * kWidth<T>, 16);
    spread_size_ = round_up(w.input + 2 * kWidth<T>, 16);
    ahead_ = std::clamp<int64_t>(512 / (gathered ? w.input : w.output), 1, h.output);
    const int64_t windows =
        h.kernel > 0 ? ceil_divide(h.kernel, h.stride) : ceil_divide(h.output, h.input) + 1;
    slots_ = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(windows + ahead_)));
    const int64_t divisors_size = round_up(w.output + kWidth<T>, 16);
    const int64_t total = ahead_ * size_ + slots_ * spread_size_ + divisors_size;
    lines_ = static_cast<A*>(thread_scratch(total * sizeof(A)));
    divisors_ = lines_ + ahead_ * size_;
    spread_ = divisors_ + divisors_size;
    std::fill(lines_, lines_ + total, A(0));
    for (int64_t i = 0; i < w.output; ++i) {
      divisors_[i] = static_cast<A>(divisor_at(args, w, i));
    }
  }

  void rows(int64_t plane, int64_t first, int64_t last) {
    const PoolAxis &h = shape_.h, &w = shape_.w;
    const T* const dy = static_cast<const T*>(args_.input) + plane * h.output * w.output;
    T* const dx = static_cast<T*>(args_.output) + plane * h.input * w.input;
    const int64_t needed = cover_of(h, last - 1).last + 1;
    int64_t ready = cover_of(h, first).first;  // output rows before it are spread
    for (int64_t row = first; row < last; ++row) {
      const Cover cover = cover_of(h, row);
      if (cover.last >= ready) {
        ready = std::max(ready, cover.first);
        const int64_t stop = std::min(needed, std::max(cover.last + 1, ready + ahead_));
        while (ready < stop) {
          const int64_t count = std::min(ahead_, stop - ready);
          for (int64_t i = 0; i < count; ++i) load_row(dy, ready + i, lines_ + i * size_ + margin_);
          for (int64_t i = 0; i < count; ++i) {
            A* const to = spread_ + ((ready + i) & (slots_ - 1)) * spread_size_;
            spread_row(lines_ + i * size_ + margin_, to);
          }
          ready += count;
        }
      }
      for_single_vectors<T>(w.input, [&](int64_t i, auto rest) {
        V sum(A(0));
        for (int64_t output = cover.first; output <= cover.last; ++output) {
          sum = sum + load_vector(spread_ + (output & (slots_ - 1)) * spread_size_ + i);
        }
        write_vector(dx + row * w.input + i, sum, rest, streaming_);
      });
    }
  }

 private:
  void load_row(const T* dy, int64_t row, A* line) {
    const PoolAxis &h = shape_.h, &w = shape_.w;
    const V of_row(static_cast<A>(divisor_at(args_, h, row) * common_divisor(args_)));
    for_single_vectors<T>(w.output, [&](int64_t i, auto rest) {
      const V grad = load_vector(dy + row * w.output + i, rest, A(0));
      store_vector(line + i, grad / (load_vector(divisors_ + i) * of_row), rest);
    });
  }

  // Adds the gradients of a row to the elements of their windows.
  void spread_row(const A* line, A* to) const {
    const PoolAxis& w = shape_.w;
    constexpr int64_t width = kWidth<T>;
    if (taps_ == Taps::kGathered) {
      std::fill(to, to + w.input, A(0));
      for (int64_t i = 0; i < w.output; ++i) {
        const Window window = columns_[i];
        A* const x = to + window.start;
        for (int64_t t = window.first; t < window.end; ++t) x[t] += line[i];
      }
      return;
    }
    // Of the elements from i on every stride-th from i + odd: tap t of the output at
    // (i + odd + padding - t) / stride, which must be a whole number.
    const int64_t stride = w.stride;
    const auto sum_taps = [&](int64_t i, int64_t odd) {
      const int64_t t = (w.padding + odd) & (stride - 1);
      V sum(A(0));
      const A* from = line + (i + odd + w.padding - t) / stride;
      for (int64_t left = w.kernel - t; left > 0; left -= stride) sum = sum + load_vector(from--);
      return sum;
    };
    for (int64_t i = 0; i < w.input; i += stride * width) {
      if (stride == 1) {
        store_vector(to + i, sum_taps(i, 0));
      } else {
        const auto [low, high] = at::vec::interleave2(sum_taps(i, 0), sum_taps(i, 1));
        store_vector(to + i, low);
        store_vector(to + i + width, high);
      }
    }
  }

  const AveragePoolArgs& args_;
  const PoolShape& shape_;
  const Taps taps_;
  const bool streaming_;
  const Windows columns_;
  // zeros before a row in scratch memory; its size; that of a spread row; how many; at a time
  int64_t margin_, size_, spread_size_, slots_, ahead_;
  A *lines_, *divisors_, *spread_;
};

// The gradient of the means of whole planes, which are rows here.
template <class T>
void spread_means(const AveragePoolArgs& args, const PoolShape& shape, int64_t begin, int64_t end,
                  bool streaming) {
  using A = Accumulate<T>;
  const int64_t size = shape.w.input;
  const A divisor = static_cast<A>(divisor_at(args, shape.w, 0) * common_divisor(args));
  for (int64_t row = begin; row < end; ++row) {
    const Vec<T> grad(static_cast<A>(static_cast<const T*>(args.input)[row]) / divisor);
    T* const dx = static_cast<T*>(args.output) + row * size;
    for_single_vectors<T>(
        size, [&](int64_t i, auto rest) { write_vector(dx + i, grad, rest, streaming); });
  }
}

template <class F>
void for_all_rows(int64_t rows, int64_t cost, F&& f) {
  parallel_for(0, rows, std::max<int64_t>(1, kGrain / cost), [&](int64_t begin, int64_t end) {
    f(begin, end);
    finish_writes();
  });
}

template <class T>
void average_forward(const AveragePoolArgs& args) {
  const PoolShape shape = simplified(args.shape);
  const PoolAxis &h = shape.h, &w = shape.w;
  const int64_t bytes = shape.outer * h.output * w.output * shape.inner * int64_t{sizeof(T)};
  const int64_t taps = window_taps(shape);
  if (shape.inner > 1) {
    const bool streaming = worth_streaming(bytes) && rows_are_aligned<T>(args.output, shape.inner);
    return average_pixels<T>(args, shape, streaming);
  }
  if (is_of_planes(shape)) {
    return for_all_rows(shape.outer * h.input, w.input, [&](int64_t begin, int64_t end) {
      average_rows<T>(args, shape, begin, end);
    });
  }
  const bool streaming = worth_streaming(bytes) && rows_are_aligned<T>(args.output, w.output);
  for_all_rows(shape.outer * Columns::blocks(w) * h.output,
               taps * std::min(w.output, Columns::kMost), [&](int64_t begin, int64_t end) {
                 PlaneMean<T> mean(args, shape, streaming);
                 for_rows(shape, begin, end,
                          [&](int64_t plane, int64_t block, int64_t first, int64_t last) {
                            mean.rows(plane, block, first, last);
                          });
               });
}

template <class T>
void average_backward(const AveragePoolArgs& args) {
  const PoolShape shape = simplified(args.shape);
  const PoolAxis &h = shape.h, &w = shape.w;
  const int64_t bytes = shape.outer * h.input * w.input * shape.inner * int64_t{sizeof(T)};
  if (shape.inner > 1) {
    const bool streaming = worth_streaming(bytes) && rows_are_aligned<T>(args.output, shape.inner);
    const bool whole = h.input == 1 && h.kernel == 1 && h.output == 1 && takes_all(w);
    return whole ? spread_image_means<T>(args, shape, streaming)
                 : spread_pixels<T>(args, shape, streaming);
  }
  const bool streaming = worth_streaming(bytes) && rows_are_aligned<T>(args.output, w.input);
  if (is_of_planes(shape)) {
    return for_all_rows(shape.outer * h.input, w.input, [&](int64_t begin, int64_t end) {
      spread_means<T>(args, shape, begin, end, streaming);
    });
  }
  for_all_rows(shape.outer * h.input, w.input + w.output, [&](int64_t begin, int64_t end) {
    PlaneGradient<T> gradient(args, shape, streaming);
    while (begin < end) {
      const int64_t row = begin % h.input, count = std::min(h.input - row, end - begin);
      gradient.rows(begin / h.input, row, row + count);
      begin += count;
    }
  });
}

}  // namespace pool_detail
}  // namespace CPU_CAPABILITY
}  // namespace fastdl
