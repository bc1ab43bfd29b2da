#pragma once

#include <optional>

#include "softmax/softmax.h"
#include "torch/checks.h"

namespace fastdl {

// torch.nn.functional's softmax, log_softmax or softmin; nothing where native torch must compute.
std::optional<at::Tensor> softmax(const PlainTensor& input, int64_t dim,
                                  std::optional<at::ScalarType> dtype, SoftmaxKind kind);

}  // namespace fastdl
