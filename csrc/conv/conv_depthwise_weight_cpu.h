// The weight's gradient of depthwise convolution and of narrow groups:
//
//   grad_weight[channel][j][tap] = sum over n and result pixels of source[tap's pixel] *
//   grad_output
//
// The sources are laid out as for the forward (conv_depthwise_source_cpu.h), one channel a lane,
// and the gradients next to them without padding. The sums of several taps stay in registers over
// some rows: each source vector meets one gradient vector, loaded once for all taps. In narrow
// groups with a channel a lane, lanes are input channels, and it is the gradients of the group that
// are brought to them, one output channel after the other. Tasks are blocks of channels times parts
// of the batch; a part's sums are its own, and parts are added in their order, so that the result
// is the same in every run with as many threads.
//
// Reads input and grad_output once. Floor: their bytes / copy bandwidth, or the FMA rate.
#pragma once

#include "conv/conv_depthwise_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace conv_detail {

struct TapSums {
  const float* from;       // of the first gradient, at offset 0
  const int64_t* offsets;  // of the rows of taps
  int64_t tap;             // floats from one tap of a row to the next
  int64_t from_step, from_row;
  const float* grad;  // [rows][cols][kDepthwiseLanes]
  int64_t rows, cols;
  const int32_t* numbers;  // [kDepthwiseLanes]: the channel of grad that each lane meets
  float* const* sums;      // of each row of taps: [kTaps][kDepthwiseLanes], added to
};

using TapSumsKernel = void (*)(const TapSums&);

template <int kRows, int kTaps, LaneSource kSource>
void sum_taps(const TapSums& s) {
  using V = Vec<float>;
  constexpr int64_t width = kWidth<float>;
  for (int64_t lane = 0; lane < kBlockLanes; lane += width) {
    V sums[kRows * kTaps];
#pragma GCC unroll 16
    for (int i = 0; i < kRows * kTaps; ++i) sums[i] = V(0.0f);
    const float* grad = s.grad;
    for (int64_t row = 0; row < s.rows; ++row) {
      const float* from[kRows];
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) from[r] = s.from + row * s.from_row + s.offsets[r] + lane;
      for (int64_t col = 0; col < s.cols; ++col, grad += kBlockLanes) {
        const V value = load_lanes<kSource>(grad, s.numbers, lane);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
          for (int t = 0; t < kTaps; ++t) {
            V& sum = sums[r * kTaps + t];
            sum = at::vec::fmadd(V::loadu(from[r] + t * s.tap), value, sum);
          }
          from[r] += s.from_step;
        }
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < kRows * kTaps; ++i) {
      float* const to = s.sums[i / kTaps] + i % kTaps * kBlockLanes + lane;
      (V::loadu(to) + sums[i]).store(to);
    }
  }
}

inline constexpr int kMostTaps = 7;  // of a row at a time

// Rows of `taps` taps whose sums fit the registers.
inline int64_t rows_of_sums(int64_t taps) {
  return taps <= 2 ? 4 : taps <= 4 ? 3 : taps <= 6 ? 2 : 1;
}

template <LaneSource kSource>
inline TapSumsKernel tap_sums_kernel(int64_t rows, int64_t taps) {
  constexpr TapSumsKernel kernels[kMostTaps][4] = {
      {sum_taps<1, 1, kSource>, sum_taps<2, 1, kSource>, sum_taps<3, 1, kSource>,
       sum_taps<4, 1, kSource>},
      {sum_taps<1, 2, kSource>, sum_taps<2, 2, kSource>, sum_taps<3, 2, kSource>,
       sum_taps<4, 2, kSource>},
      {sum_taps<1, 3, kSource>, sum_taps<2, 3, kSource>, sum_taps<3, 3, kSource>, nullptr},
      {sum_taps<1, 4, kSource>, sum_taps<2, 4, kSource>, sum_taps<3, 4, kSource>, nullptr},
      {sum_taps<1, 5, kSource>, sum_taps<2, 5, kSource>, nullptr, nullptr},
      {sum_taps<1, 6, kSource>, sum_taps<2, 6, kSource>, nullptr, nullptr},
      {sum_taps<1, 7, kSource>, nullptr, nullptr, nullptr}};
  return kernels[taps - 1][rows - 1];
}

