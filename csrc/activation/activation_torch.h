#pragma once

#include <optional>
#include <string>

#include "activation/activation.h"
#include "torch/checks.h"

namespace fastdl {

// torch.nn.functional's relu, sigmoid, tanh, silu, leaky_relu or elu, and gelu; nothing where
// native torch must compute.
std::optional<at::Tensor> activation(const PlainTensor& input, double parameter, bool inplace,
                                     ActivationKind kind);
std::optional<at::Tensor> gelu(const PlainTensor& input, const std::string& approximate);

}  // namespace fastdl
