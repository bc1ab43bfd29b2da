// What the torch files of attention share. Formula and fields: attention.h.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <array>
#include <optional>
#include <tuple>

#include "torch/checks.h"

namespace fastdl {

using OptionalTensor = std::optional<at::Tensor>;
using OptionalSize = std::optional<c10::SymInt>;

// All but query, key and value, which are [batch, heads or kv_heads, rows, cols].
struct AttentionOptions {
  OptionalTensor allowed;     // bool, broadcastable to [batch, heads, queries, keys]
  OptionalTensor tiles;       // of allowed, by attention_mask_tiles
  OptionalTensor bias;        // the dtype of the query or float32, broadcastable likewise
  OptionalTensor begin, end;  // int32 [intervals, batch or 1, heads or 1, queries or 1]
  OptionalTensor slopes;      // float32 [batch or 1, heads or 1]
  OptionalSize lowest, highest;
  c10::SymInt slope_offset = 0;
  double soft_cap = 0, scale = 1, dropout_p = 0;
  int64_t seed = 0;
};

// Sums and statistics have this type.
inline at::ScalarType attention_sum_dtype(at::ScalarType dtype) {
  return dtype == at::kDouble ? at::kDouble : at::kFloat;
}

// A new tensor of these sizes whose memory is in the order of that of `like`, rows side by side:
// torch's rule for the output, so that reshaping a transposed one costs nothing.
at::Tensor empty_in_order_of(const at::Tensor& like, c10::SymIntArrayRef sizes);

// The part of a mask that does not lie in the same memory again.
at::Tensor attention_mask_without_repetitions(at::Tensor mask);

// Whether kernels cover tensors of these sizes and dtype.
bool attention_has_kernel(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value);

// The kernels. Output and lse; gradients of query, key, value and bias where they are wanted.
std::tuple<at::Tensor, at::Tensor> run_attention(const at::Tensor& query, const at::Tensor& key,
                                                 const at::Tensor& value,
                                                 const AttentionOptions& options);
std::array<at::Tensor, 4> run_attention_backward(const at::Tensor& grad_output,
                                                 const at::Tensor& query, const at::Tensor& key,
                                                 const at::Tensor& value, const at::Tensor& output,
                                                 const at::Tensor& lse,
                                                 const AttentionOptions& options,
                                                 std::array<bool, 4> wanted);
at::Tensor run_attention_mask_tiles(const at::Tensor& allowed);
at::Tensor run_attention_kept(const at::Tensor& query, const at::Tensor& key, double dropout_p,
                              int64_t seed);

// The same by torch, with scores in memory, differentiable where autograd is on.
std::tuple<at::Tensor, at::Tensor> native_attention(const at::Tensor& query, const at::Tensor& key,
                                                    const at::Tensor& value,
                                                    const AttentionOptions& options);
std::array<at::Tensor, 4> native_attention_backward(const at::Tensor& grad_output,
                                                    const at::Tensor& query, const at::Tensor& key,
                                                    const at::Tensor& value,
                                                    const AttentionOptions& options,
                                                    std::array<bool, 4> wanted);

// The registered ops.
std::tuple<at::Tensor, at::Tensor> call_attention(const at::Tensor& query, const at::Tensor& key,
                                                  const at::Tensor& value,
                                                  const AttentionOptions& options);
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> call_attention_backward(
    const at::Tensor& grad_output, const at::Tensor& query, const at::Tensor& key,
    const at::Tensor& value, const at::Tensor& output, const at::Tensor& lse,
    const AttentionOptions& options, std::array<bool, 4> wanted);
at::Tensor call_attention_mask_tiles(const at::Tensor& allowed);
at::Tensor call_attention_kept(const at::Tensor& query, const at::Tensor& key, double dropout_p,
                               int64_t seed);
// What autocast makes of an argument.
at::Tensor autocast_attention(const at::Tensor& tensor, c10::DeviceType device);

// torch.nn.functional.scaled_dot_product_attention; nothing where native torch must compute.
std::optional<at::Tensor> attention(const PlainTensor& query, const PlainTensor& key,
                                    const PlainTensor& value,
                                    const std::optional<PlainTensor>& attn_mask, Number dropout_p,
                                    bool is_causal, std::optional<Number> scale, bool enable_gqa);

// The same with the parts of a mask.
std::optional<at::Tensor> masked_attention(
    const PlainTensor& query, const PlainTensor& key, const PlainTensor& value,
    std::optional<Integer> lowest, std::optional<Integer> highest,
    const std::optional<PlainTensor>& begin, const std::optional<PlainTensor>& end,
    const std::optional<PlainTensor>& allowed, const std::optional<PlainTensor>& bias,
    const std::optional<PlainTensor>& slopes, Integer slope_offset, Number soft_cap,
    Number dropout_p, std::optional<Number> scale, bool enable_gqa);

}  // namespace fastdl
