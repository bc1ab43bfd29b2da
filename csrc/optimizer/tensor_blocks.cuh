// How a block of a kernel finds its tensor in a table, and how a table travels to the GPU.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "common/launch.cuh"
#include "common/reduce.cuh"
#include "optimizer/tensor_blocks.h"

namespace fastdl {

// Part of a table, as the parameter of a kernel (at most 32764 bytes): no copy from pinned memory
// whose lifetime a CUDA graph would depend on.
template <class Entry, int kCount>
struct TablePart {
  Entry entries[kCount];
};

template <class Entry, int kCount>
TablePart<Entry, kCount> table_part(const Entry* table, int64_t first, int64_t count) {
  static_assert(sizeof(TablePart<Entry, kCount>) < 32000);
  TablePart<Entry, kCount> part{};
  std::copy_n(table + first, count, part.entries);
  return part;
}

// The last tensor whose first block, as begins_at(i) gives it, is not past `block`: a search by all
// lanes of a warp, which divide what is left by 32 in each turn.
template <class BeginsAt>
__device__ __forceinline__ int64_t find_tensor(int64_t count, int64_t block,
                                               const BeginsAt& begins_at) {
  const int lane = threadIdx.x % kWarp;
  int64_t first = 0, size = count;
  while (size > 1) {
    const int64_t stride = (size + kWarp - 1) / kWarp, mine = lane * stride;
    const bool begins = mine < size && begins_at(first + mine) <= block;
    const int last = kWarp - 1 - __clz(__ballot_sync(kAllLanes, begins));
    first += last * stride;
    size = min(stride, size - last * stride);
  }
  return first;
}

}  // namespace fastdl
