// The dropout of a panel of queries and a tile of keys: AttentionDropout's blocks of 16 x 16 pairs
// lie as the turned scores do, so that their random bits are made in order.
#pragma once

#include "attention/attention_rows_cpu.h"
#include "common/dropout_mask_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace attention_detail {

class PanelDropout {
 public:
  PanelDropout() = default;
  PanelDropout(const AttentionDropout& dropout, const AttentionSizes& sizes, int64_t b, int64_t h,
               int64_t first)
      : rule_(make_dropout_rule(dropout.p, dropout.seed)),
        scale_(static_cast<float>(1.0 / (1.0 - dropout.p))),
        col_blocks_(ceil_divide(sizes.keys, kDropoutBlock)),
        row_block_((b * sizes.heads + h) * ceil_divide(sizes.queries, kDropoutBlock) +
                   first / kDropoutBlock),
        shift_(first % kDropoutBlock) {}

  // Makes the bits of the keys from `key` on, a multiple of 16, at most kMaskCols.
  void fill(int64_t key, int64_t keys) {
    for (int64_t block = 0; block < kRowBlocks; ++block) {
      const int64_t first = (row_block_ + block) * col_blocks_ + key / kDropoutBlock;
      fill_keep(rule_, first * kDropoutTile, keys * kDropoutBlock, keep_[block]);
    }
  }

  // 0 or 1 / (1 - p) of key j of the tile and the queries from lane i on
  Vec<float> kept(int64_t j, int64_t i) const {
    const int64_t at = shift_ + i;
    return scale_of_kept<float>(keep_[at / kDropoutBlock] + j * kDropoutBlock + at % kDropoutBlock,
                                Vec<float>(scale_));
  }

 private:
  static constexpr int64_t kRowBlocks = (kPanelWidth + kDropoutBlock - 1) / kDropoutBlock;

  DropoutRule rule_;
  float scale_;
  int64_t col_blocks_, row_block_, shift_;
  alignas(64) uint16_t keep_[kRowBlocks][kMaskCols * kDropoutBlock];
};

}  // namespace attention_detail
}  // namespace CPU_CAPABILITY
}  // namespace fastdl
