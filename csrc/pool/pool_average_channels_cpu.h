// Mean of each window of channels_last, and its gradient: vectors over channels, four of them at a
// time through all elements of a window, or all windows of an element. Formulas:
// pool_average_cpu.h.
#pragma once

#include <array>

#include "pool/pool_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace pool_detail {

// What sums are divided by along one axis.
inline int64_t divisor_at(const AveragePoolArgs& args, const PoolAxis& axis, int64_t i) {
  if (args.divisor != 0) return 1;
  const Window window = window_at(axis, i);
  if (axis.kernel == 0 || !args.count_include_pad) return window.count();
  return std::min(axis.kernel, axis.input + axis.padding - window.start);
}

template <class A>
std::vector<A> divisors_of(const AveragePoolArgs& args, const PoolAxis& axis) {
  std::vector<A> divisors(axis.output);
  for (int64_t i = 0; i < axis.output; ++i) divisors[i] = static_cast<A>(divisor_at(args, axis, i));
  return divisors;
}

// The number that all divisors of an axis are multiplied with.
inline int64_t common_divisor(const AveragePoolArgs& args) {
  return args.divisor != 0 ? args.divisor : 1;
}

inline constexpr int64_t kFewTaps = 64;  // that are added one by one

// The sums of a window's elements over a block of channels.
template <class T, int kVectors, class Count>
inline std::array<Vec<T>, kVectors> sum_few_taps(const T* x, int64_t rows, int64_t cols,
                                                 int64_t row_step, int64_t inner, Count count) {
  using A = Accumulate<T>;
  std::array<Vec<T>, kVectors> sums;
  for (auto& sum : sums) sum = Vec<T>(A(0));
  for (int64_t i = 0; i < rows; ++i) {
    const T* tap = x + i * row_step;
    for (int64_t j = 0; j < cols; ++j, tap += inner) {
      for (int k = 0; k < kVectors; ++k) {
        const T* const from = tap + k * kWidth<T>;
        prefetch(from + kAhead<T>);
        sums[k] = sums[k] + load_vector(from, count, A(0));
      }
    }
  }
  return sums;
}

// Large windows are halved: many numbers one by one would lose digits.
template <class T, int kVectors, class Count>
std::array<Vec<T>, kVectors> sum_window(const T* x, int64_t rows, int64_t cols, int64_t row_step,
                                        int64_t inner, Count count) {
  if (rows * cols <= kFewTaps) {
    return sum_few_taps<T, kVectors>(x, rows, cols, row_step, inner, count);
  }
  const bool by_rows = rows > 1;
  const int64_t top = by_rows ? rows / 2 : rows, left = by_rows ? cols : cols / 2;
  const T* const rest = x + (by_rows ? top * row_step : left * inner);
  auto sums = sum_window<T, kVectors>(x, top, left, row_step, inner, count);
  const auto others = sum_window<T, kVectors>(rest, by_rows ? rows - top : rows,
                                              by_rows ? cols : cols - left, row_step, inner, count);
  for (int k = 0; k < kVectors; ++k) sums[k] = sums[k] + others[k];
  return sums;
}

template <class T>
void average_pixels(const AveragePoolArgs& args, const PoolShape& shape, bool streaming) {
  using A = Accumulate<T>;
  const PoolAxis &h = shape.h, &w = shape.w;
  const int64_t inner = shape.inner, row_step = w.input * inner;
  const Windows all_rows(h), all_cols(w);
  const std::vector<A> row_divisors = divisors_of<A>(args, h);
  const std::vector<A> col_divisors = divisors_of<A>(args, w);
  const A common = static_cast<A>(common_divisor(args));
  const auto average = [&](int64_t pixel, int64_t image, int64_t row, int64_t col) {
    const Window rows = all_rows[row], cols = all_cols[col];
    const int64_t height = rows.count(), width = cols.count();
    const T* const x = static_cast<const T*>(args.input) +
                       (image * h.input + rows.start + rows.first) * row_step +
                       (cols.start + cols.first) * inner;
    T* const y = static_cast<T*>(args.output) + pixel * inner;
    const Vec<T> factor(1 / (row_divisors[row] * col_divisors[col] * common));
    for_channels<T>(inner, [&](int64_t c, auto vectors, auto count) {
      const auto sums =
          height * width <= kFewTaps
              ? sum_few_taps<T, vectors()>(x + c, height, width, row_step, inner, count)
              : sum_window<T, vectors()>(x + c, height, width, row_step, inner, count);
      for (int k = 0; k < vectors(); ++k) {
        write_vector(y + c + k * kWidth<T>, sums[k] * factor, count, streaming);
      }
    });
  };
  const int64_t grain = std::max<int64_t>(1, kGrain / (window_taps(shape) * inner));
  parallel_for(0, shape.outer * h.output * w.output, grain, [&](int64_t begin, int64_t end) {
    for_pixels(begin, end, h.output, w.output, average);
    finish_writes();
  });
}

