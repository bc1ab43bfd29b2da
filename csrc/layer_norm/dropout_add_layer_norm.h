// Contract of dropout_add_layer_norm: layer_norm(dropout(input) + residual), with the mask of
// common/dropout_mask.h over the [rows, cols] elements.
#pragma once

#include <cstdint>

#include "common/cpu_isa.h"
#include "common/cuda_target.h"
#include "common/dtype.h"

namespace fastdl {

// Statistics have the accumulation type: float64 for float64, else float32.
struct DropoutAddNormForwardArgs {
  const void* input;     // [rows, cols], dtype
  const void* residual;  // [rows, cols], dtype
  const void* weight;    // [cols], weight_dtype, or null for ones
  const void* bias;      // [cols], weight_dtype, or null for zeros
  void* output;          // [rows, cols], dtype
  void* sum;             // [rows, cols], dtype: dropout(input) + residual
  void* mean;            // [rows]
  void* rstd;            // [rows]
  int64_t rows, cols;
  double p;  // 0 <= p < 1
  uint64_t seed;
  double eps;
  DType dtype;
  DType weight_dtype;  // equal to dtype, or float32 with a 16-bit dtype
};

struct DropoutAddNormBackwardArgs {
  const void* grad_output;  // [rows, cols], dtype
  const void* grad_sum;     // [rows, cols], dtype, or null for zeros
  const void* sum;          // [rows, cols], dtype
  const void* weight;       // [cols], weight_dtype, or null for ones
  const void* mean;         // [rows]
  const void* rstd;         // [rows]
  void* grad_input;         // [rows, cols], dtype, or null when not wanted or p = 0: see below
  void* grad_residual;      // [rows, cols], dtype: the sum's whole gradient; without dropout also
                            // that of the input
  void* grad_weight;        // [cols], weight_dtype, or null when not wanted
  void* grad_bias;          // [cols], weight_dtype, or null when not wanted
  void* partial_sums;       // [tasks, 2, cols], accumulation type: scratch
  int64_t tasks;            // sets of rows that are summed apart, then added in a fixed order
  int64_t rows, cols;
  double p;
  uint64_t seed;
  DType dtype;
  DType weight_dtype;
};

template <CpuIsa isa>
void dropout_add_norm_forward(const DropoutAddNormForwardArgs& args);
template <CpuIsa isa>
void dropout_add_norm_backward(const DropoutAddNormBackwardArgs& args);

// What args.tasks must be
int64_t dropout_add_norm_tasks_cuda(const DropoutAddNormBackwardArgs& args,
                                    const CudaTarget& target);
Status dropout_add_norm_forward_cuda(const DropoutAddNormForwardArgs& args,
                                     const CudaTarget& target);
Status dropout_add_norm_backward_cuda(const DropoutAddNormBackwardArgs& args,
                                      const CudaTarget& target);

}  // namespace fastdl
