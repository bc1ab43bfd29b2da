// Autograd of layer_norm and rms_norm, and the entry points from Python.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <limits>
#include <numeric>

#include "layer_norm/layer_norm_torch.h"
#include "torch/hand_over.h"

namespace fastdl {

std::vector<at::Tensor> differentiable_norm_backward(const at::Tensor& grad_output,
                                                     const at::Tensor& input,
                                                     const at::Tensor& weight,
                                                     int64_t normalized_dims, double eps,
                                                     std::array<bool, 3> wanted,
                                                     at::ScalarType weight_dtype, bool centred) {
  std::vector<int64_t> inner(normalized_dims), outer(input.dim() - normalized_dims);
  std::iota(outer.begin(), outer.end(), 0);
  std::iota(inner.begin(), inner.end(), static_cast<int64_t>(outer.size()));
  const auto dtype = input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const auto mean = [&](const at::Tensor& value) { return value.mean(inner, /*keepdim=*/true); };
  const auto sum_rows = [&](const at::Tensor& value) {
    return (outer.empty() ? value : value.sum(outer)).to(weight_dtype);
  };
  const at::Tensor grad = grad_output.to(dtype);
  at::Tensor x = input.to(dtype);
  if (centred) x = x - mean(x);
  const at::Tensor rstd = (mean(x.square()) + eps).rsqrt();
  const at::Tensor normalised = x * rstd;
  std::vector<at::Tensor> grads(3);
  if (wanted[0]) {
    at::Tensor g = weight.defined() ? grad * weight.to(dtype) : grad;
    const at::Tensor projected = normalised * mean(g * normalised);
    if (centred) g = g - mean(g);
    grads[0] = ((g - projected) * rstd).to(input.scalar_type());
  }
  if (wanted[1]) grads[1] = sum_rows(grad * normalised);
  if (wanted[2]) grads[2] = sum_rows(grad);
  return grads;
}

namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Tensor call_layer_norm(const Tensor& input, c10::SymIntArrayRef normalized_shape,
                       const OptionalTensor& weight, const OptionalTensor& bias, double eps,
                       int64_t kind) {
  static const auto op = find_op<decltype(call_layer_norm)>("fastdl::layer_norm");
  return op.call(input, normalized_shape, weight, bias, eps, kind);
}

std::tuple<Tensor, Tensor> call_forward(const Tensor& input, c10::SymIntArrayRef normalized_shape,
                                        const OptionalTensor& weight, const OptionalTensor& bias,
                                        double eps, int64_t kind) {
  static const auto op = find_op<decltype(call_forward)>("fastdl::layer_norm_forward");
  return op.call(input, normalized_shape, weight, bias, eps, kind);
}

std::tuple<Tensor, Tensor, Tensor> call_backward(const Tensor& grad_output, const Tensor& input,
                                                 c10::SymIntArrayRef normalized_shape,
                                                 const OptionalTensor& weight,
                                                 const Tensor& statistics,
                                                 std::array<bool, 3> wanted,
                                                 at::ScalarType weight_dtype, int64_t kind) {
  static const auto op = find_op<decltype(call_backward)>("fastdl::layer_norm_backward");
  return op.call(grad_output, input, normalized_shape, weight, statistics, wanted, weight_dtype,
                 kind);
}

struct LayerNormFunction : torch::autograd::Function<LayerNormFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input,
                        c10::SymIntArrayRef normalized_shape, const OptionalTensor& weight,
                        const OptionalTensor& bias, double eps, int64_t kind) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [output, statistics] = call_forward(input, normalized_shape, weight, bias, eps, kind);
    const Tensor w = weight.value_or(Tensor()), b = bias.value_or(Tensor());
    ctx->save_for_backward({input, w, statistics});
    ctx->saved_data["normalized_dims"] = static_cast<int64_t>(normalized_shape.size());
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["kind"] = kind;
    ctx->saved_data["has_bias"] = b.defined();
    ctx->saved_data["weight_dtype"] = (w.defined() ? w : b.defined() ? b : input).scalar_type();
    return output;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list results(6);
    if (!grads[0].defined()) return results;
    const auto saved = ctx->get_saved_variables();
    const Tensor &input = saved[0], &weight = saved[1], &statistics = saved[2];
    const int64_t normalized_dims = ctx->saved_data["normalized_dims"].toInt();
    const int64_t kind = ctx->saved_data["kind"].toInt();
    const auto weight_dtype = ctx->saved_data["weight_dtype"].toScalarType();
    // Gradients are counted by the tensors that forward was given.
    const bool has_weight = weight.defined(), has_bias = ctx->saved_data["has_bias"].toBool();
    const std::array<bool, 3> wanted = {ctx->needs_input_grad(0),
                                        has_weight && ctx->needs_input_grad(1),
                                        has_bias && ctx->needs_input_grad(has_weight ? 2 : 1)};
    const char* reason =
        at::GradMode::is_enabled() ? "create_graph=True" : reason_to_hand_over(grads[0]);
    variable_list computed(3);
    if (reason != nullptr) {
      hand_over(kind == 1 ? "rms_norm backward" : "layer_norm backward", reason);
      computed =
          differentiable_norm_backward(grads[0], input, weight, normalized_dims,
                                       ctx->saved_data["eps"].toDouble(), wanted, weight_dtype,
                                       /*centred=*/kind == 0);
    } else {
      const at::AutoDispatchBelowADInplaceOrView below;
      const auto shape = input.sym_sizes().slice(input.dim() - normalized_dims);
      std::tie(computed[0], computed[1], computed[2]) =
          call_backward(grads[0], input, shape, weight, statistics, wanted, weight_dtype, kind);
    }
    if (wanted[0]) results[0] = computed[0];
    if (wanted[1]) results[2] = computed[1];
    if (wanted[2]) results[3] = computed[2];
    return results;
  }
};

