// Which accesses are ordered: what a thread knows of the others' progress. All threads of a warp
// come to a block's barriers, so knowledge across warps is kept by warp; __syncwarp() orders lanes.
#pragma once

#include <cstdint>
#include <cstring>

#include "launch.h"

namespace fastdl::emulator {

// A thread's own time: goes on when others may learn of what it did before.
struct Stamps {
  uint32_t barrier = 1, warp = 1;
};

struct WarpClocks {
  uint32_t known[kMostWarps];  // barrier stamps of each warp up to which its accesses came before
  // Lanes' warp stamps: one for all while only whole warps have met, then each lane's knowledge.
  bool uniform;
  uint32_t lanes_known;
  uint32_t lane_known[kWarp][kWarp];

  void reset() {
    std::memset(known, 0, sizeof(known));
    uniform = true;
    lanes_known = 0;
  }
  // The access of the lane at this stamp came before what `lane` does now.
  bool knows(int lane, int other_lane, uint32_t stamp) const {
    return stamp <= (uniform ? lanes_known : lane_known[lane][other_lane]);
  }
  // `mask` have met; `stamps` are their warp stamps, which go on.
  void join_lanes(uint32_t mask, bool all, Stamps* const (&stamps)[kWarp]);
};

}  // namespace fastdl::emulator
