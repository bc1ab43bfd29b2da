// The step of an optimizer between torch and the kernels: checks, corrections, table of tensors.
#include "optimizer/optimizer_torch.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>

#include "torch/hand_over.h"
#include "torch/run_kernel.h"

namespace fastdl {
namespace {

using at::Tensor;
using at::TensorList;

const char* reason_of_tensor(const Tensor& param, const Tensor& other) {
  if (const char* reason = reason_to_hand_over(other)) return reason;
  if (other.device() != param.device()) return "gradient or state on another device";
  if (other.scalar_type() != param.scalar_type()) return "gradient or state of another dtype";
  if (other.sizes() != param.sizes()) return "gradient or state of another shape";
  if (other.numel() > 1 && other.strides() != param.strides()) {
    return "gradient or state of another memory layout";
  }
  return nullptr;
}

const char* reason_of_step(const Tensor& param, const Tensor& step) {
  if (const char* reason = reason_to_hand_over(step)) return reason;
  if (!step.is_cpu() && step.device() != param.device()) return "a step count on another device";
  if (step.numel() != 1 || at::isReducedFloatingType(step.scalar_type())) {
    return "a step count that is not one float32 or float64";
  }
  return nullptr;
}

const Tensor& tensor_of(const Tensor& tensor) { return tensor; }
const Tensor& tensor_of(const PlainTensor& tensor) { return tensor.tensor; }

// Why no kernel covers parameter i with its gradient and state, or nullptr.
template <class List>
const char* reason_of(const StepLists<const List*>& lists, size_t i) {
  const Tensor& param = tensor_of((*lists.params)[i]);
  if (const char* reason = reason_to_hand_over(param)) return reason;
  if (!param.is_non_overlapping_and_dense()) return "a parameter with gaps or overlaps in memory";
  const char* reason = reason_of_tensor(param, tensor_of((*lists.grads)[i]));
  for (const List* states : lists.states) {
    if (reason != nullptr) return reason;
    if (!states->empty()) reason = reason_of_tensor(param, tensor_of((*states)[i]));
  }
  if (reason == nullptr && !lists.steps->empty()) {
    reason = reason_of_step(param, tensor_of((*lists.steps)[i]));
  }
  return reason;
}

template <class List>
StepLists<const List*> pointers_to(const StepLists<List>& lists) {
  return {&lists.params,
          &lists.grads,
          {&lists.states[0], &lists.states[1], &lists.states[2]},
          &lists.steps};
}

void check_lists(const char* op, const StepLists<TensorList>& lists) {
  const size_t count = lists.params.size();
  bool same = lists.grads.size() == count;
  for (const TensorList& states : lists.states) same &= states.empty() || states.size() == count;
  same &= lists.steps.empty() || lists.steps.size() == count;
  TORCH_CHECK(same, op, ": all lists of tensors must have the same length");
  for (size_t i = 0; i < count; ++i) {
    const char* reason = reason_of(pointers_to(lists), i);
    TORCH_CHECK(reason == nullptr, op, ": ", reason);
    TORCH_CHECK(lists.params[i].device() == lists.params[0].device(), op,
                ": all parameters must be on ", lists.params[0].device());
  }
}

double increment(const Tensor& step) {
  if (step.scalar_type() == at::kDouble) return *step.mutable_data_ptr<double>() += 1;
  return *step.mutable_data_ptr<float>() += 1;
}

double value_or(const OptionalTensor& scalar, double otherwise) {
  return scalar.has_value() && scalar->defined() ? scalar->item<double>() : otherwise;
}

// The table of a step. Steps on the CPU are counted up here, those on a GPU by its kernel.
template <class Algorithm>
std::vector<StepTensor> make_table(const StepLists<TensorList>& lists, const Algorithm& algorithm) {
  std::vector<StepTensor> table;
  table.reserve(lists.params.size());
  double last_step = -1;
  Corrections corrections;
  int64_t blocks = 0;
  for (size_t i = 0; i < lists.params.size(); ++i) {
    const Tensor& param = lists.params[i];
    const Tensor step = lists.steps.empty() ? Tensor() : lists.steps[i];
    const bool counts_on_gpu = step.defined() && is_on_gpu(step);
    if (step.defined() && !counts_on_gpu) {
      const double count = increment(step);
      if (count != last_step) corrections = algorithm.corrections(count);
      last_step = count;
    }
    if (param.numel() == 0 && !counts_on_gpu) continue;
    StepTensor entry{};
    entry.param = param.mutable_data_ptr();
    entry.grad = const_cast<void*>(lists.grads[i].const_data_ptr());
    for (int k = 0; k < kMaxStates; ++k) {
      if (!lists.states[k].empty()) entry.states[k] = lists.states[k][i].mutable_data_ptr();
    }
    entry.size = param.numel();
    entry.first_block = blocks;
    entry.corrections = corrections;
    entry.dtype = *kernel_dtype(param.scalar_type());
    if (counts_on_gpu) {
      entry.step_dtype = *kernel_dtype(step.scalar_type());
      entry.step = step.mutable_data_ptr();
    }
    table.push_back(entry);
    blocks += tensor_blocks(entry.size);
  }
  return table;
}

void mark_all_changed(const StepLists<TensorList>& lists, bool grads) {
  const auto mark = [](TensorList tensors) {
    for (const Tensor& t : tensors) mark_changed(t);
  };
  mark(lists.params);
  if (grads) mark(lists.grads);
  for (const TensorList& states : lists.states) mark(states);
  mark(lists.steps);
}

// A scalar where the kernel reads it: on the GPU of `like`.
Tensor on_gpu_of(const Tensor& like, const OptionalTensor& scalar, at::ScalarType dtype) {
  if (!scalar.has_value() || !scalar->defined()) return Tensor();
  return scalar->to(like.options().dtype(dtype), /*non_blocking=*/true);
}

template <class Algorithm>
Status step_on_gpu(const StepArgs& args, const Algorithm& algorithm, const StepOptions& options,
                   const Tensor& like, bool reads_found_inf, const CudaTarget& target) {
  const Scratch table(like, step_scratch_cuda(args.count));
  const bool is_double = options.lr_tensor && options.lr_tensor->scalar_type() == at::kDouble;
  const Tensor lr = on_gpu_of(like, options.lr_tensor, is_double ? at::kDouble : at::kFloat);
  const Tensor scale = on_gpu_of(like, options.grad_scale, at::kFloat);
  const Tensor infinite =
      reads_found_inf ? on_gpu_of(like, options.found_inf, at::kFloat) : Tensor();
  const Tensor clip = on_gpu_of(like, options.clip, at::kDouble);
  const auto pointer = [](const Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; };
  const StepDeviceScalars scalars{pointer(lr), static_cast<const float*>(pointer(scale)),
                                  static_cast<const float*>(pointer(infinite)),
                                  static_cast<const double*>(pointer(clip)),
                                  is_double ? DType::kFloat64 : DType::kFloat32};
  return optimizer_step_cuda(args, algorithm, scalars, table.data(), target);
}

}  // namespace

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

template <class Algorithm>
void run_step(const char* op, const StepLists<TensorList>& lists, const StepOptions& options,
              const Algorithm& algorithm) {
  check_lists(op, lists);
  if (lists.params.empty()) return;
  const Tensor& like = lists.params[0];
  // What the kernel on a GPU reads there, the host need not wait for. Steps on the CPU are counted
  // by the host, which then must know whether they count.
  const bool on_gpu = is_on_gpu(like);
  const bool counts_on_gpu =
      on_gpu && std::all_of(lists.steps.begin(), lists.steps.end(), is_on_gpu);
  if (!counts_on_gpu && value_or(options.found_inf, 0) != 0) return;
  StepArgs args{nullptr, 0, options.lr, options.weight_decay};
  args.maximize = options.maximize;
  if (!on_gpu) {
    args.lr = value_or(options.lr_tensor, options.lr);
    args.grad_scale = value_or(options.grad_scale, 1);
    args.clip = value_or(options.clip, 1);
  }
  const std::vector<StepTensor> table = make_table(lists, algorithm);
  mark_all_changed(lists, on_gpu ? options.grad_scale.has_value() : args.grad_scale != 1);
  args.tensors = table.data();
  args.count = static_cast<int64_t>(table.size());
  run_kernel(
      like, [&]<CpuIsa isa> { optimizer_step<isa>(args, algorithm); },
      [&](const auto& target) {
        return step_on_gpu(args, algorithm, options, like, counts_on_gpu, target);
      });
}

template void run_step(const char*, const StepLists<TensorList>&, const StepOptions&, const Adam&);
template void run_step(const char*, const StepLists<TensorList>&, const StepOptions&, const Sgd&);
template void run_step(const char*, const StepLists<TensorList>&, const StepOptions&,
                       const Adagrad&);
template void run_step(const char*, const StepLists<TensorList>&, const StepOptions&,
                       const RmsProp&);

std::pair<std::vector<StepPart>, std::vector<int64_t>> sort_tensors(
    const char* name, const StepLists<const PlainTensors*>& lists) {
  std::vector<StepPart> parts;
  std::vector<int64_t> left;
  for (size_t i = 0; i < lists.params->size(); ++i) {
    if (const char* reason = reason_of(lists, i)) {
      hand_over(name, reason);
      left.push_back(static_cast<int64_t>(i));
      continue;
    }
    const Tensor& param = (*lists.params)[i].tensor;
    auto part = std::find_if(parts.begin(), parts.end(),
                             [&](const StepPart& p) { return p.device == param.device(); });
    if (part == parts.end()) part = parts.insert(part, {param.device(), {}});
    const auto add = [i](std::vector<Tensor>& to, const PlainTensors& from) {
      if (!from.empty()) to.push_back(from[i].tensor);
    };
    add(part->lists.params, *lists.params);
    add(part->lists.grads, *lists.grads);
    for (int k = 0; k < kMaxStates; ++k) add(part->lists.states[k], *lists.states[k]);
    add(part->lists.steps, *lists.steps);
  }
  if (std::any_of(parts.begin(), parts.end(),
                  [](const StepPart& part) { return any_overlap(part.lists.params); })) {
    hand_over(name, "parameters that share memory");
    parts.clear();
    left.resize(lists.params->size());
    std::iota(left.begin(), left.end(), 0);
  }
  return {std::move(parts), std::move(left)};
}

}  // namespace fastdl
