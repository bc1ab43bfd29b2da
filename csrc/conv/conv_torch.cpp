// torch ops of convolution: arguments, fake tensors, registration. Kernels: conv_kernels_torch.cpp.
#include "conv/conv_torch.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "conv/conv_kernels_torch.h"

namespace fastdl {

namespace {

std::optional<ConvAxis> axis_of(int64_t input, int64_t kernel, const ConvSettings& s, size_t d) {
  if (input <= 0 || kernel <= 0 || s.stride[d] <= 0 || s.dilation[d] <= 0 || s.padding[d] < 0 ||
      s.behind[d] < s.padding[d]) {
    return std::nullopt;
  }
  const int64_t reach = input + s.padding[d] + s.behind[d] - s.dilation[d] * (kernel - 1) - 1;
  if (reach < 0) return std::nullopt;
  return ConvAxis{input, reach / s.stride[d] + 1, kernel, s.stride[d], s.padding[d], s.dilation[d]};
}

}  // namespace

std::optional<ConvShape> conv_shape(at::IntArrayRef input, at::IntArrayRef weight,
                                    const ConvSettings& s, bool channels_last) {
  if (input.size() != 4 || weight.size() != 4 || s.groups <= 0) return std::nullopt;
  const int64_t n = input[0], channels = input[1], out_channels = weight[0];
  if (n <= 0 || channels <= 0 || out_channels <= 0) return std::nullopt;
  if (weight[1] * s.groups != channels || out_channels % s.groups != 0) return std::nullopt;
  const auto h = axis_of(input[2], weight[2], s, 0), w = axis_of(input[3], weight[3], s, 1);
  if (!h || !w) return std::nullopt;
  return ConvShape{n, channels, out_channels, s.groups, *h, *w, channels_last};
}

bool conv_is_channels_last(const at::Tensor& input, const at::Tensor& weight) {
  return input.suggest_memory_format() == at::MemoryFormat::ChannelsLast ||
         weight.suggest_memory_format() == at::MemoryFormat::ChannelsLast;
}

ConvSettings conv_settings(at::IntArrayRef stride, at::IntArrayRef padding,
                           at::IntArrayRef dilation, int64_t groups) {
  const size_t dims = stride.size();
  TORCH_CHECK(
      (dims == 1 || dims == 2) && padding.size() == 2 * dims && dilation.size() == dims,
      "fastdl::convolution: stride and dilation need 1 or 2 numbers, padding twice as many");
  ConvSettings s;
  s.groups = groups;
  for (size_t d = 0; d < dims; ++d) {
    const size_t to = 2 - dims + d;
    s.stride[to] = stride[d];
    s.padding[to] = padding[2 * d];
    s.behind[to] = padding[2 * d + 1];
    s.dilation[to] = dilation[d];
    TORCH_CHECK(s.behind[to] >= s.padding[to],
                "fastdl::convolution: less padding behind than in front");
  }
  return s;
}

namespace {

using at::IntArrayRef;
using at::Tensor;
using c10::SymInt;
using ThreeTensors = std::tuple<Tensor, Tensor, Tensor>;

Tensor tensor_or_undefined(const OptionalTensor& tensor) { return tensor.value_or(Tensor()); }

// A sequence as an image of one row, and back.
Tensor with_height(const Tensor& tensor) {
  return tensor.defined() && tensor.dim() == 3 ? tensor.unsqueeze(2) : tensor;
}
Tensor without_height(const Tensor& tensor, bool sequence) {
  return sequence && tensor.dim() == 4 ? tensor.squeeze(2) : tensor;
}

// torch takes sequences in no other order.
Tensor input_image(const Tensor& input) {
  return input.dim() == 3 ? input.contiguous().unsqueeze(2) : input;
}

struct ConvCall {
  Tensor input, weight, bias, residual;
  ConvSettings settings;
  bool sequence, channels_last;

  ConvCall(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
           const OptionalTensor& residual, const ConvSettings& settings)
      : input(input_image(input)),
        weight(with_height(weight)),
        bias(tensor_or_undefined(bias)),
        residual(with_height(tensor_or_undefined(residual))),
        settings(settings),
        sequence(input.dim() == 3),
        channels_last(conv_is_channels_last(this->input, this->weight)) {}

  // Whether the others are of the type and on the device of the input.
  bool is_uniform() const {
    for (const Tensor* other : {&weight, &bias, &residual}) {
      if (other->defined() &&
          (other->scalar_type() != input.scalar_type() || other->device() != input.device())) {
        return false;
      }
    }
    return true;
  }

