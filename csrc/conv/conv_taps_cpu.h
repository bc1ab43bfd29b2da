// A dense convolution, forward or towards its input, as one kind of sum:
//
//   to[first + i * step] = sum over taps t of from[i * from_step + offset[t]] * weight[index[t]]
//
// along each of the two axes. Forward: one class of results, all kernel taps, from_step = stride.
// Backward-input: a class for each residue of the stride (step = stride), each with the taps that
// meet it, from_step = 1.
#pragma once

#include <vector>

#include "common/product_tile_cpu.h"
#include "conv/conv.h"
#include "conv/conv_winograd.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace conv_detail {

static_assert(kLaneCount == conv_lanes(kBuildIsa), "plans count floats of vectors");

struct AxisTap {
  int64_t offset, index;
};

struct AxisClass {
  int64_t first;
  std::vector<AxisTap> taps;  // by rising offset
};

// One axis with its numbers of sources and results.
struct AxisSum {
  int64_t from, to;
  int64_t from_step, step;
  int64_t low, high;  // offsets of all taps
  std::vector<AxisClass> classes;

  // Of the first source that results from `begin` on need, a multiple of step.
  int64_t source_of(int64_t begin) const { return begin / step * from_step + low; }
  // Sources from the first to the last that `count` neighbouring results need.
  int64_t reach(int64_t count) const {
    return (ceil_divide(count, step) - 1) * from_step + high - low + 1;
  }
  bool needs_no_padding() const { return low >= 0 && source_of(0) + reach(to) <= from; }
};

inline AxisSum axis_sum(const ConvAxis& axis, bool backward) {
  AxisSum sum{};
  if (backward) {
    sum = {axis.output, axis.input, 1, axis.stride, INT64_MAX, INT64_MIN, {}};
    for (int64_t first = 0; first < std::min(axis.stride, axis.input); ++first) {
      AxisClass residue{first, {}};
      for (int64_t t = axis.kernel - 1; t >= 0; --t) {
        const int64_t distance = first + axis.padding - t * axis.dilation;
        if (distance % axis.stride == 0) residue.taps.push_back({distance / axis.stride, t});
      }
      sum.classes.push_back(residue);
    }
  } else {
    sum = {axis.input, axis.output, axis.stride, 1, INT64_MAX, INT64_MIN, {{0, {}}}};
    for (int64_t t = 0; t < axis.kernel; ++t) {
      sum.classes[0].taps.push_back({t * axis.dilation - axis.padding, t});
    }
  }
  for (const AxisClass& one : sum.classes) {
    for (const AxisTap& tap : one.taps) {
      sum.low = std::min(sum.low, tap.offset);
      sum.high = std::max(sum.high, tap.offset);
    }
  }
  if (sum.low > sum.high) sum.low = sum.high = 0;  // a stride that leaves out all results
  return sum;
}

// The sum over both axes, for one of `groups`.
struct PlaneSum {
  int64_t n, groups;
  int64_t from_channels, to_channels;  // of a group
  AxisSum h, w;
  bool channels_last;
};

inline PlaneSum plane_sum(const ConvShape& shape, bool backward) {
  const int64_t in = shape.in_channels / shape.groups, out = shape.out_channels / shape.groups;
  return {shape.n,
          shape.groups,
          backward ? out : in,
          backward ? in : out,
          axis_sum(shape.h, backward),
          axis_sum(shape.w, backward),
          shape.channels_last};
}

// Columns of a packed weight stand in panels of kPanelWidth, the last one of kLaneCount if that is
// enough.
struct Panels {
  int64_t columns;
  int64_t count() const { return ceil_divide(columns, kPanelWidth); }
  int64_t width() const { return round_up(columns, kLaneCount); }  // of all panels
  int vectors(int64_t panel) const { return columns - panel * kPanelWidth > kLaneCount ? 2 : 1; }
};

// Floats of the packed weight: [group][class][panel][tap][from_channel][column of the panel].
inline int64_t packed_count(const PlaneSum& sum, const ConvShape& shape) {
  return sum.groups * shape.h.kernel * shape.w.kernel * sum.from_channels *
         Panels{sum.to_channels}.width();
}

}  // namespace conv_detail
}  // namespace CPU_CAPABILITY
}  // namespace fastdl
