// The small kernels before and after those of attention. Memory and work are linear in the lengths,
// but for those that make a matrix of pairs.
#pragma once

#include "attention/attention_backward_blocks_cuda.cuh"

namespace fastdl {

// Bounds of a mask's intervals: bytes in the workspace, and their computation, which also fills in
// where mask.bounds lie.
size_t interval_bounds_bytes(const AttentionMask& mask, const AttentionSizes& sizes);
Status find_interval_bounds(CudaMask& mask, const AttentionSizes& sizes, void* workspace,
                            const CudaTarget& target);

// What splits have left, to be combined: [splits, rows, dims] and [splits, rows], where rows are
// those of [batch, heads, queries].
struct AttentionParts {
  const float *parts, *lse;
  int splits, dims;
  int64_t rows;
};
Status combine_attention_parts(const AttentionParts& parts, const AttentionForwardArgs& args,
                               const CudaTarget& target);

// What gradients need of each row, with the padded ones after it.
size_t attention_terms_bytes(const AttentionSizes& sizes);
Status find_attention_terms(const AttentionBackwardArgs& args, void* terms,
                            const CudaTarget& target);

}  // namespace fastdl
