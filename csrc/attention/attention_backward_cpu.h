// A block of queries in the backward of attention, and what it adds to the gradients of a tile of
// keys. See attention_backward_cpu.cpp.
#pragma once

#include "attention/attention_backward_plan.h"
#include "attention/attention_dropout_cpu.h"
#include "attention/attention_mask_cpu.h"
#include "attention/attention_work_cpu.h"
#include "common/exp_negative_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace attention_detail {

// Sums for the keys of a head: rows of float, as wide as whole panels
struct KeySums {
  float *key, *value;
  int64_t key_stride, value_stride;
};

inline KeySums key_sums(Pieces& pieces, const AttentionSizes& s) {
  KeySums sums;
  sums.key_stride = round_up(s.head_dim, kPanelWidth);
  sums.value_stride = round_up(s.value_dim, kPanelWidth);
  sums.key = pieces.floats(s.keys * sums.key_stride);
  sums.value = pieces.floats(s.keys * sums.value_stride);
  return sums;
}

// Keys and values of a tile: float rows
struct KeyTile {
  int64_t first, count;
  const float *keys, *values;
  int64_t key_stride, value_stride;
};

class BackwardBlock {
 public:
  BackwardBlock(const AttentionBackwardArgs& args, Pieces& pieces) : args_(args) {
    const AttentionSizes& s = args.sizes;
    query_stride_ = round_up(s.head_dim, kPanelWidth);
    grad_stride_ = round_up(s.value_dim, kPanelWidth);
    for (Panel& panel : panels_) {
      panel.query = pieces.floats(s.head_dim * kPanelWidth);
      panel.grad = pieces.floats(s.value_dim * kPanelWidth);
      panel.grad_query = pieces.floats(s.head_dim * kPanelWidth);
    }
    query_rows_ = pieces.floats(kBackwardQueries * query_stride_);
    grad_rows_ = pieces.floats(kBackwardQueries * grad_stride_);
    weights_ = pieces.floats(kPanels * kTile);
    grad_scores_ = pieces.floats(kPanels * kTile);
    slope_ = pieces.floats(kTile);
    turned_ = pieces.floats(kPanelWidth * std::max(s.head_dim, kMaskCols));
    for (int64_t j = 0; j < kMaskCols; ++j) panel_rows_[j] = j * kPanelWidth;
    for (int64_t p = 0; p < kPanels; ++p) taps_[p] = p * kTile;
  }

  void begin(int64_t b, int64_t h, int64_t first, int64_t count) {
    b_ = b, h_ = h;
    count_ = ceil_divide(count, kPanelWidth);
    const AttentionSizes& s = args_.sizes;
    const Rows queries = head_rows(args_.query, args_.query_strides, b, h, args_.dtype);
    const Rows grads = head_rows(args_.grad_output, args_.grad_output_strides, b, h, args_.dtype);
    copy_padded(query_rows_, query_stride_, queries, first, count, s.head_dim, args_.scale);
    copy_padded(grad_rows_, grad_stride_, grads, first, count, s.value_dim, 1.0f);
    for (int64_t p = 0; p < count_; ++p) {
      Panel& panel = panels_[p];
      panel.first = first + p * kPanelWidth;
      panel.count = std::min(kPanelWidth, first + count - panel.first);
      panel.mask = PanelMask(args_.mask, b, h, panel.first, panel.count);
      pack_panel(panel.query, queries, panel.first, panel.count, s.head_dim, args_.scale * kLog2E);
      pack_panel(panel.grad, grads, panel.first, panel.count, s.value_dim, 1.0f);
      std::memset(panel.grad_query, 0, s.head_dim * kPanelWidth * sizeof(float));
      load_statistics(panel, grad_rows_ + p * kPanelWidth * grad_stride_);
    }
  }

  // Whether the mask leaves any of these keys to any of the queries
  bool needs(int64_t first, int64_t count) {
    bool any = false;
    for (int64_t p = 0; p < count_; ++p) {
      panels_[p].tile = panels_[p].mask.tile(first, count);
      any = any || panels_[p].tile != kTileEmpty;
    }
    return any;
  }

