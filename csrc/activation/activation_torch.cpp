// torch ops of the activation functions: checks, allocation, autograd. Formulas:
// activation_cpu.cpp.
#include "activation/activation_torch.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "torch/hand_over.h"
#include "torch/memory_order.h"
#include "torch/run_kernel.h"

namespace fastdl {
namespace {

using at::Tensor;
using enum ActivationKind;

constexpr const char* kNames[kActivationKinds] = {"relu", "sigmoid", "tanh",       "gelu",
                                                  "gelu", "silu",    "leaky_relu", "elu"};

// Fills what both directions share.
template <class Args>
void fill_sizes(Args& args, const Tensor& like, double parameter, int64_t kind) {
  TORCH_CHECK(kind >= 0 && kind < kActivationKinds, "fastdl::activation: kind must be 0 to 7, not ",
              kind);
  const auto dtype = kernel_dtype(like.scalar_type());
  TORCH_CHECK_NOT_IMPLEMENTED(dtype, "fastdl::activation: no kernel for ", like.scalar_type());
  args.count = like.numel();
  args.parameter = parameter;
  args.dtype = *dtype;
  args.kind = static_cast<ActivationKind>(kind);
}

void run_forward(const Tensor& x, const Tensor& y, double parameter, int64_t kind) {
  ActivationForwardArgs args;
  fill_sizes(args, x, parameter, kind);
  if (args.count == 0) return;
  args.input = x.const_data_ptr();
  args.output = y.mutable_data_ptr();
  run_kernel(
      x, [&]<CpuIsa isa> { activation_forward<isa>(args); },
      [&](const auto& target) { return activation_forward_cuda(args, target); });
}

Tensor activation_kernel(const Tensor& input, double parameter, int64_t kind) {
  const Tensor x = dense(input);
  const Tensor output = x.is_same(input) ? at::empty_like(x) : x;
  run_forward(x, output, parameter, kind);
  return output;
}

void activation_in_place_kernel(const Tensor& self, double parameter, int64_t kind) {
  TORCH_CHECK(self.is_non_overlapping_and_dense(), "fastdl::activation_: a tensor with gaps");
  run_forward(self, self, parameter, kind);
}

Tensor activation_backward_kernel(const Tensor& grad_output, const Tensor& saved, double parameter,
                                  int64_t kind) {
  TORCH_CHECK(
      grad_output.sizes() == saved.sizes() && grad_output.scalar_type() == saved.scalar_type() &&
          grad_output.device() == saved.device(),
      "fastdl::activation_backward: grad_output and saved must agree in shape, dtype and device");
  const Tensor values = dense(saved), grad = in_order_of(values, grad_output);
  const Tensor grad_input = at::empty_like(values);
  ActivationBackwardArgs args;
  fill_sizes(args, values, parameter, kind);
  if (args.count == 0) return grad_input;
  args.grad_output = grad.const_data_ptr();
  args.saved = values.const_data_ptr();
  args.grad_input = grad_input.mutable_data_ptr();
  run_kernel(
      values, [&]<CpuIsa isa> { activation_backward<isa>(args); },
      [&](const auto& target) { return activation_backward_cuda(args, target); });
  return grad_input;
}

Tensor activation_meta(const Tensor& input, double, int64_t) { return at::empty_like(input); }
void activation_in_place_meta(const Tensor&, double, int64_t) {}
Tensor activation_backward_meta(const Tensor&, const Tensor& saved, double, int64_t) {
  return at::empty_like(saved);
}

Tensor call_activation(const Tensor& input, double parameter, int64_t kind) {
  static const auto op = find_op<decltype(activation_kernel)>("fastdl::activation");
  return op.call(input, parameter, kind);
}

void call_activation_in_place(const Tensor& self, double parameter, int64_t kind) {
  static const auto op = find_op<decltype(activation_in_place_kernel)>("fastdl::activation_");
  op.call(self, parameter, kind);
}

Tensor call_activation_backward(const Tensor& grad_output, const Tensor& saved, double parameter,
                                int64_t kind) {
  static const auto op =
      find_op<decltype(activation_backward_kernel)>("fastdl::activation_backward");
  return op.call(grad_output, saved, parameter, kind);
}

// The same gradient from native ops, which torch can differentiate again.
Tensor differentiable_backward(const Tensor& grad, const Tensor& saved, double parameter,
                               ActivationKind kind) {
  switch (kind) {
    case kRelu:
      return at::threshold_backward(grad, saved, 0);
    case kSigmoid:
      return at::sigmoid_backward(grad, saved);
    case kTanh:
      return at::tanh_backward(grad, saved);
    case kGelu:
      return at::gelu_backward(grad, saved, "none");
    case kGeluTanh:
      return at::gelu_backward(grad, saved, "tanh");
    case kSilu: {  // torch has no derivative of its silu_backward
      const auto dtype = saved.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
      const Tensor x = saved.to(dtype), s = at::sigmoid(x);
      return (grad.to(dtype) * (s * (1 + x * (1 - s)))).to(saved.scalar_type());
    }
    case kLeakyRelu:
      return at::leaky_relu_backward(grad, saved, parameter, /*self_is_result=*/false);
    case kElu:
      return at::elu_backward(grad, parameter, 1, 1, /*is_result=*/false, saved);
  }
  return Tensor();
}

struct ActivationFunction : torch::autograd::Function<ActivationFunction> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& input,
                        double parameter, int64_t kind) {
    const at::AutoDispatchBelowADInplaceOrView below;
    Tensor output = call_activation(input, parameter, kind);
    ctx->save_for_backward({needs_output(static_cast<ActivationKind>(kind)) ? output : input});
    ctx->saved_data["parameter"] = parameter;
    ctx->saved_data["kind"] = kind;
    return output;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    Tensor grad_input;
    if (grads[0].defined()) {
      const Tensor saved = ctx->get_saved_variables()[0];
      const double parameter = ctx->saved_data["parameter"].toDouble();
      const int64_t kind = ctx->saved_data["kind"].toInt();
      const char* reason =
          at::GradMode::is_enabled() ? "create_graph=True" : reason_to_hand_over(grads[0]);
      if (reason != nullptr) {
        hand_over(std::string(kNames[kind]) + " backward", reason);
        grad_input =
            differentiable_backward(grads[0], saved, parameter, static_cast<ActivationKind>(kind));
      } else {
        const at::AutoDispatchBelowADInplaceOrView below;
        grad_input = call_activation_backward(grads[0], saved, parameter, kind);
      }
    }
    return {grad_input, Tensor(), Tensor()};
  }
};

