#pragma once

#include <optional>

#include "layer_norm/layer_norm.h"
#include "torch/checks.h"

namespace fastdl {

// Why the kernels do not cover these shapes and types (undefined tensors for None), or nullptr.
const char* reason_of_arguments(const at::Tensor& input, at::IntArrayRef normalized_shape,
                                const at::Tensor& weight, const at::Tensor& bias, int64_t kind);

// torch.nn.functional's layer_norm and rms_norm; nothing where native torch must compute.
std::optional<at::Tensor> layer_norm(const PlainTensor& input, const Integers& normalized_shape,
                                     const std::optional<PlainTensor>& weight,
                                     const std::optional<PlainTensor>& bias, Number eps);
std::optional<at::Tensor> rms_norm(const PlainTensor& input, const Integers& normalized_shape,
                                   const std::optional<PlainTensor>& weight,
                                   std::optional<Number> eps);

}  // namespace fastdl
