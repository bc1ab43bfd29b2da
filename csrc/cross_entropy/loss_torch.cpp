// What the glue of the cross entropy losses shares: checks, the divisor of means, reductions, and
// gradients that can be differentiated.
#include <ATen/ATen.h>

#include <cmath>

#include "cross_entropy/cross_entropy_torch.h"
#include "torch/run_kernel.h"

namespace fastdl {

using at::Tensor;

namespace {

// Classes are lanes' numbers in the kernel for columns: float32 has to tell them apart.
constexpr int64_t kMostColumnClasses = int64_t{1} << 24;

bool is_float_of_autocast(const Tensor& tensor) {
  return tensor.is_floating_point() && tensor.scalar_type() != at::kDouble;
}

}  // namespace

const char* reason_of_loss(at::IntArrayRef shape, const Tensor& logits, const Tensor& target,
                           const Tensor& weight, bool autocast, double label_smoothing) {
  if (shape.empty()) return "an input without dimensions";
  const size_t dim = shape.size() == 1 ? 0 : 1;
  const int64_t classes = shape[dim];
  if (classes == 0) return "no classes";
  if (!(label_smoothing >= 0 && label_smoothing <= 1)) return "label_smoothing is out of range";
  if (target.device() != logits.device()) return "a target on another device";
  if (has_probabilities(target)) {
    if (target.sizes() != shape) return "a target that does not fit the input";
    if (target.requires_grad()) return "a target that requires grad";
    if (target.scalar_type() != logits.scalar_type()) return "a target of another dtype";
  } else {
    if (target.scalar_type() != at::kLong && target.scalar_type() != at::kByte) {
      return "a target of another dtype";
    }
    const int64_t dims = static_cast<int64_t>(shape.size());
    const bool fits = dims == 1 ? target.dim() == 0
                                : target.dim() == dims - 1 && target.size(0) == shape[0] &&
                                      target.sizes().slice(1) == shape.slice(2);
    if (!fits) return "a target that does not fit the input";
    if (target.sizes() == shape) return "a target of the input's shape";
  }
  if (shape.size() > 2 && classes > kMostColumnClasses) return "too many classes";
  if (!weight.defined()) return nullptr;
  if (weight.device() != logits.device()) return "a weight on another device";
  if (weight.dim() != 1 || weight.size(0) != classes) return "a weight of another shape";
  if (weight.requires_grad()) return "a weight that requires grad";
  const bool cast = autocast && is_float_of_autocast(weight);
  if (weight.scalar_type() != logits.scalar_type() && !cast) return "a weight of another dtype";
  return nullptr;
}

const char* reason_of_target(const Tensor& target) {
  if (!target.defined()) return "an undefined tensor";
  return is_plain_dense(target) ? nullptr : "a target that is not a plain dense tensor";
}

std::optional<int64_t> reduction_of(const std::string& name) {
  if (name == "mean") return kMean;
  if (name == "sum") return kTotal;
  if (name == "none") return kNoReduction;
  return std::nullopt;
}

bool autocasts_loss(const Tensor& input) {
  return is_float_of_autocast(input) &&
         at::autocast::is_autocast_enabled(input.is_cuda() ? at::kCUDA : at::kCPU);
}

Tensor statistics_of(const OptionalTensor& tensor, at::ScalarType dtype) {
  if (!tensor.has_value() || !tensor->defined()) return Tensor();
  return tensor->to(statistics_type(dtype)).contiguous();
}

Divisor::Divisor(const Tensor& logits, const Tensor& target, const Tensor& weight, int64_t classes,
                 int64_t reduction, int64_t ignore_index)
    : divides_(reduction == kMean) {
  const bool on_gpu = is_on_gpu(logits);
  if (on_gpu && divides_) on_gpu_ = at::empty({1}, logits.options().dtype(at::kDouble));
  if (has_probabilities(target)) {
    const double rows = static_cast<double>(logits.numel()) / static_cast<double>(classes);
    on_gpu ? void(divides_ && on_gpu_.fill_(rows).defined()) : void(on_cpu_ = rows);
    return;
  }
  TargetWeightArgs args{};
  args.target = target.const_data_ptr<int64_t>();
  args.weight = weight.defined() ? weight.const_data_ptr() : nullptr;
  args.rows = target.numel();
  args.classes = classes;
  args.ignore_index = ignore_index;
  args.dtype = *kernel_dtype(statistics_type(logits.scalar_type()));
  args.total = on_gpu ? (divides_ ? on_gpu_.mutable_data_ptr<double>() : nullptr) : &on_cpu_;
  if (on_gpu && !divides_) return;  // the kernels check the targets themselves
  TargetOutOfBounds wrong{};
  run_kernel(
      logits, [&]<CpuIsa isa> { wrong = target_weight<isa>(args); },
      [&](const auto& gpu) {
        const Scratch scratch(logits, loss_scratch_cuda(args.rows));
        args.scratch = scratch.data();
        return target_weight_cuda(args, gpu);
      });
  TORCH_CHECK_INDEX(!wrong.found, "Target ", wrong.target, " is out of bounds.");
}

Divisor::Divisor(const Tensor& saved) : divides_(saved.numel() > 0) {
  if (!divides_) return;
  if (is_on_gpu(saved)) {
    on_gpu_ = saved;
  } else {
    on_cpu_ = *saved.const_data_ptr<double>();
  }
}

const double* Divisor::pointer() const {
  if (!divides_) return nullptr;
  return on_gpu_.defined() ? on_gpu_.const_data_ptr<double>() : &on_cpu_;
}

Tensor Divisor::as_tensor(const Tensor& like) const {
  const auto options = like.options().dtype(at::kDouble);
  if (!divides_) return at::empty({0}, options);
  if (on_gpu_.defined()) return on_gpu_;
  Tensor number = at::empty({1}, options);
  *number.mutable_data_ptr<double>() = on_cpu_;
  return number;
}

Tensor scale_gradient(const Tensor& gradient, const Tensor& grad_output) {
  if (!is_on_gpu(gradient)) {
    return grad_output.item<double>() == 1 ? gradient : gradient.mul_(grad_output);
  }
  const Tensor factor = statistics_of(grad_output, gradient.scalar_type());
  ScaleGradientArgs args{};
  args.gradient = gradient.mutable_data_ptr();
  args.factor = factor.const_data_ptr();
  args.count = gradient.numel();
  args.dtype = *kernel_dtype(gradient.scalar_type());
  run_kernel(
      gradient, []<CpuIsa isa> {}, [&](const auto& gpu) { return scale_gradient_cuda(args, gpu); });
  return gradient;
}

Tensor reduce_losses(const Tensor& losses, const Divisor& divisor, int64_t reduction,
                     at::IntArrayRef shape, at::ScalarType dtype) {
  if (reduction == kNoReduction) return losses.view(shape).to(dtype);
  const Tensor output = at::empty({}, losses.options().dtype(dtype));
  LossSumArgs args{};
  args.losses = losses.const_data_ptr();
  args.divisor = divisor.pointer();
  args.output = output.mutable_data_ptr();
  args.rows = losses.numel();
  args.dtype = *kernel_dtype(losses.scalar_type());
  args.output_dtype = *kernel_dtype(dtype);
  run_kernel(
      losses, [&]<CpuIsa isa> { loss_sum<isa>(args); },
      [&](const auto& gpu) {
        const Scratch scratch(losses, loss_scratch_cuda(args.rows));
        args.scratch = scratch.data();
        return loss_sum_cuda(args, gpu);
      });
  return output;
}

Tensor differentiable_gradient(const Tensor& grad_output, const Tensor& input, const Tensor& target,
                               const Tensor& weight, int64_t reduction, int64_t ignore_index,
                               double label_smoothing, bool of_logits) {
  const int64_t dim = class_dim(input), classes = input.size(dim);
  const at::ScalarType dtype = statistics_type(input.scalar_type());
  const Tensor x = input.to(dtype);
  std::vector<int64_t> along(x.dim(), 1);
  along[dim] = classes;
  const Tensor w = weight.defined() ? weight.to(dtype) : at::ones({classes}, x.options());
  Tensor grad = grad_output.to(dtype), q = at::zeros_like(x) + label_smoothing / classes;
  if (has_probabilities(target)) {
    q = (q + target.to(dtype) * (1 - label_smoothing)) * w.view(along);
    if (reduction == kMean) grad = grad / at::ones_like(x.select(dim, 0)).sum();
    if (reduction != kNoReduction) grad = grad.expand(x.select(dim, 0).sizes());
  } else {
    const Tensor index = target.to(at::kLong), ignored = index == ignore_index;
    const Tensor safe = index.masked_fill(ignored, 0);
    const Tensor hit = w.index({safe}).masked_fill(ignored, 0);
    q = (q * w.view(along))
            .scatter_add(dim, safe.unsqueeze(dim), (hit * (1 - label_smoothing)).unsqueeze(dim));
    if (reduction == kMean) grad = grad / hit.sum();
    grad = grad.expand(index.sizes()).masked_fill(ignored, 0);
  }
  Tensor own = -q;
  if (of_logits) own = at::softmax(x, dim) * q.sum(dim, /*keepdim=*/true) - q;
  return (grad.unsqueeze(dim) * own).to(input.scalar_type());
}

}  // namespace fastdl
