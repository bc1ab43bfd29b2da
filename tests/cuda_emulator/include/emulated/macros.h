// Names that must be macros; included last, after every header of the host that has them too.
#pragma once

#define threadIdx emulated_thread_index()
#define blockIdx emulated_block_index()
#define blockDim emulated_block_size()  // cudaLaunchConfig_t has functions of these names, too
#define gridDim emulated_grid_size()
#define warpSize 32

#define __expf(x) ::fastdl::emulator::fast_exp(x)
#define __exp10f(x) ::fastdl::emulator::fast_exp10(x)
#define __logf(x) ::fastdl::emulator::fast_log(x)
#define __log2f(x) ::fastdl::emulator::fast_log2(x)
#define __sinf(x) ::fastdl::emulator::fast_sin(x)
#define __cosf(x) ::fastdl::emulator::fast_cos(x)
#define __powf(x, y) ::fastdl::emulator::fast_pow(x, y)
#define rsqrtf(x) ::fastdl::emulator::reciprocal_sqrt(static_cast<float>(x))
#define rsqrt(x) ::fastdl::emulator::reciprocal_sqrt(x)
