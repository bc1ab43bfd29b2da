// How batch_norm on CPU splits its work, in both directions.
#pragma once

#include <algorithm>

#include "batch_norm/batch_norm.h"
#include "common/channel_norm_cpu.h"
#include "common/channel_parameters_cpu.h"
#include "common/channel_work_cpu.h"
#include "common/dispatch.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {

// A channel's planes, or as many runs of a part of each
struct Part {
  int64_t offset;
  Runs runs;
};

// How the planes of [batch, channels, spatial] are split. More parts than planes cut each plane.
struct Planes {
  BatchNormShape shape;
  int64_t parts;  // of a channel

  explicit Planes(const BatchNormShape& shape) : shape(shape) {
    const int64_t batch = shape.batch;
    parts = std::clamp<int64_t>(batch * shape.spatial / kPart, 1, 64);
    parts = parts <= batch ? parts : parts / batch * batch;
  }

  Part part(int64_t channel, int64_t number) const {
    const int64_t stride = shape.channels * shape.spatial, start = channel * shape.spatial;
    if (parts <= shape.batch) {
      const int64_t first = part_begin(shape.batch, number, parts);
      const int64_t end = part_begin(shape.batch, number + 1, parts);
      return {start + first * stride, {end - first, shape.spatial, stride}};
    }
    const int64_t pieces = parts / shape.batch, piece = number % pieces;
    const int64_t begin = part_begin(shape.spatial, piece, pieces);
    const int64_t length = part_begin(shape.spatial, piece + 1, pieces) - begin;
    return {start + number / pieces * stride + begin, {1, length, stride}};
  }
};

// Writes the first `channels` of an array over and over, up to `cols`.
template <class A>
inline void repeat_channels(A* array, int64_t channels, int64_t cols) {
  for (int64_t i = channels; i < cols; ++i) array[i] = array[i - channels];
}

inline constexpr int64_t kChannelGrain = 512;  // channels whose factors are worth waking a thread

// How rows of channels are split: into ranges of rows times tiles of columns. Rows of few channels
// are taken `fold` at once, as one row.
struct Rows {
  int64_t rows, cols, channels, ranges, tiles;

  explicit Rows(const BatchNormShape& shape) : channels(shape.channels) {
    rows = shape.batch * shape.spatial;
    cols = channels;
    for (; rows % 2 == 0 && cols <= 32; rows /= 2) cols *= 2;
    tiles = (cols + kColumns - 1) / kColumns;
    ranges = std::clamp<int64_t>(rows * std::min(cols, kColumns) / kPart, 1, 64);
  }

  int64_t first_row(int64_t range) const { return part_begin(rows, range, ranges); }

  // f(range, first row, rows, first column, columns) for all ranges and tiles
  template <class F>
  void for_each_tile(F&& f) const {
    const int64_t elements = rows * std::min(cols, kColumns) / ranges;  // of a tile
    const int64_t grain = std::max<int64_t>(1, kGrain / elements);
    parallel_for(0, ranges * tiles, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t range = i / tiles, col = i % tiles * kColumns;
        const int64_t row = first_row(range);
        f(range, row, first_row(range + 1) - row, col, std::min(kColumns, cols - col));
      }
    });
  }
  // f(first, end) for all columns, where there is work for each range
  template <class F>
  void for_columns(F&& f) const {
    parallel_for(0, cols, std::max<int64_t>(256, kGrain / ranges), f);
  }
  // f(first row, rows) for all rows
  template <class F>
  void for_all_rows(F&& f) const {
    parallel_for(0, rows, std::max<int64_t>(kTogether, kGrain / cols),
                 [&](int64_t begin, int64_t end) {
                   f(begin, end - begin);
                   finish_writes();
                 });
  }
};

}  // namespace CPU_CAPABILITY
}  // namespace fastdl
