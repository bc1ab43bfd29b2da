// The transforms of Winograd's minimal filtering F(4x4, 3x3): with input patches d (6x6), weights g
// (3x3) and results y (4x4),
//
//   y = A^T [(G g G^T) * (B^T d B)] A        36 products instead of 144
//
// and, as this is bilinear, the gradient of the weight is G^T [(A dy A^T) * (B^T d B)] G. The usual
// interpolation points 0, 1, -1, 2, -2 and infinity lose 5 bits in float32; 0, +-sqrt(1/2),
// +-sqrt(2) and infinity lose 2 to 3 (4 to 8 times the error of the direct sum, at C = 16 to 256),
// and every even coefficient stays a short number. Lavin and Gray, arXiv:1509.09308; the choice of
// points: Barabasz et al., arXiv:1803.10986.
//
// One dimension of each transform maps arrays of vectors, a channel a lane; two dimensions are the
// columns, then the rows.
#pragma once

#include "common/vector_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace conv_detail {

inline constexpr int kTileOutputs = 4;                       // results of a tile along an axis
inline constexpr int kTileInputs = 6;                        // inputs, and products
inline constexpr int kProducts = kTileInputs * kTileInputs;  // of a tile

inline constexpr float kA = 0.70710678118654752f;  // points +-a, +-b
inline constexpr float kB = 1.41421356237309505f;
inline constexpr float kA2 = 0.5f, kB2 = 2.0f;                   // squares; their product is 1
inline constexpr float kA3 = kA / 2, kB3 = kB * 2;               // cubes
inline constexpr float kScaleA = -1 / 1.5f, kScaleB = 1 / 6.0f;  // of G at +-a and +-b

using WinogradVec = Vec<float>;

// x + factor * y
inline WinogradVec plus(WinogradVec x, float factor, WinogradVec y) {
  return at::vec::fmadd(WinogradVec(factor), y, x);
}

struct InputTransform {  // B^T
  static constexpr int kFrom = kTileInputs, kTo = kTileInputs;
  static void apply(const WinogradVec (&d)[kFrom], WinogradVec (&v)[kTo]) {
    const WinogradVec even_a = plus(d[4], -kB2, d[2]), odd_a = plus(d[3], -kB2, d[1]);
    const WinogradVec even_b = plus(d[4], -kA2, d[2]), odd_b = plus(d[3], -kA2, d[1]);
    v[0] = plus(d[0] + d[4], -(kA2 + kB2), d[2]);
    v[1] = plus(even_a, kA, odd_a);
    v[2] = plus(even_a, -kA, odd_a);
    v[3] = plus(even_b, kB, odd_b);
    v[4] = plus(even_b, -kB, odd_b);
    v[5] = plus(d[1] + d[5], -(kA2 + kB2), d[3]);
  }
};

struct OutputTransform {  // A^T
  static constexpr int kFrom = kTileInputs, kTo = kTileOutputs;
  static void apply(const WinogradVec (&m)[kFrom], WinogradVec (&y)[kTo]) {
    const WinogradVec sum_a = m[1] + m[2], difference_a = m[1] - m[2];
    const WinogradVec sum_b = m[3] + m[4], difference_b = m[3] - m[4];
    y[0] = m[0] + sum_a + sum_b;
    y[1] = plus(difference_a * WinogradVec(kA), kB, difference_b);
    y[2] = plus(sum_a * WinogradVec(kA2), kB2, sum_b);
    y[3] = plus(plus(m[5], kA3, difference_a), kB3, difference_b);
  }
};

struct WeightTransform {  // G
  static constexpr int kFrom = 3, kTo = kTileInputs;
  static void apply(const WinogradVec (&g)[kFrom], WinogradVec (&u)[kTo]) {
    const WinogradVec even_a = plus(g[0], kA2, g[2]) * WinogradVec(kScaleA);
    const WinogradVec even_b = plus(g[0], kB2, g[2]) * WinogradVec(kScaleB);
    u[0] = g[0];
    u[1] = plus(even_a, kA * kScaleA, g[1]);
    u[2] = plus(even_a, -kA * kScaleA, g[1]);
    u[3] = plus(even_b, kB * kScaleB, g[1]);
    u[4] = plus(even_b, -kB * kScaleB, g[1]);
    u[5] = g[2];
  }
};

struct GradOutputTransform {  // A
  static constexpr int kFrom = kTileOutputs, kTo = kTileInputs;
  static void apply(const WinogradVec (&y)[kFrom], WinogradVec (&m)[kTo]) {
    const WinogradVec even_a = plus(y[0], kA2, y[2]), odd_a = plus(y[1], kA2, y[3]);
    const WinogradVec even_b = plus(y[0], kB2, y[2]), odd_b = plus(y[1], kB2, y[3]);
    m[0] = y[0];
    m[1] = plus(even_a, kA, odd_a);
    m[2] = plus(even_a, -kA, odd_a);
    m[3] = plus(even_b, kB, odd_b);
    m[4] = plus(even_b, -kB, odd_b);
    m[5] = y[3];
  }
};

struct GradWeightTransform {  // G^T
  static constexpr int kFrom = kTileInputs, kTo = 3;
  static void apply(const WinogradVec (&u)[kFrom], WinogradVec (&g)[kTo]) {
    const WinogradVec sum_a = (u[1] + u[2]) * WinogradVec(kScaleA);
    const WinogradVec sum_b = (u[3] + u[4]) * WinogradVec(kScaleB);
    g[0] = u[0] + sum_a + sum_b;
    g[1] = plus((u[1] - u[2]) * WinogradVec(kA * kScaleA), kB * kScaleB, u[3] - u[4]);
    g[2] = plus(plus(u[5], kA2, sum_a), kB2, sum_b);
  }
};

// Both dimensions of a tile: element (i, j) is at from + i * from_row + j * from_col, and so on.
template <class Transform>
inline void transform_tile(const float* from, int64_t from_row, int64_t from_col, float* to,
                           int64_t to_row, int64_t to_col) {
  constexpr int kFrom = Transform::kFrom, kTo = Transform::kTo;
  WinogradVec half[kFrom][kTo];  // [column][row]
  for (int j = 0; j < kFrom; ++j) {
    WinogradVec column[kFrom];
    for (int i = 0; i < kFrom; ++i)
      column[i] = WinogradVec::loadu(from + i * from_row + j * from_col);
    Transform::apply(column, half[j]);
  }
  for (int i = 0; i < kTo; ++i) {
    WinogradVec row[kFrom], result[kTo];
    for (int j = 0; j < kFrom; ++j) row[j] = half[j][i];
    Transform::apply(row, result);
    for (int j = 0; j < kTo; ++j) result[j].store(to + i * to_row + j * to_col);
  }
}

}  // namespace conv_detail
}  // namespace CPU_CAPABILITY
}  // namespace fastdl
