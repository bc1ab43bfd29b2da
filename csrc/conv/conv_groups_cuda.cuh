// Groups of few channels, several of which are computed as one: the weight gets zeros between them.
#pragma once

#include "common/dispatch.h"
#include "common/launch.cuh"
#include "common/vector_io.cuh"
#include "conv/conv_cuda_plan.h"

namespace fastdl {

inline constexpr int kExpandThreads = 256;

struct GroupSizes {
  int in, out, taps, merged;  // channels of a group, and groups that become one
};

// [out_channels, taps, in] to [out_channels, taps, merged * in]
template <class T>
__global__ void __launch_bounds__(kExpandThreads)
    conv_expand_weight(const T* weight, GroupSizes sizes, int count, T* expanded) {
  const int i = blockIdx.x * kExpandThreads + threadIdx.x;
  if (i >= count) return;
  const int row = i / (sizes.merged * sizes.in), c = i - row * sizes.merged * sizes.in;
  const int group = row / (sizes.taps * sizes.out) % sizes.merged, from = c - group * sizes.in;
  const bool inside = static_cast<unsigned>(from) < static_cast<unsigned>(sizes.in);
  expanded[i] = inside ? weight[static_cast<int64_t>(row) * sizes.in + from] : narrow<T>(0);
}

// Makes the arguments those of the wider groups, whose weight is in the workspace.
template <class Args>
Status merge_groups(Args& args, const ConvCudaPlan& plan, const CudaTarget& target) {
  if (plan.merged_groups == 1) return {};
  const ConvShape& shape = args.shape;
  const GroupSizes sizes{static_cast<int>(shape.in_channels / shape.groups),
                         static_cast<int>(shape.out_channels / shape.groups),
                         static_cast<int>(shape.h.kernel * shape.w.kernel), plan.merged_groups};
  const int64_t count = shape.out_channels * sizes.taps * sizes.merged * sizes.in;
  const LaunchShape launch_shape{ceil_divide(count, int64_t{kExpandThreads}), kExpandThreads};
  Status status;
  const auto expand = [&]<class T> {
    status = launch(conv_expand_weight<T>, launch_shape, target,
                    static_cast<const T*>(args.packed_weight), sizes, static_cast<int>(count),
                    static_cast<T*>(args.workspace));
  };
  args.dtype == DType::kFloat32 ? expand.template operator()<float>()
                                : expand.template operator()<__half>();  // bits alone
  args.packed_weight = args.workspace;
  args.shape.groups /= plan.merged_groups;
  return status;
}

}  // namespace fastdl
