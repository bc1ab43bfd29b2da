// torch ops of cross_entropy and nll_loss: checks and allocation. Formulas: cross_entropy.h.
#include "cross_entropy/cross_entropy_torch.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "torch/run_kernel.h"

namespace fastdl {
namespace {

using at::ScalarType;
using at::Tensor;
using TwoTensors = std::tuple<Tensor, Tensor>;
using ThreeTensors = std::tuple<Tensor, Tensor, Tensor>;

const void* pointer_or_null(const Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr() : nullptr;
}

// Whether the classes lie side by side in memory though they are not the last dimension
// (channels_last): such logits are rows.
bool has_class_rows(const Tensor& logits) {
  return logits.dim() > 2 && !logits.is_contiguous() && logits.movedim(1, -1).is_contiguous();
}

Tensor as_rows(const Tensor& tensor, bool rows) {
  return aligned_on_gpu((rows ? tensor.movedim(1, -1) : tensor).contiguous());
}

Tensor empty_gradient(const Tensor& logits) {
  if (!has_class_rows(logits)) return at::empty_like(logits, at::MemoryFormat::Contiguous);
  return at::empty_like(logits.movedim(1, -1), at::MemoryFormat::Contiguous).movedim(-1, 1);
}

// The shape of the losses of rows, as torch gives them for reduction="none".
std::vector<c10::SymInt> row_shape(const Tensor& logits) {
  std::vector<c10::SymInt> shape = logits.sym_sizes().vec();
  shape.erase(shape.begin() + class_dim(logits));
  return shape;
}

// One call of cross_entropy: keeps the tensors that its arguments point to.
struct Call {
  bool rows;
  Tensor x, target, weight;
  CrossEntropyArgs args;
  int64_t row_count;

  Call(const Tensor& input, const Tensor& target_, const OptionalTensor& weight_,
       int64_t ignore_index, double label_smoothing)
      : rows(has_class_rows(input)) {
    const Tensor given = weight_.value_or(Tensor());
    const char* reason = reason_of_loss(input.sizes(), input, target_, given,
                                        /*autocast=*/true, label_smoothing);
    TORCH_CHECK(reason == nullptr, "fastdl::cross_entropy: ", reason);
    const auto dtype = kernel_dtype(input.scalar_type());
    TORCH_CHECK_NOT_IMPLEMENTED(dtype, "fastdl::cross_entropy: no kernel for ",
                                input.scalar_type());
    x = as_rows(input, rows);
    weight = statistics_of(given, input.scalar_type());
    args.input = x.const_data_ptr();
    if (has_probabilities(target_)) {
      target = as_rows(target_, rows);
      args.probabilities = target.const_data_ptr();
    } else {
      target = target_.to(at::kLong).contiguous();
      args.target = target.const_data_ptr<int64_t>();
    }
    args.weight = pointer_or_null(weight);
    args.classes = input.size(class_dim(input));
    row_count = x.numel() / args.classes;
    args.outer = rows || input.dim() == 1 ? row_count : input.size(0);
    args.inner = args.outer == 0 ? 1 : row_count / args.outer;
    args.ignore_index = ignore_index;
    args.label_smoothing = label_smoothing;
    args.dtype = *dtype;
  }

