// The barrier of a cluster's blocks; a block without a cluster is one of its own.
#pragma once

#include <cstdint>
#include <vector>

#include "launch.h"

namespace fastdl::emulator {

class Block;

class Cluster {
 public:
  Cluster(int blocks, int threads) { reset(blocks, threads); }
  void reset(int blocks, int threads);  // of all blocks

  // ---- by running threads
  void arrive(const void* pc);
  void wait(const void* pc);
  void thread_ended();

  void set_member(int rank, Block* block) { members_[rank] = block; }
  Block& member(int rank) const { return *members_[rank]; }
  int size() const { return static_cast<int>(members_.size()); }
  bool all_have_begun() const { return phase_ != 0; }
  // Stamps of a member's warps that the last barrier made known to all.
  const uint32_t* known(int rank) const { return known_[rank].warps; }

 private:
  struct OfWarps {
    uint32_t warps[kMostWarps] = {};
  };

  void complete();

  std::vector<Block*> members_;
  int expected_, arrived_;
  uint32_t phase_ = 0;
  std::vector<OfWarps> arriving_, known_;
};

}  // namespace fastdl::emulator
