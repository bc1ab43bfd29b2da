// Blocks that run at the same time: a cluster, or a cooperative grid. Each has a host thread, but
// only one runs, until none of its threads can go on: then it is the next block's turn. So an order
// can be repeated, and that nobody can go on is known, not guessed.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <vector>

#include "block.h"
#include "cluster.h"

namespace fastdl::emulator {

class Gang {
 public:
  Gang(Launch& launch, int members);

  // Runs block `number` as the member of this rank, on a host thread of its own.
  void run(int rank, int64_t number);

  // Returns when it is this block's turn again; false when no block can go on. `moved`: its threads
  // have done something, or look at memory again and again.
  bool pass_turn(bool moved);
  bool is_stuck() const { return is_stuck_; }

 private:
  void next_turn();

  Launch& launch_;
  Cluster cluster_;
  std::vector<bool> done_;
  std::mutex mutex_;
  std::condition_variable turn_changed_;
  int turn_, ready_ = 0, idle_turns_ = 0;
  bool is_stuck_ = false;
};

}  // namespace fastdl::emulator
