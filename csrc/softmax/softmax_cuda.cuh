// What the CUDA kernels of the softmax family share.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/dispatch.h"
#include "common/launch.cuh"
#include "common/row_plan.h"
#include "common/row_team.cuh"
#include "common/vector_io.cuh"
#include "softmax/softmax.h"

namespace fastdl {

// exp(x), for results that are stored as Out: 16 bits leave room for the error of the fast one,
// which for float32 would grow with |x|.
template <class Out>
__device__ __forceinline__ float exponential(float x) {
  if constexpr (sizeof(Out) == 2) return __expf(x);
  return expf(x);
}
template <class Out>
__device__ __forceinline__ double exponential(double x) {
  return exp(x);
}

// softmin is softmax of the negated input.
__device__ __forceinline__ int sign_of(SoftmaxKind kind) {
  return kind == SoftmaxKind::kSoftmin ? -1 : 1;
}

// The outputs of a row take one number from the sum of its exponentials: its logarithm, its
// reciprocal, or (float64, where a multiplication would cost a digit) the sum itself.
template <class A>
__device__ __forceinline__ A divisor_of(bool logarithm, A sum) {
  if (logarithm) return log(sum);
  return sizeof(A) == 8 ? sum : 1 / sum;
}

// The output of an element less the row's maximum.
template <class Out, class A>
__device__ __forceinline__ A normalised(bool logarithm, A shifted, A divisor) {
  if (logarithm) return shifted - divisor;
  const A exponent = exponential<Out>(shifted);
  return sizeof(A) == 8 ? exponent / divisor : exponent * divisor;
}

// How many vectors of W a row has, at most, whose first row begins `shift` elements after a
// multiple of W.
inline int64_t vectors_of_row(int64_t cols, int shift, int W) {
  if (shift == 0 && cols % W == 0) return cols / W;
  return ceil_divide(cols + W - 1, W);  // the shift differs from row to row
}

Status softmax_forward_columns_cuda(const SoftmaxForwardArgs& args, const CudaTarget& target);
Status softmax_backward_columns_cuda(const SoftmaxBackwardArgs& args, const CudaTarget& target);

}  // namespace fastdl
