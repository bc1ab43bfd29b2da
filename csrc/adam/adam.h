// Contract of the Adam and AdamW step over any number of tensors in one call.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/cpu_isa.h"
#include "common/cuda_target.h"
#include "common/dtype.h"

namespace fastdl {

// One parameter with its gradient and state: `size` elements each, all of `dtype`, all in the same
// order in memory.
struct AdamTensor {
  void* param;
  void* grad;            // overwritten with the unscaled gradient when grad_scale is not 1
  void* exp_avg;         // first moment m
  void* exp_avg_sq;      // second moment v
  void* max_exp_avg_sq;  // largest v so far (amsgrad), or null
  int64_t size;
  int64_t first_block;  // number of kAdamBlock blocks in all tensors before this one
  double bias_correction1, bias_correction2;  // 1 - beta^step
  DType dtype;
  DType step_dtype = DType::kFloat32;  // of the scalar at `step`: float32 or float64
  void* step = nullptr;  // on the GPU: counted up by the step, which finds the corrections itself
};

// What one task takes at a time: 7 streams of 16 KiB in float32.
inline constexpr int64_t kAdamBlock = 4096;

inline int64_t adam_blocks(int64_t size) { return (size + kAdamBlock - 1) / kAdamBlock; }

struct AdamStepArgs {
  const AdamTensor* tensors;  // [count], none empty
  int64_t count;
  double lr, beta1, beta2, weight_decay, eps;
  double grad_scale;  // what gradients are divided by; 1 leaves them alone
  bool maximize;      // gradients are negated
  bool decoupled;     // weight decay shrinks the parameter (AdamW), else it joins the gradient
};

template <CpuIsa isa>
void adam_step(const AdamStepArgs& args);

// What a step on the GPU reads from there, so that the host waits for nothing. Each may be null.
struct AdamDeviceScalars {
  const void* lr;           // takes the place of args.lr
  const float* grad_scale;  // takes the place of args.grad_scale
  const float* found_inf;   // not 0: nothing changes, steps do not count
  DType lr_dtype;           // float32 or float64
};

// `scratch` has adam_scratch_cuda(args.count) bytes on the GPU, for the table of tensors.
size_t adam_scratch_cuda(int64_t count);
Status adam_step_cuda(const AdamStepArgs& args, const AdamDeviceScalars& scalars, void* scratch,
                      const CudaTarget& target);

}  // namespace fastdl
