// Ways between tensors and the scratch of the dense kernels, where pixels are rows of float32
// channels: strips of the source with their padding, blocks of results on their way out. Tensors of
// either layout and of 16-bit types meet here, so that the kernels know one of each.
#pragma once

#include <cstring>

#include "common/product_tile_cpu.h"
#include "common/transpose_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace conv_detail {

// A window of an image: rows [y, y + rows) and columns [x, x + cols), parts of it in the padding.
struct Window {
  int64_t y, rows, x, cols;
};

// An image's channels from `image` on, of a tensor in either layout.
template <class T>
struct Image {
  T* data;
  int64_t h, w;
  int64_t pixel_stride, channel_stride;  // one of them 1
};

// A tensor of images, of which one group's channels are seen.
template <class T>
struct Images {
  T* data;
  int64_t all_channels, h, w;
  bool channels_last;
  int64_t first_channel, channels;

  // `channel` is counted in the group.
  Image<T> at(int64_t image, int64_t channel) const {
    const int64_t pixel_stride = channels_last ? all_channels : 1;
    const int64_t channel_stride = channels_last ? 1 : h * w;
    return {data + image * all_channels * h * w + (first_channel + channel) * channel_stride, h, w,
            pixel_stride, channel_stride};
  }
};

// to[row][col][channel] of the window, zero in the padding; pixels are to_stride floats apart.
template <class T>
void load_window(float* to, int64_t to_stride, const Image<const T>& image, const Window& window,
                 int64_t channels) {
  const int64_t first = std::clamp<int64_t>(-window.x, 0, window.cols);
  const int64_t end = std::clamp<int64_t>(image.w - window.x, first, window.cols);
  const auto clear = [&](float* pixel, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      std::memset(pixel + i * to_stride, 0, channels * sizeof(float));
    }
  };
  if (image.channel_stride != 1 && window.x == 0 && window.cols == image.w && window.y >= 0 &&
      window.y + window.rows <= image.h) {  // whole rows lie side by side
    return transpose(to, to_stride, image.data + window.y * image.w, image.channel_stride, channels,
                     window.rows * window.cols);
  }
  for (int64_t row = 0; row < window.rows; ++row) {
    float* pixels = to + row * window.cols * to_stride;
    const int64_t y = window.y + row;
    if (y < 0 || y >= image.h || first == end) {
      clear(pixels, window.cols);
      continue;
    }
    clear(pixels, first);
    clear(pixels + end * to_stride, window.cols - end);
    const T* from = image.data + (y * image.w + window.x + first) * image.pixel_stride;
    float* inside = pixels + first * to_stride;
    if (image.channel_stride != 1) {
      transpose(inside, to_stride, from, image.channel_stride, channels, end - first);
    } else if (image.pixel_stride == channels && to_stride == channels) {
      widen_row(inside, from, (end - first) * channels);
    } else {
      for (int64_t i = 0; i < end - first; ++i) {
        widen_row(inside + i * to_stride, from + i * image.pixel_stride, channels);
      }
    }
  }
}

// What happens to results on their way to memory: + bias[channel] + residual, then ReLU.
template <class T>
struct Epilogue {
  const T* bias;      // null, or of the first channel
  const T* residual;  // null, or where the results go, in a tensor of the same layout
  bool relu;

  template <class N>
  Vec<T> finish(Vec<T> value, int64_t at, N count) const {
    if (residual != nullptr) value = value + load_vector(residual + at, count, 0.0f);
    if (relu) value = at::vec::clamp_min(value, Vec<T>(0.0f));
    return value;
  }
};

// `count` pixels of `channels` floats, from_stride apart, to pixels of an image that lie side by
// side. to and epilogue are of the first pixel and channel.
template <class T>
void store_pixels(const Image<T>& to, const float* from, int64_t from_stride, int64_t count,
                  int64_t channels, const Epilogue<T>& epilogue) {
  if (to.channel_stride == 1) {
    for (int64_t p = 0; p < count; ++p) {
      const int64_t start = p * to.pixel_stride;
      for_single_vectors<T>(channels, [&](int64_t c, auto n) {
        Vec<T> value = load_vector(from + p * from_stride + c, n, 0.0f);
        if (epilogue.bias != nullptr) value = value + load_vector(epilogue.bias + c, n, 0.0f);
        store_vector(to.data + start + c, epilogue.finish(value, start + c, n), n);
      });
    }
    return;
  }
  constexpr int64_t kBlock = 2 * kLaneCount;  // pixels that are transposed before they are stored
  for (int64_t c = 0; c < channels; c += kTransposed) {
    const int64_t planes = std::min(kTransposed, channels - c);
    for (int64_t p = 0; p < count; p += kBlock) {
      const int64_t pixels = std::min(kBlock, count - p);
      float turned[kTransposed * kBlock];
      for (int64_t i = 0; i < pixels; i += kTransposed) {
        if (i + kTransposed <= pixels) {
          transpose_8x8(from + (p + i) * from_stride + c, from_stride, turned + i, kBlock);
          continue;
        }
        for (int64_t k = 0; k < planes; ++k) {
          for (int64_t j = i; j < pixels; ++j) {
            turned[k * kBlock + j] = from[(p + j) * from_stride + c + k];
          }
        }
      }
      for (int64_t k = 0; k < planes; ++k) {
        const int64_t start = (c + k) * to.channel_stride + p;
        const Vec<T> bias(epilogue.bias != nullptr ? static_cast<float>(epilogue.bias[c + k])
                                                   : 0.0f);
        for_single_vectors<T>(pixels, [&](int64_t i, auto n) {
          Vec<T> value = load_vector(turned + k * kBlock + i, n, 0.0f) + bias;
          store_vector(to.data + start + i, epilogue.finish(value, start + i, n), n);
        });
      }
    }
  }
}

}  // namespace conv_detail
}  // namespace CPU_CAPABILITY
}  // namespace fastdl