  // After needs() of these keys
  void add_tile(const KeyTile& tile, const KeySums& sums) {
    for (int64_t p = 0; p < count_; ++p) {
      if (panels_[p].tile == kTileEmpty) continue;
      weigh(p, tile);
      if (wants_scores()) differentiate(p, tile);
    }
    if (args_.grad_value != nullptr) {
      sum_over_queries(weights_, grad_rows_, grad_stride_, tile, sums.value, sums.value_stride);
    }
    if (args_.grad_key != nullptr) {
      sum_over_queries(grad_scores_, query_rows_, query_stride_, tile, sums.key, sums.key_stride);
    }
  }

  void finish() {
    if (args_.grad_query == nullptr) return;
    alignas(64) float scale[kPanelWidth];
    std::fill_n(scale, kPanelWidth, args_.scale);
    const Rows to = head_rows(args_.grad_query, args_.grad_query_strides, b_, h_, args_.dtype);
    for (int64_t p = 0; p < count_; ++p) {
      store_panel(to, panels_[p].first, panels_[p].grad_query, scale, panels_[p].count,
                  args_.sizes.head_dim, turned_);
    }
  }

 private:
  static constexpr int64_t kPanels = kBackwardQueries / kPanelWidth;
  static constexpr int64_t kTile = kMaskCols * kPanelWidth;  // scores of a panel and a tile

  struct Panel {
    int64_t first, count;
    PanelMask mask;
    AttentionTile tile;                // of the keys looked at
    float *query, *grad, *grad_query;  // [dim][kPanelWidth]
    alignas(64) float lse[kPanelWidth], delta[kPanelWidth];
  };

  bool wants_scores() const {
    return args_.grad_query != nullptr || args_.grad_key != nullptr || args_.grad_bias != nullptr;
  }

  static void copy_padded(float* to, int64_t stride, const Rows& rows, int64_t first, int64_t count,
                          int64_t dim, float scale) {
    std::memset(to, 0, kBackwardQueries * stride * sizeof(float));
    copy_rows(to, stride, rows, first, count, dim, scale);
  }

  // lse in units of ln 2, infinity for queries that have no weights, and delta: the sum of
  // gradient * output, which is that of gradient of weight * weight.
  void load_statistics(Panel& panel, const float* grads) {
    const AttentionSizes& s = args_.sizes;
    const float* lse = args_.lse + (b_ * s.heads + h_) * s.queries + panel.first;
    const Rows outputs = head_rows(args_.output, args_.output_strides, b_, h_, args_.dtype);
    std::fill_n(panel.lse, kPanelWidth, -kNone);
    std::fill_n(panel.delta, kPanelWidth, 0.0f);
    for (int64_t i = 0; i < panel.count; ++i) {
      if (lse[i] != kNone) panel.lse[i] = lse[i] * kLog2E;
      Vec<float> sum(0.0f);
      dispatch_attention_dtype(outputs.dtype, [&]<class T> {
        const T* output = outputs.row<T>(panel.first + i);
        for_single_vectors<T>(s.value_dim, [&](int64_t d, auto n) {
          const Vec<float> grad = Vec<float>::loadu(grads + i * grad_stride_ + d);
          sum = at::vec::fmadd(grad, load_vector(output + d, n, 0.0f), sum);
        });
      });
      panel.delta[i] = reduce_sum(sum);
    }
  }

  // weights^T = 2^(scores^T - lse)
  void weigh(int64_t p, const KeyTile& tile) {
    using V = Vec<float>;
    const Panel& panel = panels_[p];
    float* weights = weights_ + p * kTile;
    multiply_by_panel<2>(tile.keys, tile.key_stride, tile.count, args_.sizes.head_dim, panel.query,
                         weights);
    if (panel.tile == kTilePartial || panel.mask.changes_scores()) {
      panel.mask.apply(weights, tile.first, tile.count, panel.tile == kTilePartial, slope_);
    }
    const int64_t size = tile.count * kPanelWidth;
    constexpr int kCount = std::max<int64_t>(kPanelWidth / kLaneCount, 2);
    for (int64_t k = 0; k < size; k += kCount * kLaneCount) {
      V x[kCount];
      for (int v = 0; v < kCount; ++v) {
        x[v] = V::loadu(weights + k + v * kLaneCount) - V::loadu(panel.lse + v * kLaneCount);
      }
      exp2_negative(x);
      for (int v = 0; v < kCount; ++v) x[v].store(weights + k + v * kLaneCount);
    }
  }

