// The gradient of a 3x3 weight by Winograd, the transposed form of conv_winograd_cpu.h:
//
//   V = B^T d B of the input's patches, E = A dy A^T of grad_output's tiles
//   sums[product][in_channel][out_channel] += sum over tiles of V * E: 36 matrix products
//   grad_weight = G^T sums G
//
// for a chunk of tiles at a time, all threads sharing each step, so that there is one sum. Limit:
// the FMA rate at 36 products for 16 pixels and 9 taps, a quarter of the direct sum.
#pragma once

#include "conv/conv_weight_cpu.h"
#include "conv/conv_winograd_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace conv_detail {

template <class T>
void winograd_backward_weight(const ConvBackwardWeightArgs& args, int64_t group, float* v) {
  const ConvShape& shape = args.shape;
  const ConvAxis &h = shape.h, &w = shape.w;
  const int64_t in_channels = shape.in_channels / shape.groups;
  const int64_t out_channels = shape.out_channels / shape.groups;
  const WinogradWeightSizes sizes = winograd_weight_sizes(shape, kLaneCount);
  const Tiles tiles(h.output, w.output);
  const int64_t panels = ceil_divide(out_channels, kPanelWidth), width = panels * kPanelWidth;
  const Images<const T> inputs{static_cast<const T*>(args.input),
                               shape.in_channels,
                               h.input,
                               w.input,
                               shape.channels_last,
                               group * in_channels,
                               in_channels};
  const Images<const T> grads{static_cast<const T*>(args.grad_output),
                              shape.out_channels,
                              h.output,
                              w.output,
                              shape.channels_last,
                              group * out_channels,
                              out_channels};
  float* e = v + kProducts * sizes.v_product;
  float* sums = e + kProducts * sizes.e_product;
  std::vector<int64_t> in(in_channels), out(in_channels);
  for (int64_t c = 0; c < in_channels; ++c) {
    in[c] = c;
    out[c] = c * width;
  }
  for (int64_t first = 0; first < sizes.tiles; first += sizes.chunk) {
    const int64_t count = std::min(sizes.chunk, sizes.tiles - first);
    parallel_for(first, first + count, 1, [&](int64_t begin, int64_t end) {
      auto* strip = static_cast<float*>(thread_scratch(kStripPixels * kPanelWidth * sizeof(float)));
      for_row_parts(
          tiles, begin, end, [&](int64_t image, int64_t y, int64_t x, int64_t many, int64_t tile) {
            const int64_t i = tile - first;
            transform_patches<InputTransform>(inputs, image, y - h.padding, x - w.padding, many,
                                              v + i * sizes.v_tile, sizes.v_tile, kPanelWidth,
                                              sizes.v_product, strip);
            transform_patches<GradOutputTransform>(grads, image, y, x, many, e + i * kPanelWidth,
                                                   kPanelWidth, count * kPanelWidth,
                                                   sizes.e_product, strip);
          });
    });
    const int64_t start = 0;
    const int64_t parts = ceil_divide(num_threads() * 4, kProducts);
    const int64_t pieces = ceil_divide(count, kPixelTerms), piece = ceil_divide(count, pieces);
    parallel_for(0, kProducts * parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t product = task / parts, part = task % parts;
        for (int64_t at = 0; at < count; at += piece) {
          const Terms terms{&start, 1, std::min(piece, count - at), sizes.v_tile, kPanelWidth, 0};
          for (int64_t panel = panels * part / parts; panel < panels * (part + 1) / parts;
               ++panel) {
            multiply_rows(in_channels, 2, first + at > 0, terms,
                          v + product * sizes.v_product + at * sizes.v_tile, in.data(),
                          e + product * sizes.e_product + (panel * count + at) * kPanelWidth,
                          sums + product * sizes.sum_product + panel * kPanelWidth, out.data());
          }
        }
      }
    });
  }
  store_weights<T>(args, group, [&](int64_t panel, int64_t channel, int64_t count, float* rows) {
    for (int64_t c = 0; c < count; ++c) {
      const float* from = sums + (channel + c) * width + panel * kPanelWidth;
      for (int64_t i = 0; i < kPanelWidth; i += kLaneCount) {
        transform_tile<GradWeightTransform>(from + i, kTileInputs * sizes.sum_product,
                                            sizes.sum_product, rows + c * 9 * kPanelWidth + i,
                                            3 * kPanelWidth, kPanelWidth);
      }
    }
  });
}

}  // namespace conv_detail
}  // namespace CPU_CAPABILITY
}  // namespace fastdl
