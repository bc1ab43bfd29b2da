// The choice of CUDA's kernels for a convolution, a pure function.
#include <string>
#include <vector>

#include "check.h"
#include "conv/conv_cuda_plan.h"
#include "tests.h"

namespace fastdl::testing {
namespace {

constexpr ConvDirection kForward = ConvDirection::kForward;
constexpr ConvDirection kBackwardInput = ConvDirection::kBackwardInput;
constexpr ConvDirection kBackwardWeight = ConvDirection::kBackwardWeight;

ConvShape square(int64_t n, int64_t in, int64_t out, int64_t size, int64_t kernel, int64_t stride,
                 int64_t groups = 1) {
  const int64_t padding = kernel / 2;
  const ConvAxis axis{size, (size + 2 * padding - kernel) / stride + 1, kernel, stride, padding, 1};
  return {n, in, out, groups, axis, axis, true};
}

ConvCudaPlan plan_of(const ConvShape& shape, ConvDirection direction = kForward,
                     DType dtype = DType::kBFloat16, ConvMath math = ConvMath::kIeee,
                     int capability = 90) {
  return plan_conv_cuda(shape, direction, dtype, math, 132, capability);
}

// Every tile must be one that its kernels can be built and launched with.
void check_table() {
  for (const ConvTile& tile : kConvTiles) {
    check(tile.rows % tile.warp_rows == 0 && tile.cols % tile.warp_cols == 0, "whole warps");
    check(tile.shared_bytes() * tile.blocks <= 163 * 1024, "blocks fit in shared memory");
    check(tile.threads() * tile.blocks * 128 <= 65536 || tile.warp_rows * tile.warp_cols >= 32 * 64,
          "small tiles leave 128 registers a thread");
  }
}

void check_choices() {
  check(plan_of(square(256, 256, 256, 14, 3, 1)).tile == 0, "large products take large blocks");
  check(plan_of(square(256, 64, 64, 56, 3, 1)).tile == 2, "64 columns take tiles of 64");
  check(plan_of(square(256, 64, 256, 56, 1, 1)).tile != 0,
        "short sums take blocks that overlap with others");
  check(plan_of(square(1, 256, 256, 14, 3, 1)).tile == kUnevenTile,
        "few results take small blocks, for more multiprocessors");
  check(plan_of(square(8, 3, 64, 224, 7, 2)).tile == kUnevenTile, "odd channels take their tile");
  check(plan_of(square(64, 64, 64, 28, 3, 1), kForward, DType::kFloat32).tile == kFmaTile,
        "float32 without tensor cores");
  check(plan_of(square(64, 64, 64, 28, 3, 1), kForward, DType::kFloat32, ConvMath::kTf32).math ==
            ConvMath::kTf32,
        "float32 on tensor cores");
  const int small =
      plan_of(square(256, 256, 256, 14, 3, 1), kForward, DType::kBFloat16, ConvMath::kIeee, 86)
          .tile;
  check(kConvTiles[small].shared_bytes() <= 99 * 1024, "GPUs with less shared memory");
}

void check_splits() {
  const ConvShape shape = square(256, 64, 64, 56, 3, 1);
  const ConvCudaPlan plan = plan_of(shape, kBackwardWeight);
  const int64_t blocks =
      blocks_of(product_of(shape, kBackwardWeight), kConvTiles[plan.tile]) * plan.splits;
  check(blocks >= 2 * 132 && plan.splits > 1, "long sums are split over all multiprocessors");
  check(plan.workspace_bytes >= size_t{4} * plan.splits * 64 * 64 * 9, "room for partial sums");
  check(plan.workspace_bytes <= 2 * kConvWorkspaceBytes, "and not too much of it");
  check(plan_of(square(1, 512, 512, 7, 3, 1), kBackwardWeight).splits == 1, "short sums are not");
  check(plan_of(shape).workspace_bytes == 0 && plan_of(shape, kBackwardInput).splits == 1,
        "the other directions need no workspace");
}

void check_groups() {
  const ConvShape narrow = square(8, 128, 128, 56, 3, 1, 32);
  check(plan_of(narrow, kBackwardWeight).merged_groups == 8,
        "groups of 4 channels become one of 32");
  check(plan_of(narrow).kernel == ConvCudaKernel::kNative, "which in forward would mix infinities");
  check(plan_of(square(8, 128, 128, 56, 3, 1, 16)).tile == 4, "groups of 8 take narrow tiles");
  check(plan_of(square(8, 128, 128, 56, 3, 1, 2), kBackwardWeight).merged_groups == 1,
        "wide ones stay");
  check(plan_of(square(8, 15, 15, 56, 3, 1, 3)).kernel == ConvCudaKernel::kNative,
        "no number of groups of 5 is a multiple of 16 bytes");
  ConvShape depthwise = square(8, 96, 96, 56, 7, 1, 96);
  check(plan_of(depthwise).kernel == ConvCudaKernel::kDepthwise, "depthwise");
  depthwise.channels_last = false;
  check(!plan_of(depthwise).channels_last, "depthwise takes either order");
  check(plan_of(square(8, 64, 64, 56, 3, 1), kForward, DType::kFloat64).kernel ==
            ConvCudaKernel::kNative,
        "float64 is torch's");
  check(plan_of(square(1, 8, 8, 40000, 3, 1)).kernel == ConvCudaKernel::kNative,
        "pixels are counted in 32 bits");
  check(plan_of(square(64, 128, 128, 513, 3, 2)).kernel == ConvCudaKernel::kGemm,
        "elements are not");
}

}  // namespace

void test_conv_cuda_plan() {
  check_table();
  check_choices();
  check_splits();
  check_groups();
}

}  // namespace fastdl::testing
