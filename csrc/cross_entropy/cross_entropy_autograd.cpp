// Autograd of cross_entropy and nll_loss, and the entry points from Python.
//
// Where losses are summed, the forward makes the gradient too, while each row is in cache, and the
// backward only multiplies it by grad_output: in place if the graph ends here, not at all for 1.
// Not so in float16, whose numbers would vanish before a GradScaler's grad_output makes them large.
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

Tensor call_cross_entropy(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                          int64_t reduction, int64_t ignore_index, double label_smoothing,
                          ScalarType dtype) {
  static const auto op = find_op<decltype(call_cross_entropy)>("fastdl::cross_entropy");
  return op.call(input, target, weight, reduction, ignore_index, label_smoothing, dtype);
}

std::tuple<Tensor, Tensor> call_gradient(const Tensor& input, const Tensor& target,
                                         const OptionalTensor& weight, int64_t reduction,
                                         int64_t ignore_index, double label_smoothing,
                                         ScalarType dtype) {
  static const auto op = find_op<decltype(call_gradient)>("fastdl::cross_entropy_gradient");
  return op.call(input, target, weight, reduction, ignore_index, label_smoothing, dtype);
}

std::tuple<Tensor, Tensor, Tensor> call_forward(const Tensor& input, const Tensor& target,
                                                const OptionalTensor& weight, int64_t reduction,
                                                int64_t ignore_index, double label_smoothing,
                                                ScalarType dtype) {
  static const auto op = find_op<decltype(call_forward)>("fastdl::cross_entropy_forward");
  return op.call(input, target, weight, reduction, ignore_index, label_smoothing, dtype);
}

Tensor call_backward(const Tensor& grad_output, const Tensor& input, const Tensor& target,
                     const OptionalTensor& weight, const Tensor& statistics, const Tensor& divisor,
                     int64_t ignore_index, double label_smoothing) {
  static const auto op = find_op<decltype(call_backward)>("fastdl::cross_entropy_backward");
  return op.call(grad_output, input, target, weight, statistics, divisor, ignore_index,
                 label_smoothing);
}

Tensor call_nll_loss(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                     int64_t reduction, int64_t ignore_index, ScalarType dtype) {
  static const auto op = find_op<decltype(call_nll_loss)>("fastdl::nll_loss");
  return op.call(input, target, weight, reduction, ignore_index, dtype);
}

std::tuple<Tensor, Tensor> call_nll_forward(const Tensor& input, const Tensor& target,
                                            const OptionalTensor& weight, int64_t reduction,
                                            int64_t ignore_index, ScalarType dtype) {
  static const auto op = find_op<decltype(call_nll_forward)>("fastdl::nll_loss_forward");
  return op.call(input, target, weight, reduction, ignore_index, dtype);
}

Tensor call_nll_backward(const Tensor& grad_output, const Tensor& input, const Tensor& target,
                         const OptionalTensor& weight, const Tensor& divisor,
                         int64_t ignore_index) {
  static const auto op = find_op<decltype(call_nll_backward)>("fastdl::nll_loss_backward");
  return op.call(grad_output, input, target, weight, divisor, ignore_index);
}

const char* reason_of_backward(const Tensor& grad) {
  return at::GradMode::is_enabled() ? "create_graph=True" : reason_to_hand_over(grad);
}

