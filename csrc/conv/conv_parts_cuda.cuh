// Adds the partial sums that the blocks of a gradient of weight or bias have left, in their order.
#pragma once

#include "common/launch.cuh"
#include "common/row_plan.h"
#include "common/vector_io.cuh"
#include "conv/conv.h"

namespace fastdl {

inline constexpr int kAddThreads = 256;

// Where result i goes, and where its sums lie: [out_channels, taps, in_channels of a group]. In the
// sums `merged` groups of `out` channels are one, whose weights between the groups are left out.
struct ResultPlaces {
  int in = 1, across = 1, down = 1;
  int out = 1, merged = 1;
  ConvWeightStrides strides{1, 0, 0, 0};

  __device__ __forceinline__ int source(int i) const {
    if (merged == 1) return i;
    const int row = i / in, group = row / (down * across * out) % merged;
    return (row * merged + group) * in + (i - row * in);
  }
  __device__ __forceinline__ int64_t target(int i) const {
    const int tap = i / in, c = i - tap * in, line = tap / across, o = line / down;
    return o * strides.out + c * strides.in + (line - o * down) * strides.h +
           (tap - line * across) * strides.w;
  }
};

inline ResultPlaces places_of(const ConvBackwardWeightArgs& args, int merged) {
  const ConvShape& shape = args.shape;
  return {static_cast<int>(shape.in_channels / shape.groups),
          static_cast<int>(shape.w.kernel),
          static_cast<int>(shape.h.kernel),
          static_cast<int>(shape.out_channels / shape.groups),
          merged,
          args.strides};
}

// `count` results of each of `parts` parts, `stride` floats from one to the next
struct PartialSums {
  const float* sums;
  int64_t count, stride, parts;
};

template <class T>
__global__ void __launch_bounds__(kAddThreads)
    conv_add_parts(PartialSums partial, ResultPlaces places, T* to) {
  const int i = blockIdx.x * kAddThreads + threadIdx.x;
  if (i >= partial.count) return;
  const float* const sums = partial.sums + places.source(i);
  float sum = 0;
#pragma unroll 4
  for (int part = 0; part < partial.parts; ++part) sum += sums[part * partial.stride];
  to[places.target(i)] = narrow<T>(sum);
}

template <class T>
Status add_parts(const PartialSums& partial, const ResultPlaces& places, void* to,
                 const CudaTarget& target) {
  return launch(conv_add_parts<T>, {ceil_divide(partial.count, int64_t{kAddThreads}), kAddThreads},
                target, partial, places, static_cast<T*>(to));
}

}  // namespace fastdl
