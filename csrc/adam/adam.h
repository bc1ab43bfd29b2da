// Contract of the Adam and AdamW step over any number of tensors in one call.
#pragma once

#include <cstdint>

#include "common/cpu_isa.h"
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

}  // namespace fastdl
