#pragma once

#include <optional>

#include "batch_norm/batch_norm.h"
#include "torch/checks.h"

namespace fastdl {

using OptionalTensor = std::optional<at::Tensor>;

// [Relu] of batch_norm + residual; residual and running statistics may be undefined.
struct BatchNormTensors {
  at::Tensor input, residual{}, weight{}, bias{}, running_mean{}, running_var{};
};

// Why the kernels do not cover these shapes and types (undefined tensors for None), or nullptr.
const char* reason_of_arguments(const BatchNormTensors& tensors, bool training);

// torch.nn.functional's batch_norm; nothing where native torch must compute.
std::optional<at::Tensor> batch_norm(const PlainTensor& input,
                                     const std::optional<PlainTensor>& running_mean,
                                     const std::optional<PlainTensor>& running_var,
                                     const std::optional<PlainTensor>& weight,
                                     const std::optional<PlainTensor>& bias, bool training,
                                     Number momentum, Number eps);
// relu(batch_norm + residual)
std::optional<at::Tensor> batch_norm_relu(const PlainTensor& input,
                                          const std::optional<PlainTensor>& running_mean,
                                          const std::optional<PlainTensor>& running_var,
                                          const std::optional<PlainTensor>& weight,
                                          const std::optional<PlainTensor>& bias, bool training,
                                          Number momentum, Number eps,
                                          const std::optional<PlainTensor>& residual);

}  // namespace fastdl
