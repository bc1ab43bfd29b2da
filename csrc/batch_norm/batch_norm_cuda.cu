// Batch norm on CUDA: which of the kernels of channel_norm_{forward,backward}_cuda.cu run. A column
// is a channel. Training: moments, statistics, normalise; sums, factors, differentiate. Evaluation
// without the moments, and without the sums where no parameter wants a gradient.
#include "batch_norm/batch_norm.h"
#include "common/channel_norm_cuda.h"
#include "common/channel_walk.h"

namespace fastdl {
namespace {

ChannelWalk choose_walk(const BatchNormShape& shape, DType dtype,
                        std::initializer_list<const void*> data, const CudaTarget& target) {
  const auto [batch, channels, spatial, channels_last] = shape;
  if (channels_last || spatial == 1) {
    return walk_rows(batch * spatial, channels, channel_vector_width(dtype, channels, data),
                     target);
  }
  return walk_runs(channels, spatial, batch, channels * spatial, spatial,
                   channel_vector_width(dtype, spatial, data), target);
}

ChannelWalk walk_of(const BatchNormForwardArgs& args, const CudaTarget& target) {
  return choose_walk(args.shape, args.dtype, {args.input, args.residual, args.output}, target);
}
ChannelWalk walk_of(const BatchNormBackwardArgs& args, const CudaTarget& target) {
  return choose_walk(
      args.shape, args.dtype,
      {args.grad_output, args.input, args.output, args.grad_input, args.grad_residual}, target);
}

bool needs_sums(const BatchNormBackwardArgs& args) {
  return args.training || args.grad_weight != nullptr || args.grad_bias != nullptr;
}

size_t statistic_bytes(DType dtype) { return dtype == DType::kFloat64 ? 8 : 4; }

}  // namespace

size_t batch_norm_forward_scratch_cuda(const BatchNormForwardArgs& args, const CudaTarget& target) {
  return args.training ? channel_moments_bytes(walk_of(args, target), args.dtype) : 0;
}

Status batch_norm_forward_cuda(const BatchNormForwardArgs& args, const CudaTarget& target) {
  const ChannelWalk walk = walk_of(args, target);
  const ChannelTensors tensors{.input = args.input,
                               .residual = args.residual,
                               .output = args.output,
                               .weight = args.weight,
                               .bias = args.bias,
                               .mean = args.mean,
                               .rstd = args.rstd,
                               .channels = args.shape.channels,
                               .dtype = args.dtype,
                               .weight_dtype = args.weight_dtype,
                               .relu = args.relu};
  const ChannelStatistics statistics{.moments = args.training ? args.scratch : nullptr,
                                     .parts = walk.parts,
                                     .columns = args.shape.channels,
                                     .mean = args.mean,
                                     .rstd = args.rstd,
                                     .running_mean = args.running_mean,
                                     .running_var = args.running_var,
                                     .momentum = args.momentum,
                                     .eps = args.eps,
                                     .dtype = args.dtype,
                                     .weight_dtype = args.weight_dtype};
  Status status;
  if (args.training) status = channel_moments(tensors, walk, args.scratch, target);
  if (status.ok()) status = channel_statistics(statistics, target);
  return status.ok() ? channel_normalise(tensors, walk, target) : status;
}

size_t batch_norm_backward_scratch_cuda(const BatchNormBackwardArgs& args,
                                        const CudaTarget& target) {
  const size_t factors = 2 * args.shape.channels * statistic_bytes(args.dtype);
  return needs_sums(args) ? channel_sums_bytes(walk_of(args, target), args.dtype) + factors : 0;
}

Status batch_norm_backward_cuda(const BatchNormBackwardArgs& args, const CudaTarget& target) {
  const ChannelWalk walk = walk_of(args, target);
  char* const pull = static_cast<char*>(args.scratch) + channel_sums_bytes(walk, args.dtype);
  char* const offset = pull + args.shape.channels * statistic_bytes(args.dtype);
  const ChannelTensors tensors{.input = args.input,
                               .grad_output = args.grad_output,
                               .activated = args.output,
                               .grad_input = args.grad_input,
                               .grad_residual = args.grad_residual,
                               .weight = args.weight,
                               .bias = args.bias,
                               .mean = args.mean,
                               .rstd = args.rstd,
                               .pull = args.training ? pull : nullptr,
                               .offset = args.training ? offset : nullptr,
                               .channels = args.shape.channels,
                               .dtype = args.dtype,
                               .weight_dtype = args.weight_dtype,
                               .relu = args.relu};
  const ChannelFactors factors{.sums = args.scratch,
                               .parts = walk.parts,
                               .columns = args.shape.channels,
                               .channels = args.shape.channels,
                               .columns_of_statistic = 1,
                               .count = args.shape.batch * args.shape.spatial,
                               .weight = args.weight,
                               .rstd = args.rstd,
                               .grad_weight = args.grad_weight,
                               .grad_bias = args.grad_bias,
                               .pull = args.training ? pull : nullptr,
                               .offset = args.training ? offset : nullptr,
                               .dtype = args.dtype,
                               .weight_dtype = args.weight_dtype};
  Status status;
  if (needs_sums(args)) {
    status = channel_gradient_sums(tensors, walk, args.scratch, target);
    if (status.ok()) status = channel_gradient_factors(factors, target);
  }
  if (!status.ok() || (args.grad_input == nullptr && args.grad_residual == nullptr)) return status;
  return channel_differentiate(tensors, walk, target);
}

}  // namespace fastdl
