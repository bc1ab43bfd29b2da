// torch ops of layer_norm and rms_norm: checks and allocation. Formulas: layer_norm_cpu.cpp.
#include "layer_norm/layer_norm_torch.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>

#include "common/parallel.h"
#include "torch/run_kernel.h"

namespace fastdl {

const char* reason_of_arguments(const at::Tensor& input, at::IntArrayRef normalized_shape,
                                const at::Tensor& weight, const at::Tensor& bias, int64_t kind) {
  const int64_t outer = input.dim() - static_cast<int64_t>(normalized_shape.size());
  if (normalized_shape.empty() || outer < 0 || input.sizes().slice(outer) != normalized_shape) {
    return "normalized_shape does not fit the input";
  }
  const bool mixed = at::isReducedFloatingType(input.scalar_type()) &&
                     static_cast<NormKind>(kind) == NormKind::kLayerNorm;
  for (const at::Tensor& parameter : {weight, bias}) {
    if (!parameter.defined()) continue;
    if (parameter.device() != input.device()) return "a parameter on another device";
    if (parameter.sizes() != normalized_shape) return "a parameter of another shape";
    if (parameter.scalar_type() != input.scalar_type() &&
        !(mixed && parameter.scalar_type() == at::kFloat)) {
      return "a parameter of another dtype";
    }
  }
  if (weight.defined() && bias.defined() && weight.scalar_type() != bias.scalar_type()) {
    return "weight and bias of different dtypes";
  }
  return nullptr;
}

namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using ThreeTensors = std::tuple<Tensor, Tensor, Tensor>;

// Into how many ranges of rows the backward splits its sums over rows. A range is worth a thread
// and short: sums of many rows, one after the other, would lose digits. The number depends on
// nothing but the sizes and the number of threads, so that two runs add in the same order.
int64_t backward_tasks(int64_t rows, int64_t cols) {
  constexpr int64_t longest = 64, worth_a_thread = 16384;  // rows, elements
  const int64_t threads = std::min(num_threads(), rows * cols / worth_a_thread);
  return std::max({int64_t{1}, std::min(threads, rows), (rows + longest - 1) / longest});
}

bool is_rms(int64_t kind) { return static_cast<NormKind>(kind) == NormKind::kRmsNorm; }

at::ScalarType statistics_dtype(const Tensor& input) {
  return input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

Tensor contiguous_or_undefined(const OptionalTensor& tensor) {
  return tensor.has_value() && tensor->defined() ? tensor->contiguous() : Tensor();
}

const void* pointer_or_null(const Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr() : nullptr;
}

// Fills what both directions share.
template <class Args>
void fill_sizes(Args& args, const Tensor& input, at::IntArrayRef normalized_shape,
                const Tensor& weight, const Tensor& bias, int64_t kind) {
  const char* reason = reason_of_arguments(input, normalized_shape, weight, bias, kind);
  TORCH_CHECK(reason == nullptr, "fastdl::layer_norm: ", reason);
  TORCH_CHECK(kind == 0 || kind == 1, "fastdl::layer_norm: kind must be 0 or 1, not ", kind);
  const Tensor& typed = weight.defined() ? weight : bias.defined() ? bias : input;
  const auto dtype = kernel_dtype(input.scalar_type());
  TORCH_CHECK_NOT_IMPLEMENTED(dtype, "fastdl::layer_norm: no kernel for ", input.scalar_type());
  args.dtype = *dtype;
  args.weight_dtype = *kernel_dtype(typed.scalar_type());
  args.cols = c10::multiply_integers(normalized_shape);
  args.rows = args.cols == 0 ? 0 : input.numel() / args.cols;
  args.kind = static_cast<NormKind>(kind);
}

// With statistics: [mean of each row; rstd of each row], for rms_norm only the latter. As in torch
// the output of layer_norm is contiguous, that of rms_norm may be channels_last like its input.
std::tuple<Tensor, Tensor> run_forward(const Tensor& input, at::IntArrayRef normalized_shape,
                                       const OptionalTensor& weight, const OptionalTensor& bias,
                                       double eps, int64_t kind, bool with_statistics) {
  const Tensor x = input.contiguous();
  const Tensor w = contiguous_or_undefined(weight), b = contiguous_or_undefined(bias);
  const Tensor output = at::empty(x.sizes(), x.options());
  NormForwardArgs args{};
  fill_sizes(args, x, normalized_shape, w, b, kind);
  args.input = x.const_data_ptr();
  args.weight = pointer_or_null(w);
  args.bias = pointer_or_null(b);
  args.output = output.mutable_data_ptr();
  args.eps = eps;
  Tensor statistics;
  if (with_statistics) {
    statistics =
        at::empty({is_rms(kind) ? 1 : 2, args.rows}, x.options().dtype(statistics_dtype(x)));
    char* const data = static_cast<char*>(statistics.mutable_data_ptr());
    args.mean = is_rms(kind) ? nullptr : data;
    args.rstd = is_rms(kind) ? data : data + args.rows * statistics.element_size();
  }
  if (args.rows > 0) {
    run_kernel(
        x, [&]<CpuIsa isa> { norm_forward<isa>(args); },
        [&](const auto& target) {
          const Scratch scratch(x, norm_forward_scratch_cuda(args, target));
          args.scratch = scratch.data();
          return norm_forward_cuda(args, target);
        });
  }
  if (is_rms(kind)) return {output.contiguous(input.suggest_memory_format()), statistics};
  return {output, statistics};
}

Tensor layer_norm_kernel(const Tensor& input, at::IntArrayRef normalized_shape,
                         const OptionalTensor& weight, const OptionalTensor& bias, double eps,
                         int64_t kind) {
  return std::get<0>(run_forward(input, normalized_shape, weight, bias, eps, kind, false));
}

std::tuple<Tensor, Tensor> layer_norm_forward_kernel(const Tensor& input,
                                                     at::IntArrayRef normalized_shape,
                                                     const OptionalTensor& weight,
                                                     const OptionalTensor& bias, double eps,
                                                     int64_t kind) {
  return run_forward(input, normalized_shape, weight, bias, eps, kind, true);
}

// The gradients of input, weight and bias; an empty tensor for each that is not wanted.
ThreeTensors layer_norm_backward_kernel(const Tensor& grad_output, const Tensor& input,
                                        at::IntArrayRef normalized_shape,
                                        const OptionalTensor& weight, const Tensor& statistics,
                                        std::array<bool, 3> wanted, at::ScalarType weight_dtype,
                                        int64_t kind) {
  const Tensor grad = grad_output.contiguous(), x = input.contiguous();
  const Tensor w = contiguous_or_undefined(weight);
  const auto parameter_options = x.options().dtype(weight_dtype);
  const Tensor grad_input =
      wanted[0] ? at::empty(x.sizes(), x.options()) : at::empty({0}, x.options());
  const auto make_grad = [&](bool want) {
    return want ? at::empty(normalized_shape, parameter_options)
                : at::empty({0}, parameter_options);
  };
  const Tensor grad_weight = make_grad(wanted[1]), grad_bias = make_grad(wanted[2]);
  NormBackwardArgs args{};
  fill_sizes(args, x, normalized_shape, w, wanted[2] ? grad_bias : Tensor(), kind);
  TORCH_CHECK(grad.sizes() == x.sizes() && grad.scalar_type() == x.scalar_type(),
              "fastdl::layer_norm_backward: grad_output and input must agree in shape and dtype");
  TORCH_CHECK(grad.device() == x.device() && statistics.device() == x.device(),
              "fastdl::layer_norm_backward: grad_output and statistics must be on ", x.device());
  TORCH_CHECK(weight_dtype == x.scalar_type() || weight_dtype == statistics_dtype(x),
              "fastdl::layer_norm_backward: weight_dtype must be input's or that of statistics");
  TORCH_CHECK(!w.defined() || w.scalar_type() == weight_dtype,
              "fastdl::layer_norm_backward: weight is not of weight_dtype");
  if (args.rows == 0) return {grad_input, grad_weight.zero_(), grad_bias.zero_()};
  TORCH_CHECK(statistics.numel() == (is_rms(kind) ? 1 : 2) * args.rows &&
                  statistics.scalar_type() == statistics_dtype(x) && statistics.is_contiguous(),
              "fastdl::layer_norm_backward: statistics are not those of this input");
  args.weight_dtype = *kernel_dtype(weight_dtype);
  const char* const data = static_cast<const char*>(statistics.const_data_ptr());
  args.grad_output = grad.const_data_ptr();
  args.input = x.const_data_ptr();
  args.weight = pointer_or_null(w);
  args.mean = is_rms(kind) ? nullptr : data;
  args.rstd = is_rms(kind) ? data : data + args.rows * statistics.element_size();
  args.grad_input = wanted[0] ? grad_input.mutable_data_ptr() : nullptr;
  args.grad_weight = wanted[1] ? grad_weight.mutable_data_ptr() : nullptr;
  args.grad_bias = wanted[2] ? grad_bias.mutable_data_ptr() : nullptr;
  Tensor partial_sums;
  const auto make_partial_sums = [&](int64_t tasks) {
    partial_sums = at::empty({tasks, 2, args.cols}, statistics.options());
    args.tasks = tasks;
    args.partial_sums = partial_sums.mutable_data_ptr();
  };
  run_kernel(
      x,
      [&]<CpuIsa isa> {
        make_partial_sums(backward_tasks(args.rows, args.cols));
        norm_backward<isa>(args);
      },
      [&](const auto& target) {
        make_partial_sums(norm_backward_tasks_cuda(args, target));
        const Scratch scratch(x, norm_backward_scratch_cuda(args, target));
        args.scratch = scratch.data();
        return norm_backward_cuda(args, target);
      });
  return {grad_input, grad_weight, grad_bias};
}

Tensor output_meta(const Tensor& input, int64_t kind) {
  const auto format = is_rms(kind) ? input.suggest_memory_format() : at::MemoryFormat::Contiguous;
  return at::empty_symint(input.sym_sizes(), input.options(), format);
}

Tensor layer_norm_meta(const Tensor& input, c10::SymIntArrayRef, const OptionalTensor&,
                       const OptionalTensor&, double, int64_t kind) {
  return output_meta(input, kind);
}

std::tuple<Tensor, Tensor> layer_norm_forward_meta(const Tensor& input,
                                                   c10::SymIntArrayRef normalized_shape,
                                                   const OptionalTensor&, const OptionalTensor&,
                                                   double, int64_t kind) {
  c10::SymInt rows = 1;
  for (const auto& size : input.sym_sizes().slice(0, input.dim() - normalized_shape.size())) {
    rows *= size;
  }
  return {output_meta(input, kind),
          at::empty_symint({c10::SymInt(is_rms(kind) ? 1 : 2), rows},
                           input.options().dtype(statistics_dtype(input)))};
}

ThreeTensors layer_norm_backward_meta(const Tensor&, const Tensor& input,
                                      c10::SymIntArrayRef normalized_shape, const OptionalTensor&,
                                      const Tensor&, std::array<bool, 3> wanted,
                                      at::ScalarType weight_dtype, int64_t) {
  const auto make = [](bool want, c10::SymIntArrayRef sizes, at::TensorOptions options) {
    return want ? at::empty_symint(sizes, options) : at::empty({0}, options);
  };
  const auto parameter_options = input.options().dtype(weight_dtype);
  return {make(wanted[0], input.sym_sizes(), input.options()),
          make(wanted[1], normalized_shape, parameter_options),
          make(wanted[2], normalized_shape, parameter_options)};
}

TORCH_LIBRARY_FRAGMENT(fastdl, library) {
  // kind: 0 layer_norm, 1 rms_norm (no bias)
  library.def(
      "layer_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight, Tensor? bias, float "
      "eps, "
      "int kind) -> Tensor");
  library.def(
      "layer_norm_forward(Tensor input, SymInt[] normalized_shape, Tensor? weight, Tensor? bias, "
      "float eps, int kind) -> (Tensor output, Tensor statistics)");
  library.def(
      "layer_norm_backward(Tensor grad_output, Tensor input, SymInt[] normalized_shape, "
      "Tensor? weight, Tensor statistics, bool[3] wanted, ScalarType weight_dtype, int kind) -> "
      "(Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");
}
TORCH_LIBRARY_IMPL(fastdl, CPU, library) {
  library.impl("layer_norm", layer_norm_kernel);
  library.impl("layer_norm_forward", layer_norm_forward_kernel);
  library.impl("layer_norm_backward", layer_norm_backward_kernel);
}
TORCH_LIBRARY_IMPL(fastdl, CUDA, library) {
  library.impl("layer_norm", layer_norm_kernel);
  library.impl("layer_norm_forward", layer_norm_forward_kernel);
  library.impl("layer_norm_backward", layer_norm_backward_kernel);
}
TORCH_LIBRARY_IMPL(fastdl, Meta, library) {
  library.impl("layer_norm", layer_norm_meta);
  library.impl("layer_norm_forward", layer_norm_forward_meta);
  library.impl("layer_norm_backward", layer_norm_backward_meta);
}

}  // namespace
}  // namespace fastdl
