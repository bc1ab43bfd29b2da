// The forward kernels, one translation unit for each arithmetic.
#pragma once

#include "attention/attention_kernel_cuda.cuh"

namespace fastdl {

struct AttentionForward {
  CudaAttention attention;
  const void *query, *key, *value;
  void* output;
  AttentionStrides query_strides, key_strides, value_strides, output_strides;
  float* lse;
  // With splits: output and lse of each, [splits, batch, heads, queries], and dims columns
  float *parts, *part_lse;
  int splits;
};

template <class Math>
Status attention_forward_blocks(const AttentionForward& forward, int block,
                                const CudaTarget& target);

}  // namespace fastdl
