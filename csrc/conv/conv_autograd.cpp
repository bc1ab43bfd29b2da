// Autograd, autocast and torch.func of convolution. Entry points: conv_call_torch.cpp.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "conv/conv_torch.h"
#include "torch/backward.h"
#include "torch/hand_over.h"

namespace fastdl {

using at::IntArrayRef;
using at::Tensor;

Tensor call_convolution(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                        const OptionalTensor& residual, IntArrayRef stride, IntArrayRef padding,
                        IntArrayRef dilation, int64_t groups, bool relu, bool keep_weight) {
  static const auto op = find_op<decltype(call_convolution)>("fastdl::convolution");
  return op.call(input, weight, bias, residual, stride, padding, dilation, groups, relu,
                 keep_weight);
}

// What autocast makes of an argument: convolutions are on its list of lower precision.
Tensor autocast_conv(const Tensor& tensor, c10::DeviceType device) {
  if (!tensor.defined()) return tensor;
  return at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), tensor, device);
}

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

std::tuple<Tensor, Tensor, Tensor> call_backward(const Tensor& grad_output, const Tensor& input,
                                                 const Tensor& weight, IntArrayRef stride,
                                                 IntArrayRef padding, IntArrayRef dilation,
                                                 int64_t groups, std::array<bool, 3> wanted) {
  static const auto op = find_op<decltype(call_backward)>("fastdl::convolution_backward");
  return op.call(grad_output, input, weight, stride, padding, dilation, groups, wanted);
}

// The arguments behind the tensors, in one list: every entry of saved_data costs a call most of a
// microsecond.
struct Numbers {
  std::vector<int64_t> values;  // stride, dilation, padding, groups, relu, has_bias, has_residual

  size_t dims() const { return (values.size() - 4) / 4; }
  IntArrayRef part(size_t from, size_t count) const {
    return IntArrayRef(values).slice(from, count);
  }
  IntArrayRef stride() const { return part(0, dims()); }
  IntArrayRef dilation() const { return part(dims(), dims()); }
  IntArrayRef padding() const { return part(2 * dims(), 2 * dims()); }
  int64_t groups() const { return values[4 * dims()]; }
  bool flag(size_t i) const { return values[4 * dims() + 1 + i] != 0; }
};

struct ConvolutionFunction : torch::autograd::Function<ConvolutionFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& weight,
                        const OptionalTensor& bias, const OptionalTensor& residual,
                        IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                        int64_t groups, bool relu) {
    const at::AutoDispatchBelowADInplaceOrView below;
    Tensor output = call_convolution(input, weight, bias, residual, stride, padding, dilation,
                                     groups, relu, /*keep_weight=*/!weight.requires_grad());
    ctx->save_for_backward({input, weight, relu ? output : Tensor()});
    std::vector<int64_t> numbers = stride.vec();
    numbers.insert(numbers.end(), dilation.begin(), dilation.end());
    numbers.insert(numbers.end(), padding.begin(), padding.end());
    for (const int64_t number :
         {groups, int64_t{relu}, int64_t{bias.has_value()}, int64_t{residual.has_value()}}) {
      numbers.push_back(number);
    }
    ctx->saved_data["numbers"] = std::move(numbers);
    return output;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list results(9);
    if (!grads[0].defined()) return results;
    const auto saved = ctx->get_saved_variables();
    const Tensor &input = saved[0], &weight = saved[1], &output = saved[2];
    const Numbers n{ctx->saved_data["numbers"].toIntVector()};
    // Gradients are counted by the tensors that forward was given.
    std::array<bool, 4> wanted = {true, true, n.flag(1), n.flag(2)};
    size_t count = 0;
    for (bool& want : wanted) want = want && ctx->needs_input_grad(count++);
    const bool convolves = wanted[0] || wanted[1] || wanted[2];
    const std::array<bool, 3> of_op = {wanted[0], wanted[1], wanted[2]};
    const char* reason = reason_of_backward(grads[0]);
    if (reason != nullptr) {
      hand_over("convolution backward", reason);
      const Tensor grad = output.defined() ? at::threshold_backward(grads[0], output, 0) : grads[0];
      if (convolves) {
        std::tie(results[0], results[1], results[2]) =
            differentiable(grad, input, weight, n, of_op);
      }
      if (wanted[3]) results[3] = grad;
      return results;
    }
    const at::AutoDispatchBelowADInplaceOrView below;
    const Tensor grad = output.defined() ? at::threshold_backward(grads[0], output, 0) : grads[0];
    if (convolves) {
      auto computed = call_backward(grad, input, weight, n.stride(), n.padding(), n.dilation(),
                                    n.groups(), of_op);
      if (wanted[0]) results[0] = std::get<0>(computed);
      if (wanted[1]) results[1] = std::get<1>(computed);
      if (wanted[2]) results[2] = std::get<2>(computed);
    }
    if (wanted[3]) results[3] = grad;
    return results;
  }

  // The same gradients by native ops, which torch can differentiate again.
  static std::tuple<Tensor, Tensor, Tensor> differentiable(const Tensor& grad, const Tensor& input,
                                                           const Tensor& weight, const Numbers& n,
                                                           std::array<bool, 3> wanted) {
    const ConvSettings s = conv_settings(n.stride(), n.padding(), n.dilation(), n.groups());
    if (input.dim() == 4) return native_conv_backward(grad, input, weight, s, wanted);
    auto [of_input, of_weight, of_bias] =
        native_conv_backward(grad.unsqueeze(2), input.unsqueeze(2), weight.unsqueeze(2), s, wanted);
    if (wanted[0]) of_input = of_input.squeeze(2);
    if (wanted[1]) of_weight = of_weight.squeeze(2);
    return {of_input, of_weight, of_bias};
  }
};

