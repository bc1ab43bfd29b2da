// Matrices turned: planes of one channel each into rows of channels, rows of keys into panels.
#pragma once

#include <cstring>

#include "common/loops_cpu.h"
#include "common/product_tile_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {

inline constexpr int64_t kTransposed = 8;  // rows and columns of a block that is transposed at once

// to[j][i] = from[i][j] for 8 x 8 elements.
inline void transpose_8x8(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
#if defined(CPU_CAPABILITY_AVX2) || defined(CPU_CAPABILITY_AVX512)
  // Halves of rows i and i + 4 side by side, so that only shuffles within halves remain.
  __m256 r[8], s[8];
  for (int i = 0; i < 4; ++i) {
    const float* row = from + i * from_stride;
    const float* later = row + 4 * from_stride;
    r[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(row)), _mm_loadu_ps(later), 1);
    r[i + 4] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(row + 4)),
                                    _mm_loadu_ps(later + 4), 1);
  }
  for (int half = 0; half < 8; half += 4) {
    s[half] = _mm256_unpacklo_ps(r[half], r[half + 1]);
    s[half + 1] = _mm256_unpackhi_ps(r[half], r[half + 1]);
    s[half + 2] = _mm256_unpacklo_ps(r[half + 2], r[half + 3]);
    s[half + 3] = _mm256_unpackhi_ps(r[half + 2], r[half + 3]);
    float* row = to + half * to_stride;
    _mm256_storeu_ps(row, _mm256_shuffle_ps(s[half], s[half + 2], 0x44));
    _mm256_storeu_ps(row + to_stride, _mm256_shuffle_ps(s[half], s[half + 2], 0xee));
    _mm256_storeu_ps(row + 2 * to_stride, _mm256_shuffle_ps(s[half + 1], s[half + 3], 0x44));
    _mm256_storeu_ps(row + 3 * to_stride, _mm256_shuffle_ps(s[half + 1], s[half + 3], 0xee));
  }
#else
  for (int i = 0; i < 8; ++i) {
    for (int j = 0; j < 8; ++j) to[j * to_stride + i] = from[i * from_stride + j];
  }
#endif
}

template <class T>
inline void widen_row(float* to, const T* from, int64_t count) {
  for_single_vectors<T>(
      count, [&](int64_t i, auto n) { store_vector(to + i, load_vector(from + i, n, 0.0f), n); });
}

// to[col][channel] = from[channel][col]: `channels` rows from_stride apart become rows of as many
// elements to_stride apart.
template <class T>
inline void transpose(float* to, int64_t to_stride, const T* from, int64_t from_stride,
                      int64_t channels, int64_t cols) {
  int64_t c = 0;
  for (; c + kTransposed <= channels; c += kTransposed) {
    const T* rows = from + c * from_stride;
    float* pixels = to + c;
    int64_t x = 0;
    for (; x + kTransposed <= cols; x += kTransposed) {
      if constexpr (std::is_same_v<T, float>) {
        transpose_8x8(rows + x, from_stride, pixels + x * to_stride, to_stride);
      } else {
        float wide[kTransposed * kTransposed];
        for (int64_t i = 0; i < kTransposed; ++i) {
          widen_row(wide + i * kTransposed, rows + i * from_stride + x, kTransposed);
        }
        transpose_8x8(wide, kTransposed, pixels + x * to_stride, to_stride);
      }
    }
    if (x < cols) {
      float wide[kTransposed * kLaneCount], turned[kTransposed * kTransposed];
      for (int64_t i = 0; i < kTransposed; ++i) {
        load_vector(rows + i * from_stride + x, cols - x, 0.0f).store(wide + i * kLaneCount);
      }
      transpose_8x8(wide, kLaneCount, turned, kTransposed);
      for (int64_t j = 0; x < cols; ++x, ++j) {
        std::memcpy(pixels + x * to_stride, turned + j * kTransposed, kTransposed * sizeof(float));
      }
    }
  }
  for (; c < channels; ++c) {
    for (int64_t x = 0; x < cols; ++x) to[x * to_stride + c] = from[c * from_stride + x];
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace fastdl