struct CrossEntropyFunction : torch::autograd::Function<CrossEntropyFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& target,
                        const OptionalTensor& weight, int64_t reduction, int64_t ignore_index,
                        double label_smoothing, ScalarType dtype) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const bool early = reduction != kNoReduction && input.scalar_type() != at::kHalf;
    Tensor loss, statistics, divisor, gradient;
    if (early) {
      std::tie(loss, gradient) =
          call_gradient(input, target, weight, reduction, ignore_index, label_smoothing, dtype);
      ctx->saved_data["gradient"] = gradient;
    } else {
      std::tie(loss, statistics, divisor) =
          call_forward(input, target, weight, reduction, ignore_index, label_smoothing, dtype);
    }
    ctx->save_for_backward({input, target, weight.value_or(Tensor()), statistics, divisor});
    ctx->saved_data["early"] = early;
    ctx->saved_data["reduction"] = reduction;
    ctx->saved_data["ignore_index"] = ignore_index;
    ctx->saved_data["label_smoothing"] = label_smoothing;
    return loss;
  }

  // The gradient from the forward. It leaves the graph with the last backward, which alone may
  // change it; logits changed in place since then do not matter.
  static Tensor early_gradient(AutogradContext* ctx, const Tensor& grad_output) {
    c10::IValue& saved = ctx->saved_data["gradient"];
    if (saved.isNone()) ctx->get_saved_variables();  // raises torch's error
    const Tensor gradient = saved.toTensor();
    const bool keep = torch::autograd::get_current_graph_task_keep_graph();
    if (!keep) saved = c10::IValue();
    if (keep) return gradient * grad_output;
    return scale_gradient(gradient, grad_output);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list results(7);
    if (!grads[0].defined()) return results;
    const char* reason = reason_of_backward(grads[0]);
    if (reason == nullptr && ctx->saved_data["early"].toBool()) {
      const at::AutoDispatchBelowADInplaceOrView below;
      results[0] = early_gradient(ctx, grads[0]);
      return results;
    }
    const auto saved = ctx->get_saved_variables();
    const int64_t reduction = ctx->saved_data["reduction"].toInt(),
                  ignore_index = ctx->saved_data["ignore_index"].toInt();
    const double label_smoothing = ctx->saved_data["label_smoothing"].toDouble();
    if (reason != nullptr) {
      hand_over("cross_entropy backward", reason);
      results[0] = differentiable_gradient(grads[0], saved[0], saved[1], saved[2], reduction,
                                           ignore_index, label_smoothing, /*of_logits=*/true);
    } else {
      const at::AutoDispatchBelowADInplaceOrView below;
      results[0] = call_backward(grads[0], saved[0], saved[1], saved[2], saved[3], saved[4],
                                 ignore_index, label_smoothing);
    }
    return results;
  }
};

Tensor cross_entropy_autograd(const Tensor& input, const Tensor& target,
                              const OptionalTensor& weight, int64_t reduction, int64_t ignore_index,
                              double label_smoothing, ScalarType dtype) {
  if (at::GradMode::is_enabled() && input.requires_grad()) {
    return CrossEntropyFunction::apply(input, target, weight, reduction, ignore_index,
                                       label_smoothing, dtype);
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_cross_entropy(input, target, weight, reduction, ignore_index, label_smoothing, dtype);
}

struct NllLossFunction : torch::autograd::Function<NllLossFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& target,
                        const OptionalTensor& weight, int64_t reduction, int64_t ignore_index,
                        ScalarType dtype) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [loss, divisor] = call_nll_forward(input, target, weight, reduction, ignore_index, dtype);
    ctx->save_for_backward({input, target, weight.value_or(Tensor()), divisor});
    ctx->saved_data["reduction"] = reduction;
    ctx->saved_data["ignore_index"] = ignore_index;
    return loss;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list results(6);
    if (!grads[0].defined()) return results;
    const auto saved = ctx->get_saved_variables();
    const int64_t ignore_index = ctx->saved_data["ignore_index"].toInt();
    if (const char* reason = reason_of_backward(grads[0])) {
      hand_over("nll_loss backward", reason);
      results[0] = differentiable_gradient(grads[0], saved[0], saved[1], saved[2],
                                           ctx->saved_data["reduction"].toInt(), ignore_index,
                                           /*label_smoothing=*/0, /*of_logits=*/false);
    } else {
      const at::AutoDispatchBelowADInplaceOrView below;
      results[0] =
          call_nll_backward(grads[0], saved[0], saved[1], saved[2], saved[3], ignore_index);
    }
    return results;
  }
};

