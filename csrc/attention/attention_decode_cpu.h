// Attention of few queries over many keys, as in decoding: limited by reading keys and values once.
//
//   score[r][j] = query[r] . key[j]     4 keys at a time, sums of vectors along head_dim
//   output[r] += weight[r][j] value[j]  4 keys at a time, in L1
//
// Rows are the queries of all heads that read the same key head. Keys are cut into splits, so that
// there are enough tasks; each leaves maximum, sum and output of its rows in the workspace, from
// which the rows are put together in order. Tiles of kMaskCols keys are read once for all rows, and
// values fetched while keys are computed. Floor: 4 (head_dim + value_dim) bytes a key of float32.
#pragma once

#include "attention/attention_mask_cpu.h"
#include "attention/attention_work_cpu.h"
#include "common/exp_negative_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace attention_detail {

class Decoding {
 public:
  explicit Decoding(const AttentionForwardArgs& args) : args_(args) {
    constexpr int64_t kTasks = 64, kLeastTiles = 8;
    const AttentionSizes& s = args.sizes;
    const int64_t heads = s.batch * s.kv_heads, tiles = ceil_divide(s.keys, kMaskCols);
    rows_ = s.queries * s.heads_of_a_key();
    splits_ = std::min(ceil_divide(kTasks, heads), ceil_divide(tiles, kLeastTiles));
    split_keys_ = ceil_divide(tiles, splits_) * kMaskCols;
    splits_ = ceil_divide(s.keys, split_keys_);
    part_ = round_up(s.value_dim, kLaneCount) + kLaneCount;
  }

  // Two queries of a head are still less work so than a panel of them.
  static bool suits(const AttentionForwardArgs& args) {
    return args.sizes.queries <= 2 && args.dropout.p == 0;
  }

  size_t workspace_bytes() const {
    return args_.sizes.batch * args_.sizes.kv_heads * splits_ * rows_ * part_ * sizeof(float);
  }

  void run() const {
    const AttentionSizes& s = args_.sizes;
    for_tasks(s.batch * s.kv_heads * splits_,
              [&](int64_t task, int64_t) { split(task / splits_, task % splits_); });
    parallel_for(0, s.batch * s.kv_heads * rows_, 16, [&](int64_t from, int64_t to) {
      for (int64_t row = from; row < to; ++row) combine(row / rows_, row % rows_);
    });
  }

 private:
  static constexpr int64_t kKeys = 4;

  // Of a row and a split: the output, then maximum and sum
  float* part(int64_t head, int64_t split, int64_t row) const {
    return static_cast<float*>(args_.workspace) + ((head * splits_ + split) * rows_ + row) * part_;
  }

  struct Memory {
    Memory(const AttentionSizes& s, int64_t rows, void* memory) {
      Pieces pieces(memory);
      query = pieces.floats(rows * s.head_dim);
      keys = pieces.floats(kMaskCols * s.head_dim);
      values = pieces.floats(kMaskCols * s.value_dim);
      scores = pieces.floats(rows * kMaskCols);
      lanes = pieces.floats(kMaskCols * kPanelWidth);
      bytes = pieces.bytes();
    }
    float *query, *keys, *values, *scores, *lanes;
    size_t bytes;
  };

  void split(int64_t head, int64_t split) const {
    const AttentionSizes& s = args_.sizes;
    const int64_t b = head / s.kv_heads, first = head % s.kv_heads * s.heads_of_a_key();
    const Memory memory(s, rows_, thread_scratch(Memory(s, rows_, nullptr).bytes));
    for (int64_t row = 0; row < rows_; ++row) {
      const Rows queries =
          head_rows(args_.query, args_.query_strides, b, first + row / s.queries, args_.dtype);
      copy_rows(memory.query + row * s.head_dim, s.head_dim, queries, row % s.queries, 1,
                s.head_dim, args_.scale * kLog2E);
      float* out = part(head, split, row);
      std::memset(out, 0, part_ * sizeof(float));
      out[part_ - 2] = kNone;
    }
    const Rows keys = head_rows(args_.key, args_.key_strides, b, head % s.kv_heads, args_.dtype);
    const Rows values =
        head_rows(args_.value, args_.value_strides, b, head % s.kv_heads, args_.dtype);
    const int64_t end = std::min(s.keys, (split + 1) * split_keys_);
    for (int64_t key = split * split_keys_; key < end; key += kMaskCols) {
      const int64_t count = std::min(kMaskCols, end - key);
      bool loaded = false;
      FloatRows key_rows, value_rows;
      for (int64_t row = 0; row < rows_; ++row) {
        const PanelMask mask(args_.mask, b, first + row / s.queries, row % s.queries, 1);
        const AttentionTile tile = mask.tile(key, count);
        if (tile == kTileEmpty) continue;
        if (!loaded) {
          key_rows = float_rows(keys, key, count, s.head_dim, memory.keys);
          value_rows = float_rows(values, key, count, s.value_dim, memory.values);
          loaded = true;
        }
        float* scores = memory.scores + row * kMaskCols;
        score(memory.query + row * s.head_dim, key_rows, value_rows, count, scores);
        if (tile == kTilePartial || mask.changes_scores()) {
          change(mask, scores, key, count, tile == kTilePartial, memory.lanes);
        }
        add(part(head, split, row), scores, value_rows, count);
      }
    }
  }

  struct FloatRows {
    const float* data;
    int64_t stride;
  };

  static FloatRows float_rows(const Rows& rows, int64_t first, int64_t count, int64_t dim,
                              float* copy) {
    if (rows.dtype == DType::kFloat32) return {rows.row<float>(first), rows.stride};
    copy_rows(copy, dim, rows, first, count, dim);
    return {copy, dim};
  }