bool needs_autograd(const Tensor& input, const Tensor& weight, const Tensor& bias) {
  const auto requires_grad = [](const Tensor& t) { return t.defined() && t.requires_grad(); };
  return at::GradMode::is_enabled() &&
         (input.requires_grad() || requires_grad(weight) || requires_grad(bias));
}

Tensor layer_norm_autograd(const Tensor& input, c10::SymIntArrayRef normalized_shape,
                           const OptionalTensor& weight, const OptionalTensor& bias, double eps,
                           int64_t kind) {
  if (needs_autograd(input, weight.value_or(Tensor()), bias.value_or(Tensor()))) {
    return LayerNormFunction::apply(input, normalized_shape, weight, bias, eps, kind);
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_layer_norm(input, normalized_shape, weight, bias, eps, kind);
}

TORCH_LIBRARY_IMPL(fastdl, Autograd, library) {
  library.impl("layer_norm", layer_norm_autograd);
  library.impl("layer_norm_forward", torch::autograd::autogradNotImplementedFallback());
  library.impl("layer_norm_backward", torch::autograd::autogradNotImplementedFallback());
}

// Not every version of torch has it on the list of ops that autocast computes in float32.
bool autocast_knows_rms_norm() {
  static const bool knows = c10::Dispatcher::singleton()
                                .findSchemaOrThrow("aten::rms_norm", "")
                                .hasKernelForDispatchKey(c10::DispatchKey::AutocastCUDA);
  return knows;
}

std::optional<Tensor> call_or_hand_over(const PlainTensor& input, const Integers& normalized_shape,
                                        const std::optional<PlainTensor>& weight,
                                        const std::optional<PlainTensor>& bias, double eps,
                                        NormKind kind) {
  Tensor x = input.tensor, w = weight ? weight->tensor : Tensor(),
         b = bias ? bias->tensor : Tensor();
  const char* reason = reason_to_hand_over(x);
  if (reason == nullptr && w.defined()) reason = reason_to_hand_over(w);
  if (reason == nullptr && b.defined()) reason = reason_to_hand_over(b);
  if (reason == nullptr && (kind == NormKind::kLayerNorm || autocast_knows_rms_norm())) {
    for (Tensor* tensor : {&x, &w, &b}) *tensor = autocast_to_float(*tensor);
  }
  const at::IntArrayRef shape(normalized_shape.values);
  if (reason == nullptr) {
    reason = reason_of_arguments(x, shape, w, b, static_cast<int64_t>(kind));
  }
  if (reason == nullptr && needs_autograd(x, w, b) &&
      (x.is_inference() || (w.defined() && w.is_inference()))) {
    reason = "an inference tensor that the backward would need";
  }
  if (reason != nullptr) {
    hand_over(kind == NormKind::kRmsNorm ? "rms_norm" : "layer_norm", reason);
    return std::nullopt;
  }
  return call_layer_norm(x, c10::fromIntArrayRefSlow(shape), w, b, eps, static_cast<int64_t>(kind));
}

}  // namespace

std::optional<Tensor> layer_norm(const PlainTensor& input, const Integers& normalized_shape,
                                 const std::optional<PlainTensor>& weight,
                                 const std::optional<PlainTensor>& bias, Number eps) {
  return call_or_hand_over(input, normalized_shape, weight, bias, eps, NormKind::kLayerNorm);
}

std::optional<Tensor> rms_norm(const PlainTensor& input, const Integers& normalized_shape,
                               const std::optional<PlainTensor>& weight,
                               std::optional<Number> eps) {
  const bool is_double = input.tensor.scalar_type() == at::kDouble;
  const double default_eps =
      is_double ? std::numeric_limits<double>::epsilon() : std::numeric_limits<float>::epsilon();
  return call_or_hand_over(input, normalized_shape, weight, std::nullopt,
                           eps.value_or(Number{default_eps}), NormKind::kRmsNorm);
}

}  // namespace fastdl
