// __syncthreads() and named barriers.
#include <algorithm>
#include <bit>
#include <cstring>

#include "block.h"
#include "reports.h"

namespace fastdl::emulator {

// Threads are counted one by one, but must come by whole warps.
int Block::meet_at_barrier(int id, int threads, const char* file, int line, Reduction reduction,
                           bool predicate, bool wait, const void* pc) {
  Outside outside;
  Barrier& barrier = barriers_[id];
  Thread& thread = self();
  Warp& warp = own_warp();
  if (barrier.arrived == 0) {
    barrier.expected = threads;
    barrier.file = file;
    barrier.line = line;
    barrier.pc = pc;
    barrier.trues = 0;
    barrier.warps = 0;
    std::memset(barrier.waiting, 0, sizeof(barrier.waiting));
    std::memset(barrier.came, 0, sizeof(barrier.came));
    std::memset(barrier.clocks, 0, sizeof(barrier.clocks));
  } else if (barrier.expected != threads) {
    report({Kind::kDivergentBarrier,
            pc,
            "waits at barrier " + std::to_string(id) + " for " + std::to_string(threads) +
                " threads, others for " + std::to_string(barrier.expected),
            {barrier.pc}});
    stop();
  } else if (barrier.line != line ||
             (file != barrier.file && std::strcmp(file, barrier.file) != 0)) {
    report({Kind::kDivergentBarrier,
            pc,
            "waits at another __syncthreads() than others of its block",
            {barrier.pc}});
  }
  if (!(barrier.warps & 1u << thread.warp)) {
    barrier.warps |= 1u << thread.warp;
    for (int w = 0; w < warp_count_; ++w) {
      barrier.clocks[w] = std::max(barrier.clocks[w], warp.clocks.known[w]);
    }
  }
  barrier.clocks[thread.warp] = std::max(barrier.clocks[thread.warp], thread.stamps.barrier++);
  ++barrier.came[thread.warp];
  barrier.trues += predicate;
  if (wait) barrier.waiting[thread.warp] |= thread.place;
  if (++barrier.arrived < barrier.expected) {
    if (wait) suspend(State::kAtBarrier, pc);
  } else {
    barrier.result = barrier.trues;
    barrier.arrived = 0;
    for (int w = 0; w < warp_count_; ++w) {
      const int lanes = std::popcount(~warps_[w].gone);
      if (lanes == 0 ? barrier.came[w] != 0 : barrier.came[w] % lanes != 0) {
        report({Kind::kDivergentBarrier,
                pc,
                "only some lanes of warp " + std::to_string(w) + " came to barrier " +
                    std::to_string(id),
                {}});
      }
      if (barrier.waiting[w] == 0) continue;
      std::memcpy(warps_[w].clocks.known, barrier.clocks, sizeof(barrier.clocks));
      if (id != 0) make_runnable(warps_[w], barrier.waiting[w]);
    }
    if (id == 0) draw_order();  // all threads are here
    if (wait) suspend(State::kRunnable, pc);
  }
  switch (reduction) {
    case Reduction::kOr:
      return barrier.result != 0;
    case Reduction::kAnd:
      return barrier.result == threads;
    default:
      return barrier.result;
  }
}

}  // namespace fastdl::emulator