  void score(const float* query, const FloatRows& keys, const FloatRows& values, int64_t count,
             float* scores) const {
    using V = Vec<float>;
    const int64_t dim = args_.sizes.head_dim;
    const auto some = [&]<int kCount>(int64_t j) {
      const float* row = keys.data + j * keys.stride;
      V sum[kCount];
      for (int k = 0; k < kCount; ++k) {
        sum[k] = V(0.0f);
        for (int64_t d = 0; d < args_.sizes.value_dim; d += 16) {
          prefetch(values.data + (j + k) * values.stride + d);
        }
      }
      for_single_vectors<float>(dim, [&](int64_t d, auto n) {
        const V q = load_vector(query + d, n, 0.0f);
        for (int k = 0; k < kCount; ++k) {
          sum[k] = at::vec::fmadd(q, load_vector(row + k * keys.stride + d, n, 0.0f), sum[k]);
        }
      });
      for (int k = 0; k < kCount; ++k) scores[j + k] = reduce_sum(sum[k]);
    };
    int64_t j = 0;
    for (; j + kKeys <= count; j += kKeys) some.template operator()<kKeys>(j);
    for (; j < count; ++j) some.template operator()<1>(j);
    std::fill(scores + count, scores + kMaskCols, kNone);
  }

  // The mask of a panel, for one lane of it
  static void change(const PanelMask& mask, float* scores, int64_t key, int64_t count, bool partial,
                     float* lanes) {
    std::memset(lanes, 0, kMaskCols * kPanelWidth * sizeof(float));
    for (int64_t j = 0; j < count; ++j) lanes[j * kPanelWidth] = scores[j];
    mask.apply(lanes, key, count, partial, nullptr);
    for (int64_t j = 0; j < count; ++j) scores[j] = lanes[j * kPanelWidth];
  }

  // Online softmax of a tile, scores in units of ln 2
  void add(float* out, float* scores, const FloatRows& values, int64_t count) const {
    using V = Vec<float>;
    const int64_t dim = args_.sizes.value_dim;
    float &maximum = out[part_ - 2], &sum = out[part_ - 1];
    V largest(maximum), total(0.0f);
    for (int64_t j = 0; j < kMaskCols; j += kLaneCount) {
      largest = max_number(V::loadu(scores + j), largest);
    }
    const float before = maximum;
    maximum = reduce_max(largest);
    const float subtract = maximum == kNone ? 0 : maximum;
    for (int64_t j = 0; j < kMaskCols; j += kLaneCount) {
      const V weight = exp2_of(V::loadu(scores + j) - V(subtract));
      weight.store(scores + j);
      total = total + weight;
    }
    const float factor = before == maximum ? 1 : std::exp2(before - subtract);
    sum = sum * factor + reduce_sum(total);
    if (factor != 1) {
      for (int64_t d = 0; d < dim; d += kLaneCount) (V::loadu(out + d) * V(factor)).store(out + d);
    }
    const auto some = [&]<int kCount>(int64_t j) {
      const float* row = values.data + j * values.stride;
      for_single_vectors<float>(dim, [&](int64_t d, auto n) {
        V result = load_vector(out + d, n, 0.0f);
        for (int k = 0; k < kCount; ++k) {
          result = at::vec::fmadd(V(scores[j + k]),
                                  load_vector(row + k * values.stride + d, n, 0.0f), result);
        }
        store_vector(out + d, result, n);
      });
    };
    int64_t j = 0;
    for (; j + kKeys <= count; j += kKeys) some.template operator()<kKeys>(j);
    for (; j < count; ++j) some.template operator()<1>(j);
  }

  static Vec<float> exp2_of(Vec<float> x) {
    Vec<float> one[1] = {x};
    exp2_negative(one);
    return one[0];
  }

  // Puts the splits of a row together.
  void combine(int64_t head, int64_t row) const {
    using V = Vec<float>;
    const AttentionSizes& s = args_.sizes;
    float maximum = kNone, sum = 0;
    for (int64_t k = 0; k < splits_; ++k) {
      maximum = std::max(maximum, part(head, k, row)[part_ - 2]);
    }
    const float subtract = maximum == kNone ? 0 : maximum;
    float* result = part(head, 0, row);
    for (int64_t k = 0; k < splits_; ++k) {
      const float* from = part(head, k, row);
      const float factor = std::exp2(from[part_ - 2] - subtract);
      sum += from[part_ - 1] * factor;
      for (int64_t d = 0; d < s.value_dim; d += kLaneCount) {
        const V scaled = V::loadu(from + d) * V(factor);
        (k == 0 ? scaled : V::loadu(result + d) + scaled).store(result + d);
      }
    }
    const float inverse = sum == 0 ? 0 : 1 / sum;
    for (int64_t d = 0; d < s.value_dim; d += kLaneCount) {
      (V::loadu(result + d) * V(inverse)).store(result + d);
    }
    const int64_t b = head / s.kv_heads, query = row % s.queries;
    const int64_t h = head % s.kv_heads * s.heads_of_a_key() + row / s.queries;
    store_rows(head_rows(args_.output, args_.output_strides, b, h, args_.dtype), query, result, 0,
               1, s.value_dim);
    args_.lse[(b * s.heads + h) * s.queries + query] =
        sum == 0 ? kNone : maximum * kLn2 + std::log(sum);
  }

  const AttentionForwardArgs& args_;
  int64_t rows_, splits_, split_keys_, part_;
};

}  // namespace attention_detail
}  // namespace CPU_CAPABILITY
}  // namespace fastdl
