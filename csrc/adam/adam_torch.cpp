// torch op of the Adam and AdamW step: checks, bias corrections, the table of tensors.
#include "adam/adam_torch.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "torch/hand_over.h"
#include "torch/run_kernel.h"

namespace fastdl {
namespace {

using at::Tensor;
using at::TensorList;
using OptionalTensor = std::optional<Tensor>;

// Why no kernel covers this parameter with its gradient and state, or nullptr.
const char* reason_of_tensors(const Tensor& param, std::initializer_list<const Tensor*> others,
                              const Tensor& step) {
  if (const char* reason = reason_to_hand_over(param)) return reason;
  if (!param.is_non_overlapping_and_dense()) return "a parameter with gaps or overlaps in memory";
  for (const Tensor* other : others) {
    if (const char* reason = reason_to_hand_over(*other)) return reason;
    if (other->device() != param.device()) return "gradient or state on another device";
    if (other->scalar_type() != param.scalar_type()) return "gradient or state of another dtype";
    if (other->sizes() != param.sizes()) return "gradient or state of another shape";
    if (other->numel() > 1 && other->strides() != param.strides()) {
      return "gradient or state of another memory layout";
    }
  }
  if (const char* reason = reason_to_hand_over(step)) return reason;
  if (!step.is_cpu() && step.device() != param.device()) return "a step count on another device";
  if (step.numel() != 1 || at::isReducedFloatingType(step.scalar_type())) {
    return "a step count that is not one float32 or float64";
  }
  return nullptr;
}

// Whether two of these dense tensors share memory: one parallel pass must not update it twice.
bool any_overlap(TensorList tensors) {
  std::vector<std::pair<uintptr_t, uintptr_t>> ranges;
  ranges.reserve(tensors.size());
  for (const Tensor& tensor : tensors) {
    const auto begin = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
    if (tensor.numel() > 0) ranges.emplace_back(begin, begin + tensor.nbytes());
  }
  std::sort(ranges.begin(), ranges.end());
  for (size_t i = 1; i < ranges.size(); ++i) {
    if (ranges[i].first < ranges[i - 1].second) return true;
  }
  return false;
}

double increment(const Tensor& step) {
  if (step.scalar_type() == at::kDouble) return *step.mutable_data_ptr<double>() += 1;
  return *step.mutable_data_ptr<float>() += 1;
}

double value_or(const OptionalTensor& scalar, double otherwise) {
  return scalar.has_value() && scalar->defined() ? scalar->item<double>() : otherwise;
}

void mark_changed(const Tensor& tensor) {
  if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
}

// The table of a step. Steps on the CPU are counted up here, those on a GPU by its kernel.
struct AdamTable {
  std::vector<AdamTensor> tensors;
  double last_step = -1, correction1 = 1, correction2 = 1;
  int64_t blocks = 0;

