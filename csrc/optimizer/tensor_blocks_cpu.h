// The parallel loop over the blocks of a table of tensors.
#pragma once

#include <algorithm>

#include "common/cpu_isa.h"
#include "common/parallel.h"
#include "optimizer/tensor_blocks.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {

// Calls body(entry, start, block) for every block: the elements of its tensor from `start` on, at
// most kTensorBlock. No tensor may be empty.
template <class Entry, class Body>
void for_tensor_blocks(const Entry* table, int64_t count, Body&& body) {
  const Entry* const last = table + count - 1;
  const int64_t blocks = last->first_block + tensor_blocks(last->size);
  // Work worth waking a thread for: four full blocks, or as many small ones as make that up.
  int64_t elements = 0;
  for (const Entry* entry = table; entry <= last; ++entry) elements += entry->size;
  const int64_t grain = (4 * kTensorBlock * blocks + elements - 1) / elements;
  parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) {
    // The last tensor whose first block is not past `begin`.
    const Entry* entry =
        std::upper_bound(table, last + 1, begin,
                         [](int64_t block, const Entry& e) { return block < e.first_block; }) -
        1;
    for (int64_t block = begin; block < end; ++block) {
      if (entry != last && block == entry[1].first_block) ++entry;
      body(*entry, (block - entry->first_block) * kTensorBlock, block);
    }
  });
}

}  // namespace CPU_CAPABILITY
}  // namespace fastdl
