#include "cluster.h"

#include <algorithm>

#include "block.h"

namespace fastdl::emulator {

void Cluster::reset(int blocks, int threads) {
  members_.assign(static_cast<size_t>(blocks), nullptr);
  expected_ = threads;
  arrived_ = 0;
  phase_ = 0;
  arriving_.assign(static_cast<size_t>(blocks), {});
  known_.assign(static_cast<size_t>(blocks), {});
}

void Cluster::arrive(const void* pc) {
  Outside outside;
  Block& block = *current.block;
  Thread& thread = block.self();
  if (thread.arrived_at_cluster) {
    block.report({Kind::kDivergentBarrier, pc, "arrives at the cluster's barrier twice", {}});
    block.stop();
  }
  thread.arrived_at_cluster = true;
  thread.cluster_phase = phase_;
  uint32_t& stamp = arriving_[block.rank_in_cluster()].warps[thread.warp];
  stamp = std::max(stamp, thread.stamps.barrier++);
  if (++arrived_ == expected_) complete();
}

void Cluster::wait(const void* pc) {
  Outside outside;
  Block& block = *current.block;
  Thread& thread = block.self();
  if (!thread.arrived_at_cluster) {
    block.report(
        {Kind::kDivergentBarrier, pc, "waits at the cluster's barrier but never arrived", {}});
    block.stop();
  }
  if (thread.cluster_phase == phase_) block.suspend(State::kAtCluster, pc);
  thread.arrived_at_cluster = false;
  WarpClocks& clocks = block.own_warp().clocks;
  for (int w = 0; w < block.warp_count(); ++w) {
    clocks.known[w] = std::max(clocks.known[w], known_[block.rank_in_cluster()].warps[w]);
  }
}

void Cluster::complete() {
  arrived_ = 0;
  ++phase_;
  known_ = arriving_;
  for (Block* member : members_) member->wake_from_cluster();
}

void Cluster::thread_ended() {
  --expected_;
  if (arrived_ > 0 && arrived_ == expected_) complete();
}

void Block::access_by_other(uintptr_t address, size_t bytes, const SharedAccess& access) {
  Block& other = *current.block;
  const char* wrong = !cluster_->all_have_begun()
                          ? "may not have begun: no barrier of the cluster yet"
                      : has_ended() ? "has ended"
                                    : nullptr;
  if (wrong) {
    report({Kind::kEndedBlock,
            access.pc,
            std::string("accesses the shared memory of a block that ") + wrong,
            {}});
    other.stop();
  }
  const Thread& thread = other.self();
  auto& last = accesses_of_others_[static_cast<size_t>(other.rank_ * kMostWarps + thread.warp)];
  last = {thread.stamps.barrier, access.pc, thread.number};
  shadow_.access(address, bytes, access);
}

// The block's last thread has ended: all who accessed its shared memory must have told it, by a
// barrier of the cluster, that they are done.
void Block::check_accesses_of_others() {
  for (size_t i = 0; i < accesses_of_others_.size(); ++i) {
    const int rank = static_cast<int>(i) / kMostWarps, warp = static_cast<int>(i) % kMostWarps;
    const AccessOfOther& last = accesses_of_others_[i];
    if (last.stamp <= cluster_->known(rank)[warp]) continue;
    report({Kind::kEndedBlock,
            nullptr,
            "ends while its shared memory may still be accessed",
            {last.pc, rank, last.thread}});
  }
}

void cluster_arrive() { current.block->cluster().arrive(__builtin_return_address(0)); }

void cluster_wait() { current.block->cluster().wait(__builtin_return_address(0)); }

int cluster_rank() { return current.block->rank_in_cluster(); }

int cluster_size() { return current.block->cluster().size(); }

void* map_shared(void* shared, int rank) {
  Outside outside;
  Block& block = *current.block;
  if (rank < 0 || rank >= block.cluster().size()) {
    block.report({Kind::kOutOfBounds,
                  __builtin_return_address(0),
                  "maps the shared memory of block " + std::to_string(rank) + " of a cluster of " +
                      std::to_string(block.cluster().size()),
                  {}});
    block.stop();
  }
  const uintptr_t offset = reinterpret_cast<uintptr_t>(shared) - block.shadow().low();
  return reinterpret_cast<void*>(block.cluster().member(rank).shadow().low() + offset);
}

}  // namespace fastdl::emulator
