// The matrices of convolution's products that lie in memory, copied into shared memory tile by tile
// of the summed dimension: the weight, and grad_output where its pixels are summed. A thread copies
// the same chunk of several rows of a tile.
#pragma once

#include "conv/conv_tile_cuda.cuh"

namespace fastdl {

// Rows: `rows` rows in memory, `depth` elements each, which are summed
template <class T, int size, int threads, bool kVectors>
class MatrixRows {
 public:
  using Tile = SharedTile<T, size, true>;

  __device__ __forceinline__ MatrixRows(const T* matrix, int rows, int depth)
      : from_(matrix + static_cast<int64_t>(Chunks::row(0)) * depth + Chunks::column()),
        step_(static_cast<int64_t>(Chunks::kStep) * depth),
        rows_(rows - Chunks::row(0)),
        left_(depth - Chunks::column()) {}

  __device__ __forceinline__ void copy_next(T* tile) {
    const T* from = from_;
#pragma unroll
    for (int i = 0; i < Chunks::kCount; ++i) {
      copy_chunk<kVectors>(Chunks::place(tile, i), from, i * Chunks::kStep < rows_ ? left_ : 0);
      from += step_;
    }
    from_ += kConvDepth<T>;
    left_ -= kConvDepth<T>;
  }

 private:
  using Chunks = ThreadChunks<T, Tile, threads>;
  const T* from_;
  int64_t step_;
  int rows_, left_;
};

// Summed: rows in memory from `first` to `end`, `stride` elements apart; rows of the product:
// `cols` neighbouring elements of each
template <class T, int size, int threads, bool kVectors>
class MatrixColumns {
 public:
  using Tile = SharedTile<T, size, false>;

  __device__ __forceinline__ MatrixColumns(const T* matrix, int64_t stride, int cols, int first,
                                           int end)
      : from_(matrix + (first + Chunks::row(0)) * stride + Chunks::column()),
        stride_(stride),
        cols_(cols - Chunks::column()),
        left_(end - first - Chunks::row(0)) {}

  __device__ __forceinline__ void copy_next(T* tile) {
#pragma unroll
    for (int i = 0; i < Chunks::kCount; ++i) {
      copy_chunk<kVectors>(Chunks::place(tile, i), from_, i * Chunks::kStep < left_ ? cols_ : 0);
      from_ += Chunks::kStep * stride_;
    }
    left_ -= kConvDepth<T>;
  }

 private:
  using Chunks = ThreadChunks<T, Tile, threads>;
  const T* from_;
  int64_t stride_;
  int cols_, left_;
};

// Which rows of a weight [out_channels, all taps, in_channels] are summed: those of rows x cols
// taps
struct WeightSizes {
  int taps, in_channels, out_channels;
  int cols;  // in_channels that there are from the first one on
};
struct WeightTaps {
  int rows, cols;          // of taps
  int row_step, col_step;  // taps from one row or column to the next
};

// Summed: taps and out_channels; rows of the product: in_channels
template <class T, int size, int threads, bool kVectors>
class WeightColumns {
 public:
  using Tile = SharedTile<T, size, false>;

  __device__ __forceinline__ WeightColumns(const T* weight, const WeightSizes& sizes,
                                           const WeightTaps& taps)
      : weight_(weight + Chunks::column()), sizes_(sizes), taps_(taps) {
    if (taps.cols > 0) cursor_.advance(Chunks::row(0), sizes.out_channels, taps.cols);
  }

  __device__ __forceinline__ void copy_next(T* tile) {
#pragma unroll
    for (int i = 0; i < Chunks::kCount; ++i) {
      const int tap = cursor_.row * taps_.row_step + cursor_.col * taps_.col_step;
      const int row = cursor_.channel * sizes_.taps + tap;
      copy_chunk<kVectors>(Chunks::place(tile, i),
                           weight_ + static_cast<int64_t>(row) * sizes_.in_channels,
                           cursor_.row < taps_.rows ? sizes_.cols - Chunks::column() : 0);
      cursor_.advance(Chunks::kStep, sizes_.out_channels, taps_.cols);
    }
  }

 private:
  using Chunks = ThreadChunks<T, Tile, threads>;
  const T* weight_;
  WeightSizes sizes_;
  WeightTaps taps_;
  TapCursor cursor_{0, 0, 0};
};

}  // namespace fastdl
