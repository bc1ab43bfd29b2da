#pragma once

#include <array>
#include <optional>
#include <vector>

#include "layer_norm/layer_norm.h"
#include "torch/checks.h"

namespace fastdl {

// Why the kernels do not cover these shapes and types (undefined tensors for None), or nullptr.
const char* reason_of_arguments(const at::Tensor& input, at::IntArrayRef normalized_shape,
                                const at::Tensor& weight, const at::Tensor& bias, int64_t kind);

// The gradients of input, weight and bias from native ops, which torch can differentiate again.
std::vector<at::Tensor> differentiable_norm_backward(const at::Tensor& grad_output,
                                                     const at::Tensor& input,
                                                     const at::Tensor& weight,
                                                     int64_t normalized_dims, double eps,
                                                     std::array<bool, 3> wanted,
                                                     at::ScalarType weight_dtype, bool centred);

// torch.nn.functional's layer_norm and rms_norm; nothing where native torch must compute.
std::optional<at::Tensor> layer_norm(const PlainTensor& input, const Integers& normalized_shape,
                                     const std::optional<PlainTensor>& weight,
                                     const std::optional<PlainTensor>& bias, Number eps);
std::optional<at::Tensor> rms_norm(const PlainTensor& input, const Integers& normalized_shape,
                                   const std::optional<PlainTensor>& weight,
                                   std::optional<Number> eps);

}  // namespace fastdl
