#pragma once

#include <optional>
#include <tuple>

#include "torch/checks.h"

namespace fastdl {

using ThreeTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
using FourTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// Why the kernels do not cover these shapes and types (undefined tensors for None), or nullptr.
const char* reason_of_dropout_add(const at::Tensor& input, const at::Tensor& residual,
                                  at::IntArrayRef normalized_shape, const at::Tensor& weight,
                                  const at::Tensor& bias);

// Output and sum of fastdl.functional.dropout_add_layer_norm; nothing where native torch must
// compute.
std::optional<std::tuple<at::Tensor, at::Tensor>> dropout_add_layer_norm(
    const PlainTensor& input, const PlainTensor& residual, const Integers& normalized_shape,
    const std::optional<PlainTensor>& weight, const std::optional<PlainTensor>& bias, Number p,
    bool training, Number eps);

}  // namespace fastdl
