// Contract of max and average pooling in two dimensions; one dimension has a height of 1.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/cpu_isa.h"
#include "common/cuda_target.h"
#include "common/dtype.h"

namespace fastdl {

// The windows along one dimension: output i has the input elements i * stride - padding +
// t * dilation, for the taps t < kernel that lie inside. Adaptive windows (kernel 0) are
// floor(i * input / output) .. ceil((i + 1) * input / output) - 1, in steps of 1.
struct PoolAxis {
  int64_t input = 1, output = 1;
  int64_t kernel = 1, stride = 1, padding = 0, dilation = 1;
};

// Tensors are contiguous: [outer, h, w, inner]. NCHW has outer = n * c and inner = 1, channels_last
// has outer = n and inner = c.
struct PoolShape {
  int64_t outer, inner;
  PoolAxis h, w;
};

// Of the taps of the widest window; static, so that each instruction set has its own.
static inline int64_t longest_window(const PoolAxis& axis) {
  if (axis.kernel > 0) return axis.kernel;
  const int64_t whole = axis.input / axis.output, rest = axis.input % axis.output;
  const int64_t reach = whole + (rest == 0 ? 0 : axis.output % rest == 0 ? 1 : 2);
  return reach < axis.input ? reach : axis.input;
}

// The offset of an element in its window is t_h * longest_window(w) + t_w. It takes one byte where
// windows have at most 256 taps, else int32.
inline constexpr int64_t kMostTaps = int64_t{1} << 24;
static inline int64_t window_taps(const PoolShape& shape) {
  return longest_window(shape.h) * longest_window(shape.w);
}
static inline bool has_byte_offsets(const PoolShape& shape) { return window_taps(shape) <= 256; }

struct MaxPoolForwardArgs {
  const void* input;  // [outer, h.input, w.input, inner]
  void* output;       // [outer, h.output, w.output, inner]
  void* offsets;      // as output, of the maxima; null when not wanted
  PoolShape shape;
  DType dtype;
};

struct MaxPoolBackwardArgs {
  const void* grad_output;  // as output
  const void* offsets;      // as output
  void* grad_input;         // as input
  PoolShape shape;
  DType dtype;
};

struct MaxPoolIndicesArgs {
  const void* offsets;  // [outer, h.output, w.output, inner]
  int64_t* indices;     // the same: h * w.input + w of each maximum
  PoolShape shape;
};

struct AveragePoolArgs {
  const void* input;  // forward: input; backward: grad_output
  void* output;       // forward: output; backward: grad_input
  PoolShape shape;
  bool count_include_pad;  // sums are divided by the taps inside the padded input
  int64_t divisor;         // or by this one if it is not 0
  DType dtype;
};

template <CpuIsa isa>
void max_pool_forward(const MaxPoolForwardArgs& args);
template <CpuIsa isa>
void max_pool_backward(const MaxPoolBackwardArgs& args);
template <CpuIsa isa>
void max_pool_indices(const MaxPoolIndicesArgs& args);
template <CpuIsa isa>
void average_pool_forward(const AveragePoolArgs& args);
template <CpuIsa isa>
void average_pool_backward(const AveragePoolArgs& args);

Status max_pool_forward_cuda(const MaxPoolForwardArgs& args, const CudaTarget& target);
Status max_pool_backward_cuda(const MaxPoolBackwardArgs& args, const CudaTarget& target);
Status max_pool_indices_cuda(const MaxPoolIndicesArgs& args, const CudaTarget& target);
Status average_pool_forward_cuda(const AveragePoolArgs& args, const CudaTarget& target);
Status average_pool_backward_cuda(const AveragePoolArgs& args, const CudaTarget& target);

}  // namespace fastdl
