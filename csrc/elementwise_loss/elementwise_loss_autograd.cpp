// Autograd of the elementwise losses, and the entry points from Python.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "elementwise_loss/elementwise_loss_torch.h"
#include "torch/hand_over.h"

namespace fastdl {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kNames[] = {"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss",
                                  "binary_cross_entropy_with_logits"};

Tensor call_loss(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                 const OptionalTensor& pos_weight, int64_t reduction, int64_t kind,
                 double threshold) {
  static const auto op = find_op<decltype(call_loss)>("fastdl::elementwise_loss");
  return op.call(input, target, weight, pos_weight, reduction, kind, threshold);
}

std::tuple<Tensor, Tensor> call_backward(const Tensor& grad_output, const Tensor& input,
                                         const Tensor& target, const OptionalTensor& weight,
                                         const OptionalTensor& pos_weight, int64_t reduction,
                                         int64_t kind, double threshold,
                                         std::array<bool, 2> wanted) {
  static const auto op = find_op<decltype(call_backward)>("fastdl::elementwise_loss_backward");
  return op.call(grad_output, input, target, weight, pos_weight, reduction, kind, threshold,
                 wanted);
}

// The derivatives by input and target from native ops, which torch can differentiate again.
std::array<Tensor, 2> differentiable_slopes(const Tensor& x, const Tensor& t, const Tensor& weight,
                                            const Tensor& pos_weight, LossKind kind,
                                            double threshold) {
  const Tensor d = x - t;
  Tensor slope;
  switch (kind) {
    case LossKind::kMse:
      slope = d * 2;
      break;
    case LossKind::kL1:
      slope = d.sgn();
      break;
    case LossKind::kSmoothL1:
      slope = at::where(d.abs() < threshold, d / threshold, d.sgn());
      break;
    case LossKind::kHuber:
      slope = at::where(d.abs() < threshold, d, d.sgn() * threshold);
      break;
    case LossKind::kBinaryCrossEntropy: {
      Tensor target_slope;
      if (pos_weight.defined()) {
        const Tensor positive = pos_weight * t;
        slope = (positive + 1 - t) * x.sigmoid() - positive;
        target_slope = at::log_sigmoid(-x) - pos_weight * at::log_sigmoid(x);
      } else {
        slope = x.sigmoid() - t;
        target_slope = -x;
      }
      if (!weight.defined()) return {slope, target_slope};
      return {slope * weight, target_slope * weight};
    }
  }
  return {slope, -slope};
}

struct LossFunction : torch::autograd::Function<LossFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& target,
                        const OptionalTensor& weight, const OptionalTensor& pos_weight,
                        int64_t reduction, int64_t kind, double threshold) {
    const at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward(
        {input, target, weight.value_or(Tensor()), pos_weight.value_or(Tensor())});
    ctx->saved_data["reduction"] = reduction;
    ctx->saved_data["kind"] = kind;
    ctx->saved_data["threshold"] = threshold;
    return call_loss(input, target, weight, pos_weight, reduction, kind, threshold);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list results(7);
    if (!grads[0].defined()) return results;
    const auto saved = ctx->get_saved_variables();
    const Tensor &input = saved[0], &target = saved[1], &weight = saved[2], &pos_weight = saved[3];
    const int64_t reduction = ctx->saved_data["reduction"].toInt();
    const int64_t kind = ctx->saved_data["kind"].toInt();
    const double threshold = ctx->saved_data["threshold"].toDouble();
    const std::array<bool, 2> wanted = {ctx->needs_input_grad(0), ctx->needs_input_grad(1)};
    const char* reason =
        at::GradMode::is_enabled() ? "create_graph=True" : reason_to_hand_over(grads[0]);
    if (reason != nullptr) {
      hand_over(std::string(kNames[kind]) + " backward", reason);
      const auto dtype = input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
      const auto widened = [&](const Tensor& t) { return t.defined() ? t.to(dtype) : t; };
      const auto slopes =
          differentiable_slopes(widened(input), widened(target), widened(weight),
                                widened(pos_weight), static_cast<LossKind>(kind), threshold);
      Tensor grad = widened(grads[0]);
      const bool mean = static_cast<LossReduction>(reduction) == LossReduction::kMean;
      if (mean) grad = grad / input.sym_numel();
      for (int i = 0; i < 2; ++i) {
        if (wanted[i]) results[i] = (grad * slopes[i]).to(input.scalar_type());
      }
      return results;
    }
    const at::AutoDispatchBelowADInplaceOrView below;
    const auto optional = [](const Tensor& tensor) {
      return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
    };
    auto [grad_input, grad_target] =
        call_backward(grads[0], input, target, optional(weight), optional(pos_weight), reduction,
                      kind, threshold, wanted);
    if (wanted[0]) results[0] = grad_input;
    if (wanted[1]) results[1] = grad_target;
    return results;
  }
};

