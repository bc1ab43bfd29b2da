// torch op of the Adam and AdamW step: checks, bias corrections, the table of tensors.
#include "adam/adam_torch.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "torch/hand_over.h"

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
    if (other->scalar_type() != param.scalar_type()) return "gradient or state of another dtype";
    if (other->sizes() != param.sizes()) return "gradient or state of another shape";
    if (other->numel() > 1 && other->strides() != param.strides()) {
      return "gradient or state of another memory layout";
    }
  }
  if (const char* reason = reason_to_hand_over(step)) return reason;
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

double value_or_one(const OptionalTensor& scalar) {
  return scalar.has_value() && scalar->defined() ? scalar->item<double>() : 1;
}

void mark_changed(const Tensor& tensor) {
  if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
}

void adam_cpu(TensorList params, TensorList grads, TensorList exp_avgs, TensorList exp_avg_sqs,
              TensorList max_exp_avg_sqs, TensorList steps, double lr, double beta1, double beta2,
              double weight_decay, double eps, bool maximize, bool decoupled,
              const OptionalTensor& grad_scale, const OptionalTensor& found_inf) {
  const size_t count = params.size();
  const bool amsgrad = !max_exp_avg_sqs.empty();
  TORCH_CHECK(grads.size() == count && exp_avgs.size() == count && exp_avg_sqs.size() == count &&
                  steps.size() == count && (!amsgrad || max_exp_avg_sqs.size() == count),
              "fastdl::adam_: all lists of tensors must have the same length");
  if (found_inf.has_value() && found_inf->defined() && found_inf->item<double>() != 0) return;
  AdamStepArgs args{
      nullptr,  0,        lr, beta1, beta2, weight_decay, eps, value_or_one(grad_scale),
      maximize, decoupled};
  std::vector<AdamTensor> table;
  table.reserve(count);
  double last_step = -1, correction1 = 1, correction2 = 1;
  int64_t blocks = 0;
  for (size_t i = 0; i < count; ++i) {
    const Tensor& param = params[i];
    const Tensor& largest = amsgrad ? max_exp_avg_sqs[i] : exp_avgs[i];
    const char* reason =
        reason_of_tensors(param, {&grads[i], &exp_avgs[i], &exp_avg_sqs[i], &largest}, steps[i]);
    TORCH_CHECK(reason == nullptr, "fastdl::adam_: ", reason);
  }
  for (size_t i = 0; i < count; ++i) {
    const Tensor& param = params[i];
    const double step = increment(steps[i]);
    if (step != last_step) {
      correction1 = 1 - std::pow(beta1, step);
      correction2 = 1 - std::pow(beta2, step);
      last_step = step;
    }
    for (const Tensor* changed : {&param, &exp_avgs[i], &exp_avg_sqs[i], &steps[i]}) {
      mark_changed(*changed);
    }
    if (args.grad_scale != 1) mark_changed(grads[i]);
    if (amsgrad) mark_changed(max_exp_avg_sqs[i]);
    if (param.numel() == 0) continue;
    table.push_back({param.mutable_data_ptr(), const_cast<void*>(grads[i].const_data_ptr()),
                     exp_avgs[i].mutable_data_ptr(), exp_avg_sqs[i].mutable_data_ptr(),
                     amsgrad ? max_exp_avg_sqs[i].mutable_data_ptr() : nullptr, param.numel(),
                     blocks, correction1, correction2, *kernel_dtype(param.scalar_type())});
    blocks += adam_blocks(param.numel());
  }
  args.tensors = table.data();
  args.count = static_cast<int64_t>(table.size());
  call_best_isa([&]<CpuIsa isa> { adam_step<isa>(args); });
}

void adam_meta(TensorList, TensorList, TensorList, TensorList, TensorList, TensorList, double,
               double, double, double, double, bool, bool, const OptionalTensor&,
               const OptionalTensor&) {}

TORCH_LIBRARY_FRAGMENT(fastdl, library) {
  // grads are written only with a grad_scale; max_exp_avg_sqs is empty without amsgrad.
  library.def(
      "adam_(Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] exp_avgs, "
      "Tensor(d!)[] exp_avg_sqs, Tensor(e!)[] max_exp_avg_sqs, Tensor(f!)[] steps, float lr, "
      "float beta1, float beta2, float weight_decay, float eps, bool maximize, bool decoupled, "
      "Tensor? grad_scale, Tensor? found_inf) -> ()");
}
TORCH_LIBRARY_IMPL(fastdl, CPU, library) { library.impl("adam_", adam_cpu); }
TORCH_LIBRARY_IMPL(fastdl, Meta, library) { library.impl("adam_", adam_meta); }

}  // namespace

std::vector<int64_t> adam_step_all(const std::vector<PlainTensor>& params,
                                   const std::vector<PlainTensor>& grads,
                                   const std::vector<PlainTensor>& exp_avgs,
                                   const std::vector<PlainTensor>& exp_avg_sqs,
                                   const std::vector<PlainTensor>& max_exp_avg_sqs,
                                   const std::vector<PlainTensor>& steps, Number lr, Number beta1,
                                   Number beta2, Number weight_decay, Number eps, bool maximize,
                                   bool decoupled, const std::optional<PlainTensor>& grad_scale,
                                   const std::optional<PlainTensor>& found_inf) {
  static const auto op = find_op<decltype(adam_cpu)>("fastdl::adam_");
  const bool amsgrad = !max_exp_avg_sqs.empty();
  std::vector<int64_t> left;
  std::vector<Tensor> covered[6];
  for (auto& list : covered) list.reserve(params.size());
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
    covered[0].push_back(param);
    covered[1].push_back(grads[i].tensor);
    covered[2].push_back(exp_avgs[i].tensor);
    covered[3].push_back(exp_avg_sqs[i].tensor);
    if (amsgrad) covered[4].push_back(max_exp_avg_sqs[i].tensor);
    covered[5].push_back(steps[i].tensor);
  }
  if (any_overlap(covered[0])) {
    hand_over(decoupled ? "AdamW" : "Adam", "parameters that share memory");
    left.resize(params.size());
    std::iota(left.begin(), left.end(), 0);
    return left;
  }
  if (covered[0].empty()) return left;
  const auto scalar = [](const std::optional<PlainTensor>& tensor) {
    return tensor ? OptionalTensor(tensor->tensor) : OptionalTensor();
  };
  op.call(covered[0], covered[1], covered[2], covered[3], covered[4], covered[5], lr, beta1, beta2,
          weight_decay, eps, maximize, decoupled, scalar(grad_scale), scalar(found_inf));
  return left;
}

}  // namespace fastdl
