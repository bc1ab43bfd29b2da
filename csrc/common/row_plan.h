// How the rows of a tensor are spread over a GPU, for kernels that hold a row in registers.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/cuda_target.h"

namespace fastdl {

enum class RowTeam : int8_t {
  kWarp,     // `team` lanes of a warp have a row
  kBlock,    // a block has one
  kCluster,  // the `parts` blocks of a cluster share one
  kSplit,    // `parts` blocks each reduce a part, a second launch combines and writes
};

struct RowPlan {
  RowTeam kind;
  int vectors;  // that a thread holds
  int team;     // threads of a block that share a row
  int parts;    // blocks that share a row
  int threads;  // of a block
  int64_t blocks;
};

inline int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t next_power_of_two(int64_t n) {
  int64_t power = 1;
  while (power < n) power *= 2;
  return power;
}

// Threads of a block that holds rows, at most: leaves each 80 registers (float64: 128).
constexpr int max_row_threads(bool is_double) { return is_double ? 512 : 768; }

// For rows of `count` vectors of 16 bytes. `held` is how many vectors of a row a thread of a full
// block has registers for: 4 or 8. Threads hold 4 (a warp's also 1 or 2) where that is enough:
// 64 bytes a thread in flight are what keeps the memory busy at half occupancy.
inline RowPlan choose_row_plan(int64_t rows, int64_t count, int held, bool is_double,
                               const CudaTarget& target) {
  constexpr int warp = 32, clustered = 8, warps_together = 256, split_threads = 256;
  const int64_t block = max_row_threads(is_double);
  const auto threads_for = [](int64_t vectors, int64_t each) {
    return static_cast<int>(ceil_divide(ceil_divide(vectors, each), warp) * warp);
  };
  if (count <= warp * held) {
    const int team = static_cast<int>(std::min<int64_t>(warp, next_power_of_two(count)));
    const int each = static_cast<int>(next_power_of_two(ceil_divide(count, team)));
    const int64_t blocks = ceil_divide(rows * team, warps_together);
    return {RowTeam::kWarp, each, team, 1, warps_together, blocks};
  }
  // Blocks of at most `paired` threads leave a multiprocessor room for a second one, which loads
  // while the first reduces. A cluster keeps blocks of long rows that small, and where there are
  // fewer rows than multiprocessors it brings more of them to work on each.
  const int64_t paired = block / 2;
  if (count <= paired * 4) {
    const int threads = threads_for(count, 4);
    return {RowTeam::kBlock, 4, threads, 1, threads, rows};
  }
  int64_t parts = 1;
  if (target.capability >= 90) {
    const int64_t idle = target.multiprocessors / std::max<int64_t>(rows, 1);
    while (parts < clustered &&
           (count > parts * paired * held || 2 * parts <= std::min<int64_t>(idle, count / 1024))) {
      parts *= 2;
    }
  }
  if (count <= parts * block * held) {
    const int threads = threads_for(ceil_divide(count, parts), held);
    return {parts > 1 ? RowTeam::kCluster : RowTeam::kBlock,
            held,
            threads,
            static_cast<int>(parts),
            threads,
            rows * parts};
  }
  // Six blocks a multiprocessor, or one for every 2048 vectors if that is less.
  parts = ceil_divide(6 * int64_t{target.multiprocessors}, std::max<int64_t>(rows, 1));
  parts = std::clamp<int64_t>(parts, 1,
                              std::min<int64_t>(split_threads, ceil_divide(count, int64_t{2048})));
  return {RowTeam::kSplit, 4, split_threads, static_cast<int>(parts), split_threads, rows * parts};
}

}  // namespace fastdl