Tensor loss_autograd(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                     const OptionalTensor& pos_weight, int64_t reduction, int64_t kind,
                     double threshold) {
  if (at::GradMode::is_enabled() && (input.requires_grad() || target.requires_grad())) {
    return LossFunction::apply(input, target, weight, pos_weight, reduction, kind, threshold);
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_loss(input, target, weight, pos_weight, reduction, kind, threshold);
}

TORCH_LIBRARY_IMPL(fastdl, Autograd, library) {
  library.impl("elementwise_loss", loss_autograd);
  library.impl("elementwise_loss_backward", torch::autograd::autogradNotImplementedFallback());
}

std::optional<LossReduction> reduction_of(const std::string& name) {
  if (name == "mean") return LossReduction::kMean;
  if (name == "sum") return LossReduction::kSum;
  if (name == "none") return LossReduction::kNone;
  return std::nullopt;
}

// torch takes the losses' 16-bit tensors as float32 under autocast, on the CPU too.
Tensor autocast_loss(const Tensor& tensor) {
  const auto device = tensor.device().type();
  if (!at::autocast::is_autocast_enabled(device) || !tensor.is_floating_point()) return tensor;
  return at::autocast::cached_cast(at::kFloat, tensor, device);
}

// Without a reduction the output of torch lies in memory as both inputs do, together.
bool needs_layout_of_torch(const Tensor& x, const Tensor& t, bool weighted) {
  const bool contiguous = x.is_contiguous() && t.is_contiguous();
  const bool same = x.is_non_overlapping_and_dense() && x.strides() == t.strides();
  return !contiguous && (weighted || !same);
}

std::optional<Tensor> call_or_hand_over(const PlainTensor& input, const PlainTensor& target,
                                        const std::optional<PlainTensor>& weight,
                                        const std::optional<PlainTensor>& pos_weight,
                                        const std::string& reduction_name, LossKind kind,
                                        double threshold, const char* reason) {
  Tensor x = input.tensor, t = target.tensor;
  OptionalTensor w, p;
  if (weight) w = weight->tensor;
  if (pos_weight) p = pos_weight->tensor;
  if (reason == nullptr) reason = reason_to_hand_over(x);
  if (reason == nullptr) reason = reason_to_hand_over(t);
  for (OptionalTensor* extra : {&w, &p}) {
    if (!extra->has_value()) continue;
    if (reason == nullptr) reason = reason_to_hand_over(**extra);
    if (reason == nullptr && (*extra)->requires_grad()) reason = "a weight that requires grad";
    if (reason == nullptr && !at::is_expandable_to((*extra)->sizes(), x.sizes())) {
      reason = "a weight that does not broadcast to the input";
    }
  }
  const auto reduction = reduction_of(reduction_name);
  if (reason == nullptr && !reduction) reason = "an unknown reduction";
  if (reason == nullptr && x.sizes() != t.sizes()) reason = "input and target of different shapes";
  if (reason == nullptr) {
    x = autocast_loss(x);
    t = autocast_loss(t);
    for (OptionalTensor* extra : {&w, &p}) {
      if (extra->has_value()) *extra = autocast_loss(**extra);
    }
    for (const Tensor& other : {t, w.value_or(t), p.value_or(t)}) {
      if (other.scalar_type() != x.scalar_type()) reason = "tensors of different dtypes";
      if (other.device() != x.device()) reason = "tensors on different devices";
    }
  }
  if (reason == nullptr && reduction == LossReduction::kNone &&
      needs_layout_of_torch(x, t, w || p)) {
    reason = "input and target that lie differently in memory";
  }
  if (reason == nullptr && at::GradMode::is_enabled() && (x.requires_grad() || t.requires_grad()) &&
      (x.is_inference() || t.is_inference())) {
    reason = "an inference tensor that the backward would need";
  }
  if (reason != nullptr) {
    hand_over(kNames[static_cast<int>(kind)], reason);
    return std::nullopt;
  }
  return call_loss(x, t, w, p, static_cast<int64_t>(*reduction), static_cast<int64_t>(kind),
                   threshold);
}

const char* reason_of_options(std::optional<bool> size_average, std::optional<bool> reduce,
                              const std::optional<PlainTensor>& weight) {
  if (size_average || reduce) return "size_average or reduce";
  return weight ? "a weight" : nullptr;
}

// Far from where 1 / threshold or its square leaves the range of float32
const char* reason_of_threshold(double threshold) {
  return threshold >= 1e-12 && threshold <= 1e12 ? nullptr : "no kernel for this beta or delta";
}

}  // namespace

