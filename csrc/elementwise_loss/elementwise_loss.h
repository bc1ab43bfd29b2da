// Contract of the losses that are a sum over elements: mse, l1, smooth_l1, huber, and binary
// cross-entropy of logits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/cpu_isa.h"
#include "common/cuda_target.h"
#include "common/dtype.h"

namespace fastdl {

enum class LossKind : int8_t { kMse, kL1, kSmoothL1, kHuber, kBinaryCrossEntropy };
enum class LossReduction : int8_t { kNone, kMean, kSum };  // torch's numbers

// What both directions read. All tensors have `dtype`. Weights belong to binary cross-entropy
// alone; element i has that of i % period, and a period is `size` where there is no such weight.
struct ElementwiseLossTerms {
  const void* input;       // [size]
  const void* target;      // [size]
  const void* weight;      // [weight_period] or null
  const void* pos_weight;  // [pos_weight_period] or null
  int64_t size, weight_period, pos_weight_period;
  double threshold;  // beta of smooth_l1, delta of huber: positive
  LossKind kind;
  LossReduction reduction;
  DType dtype;
};

struct ElementwiseLossForwardArgs {
  ElementwiseLossTerms terms;
  void* output;             // [size] without a reduction, else [1]
  void* scratch = nullptr;  // elementwise_loss_scratch_cuda() bytes, on CUDA
};

struct ElementwiseLossBackwardArgs {
  ElementwiseLossTerms terms;
  const void* grad_output;  // [1], or [size] where that is not the same for all elements
  bool same_grad_output;
  void* grad_input;   // [size] or null
  void* grad_target;  // [size] or null
};

template <CpuIsa isa>
void elementwise_loss_forward(const ElementwiseLossForwardArgs& args);
template <CpuIsa isa>
void elementwise_loss_backward(const ElementwiseLossBackwardArgs& args);

size_t elementwise_loss_scratch_cuda(const ElementwiseLossForwardArgs& args,
                                     const CudaTarget& target);
Status elementwise_loss_forward_cuda(const ElementwiseLossForwardArgs& args,
                                     const CudaTarget& target);
Status elementwise_loss_backward_cuda(const ElementwiseLossBackwardArgs& args,
                                      const CudaTarget& target);

}  // namespace fastdl
