// Autograd of dropout_add_layer_norm, and the entry point from Python.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "layer_norm/dropout_add_layer_norm_torch.h"
#include "layer_norm/layer_norm_torch.h"
#include "torch/hand_over.h"
#include "torch/random_seed.h"

namespace fastdl {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

std::tuple<Tensor, Tensor> call_op(const Tensor& input, const Tensor& residual,
                                   c10::SymIntArrayRef normalized_shape,
                                   const OptionalTensor& weight, const OptionalTensor& bias,
                                   double p, int64_t seed, double eps) {
  static const auto op = find_op<decltype(call_op)>("fastdl::dropout_add_layer_norm");
  return op.call(input, residual, normalized_shape, weight, bias, p, seed, eps);
}

ThreeTensors call_forward(const Tensor& input, const Tensor& residual,
                          c10::SymIntArrayRef normalized_shape, const OptionalTensor& weight,
                          const OptionalTensor& bias, double p, int64_t seed, double eps) {
  static const auto op = find_op<decltype(call_forward)>("fastdl::dropout_add_layer_norm_forward");
  return op.call(input, residual, normalized_shape, weight, bias, p, seed, eps);
}

FourTensors call_backward(const Tensor& grad_output, const OptionalTensor& grad_sum,
                          const Tensor& sum, c10::SymIntArrayRef normalized_shape,
                          const OptionalTensor& weight, const Tensor& statistics, double p,
                          int64_t seed, std::array<bool, 4> wanted, at::ScalarType weight_dtype) {
  static const auto op =
      find_op<decltype(call_backward)>("fastdl::dropout_add_layer_norm_backward");
  return op.call(grad_output, grad_sum, sum, normalized_shape, weight, statistics, p, seed, wanted,
                 weight_dtype);
}

// dropout with the mask of the forward, itself differentiable.
Tensor dropped(const Tensor& grad, double p, int64_t seed) {
  static const auto op = find_op<Tensor(const Tensor&, double, int64_t)>("fastdl::dropout");
  return p > 0 ? op.call(grad.contiguous(), p, seed) : grad;
}

struct DropoutAddNormFunction : torch::autograd::Function<DropoutAddNormFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& input, const Tensor& residual,
                               c10::SymIntArrayRef normalized_shape, const OptionalTensor& weight,
                               const OptionalTensor& bias, double p, int64_t seed, double eps) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [output, sum, statistics] =
        call_forward(input, residual, normalized_shape, weight, bias, p, seed, eps);
    const Tensor w = weight.value_or(Tensor()), b = bias.value_or(Tensor());
    ctx->set_materialize_grads(false);
    ctx->save_for_backward({sum, w, statistics});
    ctx->saved_data["normalized_dims"] = static_cast<int64_t>(normalized_shape.size());
    ctx->saved_data["p"] = p;
    ctx->saved_data["seed"] = seed;
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["has_bias"] = b.defined();
    ctx->saved_data["weight_dtype"] = (w.defined() ? w : b.defined() ? b : input).scalar_type();
    return {output, sum};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list results(8);
    if (!grads[0].defined() && !grads[1].defined()) return results;
    const auto saved = ctx->get_saved_variables();
    const Tensor &sum = saved[0], &weight = saved[1], &statistics = saved[2];
    const int64_t normalized_dims = ctx->saved_data["normalized_dims"].toInt();
    const double p = ctx->saved_data["p"].toDouble();
    const int64_t seed = ctx->saved_data["seed"].toInt();
    const auto weight_dtype = ctx->saved_data["weight_dtype"].toScalarType();
    // Gradients are counted by the tensors that forward was given.
    const bool has_weight = weight.defined(), has_bias = ctx->saved_data["has_bias"].toBool();
    const std::array<bool, 4> wanted = {ctx->needs_input_grad(0), ctx->needs_input_grad(1),
                                        has_weight && ctx->needs_input_grad(2),
                                        has_bias && ctx->needs_input_grad(has_weight ? 3 : 2)};
    const char* reason = at::GradMode::is_enabled() ? "create_graph=True" : nullptr;
    for (const Tensor& grad : grads) {
      if (reason == nullptr && grad.defined()) reason = reason_to_hand_over(grad);
    }
    if (reason != nullptr || !grads[0].defined()) {
      if (reason != nullptr) hand_over("dropout_add_layer_norm backward", reason);
      // Rounded to 16 bits at the end alone
      const auto dtype = sum.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
      Tensor grad_residual = grads[1];
      if (grads[0].defined()) {
        const auto computed = differentiable_norm_backward(
            grads[0], sum.to(dtype), weight, normalized_dims, ctx->saved_data["eps"].toDouble(),
            {true, wanted[2], wanted[3]}, weight_dtype, /*centred=*/true);
        grad_residual = grads[1].defined() ? computed[0] + grads[1] : computed[0];
        results[3] = computed[1];
        results[4] = computed[2];
      }
      if (wanted[0]) results[0] = dropped(grad_residual, p, seed).to(sum.scalar_type());
      if (wanted[1]) results[1] = grad_residual.to(sum.scalar_type());
      return results;
    }
    const at::AutoDispatchBelowADInplaceOrView below;
    const auto shape = sum.sym_sizes().slice(sum.dim() - normalized_dims);
    auto [grad_input, grad_residual, grad_weight, grad_bias] = call_backward(
        grads[0], grads[1], sum, shape, weight, statistics, p, seed, wanted, weight_dtype);
    if (wanted[0]) results[0] = p > 0 ? grad_input : grad_residual;
    if (wanted[1]) results[1] = grad_residual;
    if (wanted[2]) results[3] = grad_weight;
    if (wanted[3]) results[4] = grad_bias;
    return results;
  }
};

