// Settings of the emulator, and of the kernels.
#pragma once

#include <cstdint>

#include "../emulator.h"
#include "emulated/runtime_api.h"

namespace fastdl::emulator {

uint64_t next_seed();
bool detectors();
bool host_memory_allowed();
size_t max_dynamic_shared(Kernel kernel);
cudaError_t set_last_error(cudaError_t error);

}  // namespace fastdl::emulator
