// torch ops of group_norm: checks, allocation, autograd. Formulas: group_norm_forward_cpu.cpp.
#include "group_norm/group_norm_torch.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "torch/channel_norm.h"
#include "torch/hand_over.h"
#include "torch/run_kernel.h"

namespace fastdl {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using ThreeTensors = std::tuple<Tensor, Tensor, Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Why the kernels do not cover these shapes and types (undefined tensors for None), or nullptr.
const char* reason_of_arguments(const Tensor& x, int64_t groups, const Tensor& weight,
                                const Tensor& bias) {
  if (x.dim() < 2) return "an input of less than 2 dimensions";
  if (x.numel() == 0) return "an empty input";
  if (groups < 1 || x.size(1) % groups != 0) return "num_groups does not divide the channels";
  return reason_of_channel_parameters(x, {&weight, &bias});
}

// As in torch: channels last where the input is, on the CPU alone.
at::MemoryFormat format_of(const Tensor& x) {
  return x.is_cuda() ? at::MemoryFormat::Contiguous : x.suggest_memory_format();
}

template <class Args>
void fill_common(Args& args, const Tensor& x, int64_t groups, const Tensor& weight,
                 const Tensor& bias) {
  const char* reason = reason_of_arguments(x, groups, weight, bias);
  TORCH_CHECK(reason == nullptr, "fastdl::group_norm: ", reason);
  const auto dtype = kernel_dtype(x.scalar_type());
  TORCH_CHECK_NOT_IMPLEMENTED(dtype, "fastdl::group_norm: no kernel for ", x.scalar_type());
  args.dtype = args.weight_dtype = *dtype;
  for (const Tensor* parameter : {&weight, &bias}) {
    if (parameter->defined()) args.weight_dtype = *kernel_dtype(parameter->scalar_type());
  }
  args.shape = {x.size(0), x.size(1), x.numel() / (x.size(0) * x.size(1)), groups,
                !x.is_contiguous()};
  args.input = x.const_data_ptr();
  args.weight = pointer_or_null(weight);
}

// statistics: [mean; rstd] of each group
std::tuple<Tensor, Tensor> group_norm_forward_kernel(const Tensor& input, int64_t num_groups,
                                                     const OptionalTensor& weight,
                                                     const OptionalTensor& bias, double eps) {
  const auto format = format_of(input);
  const Tensor x = aligned_on_gpu(input.contiguous(format));
  const Tensor w = contiguous_or_undefined(weight), b = contiguous_or_undefined(bias);
  GroupNormForwardArgs args{};
  fill_common(args, x, num_groups, w, b);
  const Tensor output = at::empty(x.sizes(), x.options(), format);
  const Tensor statistics =
      at::empty({2, args.shape.batch, num_groups}, channel_statistics_options(x));
  char* const data = static_cast<char*>(statistics.mutable_data_ptr());
  args.bias = pointer_or_null(b);
  args.output = output.mutable_data_ptr();
  args.mean = data;
  args.rstd = data + args.shape.batch * num_groups * statistics.element_size();
  args.eps = eps;
  run_kernel(
      x, [&]<CpuIsa isa> { group_norm_forward<isa>(args); },
      [&](const auto& target) {
        const Scratch scratch(x, group_norm_forward_scratch_cuda(args, target));
        args.scratch = scratch.data();
        return group_norm_forward_cuda(args, target);
      });
  return {output, statistics};
}

Tensor group_norm_kernel(const Tensor& input, int64_t num_groups, const OptionalTensor& weight,
                         const OptionalTensor& bias, double eps) {
  return std::get<0>(group_norm_forward_kernel(input, num_groups, weight, bias, eps));
}

// The gradients of input, weight and bias; an empty tensor for each that is not wanted.
ThreeTensors group_norm_backward_kernel(const Tensor& grad_output, const Tensor& input,
                                        int64_t num_groups, const OptionalTensor& weight,
                                        const Tensor& statistics, std::array<bool, 3> wanted,
                                        at::ScalarType weight_dtype) {
  check_same_device("fastdl::group_norm_backward", input, grad_output, weight, statistics);
  const auto format = format_of(input);
  const Tensor x = aligned_on_gpu(input.contiguous(format));
  const Tensor w = contiguous_or_undefined(weight), saved = statistics.contiguous();
  GroupNormBackwardArgs args{};
  fill_common(args, x, num_groups, w, Tensor());
  const auto dtype = kernel_dtype(weight_dtype);
  TORCH_CHECK(
      dtype && (w.defined() ? dtype == args.weight_dtype : fits_channel_norm(x, weight_dtype)),
      "fastdl::group_norm_backward: weight_dtype must be that of weight and bias");
  TORCH_CHECK(grad_output.sizes() == x.sizes() && grad_output.dtype() == x.dtype(),
              "fastdl::group_norm_backward: grad_output must have the input's shape and dtype");
  TORCH_CHECK(saved.sizes() == at::IntArrayRef({2, args.shape.batch, num_groups}) &&
                  saved.dtype() == channel_statistics_options(x).dtype(),
              "fastdl::group_norm_backward: statistics must be those of the forward");
  const Tensor grad = aligned_on_gpu(grad_output.contiguous(format));
  const auto parameter_options = x.options().dtype(weight_dtype);
  const Tensor grad_input =
      wanted[0] ? at::empty(x.sizes(), x.options(), format) : at::empty({0}, x.options());
  const Tensor grad_weight = at::empty({wanted[1] ? args.shape.channels : 0}, parameter_options);
  const Tensor grad_bias = at::empty({wanted[2] ? args.shape.channels : 0}, parameter_options);
  const char* const data = static_cast<const char*>(saved.const_data_ptr());
  args.weight_dtype = *dtype;
  args.grad_output = grad.const_data_ptr();
  args.mean = data;
  args.rstd = data + args.shape.batch * num_groups * saved.element_size();
  args.grad_input = wanted[0] ? grad_input.mutable_data_ptr() : nullptr;
  args.grad_weight = wanted[1] ? grad_weight.mutable_data_ptr() : nullptr;
  args.grad_bias = wanted[2] ? grad_bias.mutable_data_ptr() : nullptr;
  run_kernel(
      x, [&]<CpuIsa isa> { group_norm_backward<isa>(args); },
      [&](const auto& target) {
        const Scratch scratch(x, group_norm_backward_scratch_cuda(args, target));
        args.scratch = scratch.data();
        return group_norm_backward_cuda(args, target);
      });
  return {grad_input, grad_weight, grad_bias};
}

std::tuple<Tensor, Tensor> group_norm_forward_meta(const Tensor& input, c10::SymInt num_groups,
                                                   const OptionalTensor& weight,
                                                   const OptionalTensor& bias, double) {
  check_same_device("fastdl::group_norm", input, weight, bias);
  return {at::empty_symint(input.sym_sizes(), input.options(), format_of(input)),
          at::empty_symint({c10::SymInt(2), input.sym_size(0), num_groups},
                           channel_statistics_options(input))};
}

Tensor group_norm_meta(const Tensor& input, c10::SymInt num_groups, const OptionalTensor& weight,
                       const OptionalTensor& bias, double eps) {
  return std::get<0>(group_norm_forward_meta(input, num_groups, weight, bias, eps));
}

ThreeTensors group_norm_backward_meta(const Tensor& grad_output, const Tensor& input, c10::SymInt,
                                      const OptionalTensor& weight, const Tensor& statistics,
                                      std::array<bool, 3> wanted, at::ScalarType weight_dtype) {
  check_same_device("fastdl::group_norm_backward", input, grad_output, weight, statistics);
  const auto of_channels = [&](bool want) {
    return at::empty_symint({want ? input.sym_size(1) : c10::SymInt(0)},
                            input.options().dtype(weight_dtype));
  };
  return {wanted[0] ? at::empty_symint(input.sym_sizes(), input.options(), format_of(input))
                    : at::empty({0}, input.options()),
          of_channels(wanted[1]), of_channels(wanted[2])};
}

Tensor call_group_norm(const Tensor& input, c10::SymInt num_groups, const OptionalTensor& weight,
                       const OptionalTensor& bias, double eps) {
  static const auto op = find_op<decltype(call_group_norm)>("fastdl::group_norm");
  return op.call(input, num_groups, weight, bias, eps);
}

std::tuple<Tensor, Tensor> call_forward(const Tensor& input, c10::SymInt num_groups,
                                        const OptionalTensor& weight, const OptionalTensor& bias,
                                        double eps) {
  static const auto op = find_op<decltype(call_forward)>("fastdl::group_norm_forward");
  return op.call(input, num_groups, weight, bias, eps);
}

ThreeTensors call_backward(const Tensor& grad_output, const Tensor& input, c10::SymInt num_groups,
                           const OptionalTensor& weight, const Tensor& statistics,
                           std::array<bool, 3> wanted, at::ScalarType weight_dtype) {
  static const auto op = find_op<decltype(call_backward)>("fastdl::group_norm_backward");
  return op.call(grad_output, input, num_groups, weight, statistics, wanted, weight_dtype);
}

// The same gradients from native ops, which torch can differentiate again.
variable_list differentiable_backward(const Tensor& grad_output, const Tensor& input,
                                      int64_t groups, const Tensor& weight, double eps,
                                      std::array<bool, 3> wanted, at::ScalarType weight_dtype) {
  const auto dtype = input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const int64_t batch = input.size(0), channels = input.size(1);
  const auto by_group = [&](const Tensor& value) {
    return value.to(dtype).reshape({batch, groups, channels / groups, -1});
  };
  const auto mean = [](const Tensor& value) { return value.mean({2, 3}, /*keepdim=*/true); };
  const auto sum = [&](const Tensor& value) {
    return value.sum({0, 3}).reshape({channels}).to(weight_dtype);
  };
  const Tensor grad = by_group(grad_output), x = by_group(input);
  const Tensor centred = x - mean(x);
  const Tensor rstd = (mean(centred.square()) + eps).rsqrt();
  const Tensor normalised = centred * rstd;
  variable_list grads(3);
  if (wanted[0]) {
    Tensor g = grad;
    if (weight.defined()) g = g * weight.to(dtype).reshape({1, groups, channels / groups, 1});
    g = (g - mean(g) - normalised * mean(g * normalised)) * rstd;
    grads[0] = g.reshape(input.sizes()).to(input.scalar_type());
  }
  if (wanted[1]) grads[1] = sum(grad * normalised);
  if (wanted[2]) grads[2] = sum(grad);
  return grads;
}

struct GroupNormFunction : torch::autograd::Function<GroupNormFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, c10::SymInt num_groups,
                        const OptionalTensor& weight, const OptionalTensor& bias, double eps) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [output, statistics] = call_forward(input, num_groups, weight, bias, eps);
    const Tensor w = weight.value_or(Tensor()), b = bias.value_or(Tensor());
    ctx->save_for_backward({input, w, statistics});
    ctx->saved_data["num_groups"] = num_groups;
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["has_bias"] = b.defined();
    ctx->saved_data["weight_dtype"] = (w.defined() ? w : b.defined() ? b : input).scalar_type();
    return output;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list results(5);
    if (!grads[0].defined()) return results;
    const auto saved = ctx->get_saved_variables();
    const Tensor &input = saved[0], &weight = saved[1], &statistics = saved[2];
    const c10::SymInt groups = ctx->saved_data["num_groups"].toSymInt();
    const auto weight_dtype = ctx->saved_data["weight_dtype"].toScalarType();
    // Gradients are counted by the tensors that forward was given.
    std::array<bool, 3> wanted = {true, weight.defined(), ctx->saved_data["has_bias"].toBool()};
    size_t count = 0;
    for (bool& want : wanted) want = want && ctx->needs_input_grad(count++);
    const char* reason =
        at::GradMode::is_enabled() ? "create_graph=True" : reason_to_hand_over(grads[0]);
    variable_list computed(3);
    if (reason != nullptr) {
      hand_over("group_norm backward", reason);
      computed =
          differentiable_backward(grads[0], input, groups.guard_int(__FILE__, __LINE__), weight,
                                  ctx->saved_data["eps"].toDouble(), wanted, weight_dtype);
    } else {
      const at::AutoDispatchBelowADInplaceOrView below;
      std::tie(computed[0], computed[1], computed[2]) =
          call_backward(grads[0], input, groups, weight, statistics, wanted, weight_dtype);
    }
    if (wanted[0]) results[0] = computed[0];
    if (wanted[1]) results[2] = computed[1];
    if (wanted[2]) results[3] = computed[2];
    return results;
  }
};

