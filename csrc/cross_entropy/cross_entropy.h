// Contract of the cross entropy losses: cross_entropy of logits with class indices or class
// probabilities, and nll_loss of log-probabilities. All tensors are contiguous, seen as
// [outer, classes, inner]; a "row" is one of the outer * inner lines along the classes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/cpu_isa.h"
#include "common/cuda_target.h"
#include "common/dtype.h"

namespace fastdl {

// Sums and statistics, "A" below, are float64 for float64 and float32 otherwise.
//   q_j = w_j (u + (1 - label_smoothing) probabilities_j), u = label_smoothing / classes
//   hit = (1 - label_smoothing) w_target, for class indices that are not ignored
//   loss = sum_j q_j (lse - x_j) + hit (lse - x_target), lse = log sum_j exp(x_j)
//   grad_input_j = grad ((hit + sum q) softmax(x)_j - q_j - hit [j = target])
// with grad = grad_output / divisor. An ignored row's loss and gradient are 0.
struct CrossEntropyArgs {
  const void* input = nullptr;          // [outer, classes, inner], dtype
  const int64_t* target = nullptr;      // [outer, inner], checked by target_weight
  const void* probabilities = nullptr;  // [outer, classes, inner], dtype; instead of target
  const void* weight = nullptr;         // [classes], A; nullptr: all 1
  const void* grad_output = nullptr;    // A; nullptr: 1
  bool grad_output_of_rows = false;     // [outer, inner]; otherwise one number
  const double* divisor = nullptr;      // nullptr: 1
  void* losses = nullptr;               // [outer, inner], A; nullptr: not wanted
  void* statistics = nullptr;           // [3, outer, inner], A: see the backward
  void* grad_input = nullptr;           // [outer, classes, inner], dtype, or input itself if
                                        // inner is 1; nullptr: not wanted
  int64_t outer = 1, classes = 1, inner = 1;
  int64_t ignore_index = -100;
  double label_smoothing = 0;
  DType dtype = DType::kFloat32;
  void* scratch = nullptr;  // cross_entropy_forward_scratch_cuda() bytes, on CUDA
};

// Writes losses, statistics and grad_input, those that are there. The statistics are what the
// gradient needs of a row: what exp is taken relative to, 1 / sum exp, hit + sum q.
template <CpuIsa isa>
void cross_entropy_forward(const CrossEntropyArgs& args);

// Reads statistics, writes grad_input.
template <CpuIsa isa>
void cross_entropy_backward(const CrossEntropyArgs& args);

size_t cross_entropy_forward_scratch_cuda(const CrossEntropyArgs& args, const CudaTarget& target);
Status cross_entropy_forward_cuda(const CrossEntropyArgs& args, const CudaTarget& target);
Status cross_entropy_backward_cuda(const CrossEntropyArgs& args, const CudaTarget& target);

// The sum of the targets' weights (their number without weight), ignored ones left out: what a mean
// divides by. Sums are taken in blocks of kTargetBlock rows, whatever the number of threads.
struct TargetWeightArgs {
  const int64_t* target;  // [rows]
  const void* weight;     // [classes], A; nullptr: all 1
  int64_t rows, classes, ignore_index;
  DType dtype;
  double* total;            // one number; nullptr: only checks the targets
  void* scratch = nullptr;  // loss_scratch_cuda(rows) bytes, on CUDA
};

// losses summed, divided by the divisor if there is one
struct LossSumArgs {
  const void* losses;     // [rows], A
  const double* divisor;  // one number, or nullptr
  void* output;           // one number, output_dtype
  int64_t rows;
  DType dtype, output_dtype;
  void* scratch = nullptr;  // loss_scratch_cuda(rows) bytes, on CUDA
};

// nll_loss: loss = -w_target x_target, and its gradient grad_input_j = -grad w_target [j = target].
struct NllLossArgs {
  const void* input = nullptr;  // dtype; strides below
  const int64_t* target = nullptr;
  const void* weight = nullptr;
  const void* grad_output = nullptr;
  bool grad_output_of_rows = false;
  const double* divisor = nullptr;
  void* losses = nullptr;      // [outer, inner], A
  void* grad_input = nullptr;  // [outer, classes, inner], dtype, contiguous,
                               // zeros: the targets alone are written
  int64_t outer = 1, classes = 1, inner = 1;
  int64_t outer_stride = 0, class_stride = 0, inner_stride = 0;  // of input, in elements
  int64_t ignore_index = -100;
  DType dtype = DType::kFloat32;
};

inline constexpr int64_t kTargetBlock = 16384;

// The first target outside [0, classes) that is not ignored, or -1 for "none" with found = false.
struct TargetOutOfBounds {
  bool found;
  int64_t target;
};

template <CpuIsa isa>
TargetOutOfBounds target_weight(const TargetWeightArgs& args);
template <CpuIsa isa>
void loss_sum(const LossSumArgs& args);
template <CpuIsa isa>
void nll_loss_forward(const NllLossArgs& args);
template <CpuIsa isa>
void nll_loss_backward(const NllLossArgs& args);

// gradient *= factor, one number; nothing is read or written but the factor where that is 1.
struct ScaleGradientArgs {
  void* gradient;      // [count], dtype
  const void* factor;  // A
  int64_t count;
  DType dtype;
};

// On CUDA a target out of bounds stops the kernel with an error, as in torch.
size_t loss_scratch_cuda(int64_t rows);
Status target_weight_cuda(const TargetWeightArgs& args, const CudaTarget& target);
Status loss_sum_cuda(const LossSumArgs& args, const CudaTarget& target);
Status nll_loss_forward_cuda(const NllLossArgs& args, const CudaTarget& target);
Status nll_loss_backward_cuda(const NllLossArgs& args, const CudaTarget& target);
Status scale_gradient_cuda(const ScaleGradientArgs& args, const CudaTarget& target);

}  // namespace fastdl
