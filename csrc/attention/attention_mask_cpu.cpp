// How much of a boolean mask counts, tile by tile: read once, a byte a pair. And the mask of
// dropout as a tensor.
#include "attention/attention_dropout_cpu.h"
#include "attention/attention_work_cpu.h"

namespace fastdl {

template <>
void attention_mask_tiles<kBuildIsa>(const AttentionMaskTilesArgs& args) {
  const int64_t rows = ceil_divide(args.queries, kMaskRows);
  const int64_t cols = ceil_divide(args.keys, kMaskCols);
  const AttentionStrides& strides = args.strides;
  parallel_for(0, args.batch * args.heads * rows, 1, [&](int64_t from, int64_t to) {
    for (int64_t task = from; task < to; ++task) {
      const int64_t head = task / rows, first = task % rows * kMaskRows;
      const int64_t height = std::min(kMaskRows, args.queries - first);
      const uint8_t* row = args.allowed + head / args.heads * strides.batch +
                           head % args.heads * strides.head + first * strides.row;
      for (int64_t tile = 0; tile < cols; ++tile) {
        const int64_t key = tile * kMaskCols, width = std::min(kMaskCols, args.keys - key);
        int64_t count = 0;
        for (int64_t i = 0; i < height; ++i) {
          const uint8_t* at = row + i * strides.row + key * strides.col;
          int in_row = 0;
          if (strides.col == 1) {
            for (int64_t j = 0; j < width; ++j) in_row += at[j] != 0;
          } else {
            for (int64_t j = 0; j < width; ++j) in_row += at[j * strides.col] != 0;
          }
          count += in_row;
        }
        args.tiles[task * cols + tile] = count == 0                ? kTileEmpty
                                         : count == height * width ? kTileFull
                                                                   : kTilePartial;
      }
    }
  });
}

template <>
void attention_kept<kBuildIsa>(const AttentionKeptArgs& args) {
  using attention_detail::PanelDropout;
  const int64_t panels = ceil_divide(args.queries, kPanelWidth);
  const AttentionSizes sizes{args.batch, args.heads, args.heads, args.queries, args.keys, 0, 0};
  for_tasks(args.batch * args.heads * panels, [&](int64_t task, int64_t) {
    const int64_t head = task / panels, first = task % panels * kPanelWidth;
    PanelDropout dropout(args.dropout, sizes, head / args.heads, head % args.heads, first);
    for (int64_t key = 0; key < args.keys; key += kMaskCols) {
      const int64_t width = std::min(kMaskCols, args.keys - key);
      dropout.fill(key, width);
      for (int64_t j = 0; j < width; ++j) {
        alignas(64) float kept[kPanelWidth];
        for (int64_t i = 0; i < kPanelWidth; i += kLaneCount) {
          dropout.kept(j, i).store(kept + i);
        }
        for (int64_t i = 0; i < std::min(kPanelWidth, args.queries - first); ++i) {
          args.kept[(head * args.queries + first + i) * args.keys + key + j] = kept[i];
        }
      }
    }
  });
}

}  // namespace fastdl
