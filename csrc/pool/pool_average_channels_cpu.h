// Mean of each window of channels_last, and its gradient: vectors over channels, four of them at a
// time through all elements of a window, or all windows of an element. Formulas:
// pool_average_cpu.h.
#pragma once

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

// Adds the elements of a window to the sums of a block of channels. Large windows are halved: many
// numbers one by one would lose digits.
template <class T, int kVectors, class Count>
void add_window(const T* x, int64_t rows, int64_t cols, int64_t row_step, int64_t inner,
                Count count, Vec<T>* sums) {
  using A = Accumulate<T>;
  if (rows * cols <= 64) {
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
    return;
  }
  const int64_t top = rows > 1 ? rows / 2 : rows, left = rows > 1 ? cols : cols / 2;
  Vec<T> halves[2][kVectors];
  for (int k = 0; k < kVectors; ++k) halves[0][k] = halves[1][k] = Vec<T>(A(0));
  const auto add_half = [&](const T* from, int64_t height, int64_t width, Vec<T>* half) {
    add_window<T, kVectors>(from, height, width, row_step, inner, count, half);
  };
  add_half(x, top, left, halves[0]);
  rows > 1 ? add_half(x + top * row_step, rows - top, cols, halves[1])
           : add_half(x + left * inner, rows, cols - left, halves[1]);
  for (int k = 0; k < kVectors; ++k) sums[k] = sums[k] + (halves[0][k] + halves[1][k]);
}

template <class T>
void average_pixels(const AveragePoolArgs& args, const PoolShape& shape, bool streaming) {
  using A = Accumulate<T>;
  using V = Vec<T>;
  const PoolAxis &h = shape.h, &w = shape.w;
  const int64_t inner = shape.inner, row_step = w.input * inner;
  const Windows all_rows(h), all_cols(w);
  const std::vector<A> row_divisors = divisors_of<A>(args, h),
                       col_divisors = divisors_of<A>(args, w);
  const A common = static_cast<A>(common_divisor(args));
  const int64_t grain = std::max<int64_t>(1, kGrain / (window_taps(shape) * inner));
  parallel_for(0, shape.outer * h.output * w.output, grain, [&](int64_t begin, int64_t end) {
    for_pixels(begin, end, h.output, w.output,
               [&](int64_t pixel, int64_t image, int64_t row, int64_t col) {
                 const Window rows = all_rows[row], cols = all_cols[col];
                 const T* const x = static_cast<const T*>(args.input) +
                                    (image * h.input + rows.start + rows.first) * row_step +
                                    (cols.start + cols.first) * inner;
                 T* const y = static_cast<T*>(args.output) + pixel * inner;
                 const V divisor(row_divisors[row] * col_divisors[col] * common);
                 for_channels<T>(inner, [&](int64_t c, auto vectors, auto count) {
                   V sums[vectors()];
                   for (V& sum : sums) sum = V(A(0));
                   add_window<T, vectors()>(x + c, rows.count(), cols.count(), row_step, inner,
                                            count, sums);
                   for (int k = 0; k < vectors(); ++k) {
                     write_vector(y + c + k * kWidth<T>, sums[k] / divisor, count, streaming);
                   }
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
  // Without edges one division is enough.
  const auto alike = [](const std::vector<A>& divisors) {
    return std::all_of(divisors.begin(), divisors.end(), [&](A d) { return d == divisors[0]; });
  };
  const bool divide_once = alike(row_divisors) && alike(col_divisors);
  const V divisor(row_divisors[0] * col_divisors[0] * common);
  const auto spread = [&](int64_t pixel, int64_t image, int64_t row, int64_t col) {
    const T* const dy = static_cast<const T*>(args.input) + image * h.output * w.output * inner;
    T* const dx = static_cast<T*>(args.output) + pixel * inner;
    for_channels<T>(inner, [&](int64_t c, auto vectors, auto count) {
      V sums[vectors()];
      for (V& sum : sums) sum = V(A(0));
      for (const auto& i : all_rows.of(row)) {
        for (const auto& j : all_cols.of(col)) {
          const T* const from = dy + (i.output * w.output + j.output) * inner + c;
          if (divide_once) {
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
        const V value = divide_once ? sums[k] / divisor : sums[k];
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
