// Convolution of few channels a group: depthwise, with or without a multiplier, and narrow groups.
// Forward, and the gradient of the input as the same kind of sum (conv_taps_cpu.h).
//
// A unit is an image's band of result rows for some blocks of kDepthwiseLanes channels. Its sources
// are laid out once in float32 with their padding, a channel a lane (conv_depthwise_source_cpu.h),
// planes of NCHW turned on the way, so that one product without edges serves both layouts, all
// types, strides and kernels (conv_depthwise_slide_cpu.h). A few rows of results at a time wait in
// scratch and leave with the epilogue (conv_depthwise_store_cpu.h), while the next unit's sources
// are fetched: the memory would be idle otherwise.
//
// Reads the input once (and again the rows that bands share, from the cache), writes the output
// once. Floor: their bytes / copy bandwidth, or 2 * results * taps flops / FMA rate, whichever is
// longer.
#pragma once

#include <numeric>

#include "conv/conv_depthwise_in_place_cpu.h"
#include "conv/conv_depthwise_store_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace conv_detail {

// A unit's place.
struct DepthwiseUnit {
  int64_t image, row, rows, first, last;  // blocks [first, last)

  static DepthwiseUnit of(const DepthwiseCut& cut, int64_t number) {
    const int64_t first = number % cut.chunks * cut.chunk;
    const int64_t row = number / cut.chunks % cut.bands * cut.band;
    return {number / cut.chunks / cut.bands, row, std::min(cut.band, cut.sum.h.to - row), first,
            std::min(first + cut.chunk, cut.blocks)};
  }
};

template <class T>
void depthwise_sum(const DepthwiseCut& cut, const T* from, const float* weight, T* to,
                   const Epilogue<T>& epilogue) {
  if constexpr (std::is_same_v<T, float>) {
    if (can_slide_in_place(cut)) return slide_in_place(cut, from, weight, to, epilogue);
  }
  const PlaneSum& sum = cut.sum;
  const std::vector<SlideClass> classes =
      slide_classes(cut, {cut.plane_floats(), cut.row_floats(), kBlockLanes}, sum.h.low, sum.w.low);
  const LaneNumbers numbers(cut, 0);
  const int64_t channels = cut.to_channels(), plane = sum.h.to * sum.w.to;
  const int64_t pixel_stride = sum.channels_last ? channels : 1;
  const int64_t channel_stride = sum.channels_last ? 1 : plane;
  const int64_t run = sum.channels_last ? channels : std::gcd(plane, cut.result_rows * sum.w.to);
  const bool streaming = worth_streaming(sum.n * channels * plane * int64_t{sizeof(T)}) &&
                         rows_are_aligned<T>(to, run);
  parallel_for(0, cut.units(), 1, [&](int64_t begin, int64_t end) {
    const int64_t result_floats = cut.result_floats(cut.result_rows);
    auto* const sources = static_cast<float*>(thread_scratch(
        (cut.source_floats() + result_floats + DepthwiseSource<T>::pixel_floats(cut)) *
        sizeof(float)));
    float* const results = sources + cut.source_floats();
    DepthwiseSource<T> source(cut, from, sources, results + result_floats);
    for (int64_t number = begin; number < end; ++number) {
      const DepthwiseUnit unit = DepthwiseUnit::of(cut, number);
      source.load(unit.image, sum.h.source_of(unit.row), unit.first, unit.last);
      FetchAhead ahead;
      if (number + 1 < end) {
        const DepthwiseUnit next = DepthwiseUnit::of(cut, number + 1);
        ahead = source.ahead(next.image, sum.h.source_of(next.row), next.first, next.last);
      }
      const int64_t pieces = (unit.last - unit.first) * ceil_divide(unit.rows, cut.result_rows);
      const int64_t lines = ceil_divide(ahead.lines_left(), pieces);
      for (int64_t block = unit.first; block < unit.last; ++block) {
        for (int64_t row = 0; row < unit.rows; row += cut.result_rows) {
          const int64_t rows = std::min(cut.result_rows, unit.rows - row);
          ahead.lines(lines);
          slide_rows(cut, classes, numbers, rows,
                     sources + (block - unit.first) * cut.block_floats() +
                         row / sum.h.step * sum.h.from_step * cut.row_floats(),
                     weight + block * cut.weight_floats, results);
          const int64_t channel = block * kBlockLanes;
          const int64_t at = unit.image * channels * plane + channel * channel_stride +
                             (unit.row + row) * sum.w.to * pixel_stride;
          const Epilogue<T> here{epilogue.bias == nullptr ? nullptr : epilogue.bias + channel,
                                 epilogue.residual == nullptr ? nullptr : epilogue.residual + at,
                                 epilogue.relu};
          store_block<T>({to + at, sum.h.to, sum.w.to, pixel_stride, channel_stride}, results,
                         rows * sum.w.to, std::min(kBlockLanes, channels - channel), here,
                         streaming);
        }
      }
    }
    finish_writes();
  });
}

template <class T>
void depthwise_forward(const ConvForwardArgs& args) {
  depthwise_sum<T>(
      cut_depthwise(args.shape, false, num_threads()), static_cast<const T*>(args.input),
      static_cast<const float*>(args.packed_weight), static_cast<T*>(args.output),
      {static_cast<const T*>(args.bias), static_cast<const T*>(args.residual), args.relu});
}

template <class T>
void depthwise_backward_input(const ConvBackwardInputArgs& args) {
  depthwise_sum<T>(cut_depthwise(args.shape, true, num_threads()),
                   static_cast<const T*>(args.grad_output),
                   static_cast<const float*>(args.packed_weight), static_cast<T*>(args.grad_input),
                   {nullptr, nullptr, false});
}

}  // namespace conv_detail
}  // namespace CPU_CAPABILITY
}  // namespace fastdl
