// Contract of the softmax family: softmax, log_softmax and softmin over one dimension.
#pragma once

#include <cstdint>

#include "common/cpu_isa.h"
#include "common/dtype.h"

namespace fastdl {

enum class SoftmaxKind : int8_t { kSoftmax, kLogSoftmax, kSoftmin };

// A contiguous tensor seen as [outer, size, inner]; the function runs along `size`.
struct SoftmaxForwardArgs {
  const void* input;  // [outer, size, inner], input_dtype
  void* output;       // [outer, size, inner], output_dtype
  int64_t outer, size, inner;
  DType input_dtype;   // equal to output_dtype, or 16-bit with a float32 output
  DType output_dtype;  //
  SoftmaxKind kind;
};

struct SoftmaxBackwardArgs {
  const void* grad_output;  // [outer, size, inner], output_dtype
  const void* output;       // [outer, size, inner], output_dtype
  void* grad_input;         // [outer, size, inner], input_dtype
  int64_t outer, size, inner;
  DType input_dtype;
  DType output_dtype;
  SoftmaxKind kind;
};

template <CpuIsa isa>
void softmax_forward(const SoftmaxForwardArgs& args);
template <CpuIsa isa>
void softmax_backward(const SoftmaxBackwardArgs& args);

}  // namespace fastdl
