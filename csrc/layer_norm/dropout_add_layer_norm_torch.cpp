// torch ops of dropout_add_layer_norm: checks and allocation. Formulas:
// dropout_add_layer_norm_cpu.cpp.
#include "layer_norm/dropout_add_layer_norm_torch.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>

#include "common/parallel.h"
#include "layer_norm/dropout_add_layer_norm.h"
#include "layer_norm/layer_norm_torch.h"
#include "torch/run_kernel.h"

namespace fastdl {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Ranges of rows for the sums over rows, as in layer_norm_torch.cpp.
int64_t backward_tasks(int64_t rows, int64_t cols) {
  constexpr int64_t longest = 64, worth_a_thread = 16384;  // rows, elements
  const int64_t threads = std::min(num_threads(), rows * cols / worth_a_thread);
  return std::max({int64_t{1}, std::min(threads, rows), (rows + longest - 1) / longest});
}

Tensor contiguous_or_undefined(const OptionalTensor& tensor) {
  return tensor.has_value() && tensor->defined() ? tensor->contiguous() : Tensor();
}

const void* pointer_or_null(const Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr() : nullptr;
}

at::ScalarType statistics_dtype(const Tensor& input) {
  return input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

template <class Args>
void fill_sizes(Args& args, const Tensor& input, at::IntArrayRef normalized_shape, double p,
                int64_t seed) {
  TORCH_CHECK(p >= 0 && p < 1, "fastdl::dropout_add_layer_norm: p must be in [0, 1), not ", p);
  const auto dtype = kernel_dtype(input.scalar_type());
  TORCH_CHECK_NOT_IMPLEMENTED(dtype, "fastdl::dropout_add_layer_norm: no kernel for ",
                              input.scalar_type());
  args.dtype = *dtype;
  args.cols = c10::multiply_integers(normalized_shape);
  args.rows = args.cols == 0 ? 0 : input.numel() / args.cols;
  args.p = p;
  args.seed = static_cast<uint64_t>(seed);
}

ThreeTensors forward_kernel(const Tensor& input, const Tensor& residual,
                            at::IntArrayRef normalized_shape, const OptionalTensor& weight,
                            const OptionalTensor& bias, double p, int64_t seed, double eps) {
  const char* reason = reason_of_dropout_add(input, residual, normalized_shape,
                                             weight.value_or(Tensor()), bias.value_or(Tensor()));
  TORCH_CHECK(reason == nullptr, "fastdl::dropout_add_layer_norm: ", reason);
  const Tensor x = aligned_on_gpu(input.contiguous());
  const Tensor other = aligned_on_gpu(residual.contiguous());
  const Tensor w = contiguous_or_undefined(weight), b = contiguous_or_undefined(bias);
  DropoutAddNormForwardArgs args;
  fill_sizes(args, x, normalized_shape, p, seed);
  const Tensor& typed = w.defined() ? w : b.defined() ? b : x;
  args.weight_dtype = *kernel_dtype(typed.scalar_type());
  const Tensor output = at::empty(x.sizes(), x.options()), sum = at::empty(x.sizes(), x.options());
  const Tensor statistics = at::empty({2, args.rows}, x.options().dtype(statistics_dtype(x)));
  if (args.rows == 0) return {output, sum, statistics};
  args.input = x.const_data_ptr();
  args.residual = other.const_data_ptr();
  args.weight = pointer_or_null(w);
  args.bias = pointer_or_null(b);
  args.output = output.mutable_data_ptr();
  args.sum = sum.mutable_data_ptr();
  args.mean = statistics.mutable_data_ptr();
  args.rstd = static_cast<char*>(args.mean) + args.rows * statistics.element_size();
  args.eps = eps;
  run_kernel(
      x, [&]<CpuIsa isa> { dropout_add_norm_forward<isa>(args); },
      [&](const auto& target) { return dropout_add_norm_forward_cuda(args, target); });
  return {output, sum, statistics};
}

std::tuple<Tensor, Tensor> output_and_sum(const Tensor& input, const Tensor& residual,
                                          at::IntArrayRef normalized_shape,
                                          const OptionalTensor& weight, const OptionalTensor& bias,
                                          double p, int64_t seed, double eps) {
  auto [output, sum, statistics] =
      forward_kernel(input, residual, normalized_shape, weight, bias, p, seed, eps);
  return {output, sum};
}

FourTensors backward_kernel(const Tensor& grad_output, const OptionalTensor& grad_sum,
                            const Tensor& sum, at::IntArrayRef normalized_shape,
                            const OptionalTensor& weight, const Tensor& statistics, double p,
                            int64_t seed, std::array<bool, 4> wanted, at::ScalarType weight_dtype) {
  const Tensor grad = aligned_on_gpu(grad_output.contiguous()), s = sum.contiguous();
  const Tensor other_grad = contiguous_or_undefined(grad_sum);
  const Tensor other = other_grad.defined() ? aligned_on_gpu(other_grad) : other_grad;
  const Tensor w = contiguous_or_undefined(weight);
  for (const Tensor& one : {grad, other}) {
    TORCH_CHECK(!one.defined() || (one.sizes() == s.sizes() && one.device() == s.device() &&
                                   one.scalar_type() == s.scalar_type()),
                "fastdl::dropout_add_layer_norm_backward: gradients and sum must agree");
  }
  const char* reason = reason_of_arguments(s, normalized_shape, w, Tensor(), /*kind=*/0);
  TORCH_CHECK(reason == nullptr, "fastdl::dropout_add_layer_norm_backward: ", reason);
  TORCH_CHECK(!w.defined() || w.scalar_type() == weight_dtype,
              "fastdl::dropout_add_layer_norm_backward: weight_dtype is not that of weight");
  DropoutAddNormBackwardArgs args;
  fill_sizes(args, s, normalized_shape, p, seed);
  TORCH_CHECK(statistics.numel() == 2 * args.rows && statistics.device() == s.device() &&
                  statistics.scalar_type() == statistics_dtype(s) && statistics.is_contiguous(),
              "fastdl::dropout_add_layer_norm_backward: statistics are not those of this sum");
  // Without dropout the two gradients are one.
  const bool own_grad_input = wanted[0] && p > 0;
  const auto parameter = s.options().dtype(weight_dtype);
  const auto make = [&](bool want, at::IntArrayRef sizes, const at::TensorOptions& options) {
    return want ? at::empty(sizes, options) : at::empty({0}, options);
  };
  const Tensor grad_residual = at::empty(s.sizes(), s.options());
  const Tensor grad_input = make(own_grad_input, s.sizes(), s.options());
  const Tensor grad_weight = make(wanted[2], normalized_shape, parameter);
  const Tensor grad_bias = make(wanted[3], normalized_shape, parameter);
  const auto results = [&]() -> FourTensors {
    return {grad_input, grad_residual, grad_weight, grad_bias};
  };
  if (args.rows == 0) {
    for (const Tensor& one : {grad_weight, grad_bias}) one.zero_();
    return results();
  }
  const auto typed = kernel_dtype(weight_dtype);
  TORCH_CHECK_NOT_IMPLEMENTED(typed, "fastdl::dropout_add_layer_norm_backward: no kernel for ",
                              weight_dtype);
  args.weight_dtype = *typed;
  args.grad_output = grad.const_data_ptr();
  args.grad_sum = pointer_or_null(other);
  args.sum = s.const_data_ptr();
  args.weight = pointer_or_null(w);
  args.mean = statistics.const_data_ptr();
  args.rstd = static_cast<const char*>(args.mean) + args.rows * statistics.element_size();
  args.grad_input = own_grad_input ? grad_input.mutable_data_ptr() : nullptr;
  args.grad_residual = grad_residual.mutable_data_ptr();
  args.grad_weight = wanted[2] ? grad_weight.mutable_data_ptr() : nullptr;
  args.grad_bias = wanted[3] ? grad_bias.mutable_data_ptr() : nullptr;
  Tensor partial_sums;
  const auto make_partial_sums = [&](int64_t tasks) {
    partial_sums = at::empty({tasks, 2, args.cols}, statistics.options());
    args.tasks = tasks;
    args.partial_sums = partial_sums.mutable_data_ptr();
  };
  run_kernel(
      s,
      [&]<CpuIsa isa> {
        make_partial_sums(backward_tasks(args.rows, args.cols));
        dropout_add_norm_backward<isa>(args);
      },
      [&](const auto& target) {
        make_partial_sums(dropout_add_norm_tasks_cuda(args, target));
        return dropout_add_norm_backward_cuda(args, target);
      });
  return results();
}

Tensor empty_meta(const Tensor& like) { return at::empty_symint(like.sym_sizes(), like.options()); }

ThreeTensors forward_meta(const Tensor& input, const Tensor&, c10::SymIntArrayRef normalized_shape,
                          const OptionalTensor&, const OptionalTensor&, double, int64_t, double) {
  c10::SymInt rows = 1;
  for (const auto& size : input.sym_sizes().slice(0, input.dim() - normalized_shape.size())) {
    rows *= size;
  }
  return {empty_meta(input), empty_meta(input),
          at::empty_symint({c10::SymInt(2), rows}, input.options().dtype(statistics_dtype(input)))};
}

std::tuple<Tensor, Tensor> output_and_sum_meta(const Tensor& input, const Tensor&,
                                               c10::SymIntArrayRef, const OptionalTensor&,
                                               const OptionalTensor&, double, int64_t, double) {
  return {empty_meta(input), empty_meta(input)};
}

FourTensors backward_meta(const Tensor&, const OptionalTensor&, const Tensor& sum,
                          c10::SymIntArrayRef normalized_shape, const OptionalTensor&,
                          const Tensor&, double p, int64_t, std::array<bool, 4> wanted,
                          at::ScalarType weight_dtype) {
  const auto parameter = sum.options().dtype(weight_dtype);
  const auto make = [](bool want, c10::SymIntArrayRef sizes, const at::TensorOptions& options) {
    return want ? at::empty_symint(sizes, options) : at::empty({0}, options);
  };
  return {make(wanted[0] && p > 0, sum.sym_sizes(), sum.options()), empty_meta(sum),
          make(wanted[2], normalized_shape, parameter),
          make(wanted[3], normalized_shape, parameter)};
}

TORCH_LIBRARY_FRAGMENT(fastdl, library) {
  library.def(
      "dropout_add_layer_norm(Tensor input, Tensor residual, SymInt[] normalized_shape, "
      "Tensor? weight, Tensor? bias, float p, int seed, float eps) -> (Tensor output, Tensor sum)");
  library.def(
      "dropout_add_layer_norm_forward(Tensor input, Tensor residual, SymInt[] normalized_shape, "
      "Tensor? weight, Tensor? bias, float p, int seed, float eps) -> "
      "(Tensor output, Tensor sum, Tensor statistics)");
  // grad_input is empty with p = 0: it is grad_residual.
  library.def(
      "dropout_add_layer_norm_backward(Tensor grad_output, Tensor? grad_sum, Tensor sum, "
      "SymInt[] normalized_shape, Tensor? weight, Tensor statistics, float p, int seed, "
      "bool[4] wanted, ScalarType weight_dtype) -> "
      "(Tensor grad_input, Tensor grad_residual, Tensor grad_weight, Tensor grad_bias)");
}
TORCH_LIBRARY_IMPL(fastdl, CPU, library) {
  library.impl("dropout_add_layer_norm", output_and_sum);
  library.impl("dropout_add_layer_norm_forward", forward_kernel);
  library.impl("dropout_add_layer_norm_backward", backward_kernel);
}
TORCH_LIBRARY_IMPL(fastdl, CUDA, library) {
  library.impl("dropout_add_layer_norm", output_and_sum);
  library.impl("dropout_add_layer_norm_forward", forward_kernel);
  library.impl("dropout_add_layer_norm_backward", backward_kernel);
}
TORCH_LIBRARY_IMPL(fastdl, Meta, library) {
  library.impl("dropout_add_layer_norm", output_and_sum_meta);
  library.impl("dropout_add_layer_norm_forward", forward_meta);
  library.impl("dropout_add_layer_norm_backward", backward_meta);
}

}  // namespace

const char* reason_of_dropout_add(const Tensor& input, const Tensor& residual,
                                  at::IntArrayRef normalized_shape, const Tensor& weight,
                                  const Tensor& bias) {
  if (residual.sizes() != input.sizes()) return "a residual of another shape";
  if (residual.scalar_type() != input.scalar_type()) return "a residual of another dtype";
  if (residual.device() != input.device()) return "a residual on another device";
  return reason_of_arguments(input, normalized_shape, weight, bias, /*kind=*/0);
}

}  // namespace fastdl
