// Tiles of two matrices in shared memory, and how threads share the work of copying them there.
//
// Shared memory has chunks of 16 bytes. A tile is kConvDepthBytes deep in the summed dimension and
// is stored the way its matrix lies in memory: by rows of the product, each with the elements to
// sum (kDeep), or by elements to sum, each with the rows of the product. The chunks of a row are
// permuted so that both the copies and the loads of a warp touch all banks alike.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/ptx.cuh"
#include "common/vector_io.cuh"
#include "conv/conv_cuda_plan.h"

namespace fastdl {

template <class T>
inline constexpr int kConvDepth = kConvDepthBytes / sizeof(T);

// `size` rows or columns of a product
template <class T, int size, bool deep>
struct SharedTile {
  static constexpr bool kDeep = deep;
  static constexpr int kSize = size, kWidth = kVectorWidth<T>;
  static constexpr int kRows = deep ? size : kConvDepth<T>;
  static constexpr int kChunks = (deep ? kConvDepth<T> : size) / kWidth;  // of a row
  static constexpr int kElements = size * kConvDepth<T>;

  static __device__ __forceinline__ int element(int row, int chunk) {
    int permuted = chunk;
    if constexpr (kChunks == 4) {
      permuted ^= row / 2 % 4;
    } else if constexpr (sizeof(T) == 2) {
      permuted ^= row % 8;
    } else {
      permuted ^= row % 4 * 2;
    }
    return (row * kChunks + permuted) * kWidth;
  }
};

// The chunk and the rows of a tile that a thread copies
template <class T, class Tile, int threads>
struct ThreadChunks {
  static constexpr int kStep = threads / Tile::kChunks;  // rows from one to the next
  static constexpr int kCount = Tile::kRows / kStep;
  static_assert(kCount * kStep == Tile::kRows && kStep * Tile::kChunks == threads);
  static_assert(kStep % (sizeof(T) == 2 || Tile::kDeep ? 8 : 4) == 0, "permutes all rows alike");
  static __device__ __forceinline__ int chunk() { return threadIdx.x % Tile::kChunks; }
  static __device__ __forceinline__ int column() { return chunk() * Tile::kWidth; }
  static __device__ __forceinline__ int row(int i) {
    return threadIdx.x / Tile::kChunks + i * kStep;
  }
  static __device__ __forceinline__ T* place(T* tile, int i) {
    return tile + Tile::element(row(0), chunk()) + i * kStep * Tile::kChunks * Tile::kWidth;
  }
};

// A channel of a tap, in the order of the packed weight
struct TapCursor {
  int channel, row, col;

  __device__ __forceinline__ void advance(int by, int channels, int cols) {
    channel += by;
    while (channel >= channels) {
      channel -= channels;
      if (++col == cols) {
        col = 0;
        ++row;
      }
    }
  }
};

// 16 bytes, or less: the first `count` elements and zeros. Vectors are multiples of 16 bytes whole.
template <bool kVectors, class T>
__device__ __forceinline__ void copy_chunk(T* to, const T* from, int count) {
  constexpr int W = kVectorWidth<T>;
  if constexpr (kVectors) {
    ptx::cp_async_16_or_zero(to, from, count > 0);
  } else {
    Vector<T, W> vector;
    if (count >= W && reinterpret_cast<uintptr_t>(from) % 16 == 0) {
      vector = load_vector<W>(from);
    } else {
      vector.fill(0);
#pragma unroll
      for (int i = 0; i < W; ++i) {
        if (i < count) vector.load_element(i, from + i);
      }
    }
    store_vector<W>(to, vector);
  }
}

// Of results that wait in shared memory for being written: rows of `cols` floats
template <int cols>
__device__ __forceinline__ int staged_element(int row, int col) {
  return row * cols + ((col / 4 ^ (row % 4 * 2)) * 4 + col % 4);
}

}  // namespace fastdl