Tensor nll_loss_autograd(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                         int64_t reduction, int64_t ignore_index, ScalarType dtype) {
  if (at::GradMode::is_enabled() && input.requires_grad()) {
    return NllLossFunction::apply(input, target, weight, reduction, ignore_index, dtype);
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_nll_loss(input, target, weight, reduction, ignore_index, dtype);
}

TORCH_LIBRARY_IMPL(fastdl, Autograd, library) {
  library.impl("cross_entropy", cross_entropy_autograd);
  library.impl("nll_loss", nll_loss_autograd);
  for (const char* name : {"cross_entropy_gradient", "cross_entropy_forward",
                           "cross_entropy_backward", "nll_loss_forward", "nll_loss_backward"}) {
    library.impl(name, torch::autograd::autogradNotImplementedFallback());
  }
}

// Why native torch must compute, or nullptr; then `reduction_number` is that of the name.
const char* reason_of_call(const Tensor& x, const Tensor& target, const Tensor& weight,
                           const std::string& reduction, int64_t ignore_index,
                           double label_smoothing, int64_t& reduction_number) {
  const char* reason = reason_to_hand_over(x);
  if (reason == nullptr && weight.defined()) reason = reason_to_hand_over(weight);
  if (reason != nullptr) return reason;
  if (const char* why = reason_of_target(target)) return why;
  const auto number = reduction_of(reduction);
  if (!number) return "an unknown reduction";
  reduction_number = *number;
  if (has_probabilities(target) && ignore_index >= 0) return "ignore_index with probabilities";
  reason = reason_of_loss(x.sizes(), x, target, weight, autocasts_loss(x), label_smoothing);
  if (reason != nullptr) return reason;
  const bool saves = at::GradMode::is_enabled() && x.requires_grad();
  const bool inference =
      x.is_inference() || target.is_inference() || (weight.defined() && weight.is_inference());
  return saves && inference ? "an inference tensor that the backward would need" : nullptr;
}

Tensor tensor_or_undefined(const std::optional<PlainTensor>& tensor) {
  return tensor ? tensor->tensor : Tensor();
}

}  // namespace

std::optional<Tensor> cross_entropy(const PlainTensor& input, const PlainTensor& target,
                                    const std::optional<PlainTensor>& weight,
                                    const std::string& reduction, Integer ignore_index,
                                    Number label_smoothing) {
  Tensor x = input.tensor, y = target.tensor;
  const Tensor w = tensor_or_undefined(weight);
  const bool autocast = reason_to_hand_over(x) == nullptr && autocasts_loss(x);
  if (autocast && y.defined() && y.is_floating_point() && y.scalar_type() != x.scalar_type() &&
      y.scalar_type() != at::kDouble) {
    x = x.to(at::kFloat);
    y = y.to(at::kFloat);
  }
  int64_t number = 0;
  if (const char* reason =
          reason_of_call(x, y, w, reduction, ignore_index, label_smoothing, number)) {
    hand_over("cross_entropy", reason);
    return std::nullopt;
  }
  return call_cross_entropy(x, y, w, number, ignore_index, label_smoothing,
                            autocast ? at::kFloat : x.scalar_type());
}

std::optional<Tensor> nll_loss(const PlainTensor& input, const PlainTensor& target,
                               const std::optional<PlainTensor>& weight,
                               const std::string& reduction, Integer ignore_index) {
  const Tensor &x = input.tensor, &y = target.tensor;
  const Tensor w = tensor_or_undefined(weight);
  int64_t number = 0;
  const char* reason = reason_of_call(x, y, w, reduction, ignore_index, 0, number);
  if (reason == nullptr && has_probabilities(y)) reason = "a target of another dtype";
  if (reason != nullptr) {
    hand_over("nll_loss", reason);
    return std::nullopt;
  }
  return call_nll_loss(x, y, w, number, ignore_index,
                       autocasts_loss(x) ? at::kFloat : x.scalar_type());
}

}  // namespace fastdl
