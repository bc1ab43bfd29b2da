#pragma once

#include <optional>

#include "embedding/embedding.h"
#include "torch/checks.h"

namespace fastdl {

// torch.nn.functional.embedding; nothing where native torch must compute.
std::optional<at::Tensor> embedding(const PlainTensor& input, const PlainTensor& weight,
                                    std::optional<Integer> padding_idx,
                                    std::optional<Number> max_norm, Number norm_type,
                                    bool scale_grad_by_freq, bool sparse);

}  // namespace fastdl