  void add(const Tensor& param, const Tensor& grad, const Tensor& exp_avg, const Tensor& exp_avg_sq,
           const Tensor& largest, const Tensor& step, const AdamStepArgs& args) {
    const bool counts_on_gpu = is_on_gpu(step);
    if (!counts_on_gpu) {
      const double count = increment(step);
      if (count != last_step) {
        correction1 = 1 - std::pow(args.beta1, count);
        correction2 = 1 - std::pow(args.beta2, count);
        last_step = count;
      }
      if (param.numel() == 0) return;
    }
    tensors.push_back({param.mutable_data_ptr(), const_cast<void*>(grad.const_data_ptr()),
                       exp_avg.mutable_data_ptr(), exp_avg_sq.mutable_data_ptr(),
                       largest.defined() ? largest.mutable_data_ptr() : nullptr, param.numel(),
                       blocks, correction1, correction2, *kernel_dtype(param.scalar_type()),
                       *kernel_dtype(step.scalar_type()),
                       counts_on_gpu ? step.mutable_data_ptr() : nullptr});
    blocks += adam_blocks(param.numel());
  }
};

// A scalar where the kernel reads it: on the GPU of `like`.
Tensor on_gpu_of(const Tensor& like, const OptionalTensor& scalar, at::ScalarType dtype) {
  if (!scalar.has_value() || !scalar->defined()) return Tensor();
  return scalar->to(like.options().dtype(dtype), /*non_blocking=*/true);
}

Status step_on_gpu(const AdamStepArgs& args, const Tensor& like, const OptionalTensor& lr,
                   const OptionalTensor& grad_scale, const OptionalTensor& found_inf,
                   const CudaTarget& target) {
  const Scratch table(like, adam_scratch_cuda(args.count));
  const auto lr_dtype = lr ? lr->scalar_type() : at::kFloat;
  const Tensor rate = on_gpu_of(like, lr, lr_dtype == at::kDouble ? at::kDouble : at::kFloat);
  const Tensor scale = on_gpu_of(like, grad_scale, at::kFloat);
  const Tensor infinite = on_gpu_of(like, found_inf, at::kFloat);
  const auto pointer = [](const Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; };
  const AdamDeviceScalars scalars{pointer(rate), static_cast<const float*>(pointer(scale)),
                                  static_cast<const float*>(pointer(infinite)),
                                  lr_dtype == at::kDouble ? DType::kFloat64 : DType::kFloat32};
  return adam_step_cuda(args, scalars, table.data(), target);
}

// lr_tensor, if any, takes the place of lr: on a GPU without being read by the host.
void adam_kernel(TensorList params, TensorList grads, TensorList exp_avgs, TensorList exp_avg_sqs,
                 TensorList max_exp_avg_sqs, TensorList steps, double lr, double beta1,
                 double beta2, double weight_decay, double eps, bool maximize, bool decoupled,
                 const OptionalTensor& lr_tensor, const OptionalTensor& grad_scale,
                 const OptionalTensor& found_inf) {
  const size_t count = params.size();
  const bool amsgrad = !max_exp_avg_sqs.empty();
  TORCH_CHECK(grads.size() == count && exp_avgs.size() == count && exp_avg_sqs.size() == count &&
                  steps.size() == count && (!amsgrad || max_exp_avg_sqs.size() == count),
              "fastdl::adam_: all lists of tensors must have the same length");
  for (size_t i = 0; i < count; ++i) {
    const Tensor& largest = amsgrad ? max_exp_avg_sqs[i] : exp_avgs[i];
    const char* reason = reason_of_tensors(
        params[i], {&grads[i], &exp_avgs[i], &exp_avg_sqs[i], &largest}, steps[i]);
    TORCH_CHECK(reason == nullptr, "fastdl::adam_: ", reason);
    TORCH_CHECK(params[i].device() == params[0].device(),
                "fastdl::adam_: all parameters must be on ", params[0].device());
  }
  if (count == 0) return;
  // What the kernel on a GPU reads there, the host need not wait for. Steps on the CPU are counted
  // by the host, which then must know whether they count.
  const bool on_gpu = is_on_gpu(params[0]);
  const bool counts_on_gpu = on_gpu && std::all_of(steps.begin(), steps.end(), is_on_gpu);
  if (!counts_on_gpu && value_or(found_inf, 0) != 0) return;
  AdamStepArgs args{nullptr,      0,   on_gpu ? lr : value_or(lr_tensor, lr), beta1,    beta2,
                    weight_decay, eps, on_gpu ? 1 : value_or(grad_scale, 1),  maximize, decoupled};
  AdamTable table;
  table.tensors.reserve(count);
  const bool changes_grads = on_gpu ? grad_scale.has_value() : args.grad_scale != 1;
  for (size_t i = 0; i < count; ++i) {
    const Tensor largest = amsgrad ? max_exp_avg_sqs[i] : Tensor();
    table.add(params[i], grads[i], exp_avgs[i], exp_avg_sqs[i], largest, steps[i], args);
    for (const Tensor* changed : {&params[i], &exp_avgs[i], &exp_avg_sqs[i], &steps[i]}) {
      mark_changed(*changed);
    }
    if (changes_grads) mark_changed(grads[i]);
    if (amsgrad) mark_changed(largest);
  }
  args.tensors = table.tensors.data();
  args.count = static_cast<int64_t>(table.tensors.size());
  run_kernel(
      params[0], [&]<CpuIsa isa> { adam_step<isa>(args); },
      [&](const auto& target) {
        return step_on_gpu(args, params[0], lr_tensor, grad_scale,
                           counts_on_gpu ? found_inf : OptionalTensor(), target);
      });
}

void adam_meta(TensorList, TensorList, TensorList, TensorList, TensorList, TensorList, double,
               double, double, double, double, bool, bool, const OptionalTensor&,
               const OptionalTensor&, const OptionalTensor&) {}

TORCH_LIBRARY_FRAGMENT(fastdl, library) {
  // grads are written only with a grad_scale; max_exp_avg_sqs is empty without amsgrad.
  library.def(
      "adam_(Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] exp_avgs, "
      "Tensor(d!)[] exp_avg_sqs, Tensor(e!)[] max_exp_avg_sqs, Tensor(f!)[] steps, float lr, "
      "float beta1, float beta2, float weight_decay, float eps, bool maximize, bool decoupled, "
      "Tensor? lr_tensor, Tensor? grad_scale, Tensor? found_inf) -> ()");
}
TORCH_LIBRARY_IMPL(fastdl, CPU, library) { library.impl("adam_", adam_kernel); }
TORCH_LIBRARY_IMPL(fastdl, CUDA, library) { library.impl("adam_", adam_kernel); }
TORCH_LIBRARY_IMPL(fastdl, Meta, library) { library.impl("adam_", adam_meta); }
// A step has no gradient of its own: without this torch would box and scan all lists on every call.
TORCH_LIBRARY_IMPL(fastdl, Autograd, library) {
  library.impl("adam_", torch::CppFunction::makeFallthrough());
}

// The tensors of a call that are on one device, in the order of the op's lists.
struct Covered {
  at::Device device;
  std::vector<Tensor> lists[6];
};

Covered& covered_on(at::Device device, std::vector<Covered>& all) {
  for (Covered& covered : all) {
    if (covered.device == device) return covered;
  }
  all.push_back({device, {}});
  return all.back();
}

}  // namespace

std::vector<int64_t> adam_step_all(
    const std::vector<PlainTensor>& params, const std::vector<PlainTensor>& grads,
    const std::vector<PlainTensor>& exp_avgs, const std::vector<PlainTensor>& exp_avg_sqs,
    const std::vector<PlainTensor>& max_exp_avg_sqs, const std::vector<PlainTensor>& steps,
    Number lr, Number beta1, Number beta2, Number weight_decay, Number eps, bool maximize,
    bool decoupled, const std::optional<PlainTensor>& lr_tensor,
    const std::optional<PlainTensor>& grad_scale, const std::optional<PlainTensor>& found_inf) {
  static const auto op = find_op<decltype(adam_kernel)>("fastdl::adam_");
  const bool amsgrad = !max_exp_avg_sqs.empty();
  std::vector<int64_t> left;
  std::vector<Covered> all;
  for (size_t i = 0; i < params.size(); ++i) {
    const Tensor& param = params[i].tensor;
    const Tensor& largest = (amsgrad ? max_exp_avg_sqs : exp_avgs)[i].tensor;
    const char* reason = reason_of_tensors(
        param, {&grads[i].tensor, &exp_avgs[i].tensor, &exp_avg_sqs[i].tensor, &largest},
        steps[i].tensor);
    if (reason != nullptr) {
      hand_over(decoupled ? "AdamW" : "Adam", reason);
      left.push_back(static_cast<int64_t>(i));
      continue;
    }
    auto& lists = covered_on(param.device(), all).lists;
    lists[0].push_back(param);
    lists[1].push_back(grads[i].tensor);
    lists[2].push_back(exp_avgs[i].tensor);
    lists[3].push_back(exp_avg_sqs[i].tensor);
    if (amsgrad) lists[4].push_back(max_exp_avg_sqs[i].tensor);
    lists[5].push_back(steps[i].tensor);
  }
  if (std::any_of(all.begin(), all.end(), [](auto& on) { return any_overlap(on.lists[0]); })) {
    hand_over(decoupled ? "AdamW" : "Adam", "parameters that share memory");
    left.resize(params.size());
    std::iota(left.begin(), left.end(), 0);
    return left;
  }
  const auto scalar = [](const std::optional<PlainTensor>& tensor) {
    return tensor ? OptionalTensor(tensor->tensor) : OptionalTensor();
  };
  for (const auto& [device, lists] : all) {
    op.call(lists[0], lists[1], lists[2], lists[3], lists[4], lists[5], lr, beta1, beta2,
            weight_decay, eps, maximize, decoupled, scalar(lr_tensor), scalar(grad_scale),
            scalar(found_inf));
  }
  return left;
}

}  // namespace fastdl
