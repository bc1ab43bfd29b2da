// Contract of the softmax family: softmax, log_softmax and softmin over one dimension.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/cpu_isa.h"
#include "common/cuda_target.h"
#include "common/dtype.h"

namespace fastdl {

enum class SoftmaxKind : int8_t { kSoftmax, kLogSoftmax, kSoftmin };

// A contiguous tensor seen as [outer, size, inner]; the function runs along `size`. On CUDA, if
// inner is 1, all tensors of a call lie equally many elements after a multiple of 16 bytes.
struct SoftmaxForwardArgs {
  const void* input;  // [outer, size, inner], input_dtype
  void* output;       // [outer, size, inner], output_dtype
  int64_t outer, size, inner;
  DType input_dtype;   // equal to output_dtype, or 16-bit with a float32 output
  DType output_dtype;  //
  SoftmaxKind kind;
  void* scratch = nullptr;  // softmax_forward_scratch_cuda() bytes, on CUDA
};

struct SoftmaxBackwardArgs {
  const void* grad_output;  // [outer, size, inner], output_dtype
  const void* output;       // [outer, size, inner], output_dtype
  void* grad_input;         // [outer, size, inner], input_dtype
  int64_t outer, size, inner;
  DType input_dtype;
  DType output_dtype;
  SoftmaxKind kind;
  void* scratch = nullptr;  // softmax_backward_scratch_cuda() bytes, on CUDA
};

template <CpuIsa isa>
void softmax_forward(const SoftmaxForwardArgs& args);
template <CpuIsa isa>
void softmax_backward(const SoftmaxBackwardArgs& args);

size_t softmax_forward_scratch_cuda(const SoftmaxForwardArgs& args, const CudaTarget& target);
size_t softmax_backward_scratch_cuda(const SoftmaxBackwardArgs& args, const CudaTarget& target);
Status softmax_forward_cuda(const SoftmaxForwardArgs& args, const CudaTarget& target);
Status softmax_backward_cuda(const SoftmaxBackwardArgs& args, const CudaTarget& target);

}  // namespace fastdl
