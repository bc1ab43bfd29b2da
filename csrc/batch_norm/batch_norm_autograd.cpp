// Autograd of batch_norm and batch_norm_relu, and the entry points from Python.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "batch_norm/batch_norm_torch.h"
#include "torch/channel_norm.h"
#include "torch/hand_over.h"

namespace fastdl {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Tensor call_batch_norm(const Tensor& input, const OptionalTensor& residual,
                       const OptionalTensor& weight, const OptionalTensor& bias,
                       const OptionalTensor& running_mean, const OptionalTensor& running_var,
                       bool training, double momentum, double eps, bool relu) {
  static const auto op = find_op<decltype(call_batch_norm)>("fastdl::batch_norm");
  return op.call(input, residual, weight, bias, running_mean, running_var, training, momentum, eps,
                 relu);
}

std::tuple<Tensor, Tensor> call_forward(const Tensor& input, const OptionalTensor& residual,
                                        const OptionalTensor& weight, const OptionalTensor& bias,
                                        const OptionalTensor& running_mean,
                                        const OptionalTensor& running_var, bool training,
                                        double momentum, double eps, bool relu) {
  static const auto op = find_op<decltype(call_forward)>("fastdl::batch_norm_forward");
  return op.call(input, residual, weight, bias, running_mean, running_var, training, momentum, eps,
                 relu);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> call_backward(
    const Tensor& grad_output, const Tensor& input, const OptionalTensor& output,
    const OptionalTensor& weight, const OptionalTensor& bias, const Tensor& statistics,
    std::array<bool, 4> wanted, at::ScalarType weight_dtype, bool training, bool relu) {
  static const auto op = find_op<decltype(call_backward)>("fastdl::batch_norm_backward");
  return op.call(grad_output, input, output, weight, bias, statistics, wanted, weight_dtype,
                 training, relu);
}

// The same gradients from native ops, which torch can differentiate again.
variable_list differentiable_backward(const Tensor& grad_output, const Tensor& input,
                                      const Tensor& output, const Tensor& weight,
                                      const Tensor& bias, const Tensor& statistics, double eps,
                                      std::array<bool, 4> wanted, at::ScalarType weight_dtype,
                                      bool training, bool relu) {
  std::vector<int64_t> dims = {0}, shape(input.dim(), 1);
  for (int64_t dim = 2; dim < input.dim(); ++dim) dims.push_back(dim);
  shape[1] = input.size(1);
  const auto dtype = statistics.scalar_type();
  const auto mean = [&](const Tensor& value) { return value.mean(dims, /*keepdim=*/true); };
  const auto of_channels = [&](const Tensor& value) { return value.to(dtype).view(shape); };
  const Tensor x = input.to(dtype);
  const Tensor centred = x - (training ? mean(x) : of_channels(statistics[0]));
  const Tensor rstd =
      training ? (mean(centred.square()) + eps).rsqrt() : of_channels(statistics[1]);
  const Tensor normalised = centred * rstd;
  Tensor grad = grad_output.to(dtype);
  if (relu) {
    Tensor activated = output;
    if (!output.defined()) {
      activated = normalised.detach();
      if (weight.defined()) activated = activated * of_channels(weight.detach());
      if (bias.defined()) activated = activated + of_channels(bias.detach());
    }
    grad = grad.masked_fill(activated <= 0, 0);  // not a product: 0 times infinity is NaN
  }
  variable_list grads(4);
  if (wanted[0]) {
    Tensor g = weight.defined() ? grad * of_channels(weight) : grad;
    if (training) g = g - mean(g) - normalised * mean(g * normalised);
    grads[0] = (g * rstd).to(input.scalar_type());
  }
  if (wanted[1]) grads[1] = grad.to(input.scalar_type());
  if (wanted[2]) grads[2] = (grad * normalised).sum(dims).to(weight_dtype);
  if (wanted[3]) grads[3] = grad.sum(dims).to(weight_dtype);
  return grads;
}

struct BatchNormFunction : torch::autograd::Function<BatchNormFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const OptionalTensor& residual,
                        const OptionalTensor& weight, const OptionalTensor& bias,
                        const OptionalTensor& running_mean, const OptionalTensor& running_var,
                        bool training, double momentum, double eps, bool relu) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [output, statistics] = call_forward(input, residual, weight, bias, running_mean,
                                             running_var, training, momentum, eps, relu);
    const Tensor w = weight.value_or(Tensor()), b = bias.value_or(Tensor());
    const bool has_residual = residual.has_value() && residual->defined();
    // What tells the state of the ReLU is the output, or without a residual x again.
    ctx->save_for_backward({input, relu && has_residual ? output : Tensor(), w,
                            relu && !has_residual ? b : Tensor(), statistics});
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["training"] = training;
    ctx->saved_data["relu"] = relu;
    ctx->saved_data["has_residual"] = has_residual;
    ctx->saved_data["has_bias"] = b.defined();
    ctx->saved_data["weight_dtype"] = (w.defined() ? w : b.defined() ? b : input).scalar_type();
    return output;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list results(10);
    if (!grads[0].defined()) return results;
    const auto saved = ctx->get_saved_variables();
    const Tensor &input = saved[0], &output = saved[1], &weight = saved[2], &bias = saved[3],
                 &statistics = saved[4];
    const bool training = ctx->saved_data["training"].toBool();
    const bool relu = ctx->saved_data["relu"].toBool();
    const auto weight_dtype = ctx->saved_data["weight_dtype"].toScalarType();
    // Gradients are counted by the tensors that forward was given.
    std::array<bool, 4> wanted = {true, ctx->saved_data["has_residual"].toBool(), weight.defined(),
                                  ctx->saved_data["has_bias"].toBool()};
    size_t count = 0;
    for (bool& want : wanted) want = want && ctx->needs_input_grad(count++);
    const char* reason =
        at::GradMode::is_enabled() ? "create_graph=True" : reason_to_hand_over(grads[0]);
    variable_list computed(4);
    if (reason != nullptr) {
      hand_over(relu ? "batch_norm_relu backward" : "batch_norm backward", reason);
      computed = differentiable_backward(grads[0], input, output, weight, bias, statistics,
                                         ctx->saved_data["eps"].toDouble(), wanted, weight_dtype,
                                         training, relu);
    } else {
      const at::AutoDispatchBelowADInplaceOrView below;
      std::tie(computed[0], computed[1], computed[2], computed[3]) = call_backward(
          grads[0], input, output, weight, bias, statistics, wanted, weight_dtype, training, relu);
    }
    for (size_t i = 0; i < 4; ++i) {
      if (wanted[i]) results[i] = computed[i];
    }
    return results;
  }
};

