// Which CUDA kernel computes an attention: the table of blocks, and the choice among them by sizes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>

#include "attention/attention.h"
#include "common/row_plan.h"

namespace fastdl {

enum class AttentionPass : int8_t { kForward, kGradKeyValue, kGradQuery, kGradBias };

// How a block computes: `rows()` of its own, queries or in kGradKeyValue keys, against `cols` of
// the others a step. A warp has 16 * row_tiles rows; `parts` warps share them, each with a part of
// the columns of the results. A multiprocessor has registers and shared memory for `blocks`.
struct AttentionBlock {
  AttentionPass pass;
  int bytes;  // of an element
  int dims;   // that head_dim and value_dim are padded to
  int warps, row_tiles, cols, stages, parts, blocks;

  constexpr int rows() const { return warps / parts * row_tiles * 16; }
  constexpr int threads() const { return warps * 32; }
  constexpr int shared_bytes() const {
    const bool forward = pass == AttentionPass::kForward;
    const int tiles = (forward ? rows() : 2 * rows()) + 2 * cols * stages;
    const int terms = pass == AttentionPass::kGradKeyValue ? cols * stages * 8 : 0;
    return tiles * dims * bytes + terms;
  }
};

// Large blocks read the other side least often; two row tiles a warp halve what its products read
// of shared memory. Blocks of one warp are for few queries. All fit into the 99 KB that the GPUs
// between those of data centres have.
inline constexpr AttentionBlock kAttentionBlocks[] = {
    {AttentionPass::kForward, 2, 64, 1, 1, 64, 1, 1, 8},
    {AttentionPass::kForward, 2, 64, 4, 2, 64, 1, 1, 2},
    {AttentionPass::kForward, 2, 128, 1, 1, 64, 1, 1, 4},
    {AttentionPass::kForward, 2, 128, 4, 2, 32, 1, 1, 2},
    {AttentionPass::kForward, 2, 256, 1, 1, 32, 1, 1, 3},
    {AttentionPass::kForward, 2, 256, 4, 1, 32, 1, 1, 2},
    {AttentionPass::kForward, 4, 64, 1, 1, 32, 1, 1, 7},
    {AttentionPass::kForward, 4, 64, 4, 1, 32, 1, 1, 3},
    {AttentionPass::kForward, 4, 128, 1, 1, 32, 1, 1, 3},
    {AttentionPass::kForward, 4, 128, 4, 1, 32, 1, 1, 2},
    {AttentionPass::kForward, 4, 256, 1, 1, 16, 1, 1, 3},
    {AttentionPass::kForward, 4, 256, 2, 1, 32, 1, 1, 1},
    {AttentionPass::kGradKeyValue, 2, 64, 4, 2, 32, 2, 1, 2},
    {AttentionPass::kGradKeyValue, 2, 128, 4, 1, 32, 2, 1, 2},
    {AttentionPass::kGradKeyValue, 2, 256, 8, 1, 32, 1, 2, 1},
    {AttentionPass::kGradKeyValue, 4, 64, 4, 1, 32, 2, 1, 2},
    {AttentionPass::kGradKeyValue, 4, 128, 4, 1, 16, 2, 1, 1},
    {AttentionPass::kGradKeyValue, 4, 256, 4, 1, 16, 1, 2, 1},
    {AttentionPass::kGradQuery, 2, 64, 4, 2, 32, 2, 1, 2},
    {AttentionPass::kGradQuery, 2, 128, 4, 2, 32, 1, 1, 2},
    {AttentionPass::kGradQuery, 2, 256, 4, 1, 32, 1, 1, 1},
    {AttentionPass::kGradQuery, 4, 64, 4, 1, 32, 2, 1, 2},
    {AttentionPass::kGradQuery, 4, 128, 4, 1, 16, 2, 1, 1},
    {AttentionPass::kGradQuery, 4, 256, 2, 1, 16, 1, 1, 1},
    {AttentionPass::kGradBias, 2, 64, 4, 1, 64, 1, 1, 2},
    {AttentionPass::kGradBias, 2, 128, 4, 1, 64, 1, 1, 2},
    {AttentionPass::kGradBias, 2, 256, 4, 1, 32, 1, 1, 1},
    {AttentionPass::kGradBias, 4, 64, 4, 1, 32, 1, 1, 2},
    {AttentionPass::kGradBias, 4, 128, 4, 1, 32, 1, 1, 1},
    {AttentionPass::kGradBias, 4, 256, 2, 1, 16, 1, 1, 1},
};

// What a block of this index of the table is for
constexpr bool has_attention_block(int index, AttentionPass pass, int bytes) {
  return kAttentionBlocks[index].pass == pass && kAttentionBlocks[index].bytes == bytes;
}

inline constexpr int64_t kAttentionFewQueries = 16;

// Bounds of the intervals, of groups of this many queries
inline constexpr int64_t kAttentionGroup = 16;

// Terms of the gradients are padded to a multiple of this many queries, which the rows of all
// blocks divide.
inline constexpr int64_t kAttentionTerms = 128;

// Whether kernels exist. What they do not cover, torch must compute.
inline bool attention_cuda_covers(const AttentionSizes& sizes, DType dtype, DType bias_dtype) {
  constexpr int64_t kMost = int64_t{1} << 30;  // differences of positions are int
  return dtype != DType::kFloat64 && (bias_dtype == dtype || bias_dtype == DType::kFloat32) &&
         sizes.head_dim <= 256 && sizes.value_dim <= 256 && sizes.queries < kMost &&
         sizes.keys < kMost && sizes.batch * sizes.heads < kMost / 1024 &&
         sizes.batch * sizes.heads * ceil_divide(std::max(sizes.queries, sizes.keys), 16) < kMost;
}

struct AttentionCudaPlan {
  int block;   // of kAttentionBlocks
  int splits;  // of the keys, forward only
};

inline int attention_block_of(AttentionPass pass, const AttentionSizes& sizes, DType dtype,
                              bool few_queries) {
  const int bytes = dtype == DType::kFloat32 ? 4 : 2;
  const int64_t dims = std::max(sizes.head_dim, sizes.value_dim);
  for (int i = 0; i < static_cast<int>(std::size(kAttentionBlocks)); ++i) {
    if (!has_attention_block(i, pass, bytes) || kAttentionBlocks[i].dims < dims) continue;
    if (pass == AttentionPass::kForward && (kAttentionBlocks[i].warps == 1) != few_queries)
      continue;
    return i;
  }
  return -1;
}

// Few blocks leave multiprocessors idle: their keys are split, in shares of at least four steps.
// A pure function of its arguments.
inline AttentionCudaPlan plan_attention_cuda(AttentionPass pass, const AttentionSizes& sizes,
                                             DType dtype, int multiprocessors) {
  constexpr int64_t kFewestSteps = 4, kMostSplits = 64;
  const int index = attention_block_of(pass, sizes, dtype, sizes.queries <= kAttentionFewQueries);
  if (pass != AttentionPass::kForward) return {index, 1};
  const AttentionBlock& block = kAttentionBlocks[index];
  const int64_t blocks =
      sizes.batch * sizes.heads * ceil_divide(sizes.queries, int64_t{block.rows()});
  const int64_t steps = ceil_divide(sizes.keys, int64_t{block.cols});
  const int64_t places = int64_t{multiprocessors} * block.blocks;
  const int64_t wanted = places / std::max<int64_t>(blocks, 1);
  return {index, static_cast<int>(
                     std::clamp<int64_t>(std::min(wanted, steps / kFewestSteps), 1, kMostSplits))};
}

}  // namespace fastdl
