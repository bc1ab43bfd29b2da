// How the backward on the CPU is cut into tasks: a function of the sizes alone, so that results do
// not depend on threads.
//
// Gradients of keys and values are sums over queries, that of a bias over what it is broadcast to.
// A unit is the least that shares such a sum with no other: a key head, or all that share a bias.
// Where that is too few tasks, the queries of a unit are cut into chunks, each with sums of its own
// for keys and values, which are added up in order afterwards.
#pragma once

#include <algorithm>

#include "attention/attention.h"

namespace fastdl {

inline constexpr int64_t kBackwardQueries = 128;  // of a block

struct AttentionBackwardPlan {
  int64_t unit_batches, unit_heads;  // key heads
  int64_t units;
  int64_t blocks;  // of queries of all heads that read a key head
  int64_t chunks, chunk_blocks;

  AttentionBackwardPlan(const AttentionBackwardArgs& args, int64_t row_bytes) {
    constexpr int64_t kTasks = 32, kLeastBlocks = 2, kMostBytes = int64_t{128} << 20;
    const AttentionSizes& s = args.sizes;
    const AttentionStrides& bias = args.grad_bias_strides;
    const bool shared = args.grad_bias != nullptr;
    unit_batches = shared && bias.batch == 0 ? s.batch : 1;
    unit_heads = shared && bias.head == 0 ? s.kv_heads : 1;
    units = s.batch / unit_batches * (s.kv_heads / unit_heads);
    blocks = s.heads_of_a_key() * ((s.queries + kBackwardQueries - 1) / kBackwardQueries);
    const int64_t bytes = s.batch * s.kv_heads * s.keys * row_bytes;  // of a chunk's sums
    chunks = std::min((kTasks + units - 1) / units, (blocks + kLeastBlocks - 1) / kLeastBlocks);
    chunks = std::max<int64_t>(std::min(chunks, kMostBytes / std::max<int64_t>(bytes, 1)), 1);
    if (shared && bias.row == 0) chunks = 1;
    chunk_blocks = (blocks + chunks - 1) / chunks;
    chunks = (blocks + chunk_blocks - 1) / chunk_blocks;
  }
};

}  // namespace fastdl
