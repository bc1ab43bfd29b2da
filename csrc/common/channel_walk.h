// How batch_norm and group_norm are spread over a GPU: from sizes to walks.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "common/channel_norm_cuda.h"
#include "common/row_plan.h"

namespace fastdl {

// Elements of a vector: 16 bytes' where `divisor` and all addresses (or null) allow it, else 1.
inline int channel_vector_width(DType dtype, int64_t divisor,
                                std::initializer_list<const void*> data) {
  const int width = dtype == DType::kFloat64 ? 2 : dtype == DType::kFloat32 ? 4 : 8;
  for (const void* address : data) {
    if (reinterpret_cast<uintptr_t>(address) % 16 != 0) return 1;
  }
  return divisor % width == 0 ? width : 1;
}

// Parts of each of `tiles` that `vectors` vectors are split into: eight blocks a multiprocessor, of
// 1024 vectors at least.
inline int64_t channel_parts(int64_t tiles, int64_t vectors, const CudaTarget& target) {
  const int64_t wanted = ceil_divide(8 * int64_t{target.multiprocessors}, tiles);
  return std::clamp<int64_t>(std::min(wanted, vectors / 1024), 1, 256);
}

// Columns of `runs` runs of `length` elements each, `run_stride` apart. Short ones get a warp.
inline ChannelWalk walk_runs(int64_t columns, int64_t column_stride, int64_t runs,
                             int64_t run_stride, int64_t length, int width,
                             const CudaTarget& target) {
  const int64_t vectors = runs * length / width;
  return {.tiles = columns,
          .tile_stride = column_stride,
          .runs = runs,
          .run_stride = run_stride,
          .run_vectors = length / width,
          .parts = channel_parts(columns, vectors, target),
          .vectors = 0,
          .columns = columns,
          .lanes = 1,
          .team = vectors <= 256 ? 32 : 256,
          .width = width,
          .by_rows = false};
}

// The columns of rows
inline ChannelWalk walk_rows(int64_t rows, int64_t cols, int width, const CudaTarget& target) {
  const int64_t vectors = cols / width;
  const int lanes = static_cast<int>(std::min<int64_t>(kMaxLanes, next_power_of_two(vectors)));
  const int64_t tiles = ceil_divide(vectors, lanes);
  return {.tiles = tiles,
          .tile_stride = int64_t{lanes} * width,
          .runs = rows,
          .run_stride = cols,
          .run_vectors = 1,
          .parts = channel_parts(tiles, rows * lanes, target),
          .vectors = vectors,
          .columns = cols,
          .lanes = lanes,
          .team = 256,
          .width = width,
          .by_rows = true};
}

}  // namespace fastdl
