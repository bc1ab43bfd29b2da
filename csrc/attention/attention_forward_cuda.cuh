// output = softmax(scale * query key^T, masked) value, and lse, by online softmax over steps of
// keys. A block has some queries of a head, in shared memory; its warps hold the rows' results,
// maxima and sums in registers and go through the keys, `cols` a step, without storing scores.
// Steps that the mask empties are passed over: not loaded, not computed. While scores are computed
// the values of the step are on their way, and during softmax and the second product the next keys.
// Keys and values are read once for each block of queries, mostly from the second cache, as the
// blocks of a head are neighbours; those with most keys under a causal mask come first. With splits
// a block has a part of the steps and leaves its result in float32, to be combined. Floor: 4 *
// pairs that count * head_dim flops. Source: Dao, "FlashAttention-2", 2023.
#pragma once

#include "attention/attention_forward_blocks_cuda.cuh"

namespace fastdl {

// A row's maximum of scores and sum of weights, in units in which scores times `unit` are powers
// of two. The maximum is known to all four lanes of a row, the sum is each lane's own.
struct OnlineSoftmax {
  float maximum = -INFINITY, sum = 0;

  // Where weights begin: no finite score leaves all of them 0.
  __device__ __forceinline__ float offset(float unit) const {
    return maximum == -INFINITY ? 0 : maximum * unit;
  }
  __device__ __forceinline__ float log_of_sum(float unit) const {
    return sum == 0 ? -INFINITY : kLn2 * maximum * unit + logf(sum);
  }
};

// Makes weights of scores; returns what earlier sums must be multiplied with.
template <int cols>
__device__ __forceinline__ void weigh_rows(float (&scores)[cols / 8][4], OnlineSoftmax (&rows)[2],
                                           float (&rescale)[2], float unit) {
  float largest[2] = {rows[0].maximum, rows[1].maximum};
#pragma unroll
  for (int e = 0; e < cols / 2; ++e) {
    largest[e % 4 / 2] = fmaxf(largest[e % 4 / 2], scores[e / 4][e % 4]);
  }
  warp_reduce<Max>(largest, 4);
#pragma unroll
  for (int x = 0; x < 2; ++x) {
    const float before = rows[x].maximum;
    rows[x].maximum = largest[x];
    const float offset = rows[x].offset(unit);
    rescale[x] = ptx::exp2_approx(before * unit - offset);
    rows[x].sum *= rescale[x];
#pragma unroll
    for (int e = 0; e < cols / 4; ++e) {
      float& score = scores[e / 2][2 * x + e % 2];
      score = ptx::exp2_approx(fmaf(score, unit, -offset));
      rows[x].sum += score;
    }
  }
}

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kBlock.blocks)
    attention_forward_block(AttentionForward args) {
  using T = typename Kernel::T;
  using Math = typename Kernel::Math;
  constexpr int kRows = Kernel::kRows, kCols = Kernel::kCols, kDims = Kernel::kDims;
  constexpr int kRowTiles = Kernel::kRowTiles, kThreads = Kernel::kThreads;
  const CudaAttention& all = args.attention;
  const AttentionSizes& sizes = all.sizes;
  const int heads = static_cast<int>(sizes.heads), queries = all.mask.queries;
  const int blocks = (queries + kRows - 1) / kRows;
  const int split = blockIdx.x % args.splits, place = blockIdx.x / args.splits;
  const int first = (blocks - 1 - place % blocks) * kRows, each = place / blocks;
  const int batch = each / heads, head = each % heads;
  const int kv_head = head / static_cast<int>(sizes.heads / sizes.kv_heads);

  const auto query = head_rows(static_cast<const T*>(args.query), args.query_strides, batch, head,
                               queries, sizes.head_dim, all.whole);
  const auto key = head_rows(static_cast<const T*>(args.key), args.key_strides, batch, kv_head,
                             sizes.keys, sizes.head_dim, all.whole);
  const auto value = head_rows(static_cast<const T*>(args.value), args.value_strides, batch,
                               kv_head, sizes.keys, sizes.value_dim, all.whole);
  T* const shared_query = dynamic_shared<T>();
  T* const shared_key = shared_query + kRows * kDims;
  T* const shared_value = shared_key + kCols * kDims;

  const HeadMask mask{all.mask, batch, head};
  Steps steps = key_steps(all.mask, first, first + kRows, kCols);
  const int share = (max(steps.end - steps.first, 0) + args.splits - 1) / args.splits;
  steps.first += split * share;
  TileWalk walk(steps.first, min(steps.first + share, steps.end));
  const auto classify = [&](int tile) {
    return mask.classify({first, first + kRows, tile * kCols, (tile + 1) * kCols});
  };
  bool more = walk.advance(classify);
  if (more) {
    copy_rows<kRows, kDims, kThreads>(shared_query, query, first);
    copy_rows<kCols, kDims, kThreads>(shared_key, key, walk.tile() * kCols);
  }
  ptx::cp_async_commit();

  const int row = Kernel::warp_row();
  const unsigned lane = ptx::lane_id();
  const float unit = all.changes_scores ? kLog2E : all.scale * kLog2E;
  typename Kernel::Sums sums = {};
  OnlineSoftmax softmax[kRowTiles][2];
#pragma unroll 1
  while (more) {
    const int col = walk.tile() * kCols;
    const bool is_full = walk.is_full();
    ptx::cp_async_wait<0>();
    __syncthreads();  // the keys have come, and all have done with the values before
    copy_rows<kCols, kDims, kThreads>(shared_value, value, col);
    ptx::cp_async_commit();
    typename Kernel::Scores scores = {};
    multiply_rows<Math, kDims, kRowTiles, kCols>(scores, shared_query, row, shared_key);
    more = walk.advance(classify);
    __syncthreads();  // all have done with the keys
    if (more) copy_rows<kCols, kDims, kThreads>(shared_key, key, walk.tile() * kCols);
    ptx::cp_async_commit();

#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      const LanePairs<false, kCols> pairs(first + row + 16 * r, col);
      if (all.changes_scores) {
        change_scores<T>(scores[r], nullptr, mask, pairs, all.scale);
      }
      if (!is_full) {
        const uint32_t counting = mask.counting(pairs);
#pragma unroll
        for (int e = 0; e < kCols / 2; ++e) {
          if ((counting >> e & 1) == 0) scores[r][e / 4][e % 4] = -INFINITY;
        }
      }
      float rescale[2];
      weigh_rows<kCols>(scores[r], softmax[r], rescale, unit);
#pragma unroll
      for (int e = 0; e < kDims / 2; ++e) sums[r][e / 4][e % 4] *= rescale[e % 4 / 2];
      if (all.dropout.exists) {
        const uint32_t kept = kept_elements(all.dropout, each, pairs);
#pragma unroll
        for (int e = 0; e < kCols / 2; ++e) {
          if ((kept >> e & 1) == 0) scores[r][e / 4][e % 4] = 0;
        }
      }
    }
    ptx::cp_async_wait<1>();
    __syncthreads();  // the values have come
    multiply_columns<Math, kDims, kRowTiles, kCols, kDims>(sums, scores, shared_value);
  }
  ptx::cp_async_wait<0>();

  const int64_t line = int64_t{each} * queries;
  const int64_t part_line = int64_t{split} * sizes.batch * heads * queries + line;
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
    float totals[2] = {softmax[r][0].sum, softmax[r][1].sum};
    warp_reduce<Sum>(totals, 4);
