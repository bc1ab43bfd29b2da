// Tensors of any sizes as one row of blocks, which tasks share. A table of them has, for each, its
// `size` and its `first_block`: the number of blocks in all tensors before it.
#pragma once

#include <cstdint>

namespace fastdl {

// Elements that one task takes at a time: of Adam 7 streams of 16 KiB in float32.
inline constexpr int64_t kTensorBlock = 4096;

inline int64_t tensor_blocks(int64_t size) { return (size + kTensorBlock - 1) / kTensorBlock; }

// Blocks of all tensors of a table.
template <class Entry>
int64_t table_blocks(const Entry* table, int64_t count) {
  return count == 0 ? 0 : table[count - 1].first_block + tensor_blocks(table[count - 1].size);
}

}  // namespace fastdl