std::optional<Tensor> mse_loss(const PlainTensor& input, const PlainTensor& target,
                               std::optional<bool> size_average, std::optional<bool> reduce,
                               const std::string& reduction,
                               const std::optional<PlainTensor>& weight) {
  return call_or_hand_over(input, target, {}, {}, reduction, LossKind::kMse, 0,
                           reason_of_options(size_average, reduce, weight));
}

std::optional<Tensor> l1_loss(const PlainTensor& input, const PlainTensor& target,
                              std::optional<bool> size_average, std::optional<bool> reduce,
                              const std::string& reduction,
                              const std::optional<PlainTensor>& weight) {
  return call_or_hand_over(input, target, {}, {}, reduction, LossKind::kL1, 0,
                           reason_of_options(size_average, reduce, weight));
}

std::optional<Tensor> smooth_l1_loss(const PlainTensor& input, const PlainTensor& target,
                                     std::optional<bool> size_average, std::optional<bool> reduce,
                                     const std::string& reduction, Number beta) {
  const char* reason = reason_of_options(size_average, reduce, {});
  if (beta == 0) {
    return call_or_hand_over(input, target, {}, {}, reduction, LossKind::kL1, 0, reason);
  }
  if (reason == nullptr) reason = reason_of_threshold(beta);
  return call_or_hand_over(input, target, {}, {}, reduction, LossKind::kSmoothL1, beta, reason);
}

std::optional<Tensor> huber_loss(const PlainTensor& input, const PlainTensor& target,
                                 const std::string& reduction, Number delta,
                                 const std::optional<PlainTensor>& weight) {
  const char* reason = weight ? "a weight" : reason_of_threshold(delta);
  return call_or_hand_over(input, target, {}, {}, reduction, LossKind::kHuber, delta, reason);
}

std::optional<Tensor> binary_cross_entropy_with_logits(
    const PlainTensor& input, const PlainTensor& target, const std::optional<PlainTensor>& weight,
    std::optional<bool> size_average, std::optional<bool> reduce, const std::string& reduction,
    const std::optional<PlainTensor>& pos_weight) {
  return call_or_hand_over(input, target, weight, pos_weight, reduction,
                           LossKind::kBinaryCrossEntropy, 0,
                           reason_of_options(size_average, reduce, {}));
}

}  // namespace fastdl
