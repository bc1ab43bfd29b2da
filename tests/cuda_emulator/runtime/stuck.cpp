// Nothing in the block can go on: says who waits for what.
#include <bit>

#include "block.h"

namespace fastdl::emulator {

void Block::report_stuck() {
  launch_->stopped = true;
  int at_barrier = 0, at_collective = 0, at_cluster = 0, ended = 0, first = -1;
  for (int i = 0; i < launch_->threads(); ++i) {
    const State state = threads_[i].state;
    at_barrier += state == State::kAtBarrier;
    at_collective += state == State::kAtCollective;
    at_cluster += state == State::kAtCluster;
    ended += state == State::kExited;
  }
  const State worst = at_collective > 0 ? State::kAtCollective
                      : at_barrier > 0  ? State::kAtBarrier
                                        : State::kAtCluster;
  for (int i = launch_->threads() - 1; i >= 0; --i) {
    if (threads_[i].state == worst) first = i;
  }
  if (first < 0) return;  // it is another block that is stuck
  running_ = &threads_[first];
  const bool whole_block = worst == State::kAtBarrier && barriers_[0].arrived > 0;
  const Kind kind = worst == State::kAtCollective ? Kind::kWarpCollective
                    : whole_block                 ? Kind::kDivergentBarrier
                                                  : Kind::kDeadlock;
  Whom other;
  for (int i = 0; i < launch_->threads(); ++i) {  // one who is elsewhere
    const Thread& thread = threads_[i];
    if (thread.state == State::kExited || thread.stopped_at == running_->stopped_at) continue;
    other = {thread.stopped_at, rank_, i};
    break;
  }
  current.thread = running_;
  report({kind, running_->stopped_at,
          "waits without end: " + std::to_string(at_barrier) + " threads at barriers, " +
              std::to_string(at_collective) + " at warp functions, " + std::to_string(at_cluster) +
              " at the cluster's barrier, " + std::to_string(ended) + " have ended",
          other});
  current.thread = nullptr;
}

}  // namespace fastdl::emulator
