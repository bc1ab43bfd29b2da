#include "gang.h"

#include <algorithm>

namespace fastdl::emulator {

Gang::Gang(Launch& launch, int members)
    : launch_(launch),
      cluster_(members, members * launch.threads()),
      done_(static_cast<size_t>(members)),
      turn_(static_cast<int>(launch.seed % static_cast<uint64_t>(members))) {}

void Gang::run(int rank, int64_t number) {
  Block& block = Block::here();
  const int members = static_cast<int>(done_.size());
  {
    std::unique_lock lock(mutex_);
    cluster_.set_member(rank, &block);
    if (++ready_ == members) turn_changed_.notify_all();
    turn_changed_.wait(lock, [&] { return ready_ == members && turn_ == rank; });
  }
  block.run(launch_, number, this, launch_.cooperative ? nullptr : &cluster_, rank);
  std::unique_lock lock(mutex_);
  done_[static_cast<size_t>(rank)] = true;
  idle_turns_ = 0;
  next_turn();
}

void Gang::next_turn() {
  const int members = static_cast<int>(done_.size());
  for (int i = 0; i < members; ++i) {
    turn_ = (turn_ + 1) % members;
    if (!done_[static_cast<size_t>(turn_)]) break;
  }
  turn_changed_.notify_all();
}

bool Gang::pass_turn(bool moved) {
  std::unique_lock lock(mutex_);
  idle_turns_ = moved ? 0 : idle_turns_ + 1;
  is_stuck_ |= idle_turns_ > std::count(done_.begin(), done_.end(), false);
  if (is_stuck_) return false;
  const int rank = turn_;
  next_turn();
  turn_changed_.wait(lock, [&] { return turn_ == rank; });
  return !launch_.stopped && !is_stuck_;
}

}  // namespace fastdl::emulator
