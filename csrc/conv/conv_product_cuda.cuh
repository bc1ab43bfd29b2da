// The products of a warp's parts of two tiles in shared memory: on tensor cores, and in float32.
#pragma once

#include "conv/conv_tile_cuda.cuh"

namespace fastdl {

// What the mma of a warp take of a tile: 16 rows of the product at a time for a, or 16 columns (two
// pairs of registers) for b, and two chunks of the depth. Where a lane reads depends on the chunks'
// permutation only in few ways; these offsets are kept, so that the loop adds constants to them.
template <class T, class Tile, bool kOfA>
class Fragments {
 public:
  __device__ __forceinline__ explicit Fragments(int first) {
    const int lane = ptx::lane_id(), inner = lane % 8, low = lane / 8 % 2, high = lane / 16;
    const int along = kOfA ? low : high, deep = kOfA ? high : low;  // the lane's matrix of four
#pragma unroll
    for (int i = 0; i < kWays; ++i) {
      if constexpr (Tile::kDeep) {
        offsets_[i] = Tile::element(first + along * 8 + inner, 2 * i + deep);
      } else if constexpr (kPairs) {
        offsets_[i] = Tile::element(deep * 8 + inner, first / 8 + 2 * i + along);
      } else {  // one 8 x 4 matrix of single loads
        offsets_[i] = Tile::element(lane % 4, first / 4 + 2 * i + lane / 16) + lane / 4 % 4;
      }
    }
  }

  // Fragment i along the product, chunks 2 step and the next of the depth
  __device__ __forceinline__ void load(uint32_t (&r)[4], const T* tile, int i, int step) const {
    constexpr int kRow = Tile::kChunks * Tile::kWidth;
    if constexpr (Tile::kDeep) {
      ptx::ldmatrix_x4(r, tile + offsets_[step] + i * 16 * kRow);
    } else if constexpr (kPairs) {
      ptx::ldmatrix_x4_trans(r, tile + offsets_[i] + step * 16 * kRow);
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int along = kOfA ? j % 2 : j / 2, deep = kOfA ? j / 2 : j % 2;
        r[j] = __float_as_uint(
            tile[offsets_[i % 2 * 2 + along] + i / 2 * 32 + (2 * step + deep) * 4 * kRow]);
      }
    }
    if constexpr (!kPairs) {
#pragma unroll
      for (uint32_t& word : r) word = ptx::to_tf32(__uint_as_float(word));
    }
  }

 private:
  static constexpr bool kPairs = sizeof(T) == 2;
  static constexpr int kWays = Tile::kDeep ? 2 : 4;
  int offsets_[kWays];
};

// A warp's rows x cols of a product, on tensor cores
template <class T, class A, class B, int rows, int cols>
class TensorProduct {
 public:
  __device__ __forceinline__ TensorProduct(int first_row, int first_col)
      : of_a_(first_row), of_b_(first_col) {}

  __device__ __forceinline__ void multiply(const T* a, const T* b) {
#pragma unroll
    for (int step = 0; step < kConvDepthBytes / 32; ++step) {
      uint32_t of_a[rows / 16][4], of_b[cols / 16][4];
#pragma unroll
      for (int i = 0; i < rows / 16; ++i) of_a_.load(of_a[i], a, i, step);
#pragma unroll
      for (int j = 0; j < cols / 16; ++j) of_b_.load(of_b[j], b, j, step);
#pragma unroll
      for (int i = 0; i < rows / 16; ++i) {
#pragma unroll
        for (int j = 0; j < cols / 8; ++j) {
          mma(sums_[i][j], of_a[i], {of_b[j / 2][j % 2 * 2], of_b[j / 2][j % 2 * 2 + 1]});
        }
      }
    }
  }

  template <int block_cols>
  __device__ __forceinline__ void stage(float* to, int first_row, int first_col) const {
    const int row = first_row + ptx::lane_id() / 4, col = first_col + ptx::lane_id() % 4 * 2;
#pragma unroll
    for (int i = 0; i < rows / 8; ++i) {
#pragma unroll
      for (int j = 0; j < cols / 8; ++j) {
        const float (&sums)[4] = sums_[i / 2][j];
        *reinterpret_cast<float2*>(to + staged_element<block_cols>(row + i * 8, col + j * 8)) =
            make_float2(sums[i % 2 * 2], sums[i % 2 * 2 + 1]);
      }
    }
  }

