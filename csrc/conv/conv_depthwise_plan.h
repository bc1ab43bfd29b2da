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

// What the kernels are made for: depthwise with any multiplier, and groups of few channels (wider
// ones fill the vectors of the dense kernels). Rows in scratch memory are bounded, to 4 MB a
// thread.
static inline bool depthwise_covers(const ConvShape& shape, ConvDirection direction) {
  const GroupChannels group = group_channels(shape, direction);
  const bool depthwise = shape.in_channels == shape.groups;
  const bool narrow = group.from <= kDepthwiseLanes && group.to <= kDepthwiseLanes &&
                      shape.out_channels / shape.groups < kDepthwiseLanes;
  constexpr int64_t kMostPixels = 65536;
  return shape.groups > 1 && (depthwise || narrow) &&
         std::max(shape.w.input, shape.w.output) * group.from <= kMostPixels;
}

// Whether they are at least as fast as native torch 2.13, by times on 2 cores with AVX2. Above 1 is
// faster than native; forward, input, weight; NCHW | channels_last:
//
//   3x3, 7x7, 14x14, 56x56, 112x112     1.2-1.5, 1.4-1.7, 1.2-2.3 | 1.0-1.5, 1.0-1.3, 1.1-1.8
//   3x3 stride 2                        1.8-2.0, 1.6-1.8, 2.2-2.5 | 1.0-1.1, 1.0, 1.0-1.2
//   5x5, 7x7, 13x13, 31x31              1.1-17, 1.1-2.0, 10-44    | 1.2-2.4, 1.1-2.7, 3-17
//   groups of 2, 4, 8 channels          1.4-4, 1.1-12, 1.2-15     | 1.1-4, 1.1-3.8, 1.0-3
//   multiplier 2; groups of 3           2.8-4, 9-11, 7-18         | 1.5-2.6, 1.7-4.5, 1.5-5.7
//   bfloat16, float16                   4-19                      | 11-120
//   below 16 channels, which leave lanes empty: 0.9, 0.9, 1.5 | 0.4, 0.5, 0.6; forward with
//   dilation 0.99 | 0.6; groups of 8 to 4 channels 2.4 | 0.7-0.9; input of 1x31 1.1 | 0.8
static inline bool depthwise_pays(const ConvShape& shape, ConvDirection direction, DType dtype) {
  if (dtype != DType::kFloat32) return true;
  const GroupChannels group = group_channels(shape, direction);
  if (shape.groups * group.to < kDepthwiseLanes) return false;
  if (!shape.channels_last || direction == ConvDirection::kBackwardWeight) return true;
  const bool same = group.from == group.to && kDepthwiseLanes % group.to == 0;
  if (!same && group.from >= 4) return false;
  if (direction == ConvDirection::kForward && shape.w.dilation > 1) return false;
  return shape.w.kernel <= 7 || shape.h.kernel > 1;
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
  return static_cast<size_t>(depthwise_batch_parts(shape, threads) * depthwise_part_floats(shape)) *
         sizeof(float);
}

}  // namespace fastdl
