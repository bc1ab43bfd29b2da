// Small functions that kernels call.
#include "emulated/hooks.h"

#include <atomic>

#include "block.h"

using fastdl::emulator::current;

uint3 emulated_thread_index() noexcept { return current.thread->index; }
uint3 emulated_block_index() noexcept { return current.block->index(); }
uint3 emulated_block_size() noexcept { return current.block->launch().block; }
uint3 emulated_grid_size() noexcept { return current.block->launch().grid; }

namespace fastdl {

// All dynamic shared memory that a block can have; launch.cuh declares it.
alignas(1024) thread_local unsigned char dynamic_shared_bytes[emulator::kMostShared];

namespace emulator {

int lane_index() noexcept { return current.thread->lane; }

int block_barrier(const char* file, int line, Reduction reduction, bool predicate) {
  Block& block = *current.block;
  return block.meet_at_barrier(0, block.launch().threads(), file, line, reduction, predicate, true,
                               __builtin_return_address(0));
}

void named_barrier(int id, int threads, bool wait) {
  Block& block = *current.block;
  const void* pc = __builtin_return_address(0);
  if (id < 0 || id >= Block::kBarriers || threads <= 0 || threads % kWarp != 0) {
    Outside outside;
    block.report({Kind::kDeadlock,
                  pc,
                  "there is no barrier " + std::to_string(id) + " for " + std::to_string(threads) +
                      " threads",
                  {}});
    block.stop();
  }
  block.meet_at_barrier(id, threads, nullptr, 0, Reduction::kCount, false, wait, pc);
}

void fence() { std::atomic_thread_fence(std::memory_order_seq_cst); }

void trap() {
  Outside outside;
  current.block->report({Kind::kTrap, __builtin_return_address(0), "__trap()", {}});
  current.block->stop();
}

}  // namespace emulator
}  // namespace fastdl
