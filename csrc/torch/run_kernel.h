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

// Memory on a GPU for the time of one call: the allocator gives it away again behind that call's
// kernels on the stream. Nothing for no bytes.
class Scratch {
 public:
  Scratch(const at::Tensor& like, size_t bytes) {
    if (bytes == 0) return;
    memory_ = at::empty({static_cast<int64_t>(bytes)}, like.options().dtype(at::kByte));
  }
  void* data() const { return memory_.defined() ? memory_.mutable_data_ptr() : nullptr; }

 private:
  at::Tensor memory_;
};

// The contiguous tensor, copied if a CUDA kernel would find it off the 16 bytes at which the
// allocator's tensors begin: a view into another tensor.
inline at::Tensor aligned_on_gpu(const at::Tensor& contiguous) {
  const bool off = reinterpret_cast<uintptr_t>(contiguous.const_data_ptr()) % 16 != 0;
  return is_on_gpu(contiguous) && off ? contiguous.clone() : contiguous;
}

}  // namespace fastdl
