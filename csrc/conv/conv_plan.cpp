// Which kernel computes a convolution on the CPU, and what memory it takes.
//
// The choice rests on times against native torch 2.13: 2 cores with AVX2, float32, batch 8 where
// not said, weights packed each call. Above 1 is faster than native; NCHW | channels_last.
//
//   3x3, 64 to 512 channels, Winograd    1.7-2.9, its weight 1.7-3.2 | 1.3-2.7, 1.7-3.4
//   the same, direct                     0.9-1.0, 1.0-1.1            | 0.8-0.9, 0.9-1.2
//   groups of 64, 32, 16; Winograd       2.6, 2.1, 1.2-1.7           | 1.9, 1.4, 0.9-1.1
//   3 channels to 64, 64 to 3; Winograd  0.7, 2.5                    | 0.6, 1.4
//   1x1, in planes                       0.97-1.2, 0.95-1.4          | direct 0.8-1.0, 0.6-1.1
//   stride 2, forward                    1.0                         | 0.96
//   stride 2, input; weight              1.2-1.5; 1.0-1.1            | 1.0-1.1; 0.7-1.3
//   stride 2, below kFewPixels           0.9, 0.8; 0.94              | 1.0, 0.8; 1.1
//   7x7 of 3 channels, forward; weight   1.0; 1.2                    | 1.0; 0.9
//   bfloat16, float16                    4-35 (native has no kernels for them on AVX2)
//
// With AVX-512 native has kernels for 16-bit types, and ours have not been measured: only Winograd,
// which needs a quarter of the products, and depthwise are taken. Without AVX2 none are.
#include "conv/conv_depthwise_plan.h"
#include "conv/conv_weight.h"

namespace fastdl {
namespace {

constexpr int64_t kFewChannels = 16;  // too few for their tiles to be filled
constexpr double kSmallFlops = 10e6;  // native takes longer to begin
constexpr double kTinyFlops = 3e6;
constexpr int64_t kFewPixels = 1024;     // for a weight to be packed for
constexpr int64_t kFewGradPixels = 512;  // for the sums of a weight's gradient to be laid out for
constexpr int64_t kWorkspaceBytes = int64_t{256} << 20;  // more is left to native,
constexpr int64_t kScratchBytes = int64_t{16} << 20;     // and more scratch of a thread

// A Winograd tile costs as much as so many products, and packing a weight as so many more.
constexpr double kTileTerms = 36 * 1.35;
constexpr double kPackedTerms = 500, kPackedGradTerms = 1000;

bool is_3x3(const ConvAxis& axis) {
  return axis.kernel == 3 && axis.stride == 1 && axis.dilation == 1;
}
bool is_1x1(const ConvAxis& axis) { return axis.kernel == 1 && axis.padding == 0; }

// What a direction sums over, and what it computes.
struct Direction {
  int64_t from, to;      // channels of a group
  int64_t h, w, pixels;  // results: of an image, of the batch (backward-weight: grad_output)
  double flops;

