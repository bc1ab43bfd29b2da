// Runs the kernels of convolution on a GPU, in the memory format that their plan asks for.
#include <ATen/ATen.h>

#include "conv/conv_cuda_plan.h"
#include "conv/conv_kernels_torch.h"
#include "torch/checks.h"
#include "torch/run_kernel.h"

namespace fastdl {
namespace {

using at::MemoryFormat;
using at::Tensor;

DType dtype_of(const Tensor& x) { return *kernel_dtype(x.scalar_type()); }

ConvCudaPlan plan_on_gpu(const Tensor& like, const ConvShape& shape, ConvDirection direction) {
  ConvCudaPlan plan;
  launch_on_gpu(like, [&](const auto& target) {
    if constexpr (kWithCuda) {
      const bool tf32 = at::globalContext().allowTF32CuDNN(at::Float32Op::CONV);
      plan =
          plan_conv_cuda(shape, direction, dtype_of(like), tf32 ? ConvMath::kTf32 : ConvMath::kIeee,
                         target.multiprocessors, target.capability);
    }
    return Status{};
  });
  return plan;
}

Tensor as_kernel_reads(const Tensor& tensor, const ConvShape& shape) {
  return tensor.defined() ? aligned_on_gpu(tensor.contiguous(conv_format(shape))) : tensor;
}

// [out_channels, h.kernel, w.kernel, in_channels / groups] in memory
Tensor packed_weight(const Tensor& weight) {
  return aligned_on_gpu(weight.contiguous(MemoryFormat::ChannelsLast));
}

const void* pointer_or_null(const Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr() : nullptr;
}

// One call: a plan, the shape as its kernel sees it, and a workspace.
struct GpuCall {
  ConvCudaPlan plan;
  ConvShape shape;
  MemoryFormat wanted;  // by the caller
  Scratch workspace;

  GpuCall(const Tensor& like, const ConvShape& given, ConvDirection direction)
      : plan(plan_on_gpu(like, given, direction)),
        shape(given),
        wanted(conv_format(given)),
        workspace(like, plan.workspace_bytes) {
    shape.channels_last = plan.channels_last;
  }
};

}  // namespace

bool conv_has_cuda_kernel(const Tensor& like, const ConvShape& shape, ConvDirection direction) {
  return plan_on_gpu(like, shape, direction).kernel != ConvCudaKernel::kNative;
}

Tensor run_conv_forward_cuda(const Tensor& input, const Tensor& weight, const Tensor& bias,
                             const Tensor& residual, const ConvShape& given, bool relu) {
  const GpuCall call(input, given, ConvDirection::kForward);
  const ConvShape& shape = call.shape;
  const Tensor x = as_kernel_reads(input, shape), z = as_kernel_reads(residual, shape);
  const Tensor w = packed_weight(weight);
  const Tensor b = bias.defined() ? aligned_on_gpu(bias.contiguous()) : bias;
  const Tensor output = at::empty({shape.n, shape.out_channels, shape.h.output, shape.w.output},
                                  x.options(), conv_format(shape));
  const ConvForwardArgs args{x.const_data_ptr(),
                             w.const_data_ptr(),
                             pointer_or_null(b),
                             pointer_or_null(z),
                             output.mutable_data_ptr(),
                             call.workspace.data(),
                             shape,
                             dtype_of(x),
                             relu};
  launch_on_gpu(x, [&](const auto& target) {
    if constexpr (!kWithCuda)
      return Status{};
    else
      return conv_forward_cuda(args, call.plan, target);
  });
  return output.contiguous(call.wanted);
}

Tensor run_conv_backward_input_cuda(const Tensor& grad_output, const Tensor& weight,
                                    const ConvShape& given) {
  const GpuCall call(grad_output, given, ConvDirection::kBackwardInput);
  const ConvShape& shape = call.shape;
  const Tensor dy = as_kernel_reads(grad_output, shape), w = packed_weight(weight);
  const Tensor grad_input = at::empty({shape.n, shape.in_channels, shape.h.input, shape.w.input},
                                      dy.options(), conv_format(shape));
  const ConvBackwardInputArgs args{dy.const_data_ptr(),
                                   w.const_data_ptr(),
                                   grad_input.mutable_data_ptr(),
                                   call.workspace.data(),
                                   shape,
                                   dtype_of(dy)};
  launch_on_gpu(dy, [&](const auto& target) {
    if constexpr (!kWithCuda)
      return Status{};
    else
      return conv_backward_input_cuda(args, call.plan, target);
  });
  return grad_input.contiguous(call.wanted);
}

std::tuple<Tensor, Tensor> run_conv_backward_weight_cuda(const Tensor& grad_output,
                                                         const Tensor& input,
                                                         const ConvShape& given, bool wants_bias) {
  const GpuCall call(input, given, ConvDirection::kBackwardWeight);
  const ConvShape& shape = call.shape;
  const Tensor dy = as_kernel_reads(grad_output, shape), x = as_kernel_reads(input, shape);
  const auto [grad_weight, grad_bias] = empty_conv_gradients(x, given, wants_bias);
  const ConvBackwardWeightArgs args{
      x.const_data_ptr(),
      dy.const_data_ptr(),
      grad_weight.mutable_data_ptr(),
      {grad_weight.stride(0), grad_weight.stride(1), grad_weight.stride(2), grad_weight.stride(3)},
      wants_bias ? grad_bias.mutable_data_ptr() : nullptr,
      call.workspace.data(),
      shape,
      dtype_of(x)};
  launch_on_gpu(x, [&](const auto& target) {
    if constexpr (!kWithCuda)
      return Status{};
    else
      return conv_backward_weight_cuda(args, call.plan, target);
  });
  return {grad_weight, grad_bias};
}

}  // namespace fastdl
