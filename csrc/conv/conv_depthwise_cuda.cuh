// What the kernels of depthwise convolution share: who has which channels, and where tensors lie.
#pragma once

#include "common/dispatch.h"
#include "common/launch.cuh"
#include "common/vector_io.cuh"
#include "conv/conv_axis_cuda.cuh"
#include "conv/conv_cuda_plan.h"
#include "conv/conv_depthwise_cuda.h"

namespace fastdl {

inline constexpr int kDepthwiseThreads = 128;

// Elements from one pixel, row and image to the next; channel_stride from one channel to the next
struct ImageStrides {
  int64_t col, row, image, channel;
};

inline ImageStrides strides_of(int64_t channels, int64_t height, int64_t width,
                               bool channels_last) {
  if (channels_last) return {channels, width * channels, height * width * channels, 1};
  return {1, width, channels * height * width, height * width};
}

// Neighbouring threads have neighbouring channels, W each: `lanes` threads a slice of the channels,
// a power of two. In NCHW they have neighbouring pixels of one channel.
struct ChannelSlices {
  int lanes, count;
};

inline ChannelSlices slices_of(const ConvShape& shape, int width) {
  if (!shape.channels_last) return {1, static_cast<int>(shape.out_channels)};
  const int64_t vectors = ceil_divide(shape.out_channels, int64_t{width});
  int64_t lanes = std::min<int64_t>(next_power_of_two(vectors), 4);
  for (const int64_t wider : {8, 16}) {  // as long as no thread more is idle
    if (ceil_divide(vectors, wider) * wider <= ceil_divide(vectors, lanes) * lanes) lanes = wider;
  }
  return {static_cast<int>(lanes), static_cast<int>(ceil_divide(vectors, lanes))};
}

// Calls f.operator()<T, W>() with 16 bytes of channels where all tensors allow it, else with 1.
template <class F, class... Pointers>
void dispatch_depthwise(const ConvShape& shape, DType dtype, F&& f, const Pointers*... pointers) {
  const bool aligned = ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
  const auto with = [&]<class T> {
    constexpr int W = kVectorWidth<T>;
    if (shape.channels_last && aligned && shape.out_channels % W == 0) {
      f.template operator()<T, W>();
    } else {
      f.template operator()<T, 1>();
    }
  };
  if (dtype == DType::kBFloat16) {
    with.template operator()<__nv_bfloat16>();
  } else if (dtype == DType::kFloat16) {
    with.template operator()<__half>();
  } else {
    with.template operator()<float>();
  }
}

}  // namespace fastdl
