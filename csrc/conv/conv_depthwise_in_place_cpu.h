// Depthwise convolution and narrow groups of channels_last float32, read and written where they
// lie.
//
// Rows of all images are shared out. A tile of a row passes over all channels, so that memory is
// read and written in its order; the rows of sources stay in L2, where the next new one is fetched.
// Columns outside are zero in the tiles at the edges, taps of rows outside are left out.
//
// Reads the input once, writes the output once. Floor: their bytes / copy bandwidth, or the FMA
// rate.
#pragma once

#include "conv/conv_depthwise_classes_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace conv_detail {

inline bool can_slide_in_place(const DepthwiseCut& cut) {
  if (!cut.sum.channels_last || cut.spreads() || cut.to_channels() % kBlockLanes != 0) return false;
  for (const AxisClass& across : cut.sum.w.classes) {
    if (across.taps.size() > 1 && !are_neighbours(across.taps, cut.sum.w.from_step)) return false;
  }
  return true;
}

inline void slide_in_place(const DepthwiseCut& cut, const float* from, const float* weight,
                           float* to, const Epilogue<float>& epilogue) {
  const AxisSum &h = cut.sum.h, &w = cut.sum.w;
  const int64_t channels = cut.to_channels(), from_row = w.from * channels;
  const std::vector<SlideClass> classes = slide_classes(cut, {0, from_row, channels}, 0, 0);
  const LaneNumbers numbers(cut, 0);
  const auto across = static_cast<int64_t>(w.classes.size());
  const float* const from_end = from + cut.sum.n * h.from * from_row;
  const int64_t cost = w.to * cut.blocks * cut.weight_floats / (h.step * w.step);
  parallel_for(0, cut.sum.n * h.to, 65536 / (cost + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t number = begin; number < end; ++number) {
      const int64_t image = number / h.to, row = number % h.to;
      const int64_t source = row / h.step * h.from_step;  // of tap offset 0
      const float* const sources = from + (image * h.from + source) * from_row;
      const int64_t residue = row % h.step;
      const std::vector<AxisTap>& taps = h.classes[residue].taps;
      int64_t first = 0, last = static_cast<int64_t>(taps.size());  // taps inside
      while (first < last && source + taps[first].offset < 0) ++first;
      while (first < last && source + taps[last - 1].offset >= h.from) --last;
      // The next rows that are new, unless they are so long that they would be gone again.
      FetchAhead ahead;
      const float* const next = sources + (h.high + 1) * from_row;
      const int64_t floats = std::min<int64_t>(h.from_step * from_row, from_end - next);
      if (floats > 0 && floats <= kSourceFloats && number + 1 < end && residue + 1 == h.step) {
        ahead = {reinterpret_cast<const char*>(next), floats * int64_t{sizeof(float)}, 0, 1};
      }
      const int64_t lines = ceil_divide(ahead.lines_left() * kWidePoints, w.to);
      for (int64_t i = 0; i < across; ++i) {
        const SlideClass& one = classes[residue * across + i];
        const auto outer = static_cast<int64_t>(one.offsets.size());
        const int64_t at = (number * w.to + one.first) * channels;
        slide_class(one,
                    {.from = sources,
                     .offsets = one.offsets.data() + first,
                     .outer = outer == 0 ? 0 : last - first,
                     .begin = one.begin,
                     .end = one.end,
                     .numbers = numbers.numbers.data(),
                     .from_channels = cut.sum.from_channels,
                     .point = one.point * channels,
                     .weight = weight + one.weight + first * one.weight_row,
                     .weight_channel = outer * one.weight_row,
                     .to = to + at,
                     .to_point = w.step * channels,
                     .bias = epilogue.bias,
                     .residual = epilogue.residual == nullptr ? nullptr : epilogue.residual + at,
                     .relu = epilogue.relu,
                     .blocks = cut.blocks,
                     .weight_block = cut.weight_floats,
                     .ahead = &ahead,
                     .lines = lines});
      }
    }
  });
}

}  // namespace conv_detail
}  // namespace CPU_CAPABILITY
}  // namespace fastdl
