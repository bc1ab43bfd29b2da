// The products of attention, for a warp: 16 * row_tiles rows of matrices in shared memory
// (attention_tile_cuda.cuh) or of weights in registers. In all kinds of arithmetic a lane has of
// 16 x 8 results what mma leaves it: with g = lane / 4, t = lane % 4, columns 2t, 2t + 1 of row g,
// then of row g + 8. So softmax and masks are written once.
#pragma once

#include "attention/attention_tile_cuda.cuh"

namespace fastdl {

// Arithmetic: T's own on tensor cores (float32: tf32), or fused multiply-adds of float32.
template <class Element, bool tensor>
struct AttentionMath {
  using T = Element;
  static constexpr bool kTensor = tensor;

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

  static __device__ __forceinline__ void load(uint32_t (&r)[4], const T* shared) {
    ptx::ldmatrix_x4(r, shared);
    if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (uint32_t& word : r) word = ptx::to_tf32(__uint_as_float(word));
    }
  }
};

// sums += a b^T: rows from `first` on of a, the first `cols` rows of b, both `dims` long.
template <class Math, int dims, int row_tiles, int cols, class T = typename Math::T>
__device__ __forceinline__ void multiply_rows(float (&sums)[row_tiles][cols / 8][4], const T* a,
                                              int first, const T* b) {
  using Shared = SharedRows<T, dims>;
  const unsigned lane = ptx::lane_id();
  if constexpr (Math::kTensor) {
#pragma unroll 4  // registers are few for more loads at once
    for (int step = 0; step < Shared::kChunks / 2; ++step) {
      uint32_t of_a[row_tiles][4];
#pragma unroll
      for (int r = 0; r < row_tiles; ++r) {
        Math::load(of_a[r], a + Shared::element(first + 16 * r + lane % 16, 2 * step, lane / 16));
      }
#pragma unroll
      for (int j = 0; j < cols / 16; ++j) {
        uint32_t of_b[4];
        Math::load(of_b,
                   b + Shared::element(16 * j + lane / 16 * 8 + lane % 8, 2 * step, lane / 8 % 2));
#pragma unroll
        for (int r = 0; r < row_tiles; ++r) {
          Math::mma(sums[r][2 * j], of_a[r], {of_b[0], of_b[1]});
          Math::mma(sums[r][2 * j + 1], of_a[r], {of_b[2], of_b[3]});
        }
      }
    }
  } else {
#pragma unroll 2
    for (int chunk = 0; chunk < Shared::kChunks; ++chunk) {
      float4 of_a[2 * row_tiles];
#pragma unroll
      for (int r = 0; r < 2 * row_tiles; ++r) {
        of_a[r] =
            *reinterpret_cast<const float4*>(a + Shared::element(first + 8 * r + lane / 4, chunk));
      }
#pragma unroll
      for (int j = 0; j < cols / 4; ++j) {
        const int row = j / 2 * 8 + lane % 4 * 2 + j % 2;
        const float4 of_b = *reinterpret_cast<const float4*>(b + Shared::element(row, chunk));
#pragma unroll
        for (int r = 0; r < 2 * row_tiles; ++r) {
          float& sum = sums[r / 2][j / 2][r % 2 * 2 + j % 2];
          sum = fmaf(of_a[r].x, of_b.x, sum);
          sum = fmaf(of_a[r].y, of_b.y, sum);
          sum = fmaf(of_a[r].z, of_b.z, sum);
          sum = fmaf(of_a[r].w, of_b.w, sum);
        }
      }
    }
  }
}

// sums += weights b: of the first `rows` rows of b the columns from first_col on.
template <class Math, int dims, int row_tiles, int rows, int cols, class T = typename Math::T>
__device__ __forceinline__ void multiply_columns(float (&sums)[row_tiles][cols / 8][4],
                                                 const float (&weights)[row_tiles][rows / 8][4],
                                                 const T* b, int first_col = 0) {
  using Shared = SharedRows<T, dims>;
  const unsigned lane = ptx::lane_id(), g = lane / 4, t = lane % 4;
  const int first_chunk = first_col / Shared::kWidth;
  if constexpr (sizeof(T) == 2) {
#pragma unroll
    for (int k = 0; k < rows / 16; ++k) {
      uint32_t of_a[row_tiles][4];
#pragma unroll
      for (int r = 0; r < row_tiles; ++r) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float (&pair)[4] = weights[r][2 * k + i / 2];
          of_a[r][i] = pack_pair(pair[i % 2 * 2], pair[i % 2 * 2 + 1], T());
        }
      }
#pragma unroll
      for (int j = 0; j < cols / 16; ++j) {
        uint32_t of_b[4];
        ptx::ldmatrix_x4_trans(
            of_b, b + Shared::element(16 * k + lane % 16, first_chunk + 2 * j, lane / 16));
#pragma unroll
        for (int r = 0; r < row_tiles; ++r) {
          Math::mma(sums[r][2 * j], of_a[r], {of_b[0], of_b[1]});
          Math::mma(sums[r][2 * j + 1], of_a[r], {of_b[2], of_b[3]});
        }
      }
    }
  } else if constexpr (Math::kTensor) {
    // Rows 2t and 2t + 1 take the places of t and t + 4, so that weights stay in their lanes.
#pragma unroll
    for (int k = 0; k < rows / 8; ++k) {
      uint32_t of_a[row_tiles][4];
#pragma unroll
      for (int r = 0; r < row_tiles; ++r) {
#pragma unroll
        for (int i = 0; i < 4; ++i) of_a[r][i] = ptx::to_tf32(weights[r][k][i % 2 * 2 + i / 2]);
      }
#pragma unroll
      for (int j = 0; j < cols / 8; ++j) {
        const int chunk = first_chunk + 2 * j, row = 8 * k + 2 * t;
        const uint32_t of_b[2] = {ptx::to_tf32(b[Shared::element(row, chunk, g / 4) + g % 4]),
                                  ptx::to_tf32(b[Shared::element(row + 1, chunk, g / 4) + g % 4])};
#pragma unroll
        for (int r = 0; r < row_tiles; ++r) Math::mma(sums[r][j], of_a[r], of_b);
      }
    }
  } else {
#pragma unroll
    for (int k = 0; k < rows / 8; ++k) {
#pragma unroll 1  // or more would be loaded at once than there are registers
      for (int pair = 0; pair < 4; ++pair) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float of_a[2 * row_tiles];
#pragma unroll
          for (int r = 0; r < 2 * row_tiles; ++r) {
            of_a[r] = __shfl_sync(kAllLanes, weights[r / 2][k][r % 2 * 2 + e], lane / 4 * 4 + pair);
          }
#pragma unroll
          for (int j = 0; j < cols / 8; ++j) {
            const int at = Shared::element(8 * k + 2 * pair + e, first_chunk + 2 * j, t / 2);
            const float2 of_b = *reinterpret_cast<const float2*>(b + at + t % 2 * 2);
#pragma unroll
            for (int r = 0; r < 2 * row_tiles; ++r) {
              float (&sum)[4] = sums[r / 2][j];
              sum[r % 2 * 2] = fmaf(of_a[r], of_b.x, sum[r % 2 * 2]);
              sum[r % 2 * 2 + 1] = fmaf(of_a[r], of_b.y, sum[r % 2 * 2 + 1]);
            }
          }
        }
      }
    }
  }
}

}  // namespace fastdl
