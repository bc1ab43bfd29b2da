#pragma once

#include <optional>
#include <string>

#include "elementwise_loss/elementwise_loss.h"
#include "torch/checks.h"

namespace fastdl {

// torch.nn.functional's functions of these names, arguments in torch's order; nothing where native
// torch must compute.
std::optional<at::Tensor> mse_loss(const PlainTensor& input, const PlainTensor& target,
                                   std::optional<bool> size_average, std::optional<bool> reduce,
                                   const std::string& reduction,
                                   const std::optional<PlainTensor>& weight);
std::optional<at::Tensor> l1_loss(const PlainTensor& input, const PlainTensor& target,
                                  std::optional<bool> size_average, std::optional<bool> reduce,
                                  const std::string& reduction,
                                  const std::optional<PlainTensor>& weight);
std::optional<at::Tensor> smooth_l1_loss(const PlainTensor& input, const PlainTensor& target,
                                         std::optional<bool> size_average,
                                         std::optional<bool> reduce, const std::string& reduction,
                                         Number beta);
std::optional<at::Tensor> huber_loss(const PlainTensor& input, const PlainTensor& target,
                                     const std::string& reduction, Number delta,
                                     const std::optional<PlainTensor>& weight);
std::optional<at::Tensor> binary_cross_entropy_with_logits(
    const PlainTensor& input, const PlainTensor& target, const std::optional<PlainTensor>& weight,
    std::optional<bool> size_average, std::optional<bool> reduce, const std::string& reduction,
    const std::optional<PlainTensor>& pos_weight);

}  // namespace fastdl
