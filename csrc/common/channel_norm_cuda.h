// The CUDA kernels of batch_norm and group_norm: what they take, and how it is spread over a GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "common/cuda_target.h"
#include "common/dtype.h"

namespace fastdl {

// A column is what has sums of its own: a channel, of batch norm; a sample's channel or group, of
// group norm. Its elements are `runs` runs of neighbours (or, channels last, single elements).
// A team of threads takes part of a tile: one column, or `lanes` neighbouring vectors of columns.
struct ChannelWalk {
  int64_t tiles, tile_stride;  // elements from the start of one to that of the next
  int64_t runs, run_stride;
  int64_t run_vectors;  // of a run
  int64_t parts;        // of a tile
  int64_t vectors;      // of columns in a row: lanes beyond have nothing to do
  int64_t columns;      // in all
  int lanes;            // 1 unless channels last
  int team;             // threads: a warp's or a block's
  int width;            // elements of a vector

  bool by_rows;  // channels last: every element of a vector is of another column
};

inline constexpr int kMaxLanes = 8;  // 128 bytes

// What the elements' kernels read and write; see batch_norm.h and group_norm.h.
struct ChannelTensors {
  const void* input = nullptr;
  const void* residual = nullptr;
  void* output = nullptr;
  const void* grad_output = nullptr;
  const void* activated = nullptr;  // the ReLU's output, where it must be read
  void* grad_input = nullptr;
  void* grad_residual = nullptr;
  const void* weight = nullptr;
  const void* bias = nullptr;
  const void* mean = nullptr;    // of column / columns_of_statistic
  const void* rstd = nullptr;    // the same
  const void* pull = nullptr;    // the same: dx = g weight rstd + (x - mean) pull + offset
  const void* offset = nullptr;  // the same
  int64_t channels = 0;          // column % channels has weight and bias
  int64_t columns_of_statistic = 1;
  DType dtype, weight_dtype;
  bool relu = false;
};

// Bytes of what channel_moments and channel_gradient_sums write
size_t channel_moments_bytes(const ChannelWalk& walk, DType dtype);
size_t channel_sums_bytes(const ChannelWalk& walk, DType dtype);

// Count, mean and sum of squares about it of each part of each column
Status channel_moments(const ChannelTensors& tensors, const ChannelWalk& walk, void* moments,
                       const CudaTarget& target);

// From those mean and rstd of all columns, moving the running statistics (or null); without
// moments from the running statistics.
struct ChannelStatistics {
  const void* moments;  // [parts, columns], or null
  int64_t parts, columns;
  void *mean, *rstd;
  void *running_mean, *running_var;
  double momentum, eps;
  DType dtype, weight_dtype;
};
Status channel_statistics(const ChannelStatistics& args, const CudaTarget& target);

// output = [ReLU] ((input - mean) rstd weight + bias [+ residual])
Status channel_normalise(const ChannelTensors& tensors, const ChannelWalk& walk,
                         const CudaTarget& target);

// The sums of g and g (x - mean) of each part of each column, g = grad_output where the ReLU was
// open
Status channel_gradient_sums(const ChannelTensors& tensors, const ChannelWalk& walk, void* sums,
                             const CudaTarget& target);

// From those the parameters' gradients (null when not wanted), and pull and offset.
struct ChannelFactors {
  const void* sums;        // [parts, columns, 2]
  int64_t parts, columns;  // columns: batch * channels for group_norm, channels for batch_norm
  int64_t channels, columns_of_statistic;
  int64_t count;  // elements that have a statistic
  const void *weight, *rstd;
  void *grad_weight, *grad_bias;
  void *pull, *offset;  // or null: zeros are not written
  DType dtype, weight_dtype;
};
Status channel_gradient_factors(const ChannelFactors& args, const CudaTarget& target);

// grad_input and grad_residual, each where it is wanted
Status channel_differentiate(const ChannelTensors& tensors, const ChannelWalk& walk,
                             const CudaTarget& target);

}  // namespace fastdl
