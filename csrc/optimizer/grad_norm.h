// Contract of clipping by the total norm: one pass over all gradients for it, one to scale them.
#pragma once

#include <cstdint>

#include "common/cpu_isa.h"
#include "common/cuda_target.h"
#include "common/dtype.h"
#include "optimizer/tensor_blocks.h"

namespace fastdl {

// The elements of one gradient, in any order in memory; none is empty.
struct GradTensor {
  void* data;
  int64_t size;
  int64_t first_block;  // number of blocks in all tensors before this one
  DType dtype;
};

// total_norm = sqrt(sum of squares) / grad_scale;  coefficient = min(1, max_norm / (norm + 1e-6))
// All memory is on the GPU where the gradients are.
struct GradNormArgs {
  const GradTensor* tensors;  // [count]
  int64_t count;
  double* block_sums;  // [table_blocks(tensors, count)], scratch
  double max_norm;
  double grad_scale;    // 1 where gradients have no scale
  double* total_norm;   // a scalar
  double* coefficient;  // a scalar; NaN if the norm is
};

template <CpuIsa isa>
void grad_norm(const GradNormArgs& args);
template <CpuIsa isa>
void scale_grads(const GradTensor* tensors, int64_t count, double coefficient);

// grad_scale, if not null, takes the place of args.grad_scale.
Status grad_norm_cuda(const GradNormArgs& args, const float* grad_scale, const CudaTarget& target);
Status scale_grads_cuda(const GradTensor* tensors, int64_t count, const double* coefficient,
                        const CudaTarget& target);

}  // namespace fastdl
