// The CUDA runtime API, apart from launches.
#include "emulated/runtime_api.h"

#include <cstring>

#include "device_memory.h"
#include "launch.h"
#include "settings.h"

using fastdl::emulator::set_last_error;

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorIllegalAddress:
      return "cudaErrorIllegalAddress";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    case cudaErrorCooperativeLaunchTooLarge:
      return "cudaErrorCooperativeLaunchTooLarge";
    case cudaErrorNotSupported:
      return "cudaErrorNotSupported";
    case cudaErrorInvalidClusterSize:
      return "cudaErrorInvalidClusterSize";
  }
  return "unknown error";
}

const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  return set_last_error(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) return set_last_error(cudaErrorInvalidDevice);
  const fastdl::emulator::Device emulated = fastdl::emulator::device();
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = fastdl::emulator::kMostThreads;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = static_cast<int>(fastdl::emulator::kSharedWithoutAsking);
      break;
    case cudaDevAttrWarpSize:
      *value = fastdl::emulator::kWarp;
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = emulated.multiprocessors;
      break;
    case cudaDevAttrL2CacheSize:
      *value = 32 << 20;
      break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = 2048;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = emulated.capability / 10;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = emulated.capability % 10;
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = static_cast<int>(fastdl::emulator::kMostShared + 1024);
      break;
    case cudaDevAttrCooperativeLaunch:
      *value = 1;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(fastdl::emulator::kMostShared);
      break;
    default:
      return set_last_error(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }

cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  auto& memory = fastdl::emulator::DeviceMemory::instance();
  for (const void* pointer : {const_cast<const void*>(to), from}) {
    const auto address = reinterpret_cast<uintptr_t>(pointer);
    if (memory.contains(address) && !memory.valid(address, bytes)) {
      return set_last_error(cudaErrorInvalidValue);
    }
  }
  if (bytes > 0) std::memmove(to, from, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t) {
  return cudaMemcpy(to, from, bytes, kind);
}

cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  auto& memory = fastdl::emulator::DeviceMemory::instance();
  const auto address = reinterpret_cast<uintptr_t>(to);
  if (memory.contains(address) && !memory.valid(address, bytes)) {
    return set_last_error(cudaErrorInvalidValue);
  }
  if (bytes > 0) std::memset(to, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  return cudaMemset(to, value, bytes);
}

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  *pointer = fastdl::emulator::allocate(bytes);
  return set_last_error(*pointer ? cudaSuccess : cudaErrorMemoryAllocation);
}

cudaError_t cudaFree(void* pointer) {
  return set_last_error(fastdl::emulator::DeviceMemory::instance().release(pointer)
                            ? cudaSuccess
                            : cudaErrorInvalidValue);
}
