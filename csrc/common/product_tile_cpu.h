// The matrix product of convolution and attention: a tile of kTileRows rows by one or two vectors
// of columns, held in registers while it sums over the terms.
//
//   out[i][j] (+)= sum over t, d of rows[i][taps[t] + d * row_step] * panel[t][d][j]
//
// A row is an output pixel (or a channel, for the gradient of the weight) and its elements are
// broadcast; the panel has kPanelWidth columns side by side. Every term is one vector load of the
// panel, kTileRows broadcasts and 2 * kTileRows multiply-adds into as many accumulators: on AVX2 6
// * 2 of 16 registers, on AVX-512 12 * 2 of 32, enough to hide the latency of either. The limit is
// the FMA rate; rows are read from the L2 cache, the panel from L1 (kPanelTerms).
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/fetch_ahead_cpu.h"
#include "common/vector_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {

inline constexpr int64_t kLaneCount = kWidth<float>;
inline constexpr int64_t kPanelWidth = 2 * kLaneCount;
#if defined(CPU_CAPABILITY_AVX512)
inline constexpr int kTileRows = 12;
#elif defined(CPU_CAPABILITY_AVX2)
inline constexpr int kTileRows = 6;
#else
inline constexpr int kTileRows = 2;
#endif

// Terms of a panel that stay in the L1 cache beside the rows: 16 KB.
inline constexpr int64_t kPanelTerms = 16384 / (kPanelWidth * sizeof(float));

inline int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t n, int64_t multiple) { return ceil_divide(n, multiple) * multiple; }

// The terms of a sum: `taps` offsets into the rows, `depth` terms each, in steps of row_step
// through the rows and of panel_step through the panel.
struct Terms {
  const int64_t* tap_offsets;
  int64_t taps, depth, row_step;
  int64_t panel_step, panel_tap_step;
};

template <int kRows, int kVectors, bool kAdd>
inline void multiply_tile(const Terms& terms, const float* const* rows, const float* panel,
                          float* const* out) {
  using V = Vec<float>;
  V sum[kRows][kVectors];
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kVectors; ++j) {
      sum[i][j] = V(0.0f);
    }
  }
  for (int64_t t = 0; t < terms.taps; ++t) {
    const float* row[kRows];
    for (int i = 0; i < kRows; ++i) row[i] = rows[i] + terms.tap_offsets[t];
    const float* column = panel + t * terms.panel_tap_step;
    int64_t at = 0;
    // A loop of 128 rounds ends in a wrong guess of its last branch: 37 instead of 45 GFLOP/s.
#pragma GCC unroll 4
    for (int64_t d = 0; d < terms.depth; ++d) {
      V b[kVectors];
      for (int j = 0; j < kVectors; ++j) b[j] = V::loadu(column + j * kLaneCount);
      for (int i = 0; i < kRows; ++i) {
        const V a(row[i][at]);
        for (int j = 0; j < kVectors; ++j) sum[i][j] = at::vec::fmadd(a, b[j], sum[i][j]);
      }
      at += terms.row_step;
      column += terms.panel_step;
    }
  }
  // Added to what is there only now: a sum of short sums loses less than one long sum.
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kVectors; ++j) {
      float* to = out[i] + j * kLaneCount;
      (kAdd ? V::loadu(to) + sum[i][j] : sum[i][j]).store(to);
    }
  }
}

// The tile of a number of rows that is only known at run time.
template <int kVectors, bool kAdd, int kRows = kTileRows>
inline void multiply_some_rows(int64_t count, const Terms& terms, const float* const* rows,
                               const float* panel, float* const* out) {
  if (count == kRows) return multiply_tile<kRows, kVectors, kAdd>(terms, rows, panel, out);
  if constexpr (kRows > 1) {
    multiply_some_rows<kVectors, kAdd, kRows - 1>(count, terms, rows, panel, out);
  }
}

// `count` rows: row i is from + in_offsets[i], its sums go to out + out_offsets[i] or are added
// there. `vectors` (1 or 2) is the width of the panel. Tiles are of equal height where they can be;
// with each, `lines` lines of `ahead` are fetched.
template <int kVectors, bool kAdd>
inline void multiply_rows(int64_t count, const Terms& terms, const float* from,
                          const int64_t* in_offsets, const float* panel, float* to,
                          const int64_t* out_offsets, FetchAhead* ahead, int64_t lines) {
  const int64_t tiles = ceil_divide(count, kTileRows);
  for (int64_t tile = 0, i = 0; tile < tiles; ++tile) {
    const int64_t height = (count - i + tiles - tile - 1) / (tiles - tile);
    const float* rows[kTileRows];
    float* out[kTileRows];
    for (int64_t k = 0; k < height; ++k) {
      rows[k] = from + in_offsets[i + k];
      out[k] = to + out_offsets[i + k];
    }
    if (ahead != nullptr) ahead->lines(lines);
    multiply_some_rows<kVectors, kAdd>(height, terms, rows, panel, out);
    i += height;
  }
}

inline void multiply_rows(int64_t count, int vectors, bool add, const Terms& terms,
                          const float* from, const int64_t* in_offsets, const float* panel,
                          float* to, const int64_t* out_offsets, FetchAhead* ahead = nullptr,
                          int64_t lines = 0) {
  const auto run = [&]<int kVectors, bool kAdd> {
    multiply_rows<kVectors, kAdd>(count, terms, from, in_offsets, panel, to, out_offsets, ahead,
                                  lines);
  };
  if (vectors == 1) {
    add ? run.operator()<1, true>() : run.operator()<1, false>();
  } else {
    add ? run.operator()<2, true>() : run.operator()<2, false>();
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace fastdl
