// 3x3 convolution of stride 1 by Winograd's F(4x4, 3x3): forward, and the gradient of the input,
// which is the same with other weights. Tiles of 4x4 results are taken in chunks:
//
//   1. V[product][tile][channel] = B^T d B of each 6x6 patch of the source
//   2. M[product][tile][column]  = V[product] U[product]: 36 matrix products, product_tile_cpu.h
//   3. results                   = A^T M A, through store_pixels with the epilogue
//
// U = G g G^T is the packed weight, [product][panel][channel][column]. Where U fits the cache, a
// thread takes a group of its own through all steps; else the threads share each step of a larger
// group, so that U is read from memory less often.
//
// Limit: the FMA rate at 2.25 products a result and channel (direct: 9) where tiles fit the image.
// The transforms cost 144 and 120 vector operations a tile; V and M are written and read once.
#pragma once

#include "conv/conv_direct_cpu.h"
#include "conv/conv_winograd.h"
#include "conv/conv_winograd_transform_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace conv_detail {

inline constexpr int64_t kRowTiles = 16;  // of a part of a row: its window stays in L1 or near
inline constexpr int64_t kStripPixels = kTileInputs * (kTileOutputs * kRowTiles + 2);

// The tiles of a batch: by image, row, column.
struct Tiles {
  int64_t down, across;

  Tiles(int64_t h, int64_t w)
      : down(ceil_divide(h, kTileOutputs)), across(ceil_divide(w, kTileOutputs)) {}
};

// Calls f(image, y, x, count, tile) for the parts of rows that make up the tiles [begin, end):
// `count` neighbours, the first of them `tile`, with its results from pixel (y, x) on.
template <class F>
inline void for_row_parts(const Tiles& tiles, int64_t begin, int64_t end, F&& f) {
  for (int64_t tile = begin; tile < end;) {
    const int64_t row = tile / tiles.across, col = tile % tiles.across;
    const int64_t count = std::min({tiles.across - col, end - tile, kRowTiles});
    f(row / tiles.down, row % tiles.down * kTileOutputs, col * kTileOutputs, count, tile);
    tile += count;
  }
}

// Patches of an image, `tiles` neighbours 4 pixels apart, the first of them at (y, x), for all
// channels: product p of a tile's channel c goes to p * product_stride + tile * tile_stride + c /
// kPanelWidth * panel_stride + c % kPanelWidth.
template <class Transform, class T>
void transform_patches(const Images<const T>& images, int64_t image, int64_t y, int64_t x,
                       int64_t tiles, float* to, int64_t tile_stride, int64_t panel_stride,
                       int64_t product_stride, float* strip) {
  constexpr int64_t kSize = Transform::kFrom;
  const int64_t cols = kTileOutputs * (tiles - 1) + kSize;
  for (int64_t c = 0; c < images.channels; c += kPanelWidth, to += panel_stride) {
    const int64_t count = std::min(kPanelWidth, images.channels - c);
    load_window<T>(strip, kPanelWidth, images.at(image, c), {y, kSize, x, cols}, count);
    for (int64_t tile = 0; tile < tiles; ++tile) {
      for (int64_t i = 0; i < count; i += kLaneCount) {
        transform_tile<Transform>(strip + tile * kTileOutputs * kPanelWidth + i, cols * kPanelWidth,
                                  kPanelWidth, to + tile * tile_stride + i,
                                  kTileInputs * product_stride, product_stride);
      }
    }
  }
}

