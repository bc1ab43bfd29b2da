// What a mask does to the scores of a panel of queries and a tile of keys: whether it leaves any
// of them, and if so which, and what it adds. Scores are turned, [keys][kPanelWidth], and in units
// of ln 2.
//
// Most tiles are empty or full and cost a few comparisons. In the others, bands and intervals are
// comparisons of lanes; what is stored by pairs is turned first, a quarter of the time of the
// products of such a tile at worst.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "attention/attention_rows_cpu.h"
#include "common/bounded_math_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace attention_detail {

inline constexpr float kNone = -std::numeric_limits<float>::infinity();

class PanelMask {
 public:
  PanelMask() = default;

  // For `count` queries from `first` on
  PanelMask(const AttentionMask& mask, int64_t b, int64_t h, int64_t first, int64_t count)
      : mask_(&mask), b_(b), h_(h), first_(first), count_(count) {
    for (int64_t k = 0; k < std::min(mask.intervals, kKept); ++k) bounds_[k] = bounds_of(k);
  }

  // Whether scores are changed where they count
  bool changes_scores() const {
    return mask_->soft_cap > 0 || mask_->bias != nullptr || mask_->slopes != nullptr;
  }

  AttentionTile tile(int64_t key, int64_t keys) const {
    AttentionTile result = kTileFull;
    const int64_t last = key + keys - 1;
    if (last - first_ < mask_->lowest || key - last_query() > mask_->highest) {
      return kTileEmpty;
    }
    if (key - last_query() < mask_->lowest || last - first_ > mask_->highest) {
      result = kTilePartial;
    }
    if (mask_->intervals > 0) {
      bool any = false, all = false;
      for (int64_t k = 0; k < mask_->intervals; ++k) {
        const Bounds bounds = k < kKept ? bounds_[k] : bounds_of(k);
        any = any || (bounds.first_begin <= last && key < bounds.last_end);
        all = all || (bounds.last_begin <= key && last < bounds.first_end);
      }
      if (!any) return kTileEmpty;
      if (!all) result = kTilePartial;
    }
    if (mask_->tiles != nullptr) {
      const AttentionTile stored = stored_tile(key);
      if (stored == kTileEmpty) return kTileEmpty;
      if (stored == kTilePartial) result = kTilePartial;
    }
    return result;
  }

  // Applies the mask to scores[keys][kPanelWidth] of the keys from `key` on, at most kMaskCols.
  // `slope_of_cap`, if given, gets the derivative of the soft cap.
  void apply(float* scores, int64_t key, int64_t keys, bool partial, float* slope_of_cap) const {
    if (mask_->soft_cap > 0) cap(scores, keys, slope_of_cap);
    if (mask_->bias != nullptr) {
      const int64_t at = offset(mask_->bias_strides, b_, h_);
      dispatch_attention_dtype(mask_->bias_dtype, [&]<class T> {
        const T* bias = static_cast<const T*>(mask_->bias) + at;
        combine(
            scores, key, keys, bias, mask_->bias_strides, [](float x) { return x * kLog2E; },
            [](Vec<float> score, Vec<float> added) { return score + added; });
      });
    }
    if (mask_->slopes != nullptr) add_slopes(scores, key, keys);
    if (!partial) return;
    if (mask_->lowest != INT64_MIN || mask_->highest != INT64_MAX) cut_band(scores, key, keys);
    if (mask_->intervals > 0) cut_intervals(scores, key, keys);
    if (mask_->allowed != nullptr) {
      combine(
          scores, key, keys, mask_->allowed + offset(mask_->allowed_strides, b_, h_),
          mask_->allowed_strides, [](uint8_t allowed) { return allowed != 0 ? 0.0f : kNone; },
          [](Vec<float> score, Vec<float> cut) {
            return Vec<float>::blendv(score, cut, cut < Vec<float>(0.0f));
          });
    }
  }

 private:
  static constexpr int64_t kKept = 4;
  struct Bounds {
    int32_t first_begin, last_begin, first_end, last_end;
  };

  int64_t last_query() const { return first_ + count_ - 1; }

  const int32_t* interval(const int32_t* of, int64_t k) const {
    const auto& strides = mask_->interval_strides;
    return of + k * strides.interval + b_ * strides.batch + h_ * strides.head +
           first_ * strides.row;
  }

  Bounds bounds_of(int64_t k) const {
    const int64_t stride = mask_->interval_strides.row;
    const int32_t *begin = interval(mask_->begin, k), *end = interval(mask_->end, k);
    Bounds bounds = {INT32_MAX, 0, INT32_MAX, 0};
    for (int64_t i = 0; i < (stride == 0 ? 1 : count_); ++i) {
      const int32_t from = begin[i * stride], to = end[i * stride];
      bounds.last_begin = std::max(bounds.last_begin, from);
      bounds.first_end = std::min(bounds.first_end, to);
      if (from >= to) continue;
      bounds.first_begin = std::min(bounds.first_begin, from);
      bounds.last_end = std::max(bounds.last_end, to);
    }
    return bounds;
  }

  AttentionTile stored_tile(int64_t key) const {
    const AttentionStrides& strides = mask_->tile_strides;
    const uint8_t* row = mask_->tiles + offset(strides, b_, h_) + key / kMaskCols * strides.col;
    const int64_t from = first_ / kMaskRows, to = last_query() / kMaskRows;
    const uint8_t tile = row[from * strides.row];
    for (int64_t i = from + 1; i <= to && strides.row != 0; ++i) {
      if (row[i * strides.row] != tile) return kTilePartial;
    }
    return static_cast<AttentionTile>(tile);
  }

