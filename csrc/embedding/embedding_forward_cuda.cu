// embedding on CUDA, forward: y[i] = weight[index[i]].
// A team of 1 to 32 lanes of a warp copies a row, kBatch words of 16 bytes a lane at a time, or of
// 4 or 2 bytes where rows do not begin at a multiple of 16. An index that is not in the vocabulary
// stops the kernel. Memory: rows read and written once. Floor: these bytes / copy bandwidth.
#include <algorithm>

#include "common/launch.cuh"
#include "common/reduce.cuh"
#include "common/row_plan.h"
#include "embedding/embedding_cuda.cuh"

namespace fastdl {
namespace {

constexpr int kThreads = 256;
constexpr int kBatch = 4;

template <class Word>
__global__ void __launch_bounds__(kThreads)
    embedding_row_per_team(EmbeddingForwardArgs args, int team) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * (kThreads / team) + threadIdx.x / team;
  if (i >= args.indices.count) return;
  const char* const row =
      static_cast<const char*>(args.weight) + checked_index(args.indices, i) * args.weight_stride;
  const Word* const from = reinterpret_cast<const Word*>(row);
  Word* const to = reinterpret_cast<Word*>(static_cast<char*>(args.output) + i * args.row_bytes);
  const int64_t words = args.row_bytes / sizeof(Word);
  for (int64_t w = threadIdx.x % team; w < words; w += kBatch * team) {
    Word held[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      if (w + k * team < words) held[k] = from[w + k * team];
    }
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      if (w + k * team < words) to[w + k * team] = held[k];
    }
  }
}

template <class Word>
Status launch_rows(const EmbeddingForwardArgs& args, const CudaTarget& target) {
  const int64_t words = std::max<int64_t>(1, args.row_bytes / sizeof(Word));
  const int team = static_cast<int>(std::min<int64_t>(kWarp, next_power_of_two(words)));
  const int64_t blocks = ceil_divide(args.indices.count, int64_t{kThreads / team});
  return launch(embedding_row_per_team<Word>, {blocks, kThreads}, target, args, team);
}

}  // namespace

Status embedding_forward_cuda(const EmbeddingForwardArgs& args, const CudaTarget& target) {
  if (args.indices.count == 0) return {};
  const auto all_at_multiples_of = [&](uintptr_t bytes) {
    return (reinterpret_cast<uintptr_t>(args.weight) | reinterpret_cast<uintptr_t>(args.output) |
            static_cast<uintptr_t>(args.row_bytes) | static_cast<uintptr_t>(args.weight_stride)) %
               bytes ==
           0;
  };
  if (all_at_multiples_of(16)) return launch_rows<uint4>(args, target);
  if (all_at_multiples_of(4)) return launch_rows<uint32_t>(args, target);
  return launch_rows<uint16_t>(args, target);
}

}  // namespace fastdl