  Divisor divisor(int64_t reduction) const {
    return Divisor(x, target, weight, args.classes, reduction, args.ignore_index);
  }
  Tensor losses() {
    const Tensor memory =
        at::empty({row_count}, x.options().dtype(statistics_type(x.scalar_type())));
    args.losses = memory.mutable_data_ptr();
    return memory;
  }
  void forward() {
    if (row_count == 0) return;
    run_kernel(
        x, [&]<CpuIsa isa> { cross_entropy_forward<isa>(args); },
        [&](const auto& gpu) {
          const Scratch scratch(x, cross_entropy_forward_scratch_cuda(args, gpu));
          args.scratch = scratch.data();
          return cross_entropy_forward_cuda(args, gpu);
        });
  }
};

void check_reduction(int64_t reduction) {
  TORCH_CHECK(reduction >= 0 && reduction < 3, "fastdl: reduction must be 0, 1 or 2, not ",
              reduction);
}

Tensor cross_entropy_kernel(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                            int64_t reduction, int64_t ignore_index, double label_smoothing,
                            ScalarType dtype) {
  check_reduction(reduction);
  Call call(input, target, weight, ignore_index, label_smoothing);
  const Divisor divisor = call.divisor(reduction);
  const Tensor losses = call.losses();
  call.forward();
  return reduce_losses(losses, divisor, reduction, C10_AS_INTARRAYREF_SLOW(row_shape(input)),
                       dtype);
}

// The loss with the gradient of its sum or mean
TwoTensors cross_entropy_gradient_kernel(const Tensor& input, const Tensor& target,
                                         const OptionalTensor& weight, int64_t reduction,
                                         int64_t ignore_index, double label_smoothing,
                                         ScalarType dtype) {
  TORCH_CHECK(reduction == kMean || reduction == kTotal,
              "fastdl::cross_entropy_gradient: the losses must be summed");
  Call call(input, target, weight, ignore_index, label_smoothing);
  const Divisor divisor = call.divisor(reduction);
  const Tensor losses = call.losses(), grad_input = empty_gradient(input);
  call.args.divisor = divisor.pointer();
  call.args.grad_input = grad_input.mutable_data_ptr();
  call.forward();
  return {reduce_losses(losses, divisor, reduction, {}, dtype), grad_input};
}

// The loss with what the backward needs: statistics of the rows and the divisor
ThreeTensors cross_entropy_forward_kernel(const Tensor& input, const Tensor& target,
                                          const OptionalTensor& weight, int64_t reduction,
                                          int64_t ignore_index, double label_smoothing,
                                          ScalarType dtype) {
  check_reduction(reduction);
  Call call(input, target, weight, ignore_index, label_smoothing);
  const Divisor divisor = call.divisor(reduction);
  const Tensor losses = call.losses(),
               statistics = at::empty({3, call.row_count}, losses.options());
  call.args.statistics = statistics.mutable_data_ptr();
  call.forward();
  return {
      reduce_losses(losses, divisor, reduction, C10_AS_INTARRAYREF_SLOW(row_shape(input)), dtype),
      statistics, divisor.as_tensor(input)};
}

// grad_output as the kernels take it
Tensor grad_of_rows(const Tensor& grad_output, int64_t rows, ScalarType input_dtype) {
  TORCH_CHECK(grad_output.numel() == rows || grad_output.dim() == 0,
              "fastdl: grad_output does not fit the losses");
  return statistics_of(grad_output, input_dtype);
}

Tensor cross_entropy_backward_kernel(const Tensor& grad_output, const Tensor& input,
                                     const Tensor& target, const OptionalTensor& weight,
                                     const Tensor& statistics, const Tensor& divisor,
                                     int64_t ignore_index, double label_smoothing) {
  Call call(input, target, weight, ignore_index, label_smoothing);
  const Tensor grad = grad_of_rows(grad_output, call.row_count, input.scalar_type());
  TORCH_CHECK(statistics.is_contiguous() && statistics.numel() == 3 * call.row_count &&
                  statistics.scalar_type() == grad.scalar_type(),
              "fastdl::cross_entropy_backward: statistics do not fit the input");
  const Tensor grad_input = empty_gradient(input);
  const Divisor divide(divisor);
  call.args.grad_output = grad.const_data_ptr();
  call.args.grad_output_of_rows = grad_output.dim() > 0;
  call.args.divisor = divide.pointer();
  call.args.statistics = const_cast<void*>(statistics.const_data_ptr());
  call.args.grad_input = grad_input.mutable_data_ptr();
  if (call.row_count == 0) return grad_input;
  (void)call.divisor(kTotal);  // checks the targets
  run_kernel(
      input, [&]<CpuIsa isa> { cross_entropy_backward<isa>(call.args); },
      [&](const auto& gpu) { return cross_entropy_backward_cuda(call.args, gpu); });
  return grad_input;
}

// ---- nll_loss

struct NllCall {
  Tensor x, target, weight;
  NllLossArgs args;

