// Checks of the accesses that kernels make through the emulator instead of their own instructions.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastdl::emulator {

void check_alignment(uintptr_t address, size_t alignment, const void* pc,
                     const char* file = nullptr, int line = 0);
void check_global_read(uintptr_t address, size_t bytes, const void* pc);
void check_shared_row(uintptr_t address, size_t bytes, const void* pc);
void begin_shared_copy(uintptr_t address, const void* pc);
void land_shared_copy(uintptr_t address, const void* pc);

}  // namespace fastdl::emulator