Tensor native_convolution(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                          const OptionalTensor& residual, IntArrayRef stride, IntArrayRef padding,
                          IntArrayRef dilation, int64_t groups, bool relu, bool) {
  const ConvSettings s = conv_settings(stride, padding, dilation, groups);
  if (stride.size() == 2) return native_conv(input, weight, bias, residual, s, relu);
  OptionalTensor image;
  if (residual.has_value() && residual->defined()) image = residual->unsqueeze(2);
  return native_conv(input.unsqueeze(2), weight.unsqueeze(2), bias, image, s, relu).squeeze(2);
}

bool requires_grad(const Tensor& tensor) { return tensor.defined() && tensor.requires_grad(); }
bool requires_grad(const OptionalTensor& tensor) { return tensor && requires_grad(*tensor); }

Tensor convolution_autograd(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                            const OptionalTensor& residual, IntArrayRef stride, IntArrayRef padding,
                            IntArrayRef dilation, int64_t groups, bool relu, bool keep_weight) {
  if (is_transformed()) {
    return native_convolution(input, weight, bias, residual, stride, padding, dilation, groups,
                              relu, keep_weight);
  }
  if (at::GradMode::is_enabled() && (requires_grad(input) || requires_grad(weight) ||
                                     requires_grad(bias) || requires_grad(residual))) {
    return ConvolutionFunction::apply(input, weight, bias, residual, stride, padding, dilation,
                                      groups, relu);
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_convolution(input, weight, bias, residual, stride, padding, dilation, groups, relu,
                          keep_weight);
}

OptionalTensor autocast_optional(const OptionalTensor& tensor, c10::DeviceType device) {
  return tensor ? OptionalTensor(autocast_conv(*tensor, device)) : tensor;
}

template <c10::DeviceType device>
Tensor convolution_autocast(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                            const OptionalTensor& residual, IntArrayRef stride, IntArrayRef padding,
                            IntArrayRef dilation, int64_t groups, bool relu, bool keep_weight) {
  const c10::impl::ExcludeDispatchKeyGuard below(
      at::autocast::get_autocast_dispatch_key_from_device_type(device));
  return call_convolution(autocast_conv(input, device), autocast_conv(weight, device),
                          autocast_optional(bias, device), autocast_optional(residual, device),
                          stride, padding, dilation, groups, relu, keep_weight);
}

TORCH_LIBRARY_IMPL(fastdl, Autograd, library) {
  library.impl("convolution", convolution_autograd);
  library.impl("convolution_backward", torch::autograd::autogradNotImplementedFallback());
}
TORCH_LIBRARY_IMPL(fastdl, AutocastCPU, library) {
  library.impl("convolution", convolution_autocast<at::kCPU>);
}
TORCH_LIBRARY_IMPL(fastdl, AutocastCUDA, library) {
  library.impl("convolution", convolution_autocast<at::kCUDA>);
}
TORCH_LIBRARY_IMPL(fastdl, FuncTorchBatched, library) {
  library.impl("convolution", native_convolution);
}

}  // namespace
}  // namespace fastdl
