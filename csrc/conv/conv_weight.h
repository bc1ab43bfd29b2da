// How the gradient of a dense convolution's weight is computed in parts: pure functions of the
// shape.
#pragma once

#include <algorithm>

#include "conv/conv.h"
#include "conv/conv_winograd.h"

namespace fastdl {

// Bytes of the input and grad_output that are laid out at a time, for all threads.
inline constexpr int64_t kBandBytes = int64_t{4} << 20;

// Bands of output rows, or several whole images, one after the other.
struct WeightSizes {
  int64_t images, rows;                           // of a band
  int64_t by_image, by_row;                       // numbers of bands
  int64_t in_rows, in_cols;                       // of the input that a band of an image needs
  int64_t width;                                  // columns of all panels
  int64_t input_floats, grad_floats, sum_floats;  // of a band's input and grad_output, of the sums

  int64_t floats() const { return input_floats + grad_floats + sum_floats; }
};

// panel_width: columns that are computed together.
static inline WeightSizes weight_sizes(const ConvShape& shape, int64_t panel_width) {
  const auto round_up = [&](int64_t n) { return conv_ceil_divide(n, 16) * 16; };
  const auto reach = [](const ConvAxis& axis, int64_t count) {
    return (count - 1) * axis.stride + (axis.kernel - 1) * axis.dilation + 1;
  };
  const int64_t in = shape.in_channels / shape.groups, out = shape.out_channels / shape.groups;
  WeightSizes sizes{};
  sizes.width = conv_ceil_divide(out, panel_width) * panel_width;
  sizes.in_cols = reach(shape.w, shape.w.output);
  const auto floats_of = [&](int64_t rows) {
    return reach(shape.h, rows) * sizes.in_cols * in + rows * shape.w.output * sizes.width;
  };
  const int64_t most = kBandBytes / static_cast<int64_t>(sizeof(float));
  sizes.rows = shape.h.output;
  while (sizes.rows > 1 && floats_of(sizes.rows) > most)
    sizes.rows = conv_ceil_divide(sizes.rows, 2);
  sizes.images = sizes.rows < shape.h.output
                     ? 1
                     : std::clamp<int64_t>(most / floats_of(sizes.rows), 1, shape.n);
  sizes.by_row = conv_ceil_divide(shape.h.output, sizes.rows);
  sizes.by_image = conv_ceil_divide(shape.n, sizes.images);
  sizes.in_rows = reach(shape.h, sizes.rows);
  sizes.input_floats = round_up(sizes.images * sizes.in_rows * sizes.in_cols * in);
  sizes.grad_floats = round_up(sizes.images * sizes.rows * shape.w.output * sizes.width);
  sizes.sum_floats = shape.h.kernel * shape.w.kernel * in * sizes.width;
  return sizes;
}

// Groups are computed one after the other by all threads, or each by one, in a workspace of its
// own.
static inline int64_t weight_workspaces(const ConvShape& shape, int64_t threads) {
  return shape.groups < threads ? 1 : threads;
}

// Winograd: V [36][tile][channel] and E [36][panel][tile][column] of a chunk of tiles, and the sums
// [36][channel][column].
struct WinogradWeightSizes {
  int64_t tiles, chunk;                               // of the batch, of a chunk
  int64_t v_tile, v_product, e_product, sum_product;  // distances in floats
  int64_t floats() const { return 36 * (v_product + e_product + sum_product); }
};

static inline WinogradWeightSizes winograd_weight_sizes(const ConvShape& shape, int64_t lanes) {
  const int64_t in = shape.in_channels / shape.groups, out = shape.out_channels / shape.groups;
  const int64_t panel_width = 2 * lanes;
  const int64_t width = conv_ceil_divide(out, panel_width) * panel_width;
  WinogradWeightSizes sizes{};
  sizes.tiles = shape.n * conv_ceil_divide(shape.h.output, 4) * conv_ceil_divide(shape.w.output, 4);
  sizes.v_tile = spread_floats(conv_ceil_divide(in, lanes) * lanes);
  // The sums pass the cache once a chunk: it should be no smaller than they are.
  const int64_t sums = 36 * 4 * in * width;
  const int64_t bytes = std::clamp(sums, kBandBytes, kSharedChunkBytes);
  const int64_t most = std::max<int64_t>(48, bytes / (36 * 4 * (sizes.v_tile + width)));
  sizes.chunk = conv_ceil_divide(sizes.tiles, conv_ceil_divide(sizes.tiles, most));
  sizes.v_product = spread_floats(sizes.chunk * sizes.v_tile);
  sizes.e_product = spread_floats(sizes.chunk * width);
  sizes.sum_product = spread_floats(in * width);
  return sizes;
}

}  // namespace fastdl
