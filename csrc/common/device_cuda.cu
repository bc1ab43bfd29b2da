// A kernel that does nothing: CUDA can load it on exactly the GPUs on which it can load the others.
#include <cuda_runtime.h>

#include "common/device_cuda.h"

namespace fastdl {
namespace {

__global__ void do_nothing() {}

cudaError_t load_kernel() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, do_nothing);
}

}  // namespace

const char* why_cuda_device_not_covered(int device) {
  int current = 0;
  cudaError_t error = cudaGetDevice(&current);
  if (error == cudaSuccess) error = cudaSetDevice(device);
  if (error == cudaSuccess) {
    error = load_kernel();
    cudaSetDevice(current);
  }
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();  // CUDA keeps the last error: the next caller must not take it for its own
  return cudaGetErrorString(error);
}

}  // namespace fastdl
