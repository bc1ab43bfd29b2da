// What Python calls: the arguments of torch's functions, and why native torch must judge them.
#include <ATen/ATen.h>

#include "conv/conv_kernels_torch.h"
#include "conv/conv_torch.h"
#include "torch/hand_over.h"

namespace fastdl {
namespace {

using at::IntArrayRef;
using at::Tensor;

bool requires_grad(const Tensor& tensor) { return tensor.defined() && tensor.requires_grad(); }

// The arguments of a call, as the registered op takes them.
struct Arguments {
  Tensor input, weight, bias, residual;
  std::vector<int64_t> stride, padding, dilation;
  int64_t groups;
  bool unbatched;
};

// Fills stride, padding and dilation, or says why native torch must judge them.
const char* expand_sizes(int64_t dims, const Sizes& stride, const ConvPadding& padding,
                         const Sizes& dilation, Arguments& a) {
  constexpr const char* wrong = "sizes that native torch must judge";
  if (!expand(stride, dims, 1, a.stride) || !expand(dilation, dims, 1, a.dilation)) return wrong;
  std::vector<int64_t> front;
  if (padding.name.empty() && !expand(padding.sizes, dims, 0, front)) return wrong;
  const bool same = padding.name == "same";
  if (!padding.name.empty() && !same && padding.name != "valid") return wrong;
  for (int64_t d = 0; d < dims; ++d) {
    const int64_t total = a.dilation[d] * (a.weight.size(2 + d) - 1);
    if (same && a.stride[d] != 1) return wrong;
    const int64_t before = same ? total / 2 : padding.name.empty() ? front[d] : 0;
    a.padding.push_back(before);
    a.padding.push_back(same ? total - before : before);
  }
  return nullptr;
}

const char* reason_of_tensors(const Arguments& a) {
  if (const char* reason = reason_to_hand_over(a.input)) return reason;
  const bool autocast = at::autocast::is_autocast_enabled(a.input.device().type());
  for (const Tensor* tensor : {&a.input, &a.weight, &a.bias, &a.residual}) {
    const bool may_miss = tensor == &a.bias || tensor == &a.residual;
    if (may_miss && !tensor->defined()) continue;
    if (const char* reason = reason_to_hand_over(*tensor)) return reason;
    if (tensor->device() != a.input.device()) return "arguments on several devices";
    if (tensor->scalar_type() == at::kDouble) return "no kernel for float64";
    if (tensor->scalar_type() != a.input.scalar_type() && !autocast) {
      return "arguments of several dtypes";
    }
  }
  return nullptr;
}

// Why torch must compute a call, or nullptr.
const char* reason_of_shape(const Arguments& a) {
  const bool grad = at::GradMode::is_enabled();
  const bool sequence = a.input.dim() == 3;
  const auto image = [&](const Tensor& t) {
    return std::array{t.size(0), t.size(1), sequence ? 1 : t.size(2), t.size(t.dim() - 1)};
  };
  // The format only matters to the choice of a kernel; sequences have but one.
  const bool channels_last = !sequence && conv_is_channels_last(a.input, a.weight);
  const auto shape =
      conv_shape(image(a.input), image(a.weight),
                 conv_settings(a.stride, a.padding, a.dilation, a.groups), channels_last);
  if (!shape) return "an empty tensor, or sizes that native torch must judge";
  if (a.bias.defined() && (a.bias.dim() != 1 || a.bias.size(0) != shape->out_channels)) {
    return "a bias of another shape";
  }
  const std::array output = {shape->n, shape->out_channels, shape->h.output, shape->w.output};
  if (a.residual.defined() && (a.residual.dim() != a.input.dim() || image(a.residual) != output)) {
    return "a residual that is not like the output";
  }
  const bool of_input = grad && a.input.requires_grad();
  const bool of_weight = grad && a.weight.requires_grad();
  const bool any =
      of_input || of_weight || (grad && (requires_grad(a.bias) || requires_grad(a.residual)));
  if (any && (a.input.is_inference() || a.weight.is_inference())) {
    return "an inference tensor that the backward would need";
  }
  if (!conv_has_kernel(a.input, *shape, ConvDirection::kForward) &&
      !(of_input && conv_has_kernel(a.input, *shape, ConvDirection::kBackwardInput)) &&
      !(of_weight && conv_has_kernel(a.input, *shape, ConvDirection::kBackwardWeight))) {
    return "native torch is faster here";
  }
  return nullptr;
}

Tensor tensor_or_undefined(const std::optional<PlainTensor>& tensor) {
  return tensor ? tensor->tensor : Tensor();
}

OptionalTensor optional(const Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

}  // namespace

template <int64_t dims>
std::optional<Tensor> conv(const PlainTensor& input, const PlainTensor& weight,
                           const std::optional<PlainTensor>& bias, const Sizes& stride,
                           const ConvPadding& padding, const Sizes& dilation, Integer groups,
                           const std::optional<PlainTensor>& residual, bool relu) {
  Arguments a{input.tensor,
              weight.tensor,
              tensor_or_undefined(bias),
              tensor_or_undefined(residual),
              {},
              {},
              {},
              groups,
              false};
  const char* reason = reason_of_tensors(a);
  if (reason == nullptr && a.weight.dim() != dims + 2) reason = "a weight of another rank";
  if (reason == nullptr) reason = expand_sizes(dims, stride, padding, dilation, a);
  a.unbatched = a.input.dim() == dims + 1;
  if (reason == nullptr && a.input.dim() != dims + 2 && !a.unbatched) {
    reason = "a wrong number of dimensions";
  }
  if (reason == nullptr) {
    const auto device = a.input.device().type();
    if (at::autocast::is_autocast_enabled(device)) {
      for (Tensor* tensor : {&a.input, &a.weight, &a.bias, &a.residual}) {
        *tensor = autocast_conv(*tensor, device);
      }
    }
    if (a.unbatched) {
      a.input = a.input.unsqueeze(0);
      if (a.residual.defined()) a.residual = a.residual.unsqueeze(0);
    }
    reason = reason_of_shape(a);
  }
  if (reason != nullptr) {
    hand_over(dims == 1 ? "conv1d" : "conv2d", reason);
    return std::nullopt;
  }
  Tensor output =
      call_convolution(a.input, a.weight, optional(a.bias), optional(a.residual), a.stride,
                       a.padding, a.dilation, a.groups, relu, /*keep_weight=*/true);
  return a.unbatched ? output.squeeze(0) : output;
}

template std::optional<Tensor> conv<1>(const PlainTensor&, const PlainTensor&,
                                       const std::optional<PlainTensor>&, const Sizes&,
                                       const ConvPadding&, const Sizes&, Integer,
                                       const std::optional<PlainTensor>&, bool);
template std::optional<Tensor> conv<2>(const PlainTensor&, const PlainTensor&,
                                       const std::optional<PlainTensor>&, const Sizes&,
                                       const ConvPadding&, const Sizes&, Integer,
                                       const std::optional<PlainTensor>&, bool);

}  // namespace fastdl
