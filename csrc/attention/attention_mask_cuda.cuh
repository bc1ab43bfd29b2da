// Which pairs of queries and keys count, for a warp: of whole tiles, so that empty ones are passed
// over and full ones are not looked at again, and of the pairs that a lane has of a tile.
#pragma once

#include <climits>

#include "attention/attention_cuda_plan.h"
#include "common/reduce.cuh"
#include "common/vector_io.cuh"

namespace fastdl {

// Of the intervals of kAttentionGroup queries: where the first begins, the last begins, the first
// ends and the last ends. Empty ones count for the ends that must hold for all.
struct IntervalBounds {
  int first_begin, last_begin, first_end, last_end;

  __device__ __forceinline__ void merge(const IntervalBounds& other) {
    first_begin = min(first_begin, other.first_begin);
    last_begin = max(last_begin, other.last_begin);
    first_end = min(first_end, other.first_end);
    last_end = max(last_end, other.last_end);
  }
};
inline constexpr IntervalBounds kNoBounds = {INT_MAX, 0, INT_MAX, 0};

// The mask as kernels take it.
struct CudaMask {
  AttentionMask mask;
  int queries, keys, lowest, highest;  // the band within +- 2^30
  const IntervalBounds* bounds;        // [intervals, batch, heads, groups]
  struct {
    int64_t interval, batch, head;
    int group;
  } bound_strides;
};

// Half open
struct PairRange {
  int first_query, end_query, first_key, end_key;
};

// Which pair is an element of a lane's part of 16 x cols scores, as attention_product_cuda.cuh
// leaves them. Rows are queries, or with kKeyRows keys.
template <bool kKeyRows, int cols>
struct LanePairs {
  static constexpr int kQueries = kKeyRows ? cols / 4 : 2, kKeys = kKeyRows ? 2 : cols / 4;
  int first_query, first_key;

  __device__ __forceinline__ LanePairs(int row, int col) {
    const unsigned lane = ptx::lane_id();
    row += lane / 4;
    col += lane % 4 * 2;
    first_query = kKeyRows ? col : row;
    first_key = kKeyRows ? row : col;
  }
  __device__ __forceinline__ int query(int n) const { return first_query + step(!kKeyRows, n); }
  __device__ __forceinline__ int key(int n) const { return first_key + step(kKeyRows, n); }
  static __device__ __forceinline__ constexpr int element(int query, int key) {
    const int row = kKeyRows ? key : query, col = kKeyRows ? query : key;
    return col / 2 * 4 + row * 2 + col % 2;
  }

 private:
  static __device__ __forceinline__ constexpr int step(bool of_rows, int n) {
    return of_rows ? 8 * n : n / 2 * 8 + n % 2;
  }
};

// The mask of one head
struct HeadMask {
  const CudaMask& all;
  int batch, head;

  // How much counts of a range, whose queries are a multiple of kAttentionGroup
  __device__ __forceinline__ AttentionTile classify(const PairRange& range) const {
    const AttentionMask& mask = all.mask;
    const int last_query = min(range.end_query, all.queries) - 1;
    const int last_key = min(range.end_key, all.keys) - 1;
    if (last_key - range.first_query < all.lowest || range.first_key - last_query > all.highest) {
      return kTileEmpty;
    }
    bool full = range.end_key <= all.keys && range.first_key - last_query >= all.lowest &&
                last_key - range.first_query <= all.highest;
    if (mask.intervals > 0) {
      bool some = false, within = false;
      for (int64_t n = 0; n < mask.intervals; ++n) {
        const IntervalBounds bounds = bounds_of(n, range.first_query, last_query);
        some |= range.first_key < bounds.last_end && last_key >= bounds.first_begin;
        within |= bounds.last_begin <= range.first_key && bounds.first_end > last_key;
      }
      if (!some) return kTileEmpty;
      full &= within;
    }
    if (mask.tiles != nullptr) {
      bool some = false;
      const AttentionStrides& strides = mask.tile_strides;
      const uint8_t* const tiles = mask.tiles + batch * strides.batch + head * strides.head;
      for (int i = range.first_query / kMaskRows; i <= last_query / kMaskRows; ++i) {
        for (int j = range.first_key / kMaskCols; j <= last_key / kMaskCols; ++j) {
          const uint8_t tile = tiles[i * strides.row + j * strides.col];
          some |= tile != kTileEmpty;
          full &= tile == kTileFull;
        }
      }
      if (!some) return kTileEmpty;
    }
    return full ? kTileFull : kTilePartial;
  }

