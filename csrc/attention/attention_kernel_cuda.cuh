// What the kernels of attention share: their parameters, and the launch of the right instance.
#pragma once

#include "attention/attention_cuda_plan.h"
#include "attention/attention_product_cuda.cuh"
#include "attention/attention_score_cuda.cuh"
#include "common/launch.cuh"

namespace fastdl {

// An instance of the kernels: kIndex is that of kAttentionBlocks.
template <class Arithmetic, int kIndex>
struct AttentionKernel {
  using Math = Arithmetic;
  using T = typename Math::T;
  static constexpr AttentionBlock kBlock = kAttentionBlocks[kIndex];
  static constexpr int kRows = kBlock.rows(), kCols = kBlock.cols, kDims = kBlock.dims;
  static constexpr int kRowTiles = kBlock.row_tiles, kThreads = kBlock.threads();
  static constexpr int kPartCols = kDims / kBlock.parts;  // of the results of a warp

  // A warp's scores and results
  using Scores = float[kRowTiles][kCols / 8][4];
  using Sums = float[kRowTiles][kPartCols / 8][4];

  // The first of a warp's rows in the block, and of its columns of the results
  static __device__ __forceinline__ int warp_row() {
    return threadIdx.x / kWarp / kBlock.parts * kRowTiles * 16;
  }
  static __device__ __forceinline__ int warp_col() {
    return threadIdx.x / kWarp % kBlock.parts * kPartCols;
  }
};

// What both directions need; `scale` and the masks are used in every kernel.
struct CudaAttention {
  AttentionSizes sizes;
  CudaMask mask;
  CudaDropout dropout;
  float scale;
  bool changes_scores;
  bool whole;  // all rows of all tensors
};

// Which of the keys' steps the band lets some of the queries [first, end) count in
struct Steps {
  int first, end;
};
__device__ __forceinline__ Steps key_steps(const CudaMask& mask, int first_query, int end_query,
                                           int cols) {
  const int first = max(0, first_query + mask.lowest);
  const int end = min(mask.keys, min(end_query, mask.queries) + mask.highest);
  return {first / cols, end <= 0 ? 0 : (end + cols - 1) / cols};
}

__device__ __forceinline__ Steps query_steps(const CudaMask& mask, int first_key, int end_key,
                                             int cols) {
  const int first = max(0, first_key - mask.highest);
  const int end = min(mask.queries, min(end_key, mask.keys) - mask.lowest);
  return {first / cols, end <= 0 ? 0 : (end + cols - 1) / cols};
}

// Calls f.operator()<Kernel>() with the instance for a block of the table.
template <class Math, AttentionPass pass, class F>
void dispatch_attention_block(int index, F&& f) {
  const auto each = [&]<int... indices>(std::integer_sequence<int, indices...>) {
    const auto one = [&]<int i> {
      if constexpr (has_attention_block(i, pass, sizeof(typename Math::T))) {
        if (index == i) f.template operator()<AttentionKernel<Math, i>>();
      }
    };
    (one.template operator()<indices>(), ...);
  };
  each(std::make_integer_sequence<int, static_cast<int>(std::size(kAttentionBlocks))>());
}

}  // namespace fastdl
