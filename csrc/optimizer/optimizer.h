// Contract of the optimizers' step over any number of tensors in one call. An algorithm is a struct
// of options here and an Update in optimizer_formulas.h; the rest is shared.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "common/cpu_isa.h"
#include "common/cuda_target.h"
#include "common/dtype.h"
#include "optimizer/tensor_blocks.h"

namespace fastdl {

inline constexpr int kMaxStates = 3;

// What the number of a step does to it.
struct Corrections {
  double rate = 1;  // lr is divided by it
  double root = 1;  // the root of the second moment is multiplied by it
};

// One parameter with its gradient and state: `size` elements each, all of `dtype`, all in the same
// order in memory.
struct StepTensor {
  void* param;
  void* grad;                // overwritten with the unscaled gradient when grad_scale is not 1
  void* states[kMaxStates];  // in the order that the algorithm names; null where it has none
  int64_t size;
  int64_t first_block;  // number of blocks in all tensors before this one
  Corrections corrections;
  DType dtype;
  DType step_dtype = DType::kFloat32;  // of the scalar at `step`: float32 or float64
  void* step = nullptr;  // on the GPU: counted up by the step, which finds the corrections itself
};

struct StepArgs {
  const StepTensor* tensors;  // [count]; on the CPU none empty
  int64_t count;
  double lr;
  double weight_decay = 0;  // of the parameter joins the gradient
  double grad_scale = 1;    // what gradients are divided by; 1 leaves them alone
  double clip = 1;          // what gradients are then multiplied by, in this step alone
  bool maximize = false;    // gradients are negated
};

#if defined(__CUDACC__)
#define FASTDL_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FASTDL_HOST_DEVICE inline
#endif

// States: first moment, second moment, largest second moment so far (amsgrad).
struct Adam {
  static constexpr int kStates = 3;
  double beta1, beta2, eps;
  double decoupled_weight_decay = 0;  // shrinks the parameter (AdamW)

  // 1 - beta^step, without cancellation
  static FASTDL_HOST_DEVICE double correction(double beta, double step) {
    return -expm1(step * log(beta));
  }
  FASTDL_HOST_DEVICE Corrections corrections(double step) const {
    return {correction(beta1, step), 1 / sqrt(correction(beta2, step))};
  }
};

// State: momentum buffer, or none.
struct Sgd {
  static constexpr int kStates = 1;
  double momentum, dampening;
  bool nesterov;
  bool first;  // the buffer becomes the gradient, whatever it is

  FASTDL_HOST_DEVICE Corrections corrections(double) const { return {}; }
};

// State: sum of squares.
struct Adagrad {
  static constexpr int kStates = 1;
  double lr_decay, eps;

  FASTDL_HOST_DEVICE Corrections corrections(double step) const {
    return {1 + (step - 1) * lr_decay, 1};
  }
};

// States: average square, average gradient (centered), momentum buffer; the last two may be absent.
struct RmsProp {
  static constexpr int kStates = 3;
  double alpha, eps, momentum;

  FASTDL_HOST_DEVICE Corrections corrections(double) const { return {}; }
};

template <CpuIsa isa, class Algorithm>
void optimizer_step(const StepArgs& args, const Algorithm& algorithm);

// What a step on the GPU reads from there, so that the host waits for nothing. Each may be null.
struct StepDeviceScalars {
  const void* lr;           // takes the place of args.lr
  const float* grad_scale;  // takes the place of args.grad_scale
  const float* found_inf;   // not 0: nothing changes, steps do not count
  const double* clip;       // takes the place of args.clip
  DType lr_dtype;           // float32 or float64
};

// `scratch` has step_scratch_cuda(args.count) bytes on the GPU, for the table of tensors.
size_t step_scratch_cuda(int64_t count);
template <class Algorithm>
Status optimizer_step_cuda(const StepArgs& args, const Algorithm& algorithm,
                           const StepDeviceScalars& scalars, void* scratch,
                           const CudaTarget& target);

}  // namespace fastdl
