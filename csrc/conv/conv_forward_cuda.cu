// output = activation(conv(input, weight) + bias + residual), channels_last.
// A product of matrices for each group: rows are output pixels, columns output channels, the sum is
// over taps and input channels. A block computes a tile of kConvTiles, which plan_conv_cuda
// chooses; blocks of the same pixels are neighbours, so that the input is read from memory about
// once and again from the second cache. Copies to shared memory are asynchronous, several tiles
// ahead. Bias, residual and ReLU are applied in float32 before the one rounding. Floor: 2 * n * h *
// w * out_channels * taps * in_channels / groups flops, or reading and writing everything once.
// Limits: pixels of one tensor below 2^31, elements 64-bit. Without whole vectors (the 3 channels
// of an image) elements are gathered one by one, without asynchronous copies; the sum is still
// without gaps: 7 * 7 * 3 = 147 takes 160.
#include "conv/conv_depthwise_cuda.h"
#include "conv/conv_gemm_cuda.cuh"

namespace fastdl {
namespace {

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kTile.blocks)
    conv_forward_tile(ConvForwardArgs args) {
  using T = typename Kernel::T;
  constexpr ConvTile kTile = Kernel::kTile;
  constexpr bool kVectors = Kernel::kVectors;
  const GatherAxis h = forward_axis(args.shape.h), w = forward_axis(args.shape.w);
  const int n = static_cast<int>(args.shape.n), groups = static_cast<int>(args.shape.groups);
  const int all_in = static_cast<int>(args.shape.in_channels), in = all_in / groups;
  const int all_out = static_cast<int>(args.shape.out_channels), out = all_out / groups;
  const int pixels = n * h.count * w.count, depth = h.taps * w.taps * in;
  const BlockPlace place = block_place<Kernel>(pixels, out, groups);
  const int channel = place.group * out + place.col;  // of the output, the block's first

  GatheredPixels<T, kTile.rows, Kernel::kThreads, kVectors> a(
      static_cast<const T*>(args.input) + place.group * in, all_in, in, n, h, w, place.row);
  MatrixRows<T, kTile.cols, Kernel::kThreads, kVectors> b(
      static_cast<const T*>(args.packed_weight) + static_cast<int64_t>(channel) * depth,
      out - place.col, depth);
  const int steps = (depth + kConvDepth<T> - 1) / kConvDepth<T>;
  const float* const results = Kernel::multiply(a, b, steps);

  constexpr int W = kVectorWidth<T>;
  Kernel::template for_each_result<T>(results, [&](int row, int col, float (&values)[W]) {
    const int count = out - place.col - col;
    if (place.row + row >= pixels || count <= 0) return;
    const int64_t at = static_cast<int64_t>(place.row + row) * all_out + channel + col;
    const T* const bias = static_cast<const T*>(args.bias);
    const T* const residual = static_cast<const T*>(args.residual);
    if (bias != nullptr) add<kVectors>(values, bias + channel + col, count);
    if (residual != nullptr) add<kVectors>(values, residual + at, count);
    if (args.relu) {
#pragma unroll
      for (float& value : values) value = value > 0 || value != value ? value : 0;  // keeps NaN
    }
    write_results<kVectors>(static_cast<T*>(args.output) + at, values, count);
  });
}

}  // namespace

Status conv_forward_cuda(const ConvForwardArgs& args, const ConvCudaPlan& plan,
                         const CudaTarget& target) {
  if (plan.kernel == ConvCudaKernel::kDepthwise) {
    return depthwise_forward_cuda(args, target);
  }
  Status status;
  const bool whole = has_whole_vectors(args.shape, args.dtype, args.input, args.packed_weight,
                                       args.bias, args.residual, args.output);
  dispatch_conv_kernel(args.dtype, plan, whole, [&]<class Kernel> {
    const ConvProduct product = product_of(args.shape, ConvDirection::kForward);
    status = launch(conv_forward_tile<Kernel>,
                    {blocks_of(product, Kernel::kTile), Kernel::kThreads, Kernel::kSharedBytes},
                    target, args);
  });
  return status;
}

}  // namespace fastdl
