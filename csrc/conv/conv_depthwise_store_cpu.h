// Results of depthwise convolution on their way from scratch to memory, kDepthwiseLanes channels of
// pixels that lie side by side: with the epilogue, turned into planes for NCHW, and past the caches
// where the output is larger than they are.
#pragma once

#include "conv/conv_depthwise_source_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace conv_detail {

template <class T>
void store_channels(T* to, int64_t pixel_stride, const float* from, int64_t pixels,
                    const Epilogue<T>& epilogue, bool streaming) {
  constexpr int64_t kVectors = kBlockLanes / kLaneCount;
  Vec<T> bias[kVectors];
  for (int64_t i = 0; i < kVectors; ++i) {
    bias[i] = epilogue.bias == nullptr ? Vec<T>(0.0f) : load_vector(epilogue.bias + i * kLaneCount);
  }
  for (int64_t p = 0; p < pixels; ++p, from += kBlockLanes) {
    for (int64_t i = 0; i < kVectors; ++i) {
      const int64_t at = p * pixel_stride + i * kLaneCount;
      const Vec<T> value = Vec<T>::loadu(from + i * kLaneCount) + bias[i];
      write_vector(to + at, epilogue.finish(value, at, kWhole), kWhole, streaming);
    }
  }
}

// Pixels are turned 16 at a time, the last ones with what lies behind them.
template <class T>
void store_planes(T* to, int64_t plane, const float* from, int64_t pixels, int64_t channels,
                  const Epilogue<T>& epilogue, bool streaming) {
  constexpr int64_t kPixels = 2 * kTransposed;
  for (int64_t p = 0; p < pixels; p += kPixels, from += kPixels * kBlockLanes) {
    const int64_t count = std::min(kPixels, pixels - p);
    for (int64_t first = 0; first < channels; first += kTransposed) {
      alignas(64) float turned[kTransposed * kPixels];
      transpose_8x8(from + first, kBlockLanes, turned, kPixels);
      if (count > kTransposed) {
        transpose_8x8(from + kTransposed * kBlockLanes + first, kBlockLanes, turned + kTransposed,
                      kPixels);
      }
      const int64_t end = std::min(channels, first + kTransposed);
      for (int64_t c = first; c < end; ++c) {
        const Vec<T> bias(epilogue.bias == nullptr ? 0.0f : static_cast<float>(epilogue.bias[c]));
        const float* const row = turned + (c - first) * kPixels;
        const int64_t at = c * plane + p;
        for_single_vectors<T>(count, [&](int64_t i, auto n) {
          const Vec<T> value = Vec<T>::loadu(row + i) + bias;
          write_vector(to + at + i, epilogue.finish(value, at + i, n), n, streaming);
        });
      }
    }
  }
}

// to and epilogue are of the first pixel and channel.
template <class T>
void store_block(const Image<T>& to, const float* from, int64_t pixels, int64_t channels,
                 const Epilogue<T>& epilogue, bool streaming) {
  if (to.channel_stride != 1) {
    store_planes(to.data, to.channel_stride, from, pixels, channels, epilogue, streaming);
  } else if (channels == kBlockLanes) {
    store_channels(to.data, to.pixel_stride, from, pixels, epilogue, streaming);
  } else {
    store_pixels(to, from, kBlockLanes, pixels, channels, epilogue);
  }
}

}  // namespace conv_detail
}  // namespace CPU_CAPABILITY
}  // namespace fastdl
