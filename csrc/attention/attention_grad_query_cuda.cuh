// grad_query = scale * sum over keys of grad_score * key, grad_score = weight * (grad_weight -
// loss). A block has some queries of a head, and their gradients of the output, in shared memory;
// its warps hold the rows' sums in registers and go through the keys and values, `cols` a step, as
// the forward does: 3 products a step. Steps that the mask empties are passed over; with two stages
// the next step is on its way while one is computed. No atomics, the same order of sums in every
// run. Floor: 6 * pairs that count * head_dim flops.
#pragma once

#include "attention/attention_backward_blocks_cuda.cuh"

namespace fastdl {

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kBlock.blocks)
    attention_grad_query_block(AttentionBackward args) {
  using T = typename Kernel::T;
  using Math = typename Kernel::Math;
  constexpr int kRows = Kernel::kRows, kCols = Kernel::kCols, kDims = Kernel::kDims;
  constexpr int kRowTiles = Kernel::kRowTiles, kThreads = Kernel::kThreads;
  constexpr int kStages = Kernel::kBlock.stages;
  const CudaAttention& all = args.attention;
  const AttentionSizes& sizes = all.sizes;
  const int heads = static_cast<int>(sizes.heads);
  const int blocks = (all.mask.queries + kRows - 1) / kRows, each = blockIdx.x / blocks;
  const int first = (blocks - 1 - blockIdx.x % blocks) * kRows;
  const int batch = each / heads, head = each % heads;
  const int kv_head = head / static_cast<int>(sizes.heads / sizes.kv_heads);

  T* const shared_query = dynamic_shared<T>();
  T* const shared_grad = shared_query + kRows * kDims;
  T* const tiles = shared_grad + kRows * kDims;
  const HeadMask mask{all.mask, batch, head};
  const Steps steps = key_steps(all.mask, first, first + kRows, kCols);
  TileWalk walk(steps.first, steps.end);
  const auto classify = [&](int tile) {
    return mask.classify({first, first + kRows, tile * kCols, (tile + 1) * kCols});
  };
  const auto copy = [&](int stage) {
    T* const to = tiles + stage * 2 * kCols * kDims;
    const auto key = head_rows(static_cast<const T*>(args.key), args.key_strides, batch, kv_head,
                               sizes.keys, sizes.head_dim, all.whole);
    const auto value = head_rows(static_cast<const T*>(args.value), args.value_strides, batch,
                                 kv_head, sizes.keys, sizes.value_dim, all.whole);
    copy_rows<kCols, kDims, kThreads>(to, key, walk.tile() * kCols);
    copy_rows<kCols, kDims, kThreads>(to + kCols * kDims, value, walk.tile() * kCols);
  };

  bool more = walk.advance(classify);
  if (more) {
    const auto query = head_rows(static_cast<const T*>(args.query), args.query_strides, batch, head,
                                 sizes.queries, sizes.head_dim, all.whole);
    const auto grad = head_rows(static_cast<const T*>(args.grad_output), args.grad_output_strides,
                                batch, head, sizes.queries, sizes.value_dim, all.whole);
    copy_rows<kRows, kDims, kThreads>(shared_query, query, first);
    copy_rows<kRows, kDims, kThreads>(shared_grad, grad, first);
    copy(0);
  }
  ptx::cp_async_commit();

  const int row = Kernel::warp_row();
  const AttentionTerms* const terms =
      terms_of(args, each) + first + row + ptx::lane_id() / 4;  // read again to save registers
  typename Kernel::Sums sums = {};
  int stage = 0;
#pragma unroll 1
  while (more) {
    const int col = walk.tile() * kCols;
    const bool is_full = walk.is_full();
    ptx::cp_async_wait<0>();
    __syncthreads();  // the step has come, and all have done with the one before
    more = walk.advance(classify);
    if (kStages == 2) {
      if (more) copy(1 - stage);
      ptx::cp_async_commit();
    }
    const T* const shared_key = tiles + stage * 2 * kCols * kDims;
    const T* const shared_value = shared_key + kCols * kDims;
    typename Kernel::Scores gradients = {}, scores = {};
    multiply_rows<Math, kDims, kRowTiles, kCols>(gradients, shared_grad, row, shared_value);
    multiply_rows<Math, kDims, kRowTiles, kCols>(scores, shared_query, row, shared_key);
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      const LanePairs<false, kCols> pairs(first + row + 16 * r, col);
      differentiate<T, false>(scores[r], gradients[r], all, mask, pairs, is_full, each,
                              [&](int q) { return terms[16 * r + 8 * q]; });
    }
    multiply_columns<Math, kDims, kRowTiles, kCols, kDims>(sums, gradients, shared_key);
    if (kStages == 1) {
      __syncthreads();
      if (more) copy(0);
      ptx::cp_async_commit();
    } else {
      stage = 1 - stage;
    }
  }
  ptx::cp_async_wait<0>();

#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
    for (int e = 0; e < kDims / 2; ++e) sums[r][e / 4][e % 4] *= all.scale;
  }
  const auto to = head_rows(static_cast<T*>(args.grad_query), args.grad_query_strides, batch, head,
                            sizes.queries, sizes.head_dim, all.whole);
  store_rows<kDims, kRowTiles, kDims>(shared_query, row, sums, to, first + row, 0);
}

template <class Math>
Status attention_grad_query_blocks(const AttentionBackward& backward, int block,
                                   const CudaTarget& target) {
  const AttentionSizes& sizes = backward.attention.sizes;
  Status status;
  dispatch_attention_block<Math, AttentionPass::kGradQuery>(block, [&]<class Kernel> {
    const int64_t blocks =
        sizes.batch * sizes.heads * ceil_divide(sizes.queries, int64_t{Kernel::kRows});
    status = launch(attention_grad_query_block<Kernel>,
                    {blocks, Kernel::kThreads, Kernel::kBlock.shared_bytes()}, target, backward);
  });
  return status;
}

}  // namespace fastdl
