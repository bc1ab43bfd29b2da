// grad_input = the convolution's transpose applied to grad_output, channels_last.
// An input element meets only taps whose offset leaves the remainder of its position by the stride.
// The input elements of one remainder on each axis are a convolution of stride 1 over grad_output
// with these taps: a product of matrices, whose rows are input pixels and columns input channels,
// and which sums over taps and output channels. All remainders are blocks of one launch, and none
// multiplies by a zero that is only there for the stride. Where no tap falls, zeros are written.
// Tiles and copies are those of forward; the weight is read by its rows of input channels, and
// turned on the way to the registers. Floor, limits: as forward.
#include "conv/conv_depthwise_cuda.h"
#include "conv/conv_gemm_cuda.cuh"

namespace fastdl {
namespace {

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kTile.blocks)
    conv_backward_input_tile(ConvBackwardInputArgs args, TapPeriod down, TapPeriod across) {
  using T = typename Kernel::T;
  constexpr ConvTile kTile = Kernel::kTile;
  constexpr bool kVectors = Kernel::kVectors;
  const ConvAxis &h_axis = args.shape.h, &w_axis = args.shape.w;
  const int n = static_cast<int>(args.shape.n), groups = static_cast<int>(args.shape.groups);
  const int all_in = static_cast<int>(args.shape.in_channels), in = all_in / groups;
  const int all_out = static_cast<int>(args.shape.out_channels), out = all_out / groups;
  const int height = static_cast<int>(h_axis.input), width = static_cast<int>(w_axis.input);
  const int row_stride = static_cast<int>(h_axis.stride);
  const int col_stride = static_cast<int>(w_axis.stride);
  const int most = n * ((height + row_stride - 1) / row_stride) *
                   ((width + col_stride - 1) / col_stride);  // pixels of one remainder
  const BlockPlace place = block_place<Kernel>(most, in, groups);
  const InputAxis h(h_axis, down, place.rest / col_stride);
  const InputAxis w(w_axis, across, place.rest % col_stride);
  const int pixels = n * h.gather.count * w.gather.count;
  if (place.row >= pixels) return;

  GatheredPixels<T, kTile.rows, Kernel::kThreads, kVectors> a(
      static_cast<const T*>(args.grad_output) + place.group * out, all_out, out, n, h.gather,
      w.gather, place.row);
  const int kernel_cols = static_cast<int>(w_axis.kernel);
  const int taps = static_cast<int>(h_axis.kernel) * kernel_cols;
  const int row_step = down.taps * kernel_cols;
  WeightColumns<T, kTile.cols, Kernel::kThreads, kVectors> b(
      static_cast<const T*>(args.packed_weight) +
          (static_cast<int64_t>(place.group) * out * taps + h.first_tap * kernel_cols +
           w.first_tap) *
              in +
          place.col,
      {taps, in, out, in - place.col}, {h.gather.taps, w.gather.taps, row_step, across.taps});
  const int depth = h.gather.taps * w.gather.taps * out;
  const int steps = (depth + kConvDepth<T> - 1) / kConvDepth<T>;
  const float* const results = Kernel::multiply(a, b, steps);

  constexpr int W = kVectorWidth<T>;
  Kernel::template for_each_result<T>(results, [&](int row, int col, float (&values)[W]) {
    const int count = in - place.col - col, at = place.row + row;
    if (at >= pixels || count <= 0) return;
    const int line = at / w.gather.count, image = line / h.gather.count;
    const int y = h.first_input + (line - image * h.gather.count) * row_stride;
    const int x = w.first_input + (at - line * w.gather.count) * col_stride;
    const int64_t pixel = (image * height + y) * width + x;
    write_results<kVectors>(
        static_cast<T*>(args.grad_input) + pixel * all_in + place.group * in + place.col + col,
        values, count);
  });
}

}  // namespace

Status conv_backward_input_cuda(const ConvBackwardInputArgs& args, const ConvCudaPlan& plan,
                                const CudaTarget& target) {
  if (plan.kernel == ConvCudaKernel::kDepthwise) {
    return depthwise_backward_input_cuda(args, target);
  }
  Status status;
  const bool whole = has_whole_vectors(args.shape, args.dtype, args.grad_output, args.packed_weight,
                                       args.grad_input);
  dispatch_conv_kernel(args.dtype, plan, whole, [&]<class Kernel> {
    const ConvProduct product = product_of(args.shape, ConvDirection::kBackwardInput);
    status = launch(conv_backward_input_tile<Kernel>,
                    {blocks_of(product, Kernel::kTile), Kernel::kThreads, Kernel::kSharedBytes},
                    target, args, period_of(args.shape.h), period_of(args.shape.w));
  });
  return status;
}

}  // namespace fastdl
