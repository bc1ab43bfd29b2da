// Reductions over the lanes of a warp. Over blocks and clusters: row_team.cuh.
#pragma once

#include <cuda_runtime.h>

#include <cmath>

namespace fastdl {

inline constexpr unsigned kAllLanes = 0xffffffffu;
inline constexpr int kWarp = 32;

struct Sum {
  template <class A>
  __device__ __forceinline__ A operator()(A a, A b) const {
    return a + b;
  }
  template <class A>
  static __device__ __forceinline__ A identity() {
    return 0;
  }
};

// Ignores NaN, which reaches the result through the sums.
struct Max {
  __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
  __device__ __forceinline__ double operator()(double a, double b) const { return fmax(a, b); }
  template <class A>
  static __device__ __forceinline__ A identity() {
    return -static_cast<A>(INFINITY);
  }
};

// Over neighbouring lanes, a power of two of them; every lane gets the result. All lanes of the
// warp must call.
template <class Op, class A, int N>
__device__ __forceinline__ void warp_reduce(A (&values)[N], int lanes = kWarp) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      values[n] = Op()(values[n], __shfl_xor_sync(kAllLanes, values[n], offset));
    }
  }
}

}  // namespace fastdl
