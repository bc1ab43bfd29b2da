// torch ops of clipping by the total norm.
#include "optimizer/grad_norm_torch.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "optimizer/grad_norm.h"
#include "torch/hand_over.h"
#include "torch/run_kernel.h"

namespace fastdl {
namespace {

using at::Tensor;
using at::TensorList;

// Why no kernel covers these gradients, or nullptr.
const char* reason_of_grads(TensorList grads) {
  for (const Tensor& grad : grads) {
    if (const char* reason = reason_to_hand_over(grad)) return reason;
    if (!grad.is_non_overlapping_and_dense()) return "a gradient with gaps or overlaps in memory";
    if (grad.device() != grads[0].device()) return "gradients on several devices";
  }
  return any_overlap(grads) ? "gradients that share memory" : nullptr;
}

void check_grads(const char* op, TensorList grads) {
  TORCH_CHECK(!grads.empty(), op, ": there is no gradient");
  const char* reason = reason_of_grads(grads);
  TORCH_CHECK(reason == nullptr, op, ": ", reason);
}

std::vector<GradTensor> make_table(TensorList grads, bool changes) {
  std::vector<GradTensor> table;
  table.reserve(grads.size());
  int64_t blocks = 0;
  for (const Tensor& grad : grads) {
    if (changes) mark_changed(grad);
    if (grad.numel() == 0) continue;
    table.push_back({const_cast<void*>(grad.const_data_ptr()), grad.numel(), blocks,
                     *kernel_dtype(grad.scalar_type())});
    blocks += tensor_blocks(grad.numel());
  }
  return table;
}

at::ScalarType norm_dtype(TensorList grads) {
  at::ScalarType dtype = grads[0].scalar_type();
  for (const Tensor& grad : grads) dtype = at::promote_types(dtype, grad.scalar_type());
  return dtype;
}

std::tuple<Tensor, Tensor> grad_norm_kernel(TensorList grads, double max_norm,
                                            const OptionalTensor& grad_scale) {
  check_grads("fastdl::grad_norm", grads);
  const Tensor& like = grads[0];
  const std::vector<GradTensor> table = make_table(grads, /*changes=*/false);
  const auto scalar = like.options().dtype(at::kDouble);
  const Tensor total = at::empty({}, scalar), coefficient = at::empty({}, scalar);
  const auto count = static_cast<int64_t>(table.size());
  const Tensor block_sums = at::empty({table_blocks(table.data(), count)}, scalar);
  GradNormArgs args{table.data(),
                    count,
                    block_sums.mutable_data_ptr<double>(),
                    max_norm,
                    1,
                    total.mutable_data_ptr<double>(),
                    coefficient.mutable_data_ptr<double>()};
  const bool scaled = grad_scale.has_value() && grad_scale->defined();
  if (scaled && !is_on_gpu(like)) args.grad_scale = grad_scale->item<double>();
  run_kernel(
      like, [&]<CpuIsa isa> { grad_norm<isa>(args); },
      [&](const auto& target) {
        const Tensor scale =
            scaled ? grad_scale->to(like.options().dtype(at::kFloat), /*non_blocking=*/true)
                   : Tensor();
        return grad_norm_cuda(args, scaled ? scale.const_data_ptr<float>() : nullptr, target);
      });
  return {total.to(norm_dtype(grads)), coefficient};
}

std::tuple<Tensor, Tensor> grad_norm_meta(TensorList grads, double, const OptionalTensor&) {
  TORCH_CHECK(!grads.empty(), "fastdl::grad_norm: there is no gradient");
  const auto options = grads[0].options();
  return {at::empty({}, options.dtype(norm_dtype(grads))),
          at::empty({}, options.dtype(at::kDouble))};
}

void scale_grads_kernel(TensorList grads, const Tensor& coefficient) {
  check_grads("fastdl::scale_grads_", grads);
  TORCH_CHECK(coefficient.numel() == 1, "fastdl::scale_grads_: coefficient has ",
              coefficient.numel(), " elements, not one");
  const std::vector<GradTensor> table = make_table(grads, /*changes=*/true);
  const auto count = static_cast<int64_t>(table.size());
  run_kernel(
      grads[0],
      [&]<CpuIsa isa> { scale_grads<isa>(table.data(), count, coefficient.item<double>()); },
      [&](const auto& target) {
        const Tensor factor =
            coefficient.to(grads[0].options().dtype(at::kDouble), /*non_blocking=*/true);
        return scale_grads_cuda(table.data(), count, factor.const_data_ptr<double>(), target);
      });
}

void scale_grads_meta(TensorList, const Tensor&) {}

TORCH_LIBRARY_FRAGMENT(fastdl, library) {
  library.def(
      "grad_norm(Tensor[] grads, float max_norm, Tensor? grad_scale=None) -> (Tensor, Tensor)");
  library.def("scale_grads_(Tensor(a!)[] grads, Tensor coefficient) -> ()");
}
TORCH_LIBRARY_IMPL(fastdl, CPU, library) {
  library.impl("grad_norm", grad_norm_kernel);
  library.impl("scale_grads_", scale_grads_kernel);
}
TORCH_LIBRARY_IMPL(fastdl, CUDA, library) {
  library.impl("grad_norm", grad_norm_kernel);
  library.impl("scale_grads_", scale_grads_kernel);
}
TORCH_LIBRARY_IMPL(fastdl, Meta, library) {
  library.impl("grad_norm", grad_norm_meta);
  library.impl("scale_grads_", scale_grads_meta);
}
// Like a step, clipping has no gradient of its own.
TORCH_LIBRARY_IMPL(fastdl, Autograd, library) {
  library.impl("grad_norm", torch::CppFunction::makeFallthrough());
  library.impl("scale_grads_", torch::CppFunction::makeFallthrough());
}

std::vector<Tensor> tensors_of(const PlainTensors& plain_tensors) {
  std::vector<Tensor> tensors;
  tensors.reserve(plain_tensors.size());
  for (const PlainTensor& plain : plain_tensors) tensors.push_back(plain.tensor);
  return tensors;
}

}  // namespace

std::optional<std::tuple<Tensor, Tensor>> grad_norm_of(const PlainTensors& grads, Number max_norm,
                                                       const OptionalPlainTensor& grad_scale) {
  static const auto op = find_op<decltype(grad_norm_kernel)>("fastdl::grad_norm");
  const std::vector<Tensor> tensors = tensors_of(grads);
  if (const char* reason = reason_of_grads(tensors)) {
    hand_over("clip_grad_norm_", reason);
    return std::nullopt;
  }
  return op.call(tensors, max_norm, plain(grad_scale));
}

void scale_all_grads(const PlainTensors& grads, const PlainTensor& coefficient) {
  static const auto op = find_op<decltype(scale_grads_kernel)>("fastdl::scale_grads_");
  op.call(tensors_of(grads), coefficient.tensor);
}

}  // namespace fastdl
