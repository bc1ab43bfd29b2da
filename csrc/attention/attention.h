// Contract of attention: of every query i of a head, over the keys j that its mask leaves,
//
//   score[i][j] = scale * query[i] . key[j], capped and biased by the mask (AttentionMask)
//   weight[i][j] = exp(score[i][j] - lse[i]),  lse[i] = log sum over j of exp(score[i][j])
//   output[i] = sum over j of kept[i][j] * weight[i][j] * value[j]
//
// kept is 1, or with dropout of probability p: 0 or 1 / (1 - p). A query without keys has output 0,
// lse -inf and no gradient. Scores are never stored: memory is linear in both lengths.
// Source: Dao, "FlashAttention-2", 2023.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/cpu_isa.h"
#include "common/cuda_target.h"
#include "common/dtype.h"

namespace fastdl {

struct AttentionSizes {
  int64_t batch, heads;
  int64_t kv_heads;  // divides heads: head h reads key and value head h / (heads / kv_heads)
  int64_t queries, keys;
  int64_t head_dim, value_dim;

  int64_t heads_of_a_key() const { return heads / kv_heads; }
};

// Distances in elements in a tensor [batch, heads, rows, cols]; 0 where it is broadcast.
struct AttentionStrides {
  int64_t batch, head, row, col;
};

// Query i and key j count if all that is set here lets them. In this order:
//   score = soft_cap * tanh(score / soft_cap)                             if soft_cap > 0
//   score += bias[i][j] - slope * |i + slope_offset - j|                  if there are such
//   score = -inf                                                          if i and j do not count
struct AttentionMask {
  // The band lowest <= j - i <= highest: causal masks and sliding windows.
  int64_t lowest = INT64_MIN, highest = INT64_MAX;

  // The keys [begin, end) of any of `intervals` pairs; of all, if there are 0. Values lie in
  // [0, keys]; end <= begin is an empty interval. [intervals, batch, heads, queries]
  int64_t intervals = 0;
  const int32_t* begin = nullptr;
  const int32_t* end = nullptr;
  struct {
    int64_t interval, batch, head, row;
  } interval_strides = {};

  // The pairs where this is not 0. [batch, heads, queries, keys]
  const uint8_t* allowed = nullptr;
  AttentionStrides allowed_strides = {};

  // How much of `allowed` counts in tiles of kMaskRows x kMaskCols, as attention_mask_tiles makes
  // it: [batch, heads, tiles of queries, tiles of keys], AttentionTile. Set where `allowed` is.
  const uint8_t* tiles = nullptr;
  AttentionStrides tile_strides = {};

  // [batch, heads, queries, keys], of bias_dtype: the dtype of the query, or float32.
  const void* bias = nullptr;
  AttentionStrides bias_strides = {};
  DType bias_dtype = DType::kFloat32;

  // ALiBi. [batch, heads]
  const float* slopes = nullptr;
  struct {
    int64_t batch, head;
  } slope_strides = {};
  int64_t slope_offset = 0;

  float soft_cap = 0;
};

inline constexpr int64_t kMaskRows = 16, kMaskCols = 64;
enum AttentionTile : uint8_t { kTileEmpty, kTileFull, kTilePartial };

// Random bits are those of the element (common/dropout_mask.h)
//   (((b * heads + h) * row_blocks + i / 16) * col_blocks + j / 16) * 256 + j % 16 * 16 + i % 16,
// blocks of 16 x 16 pairs, so that both vectors of queries and fragments of matrices find theirs
// side by side.
inline constexpr int64_t kDropoutBlock = 16;

struct AttentionDropout {
  double p = 0;  // 0 <= p < 1; 0: none
  uint64_t seed = 0;
};

// Rows of all tensors have their elements side by side (strides.col is 1).
struct AttentionForwardArgs {
  AttentionSizes sizes;
  const void* query;  // [batch, heads, queries, head_dim], dtype
  const void* key;    // [batch, kv_heads, keys, head_dim], dtype
  const void* value;  // [batch, kv_heads, keys, value_dim], dtype
  void* output;       // [batch, heads, queries, value_dim], dtype
  AttentionStrides query_strides, key_strides, value_strides, output_strides;
  float* lse;  // [batch, heads, queries]
  AttentionMask mask;
  AttentionDropout dropout;
  float scale;
  DType dtype;      // float32, bfloat16, float16
  bool allow_tf32;  // of products of float32 on CUDA
  void* workspace;  // attention_forward_workspace() or _cuda() bytes, aligned to 64
};

// Gradients that are not wanted are nullptr.
struct AttentionBackwardArgs {
  AttentionSizes sizes;
  const void *query, *key, *value, *output, *grad_output;
  AttentionStrides query_strides, key_strides, value_strides, output_strides, grad_output_strides;
  const float* lse;  // as of the forward
  void *grad_query, *grad_key, *grad_value;
  AttentionStrides grad_query_strides, grad_key_strides, grad_value_strides;
  float* grad_bias;  // like mask.bias, summed where that is broadcast; zeros before the call
  AttentionStrides grad_bias_strides;
  AttentionMask mask;
  AttentionDropout dropout;
  float scale;
  DType dtype;
  bool allow_tf32;
  void* workspace;  // attention_backward_workspace() or _cuda() bytes, aligned to 64
};

// tiles[b][h][i / kMaskRows][j / kMaskCols] of a mask, contiguous; a size is 1 where the mask is
// broadcast (for rows and cols too).
struct AttentionMaskTilesArgs {
  const uint8_t* allowed;
  AttentionStrides strides;
  int64_t batch, heads, queries, keys;  // of the mask: 1 where it is broadcast
  uint8_t* tiles;
};

// kept[b][h][i][j], 0 or 1 / (1 - p): for second derivatives, which torch computes.
struct AttentionKeptArgs {
  int64_t batch, heads, queries, keys;
  AttentionDropout dropout;
  float* kept;  // contiguous
};

template <CpuIsa isa>
size_t attention_forward_workspace(const AttentionForwardArgs& args);
template <CpuIsa isa>
size_t attention_backward_workspace(const AttentionBackwardArgs& args);

template <CpuIsa isa>
void attention_forward(const AttentionForwardArgs& args);
template <CpuIsa isa>
void attention_backward(const AttentionBackwardArgs& args);
template <CpuIsa isa>
void attention_mask_tiles(const AttentionMaskTilesArgs& args);
template <CpuIsa isa>
void attention_kept(const AttentionKeptArgs& args);

size_t attention_forward_workspace_cuda(const AttentionForwardArgs& args, const CudaTarget& target);
size_t attention_backward_workspace_cuda(const AttentionBackwardArgs& args,
                                         const CudaTarget& target);

Status attention_forward_cuda(const AttentionForwardArgs& args, const CudaTarget& target);
Status attention_backward_cuda(const AttentionBackwardArgs& args, const CudaTarget& target);
Status attention_mask_tiles_cuda(const AttentionMaskTilesArgs& args, const CudaTarget& target);
Status attention_kept_cuda(const AttentionKeptArgs& args, const CudaTarget& target);

}  // namespace fastdl
