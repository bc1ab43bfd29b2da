#pragma once

#include <array>
#include <optional>
#include <string>
#include <tuple>

#include "conv/conv.h"
#include "torch/checks.h"
#include "torch/sizes.h"

namespace fastdl {

using OptionalTensor = std::optional<at::Tensor>;

// 'same', 'valid', or sizes, from Python.
struct ConvPadding {
  Sizes sizes;
  std::string name;
};

// The numbers of a convolution of images, height first; sequences are images with a height of 1.
// Padding is that in front of and that behind an image.
struct ConvSettings {
  std::array<int64_t, 2> stride{1, 1}, padding{0, 0}, behind{0, 0}, dilation{1, 1};
  int64_t groups = 1;
};

// From the arguments of the registered ops: one or two numbers each, of padding two each.
ConvSettings conv_settings(at::IntArrayRef stride, at::IntArrayRef padding,
                           at::IntArrayRef dilation, int64_t groups);

// torch's rule for all tensors of a call.
bool conv_is_channels_last(const at::Tensor& input, const at::Tensor& weight);

// Of images; nothing where torch has an error or an empty result.
std::optional<ConvShape> conv_shape(at::IntArrayRef input, at::IntArrayRef weight,
                                    const ConvSettings& settings, bool channels_last);

// Whether a kernel of ours is the one to compute this, of tensors that are like `like`.
bool conv_has_kernel(const at::Tensor& like, const ConvShape& shape, ConvDirection direction);

// The same by torch, differentiable where autograd is on.
at::Tensor native_conv(const at::Tensor& input, const at::Tensor& weight,
                       const OptionalTensor& bias, const OptionalTensor& residual,
                       const ConvSettings& settings, bool relu);
std::tuple<at::Tensor, at::Tensor, at::Tensor> native_conv_backward(const at::Tensor& grad_output,
                                                                    const at::Tensor& input,
                                                                    const at::Tensor& weight,
                                                                    const ConvSettings& settings,
                                                                    std::array<bool, 3> wanted);

// The registered op.
at::Tensor call_convolution(const at::Tensor& input, const at::Tensor& weight,
                            const OptionalTensor& bias, const OptionalTensor& residual,
                            at::IntArrayRef stride, at::IntArrayRef padding,
                            at::IntArrayRef dilation, int64_t groups, bool relu, bool keep_weight);
// What autocast makes of an argument.
at::Tensor autocast_conv(const at::Tensor& tensor, c10::DeviceType device);

// Whether kernels of Winograd may be chosen, in the whole process; returns what it was.
bool set_allow_winograd(bool allow);
// Whether kernels compute on the CPU where native torch is faster too, so that tests see them on
// any machine; returns what it was.
bool always_use_conv_kernels(bool always);

// torch.nn.functional's convolutions in one or two dimensions, then a residual of the output's
// shape added, then ReLU; nothing where native torch must compute.
template <int64_t dims>
std::optional<at::Tensor> conv(const PlainTensor& input, const PlainTensor& weight,
                               const std::optional<PlainTensor>& bias, const Sizes& stride,
                               const ConvPadding& padding, const Sizes& dilation, Integer groups,
                               const std::optional<PlainTensor>& residual, bool relu);

}  // namespace fastdl
