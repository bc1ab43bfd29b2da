// The kernels of convolution, on images and weights of 4 dimensions, of one dtype and device.
#pragma once

#include <ATen/ops/empty.h>

#include <tuple>

#include "conv/conv.h"
#include "torch/cuda_device.h"

namespace fastdl {

inline at::MemoryFormat conv_format(const ConvShape& shape) {
  return shape.channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

// Of weight and, if wanted, of bias, in the format of the images.
inline std::tuple<at::Tensor, at::Tensor> empty_conv_gradients(const at::Tensor& like,
                                                               const ConvShape& shape,
                                                               bool wants_bias) {
  const int64_t channels = shape.in_channels / shape.groups;
  at::Tensor grad_weight = at::empty({shape.out_channels, channels, shape.h.kernel, shape.w.kernel},
                                     like.options(), conv_format(shape));
  at::Tensor grad_bias;
  if (wants_bias) grad_bias = at::empty({shape.out_channels}, like.options());
  return {grad_weight, grad_bias};
}

// An undefined tensor where native torch is faster, or has to do without memory for a workspace.
// The weight may be kept in the order of the kernel for later calls.
at::Tensor run_conv_forward(const at::Tensor& input, const at::Tensor& weight,
                            const at::Tensor& bias, const at::Tensor& residual,
                            const ConvShape& shape, bool relu, bool keep_weight);
at::Tensor run_conv_backward_input(const at::Tensor& grad_output, const at::Tensor& weight,
                                   const ConvShape& shape);
// The gradients of weight and, if wanted, of bias.
std::tuple<at::Tensor, at::Tensor> run_conv_backward_weight(const at::Tensor& grad_output,
                                                            const at::Tensor& input,
                                                            const ConvShape& shape,
                                                            bool wants_bias);

// The same on a GPU, for what has a kernel there.
bool conv_has_cuda_kernel(const at::Tensor& like, const ConvShape& shape, ConvDirection direction);
at::Tensor run_conv_forward_cuda(const at::Tensor& input, const at::Tensor& weight,
                                 const at::Tensor& bias, const at::Tensor& residual,
                                 const ConvShape& shape, bool relu);
at::Tensor run_conv_backward_input_cuda(const at::Tensor& grad_output, const at::Tensor& weight,
                                        const ConvShape& shape);
std::tuple<at::Tensor, at::Tensor> run_conv_backward_weight_cuda(const at::Tensor& grad_output,
                                                                 const at::Tensor& input,
                                                                 const ConvShape& shape,
                                                                 bool wants_bias);

}  // namespace fastdl