Tensor batch_norm_autograd(const Tensor& input, const OptionalTensor& residual,
                           const OptionalTensor& weight, const OptionalTensor& bias,
                           const OptionalTensor& running_mean, const OptionalTensor& running_var,
                           bool training, double momentum, double eps, bool relu) {
  if (any_requires_grad(input, residual, weight, bias)) {
    return BatchNormFunction::apply(input, residual, weight, bias, running_mean, running_var,
                                    training, momentum, eps, relu);
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_batch_norm(input, residual, weight, bias, running_mean, running_var, training,
                         momentum, eps, relu);
}

TORCH_LIBRARY_IMPL(fastdl, Autograd, library) {
  library.impl("batch_norm", batch_norm_autograd);
  library.impl("batch_norm_forward", torch::autograd::autogradNotImplementedFallback());
  library.impl("batch_norm_backward", torch::autograd::autogradNotImplementedFallback());
}

std::optional<Tensor> call_or_hand_over(const BatchNormTensors& tensors, bool training,
                                        double momentum, double eps, bool relu) {
  const auto& [x, residual, weight, bias, running_mean, running_var] = tensors;
  const char* reason = reason_to_hand_over(x);
  for (const Tensor* other : {&residual, &weight, &bias, &running_mean, &running_var}) {
    if (reason == nullptr && other->defined()) reason = reason_to_hand_over(*other);
  }
  if (reason == nullptr) reason = reason_of_arguments(tensors, training);
  if (reason == nullptr && (training ? eps <= 0 : eps < 0)) reason = "an eps that torch refuses";
  if (reason == nullptr && any_requires_grad(x, residual, weight, bias) &&
      (x.is_inference() || (weight.defined() && weight.is_inference()))) {
    reason = "an inference tensor that the backward would need";
  }
  if (reason != nullptr) {
    hand_over(relu ? "batch_norm_relu" : "batch_norm", reason);
    return std::nullopt;
  }
  return call_batch_norm(x, residual, weight, bias, running_mean, running_var, training, momentum,
                         eps, relu);
}

Tensor tensor_or_undefined(const std::optional<PlainTensor>& tensor) {
  return tensor ? tensor->tensor : Tensor();
}

}  // namespace

std::optional<Tensor> batch_norm(const PlainTensor& input,
                                 const std::optional<PlainTensor>& running_mean,
                                 const std::optional<PlainTensor>& running_var,
                                 const std::optional<PlainTensor>& weight,
                                 const std::optional<PlainTensor>& bias, bool training,
                                 Number momentum, Number eps) {
  return call_or_hand_over(
      {input.tensor, Tensor(), tensor_or_undefined(weight), tensor_or_undefined(bias),
       tensor_or_undefined(running_mean), tensor_or_undefined(running_var)},
      training, momentum, eps, /*relu=*/false);
}

std::optional<Tensor> batch_norm_relu(const PlainTensor& input,
                                      const std::optional<PlainTensor>& running_mean,
                                      const std::optional<PlainTensor>& running_var,
                                      const std::optional<PlainTensor>& weight,
                                      const std::optional<PlainTensor>& bias, bool training,
                                      Number momentum, Number eps,
                                      const std::optional<PlainTensor>& residual) {
  return call_or_hand_over({input.tensor, tensor_or_undefined(residual),
                            tensor_or_undefined(weight), tensor_or_undefined(bias),
                            tensor_or_undefined(running_mean), tensor_or_undefined(running_var)},
                           training, momentum, eps, /*relu=*/true);
}

}  // namespace fastdl