bool needs_autograd(const std::vector<Tensor>& tensors) {
  return at::GradMode::is_enabled() &&
         std::any_of(tensors.begin(), tensors.end(),
                     [](const Tensor& one) { return one.defined() && one.requires_grad(); });
}

std::tuple<Tensor, Tensor> autograd(const Tensor& input, const Tensor& residual,
                                    c10::SymIntArrayRef normalized_shape,
                                    const OptionalTensor& weight, const OptionalTensor& bias,
                                    double p, int64_t seed, double eps) {
  if (needs_autograd({input, residual, weight.value_or(Tensor()), bias.value_or(Tensor())})) {
    const auto results = DropoutAddNormFunction::apply(input, residual, normalized_shape, weight,
                                                       bias, p, seed, eps);
    return {results[0], results[1]};
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_op(input, residual, normalized_shape, weight, bias, p, seed, eps);
}

TORCH_LIBRARY_IMPL(fastdl, Autograd, library) {
  library.impl("dropout_add_layer_norm", autograd);
  library.impl("dropout_add_layer_norm_forward", torch::autograd::autogradNotImplementedFallback());
  library.impl("dropout_add_layer_norm_backward",
               torch::autograd::autogradNotImplementedFallback());
}

}  // namespace

std::optional<std::tuple<Tensor, Tensor>> dropout_add_layer_norm(
    const PlainTensor& input, const PlainTensor& residual, const Integers& normalized_shape,
    const std::optional<PlainTensor>& weight, const std::optional<PlainTensor>& bias, Number p,
    bool training, Number eps) {
  const Tensor &x = input.tensor, &other = residual.tensor;
  const Tensor w = weight ? weight->tensor : Tensor(), b = bias ? bias->tensor : Tensor();
  const at::IntArrayRef shape(normalized_shape.values);
  const double probability = training ? p.value : 0.0;
  const char* reason = nullptr;
  for (const Tensor* tensor : {&x, &other, &w, &b}) {
    if (reason == nullptr && (tensor->defined() || tensor == &x)) {
      reason = reason_to_hand_over(*tensor);
    }
    if (reason == nullptr && tensor->defined() && needs_autograd({x, other, w, b}) &&
        tensor->is_inference()) {
      reason = "an inference tensor that the backward would need";
    }
  }
  if (reason == nullptr && !(p >= 0 && probability < 1)) reason = "p is not in [0, 1)";
  if (reason == nullptr && is_autocast_to_float(x)) reason = "autocast";
  if (reason == nullptr) reason = reason_of_dropout_add(x, other, shape, w, b);
  if (reason == nullptr && probability > 0) reason = reason_without_seed(x);
  if (reason != nullptr) {
    hand_over("dropout_add_layer_norm", reason);
    return std::nullopt;
  }
  const int64_t seed = probability > 0 ? draw_seed(x) : 0;
  return call_op(x, other, c10::fromIntArrayRefSlow(shape), w, b, probability, seed, eps);
}

}  // namespace fastdl
