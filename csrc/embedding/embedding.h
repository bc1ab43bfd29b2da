// Contract of embedding: rows of a matrix, looked up by index, and the sum of their gradients.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/cpu_isa.h"
#include "common/cuda_target.h"
#include "common/dtype.h"

namespace fastdl {

// Indices lie one after the other, int64 or int32. On the CPU they must be in [0, vocabulary), on
// CUDA one that is not stops the kernel.
struct EmbeddingIndices {
  const void* data;  // [count]
  int64_t count;
  int64_t vocabulary;
  bool is_int64;
};

struct EmbeddingForwardArgs {
  EmbeddingIndices indices;
  const void* weight;  // vocabulary rows of row_bytes, weight_stride bytes apart
  void* output;        // [count, row_bytes]
  int64_t row_bytes;   // not 0
  int64_t weight_stride;
};

struct EmbeddingBackwardArgs {
  EmbeddingIndices indices;  // fewer than 2^31
  const void* grad_output;   // [count, dim]
  void* grad_weight;         // [vocabulary, dim], all of it is written
  int64_t dim;
  int64_t padding_idx;  // whose row gets no gradient, or -1
  DType dtype;
  void* scratch = nullptr;  // embedding_backward_scratch_cuda() bytes, on CUDA
};

template <CpuIsa isa>
bool embedding_indices_in_range(const EmbeddingIndices& indices);
template <CpuIsa isa>
void embedding_forward(const EmbeddingForwardArgs& args);
template <CpuIsa isa>
void embedding_backward(const EmbeddingBackwardArgs& args);

Status embedding_forward_cuda(const EmbeddingForwardArgs& args, const CudaTarget& target);
size_t embedding_backward_scratch_cuda(const EmbeddingBackwardArgs& args, const CudaTarget& target);
Status embedding_backward_cuda(const EmbeddingBackwardArgs& args, const CudaTarget& target);

}  // namespace fastdl