inline TapSumsKernel tap_sums_kernel(int64_t rows, int64_t taps, LaneSource source) {
  switch (source) {
    case LaneSource::kOwn:
      return tap_sums_kernel<LaneSource::kOwn>(rows, taps);
    case LaneSource::kWithinVector:
      return tap_sums_kernel<LaneSource::kWithinVector>(rows, taps);
    case LaneSource::kOnePerVector:
      return tap_sums_kernel<LaneSource::kOnePerVector>(rows, taps);
  }
  return nullptr;
}

// Adds the sums of some rows of a block: [channel of the group][tap of h][tap of w][lane].
inline void sum_rows(const DepthwiseCut& cut, const LaneNumbers& numbers, const float* from,
                     const float* grad, int64_t rows, float* sums) {
  const AxisSum &h = cut.sum.h, &w = cut.sum.w;
  const std::vector<AxisTap>&down = h.classes[0].taps, &across = w.classes[0].taps;
  const auto tap_rows = static_cast<int64_t>(down.size()) * cut.planes;
  const auto taps = static_cast<int64_t>(across.size());
  TapSums s{};
  s.from = from;
  s.tap = (taps > 1 ? across[1].offset - across[0].offset : 0) * kBlockLanes;
  s.from_step = w.from_step * kBlockLanes;
  s.from_row = h.from_step * cut.row_floats();
  s.grad = grad;
  s.rows = rows;
  s.cols = w.to;
  for (int64_t j = 0; j < cut.sum.from_channels / cut.planes; ++j) {
    s.numbers = numbers.numbers.data() + j * kBlockLanes;
    for (int64_t t = 0; t < taps; t += kMostTaps) {
      const int64_t together = std::min<int64_t>(kMostTaps, taps - t);
      const int64_t most = rows_of_sums(together);
      for (int64_t r = 0; r < tap_rows; r += most) {
        const int64_t count = std::min(most, tap_rows - r);
        int64_t offsets[4];
        float* to[4];
        for (int64_t i = 0; i < count; ++i) {
          const auto height = static_cast<int64_t>(down.size());
          const int64_t plane = (r + i) / height, y = (r + i) % height;
          offsets[i] = plane * cut.plane_floats() + (down[y].offset - h.low) * cut.row_floats() +
                       (across[t].offset - w.low) * kBlockLanes;
          to[i] = sums + ((j * tap_rows + r + i) * taps + t) * kBlockLanes;
        }
        s.offsets = offsets;
        s.sums = to;
        tap_sums_kernel(count, together, cut.lanes)(s);
      }
    }
  }
}

// Adds the parts in their order, and writes the gradients.
template <class T>
void write_weight_grads(const ConvBackwardWeightArgs& args, const DepthwiseCut& cut, int64_t parts,
                        int64_t part_floats) {
  const int64_t taps = args.shape.h.kernel * args.shape.w.kernel;
  const int64_t rows = cut.sum.from_channels * taps;
  const auto* const sums = static_cast<const float*>(args.workspace);
  const auto total = [&](int64_t at) {
    float sum = 0.0f;
    for (int64_t part = 0; part < parts; ++part) sum += sums[part * part_floats + at];
    return sum;
  };
  const ConvWeightStrides& s = args.strides;
  const bool own = cut.lanes == LaneSource::kOwn;
  const int64_t width = cut.sum.to_channels;
  parallel_for(
      0, cut.to_channels(), ceil_divide(16384, rows * parts), [&](int64_t begin, int64_t end) {
        for (int64_t channel = begin; channel < end; ++channel) {
          T* const to = static_cast<T*>(args.grad_weight) + channel * s.out;
          for (int64_t i = 0; i < rows; ++i) {
            // Where lanes are input channels, rows are the output channels of the group.
            const int64_t j = i / taps, tap = i % taps;
            const int64_t at = own ? channel : channel - channel % width + j;
            const int64_t row = own ? i : channel % width * taps + tap;
            to[j * s.in + tap / args.shape.w.kernel * s.h + tap % args.shape.w.kernel * s.w] =
                static_cast<T>(total(at / kBlockLanes * cut.weight_floats + row * kBlockLanes +
                                     at % kBlockLanes));
          }
          if (args.grad_bias == nullptr) continue;
          const int64_t bias = cut.blocks * cut.weight_floats + channel;
          static_cast<T*>(args.grad_bias)[channel] = static_cast<T>(total(bias));
        }
      });
}

