#include "clocks.h"

#include <algorithm>
#include <bit>

namespace fastdl::emulator {

void WarpClocks::join_lanes(uint32_t mask, bool all, Stamps* const (&stamps)[kWarp]) {
  if (all && uniform) {  // nothing but whole warps yet: the stamps of all lanes are equal
    lanes_known = stamps[std::countr_zero(mask)]->warp;
    for (uint32_t left = mask; left != 0; left &= left - 1) {
      ++stamps[std::countr_zero(left)]->warp;
    }
    return;
  }
  if (uniform) {
    for (auto& lane : lane_known) std::fill_n(lane, kWarp, lanes_known);
    uniform = false;
  }
  uint32_t joined[kWarp] = {};
  for (uint32_t left = mask; left != 0; left &= left - 1) {
    const int lane = std::countr_zero(left);
    for (int other = 0; other < kWarp; ++other) {
      joined[other] = std::max(joined[other], lane_known[lane][other]);
    }
    joined[lane] = stamps[lane]->warp++;
  }
  for (uint32_t left = mask; left != 0; left &= left - 1) {
    std::copy_n(joined, kWarp, lane_known[std::countr_zero(left)]);
  }
}

}  // namespace fastdl::emulator
