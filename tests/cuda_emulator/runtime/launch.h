// What a launch's blocks share.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "emulated/hooks.h"
#include "emulated/runtime_api.h"

namespace fastdl::emulator {

inline constexpr size_t kSharedWithoutAsking = 48 * 1024;
inline constexpr size_t kMostShared = 227 * 1024;  // dynamic, of a block
inline constexpr int kWarp = 32;
inline constexpr int kMostThreads = 1024;
inline constexpr int kMostWarps = kMostThreads / kWarp;

struct Launch {
  void (*invoke)(const void* arguments);
  const void* arguments;
  size_t arguments_bytes;
  Kernel kernel;
  uint3 grid, block;
  uint3 cluster{1, 1, 1};
  bool cooperative = false;
  size_t dynamic_shared = 0;
  uint64_t seed = 0;
  bool watched = true;       // by the detectors
  bool host_memory = false;  // may be accessed
  std::atomic<int64_t> next_block{0};
  std::atomic<bool> stopped{false};

  int64_t blocks() const { return int64_t{1} * grid.x * grid.y * grid.z; }
  int threads() const { return static_cast<int>(block.x * block.y * block.z); }
  int cluster_blocks() const { return static_cast<int>(cluster.x * cluster.y * cluster.z); }
};

}  // namespace fastdl::emulator
