// Convolution by native torch, with what its own op lacks: padding that differs behind an image, a
// residual and ReLU.
#include <ATen/ATen.h>

#include "conv/conv_torch.h"

namespace fastdl {
namespace {

using at::Tensor;

// Zeros behind the image, so that padding is the same on both sides.
Tensor padded_behind(const Tensor& input, const ConvSettings& s) {
  const int64_t h = s.behind[0] - s.padding[0], w = s.behind[1] - s.padding[1];
  return h == 0 && w == 0 ? input : at::constant_pad_nd(input, {0, w, 0, h});
}

}  // namespace

Tensor native_conv(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                   const OptionalTensor& residual, const ConvSettings& s, bool relu) {
  Tensor output =
      at::conv2d(padded_behind(input, s), weight, bias, s.stride, s.padding, s.dilation, s.groups);
  if (residual.has_value() && residual->defined()) output = output + *residual;
  return relu ? output.relu() : output;
}

std::tuple<Tensor, Tensor, Tensor> native_conv_backward(const Tensor& grad_output,
                                                        const Tensor& input, const Tensor& weight,
                                                        const ConvSettings& s,
                                                        std::array<bool, 3> wanted) {
  const std::vector<c10::SymInt> bias_sizes = {weight.sym_size(0)};
  const Tensor padded = padded_behind(input, s);
  const auto symbolic = [](const auto& values) {
    return std::vector<c10::SymInt>(values.begin(), values.end());
  };
  auto [grad_input, grad_weight, grad_bias] = at::convolution_backward_symint(
      grad_output, padded, weight, c10::SymIntArrayRef(bias_sizes), symbolic(s.stride),
      symbolic(s.padding), symbolic(s.dilation), /*transposed=*/false, symbolic(std::array{0, 0}),
      s.groups, wanted);
  if (wanted[0] && !padded.is_same(input)) {
    grad_input = grad_input.slice_symint(2, 0, input.sym_size(2))
                     .slice_symint(3, 0, input.sym_size(3))
                     .contiguous(input.suggest_memory_format());
  }
  return {grad_input, grad_weight, grad_bias};
}

}  // namespace fastdl
