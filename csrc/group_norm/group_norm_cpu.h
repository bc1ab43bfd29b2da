// How group_norm on CPU splits its work, in both directions.
#pragma once

#include <algorithm>

#include "common/channel_norm_cpu.h"
#include "common/channel_parameters_cpu.h"
#include "common/channel_work_cpu.h"
#include "common/dispatch.h"
#include "group_norm/group_norm.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {

// Planes of fewer elements are not taken one by one: a group is a row with parameters for each
// element, which are written out once for all samples.
inline constexpr int64_t kShortPlane = 32;

inline bool has_short_planes(const GroupNormShape& shape) {
  return !shape.channels_last && shape.spatial < kShortPlane;
}

// Channels last: a sample's positions are split into ranges, each with arrays
// of two numbers a channel. Ranges depend on the sizes alone.
struct Samples {
  GroupNormShape shape;
  int64_t ranges;

  explicit Samples(const GroupNormShape& shape)
      : shape(shape),
        ranges(std::clamp<int64_t>(shape.spatial * shape.channels / kPart, 1,
                                   std::min<int64_t>(shape.spatial, 64))) {}

  int64_t elements() const { return shape.spatial * shape.channels; }
  int64_t first_row(int64_t range) const { return part_begin(shape.spatial, range, ranges); }

  // f(first column, columns)
  template <class F>
  void for_tiles(F&& f) const {
    for (int64_t col = 0; col < shape.channels; col += kColumns) {
      f(col, std::min(kColumns, shape.channels - col));
    }
  }
};

}  // namespace CPU_CAPABILITY
}  // namespace fastdl
