// Autograd of linear_cross_entropy, and its entry point from Python.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/library.h>

#include "cross_entropy/cross_entropy_torch.h"
#include "torch/hand_over.h"

namespace fastdl {
namespace {

using at::ScalarType;
using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using FourTensors = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using Wanted = std::array<bool, 3>;  // gradients: of input, linear_weight, linear_bias

Tensor call_linear(const Tensor& input, const Tensor& linear_weight, const Tensor& target,
                   const OptionalTensor& linear_bias, const OptionalTensor& weight,
                   int64_t reduction, int64_t ignore_index, double label_smoothing,
                   ScalarType dtype) {
  static const auto op = find_op<decltype(call_linear)>("fastdl::linear_cross_entropy");
  return op.call(input, linear_weight, target, linear_bias, weight, reduction, ignore_index,
                 label_smoothing, dtype);
}

FourTensors call_forward(const Tensor& input, const Tensor& linear_weight, const Tensor& target,
                         const OptionalTensor& linear_bias, const OptionalTensor& weight,
                         int64_t reduction, int64_t ignore_index, double label_smoothing,
                         ScalarType dtype, Wanted wanted) {
  static const auto op = find_op<decltype(call_forward)>("fastdl::linear_cross_entropy_forward");
  return op.call(input, linear_weight, target, linear_bias, weight, reduction, ignore_index,
                 label_smoothing, dtype, wanted);
}

std::tuple<Tensor, Tensor, Tensor> call_backward(const Tensor& grad_output, const Tensor& input,
                                                 const Tensor& linear_weight, const Tensor& target,
                                                 const OptionalTensor& linear_bias,
                                                 const OptionalTensor& weight, int64_t reduction,
                                                 int64_t ignore_index, double label_smoothing,
                                                 Wanted wanted) {
  static const auto op = find_op<decltype(call_backward)>("fastdl::linear_cross_entropy_backward");
  return op.call(grad_output, input, linear_weight, target, linear_bias, weight, reduction,
                 ignore_index, label_smoothing, wanted);
}

struct LinearFunction : torch::autograd::Function<LinearFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& linear_weight,
                        const Tensor& target, const OptionalTensor& linear_bias,
                        const OptionalTensor& weight, int64_t reduction, int64_t ignore_index,
                        double label_smoothing, ScalarType dtype) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const Tensor bias = linear_bias.value_or(Tensor());
    const Wanted wanted = {input.requires_grad(), linear_weight.requires_grad(),
                           bias.defined() && bias.requires_grad()};
    const bool early = reduction != kNoReduction && input.scalar_type() != at::kHalf;
    auto [loss, of_input, of_weight, of_bias] =
        call_forward(input, linear_weight, target, linear_bias, weight, reduction, ignore_index,
                     label_smoothing, dtype, early ? wanted : Wanted{});
    ctx->save_for_backward({input, linear_weight, target, bias, weight.value_or(Tensor())});
    if (early) ctx->saved_data["gradients"] = std::vector<Tensor>{of_input, of_weight, of_bias};
    ctx->saved_data["early"] = early;
    ctx->saved_data["wanted"] = std::vector<int64_t>{wanted[0], wanted[1], wanted[2]};
    ctx->saved_data["reduction"] = reduction;
    ctx->saved_data["ignore_index"] = ignore_index;
    ctx->saved_data["label_smoothing"] = label_smoothing;
    return loss;
  }

  static std::array<Tensor, 3> early_gradients(AutogradContext* ctx, const Tensor& grad_output,
                                               Wanted wanted) {
    c10::IValue& saved = ctx->saved_data["gradients"];
    if (saved.isNone()) ctx->get_saved_variables();  // raises torch's error
    const auto gradients = saved.toTensorVector();
    const bool keep = torch::autograd::get_current_graph_task_keep_graph();
    if (!keep) saved = c10::IValue();
    std::array<Tensor, 3> results;
    for (int i = 0; i < 3; ++i) {
      if (!wanted[i]) continue;
      results[i] = keep ? gradients[i] * grad_output : scale_gradient(gradients[i], grad_output);
    }
    return results;
  }

  static std::array<Tensor, 3> differentiable(const Tensor& grad_output, const variable_list& saved,
                                              int64_t reduction, int64_t ignore_index,
                                              double label_smoothing) {
    const Tensor &input = saved[0], &linear_weight = saved[1], &bias = saved[3];
    const Tensor logits = at::linear(input, linear_weight, bias);
    const Tensor grad = differentiable_gradient(grad_output, logits, saved[2], saved[4], reduction,
                                                ignore_index, label_smoothing, /*of_logits=*/true);
    return {grad.mm(linear_weight), grad.t().mm(input), grad.sum(0)};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list results(9);
    if (!grads[0].defined()) return results;
    const auto flags = ctx->saved_data["wanted"].toIntVector();
    const Wanted wanted = {flags[0] != 0, flags[1] != 0, flags[2] != 0};
    const char* reason =
        at::GradMode::is_enabled() ? "create_graph=True" : reason_to_hand_over(grads[0]);
    std::array<Tensor, 3> computed;
    if (reason == nullptr && ctx->saved_data["early"].toBool()) {
      const at::AutoDispatchBelowADInplaceOrView below;
      computed = early_gradients(ctx, grads[0], wanted);
    } else {
      const auto saved = ctx->get_saved_variables();
      const int64_t reduction = ctx->saved_data["reduction"].toInt(),
                    ignore_index = ctx->saved_data["ignore_index"].toInt();
      const double label_smoothing = ctx->saved_data["label_smoothing"].toDouble();
      if (reason != nullptr) {
        hand_over("linear_cross_entropy backward", reason);
        computed = differentiable(grads[0], saved, reduction, ignore_index, label_smoothing);
      } else {
        const at::AutoDispatchBelowADInplaceOrView below;
        std::tie(computed[0], computed[1], computed[2]) =
            call_backward(grads[0], saved[0], saved[1], saved[2], saved[3], saved[4], reduction,
                          ignore_index, label_smoothing, wanted);
      }
    }
    if (wanted[0]) results[0] = computed[0];
    if (wanted[1]) results[1] = computed[1];
    if (wanted[2]) results[3] = computed[2];
    return results;
  }
};

