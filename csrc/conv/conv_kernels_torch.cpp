// Runs the kernels of convolution: which one, its memory, its weight in the order that it reads.
#include "conv/conv_kernels_torch.h"

#include <ATen/ATen.h>

#include <atomic>

#include "common/parallel.h"
#include "conv/conv_torch.h"
#include "conv/conv_weight_cache_torch.h"
#include "torch/hand_over.h"
#include "torch/run_kernel.h"
#include "torch/workspace.h"

namespace fastdl {
namespace {

using at::MemoryFormat;
using at::Tensor;

std::atomic<bool> allow_winograd{true}, always_kernels{false};

DType dtype_of(const Tensor& x) { return *kernel_dtype(x.scalar_type()); }

ConvPlan plan_on_cpu(const Tensor& like, const ConvShape& shape, ConvDirection direction) {
  auto algorithm =
      choose_conv_algorithm(shape, direction, dtype_of(like), allow_winograd.load(), cpu_isa());
  if (algorithm == ConvAlgorithm::kNative && always_kernels) algorithm = ConvAlgorithm::kDirect;
  return plan_conv_algorithm(shape, direction, algorithm, num_threads(), cpu_isa());
}

// What allocate() gives, or nothing where there is no memory for it.
template <class Allocate>
auto if_memory_allows(Allocate&& allocate) -> std::optional<decltype(allocate())> {
  try {
    return allocate();
  } catch (const c10::Error&) {
    hand_over("convolution", "no memory for what its kernel needs");
    return std::nullopt;
  }
}

ConvWeightStrides strides_of(const Tensor& weight) {
  return {weight.stride(0), weight.stride(1), weight.stride(2), weight.stride(3)};
}

const void* pointer_or_null(const Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr() : nullptr;
}

PackedWeight packed_for(const Tensor& weight, const ConvShape& shape, ConvDirection direction,
                        const ConvPlan& plan, bool keep) {
  ConvPackArgs args{.weight = weight.const_data_ptr(),
                    .strides = strides_of(weight),
                    .packed_weight = nullptr,
                    .shape = shape,
                    .direction = direction,
                    .algorithm = plan.algorithm,
                    .dtype = dtype_of(weight)};
  keep = keep && can_keep_packed(weight);
  if (keep) {
    if (PackedWeight found = find_packed(weight, args, plan.packed_weight_bytes)) return found;
  }
  const auto packed = std::make_shared<c10::DataPtr>(
      keep ? c10::GetAllocator(c10::kCPU)->allocate(plan.packed_weight_bytes)
           : workspace_memory(plan.packed_weight_bytes));
  args.packed_weight = packed->get();
  call_best_isa([&]<CpuIsa isa> { conv_pack_weight<isa>(args); });
  if (keep) keep_packed(weight, args, plan.packed_weight_bytes, packed);
  return packed;
}

struct PlanMemory {
  PackedWeight packed;
  c10::DataPtr workspace;
};

std::optional<PlanMemory> memory_of_plan(const Tensor& weight, const ConvShape& shape,
                                         ConvDirection direction, const ConvPlan& plan, bool keep) {
  return if_memory_allows([&] {
    c10::DataPtr workspace = workspace_memory(plan.workspace_bytes);
    return PlanMemory{packed_for(weight, shape, direction, plan, keep), std::move(workspace)};
  });
}

}  // namespace

bool set_allow_winograd(bool allow) { return allow_winograd.exchange(allow); }
bool always_use_conv_kernels(bool always) { return always_kernels.exchange(always); }

bool conv_has_kernel(const Tensor& like, const ConvShape& shape, ConvDirection direction) {
  if (!kernel_dtype(like.scalar_type()) || like.scalar_type() == at::kDouble) return false;
  if (is_on_gpu(like)) return conv_has_cuda_kernel(like, shape, direction);
  return plan_on_cpu(like, shape, direction).algorithm != ConvAlgorithm::kNative;
}

Tensor run_conv_forward(const Tensor& input, const Tensor& weight, const Tensor& bias,
                        const Tensor& residual, const ConvShape& shape, bool relu,
                        bool keep_weight) {
  constexpr auto direction = ConvDirection::kForward;
  if (!conv_has_kernel(input, shape, direction)) return {};
  if (is_on_gpu(input)) return run_conv_forward_cuda(input, weight, bias, residual, shape, relu);
  const ConvPlan plan = plan_on_cpu(input, shape, direction);
  const auto memory = memory_of_plan(weight, shape, direction, plan, keep_weight);
  if (!memory) return {};
  const MemoryFormat format = conv_format(shape);
  const Tensor x = input.contiguous(format);
  const Tensor b = bias.defined() ? bias.contiguous() : bias;
  const Tensor z = residual.defined() ? residual.contiguous(format) : residual;
  const Tensor output =
      at::empty({shape.n, shape.out_channels, shape.h.output, shape.w.output}, x.options(), format);
  const ConvForwardArgs args{x.const_data_ptr(),
                             memory->packed->get(),
                             pointer_or_null(b),
                             pointer_or_null(z),
                             output.mutable_data_ptr(),
                             memory->workspace.get(),
                             shape,
                             dtype_of(x),
                             relu};
  call_best_isa([&]<CpuIsa isa> { conv_forward<isa>(args, plan); });
  return output;
}

Tensor run_conv_backward_input(const Tensor& grad_output, const Tensor& weight,
                               const ConvShape& shape) {
  constexpr auto direction = ConvDirection::kBackwardInput;
  if (!conv_has_kernel(grad_output, shape, direction)) return {};
  if (is_on_gpu(grad_output)) return run_conv_backward_input_cuda(grad_output, weight, shape);
  const ConvPlan plan = plan_on_cpu(grad_output, shape, direction);
  const auto memory = memory_of_plan(weight, shape, direction, plan, /*keep=*/false);
  if (!memory) return {};
  const Tensor dy = grad_output.contiguous(conv_format(shape));
  const Tensor grad_input = at::empty({shape.n, shape.in_channels, shape.h.input, shape.w.input},
                                      dy.options(), conv_format(shape));
  const ConvBackwardInputArgs args{dy.const_data_ptr(),
                                   memory->packed->get(),
                                   grad_input.mutable_data_ptr(),
                                   memory->workspace.get(),
                                   shape,
                                   dtype_of(dy)};
  call_best_isa([&]<CpuIsa isa> { conv_backward_input<isa>(args, plan); });
  return grad_input;
}

std::tuple<Tensor, Tensor> run_conv_backward_weight(const Tensor& grad_output, const Tensor& input,
                                                    const ConvShape& shape, bool wants_bias) {
  constexpr auto direction = ConvDirection::kBackwardWeight;
  if (!conv_has_kernel(input, shape, direction)) return {};
  if (is_on_gpu(input)) {
    return run_conv_backward_weight_cuda(grad_output, input, shape, wants_bias);
  }
  const ConvPlan plan = plan_on_cpu(input, shape, direction);
  const auto workspace = if_memory_allows([&] { return workspace_memory(plan.workspace_bytes); });
  if (!workspace) return {};
  const MemoryFormat format = conv_format(shape);
  const Tensor dy = grad_output.contiguous(format), x = input.contiguous(format);
  const bool kernel_sums = wants_bias && plan.algorithm == ConvAlgorithm::kDepthwise;
  auto [grad_weight, grad_bias] = empty_conv_gradients(x, shape, kernel_sums);
  const ConvBackwardWeightArgs args{x.const_data_ptr(),
                                    dy.const_data_ptr(),
                                    grad_weight.mutable_data_ptr(),
                                    strides_of(grad_weight),
                                    kernel_sums ? grad_bias.mutable_data_ptr() : nullptr,
                                    workspace->get(),
                                    shape,
                                    dtype_of(x)};
  call_best_isa([&]<CpuIsa isa> { conv_backward_weight<isa>(args, plan); });
  if (wants_bias && !kernel_sums) grad_bias = dy.sum({0, 2, 3});
  return {grad_weight, grad_bias};
}

}  // namespace fastdl
