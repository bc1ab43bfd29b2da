// Which convolutions the depthwise kernels compute, and the memory they ask for: pure functions of
// the shape. Functions are static: each instruction set's file has its own.
#pragma once

#include <algorithm>

#include "conv/conv.h"

namespace fastdl {

inline constexpr int64_t kDepthwiseLanes = 16;  // result channels of a block

// Channels of one group that a result is the sum over, and how many results share them.
struct GroupChannels {
  int64_t from, to;
};

static inline GroupChannels group_channels(const ConvShape& shape, ConvDirection direction) {
  const int64_t in = shape.in_channels / shape.groups, out = shape.out_channels / shape.groups;
  if (direction == ConvDirection::kBackwardInput) return {out, in};
  return {in, out};
}

static inline int64_t depthwise_blocks(const ConvShape& shape, ConvDirection direction) {
  const int64_t channels = shape.groups * group_channels(shape, direction).to;
  return (channels + kDepthwiseLanes - 1) / kDepthwiseLanes;
}

// Floats of a weight in blocks of kDepthwiseLanes.
static inline int64_t depthwise_weight_floats(const ConvShape& shape, ConvDirection direction) {
  return depthwise_blocks(shape, direction) * kDepthwiseLanes *
         group_channels(shape, direction).from * shape.h.kernel * shape.w.kernel;
}

// Parts of the batch whose weight gradients are summed apart, where blocks alone are too few to
// keep the threads busy.
static inline int64_t depthwise_batch_parts(const ConvShape& shape, int64_t threads) {
  const int64_t blocks = depthwise_blocks(shape, ConvDirection::kBackwardWeight);
  const int64_t wanted = (4 * threads + blocks - 1) / blocks;
  return std::max<int64_t>(1, std::min(shape.n, wanted));
}

// Floats of a part: the weight's gradient, then the bias'.
static inline int64_t depthwise_part_floats(const ConvShape& shape) {
  constexpr ConvDirection kDirection = ConvDirection::kBackwardWeight;
  return depthwise_weight_floats(shape, kDirection) +
         depthwise_blocks(shape, kDirection) * kDepthwiseLanes;
}

static inline size_t depthwise_packed_weight_bytes(const ConvShape& shape,
                                                   ConvDirection direction) {
  if (direction == ConvDirection::kBackwardWeight) return 0;
  return static_cast<size_t>(depthwise_weight_floats(shape, direction)) * sizeof(float);
}

static inline size_t depthwise_workspace_bytes(const ConvShape& shape, ConvDirection direction,
                                               int64_t threads) {
  if (direction != ConvDirection::kBackwardWeight) return 0;
  return static_cast<size_t>(depthwise_batch_parts(shape, threads) *
                             depthwise_part_floats(shape)) *
         sizeof(float);
}

}  // namespace fastdl
