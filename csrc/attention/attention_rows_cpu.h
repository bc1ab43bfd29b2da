// Rows of the tensors of attention on their way to the kernels, which compute in float32 alone:
// queries turned into panels, keys and values copied where they do not lie as the product reads
// them, results turned back.
//
// A panel has kPanelWidth queries side by side: [head_dim][kPanelWidth]. Everything about a query
// is then one lane of a vector, and scores are computed turned, [keys][kPanelWidth]: the product's
// rows are keys and values as they lie in memory, maxima and sums run down the lanes, and weights
// are the panel of the product with the values. Nothing is turned between the products.
#pragma once

#include "attention/attention.h"
#include "common/dispatch.h"
#include "common/product_tile_cpu.h"
#include "common/transpose_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace attention_detail {

inline constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;

template <class F>
void dispatch_attention_dtype(DType dtype, F&& f) {
  dispatch_dtype<CpuTypes>(dtype, [&]<class T> {
    if constexpr (!std::is_same_v<T, double>) f.template operator()<T>();
  });
}

// Rows of a head, `stride` elements apart
struct Rows {
  const void* data;
  int64_t stride;
  DType dtype;

  template <class T>
  const T* row(int64_t i) const {
    return static_cast<const T*>(data) + i * stride;
  }
};

inline int64_t offset(const AttentionStrides& strides, int64_t b, int64_t h) {
  return b * strides.batch + h * strides.head;
}

inline Rows head_rows(const void* data, const AttentionStrides& strides, int64_t b, int64_t h,
                      DType dtype) {
  const int64_t bytes = dtype == DType::kFloat32 ? 4 : 2;
  return {static_cast<const char*>(data) + offset(strides, b, h) * bytes, strides.row, dtype};
}

// panel[d][i] = scale * rows[first + i][d]; queries from `count` on are 0.
inline void pack_panel(float* panel, const Rows& rows, int64_t first, int64_t count, int64_t dim,
                       float scale) {
  if (count < kPanelWidth) std::memset(panel, 0, dim * kPanelWidth * sizeof(float));
  dispatch_attention_dtype(rows.dtype, [&]<class T> {
    transpose(panel, kPanelWidth, rows.row<T>(first), rows.stride, count, dim);
  });
  if (scale == 1.0f) return;
  for (int64_t k = 0; k < dim * kPanelWidth; k += kLaneCount) {
    (Vec<float>::loadu(panel + k) * Vec<float>(scale)).store(panel + k);
  }
}

// to[i][d] = scale * rows[first + i][d]
inline void copy_rows(float* to, int64_t to_stride, const Rows& rows, int64_t first, int64_t count,
                      int64_t dim, float scale = 1.0f) {
  dispatch_attention_dtype(rows.dtype, [&]<class T> {
    for (int64_t i = 0; i < count; ++i) {
      const T* from = rows.row<T>(first + i);
      float* row = to + i * to_stride;
      for_single_vectors<T>(dim, [&](int64_t d, auto n) {
        store_vector(row + d, load_vector(from + d, n, 0.0f) * Vec<float>(scale), n);
      });
    }
  });
}

// to[first + i][d] = rows[i][d]
inline void store_rows(const Rows& to, int64_t first, const float* rows, int64_t stride,
                       int64_t count, int64_t dim) {
  dispatch_attention_dtype(to.dtype, [&]<class T> {
    for (int64_t i = 0; i < count; ++i) {
      const float* from = rows + i * stride;
      T* row = const_cast<T*>(to.row<T>(first + i));
      for_single_vectors<T>(dim, [&](int64_t d, auto n) {
        store_vector(row + d, load_vector(from + d, n, 0.0f), n);
      });
    }
  });
}

// to[first + i][d] = scale[i] * panel[d][i]; `turned` holds kPanelWidth x dim elements.
inline void store_panel(const Rows& to, int64_t first, float* panel, const float* scale,
                        int64_t count, int64_t dim, float* turned) {
  for (int64_t k = 0; k < dim * kPanelWidth; k += kLaneCount) {
    (Vec<float>::loadu(panel + k) * Vec<float>::loadu(scale + k % kPanelWidth)).store(panel + k);
  }
  transpose(turned, dim, panel, kPanelWidth, dim, count);
  store_rows(to, first, turned, dim, count, dim);
}

// to[j][i] = sum over d of rows[j][d] panel[d][i] for `count` rows (at most kMostRows), a panel of
// results each. Long sums are sums of shorter ones, which lose less.
inline constexpr int64_t kMostRows = 256;

template <int kVectors>
inline void multiply_by_panel(const float* rows, int64_t stride, int64_t count, int64_t dim,
                              const float* panel, float* to) {
  static constexpr int64_t kNoTap[1] = {0};
  constexpr int64_t kDepth = 128;
  int64_t from_rows[kMostRows], to_rows[kMostRows];
  for (int64_t j = 0; j < count; ++j) from_rows[j] = j * stride, to_rows[j] = j * kPanelWidth;
  for (int64_t d = 0; d < dim; d += kDepth) {
    const Terms terms{kNoTap, 1, std::min(kDepth, dim - d), 1, kPanelWidth, 0};
    const float* columns = panel + d * kPanelWidth;
    if (d == 0) {
      multiply_rows<kVectors, false>(count, terms, rows, from_rows, columns, to, to_rows, nullptr,
                                     0);
    } else {
      multiply_rows<kVectors, true>(count, terms, rows + d, from_rows, columns, to, to_rows,
                                    nullptr, 0);
    }
  }
}

// to[d][i] += sum over j of rows[j][d] panel[j][i] for `dim` columns of `count` rows
template <int kVectors>
inline void multiply_columns_by_panel(const float* rows, int64_t stride, int64_t count, int64_t dim,
                                      const float* panel, float* to) {
  static constexpr int64_t kNoTap[1] = {0};
  int64_t from_columns[kMostRows], to_rows[kMostRows];
  for (int64_t d = 0; d < dim; ++d) from_columns[d] = d, to_rows[d] = d * kPanelWidth;
  const Terms terms{kNoTap, 1, count, stride, kPanelWidth, 0};
  multiply_rows<kVectors, true>(dim, terms, rows, from_columns, panel, to, to_rows, nullptr, 0);
}

}  // namespace attention_detail
}  // namespace CPU_CAPABILITY
}  // namespace fastdl
