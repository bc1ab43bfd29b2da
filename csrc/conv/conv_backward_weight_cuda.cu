// grad_weight = sum over all output pixels of grad_output times the inputs under each tap, and
// grad_bias = sum of grad_output; channels_last.
// A product of matrices for each group: rows are output channels, columns taps and input channels,
// the sum is over pixels. There are few results and long sums, so the sum is split over blocks,
// whose partial sums, in float32, a second kernel adds in their order: no atomics, the same result
// in every run. Both matrices are turned on the way from shared memory to the registers.
// Memory: the input is read once for every tile of output channels, mostly from the second cache;
// partial sums are written and read once. Floor and limits: as forward.
#include "conv/conv_depthwise_cuda.h"
#include "conv/conv_gemm_cuda.cuh"
#include "conv/conv_parts_cuda.cuh"

namespace fastdl {
namespace {

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kTile.blocks)
    conv_backward_weight_tile(ConvBackwardWeightArgs args, int splits) {
  using T = typename Kernel::T;
  constexpr ConvTile kTile = Kernel::kTile;
  constexpr bool kVectors = Kernel::kVectors;
  const GatherAxis h = forward_axis(args.shape.h), w = forward_axis(args.shape.w);
  const int n = static_cast<int>(args.shape.n), groups = static_cast<int>(args.shape.groups);
  const int all_in = static_cast<int>(args.shape.in_channels), in = all_in / groups;
  const int all_out = static_cast<int>(args.shape.out_channels), out = all_out / groups;
  const int pixels = n * h.count * w.count, cols = h.taps * w.taps * in;
  const BlockPlace place = block_place<Kernel>(out, cols, groups);
  const int channel = place.group * out + place.row;  // of the output, the block's first

  const int all_steps = (pixels + kConvDepth<T> - 1) / kConvDepth<T>;
  const int part = all_steps / splits, longer = all_steps % splits;
  const int first = place.rest * part + min(place.rest, longer);
  const int steps = part + (place.rest < longer);
  MatrixColumns<T, kTile.rows, Kernel::kThreads, kVectors> a(
      static_cast<const T*>(args.grad_output) + channel, all_out, out - place.row,
      first * kConvDepth<T>, pixels);
  GatheredTaps<T, kTile.cols, Kernel::kThreads, kVectors> b(
      static_cast<const T*>(args.input) + place.group * in, all_in, in, h, w, place.col,
      first * kConvDepth<T>, pixels);
  const float* const results = Kernel::multiply(a, b, steps);

  float* const sums =
      static_cast<float*>(args.workspace) + static_cast<int64_t>(place.rest) * all_out * cols;
  Kernel::template for_each_result<float>(results, [&](int row, int col, float (&values)[4]) {
    const int count = cols - place.col - col;
    if (place.row + row >= out) return;
    float* const to = sums + static_cast<int64_t>(channel + row) * cols + place.col + col;
    write_results<kVectors>(to, values, count);
  });
}

// Sums of grad_output over a part of the pixels: [parts, out_channels]. A thread has W channels of
// every so many pixels; those of the same channels are added in the order of their threads.
template <class T, int W>
__global__ void __launch_bounds__(kAddThreads)
    conv_bias_of_part(const T* grad_output, int pixels, int channels, int lanes, int parts,
                      float* sums) {
  __shared__ float of_threads[kAddThreads][W];
  const int lane = threadIdx.x % lanes, teams = kAddThreads / lanes;
  const int tile = blockIdx.x / parts, part = blockIdx.x % parts;
  const int channel = (tile * lanes + lane) * W;
  float values[W] = {};
  if (channel < channels) {
#pragma unroll 4
    for (int64_t pixel = part * teams + threadIdx.x / lanes; pixel < pixels;
         pixel += parts * teams) {
      float grads[W];
      load_vector<W>(grad_output + pixel * channels + channel).unpack(grads);
#pragma unroll
      for (int i = 0; i < W; ++i) values[i] += grads[i];
    }
  }
#pragma unroll
  for (int i = 0; i < W; ++i) of_threads[threadIdx.x][i] = values[i];
  __syncthreads();
  for (int i = threadIdx.x; i < lanes * W; i += kAddThreads) {
    if (tile * lanes * W + i >= channels) continue;
    float sum = 0;
    for (int team = 0; team < teams; ++team) sum += of_threads[team * lanes + i / W][i % W];
    sums[static_cast<int64_t>(part) * channels + tile * lanes * W + i] = sum;
  }
}

template <class T, int W>
Status bias_gradient(const ConvBackwardWeightArgs& args, float* sums, const CudaTarget& target) {
  const int64_t channels = args.shape.out_channels;
  const int64_t pixels = args.shape.n * args.shape.h.output * args.shape.w.output;
  const int64_t lanes =
      std::min<int64_t>(next_power_of_two(ceil_divide(channels, int64_t{W})), kAddThreads);
  const int64_t parts = bias_parts_of(args.shape, target.multiprocessors);
  const Status status =
      launch(conv_bias_of_part<T, W>, {ceil_divide(channels, lanes * W) * parts, kAddThreads},
             target, static_cast<const T*>(args.grad_output), static_cast<int>(pixels),
             static_cast<int>(channels), static_cast<int>(lanes), static_cast<int>(parts), sums);
  if (!status.ok()) return status;
  return add_parts<T>({sums, channels, channels, parts}, ResultPlaces{}, args.grad_bias, target);
}

}  // namespace

Status conv_backward_weight_cuda(const ConvBackwardWeightArgs& args, const ConvCudaPlan& plan,
                                 const CudaTarget& target) {
  if (plan.kernel == ConvCudaKernel::kDepthwise) {
    return depthwise_backward_weight_cuda(args, plan.splits, target);
  }
  Status status;
  ConvBackwardWeightArgs merged = args;
  merged.shape.groups /= plan.merged_groups;
  const bool whole = has_whole_vectors(merged.shape, args.dtype, args.input, args.grad_output);
  dispatch_conv_kernel(args.dtype, plan, whole, [&]<class Kernel> {
    using T = typename Kernel::T;
    const ConvProduct product = product_of(merged.shape, ConvDirection::kBackwardWeight);
    status = launch(
        conv_backward_weight_tile<Kernel>,
        {blocks_of(product, Kernel::kTile) * plan.splits, Kernel::kThreads, Kernel::kSharedBytes},
        target, merged, plan.splits);
    if (!status.ok()) return;
    const int64_t sums = product.rows * product.cols * product.count;
    float* const partial = static_cast<float*>(args.workspace);
    status = add_parts<T>({partial, sums / plan.merged_groups, sums, plan.splits},
                          places_of(args, plan.merged_groups), args.grad_weight, target);
    if (!status.ok() || args.grad_bias == nullptr) return;
    status = bias_gradient<T, Kernel::kVectors ? kVectorWidth<T> : 1>(
        args, partial + plan.splits * sums, target);
  });
  return status;
}

}  // namespace fastdl