// The gradient of the means of whole planes: the same for all pixels of an image.
template <class T>
void spread_image_means(const AveragePoolArgs& args, const PoolShape& shape, bool streaming) {
  using A = Accumulate<T>;
  const int64_t inner = shape.inner, pixels = shape.w.input;
  const Vec<T> factor(1 / static_cast<A>(divisor_at(args, shape.w, 0) * common_divisor(args)));
  const int64_t grain = std::max<int64_t>(1, kGrain / inner);
  parallel_for(0, shape.outer * pixels, grain, [&](int64_t begin, int64_t end) {
    A* const means = static_cast<A*>(thread_scratch((inner + kWidth<T>)*sizeof(A)));
    int64_t known = -1;
    for_pixels(begin, end, 1, pixels, [&](int64_t pixel, int64_t image, int64_t, int64_t) {
      const T* const dy = static_cast<const T*>(args.input) + image * inner;
      T* const dx = static_cast<T*>(args.output) + pixel * inner;
      if (image != known) {
        for_single_vectors<T>(inner, [&](int64_t c, auto count) {
          store_vector(means + c, load_vector(dy + c, count, A(0)) * factor, count);
        });
        known = image;
      }
      for_single_vectors<T>(inner, [&](int64_t c, auto count) {
        write_vector(dx + c, load_vector(means + c, count, A(0)), count, streaming);
      });
    });
    finish_writes();
  });
}

template <class T>
void spread_pixels(const AveragePoolArgs& args, const PoolShape& shape, bool streaming) {
  using A = Accumulate<T>;
  using V = Vec<T>;
  const PoolAxis &h = shape.h, &w = shape.w;
  const int64_t inner = shape.inner;
  const Sources all_rows(h), all_cols(w);
  const std::vector<A> row_divisors = divisors_of<A>(args, h),
                       col_divisors = divisors_of<A>(args, w);
  const A common = static_cast<A>(common_divisor(args));
  const int64_t windows = ceil_divide(window_taps(shape) * h.output * w.output, h.input * w.input);
  const int64_t grain = std::max<int64_t>(1, kGrain / (windows * inner));
  // Without edges one factor is enough.
  const auto alike = [](const std::vector<A>& divisors) {
    return std::all_of(divisors.begin(), divisors.end(), [&](A d) { return d == divisors[0]; });
  };
  const bool same_factor = alike(row_divisors) && alike(col_divisors);
  const V factor(1 / (row_divisors[0] * col_divisors[0] * common));
  const auto spread = [&](int64_t pixel, int64_t image, int64_t row, int64_t col) {
    const T* const dy = static_cast<const T*>(args.input) + image * h.output * w.output * inner;
    T* const dx = static_cast<T*>(args.output) + pixel * inner;
    for_channels<T>(inner, [&](int64_t c, auto vectors, auto count) {
      V sums[vectors()];
      for (V& sum : sums) sum = V(A(0));
      for (const auto& i : all_rows.of(row)) {
        for (const auto& j : all_cols.of(col)) {
          const T* const from = dy + (i.output * w.output + j.output) * inner + c;
          if (same_factor) {
            for (int k = 0; k < vectors(); ++k) {
              sums[k] = sums[k] + load_vector(from + k * kWidth<T>, count, A(0));
            }
          } else {
            const V each(row_divisors[i.output] * col_divisors[j.output] * common);
            for (int k = 0; k < vectors(); ++k) {
              sums[k] = sums[k] + load_vector(from + k * kWidth<T>, count, A(0)) / each;
            }
          }
        }
      }
      for (int k = 0; k < vectors(); ++k) {
        const V value = same_factor ? sums[k] * factor : sums[k];
        write_vector(dx + c + k * kWidth<T>, value, count, streaming);
      }
    });
  };
  parallel_for(0, shape.outer * h.input * w.input, grain, [&](int64_t begin, int64_t end) {
    for_pixels(begin, end, h.input, w.input, spread);
    finish_writes();
  });
}

}  // namespace pool_detail
}  // namespace CPU_CAPABILITY
}  // namespace fastdl
