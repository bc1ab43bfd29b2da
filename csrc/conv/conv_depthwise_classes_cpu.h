// How rows of depthwise convolution are computed: the packed weight, and for each class of results
// (conv_taps_cpu.h) its kernel and where its taps find their sources.
#pragma once

#include "common/parallel.h"
#include "conv/conv_depthwise_source_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace conv_detail {

// Whether taps are neighbours that a kernel walks along.
inline bool are_neighbours(const std::vector<AxisTap>& taps, int64_t from_step) {
  const auto count = static_cast<int64_t>(taps.size());
  if (slide_kernel<kWidePoints>(count, from_step, LaneSource::kOwn) == nullptr) return false;
  return taps.back().offset - taps.front().offset == count - 1;
}

// The packed weight: [block][class of h][class of w][from_channel][tap of h][tap of w][lane].
template <class T>
void depthwise_pack_weight(const ConvPackArgs& args) {
  const bool backward = args.direction == ConvDirection::kBackwardInput;
  const PlaneSum sum = plane_sum(args.shape, backward);
  const ConvWeightStrides& s = args.strides;
  const auto* const weight = static_cast<const T*>(args.weight);
  const int64_t channels = sum.groups * sum.to_channels;
  const int64_t blocks = ceil_divide(channels, kBlockLanes);
  const int64_t size = sum.from_channels * args.shape.h.kernel * args.shape.w.kernel * kBlockLanes;
  const auto pack_block = [&](int64_t block) {
    float* to = static_cast<float*>(args.packed_weight) + block * size;
    int64_t firsts[kBlockLanes];  // where from_channel 0 and tap 0 of each lane are
    for (int64_t lane = 0; lane < kBlockLanes; ++lane) {
      const int64_t channel = std::min(block * kBlockLanes + lane, channels - 1);
      const int64_t group = channel / sum.to_channels, within = channel % sum.to_channels;
      firsts[lane] = backward ? group * sum.from_channels * s.out + within * s.in : channel * s.out;
    }
    for (const AxisClass& h : sum.h.classes) {
      for (const AxisClass& w : sum.w.classes) {
        for (int64_t j = 0; j < sum.from_channels; ++j) {
          const T* const from = weight + j * (backward ? s.out : s.in);
          for (const AxisTap& y : h.taps) {
            for (const AxisTap& x : w.taps) {
              const T* const tap = from + y.index * s.h + x.index * s.w;
              for (const int64_t first : firsts) *to++ = tap[first];
            }
          }
        }
      }
    }
  };
  parallel_for(0, blocks, std::max<int64_t>(1, 4096 / std::max<int64_t>(1, size)),
               [&](int64_t begin, int64_t end) {
                 for (int64_t block = begin; block < end; ++block) pack_block(block);
               });
}

// Where sources lie: floats from one to the next.
struct SourceStrides {
  int64_t plane, row, pixel;
};

// The results of a class of rows and one of columns: how they are computed.
struct SlideClass {
  SlideKernel wide, narrow;
  int64_t first, count, wide_count;  // columns: the first, all, those in wide tiles
  int64_t point;                     // of slide_row, in columns
  int64_t wide_points;               // from the first result to the one behind the wide tiles
  int64_t begin, end;                // sources inside, in points from that of the first result
  int64_t weight, weight_row;        // where its taps begin in a block; floats of an outer tap
  std::vector<int64_t> offsets;      // of the outer taps
};

inline std::vector<SlideClass> slide_classes(const DepthwiseCut& cut, const SourceStrides& strides,
                                             int64_t low_h, int64_t low_w) {
  const AxisSum &h = cut.sum.h, &w = cut.sum.w;
  std::vector<SlideClass> classes;
  int64_t weight = 0;
  for (const AxisClass& down : h.classes) {
    for (const AxisClass& across : w.classes) {
      const bool slides = are_neighbours(across.taps, w.from_step);
      const auto taps = static_cast<int64_t>(across.taps.size());
      const int64_t together = slides ? taps : 1, stride = slides ? w.from_step : 1;
      const int64_t count = ceil_divide(w.to - across.first, w.step);
      const int64_t wide = wide_results(count), point = slides ? 1 : w.from_step;
      // In points from the first tap of the first result on.
      const auto inside = [&](int64_t column) {
        const int64_t left = taps == 0 ? column : column - across.taps[0].offset;
        return left < 0 ? -(-left / point) : ceil_divide(left, point);
      };
      SlideClass one{slide_kernel<kWidePoints>(together, stride, cut.lanes),
                     slide_kernel<kNarrowPoints>(together, stride, cut.lanes),
                     across.first,
                     count,
                     wide,
                     point,
                     wide * w.from_step / point,
                     inside(0),
                     inside(w.from),
                     weight,
                     together * kBlockLanes,
                     {}};
      for (int64_t plane = 0; plane < cut.planes; ++plane) {
        for (const AxisTap& y : down.taps) {
          for (int64_t t = 0; t < taps; t += together) {
            one.offsets.push_back(plane * strides.plane + (y.offset - low_h) * strides.row +
                                  (across.taps[t].offset - low_w) * strides.pixel);
          }
        }
      }
      weight += static_cast<int64_t>(down.taps.size()) * taps * cut.sum.from_channels * kBlockLanes;
      classes.push_back(std::move(one));
    }
  }
  return classes;
}

inline void slide_class(const SlideClass& one, Slide slide) {
  slide.results = one.wide_count;
  if (slide.results > 0) one.wide(slide);
  slide.results = one.count - one.wide_count;
  if (slide.results == 0) return;
  slide.from += one.wide_points * slide.point;
  slide.to += one.wide_count * slide.to_point;
  if (slide.residual != nullptr) slide.residual += one.wide_count * slide.to_point;
  slide.begin -= one.wide_points;
  slide.end -= one.wide_points;
  one.narrow(slide);
}

// Some result rows from sources in scratch.
inline void slide_rows(const DepthwiseCut& cut, const std::vector<SlideClass>& classes,
                       const LaneNumbers& numbers, int64_t rows, const float* from,
                       const float* weight, float* to) {
  const AxisSum &h = cut.sum.h, &w = cut.sum.w;
  const auto across = static_cast<int64_t>(w.classes.size());
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < across; ++i) {
      const SlideClass& one = classes[row % h.step * across + i];
      const auto outer = static_cast<int64_t>(one.offsets.size());
      slide_class(one, {.from = from + row / h.step * h.from_step * cut.row_floats(),
                        .offsets = one.offsets.data(),
                        .outer = outer,
                        .numbers = numbers.numbers.data(),
                        .from_channels = cut.sum.from_channels / cut.planes,
                        .point = one.point * kBlockLanes,
                        .weight = weight + one.weight,
                        .weight_channel = outer * one.weight_row,
                        .to = to + (row * w.to + one.first) * kBlockLanes,
                        .to_point = w.step * kBlockLanes});
    }
  }
}

}  // namespace conv_detail
}  // namespace CPU_CAPABILITY
}  // namespace fastdl