  // Bit e: whether the lane's element e counts
  template <bool kKeyRows, int cols>
  __device__ __forceinline__ uint32_t counting(const LanePairs<kKeyRows, cols>& pairs) const {
    using Pairs = LanePairs<kKeyRows, cols>;
    const AttentionMask& mask = all.mask;
    uint32_t bits = 0;
#pragma unroll
    for (int q = 0; q < Pairs::kQueries; ++q) {
#pragma unroll
      for (int k = 0; k < Pairs::kKeys; ++k) {
        const int distance = pairs.key(k) - pairs.query(q);
        const bool counts = pairs.query(q) < all.queries && pairs.key(k) < all.keys &&
                            distance >= all.lowest && distance <= all.highest;
        bits |= uint32_t{counts} << Pairs::element(q, k);
      }
    }
    if (mask.intervals > 0) bits &= within_intervals(pairs);
    if (mask.allowed != nullptr) {
      const AttentionStrides& strides = mask.allowed_strides;
      const uint8_t* const allowed = mask.allowed + batch * strides.batch + head * strides.head;
#pragma unroll
      for (int q = 0; q < Pairs::kQueries; ++q) {
        const uint8_t* const row = allowed + pairs.query(q) * strides.row;
#pragma unroll
        for (int k = 0; k < Pairs::kKeys; ++k) {
          const uint32_t bit = 1u << Pairs::element(q, k);
          if ((bits & bit) != 0 && row[pairs.key(k) * strides.col] == 0) bits &= ~bit;
        }
      }
    }
    return bits;
  }

 private:
  __device__ __forceinline__ IntervalBounds bounds_of(int64_t n, int first, int last) const {
    const auto& strides = all.bound_strides;
    const IntervalBounds* const bounds =
        all.bounds + n * strides.interval + batch * strides.batch + head * strides.head;
    IntervalBounds merged = kNoBounds;
    const int last_group = last / static_cast<int>(kAttentionGroup) * strides.group;
    for (int i = first / static_cast<int>(kAttentionGroup) * strides.group; i <= last_group; ++i) {
      merged.merge(bounds[i]);
    }
    return merged;
  }

  template <bool kKeyRows, int cols>
  __device__ __forceinline__ uint32_t
  within_intervals(const LanePairs<kKeyRows, cols>& pairs) const {
    using Pairs = LanePairs<kKeyRows, cols>;
    const AttentionMask& mask = all.mask;
    uint32_t bits = 0;
    for (int64_t n = 0; n < mask.intervals; ++n) {
      const int64_t first = n * mask.interval_strides.interval +
                            batch * mask.interval_strides.batch + head * mask.interval_strides.head;
#pragma unroll
      for (int q = 0; q < Pairs::kQueries; ++q) {
        if (pairs.query(q) >= all.queries) continue;
        const int64_t at = first + pairs.query(q) * mask.interval_strides.row;
        const int begin = mask.begin[at], end = mask.end[at];
#pragma unroll
        for (int k = 0; k < Pairs::kKeys; ++k) {
          const bool within = pairs.key(k) >= begin && pairs.key(k) < end;
          bits |= uint32_t{within} << Pairs::element(q, k);
        }
      }
    }
    return bits;
  }
};

// The tiles of [next, end) that are not empty, in order. All lanes of a warp call advance().
class TileWalk {
 public:
  __device__ __forceinline__ TileWalk(int next, int end) : next_(next), end_(end) {}

  // Goes to the next tile; false if there is none. classify(tile) gives its AttentionTile.
  template <class Classify>
  __device__ __forceinline__ bool advance(Classify&& classify) {
    while (some_ == 0) {
      if (next_ >= end_) return false;
      const int tile = next_ + ptx::lane_id();
      const AttentionTile kind = tile < end_ ? classify(tile) : kTileEmpty;
      some_ = __ballot_sync(kAllLanes, kind != kTileEmpty);
      full_ = __ballot_sync(kAllLanes, kind == kTileFull);
      next_ += kWarp;
    }
    bit_ = __ffs(static_cast<int>(some_)) - 1;
    some_ &= some_ - 1;
    return true;
  }
  __device__ __forceinline__ int tile() const { return next_ - kWarp + bit_; }
  __device__ __forceinline__ bool is_full() const { return (full_ >> bit_ & 1) != 0; }

 private:
  int next_, end_, bit_ = 0;
  unsigned some_ = 0, full_ = 0;
};

}  // namespace fastdl
