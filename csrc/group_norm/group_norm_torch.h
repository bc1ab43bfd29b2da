#pragma once

#include <optional>

#include "group_norm/group_norm.h"
#include "torch/checks.h"

namespace fastdl {

// torch.nn.functional's group_norm; nothing where native torch must compute.
std::optional<at::Tensor> group_norm(const PlainTensor& input, Integer num_groups,
                                     const std::optional<PlainTensor>& weight,
                                     const std::optional<PlainTensor>& bias, Number eps);

}  // namespace fastdl
