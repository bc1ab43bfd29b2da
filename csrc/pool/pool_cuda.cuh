// What the CUDA kernels of pooling share: the windows along an axis, and where a thread works.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "common/dispatch.h"
#include "common/launch.cuh"
#include "common/reduce.cuh"
#include "common/row_plan.h"
#include "common/vector_io.cuh"
#include "pool/pool.h"

namespace fastdl {

constexpr int kPoolThreads = 256;  // of a block

// Elements start + t * dilation; the taps t in [first, end) lie inside the input.
struct PoolWindow {
  int64_t start;
  int first, end;
};

__device__ __forceinline__ PoolWindow window_at(const PoolAxis& axis, int64_t i) {
  if (axis.kernel == 0) {
    const int64_t start = i * axis.input / axis.output;
    const int64_t end = ((i + 1) * axis.input + axis.output - 1) / axis.output;
    return {start, 0, static_cast<int>(end - start)};
  }
  const int64_t start = i * axis.stride - axis.padding, d = axis.dilation;
  const int64_t inside = axis.input - start;
  return {start,
          static_cast<int>(start >= 0 ? 0
                           : d == 1   ? -start
                                      : (d - 1 - start) / d),
          static_cast<int>(min(axis.kernel, d == 1 ? inside : (inside + d - 1) / d))};
}

// The outputs [first, last] whose windows may have one of the input elements [begin, end).
struct PoolCover {
  int64_t first, last;
};

__device__ __forceinline__ PoolCover cover_of(const PoolAxis& axis, int64_t begin, int64_t end) {
  if (axis.kernel == 0) {
    return {begin * axis.output / axis.input,
            (end * axis.output + axis.input - 1) / axis.input - 1};
  }
  const int64_t at = begin + axis.padding, reach = (axis.kernel - 1) * axis.dilation;
  return {at <= reach ? 0 : (at - reach + axis.stride - 1) / axis.stride,
          min(axis.output - 1, (end - 1 + axis.padding) / axis.stride)};
}

// [outer, rows, cols, parts] of a unit of work
struct PoolPlace {
  int64_t outer, row, col, part;
};

__device__ __forceinline__ PoolPlace place_of(int64_t unit, int64_t rows, int64_t cols,
                                              int64_t parts) {
  const int64_t pixel = parts == 1 ? unit : unit / parts;
  const int64_t line = pixel / cols;
  return {line / rows, line % rows, pixel % cols, unit - pixel * parts};
}

// The number of its unit of work; a warp's lanes have the same one if `lanes` is kWarp.
__device__ __forceinline__ int64_t unit_of_thread(int lanes = 1) {
  return (static_cast<int64_t>(blockIdx.x) * kPoolThreads + threadIdx.x) / lanes;
}

// Windows of so many taps are shared by the lanes of a warp: neighbouring threads would read far
// apart, and there would be few of them.
inline bool is_wide(const PoolShape& shape) { return shape.inner == 1 && window_taps(shape) >= 32; }

// A launch of as many threads as units times lanes. Units are a multiple of 2^31 blocks at most:
// 5 * 10^11 threads.
template <class Kernel, class... Args>
Status launch_units(Kernel kernel, int64_t units, int lanes, const CudaTarget& target,
                    const Args&... args) {
  return launch(kernel, {ceil_divide(units * lanes, int64_t{kPoolThreads}), kPoolThreads}, target,
                units, args...);
}

// Whether channels can be accessed as vectors of W.
template <int W>
bool channels_fit(const PoolShape& shape, const void* first, const void* second) {
  return shape.inner % W == 0 && reinterpret_cast<uintptr_t>(first) % 16 == 0 &&
         reinterpret_cast<uintptr_t>(second) % 16 == 0;
}

}  // namespace fastdl
