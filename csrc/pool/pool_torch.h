#pragma once

#include <optional>
#include <tuple>
#include <vector>

#include "pool/pool.h"
#include "torch/checks.h"
#include "torch/sizes.h"

namespace fastdl {

// The windows of a pooling in one or two dimensions; adaptive ones have only output sizes.
struct PoolWindows {
  std::vector<int64_t> kernel, stride, padding, dilation, output;
};

// Sizes and strides for the kernels. Raises where they would be wrong.
PoolShape pool_shape(at::IntArrayRef input, const PoolWindows& windows, bool channels_last);

// torch.nn.functional's poolings in one or two dimensions; nothing where native torch must compute.
template <int64_t dims>
std::optional<at::Tensor> max_pool(const PlainTensor& input, const Sizes& kernel_size,
                                   const Sizes& stride, const Sizes& padding, const Sizes& dilation,
                                   bool ceil_mode);
template <int64_t dims>
std::optional<std::tuple<at::Tensor, at::Tensor>> max_pool_with_indices(
    const PlainTensor& input, const Sizes& kernel_size, const Sizes& stride, const Sizes& padding,
    const Sizes& dilation, bool ceil_mode);
template <int64_t dims>
std::optional<at::Tensor> avg_pool(const PlainTensor& input, const Sizes& kernel_size,
                                   const Sizes& stride, const Sizes& padding, bool ceil_mode,
                                   bool count_include_pad, std::optional<Integer> divisor_override);
template <int64_t dims>
std::optional<at::Tensor> adaptive_max_pool(const PlainTensor& input, const Sizes& output_size);
template <int64_t dims>
std::optional<std::tuple<at::Tensor, at::Tensor>> adaptive_max_pool_with_indices(
    const PlainTensor& input, const Sizes& output_size);
template <int64_t dims>
std::optional<at::Tensor> adaptive_avg_pool(const PlainTensor& input, const Sizes& output_size);

}  // namespace fastdl