bool needs_gradient(const Tensor& input, const Tensor& linear_weight, const Tensor& bias) {
  return at::GradMode::is_enabled() && (input.requires_grad() || linear_weight.requires_grad() ||
                                        (bias.defined() && bias.requires_grad()));
}

Tensor linear_autograd(const Tensor& input, const Tensor& linear_weight, const Tensor& target,
                       const OptionalTensor& linear_bias, const OptionalTensor& weight,
                       int64_t reduction, int64_t ignore_index, double label_smoothing,
                       ScalarType dtype) {
  if (needs_gradient(input, linear_weight, linear_bias.value_or(Tensor()))) {
    return LinearFunction::apply(input, linear_weight, target, linear_bias, weight, reduction,
                                 ignore_index, label_smoothing, dtype);
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_linear(input, linear_weight, target, linear_bias, weight, reduction, ignore_index,
                     label_smoothing, dtype);
}

TORCH_LIBRARY_IMPL(fastdl, Autograd, library) {
  library.impl("linear_cross_entropy", linear_autograd);
  library.impl("linear_cross_entropy_forward", torch::autograd::autogradNotImplementedFallback());
  library.impl("linear_cross_entropy_backward", torch::autograd::autogradNotImplementedFallback());
}

Tensor tensor_or_undefined(const std::optional<PlainTensor>& tensor) {
  return tensor ? tensor->tensor : Tensor();
}

// What autocast makes of an argument of a product.
Tensor autocast_product(const Tensor& tensor, bool autocast) {
  if (!autocast || !tensor.defined()) return tensor;
  const auto device = tensor.is_cuda() ? at::kCUDA : at::kCPU;
  return at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), tensor, device);
}

const char* reason_of_product(const Tensor& x, const Tensor& linear_weight, const Tensor& bias,
                              bool autocast) {
  for (const Tensor* tensor : {&x, &linear_weight, &bias}) {
    if (!tensor->defined() && tensor == &bias) continue;
    if (const char* reason = reason_to_hand_over(*tensor)) return reason;
    if (tensor->device() != x.device()) return "arguments on several devices";
    const bool cast = autocast && tensor->scalar_type() != at::kDouble;
    if (tensor->scalar_type() != x.scalar_type() && !cast) return "arguments of several dtypes";
  }
  if (x.dim() != 2 || linear_weight.dim() != 2 || x.size(1) != linear_weight.size(1)) {
    return "an input or linear_weight that is no matrix, or does not fit";
  }
  if (x.size(1) == 0) return "no features";
  if (bias.defined() && (bias.dim() != 1 || bias.size(0) != linear_weight.size(0))) {
    return "a linear_bias that does not fit";
  }
  return nullptr;
}

}  // namespace

std::optional<Tensor> linear_cross_entropy(
    const PlainTensor& input, const PlainTensor& linear_weight, const PlainTensor& target,
    const std::optional<PlainTensor>& linear_bias, const std::optional<PlainTensor>& weight,
    const std::string& reduction, Integer ignore_index, Number label_smoothing) {
  Tensor x = input.tensor, matrix = linear_weight.tensor, bias = tensor_or_undefined(linear_bias);
  const Tensor y = target.tensor, w = tensor_or_undefined(weight);
  const bool autocast = reason_to_hand_over(x) == nullptr && autocasts_loss(x);
  const auto number = reduction_of(reduction);
  const char* reason = reason_of_product(x, matrix, bias, autocast);
  if (reason == nullptr) reason = reason_of_target(y);
  if (reason == nullptr && w.defined()) reason = reason_to_hand_over(w);
  if (reason == nullptr && !number) reason = "an unknown reduction";
  if (reason == nullptr) {
    x = autocast_product(x, autocast);
    matrix = autocast_product(matrix, autocast);
    bias = autocast_product(bias, autocast);
    reason = reason_of_loss({x.size(0), matrix.size(0)}, x, y, w, autocast, label_smoothing);
  }
  if (reason == nullptr && needs_gradient(x, matrix, bias)) {
    for (const Tensor& tensor : {x, matrix, bias, y, w}) {
      if (tensor.defined() && tensor.is_inference()) {
        reason = "an inference tensor that the backward would need";
      }
    }
  }
  if (reason != nullptr) {
    hand_over("linear_cross_entropy", reason);
    return std::nullopt;
  }
  return call_linear(x, matrix, y, bias, w, *number, ignore_index, label_smoothing,
                     autocast ? at::kFloat : x.scalar_type());
}

}  // namespace fastdl