template <class T>
void pack_winograd(const ConvPackArgs& args) {
  const bool backward = args.direction == ConvDirection::kBackwardInput;
  const PlaneSum sum = plane_sum(args.shape, backward);
  const Panels panels{sum.to_channels};
  const int64_t product_stride = spread_floats(sum.from_channels * panels.width());
  const int64_t order = backward ? -1 : 1;  // towards the input, taps run backwards
  auto* packed = static_cast<float*>(args.packed_weight);
  for_weight<T>(
      args, sum,
      [&](int64_t group, int64_t panel, int64_t channel, int64_t count, const float* rows) {
        const int64_t width = panels.vectors(panel) * kLaneCount;
        float* to = packed + group * kProducts * product_stride +
                    panel * kPanelWidth * sum.from_channels + channel * width;
        for (int64_t c = 0; c < count; ++c) {
          const float* first = rows + (c * 9 + (backward ? 8 : 0)) * kPanelWidth;
          for (int64_t i = 0; i < width; i += kLaneCount) {
            transform_tile<WeightTransform>(first + i, order * 3 * kPanelWidth, order * kPanelWidth,
                                            to + c * width + i, kTileInputs * product_stride,
                                            product_stride);
          }
        }
      });
}

// M[product] = V[product] U[product] for products [begin, end) and `tiles` tiles.
inline void multiply_products(const WinogradSizes& sizes, int64_t channels, const Panels& panels,
                              const float* v, const float* u, float* m, int64_t tiles,
                              int64_t begin, int64_t end) {
  std::vector<int64_t> in(tiles), out(tiles);
  for (int64_t i = 0; i < tiles; ++i) {
    in[i] = i * sizes.v_tile;
    out[i] = i * sizes.m_tile;
  }
  const int64_t pieces = ceil_divide(channels, kPanelTerms), piece = ceil_divide(channels, pieces);
  const int64_t start = 0, u_product = spread_floats(channels * panels.width());
  for (int64_t p = begin; p < end; ++p) {
    for (int64_t at = 0; at < channels; at += piece) {
      for (int64_t panel = 0; panel < panels.count(); ++panel) {
        const int vectors = panels.vectors(panel);
        const int64_t width = vectors * kLaneCount;
        const Terms terms{&start, 1, std::min(piece, channels - at), 1, width, 0};
        multiply_rows(tiles, vectors, at > 0, terms, v + p * sizes.v_product + at, in.data(),
                      u + p * u_product + panel * kPanelWidth * channels + at * width,
                      m + p * sizes.m_product + panel * kPanelWidth, out.data());
      }
    }
  }
}

// The results of `tiles` neighbours from their products m, the first at (y, x) of an image.
template <class T>
void store_tiles(const Images<T>& images, int64_t image, int64_t y, int64_t x, int64_t tiles,
                 const float* m, const WinogradSizes& sizes, const Epilogue<T>& epilogue,
                 float* strip) {
  const int64_t cols = tiles * kTileOutputs, row_stride = cols * kPanelWidth;
  const int64_t rows = std::min<int64_t>(kTileOutputs, images.h - y);
  for (int64_t c = 0; c < images.channels; c += kPanelWidth) {
    const int64_t count = std::min(kPanelWidth, images.channels - c);
    for (int64_t tile = 0; tile < tiles; ++tile) {
      for (int64_t i = 0; i < count; i += kLaneCount) {
        transform_tile<OutputTransform>(
            m + tile * sizes.m_tile + c + i, kTileInputs * sizes.m_product, sizes.m_product,
            strip + tile * kTileOutputs * kPanelWidth + i, row_stride, kPanelWidth);
      }
    }
    Image<T> to = images.at(image, c);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t at = to.data - images.data + ((y + row) * images.w + x) * to.pixel_stride;
      const Epilogue<T> here{epilogue.bias == nullptr ? nullptr : epilogue.bias + c,
                             epilogue.residual == nullptr ? nullptr : epilogue.residual + at,
                             epilogue.relu};
      store_pixels<T>({images.data + at, images.h, images.w, to.pixel_stride, to.channel_stride},
                      strip + row * row_stride, kPanelWidth, std::min(cols, images.w - x), count,
                      here);
    }
  }
}

// The steps of a chunk of tiles, each for the tiles or products [begin, end), of one group.
template <class T>
struct WinogradSteps {
  const PlaneSum& sum;
  const WinogradSizes& sizes;
  const Tiles tiles;
  const Images<const T> sources;
  const Images<T> results;
  const float* u;
  const Epilogue<T> epilogue;
  int64_t first;  // tile of the chunk
  float *v, *m;

