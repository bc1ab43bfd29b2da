// Where outputs, taps and inputs of a convolution meet along one axis, in 32 bits.
#pragma once

#include <cuda_runtime.h>

#include <numeric>

#include "conv/conv.h"

namespace fastdl {

// Position i and tap t meet at start + i * stride + t * step of the `source` elements of an axis.
struct GatherAxis {
  int count, source, taps, start, stride, step;
};

// An output and what it meets of the input
__host__ __device__ __forceinline__ GatherAxis forward_axis(const ConvAxis& axis) {
  return {static_cast<int>(axis.output), static_cast<int>(axis.input),
          static_cast<int>(axis.kernel), -static_cast<int>(axis.padding),
          static_cast<int>(axis.stride), static_cast<int>(axis.dilation)};
}

inline constexpr int kNowhere = -(1 << 30);  // outside every axis, whatever the tap

__device__ __forceinline__ bool is_inside(int at, int size) {
  return static_cast<unsigned>(at) < static_cast<unsigned>(size);
}

// How the taps of an axis that leave a remainder follow each other
struct TapPeriod {
  int taps;     // from one to the next
  int outputs;  // that the output position goes back meanwhile
};

inline TapPeriod period_of(const ConvAxis& axis) {
  const int64_t common = std::gcd(axis.stride, axis.dilation);
  return {static_cast<int>(axis.stride / common), static_cast<int>(axis.dilation / common)};
}

// The inputs first_input + i * stride, whose position leaves `remainder`, and the taps first_tap +
// t * period.taps that meet them
struct InputAxis {
  GatherAxis gather;
  int first_input, first_tap;

  __host__ __device__ __forceinline__ InputAxis(const ConvAxis& axis, const TapPeriod& period,
                                                int remainder) {
    const int stride = static_cast<int>(axis.stride), padding = static_cast<int>(axis.padding);
    const int dilation = static_cast<int>(axis.dilation), kernel = static_cast<int>(axis.kernel);
    const int input = static_cast<int>(axis.input);
    first_input = (remainder - padding) % stride;
    if (first_input < 0) first_input += stride;
    first_tap = 0;
    while (first_tap < period.taps && first_tap * dilation % stride != remainder) ++first_tap;
    const bool meet = first_tap < (kernel < period.taps ? kernel : period.taps);
    gather.count = first_input < input ? (input - first_input + stride - 1) / stride : 0;
    gather.source = static_cast<int>(axis.output);
    gather.taps = meet ? (kernel - first_tap + period.taps - 1) / period.taps : 0;
    gather.start = (first_input + padding - first_tap * dilation) / stride;  // exact, if they meet
    gather.stride = 1;
    gather.step = -period.outputs;
  }
};

}  // namespace fastdl
