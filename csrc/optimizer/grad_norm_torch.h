#pragma once

#include <optional>
#include <tuple>
#include <vector>

#include "optimizer/optimizer_torch.h"

namespace fastdl {

// The total 2-norm of grads / grad_scale in their dtype, and min(1, max_norm / (norm + 1e-6)) in
// float64; nullopt if native torch must find them.
std::optional<std::tuple<at::Tensor, at::Tensor>> grad_norm_of(
    const PlainTensors& grads, Number max_norm, const OptionalPlainTensor& grad_scale);

// Multiplies gradients that grad_norm_of() took, in place.
void scale_all_grads(const PlainTensors& grads, const PlainTensor& coefficient);

}  // namespace fastdl
