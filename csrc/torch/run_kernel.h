// Calls the kernel of an op where its tensors are.
#pragma once

#include <ATen/ops/empty.h>

#include "common/cpu_isa.h"
#include "torch/cuda_device.h"

namespace fastdl {

// on_cpu.operator()<isa>(), or on_gpu(target) -> Status. The latter takes its target as `auto`, so
// that a build without CUDA needs no launcher.
template <class OnCpu, class OnGpu>
void run_kernel(const at::Tensor& like, OnCpu&& on_cpu, OnGpu&& on_gpu) {
  if constexpr (kWithCuda) {
    if (is_on_gpu(like)) return launch_on_gpu(like, on_gpu);
  }
  call_best_isa(on_cpu);
}

// Memory for the time of one call. The allocator keeps it until the stream has passed the call.
inline at::Tensor make_scratch(const at::Tensor& like, size_t bytes) {
  return at::empty({static_cast<int64_t>(bytes)}, like.options().dtype(at::kByte));
}

}  // namespace fastdl
