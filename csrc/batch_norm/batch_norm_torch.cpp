// torch ops of batch_norm: checks and allocation. Formulas: batch_norm_forward_cpu.cpp.
#include "batch_norm/batch_norm_torch.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "torch/channel_norm.h"
#include "torch/run_kernel.h"

namespace fastdl {

namespace {

using at::Tensor;
using FourTensors = std::tuple<Tensor, Tensor, Tensor, Tensor>;

const char* reason_of_input(const Tensor& x) {
  if (x.dim() < 2) return "an input of less than 2 dimensions";
  return x.numel() == 0 ? "an empty input" : nullptr;
}

const char* reason_of_residual(const Tensor& x, const Tensor& residual) {
  const bool fits =
      !residual.defined() || (residual.sizes() == x.sizes() && residual.device() == x.device() &&
                              residual.scalar_type() == x.scalar_type());
  return fits ? nullptr : "a residual that is not like the input";
}

}  // namespace

const char* reason_of_arguments(const BatchNormTensors& tensors, bool training) {
  const Tensor &x = tensors.input, &mean = tensors.running_mean, &var = tensors.running_var;
  if (const char* reason = reason_of_input(x)) return reason;
  if (training && x.numel() == x.size(1)) return "one value per channel in training";
  if (mean.defined() != var.defined()) return "one of running_mean and running_var alone";
  if (!training && !mean.defined()) return "no running statistics in evaluation";
  if (const char* reason =
          reason_of_channel_parameters(x, {&tensors.weight, &tensors.bias, &mean, &var})) {
    return reason;
  }
  if (mean.defined()) {
    if (mean.requires_grad() || var.requires_grad()) {
      return "running statistics that require gradients";
    }
    if (!mean.is_contiguous() || !var.is_contiguous()) {
      return "running statistics that are not contiguous";
    }
  }
  return reason_of_residual(x, tensors.residual);
}

namespace {

// As in torch: the output is channels last where the input is and nothing else.
at::MemoryFormat format_of(const Tensor& x) {
  return x.is_contiguous() ? at::MemoryFormat::Contiguous : x.suggest_memory_format();
}

void* writable_or_null(const Tensor& tensor) {
  return tensor.defined() ? tensor.mutable_data_ptr() : nullptr;
}

template <class Args>
void fill_common(Args& args, const BatchNormTensors& tensors, bool training, bool relu) {
  const Tensor& x = tensors.input;
  const auto dtype = kernel_dtype(x.scalar_type());
  TORCH_CHECK_NOT_IMPLEMENTED(dtype, "fastdl::batch_norm: no kernel for ", x.scalar_type());
  args.dtype = args.weight_dtype = *dtype;
  for (const Tensor* parameter : {&tensors.weight, &tensors.bias, &tensors.running_mean}) {
    if (parameter->defined()) args.weight_dtype = *kernel_dtype(parameter->scalar_type());
  }
  args.shape = {x.size(0), x.size(1), x.numel() / (x.size(0) * x.size(1)), !x.is_contiguous()};
  args.input = x.const_data_ptr();
  args.weight = pointer_or_null(tensors.weight);
  args.bias = pointer_or_null(tensors.bias);
  args.training = training;
  args.relu = relu;
}

// statistics: the mean and the rstd of each channel that were used
std::tuple<Tensor, Tensor> batch_norm_forward_kernel(
    const Tensor& input, const OptionalTensor& residual, const OptionalTensor& weight,
    const OptionalTensor& bias, const OptionalTensor& running_mean,
    const OptionalTensor& running_var, bool training, double momentum, double eps, bool relu) {
  const auto format = format_of(input);
  const BatchNormTensors tensors{
      aligned_on_gpu(input.contiguous(format)), contiguous_or_undefined(residual, format),
      contiguous_or_undefined(weight),          contiguous_or_undefined(bias),
      running_mean.value_or(Tensor()),          running_var.value_or(Tensor())};
  const Tensor& x = tensors.input;
  const char* reason = reason_of_arguments(tensors, training);
  TORCH_CHECK(reason == nullptr, "fastdl::batch_norm: ", reason);
  BatchNormForwardArgs args{};
  fill_common(args, tensors, training, relu);
  const Tensor output = at::empty(x.sizes(), x.options(), format);
  const Tensor statistics = at::empty({2, args.shape.channels}, channel_statistics_options(x));
  args.residual = pointer_or_null(tensors.residual);
  args.running_mean = writable_or_null(tensors.running_mean);
  args.running_var = writable_or_null(tensors.running_var);
  args.output = output.mutable_data_ptr();
  char* const data = static_cast<char*>(statistics.mutable_data_ptr());
  args.mean = data;
  args.rstd = data + args.shape.channels * statistics.element_size();
  args.momentum = momentum;
  args.eps = eps;
  run_kernel(
      x, [&]<CpuIsa isa> { batch_norm_forward<isa>(args); },
      [&](const auto& target) {
        const Scratch scratch(x, batch_norm_forward_scratch_cuda(args, target));
        args.scratch = scratch.data();
        return batch_norm_forward_cuda(args, target);
      });
  return {output, statistics};
}

Tensor batch_norm_kernel(const Tensor& input, const OptionalTensor& residual,
                         const OptionalTensor& weight, const OptionalTensor& bias,
                         const OptionalTensor& running_mean, const OptionalTensor& running_var,
                         bool training, double momentum, double eps, bool relu) {
  return std::get<0>(batch_norm_forward_kernel(input, residual, weight, bias, running_mean,
                                               running_var, training, momentum, eps, relu));
}

// The gradients of input, residual, weight and bias; an empty tensor for each that is not wanted.
FourTensors batch_norm_backward_kernel(const Tensor& grad_output, const Tensor& input,
                                       const OptionalTensor& output, const OptionalTensor& weight,
                                       const OptionalTensor& bias, const Tensor& statistics,
                                       std::array<bool, 4> wanted, at::ScalarType weight_dtype,
                                       bool training, bool relu) {
  check_same_device("fastdl::batch_norm_backward", input, grad_output, output, weight, bias,
                    statistics);
  const auto format = format_of(input);
  const BatchNormTensors tensors{aligned_on_gpu(input.contiguous(format)),
                                 contiguous_or_undefined(output, format),
                                 contiguous_or_undefined(weight), contiguous_or_undefined(bias)};
  const Tensor& x = tensors.input;
  const char* reason = reason_of_input(x);
  if (reason == nullptr) reason = reason_of_residual(x, tensors.residual);
  if (reason == nullptr) reason = reason_of_channel_parameters(x, {&tensors.weight, &tensors.bias});
  TORCH_CHECK(reason == nullptr, "fastdl::batch_norm_backward: ", reason);
  BatchNormBackwardArgs args{};
  fill_common(args, tensors, training, relu);
  const Tensor saved = statistics.contiguous();
  const int64_t channels = args.shape.channels;
  const bool typed = tensors.weight.defined() || tensors.bias.defined();
  const auto dtype = kernel_dtype(weight_dtype);
  TORCH_CHECK(dtype && (typed ? dtype == args.weight_dtype : fits_channel_norm(x, weight_dtype)),
              "fastdl::batch_norm_backward: weight_dtype must be that of weight and bias");
  args.weight_dtype = *dtype;
  TORCH_CHECK(grad_output.sizes() == x.sizes() && grad_output.dtype() == x.dtype(),
              "fastdl::batch_norm_backward: grad_output must have the input's shape and dtype");
  TORCH_CHECK(saved.sizes() == at::IntArrayRef({2, channels}) &&
                  saved.dtype() == channel_statistics_options(x).dtype(),
              "fastdl::batch_norm_backward: statistics must be those of the forward");
  const Tensor grad = aligned_on_gpu(grad_output.contiguous(format));
  const auto make = [&](bool want, at::IntArrayRef sizes, at::ScalarType dtype) {
    return want ? at::empty(sizes, x.options().dtype(dtype),
                            sizes.size() == 1 ? at::MemoryFormat::Contiguous : format)
                : at::empty({0}, x.options().dtype(dtype));
  };
  const Tensor grad_input = make(wanted[0], x.sizes(), x.scalar_type());
  const Tensor grad_residual = make(wanted[1], x.sizes(), x.scalar_type());
  const Tensor grad_weight = make(wanted[2], {channels}, weight_dtype);
  const Tensor grad_bias = make(wanted[3], {channels}, weight_dtype);
  const char* const data = static_cast<const char*>(saved.const_data_ptr());
  args.grad_output = grad.const_data_ptr();
  args.output = relu ? pointer_or_null(tensors.residual) : nullptr;
  args.mean = data;
  args.rstd = data + channels * saved.element_size();
  args.grad_input = wanted[0] ? grad_input.mutable_data_ptr() : nullptr;
  args.grad_residual = wanted[1] ? grad_residual.mutable_data_ptr() : nullptr;
  args.grad_weight = wanted[2] ? grad_weight.mutable_data_ptr() : nullptr;
  args.grad_bias = wanted[3] ? grad_bias.mutable_data_ptr() : nullptr;
  run_kernel(
      x, [&]<CpuIsa isa> { batch_norm_backward<isa>(args); },
      [&](const auto& target) {
        const Scratch scratch(x, batch_norm_backward_scratch_cuda(args, target));
        args.scratch = scratch.data();
        return batch_norm_backward_cuda(args, target);
      });
  return {grad_input, grad_residual, grad_weight, grad_bias};
}

std::tuple<Tensor, Tensor> batch_norm_forward_meta(
    const Tensor& input, const OptionalTensor& residual, const OptionalTensor& weight,
    const OptionalTensor& bias, const OptionalTensor& running_mean,
    const OptionalTensor& running_var, bool, double, double, bool) {
  check_same_device("fastdl::batch_norm", input, residual, weight, bias, running_mean, running_var);
  return {at::empty_symint(input.sym_sizes(), input.options(), format_of(input)),
          at::empty_symint({c10::SymInt(2), input.sym_size(1)}, channel_statistics_options(input))};
}

Tensor batch_norm_meta(const Tensor& input, const OptionalTensor& residual,
                       const OptionalTensor& weight, const OptionalTensor& bias,
                       const OptionalTensor& running_mean, const OptionalTensor& running_var,
                       bool training, double momentum, double eps, bool relu) {
  return std::get<0>(batch_norm_forward_meta(input, residual, weight, bias, running_mean,
                                             running_var, training, momentum, eps, relu));
}

FourTensors batch_norm_backward_meta(const Tensor& grad_output, const Tensor& input,
                                     const OptionalTensor& output, const OptionalTensor& weight,
                                     const OptionalTensor& bias, const Tensor& statistics,
                                     std::array<bool, 4> wanted, at::ScalarType weight_dtype, bool,
                                     bool) {
  check_same_device("fastdl::batch_norm_backward", input, grad_output, output, weight, bias,
                    statistics);
  const auto like_input = [&](bool want) {
    return want ? at::empty_symint(input.sym_sizes(), input.options(), format_of(input))
                : at::empty({0}, input.options());
  };
  const auto of_channels = [&](bool want) {
    return at::empty_symint({want ? input.sym_size(1) : c10::SymInt(0)},
                            input.options().dtype(weight_dtype));
  };
  return {like_input(wanted[0]), like_input(wanted[1]), of_channels(wanted[2]),
          of_channels(wanted[3])};
}

TORCH_LIBRARY_FRAGMENT(fastdl, library) {
  const std::string arguments =
      "(Tensor input, Tensor? residual, Tensor? weight, Tensor? bias, Tensor(a!)? running_mean, "
      "Tensor(b!)? running_var, bool training, float momentum, float eps, bool relu) -> ";
  const std::string with_statistics = arguments + "(Tensor output, Tensor statistics)";
  library.def(torch::schema(("batch_norm" + arguments + "Tensor").c_str()));
  library.def(torch::schema(("batch_norm_forward" + with_statistics).c_str()));
  // output: of the ReLU, where there was a residual
  library.def(
      "batch_norm_backward(Tensor grad_output, Tensor input, Tensor? output, Tensor? weight, "
      "Tensor? bias, Tensor statistics, bool[4] wanted, ScalarType weight_dtype, bool training, "
      "bool relu) -> (Tensor grad_input, Tensor grad_residual, Tensor grad_weight, "
      "Tensor grad_bias)");
}
TORCH_LIBRARY_IMPL(fastdl, CPU, library) {
  library.impl("batch_norm", batch_norm_kernel);
  library.impl("batch_norm_forward", batch_norm_forward_kernel);
  library.impl("batch_norm_backward", batch_norm_backward_kernel);
}
TORCH_LIBRARY_IMPL(fastdl, CUDA, library) {
  library.impl("batch_norm", batch_norm_kernel);
  library.impl("batch_norm_forward", batch_norm_forward_kernel);
  library.impl("batch_norm_backward", batch_norm_backward_kernel);
}
TORCH_LIBRARY_IMPL(fastdl, Meta, library) {
  library.impl("batch_norm", batch_norm_meta);
  library.impl("batch_norm_forward", batch_norm_forward_meta);
  library.impl("batch_norm_backward", batch_norm_backward_meta);
}

}  // namespace
}  // namespace fastdl
