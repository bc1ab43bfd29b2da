#pragma once

#include <optional>

#include "torch/checks.h"

namespace fastdl {

// torch.nn.functional's dropout; nothing where native torch must compute, which it also does,
// without a kernel of its own, where nothing is random: not in training, p = 0 and p = 1.
std::optional<at::Tensor> dropout_in_training(const PlainTensor& input, Number p, bool training,
                                              bool inplace);

}  // namespace fastdl