  Direction(const ConvShape& shape, ConvDirection direction) {
    const int64_t in = shape.in_channels / shape.groups, out = shape.out_channels / shape.groups;
    const bool backward = direction == ConvDirection::kBackwardInput;
    from = backward ? out : in;
    to = backward ? in : out;
    h = backward ? shape.h.input : shape.h.output;
    w = backward ? shape.w.input : shape.w.output;
    pixels = shape.n * h * w;
    flops = 2.0 * static_cast<double>(shape.n * shape.h.output * shape.w.output) *
            static_cast<double>(shape.groups * in * out * shape.h.kernel * shape.w.kernel);
  }
};

bool winograd_pays(const ConvShape& shape, ConvDirection direction, const Direction& d) {
  if (!is_3x3(shape.h) || !is_3x3(shape.w)) return false;
  const bool weight = direction == ConvDirection::kBackwardWeight;
  const int64_t least = shape.groups > 1 && shape.channels_last ? 2 * kFewChannels : kFewChannels;
  if (d.from < least || (weight && d.to < least)) return false;
  const auto tiles =
      static_cast<double>(shape.n * conv_ceil_divide(d.h, 4) * conv_ceil_divide(d.w, 4));
  return 9.0 * static_cast<double>(d.pixels) >
         kTileTerms * tiles + (weight ? kPackedGradTerms : kPackedTerms);
}

// Bytes of a thread's scratch in a direct sum: the sources of a row of a block, which large
// dilations and kernels let grow (conv_direct_cpu.h), or the part of a weight that is packed at a
// time.
int64_t direct_scratch_bytes(const ConvShape& shape, ConvDirection direction, int64_t lanes) {
  const bool backward = direction == ConvDirection::kBackwardInput;
  const auto reach = [&](const ConvAxis& axis, int64_t results) {
    const int64_t span = (axis.kernel - 1) * axis.dilation + 1;
    return backward ? (results + span) / axis.stride + 2 : (results - 1) * axis.stride + span;
  };
  const Direction d(shape, direction);
  const int64_t sources = direction == ConvDirection::kBackwardWeight
                              ? 0  // in the workspace
                              : reach(shape.h, backward ? shape.h.stride : 1) *
                                    reach(shape.w, std::min<int64_t>(d.w, 192)) * d.from;
  const int64_t packed = 16 * shape.h.kernel * shape.w.kernel * 2 * lanes;
  return std::max(sources, packed) * static_cast<int64_t>(sizeof(float));
}

// Whether a direct sum is at least as fast as native.
bool direct_pays(const ConvShape& shape, ConvDirection direction, const Direction& d) {
  const bool strided = shape.h.stride > 1 || shape.w.stride > 1;
  const bool one_tap = is_1x1(shape.h) && is_1x1(shape.w);
  if (d.flops < kTinyFlops) return true;
  const int64_t output_pixels = shape.n * shape.h.output * shape.w.output;
  switch (direction) {
    case ConvDirection::kForward:
      if (d.from < kFewChannels || output_pixels < kFewPixels) return false;
      return strided ? !shape.channels_last : d.flops < kSmallFlops;
    case ConvDirection::kBackwardInput:
      if (d.to < kFewChannels || output_pixels < kFewPixels) return false;
      return strided || d.flops < kSmallFlops;
    case ConvDirection::kBackwardWeight:
      if (output_pixels < kFewGradPixels) return false;
      return !shape.channels_last ||
             (!one_tap && d.from >= (shape.groups > 1 ? 2 : 1) * kFewChannels);
  }
  return false;
}

}  // namespace

ConvAlgorithm choose_conv_algorithm(const ConvShape& shape, ConvDirection direction, DType dtype,
                                    bool allow_winograd, CpuIsa isa) {
  if (dtype == DType::kFloat64 || isa == CpuIsa::kDefault) return ConvAlgorithm::kNative;
  const bool half = dtype != DType::kFloat32;
  if (half && isa == CpuIsa::kAvx512) return ConvAlgorithm::kNative;
  if (depthwise_covers(shape, direction)) {
    const bool pays = depthwise_pays(shape, direction, dtype);
    return pays ? ConvAlgorithm::kDepthwise : ConvAlgorithm::kNative;
  }
  const Direction d(shape, direction);
  if (allow_winograd && winograd_pays(shape, direction, d)) return ConvAlgorithm::kWinograd;
  if (isa == CpuIsa::kAvx512) return ConvAlgorithm::kNative;
  const bool unit_stride = shape.h.stride == 1 && shape.w.stride == 1;
  if (is_1x1(shape.h) && is_1x1(shape.w) && !shape.channels_last &&
      (direction == ConvDirection::kForward ||
       (direction == ConvDirection::kBackwardInput && unit_stride))) {
    return ConvAlgorithm::kPointwise;
  }
  if (half || direct_pays(shape, direction, d)) return ConvAlgorithm::kDirect;
  return ConvAlgorithm::kNative;
}

ConvPlan plan_conv_algorithm(const ConvShape& shape, ConvDirection direction,
                             ConvAlgorithm algorithm, int64_t threads, CpuIsa isa) {
  ConvPlan plan{algorithm, 0, 0};
  if (algorithm == ConvAlgorithm::kNative) return plan;
  if (algorithm == ConvAlgorithm::kDepthwise) {
    plan.packed_weight_bytes = depthwise_packed_weight_bytes(shape, direction);
    plan.workspace_bytes = depthwise_workspace_bytes(shape, direction, threads);
    return plan;
  }
  const bool winograd = algorithm == ConvAlgorithm::kWinograd;
  const int64_t lanes = conv_lanes(isa);
  const auto whole = [&](int64_t floats) { return conv_ceil_divide(floats, lanes) * lanes; };
  const Direction d(shape, direction);
  if (!winograd && direct_scratch_bytes(shape, direction, lanes) > kScratchBytes) return {};
  int64_t packed = 0, workspace = 0;  // floats
  if (direction == ConvDirection::kBackwardWeight) {
    workspace =
        weight_workspaces(shape, threads) * (winograd ? winograd_weight_sizes(shape, lanes).floats()
                                                      : weight_sizes(shape, 2 * lanes).floats());
  } else if (winograd) {
    packed = shape.groups * 36 * spread_floats(d.from * whole(d.to));
    const WinogradSizes sizes =
        winograd_sizes(shape.n, d.h, d.w, whole(d.from), whole(d.to), threads);
    if (sizes.shared) workspace = sizes.floats();
  } else {
    packed = shape.groups * shape.h.kernel * shape.w.kernel * d.from * whole(d.to);
  }
  plan.packed_weight_bytes = static_cast<size_t>(packed) * sizeof(float);
  plan.workspace_bytes = static_cast<size_t>(workspace) * sizeof(float);
  if (plan.workspace_bytes > kWorkspaceBytes) return {};
  return plan;
}

}  // namespace fastdl
