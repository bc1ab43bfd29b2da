// Which kernel computes a convolution on the CPU, and what memory it takes.
#include "conv/conv_weight.h"

namespace fastdl {
namespace {

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

ConvAlgorithm choose(const ConvShape& shape, ConvDirection direction, DType dtype,
                     bool allow_winograd) {
  if (dtype == DType::kFloat64) return ConvAlgorithm::kNative;
  const auto is_3x3 = [](const ConvAxis& axis) {
    return axis.kernel == 3 && axis.stride == 1 && axis.dilation == 1;
  };
  if (allow_winograd && shape.groups == 1 && is_3x3(shape.h) && is_3x3(shape.w)) {
    return ConvAlgorithm::kWinograd;
  }
  const auto is_1x1 = [](const ConvAxis& axis) { return axis.kernel == 1 && axis.padding == 0; };
  const bool strided = shape.h.stride > 1 || shape.w.stride > 1;
  if (is_1x1(shape.h) && is_1x1(shape.w) && !shape.channels_last &&
      direction != ConvDirection::kBackwardWeight &&
      !(strided && direction == ConvDirection::kBackwardInput)) {
    return ConvAlgorithm::kPointwise;
  }
  return ConvAlgorithm::kDirect;
}

}  // namespace

ConvPlan plan_conv_cpu(const ConvShape& shape, ConvDirection direction, DType dtype,
                       bool allow_winograd, int64_t threads, CpuIsa isa) {
  ConvPlan plan;
  plan.algorithm = choose(shape, direction, dtype, allow_winograd);
  const int64_t lanes = conv_lanes(isa);
  if (direction == ConvDirection::kBackwardWeight) {
    if (plan.algorithm == ConvAlgorithm::kWinograd) {
      plan.workspace_bytes = winograd_weight_sizes(shape, lanes).floats() * sizeof(float);
    } else if (plan.algorithm == ConvAlgorithm::kDirect) {
      plan.workspace_bytes = weight_sizes(shape, 2 * lanes).floats() * sizeof(float);
    }
    return plan;
  }
  const bool backward = direction == ConvDirection::kBackwardInput;
  const int64_t in = shape.in_channels / shape.groups, out = shape.out_channels / shape.groups;
  const int64_t from = backward ? out : in, to_width = round_up(backward ? in : out, lanes);
  const int64_t from_width = round_up(from, lanes);
  if (plan.algorithm == ConvAlgorithm::kDirect || plan.algorithm == ConvAlgorithm::kPointwise) {
    plan.packed_weight_bytes =
        shape.groups * shape.h.kernel * shape.w.kernel * from * to_width * sizeof(float);
  } else if (plan.algorithm == ConvAlgorithm::kWinograd) {
    plan.packed_weight_bytes = 36 * from * to_width * sizeof(float);
    const WinogradSizes sizes =
        winograd_sizes(shape.n, backward ? shape.h.input : shape.h.output,
                       backward ? shape.w.input : shape.w.output, from_width, to_width, threads);
    if (sizes.shared) plan.workspace_bytes = sizes.floats() * sizeof(float);
  }
  return plan;
}

}  // namespace fastdl
