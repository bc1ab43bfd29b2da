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

// The number that all divisors of an axis are multiplied with.
inline int64_t common_divisor(const AveragePoolArgs& args) {
  return args.divisor != 0 ? args.divisor : 1;
}

template <class T>
void mean_of_pixels(const AveragePoolArgs& args, int64_t begin, int64_t end, bool streaming) {
  using A = Accumulate<T>;
  using V = Vec<T>;
  const PoolShape& shape = args.shape;
  const PoolAxis &h = shape.h, &w = shape.w;
  const int64_t inner = shape.inner;
  constexpr int64_t group = 16;
  for (int64_t pixel = begin; pixel < end; ++pixel) {
    const int64_t col = pixel % w.output, row = pixel / w.output % h.output;
    const int64_t image = pixel / w.output / h.output;
    const Window rows = window_at(h, row), cols = window_at(w, col);
    const int64_t first =
        (image * h.input + rows.start + rows.first) * w.input + cols.start + cols.first;
    const T* const x = static_cast<const T*>(args.input) + first * inner;
    T* const y = static_cast<T*>(args.output) + pixel * inner;
    const V divisor(
        static_cast<A>(divisor_at(args, h, row) * divisor_at(args, w, col) * common_divisor(args)));
    for_channels<T>(inner, [&](int64_t c, auto vectors, auto count) {
      V sums[vectors()];
      for (V& sum : sums) sum = V(A(0));
      // Rows, and groups of rows, are summed apart: many numbers one by one would lose digits.
      for (int64_t first = 0; first < rows.count(); first += group) {
        V of_group[vectors()];
        for (V& sum : of_group) sum = V(A(0));
        for (int64_t i = first; i < std::min(rows.count(), first + group); ++i) {
          V line[vectors()];
          for (V& sum : line) sum = V(A(0));
          for (int64_t j = 0; j < cols.count(); ++j) {
            const T* const tap = x + (i * w.input + j) * inner + c;
            for (int k = 0; k < vectors(); ++k) {
              line[k] = line[k] + load_vector(tap + k * kWidth<T>, count, A(0));
            }
          }
          for (int k = 0; k < vectors(); ++k) of_group[k] = of_group[k] + line[k];
        }
        for (int k = 0; k < vectors(); ++k) sums[k] = sums[k] + of_group[k];
      }
      for (int k = 0; k < vectors(); ++k) {
        write_vector(y + c + k * kWidth<T>, sums[k] / divisor, count, streaming);
      }
    });
  }
}

template <class T>
void gradient_of_pixels(const AveragePoolArgs& args, int64_t begin, int64_t end, bool streaming) {
  using A = Accumulate<T>;
  using V = Vec<T>;
  const PoolShape& shape = args.shape;
  const PoolAxis &h = shape.h, &w = shape.w;
  const int64_t inner = shape.inner;
  for (int64_t pixel = begin; pixel < end; ++pixel) {
    const int64_t col = pixel % w.input, row = pixel / w.input % h.input;
    const int64_t image = pixel / w.input / h.input;
    const Cover rows = cover_of(h, row), cols = cover_of(w, col);
    const T* const dy = static_cast<const T*>(args.input) + image * h.output * w.output * inner;
    T* const dx = static_cast<T*>(args.output) + pixel * inner;
    for_channels<T>(inner, [&](int64_t c, auto vectors, auto count) {
      V sums[vectors()];
      for (V& sum : sums) sum = V(A(0));
      for (int64_t i = rows.first; i <= rows.last; ++i) {
        const int64_t divisor = divisor_at(args, h, i) * common_divisor(args);
        for (int64_t j = cols.first; j <= cols.last; ++j) {
          const V divisors(static_cast<A>(divisor * divisor_at(args, w, j)));
          const T* const from = dy + (i * w.output + j) * inner + c;
          for (int k = 0; k < vectors(); ++k) {
            sums[k] = sums[k] + load_vector(from + k * kWidth<T>, count, A(0)) / divisors;
          }
        }
      }
      for (int k = 0; k < vectors(); ++k) {
        write_vector(dx + c + k * kWidth<T>, sums[k], count, streaming);
      }
    });
  }
}

}  // namespace pool_detail
}  // namespace CPU_CAPABILITY
}  // namespace fastdl