  void read(int64_t begin, int64_t end, float* strip) const {
    for_row_parts(
        tiles, begin, end, [&](int64_t image, int64_t y, int64_t x, int64_t count, int64_t tile) {
          transform_patches<InputTransform>(sources, image, y + sum.h.low, x + sum.w.low, count,
                                            v + (tile - first) * sizes.v_tile, sizes.v_tile,
                                            kPanelWidth, sizes.v_product, strip);
        });
  }
  void multiply(int64_t begin, int64_t end) const {
    multiply_products(sizes, sum.from_channels, Panels{sum.to_channels}, v, u, m,
                      std::min(sizes.chunk, sizes.tiles - first), begin, end);
  }
  void write(int64_t begin, int64_t end, float* strip) const {
    for_row_parts(tiles, begin, end,
                  [&](int64_t image, int64_t y, int64_t x, int64_t count, int64_t tile) {
                    store_tiles(results, image, y, x, count, m + (tile - first) * sizes.m_tile,
                                sizes, epilogue, strip);
                  });
  }
};

template <class T>
void winograd_sum(const PlaneSum& sum, const T* from, const float* packed, T* to, void* workspace,
                  const Epilogue<T>& epilogue) {
  const int64_t width = Panels{sum.to_channels}.width();
  const WinogradSizes sizes = winograd_sizes(
      sum.n, sum.h.to, sum.w.to, round_up(sum.from_channels, kLaneCount), width, num_threads());
  const int64_t chunks = ceil_divide(sizes.tiles, sizes.chunk);
  const auto steps_of = [&](int64_t task, float* matrices) {
    const int64_t group = task / chunks, channel = group * sum.to_channels;
    return WinogradSteps<T>{sum,
                            sizes,
                            Tiles(sum.h.to, sum.w.to),
                            {from, sum.groups * sum.from_channels, sum.h.from, sum.w.from,
                             sum.channels_last, group * sum.from_channels, sum.from_channels},
                            {to, sum.groups * sum.to_channels, sum.h.to, sum.w.to,
                             sum.channels_last, channel, sum.to_channels},
                            packed + group * kProducts * spread_floats(sum.from_channels * width),
                            {epilogue.bias == nullptr ? nullptr : epilogue.bias + channel,
                             epilogue.residual, epilogue.relu},
                            task % chunks * sizes.chunk,
                            matrices,
                            matrices + kProducts * sizes.v_product};
  };
  constexpr int64_t kStripFloats = kStripPixels * kPanelWidth;
  if (!sizes.shared) {
    parallel_for(0, sum.groups * chunks, 1, [&](int64_t begin, int64_t end) {
      auto* strip =
          static_cast<float*>(thread_scratch((kStripFloats + sizes.floats()) * sizeof(float)));
      for (int64_t task = begin; task < end; ++task) {
        const WinogradSteps<T> steps = steps_of(task, strip + kStripFloats);
        const int64_t last = std::min(sizes.tiles, steps.first + sizes.chunk);
        steps.read(steps.first, last, strip);
        steps.multiply(0, kProducts);
        steps.write(steps.first, last, strip);
      }
    });
    return;
  }
  const auto strip = [] {
    return static_cast<float*>(thread_scratch(kStripFloats * sizeof(float)));
  };
  for (int64_t task = 0; task < sum.groups * chunks; ++task) {
    const WinogradSteps<T> steps = steps_of(task, static_cast<float*>(workspace));
    const int64_t first = steps.first, last = std::min(sizes.tiles, first + sizes.chunk);
    parallel_for(first, last, 1, [&](int64_t b, int64_t e) { steps.read(b, e, strip()); });
    parallel_for(0, kProducts, 1, [&](int64_t b, int64_t e) { steps.multiply(b, e); });
    parallel_for(first, last, 1, [&](int64_t b, int64_t e) { steps.write(b, e, strip()); });
  }
}

}  // namespace conv_detail
}  // namespace CPU_CAPABILITY
}  // namespace fastdl
