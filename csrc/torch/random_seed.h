// Seeds for kernels that make their own random numbers, drawn from torch's default generators.
#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/core/Tensor.h>

#include <mutex>

#ifdef FASTDL_WITH_CUDA
#include <c10/cuda/CUDAGraphsC10Utils.h>
#endif

namespace fastdl {

// Why no seed can be drawn now for a kernel on the device of this tensor, or nullptr.
inline const char* reason_without_seed([[maybe_unused]] const at::Tensor& like) {
#ifdef FASTDL_WITH_CUDA
  // A captured graph has to draw anew at every replay, which numbers fixed at its capture cannot.
  if (like.is_cuda() &&
      c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None) {
    return "random numbers in a CUDA graph";
  }
#endif
  return nullptr;
}

// 64 bits; advances the default generator of the tensor's device.
inline int64_t draw_seed(const at::Tensor& like) {
  at::Generator generator = at::globalContext().defaultGenerator(like.device());
  const std::lock_guard<std::mutex> lock(generator.mutex());
  if (like.device().is_cpu()) {
    auto* const on_cpu = generator.get<at::CPUGeneratorImpl>();
    return static_cast<int64_t>(on_cpu->random64());
  }
  // Seed and offset are all the state of a generator on a GPU; offsets come in fours.
  at::GeneratorImpl* const on_gpu = generator.unsafeGetGeneratorImpl();
  const uint64_t offset = on_gpu->get_offset();
  on_gpu->set_offset(offset + 4);
  uint64_t mixed = on_gpu->current_seed() + (offset + 1) * 0x9e3779b97f4a7c15;  // SplitMix64
  mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9;
  mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111eb;
  return static_cast<int64_t>(mixed ^ mixed >> 31);
}

}  // namespace fastdl