#pragma unroll
    for (int x = 0; x < 2; ++x) {
      softmax[r][x].sum = totals[x];
      const float factor = totals[x] == 0 ? 0 : all.dropout.scale / totals[x];
#pragma unroll
      for (int j = 0; j < kDims / 8; ++j) {
        sums[r][j][2 * x] *= factor;
        sums[r][j][2 * x + 1] *= factor;
      }
      const int i = first + row + 16 * r + 8 * x + static_cast<int>(lane / 4);
      if (i >= queries) continue;
      if (lane % 4 == 0) {
        float* const lse = args.splits > 1 ? args.part_lse + part_line : args.lse + line;
        lse[i] = softmax[r][x].log_of_sum(unit);
      }
      if (args.splits > 1) {
        float* const part = args.parts + (part_line + i) * kDims + lane % 4 * 2;
#pragma unroll
        for (int j = 0; j < kDims / 8; ++j) {
          *reinterpret_cast<float2*>(part + 8 * j) =
              make_float2(sums[r][j][2 * x], sums[r][j][2 * x + 1]);
        }
      }
    }
  }
  if (args.splits == 1) {
    const auto output = head_rows(static_cast<T*>(args.output), args.output_strides, batch, head,
                                  queries, sizes.value_dim, all.whole);
    store_rows<kDims, kRowTiles, kDims>(shared_query, row, sums, output, first + row, 0);
  }
}

template <class Math>
Status attention_forward_blocks(const AttentionForward& forward, int block,
                                const CudaTarget& target) {
  const AttentionSizes& sizes = forward.attention.sizes;
  Status status;
  dispatch_attention_block<Math, AttentionPass::kForward>(block, [&]<class Kernel> {
    const int64_t blocks = sizes.batch * sizes.heads *
                           ceil_divide(sizes.queries, int64_t{Kernel::kRows}) * forward.splits;
    status = launch(attention_forward_block<Kernel>,
                    {blocks, Kernel::kThreads, Kernel::kBlock.shared_bytes()}, target, forward);
  });
  return status;
}

}  // namespace fastdl
