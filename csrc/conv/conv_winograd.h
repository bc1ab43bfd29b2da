// How Winograd convolution cuts its work: pure functions of the shape.
#pragma once

#include <algorithm>

#include "conv/conv.h"

namespace fastdl {

// Floats of a vector. Columns of weights stand in panels of two.
static inline constexpr int64_t conv_lanes(CpuIsa isa) {
#if defined(__aarch64__)
  constexpr int64_t kDefaultLanes = 4;
#else
  constexpr int64_t kDefaultLanes = 8;
#endif
  return isa == CpuIsa::kAvx512 ? 16 : isa == CpuIsa::kAvx2 ? 8 : kDefaultLanes;
}

// Bytes of the transformed weight that stay in the cache while every thread passes over them.
inline constexpr int64_t kCachedWeightBytes = int64_t{3} << 20;
// Of the matrices of a thread's group, and of a group that all threads share.
inline constexpr int64_t kOwnGroupBytes = int64_t{1} << 20;
inline constexpr int64_t kSharedGroupBytes = int64_t{24} << 20;

// Tiles of 4x4 results in groups, and the two matrices [36][tile][channel] of a group.
struct WinogradSizes {
  int64_t tiles, group;          // of the batch, of a group
  bool shared;                   // all threads take each step of a group together
  int64_t v_tile, m_tile;        // floats from tile to tile
  int64_t v_product, m_product;  // from product to product
  int64_t floats() const { return 36 * (v_product + m_product); }
};

// Sizes of a batch of n images of h x w results; from_width and to_width are the channels of the
// two matrices, rounded up to whole vectors.
static inline WinogradSizes winograd_sizes(int64_t n, int64_t h, int64_t w, int64_t from_width,
                                           int64_t to_width, int64_t threads) {
  const auto divide = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  WinogradSizes sizes{};
  sizes.tiles = n * divide(h, 4) * divide(w, 4);
  sizes.shared = 36 * 4 * from_width * to_width > kCachedWeightBytes;
  // An odd number of cache lines from row to row, so that neighbours do not meet in one set.
  const auto spread = [&](int64_t floats) { return (divide(floats, 16) | 1) * 16; };
  sizes.v_tile = sizes.shared ? spread(from_width) : from_width;
  sizes.m_tile = to_width;
  const int64_t most = (sizes.shared ? kSharedGroupBytes : kOwnGroupBytes) /
                       (36 * 4 * (sizes.v_tile + sizes.m_tile));
  const int64_t parts = divide(sizes.tiles, std::max<int64_t>(12, most));
  sizes.group = divide(sizes.tiles, sizes.shared ? parts : divide(parts, threads) * threads);
  sizes.v_product = spread(sizes.group * sizes.v_tile);
  sizes.m_product = spread(sizes.group * sizes.m_tile);
  return sizes;
}

}  // namespace fastdl
