// How the threads of a block copy the matrices of convolution's products into shared memory, tile
// by tile of the summed dimension. None of the matrices exists: their elements are found in the
// tensors.
//
// A thread copies the same chunk of several rows of a tile. With kVectors channels are multiples of
// 16 bytes, so that a chunk lies within one tap. Positions of pixels are 32-bit, addresses 64-bit.
#pragma once

#include "conv/conv_axis_cuda.cuh"
#include "conv/conv_tile_cuda.cuh"

namespace fastdl {

template <class T>
struct Pixel {
  int y, x;
  const T* address;  // outside the image it is one that is not read
};

// A chunk of channels (of one tap, with kVectors) of several pixels, those inside the image
template <bool kVectors, class Chunks, class T, class PixelAt>
__device__ __forceinline__ void copy_gathered(T* tile, int pixel_stride, TapCursor cursor,
                                              int channels, const GatherAxis& h,
                                              const GatherAxis& w, PixelAt&& pixel_at) {
  constexpr int W = kVectorWidth<T>, kElements = kVectors ? 1 : W;
  Vector<T, W> vectors[Chunks::kCount];
#pragma unroll
  for (Vector<T, W>& vector : vectors) {
    if constexpr (!kVectors) vector.fill(0);
  }
#pragma unroll
  for (int e = 0; e < kElements; ++e) {
    const int row = cursor.row * h.step, right = cursor.col * w.step;
    const int down = cursor.row < h.taps ? row : kNowhere;
    const int64_t offset =
        static_cast<int64_t>(row * w.source + right) * pixel_stride + cursor.channel;
#pragma unroll
    for (int i = 0; i < Chunks::kCount; ++i) {
      const auto [y, x, address] = pixel_at(i);
      const bool inside = is_inside(y + down, h.source) && is_inside(x + right, w.source);
      const T* const from = address + offset;
      if constexpr (kVectors) {
        ptx::cp_async_16_or_zero(Chunks::place(tile, i), from, inside);
      } else {
        if (inside) vectors[i].load_element(e, from);
      }
    }
    if constexpr (!kVectors) cursor.advance(1, channels, w.taps);
  }
  if constexpr (!kVectors) {
#pragma unroll
    for (int i = 0; i < Chunks::kCount; ++i) store_vector<W>(Chunks::place(tile, i), vectors[i]);
  }
}

// Rows: positions from `first` to the last of n * h.count * w.count; summed: taps and channels.
template <class T, int size, int threads, bool kVectors>
class GatheredPixels {
 public:
  using Tile = SharedTile<T, size, true>;

  __device__ __forceinline__ GatheredPixels(const T* source, int pixel_stride, int channels, int n,
                                            const GatherAxis& h, const GatherAxis& w, int first)
      : pixel_stride_(pixel_stride), channels_(channels), h_(h), w_(w) {
#pragma unroll
    for (int i = 0; i < Chunks::kCount; ++i) {
      const int at = first + Chunks::row(i), line = at / w.count, image = line / h.count;
      const bool exists = image < n;
      y_[i] = exists ? h.start + (line - image * h.count) * h.stride : kNowhere;
      x_[i] = w.start + (at - line * w.count) * w.stride;
      const int pixel = exists ? (image * h.source + y_[i]) * w.source + x_[i] : 0;
      address_[i] = source + static_cast<int64_t>(pixel) * pixel_stride;
    }
    cursor_.advance(Chunks::column(), channels, w.taps);
  }

  __device__ __forceinline__ void copy_next(T* tile) {
    copy_gathered<kVectors, Chunks>(tile, pixel_stride_, cursor_, channels_, h_, w_,
                                    [&](int i) { return Pixel<T>{y_[i], x_[i], address_[i]}; });
    cursor_.advance(kConvDepth<T>, channels_, w_.taps);
  }

 private:
  using Chunks = ThreadChunks<T, Tile, threads>;
  int pixel_stride_, channels_;
  GatherAxis h_, w_;
  int y_[Chunks::kCount], x_[Chunks::kCount];
  const T* address_[Chunks::kCount];
  TapCursor cursor_{0, 0, 0};
};

// Summed: positions from `first` to `end` of n * h.count * w.count; rows of the product: taps and
// channels, from number `column` on
template <class T, int size, int threads, bool kVectors>
class GatheredTaps {
 public:
  using Tile = SharedTile<T, size, false>;

  __device__ __forceinline__ GatheredTaps(const T* source, int pixel_stride, int channels,
                                          const GatherAxis& h, const GatherAxis& w, int column,
                                          int first, int end)
      : source_(source),
        pixel_stride_(pixel_stride),
        channels_(channels),
        left_(end - first - Chunks::row(0)),
        h_(h),
        w_(w) {
    const int at = first + Chunks::row(0), line = at / w.count;
    image_ = line / h.count;
    row_ = line - image_ * h.count;
    col_ = at - line * w.count;
    const int lines = Chunks::kStep / w.count;
    step_images_ = lines / h.count;
    step_rows_ = lines - step_images_ * h.count;
    step_cols_ = Chunks::kStep - lines * w.count;
    cursor_.advance(column + Chunks::column(), channels, w.taps);
  }

  __device__ __forceinline__ void copy_next(T* tile) {
    Pixel<T> pixels[Chunks::kCount];
#pragma unroll
    for (int i = 0; i < Chunks::kCount; ++i) {
      const int y = h_.start + row_ * h_.stride, x = w_.start + col_ * w_.stride;
      const int pixel = (image_ * h_.source + y) * w_.source + x;
      pixels[i] = {i * Chunks::kStep < left_ ? y : kNowhere, x,
                   source_ + static_cast<int64_t>(pixel) * pixel_stride_};
      advance();
    }
    copy_gathered<kVectors, Chunks>(tile, pixel_stride_, cursor_, channels_, h_, w_,
                                    [&](int i) { return pixels[i]; });
    left_ -= kConvDepth<T>;
  }

 private:
  using Chunks = ThreadChunks<T, Tile, threads>;

  __device__ __forceinline__ void advance() {
    col_ += step_cols_;
    row_ += step_rows_;
    image_ += step_images_;
    if (col_ >= w_.count) {
      col_ -= w_.count;
      ++row_;
    }
    if (row_ >= h_.count) {
      row_ -= h_.count;
      ++image_;
    }
  }

  const T* source_;
  int pixel_stride_, channels_, left_;
  GatherAxis h_, w_;
  int image_, row_, col_, step_images_, step_rows_, step_cols_;
  TapCursor cursor_{0, 0, 0};
};

}  // namespace fastdl
