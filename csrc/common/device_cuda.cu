// A kernel that does nothing: CUDA can load it on exactly the GPUs on which it can load the others.
#include <cuda_runtime.h>

#include <algorithm>
#include <map>
#include <mutex>

#include "common/device_cuda.h"

namespace fastdl {
namespace {

__global__ void do_nothing() {}

// Calls f on GPU `device`, and makes the current one current again.
template <class F>
cudaError_t on_device(int device, F&& f) {
  int current = 0;
  cudaError_t error = cudaGetDevice(&current);
  if (error == cudaSuccess) error = cudaSetDevice(device);
  if (error == cudaSuccess) {
    error = f();
    cudaSetDevice(current);
  }
  return error;
}

CudaDevice ask(int device) {
  CudaDevice found{1, 80};
  int major = 8, minor = 0;
  cudaDeviceGetAttribute(&found.multiprocessors, cudaDevAttrMultiProcessorCount, device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  found.capability = 10 * major + minor;
  cudaFuncAttributes attributes{};
  const auto load = [&] { return cudaFuncGetAttributes(&attributes, do_nothing); };
  if (on_device(device, load) == cudaSuccess && attributes.ptxVersion > 0) {
    found.capability = std::min(found.capability, attributes.ptxVersion);
  }
  return found;
}

}  // namespace

const CudaDevice& cuda_device(int device) {
  static std::mutex mutex;
  static std::map<int, CudaDevice> known;  // its entries never move
  const std::lock_guard<std::mutex> lock(mutex);
  const auto place = known.find(device);
  return place != known.end() ? place->second : known.emplace(device, ask(device)).first->second;
}

const char* why_cuda_device_not_covered(int device) {
  cudaFuncAttributes attributes;
  const cudaError_t error =
      on_device(device, [&] { return cudaFuncGetAttributes(&attributes, do_nothing); });
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();  // CUDA keeps the last error: the next caller must not take it for its own
  return cudaGetErrorString(error);
}

}  // namespace fastdl
