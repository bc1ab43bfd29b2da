// Contract of the activation functions: one value in, one value out.
#pragma once

#include <cstdint>

#include "common/cpu_isa.h"
#include "common/cuda_target.h"
#include "common/dtype.h"

namespace fastdl {

enum class ActivationKind : int8_t {
  kRelu,
  kSigmoid,
  kTanh,
  kGelu,
  kGeluTanh,
  kSilu,
  kLeakyRelu,  // its parameter is the negative slope
  kElu         // its parameter is alpha
};

inline constexpr int kActivationKinds = 8;

// Which tensor the backward needs, as in torch: of these three the output, of others the input.
inline constexpr bool needs_output(ActivationKind kind) {
  return kind == ActivationKind::kRelu || kind == ActivationKind::kSigmoid ||
         kind == ActivationKind::kTanh;
}

// Elements in memory order, of any alignment.
struct ActivationForwardArgs {
  const void* input;  // [count], dtype
  void* output;       // [count], dtype; may be the input
  int64_t count;
  double parameter;
  DType dtype;
  ActivationKind kind;
};

struct ActivationBackwardArgs {
  const void* grad_output;  // [count], dtype
  const void* saved;        // [count], dtype: output or input, see needs_output()
  void* grad_input;         // [count], dtype
  int64_t count;
  double parameter;
  DType dtype;
  ActivationKind kind;
};

template <CpuIsa isa>
void activation_forward(const ActivationForwardArgs& args);
template <CpuIsa isa>
void activation_backward(const ActivationBackwardArgs& args);

Status activation_forward_cuda(const ActivationForwardArgs& args, const CudaTarget& target);
Status activation_backward_cuda(const ActivationBackwardArgs& args, const CudaTarget& target);

}  // namespace fastdl
