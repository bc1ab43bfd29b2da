// Depthwise convolution, gradients of weight and bias, NCHW and channels_last:
//   dweight[c, t] = sum over n and i of dy[n, c, i] * x[n, c, i * stride - padding + t * dilation]
// A block sums up to kDepthwiseSums taps (the bias is one more, of ones) of a slice of channels
// over a part of the pixels: its threads have 16 bytes of channels (channels_last) or one channel
// each of different pixels, sum in registers, and add up in shared memory. A second kernel adds the
// parts in their order: no atomics, the same result in every run. Memory: dy is read once for every
// kDepthwiseSums taps, the input once and for the other taps from the caches. Floor: reading both
// once / copy bandwidth.
#include "conv/conv_depthwise_cuda.cuh"
#include "conv/conv_parts_cuda.cuh"

namespace fastdl {
namespace {

struct DepthwiseWeightArgs {
  const void *input, *grad_output;
  float* sums;  // [parts, channels * taps, then channels of the bias]
  int channels, taps, kernel_cols, pixels, parts, tap_groups;
  GatherAxis h, w;
  ImageStrides x_strides, y_strides;
  ChannelSlices slices;
};

template <class T, int W>
__global__ void __launch_bounds__(kDepthwiseThreads, W == 8 ? 3 : 4)  // 80 sums take registers
    depthwise_weight_of_part(DepthwiseWeightArgs args) {
  constexpr int kSums = kDepthwiseSums;
  __shared__ float of_threads[kDepthwiseThreads][W];
  __shared__ int4 taps[kSums];  // where a tap lies from the first one: rows, columns, elements
  const GatherAxis &h = args.h, &w = args.w;
  const int lanes = args.slices.lanes, teams = kDepthwiseThreads / lanes;
  const int lane = threadIdx.x % lanes, team = threadIdx.x / lanes;
  const int tap_group = blockIdx.x % args.tap_groups, rest = blockIdx.x / args.tap_groups;
  const int slice = rest % args.slices.count, part = rest / args.slices.count;
  const int channel = (slice * lanes + lane) * W, first_tap = tap_group * kSums;
  if (threadIdx.x < kSums) {
    const int tap = min(first_tap + static_cast<int>(threadIdx.x), args.taps);
    const int row = tap / args.kernel_cols, col = tap - row * args.kernel_cols;
    const bool exists = tap < args.taps;  // else it is the bias, and what follows is left out
    taps[threadIdx.x] =
        exists ? make_int4(row * h.step, col * w.step, 1, 0) : make_int4(0, 0, 0, 0);
  }
  __syncthreads();

  float sums[kSums][W] = {};
  const int begin = static_cast<int>(static_cast<int64_t>(args.pixels) * part / args.parts);
  const int end = static_cast<int>(static_cast<int64_t>(args.pixels) * (part + 1) / args.parts);
  if (channel < args.channels) {
    const T* const from = static_cast<const T*>(args.input) + channel * args.x_strides.channel;
    const T* const grads =
        static_cast<const T*>(args.grad_output) + channel * args.y_strides.channel;
#pragma unroll 1
    for (int pixel = begin + team; pixel < end; pixel += teams) {
      const int line = pixel / w.count, image = line / h.count;
      const int i = line - image * h.count, j = pixel - line * w.count;
      float dy[W];
      load_vector<W>(grads + image * args.y_strides.image + i * args.y_strides.row +
                     j * args.y_strides.col)
          .unpack(dy);
      const int y = h.start + i * h.stride, x = w.start + j * w.stride;
      const T* const first = from + image * args.x_strides.image;
#pragma unroll
      for (int tap = 0; tap < kSums; ++tap) {
        const int4 at = taps[tap];
        float values[W];
        if (at.z == 0) {
#pragma unroll
          for (float& value : values) value = 1;
        } else if (is_inside(y + at.x, h.source) && is_inside(x + at.y, w.source)) {
          load_vector<W>(first + (y + at.x) * args.x_strides.row + (x + at.y) * args.x_strides.col)
              .unpack(values);
        } else {
          continue;
        }
#pragma unroll
        for (int k = 0; k < W; ++k) sums[tap][k] = fmaf(dy[k], values[k], sums[tap][k]);
      }
    }
  }

  float* const to = args.sums + static_cast<int64_t>(part) * args.channels * (args.taps + 1);
#pragma unroll
  for (int tap = 0; tap < kSums; ++tap) {
    if (first_tap + tap > args.taps) break;
#pragma unroll
    for (int k = 0; k < W; ++k) of_threads[threadIdx.x][k] = sums[tap][k];
    for (int half = kDepthwiseThreads / 2; half >= lanes; half /= 2) {
      __syncthreads();
      if (static_cast<int>(threadIdx.x) < half) {
#pragma unroll
        for (int k = 0; k < W; ++k) {
          of_threads[threadIdx.x][k] += of_threads[threadIdx.x + half][k];
        }
      }
    }
    if (team == 0) {
#pragma unroll
      for (int k = 0; k < W; ++k) {
        const int c = channel + k, index = first_tap + tap;
        if (c >= args.channels) continue;
        to[index < args.taps ? c * args.taps + index : args.channels * args.taps + c] =
            of_threads[lane][k];
      }
    }
    __syncthreads();
  }
}

}  // namespace

Status depthwise_backward_weight_cuda(const ConvBackwardWeightArgs& backward, int parts,
                                      const CudaTarget& target) {
  Status status;
  const ConvShape& shape = backward.shape;
  const ConvAxis &h = shape.h, &w = shape.w;
  const auto run = [&]<class T, int W> {
    DepthwiseWeightArgs args{};
    args.input = backward.input;
    args.grad_output = backward.grad_output;
    args.sums = static_cast<float*>(backward.workspace);
    args.channels = static_cast<int>(shape.out_channels);
    args.taps = static_cast<int>(h.kernel * w.kernel);
    args.kernel_cols = static_cast<int>(w.kernel);
    args.pixels = static_cast<int>(shape.n * h.output * w.output);
    args.parts = parts;
    args.tap_groups = (args.taps + kDepthwiseSums) / kDepthwiseSums;
    args.h = forward_axis(h);
    args.w = forward_axis(w);
    args.x_strides = strides_of(shape.in_channels, h.input, w.input, shape.channels_last);
    args.y_strides = strides_of(shape.in_channels, h.output, w.output, shape.channels_last);
    args.slices = slices_of(shape, W);
    status = launch(depthwise_weight_of_part<T, W>,
                    {int64_t{args.tap_groups} * args.slices.count * parts, kDepthwiseThreads},
                    target, args);
    const int64_t count = int64_t{args.channels} * args.taps, stride = count + args.channels;
    if (!status.ok()) return;
    status = add_parts<T>({args.sums, count, stride, parts}, places_of(backward, 1),
                          backward.grad_weight, target);
    if (!status.ok() || backward.grad_bias == nullptr) return;
    status = add_parts<T>({args.sums + count, args.channels, stride, parts}, ResultPlaces{},
                          backward.grad_bias, target);
  };
  dispatch_depthwise(shape, backward.dtype, run, static_cast<const char*>(backward.input),
                     static_cast<const char*>(backward.grad_output));
  return status;
}

}  // namespace fastdl
