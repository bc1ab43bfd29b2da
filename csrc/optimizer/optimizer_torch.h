// What the torch ops of all optimizers share: checks, the table of tensors, steps and devices.
#pragma once

#include <array>
#include <optional>
#include <vector>

#include "optimizer/optimizer.h"
#include "torch/checks.h"

namespace fastdl {

using PlainTensors = std::vector<PlainTensor>;
using OptionalPlainTensor = std::optional<PlainTensor>;
using OptionalTensor = std::optional<at::Tensor>;

// The tensors of a step, one of each list a parameter; a list that the step does without is empty.
template <class List>
struct StepLists {
  List params, grads;
  std::array<List, kMaxStates> states;
  List steps;
};

// The options that all optimizers share. lr_tensor, if any, takes the place of lr: on a GPU without
// being read by the host. So do the other tensors.
struct StepOptions {
  double lr, weight_decay;
  bool maximize;
  OptionalTensor lr_tensor, grad_scale, found_inf, clip;
};

// Checks the tensors, which must be on one device, counts the step and takes it.
template <class Algorithm>
void run_step(const char* op, const StepLists<at::TensorList>& lists, const StepOptions& options,
              const Algorithm& algorithm);

// The covered tensors of a call that are on one device.
struct StepPart {
  at::Device device;
  StepLists<std::vector<at::Tensor>> lists;
};

// Sorts what a kernel covers by device and gives the indices of all other tensors, each of which is
// counted as a hand-over of `name`.
std::pair<std::vector<StepPart>, std::vector<int64_t>> sort_tensors(
    const char* name, const StepLists<const PlainTensors*>& lists);

// Whether two of these dense tensors share memory: one parallel pass must not update it twice.
bool any_overlap(at::TensorList tensors);

inline void mark_changed(const at::Tensor& tensor) {
  if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
}

inline OptionalTensor plain(const OptionalPlainTensor& tensor) {
  return tensor ? OptionalTensor(tensor->tensor) : OptionalTensor();
}

}  // namespace fastdl
