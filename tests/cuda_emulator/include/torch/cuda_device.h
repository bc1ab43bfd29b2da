// Stands in for csrc/torch/cuda_device.h in an extension that runs the CUDA kernels in the
// emulator, on CPU tensors: torch's tests of the ops then go through their CUDA glue, without a
// GPU.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <mutex>

#include "common/cuda_target.h"
#include "common/device_cuda.h"
#include "emulator.h"

namespace fastdl {

inline constexpr bool kWithCuda = true;

inline bool is_on_gpu(const at::Tensor& tensor) { return tensor.is_cpu(); }

template <class Launcher>
void launch_on_gpu(const at::Tensor&, Launcher&& launcher) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  emulator::allow_host_memory(true);
  const emulator::Device device = emulator::device();
  const Status status = launcher(CudaTarget{nullptr, device.multiprocessors, device.capability});
  TORCH_CHECK(status.ok(), "the emulated launch failed with CUDA error ", status.cuda_error);
  const auto reports = emulator::take_reports();
  TORCH_CHECK(reports.empty(), reports.empty() ? "" : reports[0].text);
}

inline const char* reason_of_gpu(int) { return nullptr; }

}  // namespace fastdl
