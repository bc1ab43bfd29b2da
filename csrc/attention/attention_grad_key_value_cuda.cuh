// grad_value = sum over queries of weight * grad_output (what dropout keeps), and
// grad_key = scale * sum of grad_score * query, grad_score = weight * (grad_weight - loss).
// A block has some keys of a head, and their values, in shared memory; its warps hold the rows'
// sums in registers and go through the queries of all heads that read these keys, `cols` a step.
// Scores are computed anew, keys in rows, so that weights and their gradients are in registers as
// the second products take them: 4 products a step, none through shared memory, no atomics, and
// the same order of sums in every run. Steps that the mask empties are passed over. With two stages
// the next step is on its way while one is computed. With two parts, two warps compute the same
// scores, and half of the columns of the results each. Floor: 8 * pairs that count * head_dim
// flops.
#pragma once

#include "attention/attention_backward_blocks_cuda.cuh"

namespace fastdl {

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kBlock.blocks)
    attention_grad_key_value_block(AttentionBackward args) {
  using T = typename Kernel::T;
  using Math = typename Kernel::Math;
  constexpr int kRows = Kernel::kRows, kCols = Kernel::kCols, kDims = Kernel::kDims;
  constexpr int kRowTiles = Kernel::kRowTiles, kThreads = Kernel::kThreads;
  constexpr int kStages = Kernel::kBlock.stages;
  const CudaAttention& all = args.attention;
  const AttentionSizes& sizes = all.sizes;
  const int heads = static_cast<int>(sizes.heads), kv_heads = static_cast<int>(sizes.kv_heads);
  const int blocks = (all.mask.keys + kRows - 1) / kRows;
  const int first = blockIdx.x % blocks * kRows, kv_head = blockIdx.x / blocks % kv_heads;
  const int batch = blockIdx.x / blocks / kv_heads, group = heads / kv_heads;

  T* const shared_key = dynamic_shared<T>();
  T* const shared_value = shared_key + kRows * kDims;
  T* const tiles = shared_value + kRows * kDims;
  AttentionTerms* const all_terms =
      reinterpret_cast<AttentionTerms*>(tiles + 2 * kCols * kDims * kStages);

  int head = kv_head * group;
  const auto start = [&] {
    const Steps steps = query_steps(all.mask, first, first + kRows, kCols);
    return TileWalk(steps.first, steps.end);
  };
  TileWalk walk = start();
  const auto advance = [&] {
    const auto classify = [&](int tile) {
      return HeadMask{all.mask, batch, head}.classify(
          {tile * kCols, (tile + 1) * kCols, first, first + kRows});
    };
    while (!walk.advance(classify)) {
      if (head + 1 == (kv_head + 1) * group) return false;
      ++head;
      walk = start();
    }
    return true;
  };
  const auto copy = [&](int stage) {
    T* const to = tiles + stage * 2 * kCols * kDims;
    const int tile = walk.tile() * kCols;
    const auto query = head_rows(static_cast<const T*>(args.query), args.query_strides, batch, head,
                                 sizes.queries, sizes.head_dim, all.whole);
    const auto grad = head_rows(static_cast<const T*>(args.grad_output), args.grad_output_strides,
                                batch, head, sizes.queries, sizes.value_dim, all.whole);
    copy_rows<kCols, kDims, kThreads>(to, query, tile);
    copy_rows<kCols, kDims, kThreads>(to + kCols * kDims, grad, tile);
    if (threadIdx.x < kCols / 2) {
      ptx::cp_async_16(all_terms + stage * kCols + 2 * threadIdx.x,
                       terms_of(args, batch * heads + head) + tile + 2 * threadIdx.x);
    }
  };

  bool more = advance();
  if (more) {
    const auto key = head_rows(static_cast<const T*>(args.key), args.key_strides, batch, kv_head,
                               sizes.keys, sizes.head_dim, all.whole);
    const auto value = head_rows(static_cast<const T*>(args.value), args.value_strides, batch,
                                 kv_head, sizes.keys, sizes.value_dim, all.whole);
    copy_rows<kRows, kDims, kThreads>(shared_key, key, first);
    copy_rows<kRows, kDims, kThreads>(shared_value, value, first);
    copy(0);
  }
  ptx::cp_async_commit();

  const int row = Kernel::warp_row(), warp_col = Kernel::warp_col();
  typename Kernel::Sums of_key = {}, of_value = {};
  int stage = 0;
#pragma unroll 1
  while (more) {
    const HeadMask mask{all.mask, batch, head};
    const int col = walk.tile() * kCols;
    const bool is_full = walk.is_full();
    ptx::cp_async_wait<0>();
    __syncthreads();  // the step has come, and all have done with the one before
    more = advance();
    if (kStages == 2) {
      if (more) copy(1 - stage);
      ptx::cp_async_commit();
    }
    const T* const shared_query = tiles + stage * 2 * kCols * kDims;
    const T* const shared_grad = shared_query + kCols * kDims;
    const AttentionTerms* const terms = all_terms + stage * kCols + ptx::lane_id() % 4 * 2;
    typename Kernel::Scores gradients = {}, scores = {};
    multiply_rows<Math, kDims, kRowTiles, kCols>(gradients, shared_value, row, shared_grad);
    multiply_rows<Math, kDims, kRowTiles, kCols>(scores, shared_key, row, shared_query);
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      const LanePairs<true, kCols> pairs(first + row + 16 * r, col);
      differentiate<T, false>(scores[r], gradients[r], all, mask, pairs, is_full,
                              batch * heads + mask.head,
                              [&](int q) { return terms[q / 2 * 8 + q % 2]; });
    }
    constexpr int kPartCols = Kernel::kPartCols;
    multiply_columns<Math, kDims, kRowTiles, kCols, kPartCols>(of_value, scores, shared_grad,
                                                               warp_col);
    multiply_columns<Math, kDims, kRowTiles, kCols, kPartCols>(of_key, gradients, shared_query,
                                                               warp_col);
    if (kStages == 1) {
      __syncthreads();
      if (more) copy(0);
      ptx::cp_async_commit();
    } else {
      stage = 1 - stage;
    }
  }
  ptx::cp_async_wait<0>();
  __syncthreads();  // the keys' and values' memory is free

  const auto write = [&](typename Kernel::Sums& sums, float factor, T* shared, void* to,
                         const AttentionStrides& strides, int64_t cols) {
    if (to == nullptr) return;
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int e = 0; e < Kernel::kPartCols / 2; ++e) sums[r][e / 4][e % 4] *= factor;
    }
    const auto rows =
        head_rows(static_cast<T*>(to), strides, batch, kv_head, sizes.keys, cols, all.whole);
    store_rows<kDims, kRowTiles, Kernel::kPartCols>(shared, row, sums, rows, first + row, warp_col);
  };
  write(of_key, all.scale, shared_key, args.grad_key, args.grad_key_strides, sizes.head_dim);
  write(of_value, all.dropout.scale, shared_value, args.grad_value, args.grad_value_strides,
        sizes.value_dim);
}

template <class Math>
Status attention_grad_key_value_blocks(const AttentionBackward& backward, int block,
                                       const CudaTarget& target) {
  const AttentionSizes& sizes = backward.attention.sizes;
  Status status;
  dispatch_attention_block<Math, AttentionPass::kGradKeyValue>(block, [&]<class Kernel> {
    const int64_t blocks =
        sizes.batch * sizes.kv_heads * ceil_divide(sizes.keys, int64_t{Kernel::kRows});
    status = launch(attention_grad_key_value_block<Kernel>,
                    {blocks, Kernel::kThreads, Kernel::kBlock.shared_bytes()}, target, backward);
  });
  return status;
}

}  // namespace fastdl
