// What the CUDA kernels of layer_norm and rms_norm share.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "common/dispatch.h"
#include "common/launch.cuh"
#include "common/row_team.cuh"
#include "common/vector_io.cuh"
#include "layer_norm/layer_norm.h"

namespace fastdl {

// W elements of a weight or bias from column `column` on; `otherwise` where there is none.
template <class P, int W>
__device__ __forceinline__ void load_parameter(const void* data, int64_t column,
                                               Accumulate<P> otherwise,
                                               Accumulate<P> (&values)[W]) {
  if (data != nullptr) {
    load_vector<W>(static_cast<const P*>(data) + column).unpack(values);
  } else {
#pragma unroll
    for (auto& value : values) value = otherwise;
  }
}

// Whether all rows of these arrays, which may be null, begin at a multiple of W elements.
template <int W, class T>
bool rows_are_aligned(int64_t cols, std::initializer_list<const void*> arrays) {
  if (cols % W != 0) return false;
  for (const void* array : arrays) {
    if (shift_of<W>(static_cast<const T*>(array)) != 0) return false;
  }
  return true;
}

inline constexpr int kNormSplitThreads = 256;

// dx and partial_sums for rows that are split into `parts`
Status norm_backward_wide_cuda(const NormBackwardArgs& args, int parts, bool aligned,
                               const CudaTarget& target);

// Calls f.operator()<T, P>() with the types of rows and of weight and bias: two equal ones, or 16
// bits and float.
template <class Args, class F>
void dispatch_norm(const Args& args, F&& f) {
  dispatch_dtype_pair<CudaTypes>(args.dtype, args.weight_dtype, f);
}

}  // namespace fastdl