  NllCall(const Tensor& input, const Tensor& target_, const OptionalTensor& weight_,
          int64_t ignore_index) {
    const Tensor given = weight_.value_or(Tensor());
    const char* reason = reason_of_loss(input.sizes(), input, target_, given, /*autocast=*/true, 0);
    TORCH_CHECK(reason == nullptr && !has_probabilities(target_),
                "fastdl::nll_loss: ", reason ? reason : "the target must have class indices");
    const auto dtype = kernel_dtype(input.scalar_type());
    TORCH_CHECK_NOT_IMPLEMENTED(dtype, "fastdl::nll_loss: no kernel for ", input.scalar_type());
    const int64_t dim = class_dim(input);
    // Of strided rows no more is read than of contiguous ones.
    x = input.dim() > 2 ? input.contiguous() : input;
    target = target_.to(at::kLong).contiguous();
    weight = statistics_of(given, input.scalar_type());
    args.target = target.const_data_ptr<int64_t>();
    args.weight = pointer_or_null(weight);
    args.classes = input.size(dim);
    args.outer = input.dim() == 1 ? 1 : input.size(0);
    args.inner = args.outer == 0 ? 1 : target.numel() / args.outer;
    args.outer_stride = input.dim() == 1 ? 0 : x.stride(0);
    args.class_stride = x.stride(dim);
    args.inner_stride = 1;
    args.ignore_index = ignore_index;
    args.dtype = *dtype;
  }

