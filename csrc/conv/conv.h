// Contract of convolution in two dimensions; one dimension has a height of 1.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/cpu_isa.h"
#include "common/cuda_target.h"
#include "common/dtype.h"

namespace fastdl {

// One spatial dimension: output i and tap t meet at input i * stride - padding + t * dilation,
// which is zero outside [0, input). `padding` is that in front; the one behind follows from the
// sizes, and may differ.
struct ConvAxis {
  int64_t input = 1, output = 1;
  int64_t kernel = 1, stride = 1, padding = 0, dilation = 1;
};

// Input [n, in_channels, h.input, w.input] and output [n, out_channels, h.output, w.output] are
// both contiguous or both channels_last. Channels are those of all groups.
struct ConvShape {
  int64_t n, in_channels, out_channels, groups;
  ConvAxis h, w;
  bool channels_last;
};

// weight[o, c, y, x], c of in_channels / groups, lies at o * out + c * in + y * h + x * w.
struct ConvWeightStrides {
  int64_t out, in, h, w;
};

// Which kernel computes; kNative is none of ours.
enum class ConvAlgorithm : int8_t { kNative, kDirect, kPointwise, kWinograd, kDepthwise };
enum class ConvDirection : int8_t { kForward, kBackwardInput, kBackwardWeight };

// output = activation(conv(input, weight) + bias + residual)
struct ConvForwardArgs {
  const void* input;
  const void* packed_weight;  // by conv_pack_weight
  const void* bias;           // [out_channels], or null
  const void* residual;       // as output, or null
  void* output;
  void* workspace;  // of the plan
  ConvShape shape;
  DType dtype;  // of all tensors
  bool relu;
};

struct ConvBackwardInputArgs {
  const void* grad_output;
  const void* packed_weight;  // by conv_pack_weight, for this direction
  void* grad_input;
  void* workspace;
  ConvShape shape;
  DType dtype;
};

struct ConvBackwardWeightArgs {
  const void* input;
  const void* grad_output;
  void* grad_weight;  // [out_channels, in_channels / groups, h.kernel, w.kernel]
  ConvWeightStrides strides;
  void* grad_bias;  // [out_channels], or null; of the CPU's kernels only kDepthwise writes it
  void* workspace;
  ConvShape shape;
  DType dtype;
};

// What a call needs besides its tensors.
struct ConvPlan {
  ConvAlgorithm algorithm = ConvAlgorithm::kNative;
  size_t packed_weight_bytes = 0;  // of the weight in the order the kernel reads it
  size_t workspace_bytes = 0;
};

struct ConvPackArgs {
  const void* weight;
  ConvWeightStrides strides;
  void* packed_weight;
  ConvShape shape;
  ConvDirection direction;
  ConvAlgorithm algorithm;
  DType dtype;
};

// Pure functions of their arguments. `threads` are those that will compute.
ConvAlgorithm choose_conv_algorithm(const ConvShape& shape, ConvDirection direction, DType dtype,
                                    bool allow_winograd, CpuIsa isa);
ConvPlan plan_conv_algorithm(const ConvShape& shape, ConvDirection direction,
                             ConvAlgorithm algorithm, int64_t threads, CpuIsa isa);

template <CpuIsa isa>
void conv_pack_weight(const ConvPackArgs& args);
template <CpuIsa isa>
void conv_forward(const ConvForwardArgs& args, const ConvPlan& plan);
template <CpuIsa isa>
void conv_backward_input(const ConvBackwardInputArgs& args, const ConvPlan& plan);
template <CpuIsa isa>
void conv_backward_weight(const ConvBackwardWeightArgs& args, const ConvPlan& plan);

// ---- CUDA. The packed weight is [out_channels, h.kernel, w.kernel, in_channels / groups] in every
// direction, a contiguous tensor.

enum class ConvMath : int8_t { kIeee, kTf32 };  // how float32 is multiplied
enum class ConvCudaKernel : int8_t { kNative, kGemm, kDepthwise };

struct ConvCudaPlan {
  ConvCudaKernel kernel = ConvCudaKernel::kNative;
  bool channels_last = true;  // what the tensors must be: with another order, after a copy
  ConvMath math = ConvMath::kIeee;
  int tile = 0;           // of kConvTiles in conv_cuda_plan.h
  int splits = 1;         // of the sum over n * h.output * w.output in backward_weight
  int merged_groups = 1;  // that backward_weight computes as one
  size_t workspace_bytes = 0;
};

// With a plan of plan_conv_cuda() (conv_cuda_plan.h) for the same shape and direction that is not
// kNative, and args.shape.channels_last as plan.channels_last says. No size is 0.
Status conv_forward_cuda(const ConvForwardArgs& args, const ConvCudaPlan& plan,
                         const CudaTarget& target);
Status conv_backward_input_cuda(const ConvBackwardInputArgs& args, const ConvCudaPlan& plan,
                                const CudaTarget& target);
Status conv_backward_weight_cuda(const ConvBackwardWeightArgs& args, const ConvCudaPlan& plan,
                                 const CudaTarget& target);

}  // namespace fastdl
