// What the CUDA part of this build can do on the GPUs of this machine, for `python -m fastdl`.
#pragma once

namespace fastdl {

// Why no kernel of this build runs on GPU `device`, or nullptr when they do. Asks CUDA to load a
// kernel there: the one answer that judges compatible architectures and PTX rightly.
#ifdef FASTDL_WITH_CUDA
const char* why_cuda_device_not_covered(int device);

struct CudaDevice {
  int multiprocessors;
  int capability;  // that kernels may use: the GPU's, or of the older PTX they were compiled from
};
// Asks CUDA once for each GPU.
const CudaDevice& cuda_device(int device);
#else
inline const char* why_cuda_device_not_covered(int) { return "fastdl was built without CUDA"; }
#endif

}  // namespace fastdl
