// What the lanes of a warp do together: the last one to come does it for all.
#include <bit>
#include <cstdio>

#include "block.h"

namespace fastdl::emulator {
namespace {

std::string lanes_text(uint32_t mask) {
  char text[16];
  std::snprintf(text, sizeof(text), "0x%08x", mask);
  return text;
}

struct ShuffleLane {
  Shuffle mode;
  uint64_t value;
  int source, width;
};

void finish_shuffle(Block&, Warp&, Collective& all) {
  uint64_t values[kWarp];
  for (uint32_t left = all.arrived; left != 0; left &= left - 1) {
    const int lane = std::countr_zero(left);
    values[lane] = static_cast<ShuffleLane*>(all.brought[lane])->value;
  }
  for (uint32_t left = all.arrived; left != 0; left &= left - 1) {
    const int lane = std::countr_zero(left);
    auto& mine = *static_cast<ShuffleLane*>(all.brought[lane]);
    const int begin = lane & -mine.width, end = begin + mine.width;
    int source = lane;
    switch (mine.mode) {
      case Shuffle::kIndex:
        source = begin + (mine.source & (mine.width - 1));
        break;
      case Shuffle::kUp:
        source = lane - mine.source < begin ? lane : lane - mine.source;
        break;
      case Shuffle::kDown:
        source = lane + mine.source >= end ? lane : lane + mine.source;
        break;
      case Shuffle::kXor:
        source = (lane ^ mine.source) >= end ? lane : lane ^ mine.source;
        break;
    }
    // What a lane outside the mask would give is undefined: bits that are NaN as a float.
    mine.value = all.arrived >> source & 1 ? values[source] : ~uint64_t{0};
  }
}

struct VoteLane {
  bool predicate;
  uint32_t result;
};

void finish_vote(Block&, Warp&, Collective& all) {
  uint32_t result = 0;
  for (uint32_t left = all.arrived; left != 0; left &= left - 1) {
    const int lane = std::countr_zero(left);
    result |= uint32_t{static_cast<VoteLane*>(all.brought[lane])->predicate} << lane;
  }
  for (uint32_t left = all.arrived; left != 0; left &= left - 1) {
    static_cast<VoteLane*>(all.brought[std::countr_zero(left)])->result = result;
  }
}

void finish_barrier(Block& block, Warp& warp, Collective& all) {
  const int first = block.self().warp * kWarp;
  Stamps* stamps[kWarp];
  for (int lane = 0; lane < kWarp; ++lane) stamps[lane] = &block.thread(first + lane).stamps;
  warp.clocks.join_lanes(all.arrived, (all.arrived | warp.gone) == ~0u, stamps);
}

}  // namespace

void Block::meet(Meeting meeting, unsigned mask, void* brought,
                 void (*finish)(Block&, Warp&, Collective&), const void* pc) {
  Outside outside;
  Thread& thread = self();
  Warp& warp = own_warp();
  const uint32_t lane_bit = 1u << thread.lane;
  if (!(mask & lane_bit)) {
    report({Kind::kWarpCollective,
            pc,
            "the mask " + lanes_text(mask) + " lacks the calling lane",
            {}});
    stop();
  }
  if (mask & warp.gone) {
    report({Kind::kWarpCollective,
            pc,
            "the mask " + lanes_text(mask) +
                " names lanes that have ended or never existed: " + lanes_text(mask & warp.gone),
            {}});
    mask &= ~warp.gone;
  }
  Collective* all = nullptr;
  for (int i = 0; i < warp.collective_count; ++i) {
    Collective& candidate = warp.collectives[i];
    if (candidate.mask == mask && candidate.meeting == meeting) {
      all = &candidate;
    } else if ((candidate.mask & lane_bit) && (candidate.arrived & mask)) {
      report({Kind::kWarpCollective,
              pc,
              "lanes wait for each other in different calls or with different masks: " +
                  lanes_text(mask) + " here, " + lanes_text(candidate.mask) + " there",
              {candidate.pc, rank_in_cluster(),
               thread.warp * kWarp + std::countr_zero(candidate.arrived)}});
      stop();
    }
  }
  if (!all) {
    all = &warp.collectives[warp.collective_count++];
    all->meeting = meeting;
    all->mask = mask;
    all->arrived = all->places = 0;
    all->pc = pc;
  }
  all->arrived |= lane_bit;
  all->brought[thread.lane] = brought;
  if (all->arrived != all->mask) {
    all->places |= thread.place;
    suspend(State::kAtCollective, pc);
  } else {
    finish(*this, warp, *all);
    make_runnable(warp, all->places);
    const Collective& last = warp.collectives[--warp.collective_count];
    if (all != &last) *all = last;
  }
}

// A lane has ended: nobody may wait for it any more.
void Block::drop_from_collectives(Warp& warp, uint32_t lane_bit) {
  for (int i = 0; i < warp.collective_count; ++i) {
    Collective& all = warp.collectives[i];
    if (!(all.mask & lane_bit)) continue;
    report({Kind::kWarpCollective,
            all.pc,
            "lanes wait here for a lane that has ended, their mask is " + lanes_text(all.mask),
            {}});
    stop();
  }
}

uint64_t shuffle(Shuffle mode, unsigned mask, uint64_t value, int source, int width) {
  ShuffleLane lane{mode, value, source, width};
  current.block->meet(Meeting::kShuffle, mask, &lane, finish_shuffle, __builtin_return_address(0));
  return lane.value;
}

unsigned ballot(unsigned mask, bool predicate) {
  VoteLane lane{predicate, 0};
  current.block->meet(Meeting::kVote, mask, &lane, finish_vote, __builtin_return_address(0));
  return lane.result;
}

void warp_barrier(unsigned mask) {
  current.block->meet(Meeting::kBarrier, mask, nullptr, finish_barrier,
                      __builtin_return_address(0));
}

// The lanes that have not ended: any set of lanes that could be running is allowed.
unsigned active_mask() { return ~current.block->own_warp().gone; }

}  // namespace fastdl::emulator