Tensor group_norm_autograd(const Tensor& input, c10::SymInt num_groups,
                           const OptionalTensor& weight, const OptionalTensor& bias, double eps) {
  if (any_requires_grad(input, weight, bias)) {
    return GroupNormFunction::apply(input, num_groups, weight, bias, eps);
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_group_norm(input, num_groups, weight, bias, eps);
}

TORCH_LIBRARY_FRAGMENT(fastdl, library) {
  const std::string arguments =
      "(Tensor input, SymInt num_groups, Tensor? weight, Tensor? bias, float eps) -> ";
  const std::string with_statistics = arguments + "(Tensor output, Tensor statistics)";
  library.def(torch::schema(("group_norm" + arguments + "Tensor").c_str()));
  library.def(torch::schema(("group_norm_forward" + with_statistics).c_str()));
  library.def(
      "group_norm_backward(Tensor grad_output, Tensor input, SymInt num_groups, Tensor? weight, "
      "Tensor statistics, bool[3] wanted, ScalarType weight_dtype) -> "
      "(Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");
}
TORCH_LIBRARY_IMPL(fastdl, CPU, library) {
  library.impl("group_norm", group_norm_kernel);
  library.impl("group_norm_forward", group_norm_forward_kernel);
  library.impl("group_norm_backward", group_norm_backward_kernel);
}
TORCH_LIBRARY_IMPL(fastdl, CUDA, library) {
  library.impl("group_norm", group_norm_kernel);
  library.impl("group_norm_forward", group_norm_forward_kernel);
  library.impl("group_norm_backward", group_norm_backward_kernel);
}
TORCH_LIBRARY_IMPL(fastdl, Meta, library) {
  library.impl("group_norm", group_norm_meta);
  library.impl("group_norm_forward", group_norm_forward_meta);
  library.impl("group_norm_backward", group_norm_backward_meta);
}
TORCH_LIBRARY_IMPL(fastdl, Autograd, library) {
  library.impl("group_norm", group_norm_autograd);
  library.impl("group_norm_forward", torch::autograd::autogradNotImplementedFallback());
  library.impl("group_norm_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace

std::optional<Tensor> group_norm(const PlainTensor& input, Integer num_groups,
                                 const std::optional<PlainTensor>& weight,
                                 const std::optional<PlainTensor>& bias, Number eps) {
  Tensor x = input.tensor, w = weight ? weight->tensor : Tensor(),
         b = bias ? bias->tensor : Tensor();
  const char* reason = reason_to_hand_over(x);
  if (reason == nullptr && w.defined()) reason = reason_to_hand_over(w);
  if (reason == nullptr && b.defined()) reason = reason_to_hand_over(b);
  if (reason == nullptr) {
    for (Tensor* tensor : {&x, &w, &b}) *tensor = autocast_to_float(*tensor);
    reason = reason_of_arguments(x, num_groups, w, b);
  }
  // torch counts otherwise: the channels of all samples' groups times the positions
  if (reason == nullptr && x.numel() / x.size(1) * (x.size(1) / num_groups) == 1) {
    reason = "one value per group";
  }
  if (reason == nullptr && any_requires_grad(x, w, b) &&
      (x.is_inference() || (w.defined() && w.is_inference()))) {
    reason = "an inference tensor that the backward would need";
  }
  if (reason != nullptr) {
    hand_over("group_norm", reason);
    return std::nullopt;
  }
  return call_group_norm(x, c10::SymInt(num_groups.value), w, b, eps);
}

}  // namespace fastdl