// The sums of a unit, to those of its part of the batch.
template <class T>
void sum_unit(const DepthwiseCut& cut, const LaneNumbers& numbers, const DepthwiseUnit& unit,
              const T* grad_output, const float* sources, float* grads, float* sums,
              float* bias_sums) {
  const PlaneSum& sum = cut.sum;
  const int64_t channels = cut.to_channels(), plane = sum.h.to * sum.w.to;
  const int64_t pixel_stride = sum.channels_last ? channels : 1;
  const int64_t channel_stride = sum.channels_last ? 1 : plane;
  for (int64_t block = unit.first; block < unit.last; ++block) {
    const int64_t channel = block * kBlockLanes;
    const int64_t count = std::min(kBlockLanes, channels - channel);
    for (int64_t row = 0; row < unit.rows; row += cut.result_rows) {
      const int64_t rows = std::min(cut.result_rows, unit.rows - row), pixels = rows * sum.w.to;
      const T* const from = grad_output + unit.image * channels * plane + channel * channel_stride +
                            (unit.row + row) * sum.w.to * pixel_stride;
      load_window<T>(grads, kBlockLanes, {from, 1, pixels, pixel_stride, channel_stride},
                     {0, 1, 0, pixels}, count);
      sum_rows(cut, numbers,
               sources + (block - unit.first) * cut.block_floats() +
                   row * sum.h.from_step * cut.row_floats(),
               grads, rows, sums + block * cut.weight_floats);
      for (int64_t lane = 0; bias_sums != nullptr && lane < kBlockLanes; lane += kLaneCount) {
        Vec<float> total(0.0f);
        for (int64_t i = 0; i < pixels; ++i) {
          total = total + Vec<float>::loadu(grads + i * kBlockLanes + lane);
        }
        float* const to = bias_sums + channel + lane;
        (Vec<float>::loadu(to) + total).store(to);
      }
    }
  }
}

template <class T>
void depthwise_backward_weight(const ConvBackwardWeightArgs& args) {
  const DepthwiseCut cut = cut_depthwise(args.shape, false, 1);
  const PlaneSum& sum = cut.sum;
  const LaneNumbers numbers(cut, 0);
  const int64_t parts = depthwise_batch_parts(args.shape, num_threads());
  const int64_t part_floats = depthwise_part_floats(args.shape);
  const auto* const grad_output = static_cast<const T*>(args.grad_output);
  auto* const all_sums = static_cast<float*>(args.workspace);
  parallel_for(0, parts * cut.chunks, 1, [&](int64_t begin, int64_t end) {
    const int64_t grad_floats = cut.result_floats(cut.result_rows);
    auto* const sources = static_cast<float*>(
        thread_scratch((cut.source_floats() + grad_floats + DepthwiseSource<T>::pixel_floats(cut)) *
                       sizeof(float)));
    float* const grads = sources + cut.source_floats();
    std::fill_n(grads, grad_floats, 0.0f);  // lanes without a channel stay so
    DepthwiseSource<T> source(cut, static_cast<const T*>(args.input), sources, grads + grad_floats);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % cut.chunks * cut.chunk, part = task / cut.chunks;
      const int64_t last = std::min(first + cut.chunk, cut.blocks);
      float* const sums = all_sums + part * part_floats;
      float* const bias_sums = sums + cut.blocks * cut.weight_floats;
      std::fill(sums + first * cut.weight_floats, sums + last * cut.weight_floats, 0.0f);
      std::fill(bias_sums + first * kBlockLanes, bias_sums + last * kBlockLanes, 0.0f);
      const int64_t image = sum.n * part / parts, end_image = sum.n * (part + 1) / parts;
      for (int64_t i = image * cut.bands; i < end_image * cut.bands; ++i) {
        const int64_t row = i % cut.bands * cut.band;
        const DepthwiseUnit unit{i / cut.bands, row, std::min(cut.band, sum.h.to - row), first,
                                 last};
        source.load(unit.image, sum.h.source_of(row), first, last);
        sum_unit(cut, numbers, unit, grad_output, sources, grads, sums,
                 args.grad_bias == nullptr ? nullptr : bias_sums);
      }
    }
  });
  write_weight_grads<T>(args, cut, parts, part_floats);
}

}  // namespace conv_detail
}  // namespace CPU_CAPABILITY
}  // namespace fastdl
