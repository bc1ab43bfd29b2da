// Launches: checks what the device would check, and gives the blocks to host threads.
#include "launch.h"

#include <memory>
#include <string>

#include "block.h"
#include "gang.h"
#include "pool.h"
#include "settings.h"

namespace fastdl::emulator {
namespace {

struct Refusal {
  cudaError_t error;
  const char* reason;
};

Refusal refusal_of(const Launch& launch) {
  const uint3 grid = launch.grid, block = launch.block, cluster = launch.cluster;
  if (int64_t{1} * block.x * block.y * block.z > kMostThreads || block.z > 64) {
    return {cudaErrorInvalidConfiguration, "a block has more than 1024 threads"};
  }
  if (launch.threads() == 0 || launch.blocks() == 0) {
    return {cudaErrorInvalidConfiguration, "a launch of nothing"};
  }
  if (grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535) {
    return {cudaErrorInvalidConfiguration, "a grid that is too large"};
  }
  if (launch.dynamic_shared > kMostShared) {
    return {cudaErrorInvalidValue, "more shared memory than the device has"};
  }
  if (launch.dynamic_shared > max_dynamic_shared(launch.kernel)) {
    return {cudaErrorInvalidValue, "more shared memory than cudaFuncSetAttribute allowed it"};
  }
  if (launch.cluster_blocks() > 1) {
    if (device().capability < 90) return {cudaErrorNotSupported, "the device has no clusters"};
    if (launch.cluster_blocks() > 8) {
      return {cudaErrorInvalidClusterSize, "a cluster of more than 8 blocks"};
    }
    if (grid.x % cluster.x || grid.y % cluster.y || grid.z % cluster.z) {
      return {cudaErrorInvalidConfiguration, "a grid that is no multiple of its cluster"};
    }
  }
  if (launch.cooperative &&
      launch.blocks() > int64_t{1} * device().multiprocessors *
                            resident_blocks(launch.threads(), launch.dynamic_shared)) {
    return {cudaErrorCooperativeLaunchTooLarge,
            "a cooperative grid that cannot run at the same time"};
  }
  return {cudaSuccess, nullptr};
}

// The number of the block with this rank in a cluster.
int64_t block_of_cluster(const Launch& launch, int64_t cluster, int rank) {
  const uint3 grid = launch.grid, size = launch.cluster;
  const int64_t across = grid.x / size.x, down = grid.y / size.y;
  const unsigned r = static_cast<unsigned>(rank);
  const int64_t x = cluster % across * size.x + r % size.x;
  const int64_t y = cluster / across % down * size.y + r / size.x % size.y;
  const int64_t z = cluster / across / down * size.z + r / size.x / size.y;
  return (z * grid.y + y) * grid.x + x;
}

void run_blocks(Launch& launch) {
  const int64_t blocks = launch.blocks();
  if (launch.cooperative || launch.cluster_blocks() > 1) {
    const int members = static_cast<int>(launch.cooperative ? blocks : launch.cluster_blocks());
    for (int64_t i = 0; i < blocks / members && !launch.stopped; ++i) {
      Gang gang(launch, members);
      Pool::instance().run(members, [&](int rank) {
        gang.run(rank, launch.cooperative ? rank : block_of_cluster(launch, i, rank));
      });
    }
    return;
  }
  const int workers = static_cast<int>(std::min<int64_t>(blocks, Pool::instance().preferred()));
  Pool::instance().run(workers, [&](int) {
    for (int64_t i; !launch.stopped && (i = launch.next_block++) < blocks;) {
      Block::here().run(launch, i, nullptr, nullptr, 0);
    }
  });
}

}  // namespace

int resident_blocks(int threads, size_t dynamic_shared) {
  constexpr int kThreads = 2048, kBlocks = 32;  // of a multiprocessor; registers are not counted
  const int by_shared = static_cast<int>((kMostShared + 1024) / (dynamic_shared + 1024));
  return std::min({kBlocks, kThreads / std::max(threads, 1), by_shared});
}

cudaError_t run_kernel(const cudaLaunchConfig_t& config, Kernel kernel, void (*invoke)(const void*),
                       const void* arguments, size_t arguments_bytes) {
  static std::mutex one_at_a_time;
  std::lock_guard lock(one_at_a_time);
  Launch launch{invoke, arguments, arguments_bytes, kernel, {}, {}};
  launch.grid = {config.grid.x, config.grid.y, config.grid.z};
  launch.block = {config.block.x, config.block.y, config.block.z};
  launch.dynamic_shared = config.dynamicSmemBytes;
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const auto& [id, value] = config.attrs[i];
    if (id == cudaLaunchAttributeCooperative) launch.cooperative = value.cooperative != 0;
    if (id == cudaLaunchAttributeClusterDimension) {
      launch.cluster = {value.clusterDim.x, value.clusterDim.y, value.clusterDim.z};
    }
  }
  launch.seed = next_seed();
  launch.watched = detectors();
  launch.host_memory = host_memory_allowed();
  if (const Refusal refusal = refusal_of(launch); refusal.error != cudaSuccess) {
    report(launch, {Kind::kLaunch, kernel, refusal.reason, {}});
    finish_reports(launch);
    return set_last_error(refusal.error);
  }
  {
    const CrashNotes notes;
    run_blocks(launch);
  }
  finish_reports(launch);
  return set_last_error(launch.stopped ? cudaErrorLaunchFailure : cudaSuccess);
}

}  // namespace fastdl::emulator
