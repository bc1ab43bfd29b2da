// Autograd, autocast and torch.func of attention. Entry points: attention_call_torch.cpp.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "attention/attention_op_torch.h"
#include "torch/backward.h"
#include "torch/hand_over.h"

namespace fastdl {

using at::Tensor;

AttentionResult call_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                               const AttentionOptions& o) {
  static const auto op = find_op<decltype(attention_op<call_attention>)>("fastdl::attention");
  return op.call(query, key, value, o.allowed, o.tiles, o.bias, o.begin, o.end, o.slopes, o.lowest,
                 o.highest, o.slope_offset, o.soft_cap, o.scale, o.dropout_p, o.seed);
}

AttentionGradients call_attention_backward(const Tensor& grad_output, const Tensor& query,
                                           const Tensor& key, const Tensor& value,
                                           const Tensor& output, const Tensor& lse,
                                           const AttentionOptions& o, std::array<bool, 4> wanted) {
  static const auto op = find_op<decltype(attention_backward_op<call_attention_backward>)>(
      "fastdl::attention_backward");
  return op.call(grad_output, query, key, value, output, lse, o.allowed, o.tiles, o.bias, o.begin,
                 o.end, o.slopes, o.lowest, o.highest, o.slope_offset, o.soft_cap, o.scale,
                 o.dropout_p, o.seed, wanted);
}

Tensor call_attention_mask_tiles(const Tensor& allowed) {
  static const auto op = find_op<Tensor(const Tensor&)>("fastdl::attention_mask_tiles");
  return op.call(allowed);
}

Tensor call_attention_kept(const Tensor& query, const Tensor& key, double dropout_p, int64_t seed) {
  static const auto op =
      find_op<Tensor(const Tensor&, const Tensor&, double, int64_t)>("fastdl::attention_kept");
  return op.call(query, key, dropout_p, seed);
}

