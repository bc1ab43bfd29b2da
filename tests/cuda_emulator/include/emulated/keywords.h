// The keywords of CUDA C++.
#pragma once

#define FASTDL_CUDA_EMULATOR 1

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) __attribute__((aligned(bytes)))

// A block runs on one host thread, so what belongs to the block is what belongs to the host thread.
#define __shared__ thread_local
