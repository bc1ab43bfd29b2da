// linear_cross_entropy: cross_entropy(input @ linear_weight.T + linear_bias, target), by chunks of
// rows, so that the logits never exist whole.
//
// Of each chunk torch's matrix products make the logits; the cross entropy kernel makes the losses
// and writes the gradient over the logits; further products make that of the input's rows and add
// to those of weight and bias. Where losses are summed all this happens in the forward (not in
// float16: see cross_entropy_autograd.cpp); otherwise the backward makes the logits again.
// Least work: 2 rows * classes * features flops forward, twice that more for the gradients. Memory:
// kChunkBytes of logits and the gradients.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "cross_entropy/cross_entropy_torch.h"
#include "torch/run_kernel.h"

namespace fastdl {
namespace {

using at::ScalarType;
using at::Tensor;
using FourTensors = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using Wanted = std::array<bool, 3>;  // gradients: of input, linear_weight, linear_bias

// Of a chunk's logits. The products lose nothing by being cut as long as a chunk has hundreds of
// rows; the gradient of linear_weight is read and written once for each.
constexpr int64_t kChunkBytes = int64_t{64} << 20, kChunkBytesOnGpu = int64_t{512} << 20;

int64_t rows_of_chunk(const Tensor& input, int64_t rows, int64_t classes) {
  const int64_t bytes = is_on_gpu(input) ? kChunkBytesOnGpu : kChunkBytes;
  const int64_t most = std::max<int64_t>(
      128, bytes / (classes * static_cast<int64_t>(input.element_size())) / 64 * 64);
  const int64_t chunks = (rows + most - 1) / most;
  return std::max<int64_t>(1, (rows + chunks - 1) / std::max<int64_t>(chunks, 1));
}

// One call: input [rows, features], linear_weight [classes, features], linear_bias [classes].
struct LinearCall {
  Tensor input, linear_weight, target, linear_bias, weight;
  CrossEntropyArgs args;
  int64_t rows, classes;

  LinearCall(const Tensor& input, const Tensor& linear_weight, const Tensor& target_,
             const OptionalTensor& linear_bias_, const OptionalTensor& weight_,
             int64_t ignore_index, double label_smoothing)
      : input(input), linear_weight(linear_weight), linear_bias(linear_bias_.value_or(Tensor())) {
    TORCH_CHECK(input.dim() == 2 && linear_weight.dim() == 2 &&
                    input.size(1) == linear_weight.size(1) &&
                    input.scalar_type() == linear_weight.scalar_type(),
                "fastdl::linear_cross_entropy: input and linear_weight do not fit");
    TORCH_CHECK(!linear_bias.defined() ||
                    (linear_bias.dim() == 1 && linear_bias.size(0) == linear_weight.size(0) &&
                     linear_bias.scalar_type() == input.scalar_type()),
                "fastdl::linear_cross_entropy: linear_bias does not fit");
    const auto dtype = kernel_dtype(input.scalar_type());
    TORCH_CHECK_NOT_IMPLEMENTED(dtype, "fastdl::linear_cross_entropy: no kernel for ",
                                input.scalar_type());
    rows = input.size(0);
    classes = linear_weight.size(0);
    const Tensor given = weight_.value_or(Tensor());
    const char* reason = reason_of_loss({rows, classes}, input, target_, given,
                                        /*autocast=*/true, label_smoothing);
    TORCH_CHECK(reason == nullptr, "fastdl::linear_cross_entropy: ", reason);
    target = has_probabilities(target_) ? target_.contiguous() : target_.to(at::kLong).contiguous();
    weight = statistics_of(given, input.scalar_type());
    args.weight = weight.defined() ? weight.const_data_ptr() : nullptr;
    args.classes = classes;
    args.ignore_index = ignore_index;
    args.label_smoothing = label_smoothing;
    args.dtype = *dtype;
  }

  Divisor divisor(int64_t reduction) const {
    if (has_probabilities(target)) {
      return Divisor(target, target, weight, classes, reduction, args.ignore_index);
    }
    return Divisor(input, target, weight, classes, reduction, args.ignore_index);
  }

