// The arguments of the registered ops: AttentionOptions spread out, as schemas have no structs.
#pragma once

#include "attention/attention_torch.h"

namespace fastdl {

using AttentionResult = std::tuple<at::Tensor, at::Tensor>;
using AttentionGradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// function(query, key, value, options) as the dispatcher calls it.
template <AttentionResult (*function)(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                      const AttentionOptions&)>
AttentionResult attention_op(const at::Tensor& query, const at::Tensor& key,
                             const at::Tensor& value, const OptionalTensor& allowed,
                             const OptionalTensor& tiles, const OptionalTensor& bias,
                             const OptionalTensor& begin, const OptionalTensor& end,
                             const OptionalTensor& slopes, OptionalSize lowest,
                             OptionalSize highest, c10::SymInt slope_offset, double soft_cap,
                             double scale, double dropout_p, int64_t seed) {
  return function(query, key, value,
                  {allowed, tiles, bias, begin, end, slopes, std::move(lowest), std::move(highest),
                   std::move(slope_offset), soft_cap, scale, dropout_p, seed});
}

// Likewise function(grad_output, query, key, value, output, lse, options, wanted).
template <AttentionGradients (*function)(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                         const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                         const AttentionOptions&, std::array<bool, 4>)>
AttentionGradients attention_backward_op(
    const at::Tensor& grad_output, const at::Tensor& query, const at::Tensor& key,
    const at::Tensor& value, const at::Tensor& output, const at::Tensor& lse,
    const OptionalTensor& allowed, const OptionalTensor& tiles, const OptionalTensor& bias,
    const OptionalTensor& begin, const OptionalTensor& end, const OptionalTensor& slopes,
    OptionalSize lowest, OptionalSize highest, c10::SymInt slope_offset, double soft_cap,
    double scale, double dropout_p, int64_t seed, std::array<bool, 4> wanted) {
  return function(grad_output, query, key, value, output, lse,
                  {allowed, tiles, bias, begin, end, slopes, std::move(lowest), std::move(highest),
                   std::move(slope_offset), soft_cap, scale, dropout_p, seed},
                  wanted);
}

}  // namespace fastdl
