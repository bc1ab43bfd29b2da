// CUDA as the glue of every op sees it: whether a tensor is on a GPU, and how its kernel is
// launched there. (The tests replace this header by one whose GPU is the emulator.)
#pragma once

#include <ATen/core/Tensor.h>

#include "common/cuda_target.h"
#include "common/device_cuda.h"

#ifdef FASTDL_WITH_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <array>
#include <atomic>
#endif

namespace fastdl {

#ifdef FASTDL_WITH_CUDA

inline constexpr bool kWithCuda = true;

inline bool is_on_gpu(const at::Tensor& tensor) { return tensor.is_cuda(); }

// Calls launcher(target) with the current stream of the GPU that `like` is on.
template <class Launcher>
void launch_on_gpu(const at::Tensor& like, Launcher&& launcher) {
  const c10::cuda::CUDAGuard guard(like.device());
  const CudaDevice& device = cuda_device(like.get_device());
  const CudaTarget target{c10::cuda::getCurrentCUDAStream().stream(), device.multiprocessors,
                          device.capability};
  const Status status = launcher(target);
  C10_CUDA_CHECK(static_cast<cudaError_t>(status.cuda_error));
}

// Why no kernel of this build takes tensors on this GPU, or nullptr. Asks CUDA once a GPU.
inline const char* reason_of_gpu(int device) {
  constexpr int most = 64;
  static std::array<std::atomic<bool>, most> covered{};
  if (device < most && covered[device].load(std::memory_order_relaxed)) return nullptr;
  if (why_cuda_device_not_covered(device) != nullptr) return "no kernel was built for this GPU";
  if (device < most) covered[device].store(true, std::memory_order_relaxed);
  return nullptr;
}

#else

inline constexpr bool kWithCuda = false;
inline bool is_on_gpu(const at::Tensor&) { return false; }
template <class Launcher>
void launch_on_gpu(const at::Tensor&, Launcher&&) {}
inline const char* reason_of_gpu(int) { return "fastdl was built without CUDA"; }

#endif

}  // namespace fastdl