  std::optional<ConvShape> shape() const {
    if (!is_uniform()) return std::nullopt;
    auto result = conv_shape(input.sizes(), weight.sizes(), settings, channels_last);
    if (!result) return result;
    const ConvShape& s = *result;
    const bool bias_fits = !bias.defined() || (bias.dim() == 1 && bias.size(0) == s.out_channels);
    const bool residual_fits =
        !residual.defined() ||
        residual.sizes() == IntArrayRef({s.n, s.out_channels, s.h.output, s.w.output});
    return bias_fits && residual_fits ? result : std::nullopt;
  }
};

// Only the strides of dimensions of size 1 may change, where the tensor has this format already.
Tensor with_strides_of(const Tensor& tensor, at::MemoryFormat format) {
  const Tensor dense = tensor.contiguous(format);
  return format == at::MemoryFormat::ChannelsLast
             ? dense.as_strided(dense.sizes(), c10::get_channels_last_strides_2d(dense.sizes()))
             : dense;
}

Tensor convolution_kernel(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                          const OptionalTensor& residual, IntArrayRef stride, IntArrayRef padding,
                          IntArrayRef dilation, int64_t groups, bool relu, bool keep_weight) {
  const ConvCall call(input, weight, bias, residual,
                      conv_settings(stride, padding, dilation, groups));
  Tensor output;
  if (const auto shape = call.shape()) {
    output = run_conv_forward(call.input, call.weight, call.bias, call.residual, *shape, relu,
                              keep_weight);
  }
  if (!output.defined()) {
    output = native_conv(call.input, call.weight, call.bias, call.residual, call.settings, relu);
  }
  return without_height(output, call.sequence);
}

ThreeTensors convolution_backward_kernel(const Tensor& grad_output, const Tensor& input,
                                         const Tensor& weight, IntArrayRef stride,
                                         IntArrayRef padding, IntArrayRef dilation, int64_t groups,
                                         std::array<bool, 3> wanted) {
  const ConvCall call(input, weight, std::nullopt, grad_output,
                      conv_settings(stride, padding, dilation, groups));
  const Tensor& grad = call.residual;
  const auto shape = call.shape();
  TORCH_CHECK(shape, "fastdl::convolution_backward: grad_output of size ", grad_output.sizes(),
              " does not fit input ", input.sizes(), " and weight ", weight.sizes());
  Tensor grad_input, grad_weight, grad_bias;
  if (wanted[0]) grad_input = run_conv_backward_input(grad, call.weight, *shape);
  if (wanted[1]) {
    std::tie(grad_weight, grad_bias) =
        run_conv_backward_weight(grad, call.input, *shape, wanted[2]);
  } else if (wanted[2]) {
    grad_bias = grad.sum({0, 2, 3});
  }
  const std::array<bool, 3> missing = {wanted[0] && !grad_input.defined(),
                                       wanted[1] && !grad_weight.defined(),
                                       wanted[2] && !grad_bias.defined()};
  if (missing[0] || missing[1]) {
    auto computed = native_conv_backward(grad, call.input, call.weight, call.settings, missing);
    // With the strides of a new tensor, which those of the kernels are and torch's need not be.
    const auto format = conv_format(*shape);
    if (missing[0]) grad_input = with_strides_of(std::get<0>(computed), format);
    if (missing[1]) grad_weight = with_strides_of(std::get<1>(computed), format);
    if (missing[2]) grad_bias = std::get<2>(computed);
  }
  for (Tensor* grad : {&grad_input, &grad_weight, &grad_bias}) {
    if (!grad->defined()) *grad = at::empty({0}, input.options());
  }
  return {without_height(grad_input, call.sequence), without_height(grad_weight, call.sequence),
          grad_bias};
}

// ---- fake tensors

Tensor convolution_meta(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                        const OptionalTensor& residual, IntArrayRef stride, IntArrayRef padding,
                        IntArrayRef dilation, int64_t groups, bool, bool) {
  const ConvCall call(input, weight, bias, residual,
                      conv_settings(stride, padding, dilation, groups));
  const auto x = call.input.sym_sizes(), w = call.weight.sym_sizes();
  const ConvSettings& s = call.settings;
  const bool fits = call.is_uniform() && x.size() == 4 && w.size() == 4 && x[1] == w[1] * groups;
  // The native op has torch's error for what does not fit.
  if (!fits) return native_conv(call.input, call.weight, bias, residual, s, false);
  std::vector<SymInt> sizes = {x[0], w[0]};
  for (size_t d = 0; d < 2; ++d) {
    const SymInt reach = x[2 + d] + (s.padding[d] + s.behind[d]) - (w[2 + d] - 1) * s.dilation[d];
    sizes.push_back((reach - 1) / s.stride[d] + 1);
  }
  const auto format =
      call.channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  return without_height(at::empty_symint(sizes, call.input.options(), format), call.sequence);
}

ThreeTensors convolution_backward_meta(const Tensor& grad_output, const Tensor& input,
                                       const Tensor& weight, IntArrayRef, IntArrayRef, IntArrayRef,
                                       int64_t, std::array<bool, 3> wanted) {
  const ConvCall call(input, weight, std::nullopt, grad_output, {});
  TORCH_CHECK(call.is_uniform(), "fastdl::convolution_backward: tensors on different devices");
  const auto format =
      call.channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  const auto like = [&](const Tensor& tensor, bool want) {
    return want ? without_height(at::empty_symint(tensor.sym_sizes(), tensor.options(), format),
                                 call.sequence)
                : at::empty({0}, input.options());
  };
  return {like(call.input, wanted[0]), like(call.weight, wanted[1]),
          at::empty_symint({wanted[2] ? weight.sym_size(0) : SymInt(0)}, input.options())};
}

TORCH_LIBRARY_FRAGMENT(fastdl, library) {
  // For one or two dimensions; padding is in front of and behind each. keep_weight: the kernel may
  // keep the weight in the order in which it reads it, for later calls.
  library.def(
      "convolution(Tensor input, Tensor weight, Tensor? bias, Tensor? residual, int[] stride, "
      "int[] padding, int[] dilation, int groups, bool relu, bool keep_weight) -> Tensor");
  library.def(
      "convolution_backward(Tensor grad_output, Tensor input, Tensor weight, int[] stride, "
      "int[] padding, int[] dilation, int groups, bool[3] wanted) -> "
      "(Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");
}
TORCH_LIBRARY_IMPL(fastdl, CPU, library) {
  library.impl("convolution", convolution_kernel);
  library.impl("convolution_backward", convolution_backward_kernel);
}
TORCH_LIBRARY_IMPL(fastdl, CUDA, library) {
  library.impl("convolution", convolution_kernel);
  library.impl("convolution_backward", convolution_backward_kernel);
}
TORCH_LIBRARY_IMPL(fastdl, Meta, library) {
  library.impl("convolution", convolution_meta);
  library.impl("convolution_backward", convolution_backward_meta);
}

}  // namespace
}  // namespace fastdl
