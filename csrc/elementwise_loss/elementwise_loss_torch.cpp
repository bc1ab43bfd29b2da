// torch ops of the elementwise losses: checks, allocation, registration. Formulas:
// elementwise_loss_cpu.cpp.
#include "elementwise_loss/elementwise_loss_torch.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "torch/run_kernel.h"

namespace fastdl {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Whether element i in memory of both is the same element, so that they need no order of dims. The
// output and the gradients then lie in memory like them.
bool have_same_dense_layout(const Tensor& input, const Tensor& target) {
  return input.is_non_overlapping_and_dense() && input.sym_strides() == target.sym_strides();
}

Tensor in_kernel_order(const Tensor& tensor, bool as_it_lies) {
  return aligned_on_gpu(as_it_lies ? tensor : tensor.contiguous());
}

// Element i of the loss has element i % period of the result, which is `weight` broadcast to the
// shape of the input. A short one is repeated: pieces of a vector or less would be slow.
Tensor expand_weight(const OptionalTensor& weight, const Tensor& input) {
  constexpr int64_t worth_a_piece = 1024;
  if (!weight.has_value() || !weight->defined() || input.numel() == 0) return Tensor();
  const Tensor full = weight->expand_as(input);
  Tensor period = full;
  while (period.dim() > 0 && (period.stride(0) == 0 || period.size(0) == 1)) {
    period = period.select(0, 0);
  }
  if (period.dim() == full.dim()) return aligned_on_gpu(full.contiguous());
  period = period.reshape({-1});
  const int64_t times = std::min(worth_a_piece, input.numel()) / period.numel();
  return aligned_on_gpu(times > 1 ? period.repeat({times}) : period.contiguous());
}

// What the arguments need to live while a kernel reads them.
struct Held {
  Tensor input, target, weight, pos_weight;
};

Held fill_terms(ElementwiseLossTerms& terms, const Tensor& input, const Tensor& target,
                const OptionalTensor& weight, const OptionalTensor& pos_weight, int64_t reduction,
                int64_t kind, double threshold) {
  TORCH_CHECK(kind >= 0 && kind < 5, "fastdl::elementwise_loss: kind must be 0 to 4, not ", kind);
  TORCH_CHECK(reduction >= 0 && reduction < 3,
              "fastdl::elementwise_loss: reduction must be 0, 1 or 2, not ", reduction);
  const bool weighted = (weight.has_value() && weight->defined()) ||
                        (pos_weight.has_value() && pos_weight->defined());
  TORCH_CHECK(!weighted || kind == 4, "fastdl::elementwise_loss: weights are for kind 4 alone");
  const auto dtype = kernel_dtype(input.scalar_type());
  TORCH_CHECK_NOT_IMPLEMENTED(dtype, "fastdl::elementwise_loss: no kernel for ",
                              input.scalar_type());
  TORCH_CHECK(input.sizes() == target.sizes(),
              "fastdl::elementwise_loss: input and target must agree in shape");
  for (const Tensor& other : {target, weight.value_or(Tensor()), pos_weight.value_or(Tensor())}) {
    TORCH_CHECK(!other.defined() || (other.scalar_type() == input.scalar_type() &&
                                     other.device() == input.device()),
                "fastdl::elementwise_loss: all tensors must agree in dtype and device");
  }
  const bool as_it_lies = !weighted && have_same_dense_layout(input, target);
  Held held{in_kernel_order(input, as_it_lies), in_kernel_order(target, as_it_lies),
            expand_weight(weight, input), expand_weight(pos_weight, input)};
  const auto period = [&](const Tensor& tensor) {
    return tensor.defined() ? tensor.numel() : std::max<int64_t>(input.numel(), 1);
  };
  const auto pointer = [](const Tensor& tensor) {
    return tensor.defined() ? tensor.const_data_ptr() : nullptr;
  };
  terms = {held.input.const_data_ptr(),
           held.target.const_data_ptr(),
           pointer(held.weight),
           pointer(held.pos_weight),
           input.numel(),
           period(held.weight),
           period(held.pos_weight),
           threshold,
           static_cast<LossKind>(kind),
           static_cast<LossReduction>(reduction),
           *dtype};
  return held;
}

// An uninitialised tensor whose element i in memory belongs to that of the input of the kernel.
template <class Weight>
Tensor empty_in_kernel_order(const Tensor& input, const Tensor& target, const Weight& weight,
                             const Weight& pos_weight) {
  const bool as_it_lies =
      !weight.has_value() && !pos_weight.has_value() && have_same_dense_layout(input, target);
  return as_it_lies ? at::empty_like(input) : at::empty_like(input, at::MemoryFormat::Contiguous);
}

Tensor loss_kernel(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                   const OptionalTensor& pos_weight, int64_t reduction, int64_t kind,
                   double threshold) {
  ElementwiseLossForwardArgs args{};
  const Held held =
      fill_terms(args.terms, input, target, weight, pos_weight, reduction, kind, threshold);
  const Tensor output = reduction == 0 ? empty_in_kernel_order(input, target, weight, pos_weight)
                                       : at::empty({}, input.options());
  if (output.numel() == 0) return output;
  args.output = output.mutable_data_ptr();
  run_kernel(
      input, [&]<CpuIsa isa> { elementwise_loss_forward<isa>(args); },
      [&](const auto& gpu) {
        const Scratch scratch(input, elementwise_loss_scratch_cuda(args, gpu));
        args.scratch = scratch.data();
        return elementwise_loss_forward_cuda(args, gpu);
      });
  return output;
}

// The gradients of input and target; an empty tensor for one that is not wanted.
std::tuple<Tensor, Tensor> loss_backward_kernel(const Tensor& grad_output, const Tensor& input,
                                                const Tensor& target, const OptionalTensor& weight,
                                                const OptionalTensor& pos_weight, int64_t reduction,
                                                int64_t kind, double threshold,
                                                std::array<bool, 2> wanted) {
  ElementwiseLossBackwardArgs args{};
  const Held held =
      fill_terms(args.terms, input, target, weight, pos_weight, reduction, kind, threshold);
  TORCH_CHECK(reduction == 0 ? grad_output.sizes() == input.sizes() : grad_output.numel() == 1,
              "fastdl::elementwise_loss_backward: grad_output is not of the loss's shape");
  TORCH_CHECK(
      grad_output.scalar_type() == input.scalar_type() && grad_output.device() == input.device(),
      "fastdl::elementwise_loss_backward: grad_output must agree with input in dtype and "
      "device");
  const auto make_grad = [&](bool want) {
    return want ? empty_in_kernel_order(input, target, weight, pos_weight)
                : at::empty({0}, input.options());
  };
  std::tuple<Tensor, Tensor> grads{make_grad(wanted[0]), make_grad(wanted[1])};
  if (input.numel() == 0 || !(wanted[0] || wanted[1])) return grads;
  // A sum over the losses gives one number, expanded.
  args.same_grad_output = true;
  for (int64_t d = 0; d < grad_output.dim(); ++d) {
    args.same_grad_output &= grad_output.stride(d) == 0 || grad_output.size(d) == 1;
  }
  Tensor grad = grad_output;
  if (!args.same_grad_output) {
    const Tensor& like = std::get<0>(grads).numel() > 0 ? std::get<0>(grads) : std::get<1>(grads);
    if (grad.strides() != like.strides()) grad = at::empty_like(like).copy_(grad_output);
    grad = aligned_on_gpu(grad);
  }
  args.grad_output = grad.const_data_ptr();
  args.grad_input = wanted[0] ? std::get<0>(grads).mutable_data_ptr() : nullptr;
  args.grad_target = wanted[1] ? std::get<1>(grads).mutable_data_ptr() : nullptr;
  run_kernel(
      input, [&]<CpuIsa isa> { elementwise_loss_backward<isa>(args); },
      [&](const auto& gpu) { return elementwise_loss_backward_cuda(args, gpu); });
  return grads;
}

Tensor loss_meta(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                 const OptionalTensor& pos_weight, int64_t reduction, int64_t, double) {
  return reduction == 0 ? empty_in_kernel_order(input, target, weight, pos_weight)
                        : at::empty({}, input.options());
}

std::tuple<Tensor, Tensor> loss_backward_meta(const Tensor&, const Tensor& input,
                                              const Tensor& target, const OptionalTensor& weight,
                                              const OptionalTensor& pos_weight, int64_t, int64_t,
                                              double, std::array<bool, 2> wanted) {
  const auto make_grad = [&](bool want) {
    return want ? empty_in_kernel_order(input, target, weight, pos_weight)
                : at::empty({0}, input.options());
  };
  return {make_grad(wanted[0]), make_grad(wanted[1])};
}

TORCH_LIBRARY_FRAGMENT(fastdl, library) {
  // reduction: 0 none, 1 mean, 2 sum. kind: 0 mse, 1 l1, 2 smooth_l1, 3 huber,
  // 4 binary cross-entropy of logits, which alone has weights. threshold: beta or delta.
  library.def(
      "elementwise_loss(Tensor input, Tensor target, Tensor? weight, Tensor? pos_weight, "
      "int reduction, int kind, float threshold) -> Tensor");
  library.def(
      "elementwise_loss_backward(Tensor grad_output, Tensor input, Tensor target, Tensor? weight, "
      "Tensor? pos_weight, int reduction, int kind, float threshold, bool[2] wanted) -> "
      "(Tensor grad_input, Tensor grad_target)");
}
TORCH_LIBRARY_IMPL(fastdl, CPU, library) {
  library.impl("elementwise_loss", loss_kernel);
  library.impl("elementwise_loss_backward", loss_backward_kernel);
}
TORCH_LIBRARY_IMPL(fastdl, CUDA, library) {
  library.impl("elementwise_loss", loss_kernel);
  library.impl("elementwise_loss_backward", loss_backward_kernel);
}
TORCH_LIBRARY_IMPL(fastdl, Meta, library) {
  library.impl("elementwise_loss", loss_meta);
  library.impl("elementwise_loss_backward", loss_backward_meta);
}

}  // namespace
}  // namespace fastdl