  // grad_scores^T = weights^T * (value grad^T * kept - delta), and weights^T *= kept.
  void differentiate(int64_t p, const KeyTile& tile) {
    using V = Vec<float>;
    Panel& panel = panels_[p];
    float *weights = weights_ + p * kTile, *grads = grad_scores_ + p * kTile;
    multiply_by_panel<2>(tile.values, tile.value_stride, tile.count, args_.sizes.value_dim,
                         panel.grad, grads);
    const auto for_pairs = [&](auto&& f) {
      for (int64_t j = 0; j < tile.count; ++j) {
        for (int64_t i = 0; i < kPanelWidth; i += kLaneCount) f(j, i, j * kPanelWidth + i);
      }
    };
    if (args_.dropout.p > 0) {
      PanelDropout dropout(args_.dropout, args_.sizes, b_, h_, panel.first);
      dropout.fill(tile.first, tile.count);
      for_pairs([&](int64_t j, int64_t i, int64_t at) {
        const V kept = dropout.kept(j, i), weight = V::loadu(weights + at);
        const V inner = V::loadu(grads + at) * kept - V::loadu(panel.delta + i);
        (weight * inner).store(grads + at);
        (weight * kept).store(weights + at);
      });
    } else {
      for_pairs([&](int64_t, int64_t i, int64_t at) {
        const V inner = V::loadu(grads + at) - V::loadu(panel.delta + i);
        (V::loadu(weights + at) * inner).store(grads + at);
      });
    }
    if (args_.grad_bias != nullptr) add_to_bias(panel, tile, grads);
    if (args_.mask.soft_cap > 0) {
      for_pairs([&](int64_t, int64_t, int64_t at) {
        (V::loadu(grads + at) * V::loadu(slope_ + at)).store(grads + at);
      });
    }
    if (args_.grad_query == nullptr) return;
    multiply_columns_by_panel<2>(tile.keys, tile.key_stride, tile.count, args_.sizes.head_dim,
                                 grads, panel.grad_query);
  }

  void add_to_bias(const Panel& panel, const KeyTile& tile, const float* grads) {
    const AttentionStrides& strides = args_.grad_bias_strides;
    transpose(turned_, kMaskCols, grads, kPanelWidth, tile.count, panel.count);
    float* to = args_.grad_bias + offset(strides, b_, h_) + panel.first * strides.row +
                tile.first * strides.col;
    for (int64_t i = 0; i < panel.count; ++i, to += strides.row) {
      const float* from = turned_ + i * kMaskCols;
      for (int64_t j = 0; j < tile.count; ++j) to[j * strides.col] += from[j];
    }
  }

  // sums[tile.first + j][d] += sum over the queries i of pairs[j][i] rows[i][d]
  void sum_over_queries(const float* pairs, const float* rows, int64_t stride, const KeyTile& tile,
                        float* sums, int64_t sums_stride) {
    int64_t to[kMaskCols];
    for (int64_t j = 0; j < tile.count; ++j) to[j] = j * sums_stride;
    for (int64_t p = 0, end; p < count_; p = end) {
      end = p + 1;
      if (panels_[p].tile == kTileEmpty) continue;
      while (end < count_ && panels_[end].tile != kTileEmpty) ++end;
      const Terms terms{taps_, end - p, kPanelWidth, 1, stride, kPanelWidth * stride};
      for (int64_t d = 0; d < stride; d += kPanelWidth) {
        multiply_rows<2, true>(tile.count, terms, pairs + p * kTile, panel_rows_,
                               rows + p * kPanelWidth * stride + d,
                               sums + tile.first * sums_stride + d, to, nullptr, 0);
      }
    }
  }

  const AttentionBackwardArgs& args_;
  Panel panels_[kPanels];
  int64_t count_ = 0, b_ = 0, h_ = 0, query_stride_, grad_stride_;
  float *query_rows_, *grad_rows_, *weights_, *grad_scores_, *slope_, *turned_;
  int64_t panel_rows_[kMaskCols], taps_[kPanels];
};

}  // namespace attention_detail
}  // namespace CPU_CAPABILITY
}  // namespace fastdl