  // The losses of all rows if they are there, and the gradients that are wanted, given
  // grad_output: of the rows, a number, or undefined for 1.
  std::array<Tensor, 3> run(const Tensor& losses, const Tensor& grad_output, const Divisor& divisor,
                            Wanted wanted) {
    const bool gradients = wanted[0] || wanted[1] || wanted[2];
    std::array<Tensor, 3> grads;
    const Tensor* const like[] = {&input, &linear_weight, &linear_bias};
    for (int i = 0; i < 3; ++i) {
      const auto format = at::MemoryFormat::Contiguous;
      grads[i] = wanted[i] ? at::empty_like(*like[i], format) : at::empty({0}, input.options());
      if (rows == 0) grads[i].zero_();
    }
    if (rows == 0) return grads;
    const int64_t step = rows_of_chunk(input, rows, classes);
    const Tensor memory = at::empty({step, classes}, input.options());
    const auto offset = [&](const Tensor& of, int64_t row) -> const void* {
      return static_cast<const char*>(of.const_data_ptr()) + row * of.element_size();
    };
    for (int64_t row = 0; row < rows; row += step) {
      const int64_t count = std::min(step, rows - row);
      const Tensor x = input.narrow(0, row, count);
      Tensor logits = memory.narrow(0, 0, count);
      if (linear_bias.defined()) {
        at::addmm_out(logits, linear_bias, x, linear_weight.t());
      } else {
        at::mm_out(logits, x, linear_weight.t());
      }
      args.outer = count;
      args.input = logits.const_data_ptr();
      if (has_probabilities(target)) {
        args.probabilities = offset(target, row * classes);
      } else {
        args.target = static_cast<const int64_t*>(offset(target, row));
      }
      if (losses.defined()) args.losses = const_cast<void*>(offset(losses, row));
      if (grad_output.defined()) {
        args.grad_output_of_rows = grad_output.dim() > 0;
        args.grad_output = offset(grad_output, args.grad_output_of_rows ? row : 0);
      }
      args.divisor = divisor.pointer();
      if (gradients) args.grad_input = logits.mutable_data_ptr();
      run_kernel(
          logits, [&]<CpuIsa isa> { cross_entropy_forward<isa>(args); },
          [&](const auto& gpu) {
            const Scratch scratch(logits, cross_entropy_forward_scratch_cuda(args, gpu));
            args.scratch = scratch.data();
            return cross_entropy_forward_cuda(args, gpu);
          });
      if (wanted[0]) {
        Tensor grad_rows = grads[0].narrow(0, row, count);
        at::mm_out(grad_rows, logits, linear_weight);
      }
      if (row == 0) {
        if (wanted[1]) at::mm_out(grads[1], logits.t(), x);
        if (wanted[2]) at::sum_out(grads[2], logits, 0);
      } else {
        if (wanted[1]) grads[1].addmm_(logits.t(), x);
        if (wanted[2]) grads[2].add_(logits.sum(0));
      }
    }
    return grads;
  }
};

FourTensors forward_kernel(const Tensor& input, const Tensor& linear_weight, const Tensor& target,
                           const OptionalTensor& linear_bias, const OptionalTensor& weight,
                           int64_t reduction, int64_t ignore_index, double label_smoothing,
                           ScalarType dtype, Wanted wanted) {
  TORCH_CHECK(reduction >= 0 && reduction < 3, "fastdl: reduction must be 0, 1 or 2, not ",
              reduction);
  TORCH_CHECK(reduction != kNoReduction || wanted == Wanted{},
              "fastdl::linear_cross_entropy: gradients of losses that are not summed");
  LinearCall call(input, linear_weight, target, linear_bias, weight, ignore_index, label_smoothing);
  const Divisor divisor = call.divisor(reduction);
  const Tensor losses =
      at::empty({call.rows}, input.options().dtype(statistics_type(input.scalar_type())));
  const auto grads = call.run(losses, Tensor(), divisor, wanted);
  return {reduce_losses(losses, divisor, reduction, {call.rows}, dtype), grads[0], grads[1],
          grads[2]};
}

std::tuple<Tensor, Tensor, Tensor> backward_kernel(
    const Tensor& grad_output, const Tensor& input, const Tensor& linear_weight,
    const Tensor& target, const OptionalTensor& linear_bias, const OptionalTensor& weight,
    int64_t reduction, int64_t ignore_index, double label_smoothing, Wanted wanted) {
  LinearCall call(input, linear_weight, target, linear_bias, weight, ignore_index, label_smoothing);
  TORCH_CHECK(grad_output.numel() == (reduction == kNoReduction ? call.rows : 1),
              "fastdl::linear_cross_entropy: grad_output does not fit the losses");
  const Tensor grad = statistics_of(grad_output, input.scalar_type());
  const auto grads = call.run(Tensor(), grad, call.divisor(reduction), wanted);
  return {grads[0], grads[1], grads[2]};
}

std::array<Tensor, 3> empty_gradients(const Tensor& input, const Tensor& linear_weight,
                                      const OptionalTensor& linear_bias, Wanted wanted) {
  const Tensor bias = linear_bias.value_or(Tensor());
  const auto like = [&](int i, const Tensor& tensor) {
    return wanted[i] ? at::empty_like(tensor, at::MemoryFormat::Contiguous)
                     : at::empty({0}, input.options());
  };
  return {like(0, input), like(1, linear_weight), like(2, bias)};
}

FourTensors forward_meta(const Tensor& input, const Tensor& linear_weight, const Tensor&,
                         const OptionalTensor& linear_bias, const OptionalTensor&,
                         int64_t reduction, int64_t, double, ScalarType dtype, Wanted wanted) {
  const auto grads = empty_gradients(input, linear_weight, linear_bias, wanted);
  const auto options = input.options().dtype(dtype);
  const Tensor loss = reduction == kNoReduction ? at::empty_symint({input.sym_size(0)}, options)
                                                : at::empty({}, options);
  return {loss, grads[0], grads[1], grads[2]};
}

std::tuple<Tensor, Tensor, Tensor> backward_meta(const Tensor&, const Tensor& input,
                                                 const Tensor& linear_weight, const Tensor&,
                                                 const OptionalTensor& linear_bias,
                                                 const OptionalTensor&, int64_t, int64_t, double,
                                                 Wanted wanted) {
  const auto grads = empty_gradients(input, linear_weight, linear_bias, wanted);
  return {grads[0], grads[1], grads[2]};
}

// Without gradients, on all back ends.
Tensor loss_alone(const Tensor& input, const Tensor& linear_weight, const Tensor& target,
                  const OptionalTensor& linear_bias, const OptionalTensor& weight,
                  int64_t reduction, int64_t ignore_index, double label_smoothing,
                  ScalarType dtype) {
  static const auto op = find_op<decltype(forward_kernel)>("fastdl::linear_cross_entropy_forward");
  return std::get<0>(op.call(input, linear_weight, target, linear_bias, weight, reduction,
                             ignore_index, label_smoothing, dtype, Wanted{}));
}

TORCH_LIBRARY_FRAGMENT(fastdl, library) {
  library.def(
      "linear_cross_entropy(Tensor input, Tensor linear_weight, Tensor target, "
      "Tensor? linear_bias, Tensor? weight, int reduction, int ignore_index, "
      "float label_smoothing, ScalarType dtype) -> Tensor");
  // The loss, and the gradients of input, linear_weight and linear_bias that are wanted
  library.def(
      "linear_cross_entropy_forward(Tensor input, Tensor linear_weight, Tensor target, "
      "Tensor? linear_bias, Tensor? weight, int reduction, int ignore_index, "
      "float label_smoothing, ScalarType dtype, bool[3] wanted) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "linear_cross_entropy_backward(Tensor grad_output, Tensor input, Tensor linear_weight, "
      "Tensor target, Tensor? linear_bias, Tensor? weight, int reduction, int ignore_index, "
      "float label_smoothing, bool[3] wanted) -> (Tensor, Tensor, Tensor)");
}

void register_kernels(torch::Library& library) {
  library.impl("linear_cross_entropy", loss_alone);
  library.impl("linear_cross_entropy_forward", forward_kernel);
  library.impl("linear_cross_entropy_backward", backward_kernel);
}

TORCH_LIBRARY_IMPL(fastdl, CPU, library) { register_kernels(library); }
TORCH_LIBRARY_IMPL(fastdl, CUDA, library) { register_kernels(library); }
TORCH_LIBRARY_IMPL(fastdl, Meta, library) {
  library.impl("linear_cross_entropy", loss_alone);
  library.impl("linear_cross_entropy_forward", forward_meta);
  library.impl("linear_cross_entropy_backward", backward_meta);
}
}  // namespace
}  // namespace fastdl