  template <class F>
  static void for_scores(float* scores, int64_t keys, F&& f) {
    for (int64_t j = 0; j < keys; ++j) {
      for (int64_t i = 0; i < kPanelWidth; i += kLaneCount) {
        float* at = scores + j * kPanelWidth + i;
        f(j, i, Vec<float>::loadu(at)).store(at);
      }
    }
  }

  void cap(float* scores, int64_t keys, float* slope) const {
    const Vec<float> cap(mask_->soft_cap * kLog2E), inverse(1.0f / (mask_->soft_cap * kLog2E));
    for_scores(scores, keys, [&](int64_t j, int64_t i, Vec<float> score) {
      const Vec<float> part = tanh(score * inverse);
      if (slope != nullptr) {
        (Vec<float>(1.0f) - part * part).store(slope + j * kPanelWidth + i);
      }
      return cap * part;
    });
  }

  void add_slopes(float* scores, int64_t key, int64_t keys) const {
    const auto& strides = mask_->slope_strides;
    const Vec<float> slope(mask_->slopes[b_ * strides.batch + h_ * strides.head] * kLog2E);
    const int64_t distance = first_ + mask_->slope_offset - key;
    for_scores(scores, keys, [&](int64_t j, int64_t i, Vec<float> score) {
      const Vec<float> away = lanes(static_cast<float>(distance - j + i)).abs();
      return score - slope * away;
    });
  }

  static Vec<float> lanes(float first) {
    return Vec<float>::arange(0.0f, 1.0f) + Vec<float>(first);
  }

  void cut_band(float* scores, int64_t key, int64_t keys) const {
    const auto in_panel = [&](int64_t query) {
      return static_cast<float>(std::clamp<int64_t>(query - first_, -1, kPanelWidth));
    };
    for_scores(scores, keys, [&](int64_t j, int64_t i, Vec<float> score) {
      const int64_t at = key + j;
      const float lower = mask_->highest == INT64_MAX ? 0 : in_panel(at - mask_->highest);
      const float upper = mask_->lowest == INT64_MIN ? kPanelWidth : in_panel(at - mask_->lowest);
      const Vec<float> query = lanes(static_cast<float>(i));
      const Vec<float> inside = (query >= Vec<float>(lower)) & (query <= Vec<float>(upper));
      return Vec<float>::blendv(Vec<float>(kNone), score, inside);
    });
  }

  void cut_intervals(float* scores, int64_t key, int64_t keys) const {
    alignas(64) float begin[kPanelWidth], end[kPanelWidth], inside[kMaskCols * kPanelWidth];
    std::memset(inside, 0, sizeof(inside));
    const int64_t stride = mask_->interval_strides.row;
    const auto in_tile = [&](int32_t at) {
      return static_cast<float>(std::clamp<int64_t>(at - key, 0, kMaskCols));
    };
    for (int64_t k = 0; k < mask_->intervals; ++k) {
      for (int64_t i = 0; i < kPanelWidth; ++i) {
        const int64_t row = std::min(i, count_ - 1) * stride;
        begin[i] = in_tile(interval(mask_->begin, k)[row]);
        end[i] = in_tile(interval(mask_->end, k)[row]);
      }
      for_scores(inside, keys, [&](int64_t j, int64_t i, Vec<float> so_far) {
        const Vec<float> at(static_cast<float>(j));
        return so_far | ((at >= Vec<float>::loadu(begin + i)) & (at < Vec<float>::loadu(end + i)));
      });
    }
    for_scores(scores, keys, [&](int64_t j, int64_t i, Vec<float> score) {
      const Vec<float> kept = Vec<float>::loadu(inside + j * kPanelWidth + i);
      return Vec<float>::blendv(Vec<float>(kNone), score, kept);
    });
  }

  // scores[j][i] = f(scores[j][i], value(pairs[i][j])) for what is stored by pairs.
  template <class T, class Value, class F>
  void combine(float* scores, int64_t key, int64_t keys, const T* pairs,
               const AttentionStrides& strides, Value&& value, F&& f) const {
    alignas(64) float rows[kPanelWidth * kMaskCols], turned[kMaskCols * kPanelWidth];
    const T* from = pairs + first_ * strides.row + key * strides.col;
    const int64_t count = strides.row == 0 ? 1 : count_;
    for (int64_t i = 0; i < count; ++i) {
      const T* row = from + i * strides.row;
      float* to = rows + i * kMaskCols;
      if (strides.col == 1) {
        for (int64_t j = 0; j < keys; ++j) to[j] = value(row[j]);
      } else {
        for (int64_t j = 0; j < keys; ++j) to[j] = value(row[j * strides.col]);
      }
    }
    if (strides.row == 0) {
      for_scores(scores, keys, [&](int64_t j, int64_t, Vec<float> score) {
        return f(score, Vec<float>(rows[j]));
      });
      return;
    }
    if (count < kPanelWidth) std::memset(turned, 0, sizeof(turned));
    transpose(turned, kPanelWidth, rows, kMaskCols, count, keys);
    for_scores(scores, keys, [&](int64_t j, int64_t i, Vec<float> score) {
      return f(score, Vec<float>::loadu(turned + j * kPanelWidth + i));
    });
  }

  const AttentionMask* mask_ = nullptr;
  int64_t b_ = 0, h_ = 0, first_ = 0, count_ = 0;
  Bounds bounds_[kKept];
};

}  // namespace attention_detail
}  // namespace CPU_CAPABILITY
}  // namespace fastdl
