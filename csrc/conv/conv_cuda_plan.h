// Which CUDA kernel computes a convolution: the table of tiles, and the choice among them by sizes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>

#include "common/row_plan.h"
#include "conv/conv.h"

namespace fastdl {

inline constexpr int kConvDepthBytes = 64;

// How a block computes rows x cols of a product: its warps warp_rows x warp_cols each, from tiles
// of kConvDepthBytes of the summed dimension, of which `stages` lie in shared memory. Registers and
// shared memory let a multiprocessor have `blocks` of them.
struct ConvTile {
  int rows, cols, warp_rows, warp_cols, stages, blocks;
  constexpr int threads() const { return rows / warp_rows * (cols / warp_cols) * 32; }
  constexpr int shared_bytes() const {  // tiles first, the results in float32 after them
    return std::max((rows + cols) * kConvDepthBytes * stages, rows * cols * 4);
  }
};

// Warps of 64 x 64 read shared memory least for a product, large blocks the second cache; the small
// ones fill a GPU that has few blocks to compute. kUnevenTile is for channels or addresses that are
// no multiples of 16 bytes, kFmaTile for float32 without tensor cores.
inline constexpr ConvTile kConvTiles[] = {
    {256, 128, 64, 64, 6, 1}, {128, 128, 64, 64, 4, 2}, {128, 64, 64, 32, 4, 3},
    {64, 64, 32, 32, 4, 4},   {128, 32, 32, 32, 4, 4},  {128, 64, 32, 64, 4, 3},
};
inline constexpr int kUnevenTile = 3, kFmaTile = 5;

// What a block may have: the GPUs between those of data centres have less.
constexpr int shared_bytes_of(int capability) {
  const bool large = capability == 80 || capability == 87 || (capability >= 90 && capability < 120);
  return (large ? 163 : 99) * 1024;
}

// Whether kernels of this kind exist for a tile.
constexpr bool has_tile(int tile, DType dtype, ConvMath math) {
  if (dtype != DType::kFloat32) return tile != kFmaTile;
  if (math == ConvMath::kIeee) return tile == kUnevenTile || tile == kFmaTile;
  return tile >= 1 && tile <= 4;
}

constexpr int64_t conv_depth(DType dtype) {
  return kConvDepthBytes / (dtype == DType::kFloat32 ? 4 : 2);
}

// The product that a direction is: rows x cols, summed over `depth`, `count` times.
struct ConvProduct {
  int64_t rows, cols, depth, count;
};

inline ConvProduct product_of(const ConvShape& shape, ConvDirection direction) {
  const ConvAxis &h = shape.h, &w = shape.w;
  const int64_t taps = h.kernel * w.kernel, pixels = shape.n * h.output * w.output;
  const int64_t in = shape.in_channels / shape.groups, out = shape.out_channels / shape.groups;
  switch (direction) {
    case ConvDirection::kForward:
      return {pixels, out, taps * in, shape.groups};
    case ConvDirection::kBackwardInput:  // one for each remainder of the strides
      return {shape.n * ceil_divide(h.input, h.stride) * ceil_divide(w.input, w.stride), in,
              ceil_divide(taps, h.stride * w.stride) * out, shape.groups * h.stride * w.stride};
    case ConvDirection::kBackwardWeight:
      return {out, taps * in, pixels, shape.groups};
  }
  return {};
}

inline int64_t blocks_of(const ConvProduct& product, const ConvTile& tile) {
  return ceil_divide(product.rows, int64_t{tile.rows}) *
         ceil_divide(product.cols, int64_t{tile.cols}) * product.count;
}

// Partial sums in backward_weight: as many as fill the GPU twice, each of 16 steps of the depth at
// least, and together no more than this.
inline constexpr int64_t kConvWorkspaceBytes = int64_t{256} << 20;

inline int64_t splits_of(const ConvProduct& product, const ConvTile& tile, DType dtype,
                         int multiprocessors) {
  const int64_t steps = ceil_divide(product.depth, conv_depth(dtype));
  const int64_t results = product.rows * product.cols * product.count;
  const int64_t wanted =
      2 * int64_t{multiprocessors} * tile.blocks / std::max<int64_t>(blocks_of(product, tile), 1);
  return std::clamp<int64_t>(std::min({wanted, steps / 16, kConvWorkspaceBytes / (4 * results)}), 1,
                             1024);
}

// Partial sums of grad_bias: enough for two blocks a multiprocessor
inline int64_t bias_parts_of(const ConvShape& shape, int multiprocessors) {
  const int64_t pixels = shape.n * shape.h.output * shape.w.output;
  return std::clamp<int64_t>(pixels / 64, 1, 2 * int64_t{multiprocessors});
}

// What a tile takes, in multiply-adds of one multiprocessor: those of its blocks' waves, by the
// rate that reading shared memory and the second cache leaves them. The rates follow from the bytes
// a multiply-add takes; they are not measurements. A multiprocessor needs 8 warps to keep busy.
inline double cost_of(const ConvProduct& product, int index, int64_t splits, int multiprocessors) {
  constexpr double kRates[] = {1.0, 0.85, 0.75, 0.5, 0.45, 1.0};
  // Elements of the depth that filling and writing take; thrice, if no other block computes then
  const double start_and_end = kConvTiles[index].blocks > 1 ? 64 : 192;
  const ConvTile& tile = kConvTiles[index];
  const int64_t blocks = blocks_of(product, tile) * splits;
  const int64_t wave = int64_t{multiprocessors} * tile.blocks, full = blocks / wave;
  const int64_t left = ceil_divide(blocks - full * wave, int64_t{multiprocessors});
  const int64_t rounds =
      full * tile.blocks + (left == 0 ? 0 : std::max<int64_t>(left, 256 / tile.threads()));
  const double depth = static_cast<double>(product.depth) / static_cast<double>(splits);
  return static_cast<double>(rounds) * tile.rows * tile.cols * (depth + start_and_end) /
         kRates[index];
}

// Whether pixels can be counted in 32 bits, with those that only taps outside the image meet.
inline bool has_small_positions(const ConvShape& shape) {
  constexpr int64_t kMost = int64_t{1} << 30;
  const auto reach = [](const ConvAxis& axis) {
    return std::max(axis.input, axis.output * axis.stride) + axis.kernel * axis.dilation;
  };
  const int64_t h = reach(shape.h), w = reach(shape.w);
  const int64_t weights = shape.out_channels * (shape.in_channels / shape.groups);
  return h < kMost && w < kMost && shape.n < kMost / h && shape.n * h < kMost / w &&
         weights < kMost && shape.h.kernel * shape.w.kernel < kMost / weights;
}

// Depthwise kernels: those of backward_weight sum kDepthwiseSums of a channel's taps, and its bias,
// a block, over one of several parts of the pixels. A remainder of the strides is a launch.
inline constexpr int kDepthwiseSums = 10;

inline bool is_depthwise(const ConvShape& shape) {
  return shape.groups == shape.in_channels && shape.groups == shape.out_channels &&
         shape.h.stride * shape.w.stride <= 16 && shape.h.kernel * shape.w.kernel <= 512;
}

inline ConvCudaPlan depthwise_plan(const ConvShape& shape, ConvDirection direction,
                                   int multiprocessors) {
  ConvCudaPlan plan{.kernel = ConvCudaKernel::kDepthwise, .channels_last = shape.channels_last};
  if (direction != ConvDirection::kBackwardWeight) return plan;
  const int64_t pixels = shape.n * shape.h.output * shape.w.output;
  const int64_t sums = shape.h.kernel * shape.w.kernel + 1;
  const int64_t slices =
      shape.channels_last ? ceil_divide(shape.out_channels, int64_t{64}) : shape.out_channels;
  const int64_t blocks = slices * ceil_divide(sums, int64_t{kDepthwiseSums});
  const int64_t wanted = ceil_divide(16 * int64_t{multiprocessors}, blocks);
  plan.splits = static_cast<int>(std::clamp<int64_t>(pixels / 1024, 1, wanted));
  plan.workspace_bytes = static_cast<size_t>(4 * plan.splits * sums * shape.out_channels);
  return plan;
}

// How many groups of few channels backward_weight computes at once, so that no tile is mostly idle;
// of the results only those within a group are kept. 0 if no number makes vectors of the channels.
// The other directions would need zeros between the groups, which infinities and NaN do not
// respect.
inline int merged_groups_of(const ConvShape& shape, ConvDirection direction, int64_t vector) {
  constexpr int64_t kColumns = 32, kMost = 64;
  const int64_t in = shape.in_channels / shape.groups, out = shape.out_channels / shape.groups;
  const int64_t narrow = std::min(in, out);
  if (shape.groups == 1 || narrow >= kColumns) return 1;
  const bool merges = direction == ConvDirection::kBackwardWeight;
  for (int64_t merged = 1; merged <= (merges ? std::min(shape.groups, kMost) : 1); ++merged) {
    const bool wide = !merges || narrow * merged >= kColumns || merged == shape.groups;
    if (wide && shape.groups % merged == 0 && in * merged % vector == 0 &&
        out * merged % vector == 0) {
      return static_cast<int>(merged);
    }
  }
  return 0;
}

// A pure function of its arguments, of which the last two are CudaTarget's.
inline ConvCudaPlan plan_conv_cuda(ConvShape shape, ConvDirection direction, DType dtype,
                                   ConvMath math, int multiprocessors, int capability) {
  if (dtype != DType::kFloat32) math = ConvMath::kIeee;
  const int64_t vector = dtype == DType::kFloat32 ? 4 : 8;
  if (dtype == DType::kFloat64 || !has_small_positions(shape)) return {};
  if (is_depthwise(shape)) return depthwise_plan(shape, direction, multiprocessors);
  const int merged = merged_groups_of(shape, direction, vector);
  if (merged == 0) return {};
  shape.groups /= merged;
  if (!has_small_positions(shape)) return {};
  const ConvProduct product = product_of(shape, direction);
  const bool whole = shape.in_channels / shape.groups % vector == 0 &&
                     shape.out_channels / shape.groups % vector == 0;
  const auto splits_for = [&](const ConvTile& tile) {
    return direction == ConvDirection::kBackwardWeight
               ? splits_of(product, tile, dtype, multiprocessors)
               : 1;
  };
  int best = kUnevenTile;
  double least = 0;
  for (int i = 0; i < static_cast<int>(std::size(kConvTiles)); ++i) {
    if (!whole || !has_tile(i, dtype, math)) continue;
    if (kConvTiles[i].shared_bytes() > shared_bytes_of(capability)) continue;
    const double cost = cost_of(product, i, splits_for(kConvTiles[i]), multiprocessors);
    if (least == 0 || cost < least) {
      least = cost;
      best = i;
    }
  }
  const int64_t splits = splits_for(kConvTiles[best]);
  ConvCudaPlan plan{.kernel = ConvCudaKernel::kGemm,
                    .channels_last = true,
                    .math = math,
                    .tile = best,
                    .splits = static_cast<int>(splits),
                    .merged_groups = merged};
  if (direction == ConvDirection::kBackwardWeight) {
    const int64_t sums = splits * product.rows * product.cols * product.count;
    const int64_t bias_sums = bias_parts_of(shape, multiprocessors) * shape.out_channels;
    plan.workspace_bytes = static_cast<size_t>(4 * (sums + bias_sums));
  }
  return plan;
}

}  // namespace fastdl
