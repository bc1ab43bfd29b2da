// The one way to launch a kernel, with its dynamic shared memory, cluster or cooperative grid.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "common/cuda_target.h"

namespace fastdl {

struct LaunchShape {
  int64_t blocks;  // at most 2^31 - 1
  int threads;     // of a block
  size_t dynamic_shared = 0;
  int cluster = 1;           // neighbouring blocks that share their shared memory (capability 90)
  bool cooperative = false;  // all blocks run at the same time and may wait for each other
};

inline constexpr size_t kSharedWithoutAsking = 48 * 1024;
inline constexpr int64_t kMaxBlocks = INT32_MAX;

template <class... Parameters>
Status launch(void (*kernel)(Parameters...), const LaunchShape& shape, const CudaTarget& target,
              const std::type_identity_t<Parameters>&... arguments) {
  if (shape.blocks > kMaxBlocks) return {cudaErrorInvalidConfiguration};
  if (shape.dynamic_shared > kSharedWithoutAsking) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shape.dynamic_shared));
    if (error != cudaSuccess) return {error};
  }
  cudaLaunchAttribute attributes[2];
  unsigned count = 0;
  if (shape.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = static_cast<unsigned>(shape.cluster);
    attributes[count].val.clusterDim.y = 1;
    attributes[count++].val.clusterDim.z = 1;
  }
  if (shape.cooperative) {
    attributes[count].id = cudaLaunchAttributeCooperative;
    attributes[count++].val.cooperative = 1;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(shape.blocks));
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = shape.dynamic_shared;
  config.stream = static_cast<cudaStream_t>(target.stream);
  config.attrs = attributes;
  config.numAttrs = count;
  return {cudaLaunchKernelEx(&config, kernel, arguments...)};
}

// The dynamic shared memory of the block, as elements of T.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(1024) unsigned char dynamic_shared_bytes[];
  return reinterpret_cast<T*>(dynamic_shared_bytes);
}

}  // namespace fastdl