 private:
  static __device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]) {
    if constexpr (std::is_same_v<T, __nv_bfloat16>) {
      ptx::mma_m16n8k16_bf16(d, a, b);
    } else if constexpr (std::is_same_v<T, __half>) {
      ptx::mma_m16n8k16_f16(d, a, b);
    } else {
      ptx::mma_m16n8k8_tf32(d, a, b);
    }
  }

  Fragments<T, A, true> of_a_;
  Fragments<T, B, false> of_b_;
  float sums_[rows / 16][cols / 8][4] = {};
};

// The same in float32. Of a warp 4 lanes share the rows and 8 the columns.
template <class A, class B, int rows, int cols>
class FmaProduct {
 public:
  __device__ __forceinline__ FmaProduct(int first_row, int first_col)
      : row_(place<A, 4>(first_row, ptx::lane_id() / 8, 0)),
        col_(place<B, 8>(first_col, ptx::lane_id() % 8, 0)) {}

  __device__ __forceinline__ void multiply(const float* a, const float* b) {
#pragma unroll 1  // more would load more at once than there are registers
    for (int chunk = 0; chunk < kConvDepthBytes / 16; ++chunk) {
#pragma unroll
      for (int k = 0; k < 4; k += 2) {
        float of_a[2][kRows], of_b[2][kCols];
        load<A, 4>(of_a, a, row_, chunk, k);
        load<B, 8>(of_b, b, col_, chunk, k);
#pragma unroll
        for (int both = 0; both < 2; ++both) {
#pragma unroll
          for (int i = 0; i < kRows; ++i) {
#pragma unroll
            for (int j = 0; j < kCols; ++j) {
              sums_[i][j] = fmaf(of_a[both][i], of_b[both][j], sums_[i][j]);
            }
          }
        }
      }
    }
  }

  template <int block_cols>
  __device__ __forceinline__ void stage(float* to, int, int) const {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kCols; ++j) {
        to[staged_element<block_cols>(row_ + place<A, 4>(0, 0, i), col_ + place<B, 8>(0, 0, j))] =
            sums_[i][j];
      }
    }
  }

 private:
  static constexpr int kRows = rows / 4, kCols = cols / 8;

  // Which row or column is the i-th of a lane's, of `lanes`: neighbouring ones lie 16 bytes apart
  // in a tile that is not deep.
  template <class Tile, int lanes>
  static __device__ __forceinline__ int place(int first, int lane, int i) {
    return first + (Tile::kDeep ? lane + lanes * i : (i / 4 * lanes + lane) * 4 + i % 4);
  }

  // Elements k and k + 1 of a chunk's depth, of the rows or columns from `at` on. How the chunks
  // are permuted repeats every 8 rows of a deep tile.
  template <class Tile, int lanes, int count>
  static __device__ __forceinline__ void load(float (&values)[2][count], const float* tile, int at,
                                              int chunk, int k) {
    constexpr int kRow = Tile::kChunks * Tile::kWidth, kAlike = 8 / lanes;
    if constexpr (Tile::kDeep) {
#pragma unroll
      for (int i = 0; i < count; ++i) {
        const int near = Tile::element(at + lanes * (i % kAlike), chunk);
        const float2 pair =
            *reinterpret_cast<const float2*>(tile + near + i / kAlike * 8 * kRow + k);
        values[0][i] = pair.x;
        values[1][i] = pair.y;
      }
    } else {
#pragma unroll
      for (int i = 0; i < 2 * count; i += 4) {
        const int both = i / count,
                  offset = Tile::element(k + both, at / 4 + i % count / 4 * lanes);
        const float4 four = *reinterpret_cast<const float4*>(tile + chunk * 4 * kRow + offset);
        values[both][i % count] = four.x;
        values[both][i % count + 1] = four.y;
        values[both][i % count + 2] = four.z;
        values[both][i % count + 3] = four.w;
      }
    }
  }

  int row_, col_;  // the lane's first
  float sums_[kRows][kCols] = {};
};

}  // namespace fastdl
