// Depthwise convolution on CUDA, as the launchers of conv.h call it.
#pragma once

#include "conv/conv.h"

namespace fastdl {

Status depthwise_forward_cuda(const ConvForwardArgs& args, const CudaTarget& target);
Status depthwise_backward_input_cuda(const ConvBackwardInputArgs& args, const CudaTarget& target);
Status depthwise_backward_weight_cuda(const ConvBackwardWeightArgs& args, int parts,
                                      const CudaTarget& target);

}  // namespace fastdl
