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

static inline int64_t conv_ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// At least as many floats, an odd number of cache lines: neighbours of a tile's 36 products, this
// far apart, do not meet in one set of a cache.
static inline int64_t spread_floats(int64_t floats) {
  return (conv_ceil_divide(floats, 16) | 1) * 16;
}

// Bytes of the transformed weight that stay in the cache while every thread passes over them.
inline constexpr int64_t kCachedWeightBytes = int64_t{3} << 20;
// Of the matrices of a thread's chunk of tiles, and of a chunk that all threads share.
inline constexpr int64_t kOwnChunkBytes = int64_t{1} << 20;
inline constexpr int64_t kSharedChunkBytes = int64_t{24} << 20;

// Tiles of 4x4 results in chunks, and the two matrices [36][tile][channel] of a chunk.
struct WinogradSizes {
  int64_t tiles, chunk;          // of the batch, of a chunk
  bool shared;                   // all threads take each step of a chunk together
  int64_t v_tile, m_tile;        // floats from tile to tile
  int64_t v_product, m_product;  // from product to product
  int64_t floats() const { return 36 * (v_product + m_product); }
};

// Sizes for a batch of n images of h x w results; from_width and to_width are the channels of the
// two matrices, rounded up to whole vectors.
static inline WinogradSizes winograd_sizes(int64_t n, int64_t h, int64_t w, int64_t from_width,
                                           int64_t to_width, int64_t threads) {
  WinogradSizes sizes{};
  sizes.tiles = n * conv_ceil_divide(h, 4) * conv_ceil_divide(w, 4);
  sizes.shared = 36 * 4 * from_width * to_width > kCachedWeightBytes;
  sizes.v_tile = sizes.shared ? spread_floats(from_width) : from_width;
  sizes.m_tile = to_width;
  const int64_t most = (sizes.shared ? kSharedChunkBytes : kOwnChunkBytes) /
                       (36 * 4 * (sizes.v_tile + sizes.m_tile));
  const int64_t parts = conv_ceil_divide(sizes.tiles, std::max<int64_t>(12, most));
  sizes.chunk = conv_ceil_divide(sizes.tiles,
                                 sizes.shared ? parts : conv_ceil_divide(parts, threads) * threads);
  sizes.v_product = spread_floats(sizes.chunk * sizes.v_tile);
  sizes.m_product = spread_floats(sizes.chunk * sizes.m_tile);
  return sizes;
}

}  // namespace fastdl