// Whether the result can take the place of the input in backward.
bool can_overwrite(double parameter, int64_t kind) {
  const auto activation = static_cast<ActivationKind>(kind);
  return needs_output(activation) || (activation == kLeakyRelu && parameter >= 0);
}

struct InPlaceFunction : torch::autograd::Function<InPlaceFunction> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& self, double parameter,
                        int64_t kind) {
    const at::AutoDispatchBelowADInplaceOrView below;
    call_activation_in_place(self, parameter, kind);
    ctx->mark_dirty({self});
    ctx->save_for_backward({self});
    ctx->saved_data["parameter"] = parameter;
    ctx->saved_data["kind"] = kind;
    return self;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    return ActivationFunction::backward(ctx, grads);
  }
};

Tensor activation_autograd(const Tensor& input, double parameter, int64_t kind) {
  if (at::GradMode::is_enabled() && input.requires_grad()) {
    return ActivationFunction::apply(input, parameter, kind);
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_activation(input, parameter, kind);
}

void activation_in_place_autograd(const Tensor& self, double parameter, int64_t kind) {
  if (at::GradMode::is_enabled() && self.requires_grad()) {
    TORCH_CHECK(can_overwrite(parameter, kind) && !self.is_leaf() && !self.is_view(),
                "fastdl::activation_ has no gradient of this activation, of leaves and of views");
    InPlaceFunction::apply(self, parameter, kind);
    return;
  }
  const at::AutoDispatchBelowAutograd below;
  call_activation_in_place(self, parameter, kind);
}

void activation_in_place_versioned(const Tensor& self, double parameter, int64_t kind) {
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    call_activation_in_place(self, parameter, kind);
  }
  self.unsafeGetTensorImpl()->bump_version();
}

TORCH_LIBRARY_FRAGMENT(fastdl, library) {
  // kind: ActivationKind; parameter: the negative slope of leaky_relu or the alpha of elu
  library.def("activation(Tensor input, float parameter, int kind) -> Tensor");
  library.def("activation_(Tensor(a!) self, float parameter, int kind) -> ()");
  library.def(
      "activation_backward(Tensor grad_output, Tensor saved, float parameter, int kind) -> "
      "Tensor");
}
TORCH_LIBRARY_IMPL(fastdl, CPU, library) {
  library.impl("activation", activation_kernel);
  library.impl("activation_", activation_in_place_kernel);
  library.impl("activation_backward", activation_backward_kernel);
}
TORCH_LIBRARY_IMPL(fastdl, CUDA, library) {
  library.impl("activation", activation_kernel);
  library.impl("activation_", activation_in_place_kernel);
  library.impl("activation_backward", activation_backward_kernel);
}
TORCH_LIBRARY_IMPL(fastdl, Meta, library) {
  library.impl("activation", activation_meta);
  library.impl("activation_", activation_in_place_meta);
  library.impl("activation_backward", activation_backward_meta);
}
TORCH_LIBRARY_IMPL(fastdl, ADInplaceOrView, library) {
  library.impl("activation_", activation_in_place_versioned);
}
TORCH_LIBRARY_IMPL(fastdl, Autograd, library) {
  library.impl("activation", activation_autograd);
  library.impl("activation_", activation_in_place_autograd);
  library.impl("activation_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace

std::optional<Tensor> activation(const PlainTensor& input, double parameter, bool inplace,
                                 ActivationKind kind) {
  const Tensor& x = input.tensor;
  const char* reason = reason_to_hand_over(x);
  if (reason == nullptr && inplace) {
    if (at::GradMode::is_enabled() && x.requires_grad()) {
      if (!can_overwrite(parameter, static_cast<int64_t>(kind))) {
        reason = "in place, with a gradient that needs the input";
      } else if (x.is_leaf() || x.is_view()) {
        reason = "in place, with a gradient of a leaf or a view";
      }
    }
    if (x.is_inference()) reason = "in place, on an inference tensor";
    if (!x.is_non_overlapping_and_dense()) reason = "in place, on a tensor with gaps";
  }
  if (reason != nullptr) {
    hand_over(kNames[static_cast<int>(kind)], reason);
    return std::nullopt;
  }
  if (!inplace) return call_activation(x, parameter, static_cast<int64_t>(kind));
  call_activation_in_place(x, parameter, static_cast<int64_t>(kind));
  return x;
}

std::optional<Tensor> gelu(const PlainTensor& input, const std::string& approximate) {
  if (approximate == "none") return activation(input, 0, /*inplace=*/false, kGelu);
  if (approximate == "tanh") return activation(input, 0, /*inplace=*/false, kGeluTanh);
  hand_over("gelu", "no such approximation");
  return std::nullopt;
}

}  // namespace fastdl
