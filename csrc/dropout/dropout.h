// Contract of dropout: y = keep ? x / (1 - p) : 0 x, with the mask of common/dropout_mask.h. The
// backward is the same function of the gradient.
#pragma once

#include <cstdint>

#include "common/cpu_isa.h"
#include "common/cuda_target.h"
#include "common/dtype.h"

namespace fastdl {

// Elements in memory order, of any alignment.
struct DropoutArgs {
  const void* input;  // [count], dtype
  void* output;       // [count], dtype; may be the input
  int64_t count;
  double p;  // 0 < p < 1
  uint64_t seed;
  DType dtype;
};

template <CpuIsa isa>
void dropout(const DropoutArgs& args);

Status dropout_cuda(const DropoutArgs& args, const CudaTarget& target);

}  // namespace fastdl