// scaled_dot_product_attention is on autocast's list of lower precision.
Tensor autocast_attention(const Tensor& tensor, c10::DeviceType device) {
  if (!tensor.defined()) return tensor;
  return at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), tensor, device);
}

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Tensor tensor_or_undefined(const OptionalTensor& tensor) { return tensor.value_or(Tensor()); }
OptionalTensor optional(const Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

// Numbers in lists, as every entry of saved_data costs a call most of a microsecond.
void save_numbers(AutogradContext* ctx, const AttentionOptions& o) {
  ctx->saved_data["floats"] = std::vector<double>{o.soft_cap, o.scale, o.dropout_p};
  ctx->saved_data["sizes"] = std::vector<c10::SymInt>{o.slope_offset,        o.seed,
                                                      o.lowest.has_value(),  o.lowest.value_or(0),
                                                      o.highest.has_value(), o.highest.value_or(0)};
}

void load_numbers(AutogradContext* ctx, AttentionOptions& o) {
  const auto floats = ctx->saved_data["floats"].toDoubleVector();
  o.soft_cap = floats[0], o.scale = floats[1], o.dropout_p = floats[2];
  const auto sizes = ctx->saved_data["sizes"].toSymIntVector();
  o.slope_offset = sizes[0];
  o.seed = sizes[1].expect_int();
  if (sizes[2] != 0) o.lowest = sizes[3];
  if (sizes[4] != 0) o.highest = sizes[5];
}

struct AttentionFunction : torch::autograd::Function<AttentionFunction> {
  // The bias is that of the options, in the place where autograd finds it.
  static variable_list forward(AutogradContext* ctx, const Tensor& query, const Tensor& key,
                               const Tensor& value, const OptionalTensor& bias,
                               const AttentionOptions& options) {
    const at::AutoDispatchBelowADInplaceOrView below;
    AttentionOptions o = options;
    if (o.allowed && !o.tiles) o.tiles = call_attention_mask_tiles(*o.allowed);
    auto [output, lse] = call_attention(query, key, value, o);
    ctx->save_for_backward({query, key, value, output, lse, tensor_or_undefined(bias),
                            tensor_or_undefined(o.allowed), tensor_or_undefined(o.tiles),
                            tensor_or_undefined(o.begin), tensor_or_undefined(o.end),
                            tensor_or_undefined(o.slopes)});
    save_numbers(ctx, o);
    ctx->mark_non_differentiable({lse});
    ctx->set_materialize_grads(false);
    return {output, lse};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list results(5);
    if (!grads[0].defined()) return results;
    const auto saved = ctx->get_saved_variables();
    const Tensor &query = saved[0], &key = saved[1], &value = saved[2];
    AttentionOptions o{.allowed = optional(saved[6]),
                       .tiles = optional(saved[7]),
                       .bias = optional(saved[5]),
                       .begin = optional(saved[8]),
                       .end = optional(saved[9]),
                       .slopes = optional(saved[10]),
                       .lowest = std::nullopt,
                       .highest = std::nullopt};
    load_numbers(ctx, o);
    const std::array<bool, 4> wanted = {ctx->needs_input_grad(0), ctx->needs_input_grad(1),
                                        ctx->needs_input_grad(2),
                                        o.bias.has_value() && ctx->needs_input_grad(3)};
    if (const char* reason = reason_of_backward(grads[0])) {
      hand_over("scaled_dot_product_attention backward", reason);
      const auto computed = native_attention_backward(grads[0], query, key, value, o, wanted);
      std::copy(computed.begin(), computed.end(), results.begin());
      return results;
    }
    const at::AutoDispatchBelowADInplaceOrView below;
    std::tie(results[0], results[1], results[2], results[3]) =
        call_attention_backward(grads[0], query, key, value, saved[3], saved[4], o, wanted);
    for (size_t i = 0; i < 4; ++i) {
      if (!wanted[i]) results[i] = Tensor();
    }
    return results;
  }
};

AttentionResult attention_autograd(const Tensor& query, const Tensor& key, const Tensor& value,
                                   const AttentionOptions& options) {
  if (is_transformed()) return native_attention(query, key, value, options);
  if (at::GradMode::is_enabled() &&
      (query.requires_grad() || key.requires_grad() || value.requires_grad() ||
       (options.bias && options.bias->requires_grad()))) {
    auto results = AttentionFunction::apply(query, key, value, options.bias, options);
    return {results[0], results[1]};
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_attention(query, key, value, options);
}

template <c10::DeviceType device>
AttentionResult attention_autocast(const Tensor& query, const Tensor& key, const Tensor& value,
                                   const AttentionOptions& options) {
  const c10::impl::ExcludeDispatchKeyGuard below(
      at::autocast::get_autocast_dispatch_key_from_device_type(device));
  AttentionOptions o = options;
  if (o.bias) o.bias = autocast_attention(*o.bias, device);
  return call_attention(autocast_attention(query, device), autocast_attention(key, device),
                        autocast_attention(value, device), o);
}

TORCH_LIBRARY_IMPL(fastdl, Autograd, library) {
  library.impl("attention", attention_op<attention_autograd>);
  library.impl("attention_backward", torch::autograd::autogradNotImplementedFallback());
  library.impl("attention_mask_tiles", torch::autograd::autogradNotImplementedFallback());
  library.impl("attention_kept", torch::autograd::autogradNotImplementedFallback());
}
TORCH_LIBRARY_IMPL(fastdl, AutocastCPU, library) {
  library.impl("attention", attention_op<attention_autocast<at::kCPU>>);
}
TORCH_LIBRARY_IMPL(fastdl, AutocastCUDA, library) {
  library.impl("attention", attention_op<attention_autocast<at::kCUDA>>);
}
TORCH_LIBRARY_IMPL(fastdl, FuncTorchBatched, library) {
  library.impl("attention", attention_op<native_attention>);
}

}  // namespace
}  // namespace fastdl
