// grad_bias = weight * (grad_weight - loss), summed over the dimensions that the bias is broadcast
// along. A block has a tile of the bias and computes its pairs of every head and batch entry that
// reads it, and of every tile of queries or keys where the bias has one row or column, in order:
// no atomics, the same sums in every run. 2 products a step; a step that the mask empties is passed
// over. This repeats products of the other gradients, but needs no memory for single gradients.
// Limits: a bias with few elements keeps few multiprocessors busy.
#pragma once

#include "attention/attention_backward_blocks_cuda.cuh"

namespace fastdl {

// How many steps a block sums along each dimension, and how many blocks there are
struct BiasSteps {
  int batch, heads, rows, cols;

  __host__ __device__ int64_t count() const { return int64_t{batch} * heads * rows * cols; }
};

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kBlock.blocks)
    attention_grad_bias_block(AttentionBackward args, BiasSteps sums_of, BiasSteps blocks) {
  using T = typename Kernel::T;
  using Math = typename Kernel::Math;
  constexpr int kRows = Kernel::kRows, kCols = Kernel::kCols, kDims = Kernel::kDims;
  constexpr int kThreads = Kernel::kThreads, kPitch = kCols + 1;
  static_assert(Kernel::kRowTiles == 1);
  const CudaAttention& all = args.attention;
  const AttentionSizes& sizes = all.sizes;
  const int heads = static_cast<int>(sizes.heads);
  const int group = static_cast<int>(sizes.heads / sizes.kv_heads);
  const int tile_col = blockIdx.x % blocks.cols, tile_row = blockIdx.x / blocks.cols % blocks.rows;
  const int of_heads = blockIdx.x / blocks.cols / blocks.rows;

  T* const shared_query = dynamic_shared<T>();
  T* const shared_grad = shared_query + kRows * kDims;
  T* const shared_key = shared_grad + kRows * kDims;
  T* const shared_value = shared_key + kCols * kDims;
  const int row = Kernel::warp_row();
  float sums[kCols / 8][4] = {};
  const int64_t steps = sums_of.count();
#pragma unroll 1
  for (int64_t step = 0; step < steps; ++step) {
    const int line = static_cast<int>(step / sums_of.cols), lines = line / sums_of.rows;
    const int col = (tile_col + static_cast<int>(step % sums_of.cols)) * kCols;
    const int first = (tile_row + line % sums_of.rows) * kRows;
    const int head = of_heads % blocks.heads + lines % sums_of.heads;
    const int batch = of_heads / blocks.heads + lines / sums_of.heads;
    const HeadMask mask{all.mask, batch, head};
    const AttentionTile kind = mask.classify({first, first + kRows, col, col + kCols});
    if (kind == kTileEmpty) continue;

    const auto query = head_rows(static_cast<const T*>(args.query), args.query_strides, batch, head,
                                 sizes.queries, sizes.head_dim, all.whole);
    const auto grad = head_rows(static_cast<const T*>(args.grad_output), args.grad_output_strides,
                                batch, head, sizes.queries, sizes.value_dim, all.whole);
    const auto key = head_rows(static_cast<const T*>(args.key), args.key_strides, batch,
                               head / group, sizes.keys, sizes.head_dim, all.whole);
    const auto value = head_rows(static_cast<const T*>(args.value), args.value_strides, batch,
                                 head / group, sizes.keys, sizes.value_dim, all.whole);
    __syncthreads();  // all have done with the step before
    copy_rows<kRows, kDims, kThreads>(shared_query, query, first);
    copy_rows<kRows, kDims, kThreads>(shared_grad, grad, first);
    copy_rows<kCols, kDims, kThreads>(shared_key, key, col);
    copy_rows<kCols, kDims, kThreads>(shared_value, value, col);
    ptx::cp_async_commit();
    const AttentionTerms* const terms =
        terms_of(args, batch * heads + head) + first + row + ptx::lane_id() / 4;
    ptx::cp_async_wait<0>();
    __syncthreads();
    typename Kernel::Scores gradients = {}, scores = {};
    multiply_rows<Math, kDims, 1, kCols>(gradients, shared_grad, row, shared_value);
    multiply_rows<Math, kDims, 1, kCols>(scores, shared_query, row, shared_key);
    differentiate<T, true>(scores[0], gradients[0], all, mask,
                           LanePairs<false, kCols>(first + row, col), kind == kTileFull,
                           batch * heads + head, [&](int q) { return terms[8 * q]; });
#pragma unroll
    for (int e = 0; e < kCols / 2; ++e) sums[e / 4][e % 4] += gradients[0][e / 4][e % 4];
  }
  __syncthreads();

  // Sums of rows or columns, where the bias has one.
  float* const shared_sums = dynamic_shared<float>();
  const LanePairs<false, kCols> pairs(row, 0);
#pragma unroll
  for (int e = 0; e < kCols / 2; ++e) {
    shared_sums[pairs.query(e % 4 / 2) * kPitch + pairs.key(e / 4 * 2 + e % 2)] =
        sums[e / 4][e % 4];
  }
  __syncthreads();
  const AttentionStrides& strides = args.grad_bias_strides;
  const int added_rows = strides.row == 0 ? kRows : 1, added_cols = strides.col == 0 ? kCols : 1;
  float* const to = args.grad_bias + of_heads / blocks.heads * strides.batch +
                    of_heads % blocks.heads * strides.head;
  for (int at = threadIdx.x; at < kRows * kCols / added_rows / added_cols; at += kThreads) {
    const int across = kCols / added_cols, i = at / across, j = at % across;
    const int64_t query = int64_t{tile_row} * kRows + i, key = int64_t{tile_col} * kCols + j;
    if (query >= sizes.queries || key >= sizes.keys) continue;
    float sum = 0;
    for (int r = i; r < i + added_rows; ++r) {
      for (int c = j; c < j + added_cols; ++c) sum += shared_sums[r * kPitch + c];
    }
    to[query * strides.row + key * strides.col] = sum;
  }
}

template <class Math>
Status attention_grad_bias_blocks(const AttentionBackward& backward, int block,
                                  const CudaTarget& target) {
  const AttentionSizes& sizes = backward.attention.sizes;
  const AttentionStrides& strides = backward.grad_bias_strides;
  Status status;
  dispatch_attention_block<Math, AttentionPass::kGradBias>(block, [&]<class Kernel> {
    const int batch = static_cast<int>(sizes.batch), heads = static_cast<int>(sizes.heads);
    const int rows = static_cast<int>(ceil_divide(sizes.queries, int64_t{Kernel::kRows}));
    const int cols = static_cast<int>(ceil_divide(sizes.keys, int64_t{Kernel::kCols}));
    const BiasSteps steps{strides.batch == 0 ? batch : 1, strides.head == 0 ? heads : 1,
                          strides.row == 0 ? rows : 1, strides.col == 0 ? cols : 1};
    const BiasSteps blocks{batch / steps.batch, heads / steps.heads, rows / steps.rows,
                           cols / steps.cols};
    status = launch(attention_grad_bias_block<Kernel>,
                    {blocks.count(), Kernel::kThreads, Kernel::kBlock.shared_bytes()}, target,
                    backward, steps, blocks);
  });
  return status;
}

}  // namespace fastdl
