// The main loop of convolution as a product of matrices that are found as they are read, the way
// results are written, and the launch of the right kernel: what the three directions share.
#pragma once

#include "common/dispatch.h"
#include "common/launch.cuh"
#include "conv/conv_gather_cuda.cuh"
#include "conv/conv_matrix_cuda.cuh"
#include "conv/conv_product_cuda.cuh"

namespace fastdl {

// An instance of the kernels: T is the tensors' type, kIndex the tile of kConvTiles.
template <class Element, ConvMath kMath, int kIndex, bool kWhole>
struct ConvKernel {
  using T = Element;
  static constexpr ConvTile kTile = kConvTiles[kIndex];
  static constexpr int kThreads = kTile.threads();
  static constexpr bool kVectors = kWhole;  // channels and addresses are multiples of 16 bytes

  template <class A, class B>
  using Product = std::conditional_t<
      sizeof(T) == 2 || kMath == ConvMath::kTf32,
      TensorProduct<T, typename A::Tile, typename B::Tile, kTile.warp_rows, kTile.warp_cols>,
      FmaProduct<typename A::Tile, typename B::Tile, kTile.warp_rows, kTile.warp_cols>>;

  static constexpr int kSharedBytes = kTile.shared_bytes();

  // Sums `steps` tiles of the depth and leaves the results in shared memory, as floats. While one
  // tile is multiplied the next ones are on their way.
  template <class A, class B>
  static __device__ __forceinline__ float* multiply(A& a, B& b, int steps) {
    constexpr int kStages = kTile.stages, kOfA = A::Tile::kElements;
    constexpr int kOfBoth = kOfA + B::Tile::kElements;
    T* const shared = dynamic_shared<T>();
    const auto copy = [&](int stage, bool exists) {
      if (exists) {
        a.copy_next(shared + stage * kOfBoth);
        b.copy_next(shared + stage * kOfBoth + kOfA);
      }
      ptx::cp_async_commit();
    };
#pragma unroll
    for (int stage = 0; stage < kStages - 1; ++stage) copy(stage, stage < steps);

    constexpr int kWarpsAcross = kTile.cols / kTile.warp_cols;
    const int warp = threadIdx.x / 32;
    const int row = warp / kWarpsAcross * kTile.warp_rows;
    const int col = warp % kWarpsAcross * kTile.warp_cols;
    Product<A, B> product(row, col);
    int stage = 0, free_stage = kStages - 1;
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      ptx::cp_async_wait<kStages - 2>();
      __syncthreads();  // the tile has come for all, and all have done with the one before
      copy(free_stage, step + kStages - 1 < steps);
      free_stage = stage;
      product.multiply(shared + stage * kOfBoth, shared + stage * kOfBoth + kOfA);
      stage = stage + 1 == kStages ? 0 : stage + 1;
    }
    ptx::cp_async_wait<0>();
    __syncthreads();
    float* const results = dynamic_shared<float>();
    product.template stage<kTile.cols>(results, row, col);
    __syncthreads();
    return results;
  }

  // Calls write(row, col, values) for every 16 bytes of U among the block's results.
  template <class U, class Write>
  static __device__ __forceinline__ void for_each_result(const float* results, Write&& write) {
    constexpr int W = kVectorWidth<U>, kAcross = kTile.cols / W;
    for (int i = threadIdx.x; i < kTile.rows * kAcross; i += kThreads) {
      const int row = i / kAcross, col = i % kAcross * W;
      float values[W];
#pragma unroll
      for (int k = 0; k < W; k += 4) {
        const float4 four =
            *reinterpret_cast<const float4*>(results + staged_element<kTile.cols>(row, col + k));
        values[k] = four.x;
        values[k + 1] = four.y;
        values[k + 2] = four.z;
        values[k + 3] = four.w;
      }
      write(row, col, values);
    }
  }
};

// Adds the first `count` elements, or all of them from a multiple of 16 bytes.
template <bool kVectors, class T, int W>
__device__ __forceinline__ void add(float (&values)[W], const T* from, int count) {
  if constexpr (kVectors) {
    float added[W];
    load_vector<W>(from).unpack(added);
#pragma unroll
    for (int i = 0; i < W; ++i) values[i] += added[i];
  } else {
#pragma unroll
    for (int i = 0; i < W; ++i) {
      if (i < count) values[i] += widen(from[i]);
    }
  }
}

// Writes the first `count` of the values, or all of them at a multiple of 16 bytes.
template <bool kVectors, class T, int W>
__device__ __forceinline__ void write_results(T* to, const float (&values)[W], int count) {
  if constexpr (kVectors) {
    Vector<T, W> vector;
    vector.pack(values);
    if (count > 0) store_vector<W>(to, vector);
  } else {
#pragma unroll
    for (int i = 0; i < W; ++i) {
      if (i < count) to[i] = narrow<T>(values[i]);
    }
  }
}

// Which part of which product a block computes; products of the groups lie side by side in memory,
// so neighbouring blocks share the rows.
struct BlockPlace {
  int row, col, group, rest;
};

template <class Kernel>
__device__ __forceinline__ BlockPlace block_place(int rows, int cols, int groups) {
  const int across = (cols + Kernel::kTile.cols - 1) / Kernel::kTile.cols;
  const int down = (rows + Kernel::kTile.rows - 1) / Kernel::kTile.rows;
  const int block = blockIdx.x, line = block / across, tile = line / groups;
  return {tile % down * Kernel::kTile.rows, (block - line * across) * Kernel::kTile.cols,
          line - tile * groups, tile / down};
}

// Calls f.operator()<Kernel>() with the instance for a plan. Without `whole` vectors there is one
// tile, which is as good for any split.
template <class F>
void dispatch_conv_kernel(DType dtype, const ConvCudaPlan& plan, bool whole, F&& f) {
  const auto with_tile = [&]<class T, ConvMath math, DType kDType> {
    if (!whole) return f.template operator()<ConvKernel<T, math, kUnevenTile, false>>();
    const auto try_tile = [&]<int index> {
      if constexpr (has_tile(index, kDType, math)) {
        if (plan.tile == index) f.template operator()<ConvKernel<T, math, index, true>>();
      }
    };
    try_tile.template operator()<0>();
    try_tile.template operator()<1>();
    try_tile.template operator()<2>();
    try_tile.template operator()<3>();
    try_tile.template operator()<4>();
    try_tile.template operator()<5>();
  };
  constexpr ConvMath kIeee = ConvMath::kIeee, kTf32 = ConvMath::kTf32;
  if (dtype == DType::kBFloat16) {
    with_tile.template operator()<__nv_bfloat16, kIeee, DType::kBFloat16>();
  } else if (dtype == DType::kFloat16) {
    with_tile.template operator()<__half, kIeee, DType::kFloat16>();
  } else if (plan.math == kTf32) {
    with_tile.template operator()<float, kTf32, DType::kFloat32>();
  } else {
    with_tile.template operator()<float, kIeee, DType::kFloat32>();
  }
}

// Whether all channels of a group and all addresses are multiples of 16 bytes.
template <class... Pointers>
bool has_whole_vectors(const ConvShape& shape, DType dtype, const Pointers*... pointers) {
  const int64_t width = dtype == DType::kFloat32 ? 4 : 8;
  return shape.in_channels / shape.groups % width == 0 &&
         shape.out_channels / shape.groups % width == 0 &&
         ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
}

}  // namespace fastdl
