// Contract of group_norm: normalisation of groups of channels, for each sample by itself.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/cpu_isa.h"
#include "common/cuda_target.h"
#include "common/dtype.h"

namespace fastdl {

// Of [batch, channels, spatial] or, channels last, [batch, spatial, channels] elements
struct GroupNormShape {
  int64_t batch, channels, spatial, groups;
  bool channels_last;
  int64_t elements() const { return batch * channels * spatial; }
  int64_t channels_of_group() const { return channels / groups; }
};

// Statistics have the accumulation type: float64 for float64, else float32.
struct GroupNormForwardArgs {
  const void* input;   // shape, dtype
  const void* weight;  // [channels], weight_dtype, or null for ones
  const void* bias;    // [channels], weight_dtype, or null for zeros
  void* output;        // shape, dtype
  void* mean;          // [batch, groups]
  void* rstd;          // [batch, groups]
  GroupNormShape shape;
  double eps;
  DType dtype;
  DType weight_dtype;       // equal to dtype, or float32 with a 16-bit dtype
  void* scratch = nullptr;  // group_norm_forward_scratch_cuda() bytes, on CUDA
};

struct GroupNormBackwardArgs {
  const void* grad_output;  // shape, dtype
  const void* input;        // shape, dtype
  const void* weight;       // [channels], weight_dtype, or null for ones
  const void* mean;         // [batch, groups], as forward gave them
  const void* rstd;         // [batch, groups]
  void* grad_input;         // shape, dtype, or null when not wanted
  void* grad_weight;        // [channels], weight_dtype, or null when not wanted
  void* grad_bias;          // [channels], weight_dtype, or null when not wanted
  GroupNormShape shape;
  DType dtype;
  DType weight_dtype;
  void* scratch = nullptr;  // group_norm_backward_scratch_cuda() bytes, on CUDA
};

template <CpuIsa isa>
void group_norm_forward(const GroupNormForwardArgs& args);
template <CpuIsa isa>
void group_norm_backward(const GroupNormBackwardArgs& args);

size_t group_norm_forward_scratch_cuda(const GroupNormForwardArgs& args, const CudaTarget& target);
size_t group_norm_backward_scratch_cuda(const GroupNormBackwardArgs& args,
                                        const CudaTarget& target);
Status group_norm_forward_cuda(const GroupNormForwardArgs& args, const CudaTarget& target);
Status group_norm_backward_cuda(const GroupNormBackwardArgs& args, const CudaTarget& target);

}  // namespace fastdl
