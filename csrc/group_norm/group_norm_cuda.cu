// Group norm on CUDA: which of the kernels of channel_norm_{forward,backward}_cuda.cu run. A column
// is a sample's group for the moments, which is contiguous, and a sample's channel otherwise.
// Forward: moments, statistics, normalise; backward: sums, factors, differentiate. Channels-last
// tensors do not come here: as in torch they are made contiguous first.
#include "common/channel_norm_cuda.h"
#include "common/channel_walk.h"
#include "group_norm/group_norm.h"

namespace fastdl {
namespace {

ChannelWalk walk_of_groups(const GroupNormForwardArgs& args, const CudaTarget& target) {
  const GroupNormShape& shape = args.shape;
  const int64_t length = shape.channels_of_group() * shape.spatial;
  return walk_runs(shape.batch * shape.groups, length, 1, length, length,
                   channel_vector_width(args.dtype, length, {args.input}), target);
}

ChannelWalk walk_of_channels(const GroupNormShape& shape, DType dtype,
                             std::initializer_list<const void*> data, const CudaTarget& target) {
  return walk_runs(shape.batch * shape.channels, shape.spatial, 1, shape.spatial, shape.spatial,
                   channel_vector_width(dtype, shape.spatial, data), target);
}

ChannelWalk walk_of_channels(const GroupNormBackwardArgs& args, const CudaTarget& target) {
  return walk_of_channels(args.shape, args.dtype, {args.grad_output, args.input, args.grad_input},
                          target);
}

size_t statistic_bytes(DType dtype) { return dtype == DType::kFloat64 ? 8 : 4; }

}  // namespace

size_t group_norm_forward_scratch_cuda(const GroupNormForwardArgs& args, const CudaTarget& target) {
  return channel_moments_bytes(walk_of_groups(args, target), args.dtype);
}

Status group_norm_forward_cuda(const GroupNormForwardArgs& args, const CudaTarget& target) {
  const GroupNormShape& shape = args.shape;
  const ChannelWalk walk = walk_of_groups(args, target);
  const ChannelTensors tensors{.input = args.input,
                               .output = args.output,
                               .weight = args.weight,
                               .bias = args.bias,
                               .mean = args.mean,
                               .rstd = args.rstd,
                               .channels = shape.channels,
                               .columns_of_statistic = shape.channels_of_group(),
                               .dtype = args.dtype,
                               .weight_dtype = args.weight_dtype};
  const ChannelStatistics statistics{.moments = args.scratch,
                                     .parts = walk.parts,
                                     .columns = shape.batch * shape.groups,
                                     .mean = args.mean,
                                     .rstd = args.rstd,
                                     .eps = args.eps,
                                     .dtype = args.dtype,
                                     .weight_dtype = args.weight_dtype};
  Status status = channel_moments(tensors, walk, args.scratch, target);
  if (status.ok()) status = channel_statistics(statistics, target);
  if (!status.ok()) return status;
  return channel_normalise(
      tensors, walk_of_channels(shape, args.dtype, {args.input, args.output}, target), target);
}

size_t group_norm_backward_scratch_cuda(const GroupNormBackwardArgs& args,
                                        const CudaTarget& target) {
  return channel_sums_bytes(walk_of_channels(args, target), args.dtype) +
         2 * args.shape.batch * args.shape.groups * statistic_bytes(args.dtype);
}

Status group_norm_backward_cuda(const GroupNormBackwardArgs& args, const CudaTarget& target) {
  const GroupNormShape& shape = args.shape;
  const ChannelWalk walk = walk_of_channels(args, target);
  char* const pull = static_cast<char*>(args.scratch) + channel_sums_bytes(walk, args.dtype);
  char* const offset = pull + shape.batch * shape.groups * statistic_bytes(args.dtype);
  const ChannelTensors tensors{.input = args.input,
                               .grad_output = args.grad_output,
                               .grad_input = args.grad_input,
                               .weight = args.weight,
                               .mean = args.mean,
                               .rstd = args.rstd,
                               .pull = pull,
                               .offset = offset,
                               .channels = shape.channels,
                               .columns_of_statistic = shape.channels_of_group(),
                               .dtype = args.dtype,
                               .weight_dtype = args.weight_dtype};
  const ChannelFactors factors{.sums = args.scratch,
                               .parts = walk.parts,
                               .columns = shape.batch * shape.channels,
                               .channels = shape.channels,
                               .columns_of_statistic = shape.channels_of_group(),
                               .count = shape.channels_of_group() * shape.spatial,
                               .weight = args.weight,
                               .rstd = args.rstd,
                               .grad_weight = args.grad_weight,
                               .grad_bias = args.grad_bias,
                               .pull = pull,
                               .offset = offset,
                               .dtype = args.dtype,
                               .weight_dtype = args.weight_dtype};
  Status status = channel_gradient_sums(tensors, walk, args.scratch, target);
  if (status.ok()) status = channel_gradient_factors(factors, target);
  if (!status.ok() || args.grad_input == nullptr) return status;
  return channel_differentiate(tensors, walk, target);
}

}  // namespace fastdl
