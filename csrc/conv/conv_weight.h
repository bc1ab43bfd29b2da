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
  const auto divide = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const auto round_up = [&](int64_t n) { return divide(n, 16) * 16; };
  const auto reach = [](const ConvAxis& axis, int64_t count) {
    return (count - 1) * axis.stride + (axis.kernel - 1) * axis.dilation + 1;
  };
  const int64_t in = shape.in_channels / shape.groups, out = shape.out_channels / shape.groups;
  WeightSizes sizes{};
  sizes.width = divide(out, panel_width) * panel_width;
  sizes.in_cols = reach(shape.w, shape.w.output);
  const auto floats_of = [&](int64_t rows) {
    return reach(shape.h, rows) * sizes.in_cols * in + rows * shape.w.output * sizes.width;
  };
  const int64_t most = kBandBytes / static_cast<int64_t>(sizeof(float));
  sizes.rows = shape.h.output;
  while (sizes.rows > 1 && floats_of(sizes.rows) > most) sizes.rows = divide(sizes.rows, 2);
  sizes.images = sizes.rows < shape.h.output
                     ? 1
                     : std::clamp<int64_t>(most / floats_of(sizes.rows), 1, shape.n);
  sizes.by_row = divide(shape.h.output, sizes.rows);
  sizes.by_image = divide(shape.n, sizes.images);
  sizes.in_rows = reach(shape.h, sizes.rows);
  sizes.input_floats = round_up(sizes.images * sizes.in_rows * sizes.in_cols * in);
  sizes.grad_floats = round_up(sizes.images * sizes.rows * shape.w.output * sizes.width);
  sizes.sum_floats = shape.h.kernel * shape.w.kernel * in * sizes.width;
  return sizes;
}

// Winograd: V [36][tile][channel] and E [36][panel][tile][column] of a group of tiles, and the sums
// [36][channel][column].
struct WinogradWeightSizes {
  int64_t tiles, group;                               // of the batch, of a group
  int64_t v_tile, v_product, e_product, sum_product;  // distances in floats
  int64_t floats() const { return 36 * (v_product + e_product + sum_product); }
};

static inline WinogradWeightSizes winograd_weight_sizes(const ConvShape& shape, int64_t lanes) {
  const auto divide = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const auto spread = [&](int64_t floats) { return (divide(floats, 16) | 1) * 16; };
  const int64_t panel_width = 2 * lanes;
  const int64_t width = divide(shape.out_channels, panel_width) * panel_width;
  WinogradWeightSizes sizes{};
  sizes.tiles = shape.n * divide(shape.h.output, 4) * divide(shape.w.output, 4);
  sizes.v_tile = spread(divide(shape.in_channels, lanes) * lanes);
  // The sums pass the cache once a group: it should be no smaller than they are.
  const int64_t sums = 36 * 4 * shape.in_channels * width;
  const int64_t bytes = std::clamp(sums, kBandBytes, kSharedGroupBytes);
  const int64_t most = std::max<int64_t>(48, bytes / (36 * 4 * (sizes.v_tile + width)));
  sizes.group = divide(sizes.tiles, divide(sizes.tiles, most));
  sizes.v_product = spread(sizes.group * sizes.v_tile);
  sizes.e_product = spread(sizes.group * width);
  sizes.sum_product = spread(shape.in_channels * width);
  return sizes;
}

}  // namespace fastdl