  Divisor divisor(int64_t reduction) const {
    return Divisor(x, target, weight, args.classes, reduction, args.ignore_index);
  }
};

TwoTensors nll_loss_forward_kernel(const Tensor& input, const Tensor& target,
                                   const OptionalTensor& weight, int64_t reduction,
                                   int64_t ignore_index, ScalarType dtype) {
  check_reduction(reduction);
  NllCall call(input, target, weight, ignore_index);
  const Divisor divisor = call.divisor(reduction);
  const Tensor losses =
      at::empty({call.target.numel()}, input.options().dtype(statistics_type(input.scalar_type())));
  call.args.input = call.x.const_data_ptr();
  call.args.losses = losses.mutable_data_ptr();
  if (losses.numel() > 0) {
    run_kernel(
        input, [&]<CpuIsa isa> { nll_loss_forward<isa>(call.args); },
        [&](const auto& gpu) { return nll_loss_forward_cuda(call.args, gpu); });
  }
  return {reduce_losses(losses, divisor, reduction, target.sizes(), dtype),
          divisor.as_tensor(input)};
}

Tensor nll_loss_kernel(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                       int64_t reduction, int64_t ignore_index, ScalarType dtype) {
  return std::get<0>(
      nll_loss_forward_kernel(input, target, weight, reduction, ignore_index, dtype));
}

Tensor nll_loss_backward_kernel(const Tensor& grad_output, const Tensor& input,
                                const Tensor& target, const OptionalTensor& weight,
                                const Tensor& divisor, int64_t ignore_index) {
  NllCall call(input, target, weight, ignore_index);
  const Tensor grad = grad_of_rows(grad_output, call.target.numel(), input.scalar_type());
  const Tensor grad_input = at::zeros_like(input, {}, {}, {}, {}, at::MemoryFormat::Contiguous);
  const Divisor divide(divisor);
  call.args.grad_output = grad.const_data_ptr();
  call.args.grad_output_of_rows = grad_output.dim() > 0;
  call.args.divisor = divide.pointer();
  call.args.grad_input = grad_input.mutable_data_ptr();
  if (grad_input.numel() == 0) return grad_input;
  (void)call.divisor(kTotal);  // checks the targets
  run_kernel(
      input, [&]<CpuIsa isa> { nll_loss_backward<isa>(call.args); },
      [&](const auto& gpu) { return nll_loss_backward_cuda(call.args, gpu); });
  return grad_input;
}

// ---- shapes alone

Tensor empty_loss(const Tensor& input, int64_t reduction, ScalarType dtype) {
  const auto options = input.options().dtype(dtype);
  return reduction == kNoReduction ? at::empty_symint(row_shape(input), options)
                                   : at::empty({}, options);
}

Tensor empty_divisor(const Tensor& input, int64_t reduction) {
  return at::empty({reduction == kMean ? 1 : 0}, input.options().dtype(at::kDouble));
}

Tensor cross_entropy_meta(const Tensor& input, const Tensor&, const OptionalTensor&,
                          int64_t reduction, int64_t, double, ScalarType dtype) {
  return empty_loss(input, reduction, dtype);
}

TwoTensors cross_entropy_gradient_meta(const Tensor& input, const Tensor&, const OptionalTensor&,
                                       int64_t reduction, int64_t, double, ScalarType dtype) {
  return {empty_loss(input, reduction, dtype), empty_gradient(input)};
}

ThreeTensors cross_entropy_forward_meta(const Tensor& input, const Tensor&, const OptionalTensor&,
                                        int64_t reduction, int64_t, double, ScalarType dtype) {
  const auto statistics = input.options().dtype(statistics_type(input.scalar_type()));
  const c10::SymInt rows = input.sym_numel() / input.sym_size(class_dim(input));
  return {empty_loss(input, reduction, dtype), at::empty_symint({3, rows}, statistics),
          empty_divisor(input, reduction)};
}

Tensor cross_entropy_backward_meta(const Tensor&, const Tensor& input, const Tensor&,
                                   const OptionalTensor&, const Tensor&, const Tensor&, int64_t,
                                   double) {
  return empty_gradient(input);
}

Tensor nll_loss_meta(const Tensor& input, const Tensor&, const OptionalTensor&, int64_t reduction,
                     int64_t, ScalarType dtype) {
  return empty_loss(input, reduction, dtype);
}

TwoTensors nll_loss_forward_meta(const Tensor& input, const Tensor&, const OptionalTensor&,
                                 int64_t reduction, int64_t, ScalarType dtype) {
  return {empty_loss(input, reduction, dtype), empty_divisor(input, reduction)};
}

Tensor nll_loss_backward_meta(const Tensor&, const Tensor& input, const Tensor&,
                              const OptionalTensor&, const Tensor&, int64_t) {
  return at::empty_like(input, at::MemoryFormat::Contiguous);
}

TORCH_LIBRARY_FRAGMENT(fastdl, library) {
  // reduction: 0 none, 1 mean, 2 sum; dtype: of the loss
  library.def(
      "cross_entropy(Tensor input, Tensor target, Tensor? weight, int reduction, "
      "int ignore_index, float label_smoothing, ScalarType dtype) -> Tensor");
  library.def(
      "cross_entropy_gradient(Tensor input, Tensor target, Tensor? weight, int reduction, "
      "int ignore_index, float label_smoothing, ScalarType dtype) -> (Tensor, Tensor)");
  library.def(
      "cross_entropy_forward(Tensor input, Tensor target, Tensor? weight, int reduction, "
      "int ignore_index, float label_smoothing, ScalarType dtype) -> (Tensor, Tensor, Tensor)");
  library.def(
      "cross_entropy_backward(Tensor grad_output, Tensor input, Tensor target, Tensor? weight, "
      "Tensor statistics, Tensor divisor, int ignore_index, float label_smoothing) -> Tensor");
  library.def(
      "nll_loss(Tensor input, Tensor target, Tensor? weight, int reduction, int ignore_index, "
      "ScalarType dtype) -> Tensor");
  library.def(
      "nll_loss_forward(Tensor input, Tensor target, Tensor? weight, int reduction, "
      "int ignore_index, ScalarType dtype) -> (Tensor, Tensor)");
  library.def(
      "nll_loss_backward(Tensor grad_output, Tensor input, Tensor target, Tensor? weight, "
      "Tensor divisor, int ignore_index) -> Tensor");
}

void register_kernels(torch::Library& library) {
  library.impl("cross_entropy", cross_entropy_kernel);
  library.impl("cross_entropy_gradient", cross_entropy_gradient_kernel);
  library.impl("cross_entropy_forward", cross_entropy_forward_kernel);
  library.impl("cross_entropy_backward", cross_entropy_backward_kernel);
  library.impl("nll_loss", nll_loss_kernel);
  library.impl("nll_loss_forward", nll_loss_forward_kernel);
  library.impl("nll_loss_backward", nll_loss_backward_kernel);
}

TORCH_LIBRARY_IMPL(fastdl, CPU, library) { register_kernels(library); }
TORCH_LIBRARY_IMPL(fastdl, CUDA, library) { register_kernels(library); }
TORCH_LIBRARY_IMPL(fastdl, Meta, library) {
  library.impl("cross_entropy", cross_entropy_meta);
  library.impl("cross_entropy_gradient", cross_entropy_gradient_meta);
  library.impl("cross_entropy_forward", cross_entropy_forward_meta);
  library.impl("cross_entropy_backward", cross_entropy_backward_meta);
  library.impl("nll_loss", nll_loss_meta);
  library.impl("nll_loss_forward", nll_loss_forward_meta);
  library.impl("nll_loss_backward", nll_loss_backward_meta);
}

}  // namespace
}  // namespace fastdl
