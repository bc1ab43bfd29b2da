// What the stand-in headers call in the emulator. Each is called from a function that is inlined
// into the kernel, so that its return address lies in the kernel's own line.
#pragma once

#include <cstddef>
#include <cstdint>

#include "emulated/vector_types.h"

// Do not change while a thread runs, so the compiler may call them once.
[[gnu::const]] uint3 emulated_thread_index() noexcept;
[[gnu::const]] uint3 emulated_block_index() noexcept;
[[gnu::const]] uint3 emulated_block_size() noexcept;
[[gnu::const]] uint3 emulated_grid_size() noexcept;

namespace fastdl::emulator {

[[gnu::const]] int lane_index() noexcept;

enum class Reduction : uint8_t { kOr, kAnd, kCount };
int block_barrier(const char* file, int line, Reduction reduction, bool predicate);
void named_barrier(int id, int threads, bool wait);

enum class Shuffle : uint8_t { kIndex, kUp, kDown, kXor };
uint64_t shuffle(Shuffle mode, unsigned mask, uint64_t value, int source, int width);
unsigned ballot(unsigned mask, bool predicate);
void warp_barrier(unsigned mask);
unsigned active_mask();
void fence();
[[noreturn]] void trap();

void copy_async(void* shared, const void* global, bool valid);
void commit_copies();
void wait_for_copies(int groups_left);

void load_matrices(uint32_t* registers, int matrices, bool transposed, const void* row);
enum class MatrixType : uint8_t { kBFloat16, kFloat16, kTf32 };
void multiply_matrices(MatrixType type, float (&d)[4], const uint32_t* a, const uint32_t* b);

void cluster_arrive();
void cluster_wait();
int cluster_rank();
int cluster_size();
void* map_shared(void* shared, int rank);

}  // namespace fastdl::emulator
