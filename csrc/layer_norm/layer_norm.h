// Contract of layer_norm and rms_norm: normalisation of contiguous rows.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/cpu_isa.h"
#include "common/cuda_target.h"
#include "common/dtype.h"

namespace fastdl {

enum class NormKind : int8_t { kLayerNorm, kRmsNorm };

// Statistics have the accumulation type: float64 for float64, else float32.
struct NormForwardArgs {
  const void* input;   // [rows, cols], dtype
  const void* weight;  // [cols], weight_dtype, or null for ones
  const void* bias;    // [cols], weight_dtype, or null for zeros; null for rms_norm
  void* output;        // [rows, cols], dtype
  void* mean;          // [rows], or null when not wanted; null for rms_norm
  void* rstd;          // [rows], or null when not wanted
  int64_t rows, cols;
  double eps;
  DType dtype;
  DType weight_dtype;  // equal to dtype, or float32 with a 16-bit dtype
  NormKind kind;
  void* scratch = nullptr;  // norm_forward_scratch_cuda() bytes, on CUDA
};

struct NormBackwardArgs {
  const void* grad_output;  // [rows, cols], dtype
  const void* input;        // [rows, cols], dtype
  const void* weight;       // [cols], weight_dtype, or null for ones
  const void* mean;         // [rows]; null for rms_norm
  const void* rstd;         // [rows]
  void* grad_input;         // [rows, cols], dtype, or null when not wanted
  void* grad_weight;        // [cols], weight_dtype, or null when not wanted
  void* grad_bias;          // [cols], weight_dtype, or null when not wanted
  void* partial_sums;       // [tasks, 2, cols], accumulation type: scratch
  int64_t tasks;            // sets of rows that are summed apart, then added in a fixed order
  int64_t rows, cols;
  DType dtype;
  DType weight_dtype;
  NormKind kind;
  void* scratch = nullptr;  // norm_backward_scratch_cuda() bytes, on CUDA
};

template <CpuIsa isa>
void norm_forward(const NormForwardArgs& args);
template <CpuIsa isa>
void norm_backward(const NormBackwardArgs& args);

size_t norm_forward_scratch_cuda(const NormForwardArgs& args, const CudaTarget& target);
size_t norm_backward_scratch_cuda(const NormBackwardArgs& args, const CudaTarget& target);
// What args.tasks must be
int64_t norm_backward_tasks_cuda(const NormBackwardArgs& args, const CudaTarget& target);
Status norm_forward_cuda(const NormForwardArgs& args, const CudaTarget& target);
Status norm_backward_cuda(const NormBackwardArgs& args, const CudaTarget& target);

}  // namespace fastdl
