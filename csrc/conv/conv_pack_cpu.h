// Brings a weight into the order in which the direct kernels read it, in float32: panels of
// columns, [group][class][panel][tap][from_channel][column], so that a sum walks straight through
// its panel.
#pragma once

#include "common/parallel.h"
#include "conv/conv_strip_cpu.h"
#include "conv/conv_taps_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace conv_detail {

inline constexpr int64_t kPackedChannels = 16;  // that pass through scratch together

// The weight as a sum sees it: from_channels by taps by columns.
template <class T>
struct WeightView {
  const T* data;
  int64_t from_stride, column_stride, h_stride, w_stride, group_stride;
  int64_t kernel_h, kernel_w;

  WeightView(const ConvPackArgs& args, bool backward)
      : data(static_cast<const T*>(args.weight)),
        from_stride(backward ? args.strides.out : args.strides.in),
        column_stride(backward ? args.strides.in : args.strides.out),
        h_stride(args.strides.h),
        w_stride(args.strides.w),
        group_stride(args.shape.out_channels / args.shape.groups * args.strides.out),
        kernel_h(args.shape.h.kernel),
        kernel_w(args.shape.w.kernel) {}

  int64_t taps() const { return kernel_h * kernel_w; }
};

// to[channel][tap][kPanelWidth] = `count` channels from `channel` on, of `columns` columns, zeros
// behind.
template <class T>
void load_weight(const WeightView<T>& weight, int64_t group, int64_t channel, int64_t count,
                 int64_t first_column, int64_t columns, float* to) {
  const int64_t taps = weight.taps();
  const T* from = weight.data + group * weight.group_stride + channel * weight.from_stride +
                  first_column * weight.column_stride;
  if (columns < kPanelWidth) std::fill_n(to, count * taps * kPanelWidth, 0.0f);
  const bool joined_taps = weight.w_stride == 1 && weight.h_stride == weight.kernel_w;
  if (joined_taps && weight.from_stride == taps) {
    return transpose(to, kPanelWidth, from, weight.column_stride, columns, count * taps);
  }
  for (int64_t c = 0; c < count; ++c, from += weight.from_stride, to += taps * kPanelWidth) {
    if (joined_taps && weight.column_stride != 1) {
      transpose(to, kPanelWidth, from, weight.column_stride, columns, taps);
      continue;
    }
    for (int64_t tap = 0; tap < taps; ++tap) {
      const T* row =
          from + tap / weight.kernel_w * weight.h_stride + tap % weight.kernel_w * weight.w_stride;
      if (weight.column_stride == 1) {
        widen_row(to + tap * kPanelWidth, row, columns);
      } else {
        for (int64_t i = 0; i < columns; ++i) {
          to[tap * kPanelWidth + i] = row[i * weight.column_stride];
        }
      }
    }
  }
}

// Calls use(group, panel, channel, count, rows of load_weight) for all of a weight, in parallel.
template <class T, class F>
void for_weight(const ConvPackArgs& args, const PlaneSum& sum, F&& use) {
  const WeightView<T> weight(args, args.direction == ConvDirection::kBackwardInput);
  const int64_t panels = Panels{sum.to_channels}.count();
  const int64_t parts = ceil_divide(sum.from_channels, kPackedChannels);
  parallel_for(0, sum.groups * panels * parts, 4, [&](int64_t begin, int64_t end) {
    auto* rows = static_cast<float*>(
        thread_scratch(kPackedChannels * weight.taps() * kPanelWidth * sizeof(float)));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t part = i % parts, panel = i / parts % panels, group = i / parts / panels;
      const int64_t channel = part * kPackedChannels, column = panel * kPanelWidth;
      const int64_t count = std::min(kPackedChannels, sum.from_channels - channel);
      load_weight(weight, group, channel, count, column,
                  std::min(kPanelWidth, sum.to_channels - column), rows);
      use(group, panel, channel, count, rows);
    }
  });
}

template <class T>
void pack_panels(const ConvPackArgs& args) {
  const PlaneSum sum = plane_sum(args.shape, args.direction == ConvDirection::kBackwardInput);
  const Panels panels{sum.to_channels};
  const int64_t kernel_w = args.shape.w.kernel, all_taps = args.shape.h.kernel * kernel_w;
  auto* packed = static_cast<float*>(args.packed_weight);
  for_weight<T>(
      args, sum,
      [&](int64_t group, int64_t panel, int64_t channel, int64_t count, const float* rows) {
        const int64_t width = panels.vectors(panel) * kLaneCount;
        float* to_class = packed + group * all_taps * sum.from_channels * panels.width();
        for (const AxisClass& h : sum.h.classes) {
          for (const AxisClass& w : sum.w.classes) {
            const auto taps = static_cast<int64_t>(h.taps.size() * w.taps.size());
            float* to = to_class + panel * kPanelWidth * taps * sum.from_channels + channel * width;
            for (const AxisTap& y : h.taps) {
              for (const AxisTap& x : w.taps) {
                const float* from = rows + (y.index * kernel_w + x.index) * kPanelWidth;
                for (int64_t c = 0; c < count; ++c) {
                  std::memcpy(to + c * width, from + c * all_taps * kPanelWidth,
                              width * sizeof(float));
                }
                to += sum.from_channels * width;
              }
            }
            to_class += taps * sum.from_channels * panels.width();
          }
        }
      });
}

}  // namespace conv_detail
}  // namespace CPU_CAPABILITY
}  // namespace fastdl
