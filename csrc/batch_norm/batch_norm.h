// Contract of batch_norm and batch_norm_relu: normalisation of channels over batch and space.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/cpu_isa.h"
#include "common/cuda_target.h"
#include "common/dtype.h"

namespace fastdl {

// Of [batch, channels, spatial] or, channels last, [batch, spatial, channels] elements
struct BatchNormShape {
  int64_t batch, channels, spatial;
  bool channels_last;
  int64_t elements() const { return batch * channels * spatial; }
};

// Statistics have the accumulation type: float64 for float64, else float32.
struct BatchNormForwardArgs {
  const void* input;     // shape, dtype
  const void* residual;  // shape, dtype, added before the ReLU; or null
  const void* weight;    // [channels], weight_dtype, or null for ones
  const void* bias;      // [channels], weight_dtype, or null for zeros
  void* running_mean;    // [channels], weight_dtype: moved in training (may be null), else used
  void* running_var;     // the same, of the unbiased variance
  void* output;          // shape, dtype
  void* mean;            // [channels]: those that were used
  void* rstd;            // [channels]
  BatchNormShape shape;
  double momentum, eps;
  DType dtype;
  DType weight_dtype;  // equal to dtype, or float32 with a 16-bit dtype
  bool training, relu;
  void* scratch = nullptr;  // batch_norm_forward_scratch_cuda() bytes, on CUDA
};

// grad_input and grad_residual must be aligned alike.
struct BatchNormBackwardArgs {
  const void* grad_output;  // shape, dtype
  const void* input;        // shape, dtype
  const void* output;       // shape, dtype: of a ReLU with residual; else null
  const void* weight;       // [channels], weight_dtype, or null for ones
  const void* bias;         // [channels], weight_dtype, or null for zeros: for a ReLU
  const void* mean;         // [channels], as forward gave them
  const void* rstd;         // [channels]
  void* grad_input;         // shape, dtype, or null when not wanted
  void* grad_residual;      // shape, dtype, or null when not wanted
  void* grad_weight;        // [channels], weight_dtype, or null when not wanted
  void* grad_bias;          // [channels], weight_dtype, or null when not wanted
  BatchNormShape shape;
  DType dtype;
  DType weight_dtype;
  bool training, relu;
  void* scratch = nullptr;  // batch_norm_backward_scratch_cuda() bytes, on CUDA
};

template <CpuIsa isa>
void batch_norm_forward(const BatchNormForwardArgs& args);
template <CpuIsa isa>
void batch_norm_backward(const BatchNormBackwardArgs& args);

size_t batch_norm_forward_scratch_cuda(const BatchNormForwardArgs& args, const CudaTarget& target);
size_t batch_norm_backward_scratch_cuda(const BatchNormBackwardArgs& args,
                                        const CudaTarget& target);
Status batch_norm_forward_cuda(const BatchNormForwardArgs& args, const CudaTarget& target);
Status batch_norm_backward_cuda(const BatchNormBackwardArgs& args, const CudaTarget& target);

}  // namespace fastdl
