// What a CUDA launcher is told of the GPU it launches on, and what it answers.
#pragma once

namespace fastdl {

// The stream to launch on, and what choose_plan() needs to know of its GPU.
struct CudaTarget {
  void* stream;         // a cudaStream_t
  int multiprocessors;  // of the GPU
  int capability;       // 10 * major + minor: 80, 90
};

// cudaSuccess (0), or the error of a launch. Errors of a running kernel come later, with the next
// synchronisation.
struct [[nodiscard]] Status {
  int cuda_error = 0;
  bool ok() const { return cuda_error == 0; }
};

}  // namespace fastdl
