// Rows of a head's matrices between memory and shared memory, padded with zeros to `dims` columns.
// Shared memory has chunks of 16 bytes; those of a row are permuted by its number, so that eight
// rows of one chunk, as the products read them, lie in different banks.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "attention/attention.h"
#include "common/ptx.cuh"
#include "common/reduce.cuh"
#include "common/vector_io.cuh"

namespace fastdl {

// The rows of a head
template <class T>
struct HeadRows {
  T* first;
  int64_t stride;
  int rows, cols;
  bool whole;  // all rows and their ends lie at multiples of 16 bytes
};

template <class T>
__device__ __forceinline__ HeadRows<T> head_rows(T* data, const AttentionStrides& strides,
                                                 int batch, int head, int64_t rows, int64_t cols,
                                                 bool whole) {
  return {data + batch * strides.batch + head * strides.head, strides.row, static_cast<int>(rows),
          static_cast<int>(cols), whole};
}

template <class T, int dims>
struct SharedRows {
  static constexpr int kWidth = kVectorWidth<T>, kChunks = dims / kWidth;

  // The first element of chunk `chunk + odd`: `chunk` is even, `odd` 0 or 1. Where `chunk` is a
  // constant, only its remainder by 8 needs an address of its own.
  static __device__ __forceinline__ int element(unsigned row, unsigned chunk, unsigned odd) {
    return (row * kChunks + chunk / 8 * 8 + (chunk % 8 ^ odd ^ row % 8)) * kWidth;
  }
  static __device__ __forceinline__ int element(unsigned row, unsigned chunk) {
    return element(row, chunk, 0);
  }
};

template <int rows, int dims, int threads, class T>
__device__ __forceinline__ void copy_rows(T* shared, const HeadRows<const T>& from, int first) {
  using Shared = SharedRows<T, dims>;
  constexpr int W = Shared::kWidth;
  static_assert(rows * Shared::kChunks % threads == 0);
  if (from.whole) {
#pragma unroll 1  // more takes registers that the loops around it lack
    for (int n = 0; n < rows * Shared::kChunks / threads; ++n) {
      const int i = n * threads + threadIdx.x, row = i / Shared::kChunks,
                chunk = i % Shared::kChunks;
      const bool exists = first + row < from.rows && chunk * W < from.cols;
      const T* const source = from.first + (first + row) * from.stride + chunk * W;
      ptx::cp_async_16_or_zero(shared + Shared::element(row, chunk), exists ? source : from.first,
                               exists);
    }
    return;
  }
#pragma unroll 1
  for (int i = threadIdx.x; i < rows * Shared::kChunks; i += threads) {
    const int row = i / Shared::kChunks, chunk = i % Shared::kChunks;
    Vector<T, W> vector;
    vector.fill(0);
    if (first + row < from.rows) {
      const T* const source = from.first + (first + row) * from.stride + chunk * W;
#pragma unroll
      for (int k = 0; k < W; ++k) {
        if (chunk * W + k < from.cols) vector.load_element(k, source + k);
      }
    }
    store_vector<W>(shared + Shared::element(row, chunk), vector);
  }
}

// Writes a warp's results, [16 * row_tiles] x [cols] from first_col on, to the rows from `first`
// on, through the rows from `row` on in shared memory, which no other warp uses.
template <int dims, int row_tiles, int cols, class T>
__device__ __forceinline__ void store_rows(T* shared, int row,
                                           const float (&sums)[row_tiles][cols / 8][4],
                                           const HeadRows<T>& to, int first, int first_col) {
  using Shared = SharedRows<T, dims>;
  constexpr int W = Shared::kWidth;
  const unsigned lane = ptx::lane_id();
  __syncwarp();
#pragma unroll
  for (int r = 0; r < 2 * row_tiles; ++r) {
#pragma unroll
    for (int j = 0; j < cols / 8; ++j) {
      const unsigned col = first_col + 8 * j + lane % 4 * 2;
      const float low = sums[r / 2][j][r % 2 * 2], high = sums[r / 2][j][r % 2 * 2 + 1];
      T* const pair = shared + Shared::element(row + 8 * r + lane / 4, col / W) + col % W;
      if constexpr (sizeof(T) == 2) {
        *reinterpret_cast<uint32_t*>(pair) = pack_pair(low, high, T());
      } else {
        *reinterpret_cast<float2*>(pair) = make_float2(low, high);
      }
    }
  }
  __syncwarp();
  constexpr int kAcross = cols / W;
#pragma unroll 4
  for (unsigned i = lane; i < 16 * row_tiles * kAcross; i += kWarp) {
    const int line = i / kAcross, chunk = first_col / W + static_cast<int>(i % kAcross);
    if (first + line >= to.rows) continue;
    const Vector<T, W> vector = load_vector<W>(shared + Shared::element(row + line, chunk));
    T* const target = to.first + (first + line) * to.stride + chunk * W;
    if (to.whole) {
      if (chunk * W < to.cols) store_vector<W>(target, vector);
    } else {
#pragma unroll
      for (int k = 0; k < W; ++k) {
        if (chunk * W + k < to.cols) vector.store_element(k, target + k);
      }
    }
  }
}

}  // namespace fastdl
