// The lists of positions of each row, for the backward of embedding on CUDA.
// The positions i are sorted by index with a stable radix sort of 8 bits a pass (as many passes as
// the vocabulary needs): a warp counts the digits of its run of positions, one block turns the
// counts into offsets, and each warp puts its run in place, in order, lanes with the same digit
// ranked by ballots. Then every position looks at its neighbours: where a row's list begins and
// ends. Integer atomics only, and none that decides an order that matters: the same lists on every
// run. Memory: about 30 bytes an index and pass, and 8 a row, little next to the gradients.
#include <algorithm>
#include <utility>

#include "common/launch.cuh"
#include "common/reduce.cuh"
#include "common/row_plan.h"
#include "embedding/embedding_cuda.cuh"

namespace fastdl {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kDigits = 256, kDigitBits = 8;
constexpr int kScanThreads = 1024;
constexpr int64_t kMaxRuns = 2048;  // of positions, each sorted by a warp

struct SortPlan {
  int64_t runs, run;  // warps, and positions of each
  int passes;
};

SortPlan choose_plan(const EmbeddingIndices& indices) {
  constexpr int64_t shortest = 128;
  const int64_t run = std::max(shortest, ceil_divide(indices.count, kMaxRuns));
  int passes = 1;
  while (indices.vocabulary >> (kDigitBits * passes) != 0) ++passes;
  return {ceil_divide(indices.count, run), run, passes};
}

__device__ __forceinline__ int digit_of(uint32_t row, int pass) {
  return row >> (kDigitBits * pass) & (kDigits - 1);
}

// The row that position i goes to; padding goes behind all others.
__device__ __forceinline__ uint32_t row_of(const EmbeddingBackwardArgs& args, int64_t i) {
  const int64_t index = checked_index(args.indices, i);
  return static_cast<uint32_t>(index == args.padding_idx ? args.indices.vocabulary : index);
}

__global__ void __launch_bounds__(kThreads)
    embedding_clear(EmbeddingLists lists, int64_t vocabulary) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (row < vocabulary) lists.begins[row] = lists.ends[row] = 0;
  if (row == 0) *lists.long_count = 0;
}

__global__ void __launch_bounds__(kThreads)
    embedding_count_digits(EmbeddingBackwardArgs args, EmbeddingLists lists, SortPlan plan,
                           int pass) {
  __shared__ int counts[kWarps][kDigits];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t run = static_cast<int64_t>(blockIdx.x) * kWarps + warp;
  for (int digit = lane; digit < kDigits; digit += kWarp) counts[warp][digit] = 0;
  __syncwarp();
  const int64_t end = min((run + 1) * plan.run, args.indices.count);
  for (int64_t i = run * plan.run + lane; i < end; i += kWarp) {
    uint32_t row;
    if (pass == 0) {
      row = row_of(args, i);
      lists.rows[i] = row;
      lists.positions[i] = static_cast<int32_t>(i);
    } else {
      row = lists.rows[i];
    }
    atomicAdd(&counts[warp][digit_of(row, pass)], 1);
  }
  __syncwarp();
  if (run >= plan.runs) return;
  for (int digit = lane; digit < kDigits; digit += kWarp) {
    lists.digit_counts[digit * plan.runs + run] = counts[warp][digit];
  }
}

// One block: counts become the sums of all counts before them.
__global__ void __launch_bounds__(kScanThreads) embedding_scan(int32_t* counts, int64_t size) {
  __shared__ int of_warps[kWarp];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  int before = 0;
  for (int64_t first = 0; first < size; first += kScanThreads) {
    const int64_t i = first + threadIdx.x;
    const int count = i < size ? counts[i] : 0;
    int sum = count;
    for (int offset = 1; offset < kWarp; offset *= 2) {
      const int other = __shfl_up_sync(kAllLanes, sum, offset);
      if (lane >= offset) sum += other;
    }
    if (lane == kWarp - 1) of_warps[warp] = sum;
    __syncthreads();
    int sum_of_warps = of_warps[lane];
    for (int offset = 1; offset < kWarp; offset *= 2) {
      const int other = __shfl_up_sync(kAllLanes, sum_of_warps, offset);
      if (lane >= offset) sum_of_warps += other;
    }
    const int earlier_warps = __shfl_sync(kAllLanes, sum_of_warps, max(warp - 1, 0));
    if (i < size) counts[i] = before + (warp > 0 ? earlier_warps : 0) + sum - count;
    before += __shfl_sync(kAllLanes, sum_of_warps, kWarp - 1);
    __syncthreads();
  }
}

__global__ void __launch_bounds__(kThreads)
    embedding_place(int64_t count, EmbeddingLists lists, SortPlan plan, int pass) {
  __shared__ int offsets[kWarps][kDigits];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t run = static_cast<int64_t>(blockIdx.x) * kWarps + warp;
  if (run >= plan.runs) return;
  for (int digit = lane; digit < kDigits; digit += kWarp) {
    offsets[warp][digit] = lists.digit_counts[digit * plan.runs + run];
  }
  __syncwarp();
  const int64_t end = min((run + 1) * plan.run, count);
  for (int64_t first = run * plan.run; first < end; first += kWarp) {
    const bool inside = first + lane < end;
    const uint32_t row = inside ? lists.rows[first + lane] : 0;
    const int digit = digit_of(row, pass);
    unsigned same = __ballot_sync(kAllLanes, inside);  // lanes with this digit
    for (int bit = 0; bit < kDigitBits; ++bit) {
      const bool set = digit >> bit & 1;
      const unsigned lanes = __ballot_sync(kAllLanes, set);
      same &= set ? lanes : ~lanes;
    }
    const int rank = __popc(same & ((1u << lane) - 1));
    const int offset = offsets[warp][digit];
    __syncwarp();
    if (inside) {
      lists.next_rows[offset + rank] = row;
      lists.next_positions[offset + rank] = lists.positions[first + lane];
      if (rank == 0) offsets[warp][digit] = offset + __popc(same);
    }
    __syncwarp();
  }
}

// Where the list of each row begins and ends, and which rows have long ones (in any order).
__global__ void __launch_bounds__(kThreads)
    embedding_find_lists(EmbeddingIndices indices, EmbeddingLists lists) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= indices.count) return;
  const uint32_t* const rows = lists.rows;
  const uint32_t row = rows[i];
  if (row >= indices.vocabulary) return;
  if (i == 0 || rows[i - 1] != row) {
    lists.begins[row] = static_cast<int32_t>(i);
    if (i + kLongList < indices.count && rows[i + kLongList] == row) {
      lists.long_rows[atomicAdd(lists.long_count, 1)] = static_cast<int32_t>(row);
    }
  }
  if (i + 1 == indices.count || rows[i + 1] != row) lists.ends[row] = static_cast<int32_t>(i + 1);
}

}  // namespace

size_t divide_embedding_scratch(const EmbeddingBackwardArgs& args, EmbeddingLists& lists) {
  const int64_t count = args.indices.count, rows = args.indices.vocabulary;
  int32_t* next = static_cast<int32_t*>(args.scratch);
  size_t words = 0;
  const auto take = [&](int64_t size) {
    int32_t* const taken = next == nullptr ? nullptr : next + words;
    words += size;
    return taken;
  };
  lists.rows = reinterpret_cast<uint32_t*>(take(count));
  lists.positions = take(count);
  lists.next_rows = reinterpret_cast<uint32_t*>(take(count));
  lists.next_positions = take(count);
  lists.digit_counts = take(kDigits * choose_plan(args.indices).runs);
  lists.begins = take(rows);
  lists.ends = take(rows);
  lists.long_rows = take(count / kLongList + 1);
  lists.long_count = take(1);
  return words * sizeof(int32_t);
}

Status make_embedding_lists(const EmbeddingBackwardArgs& args, EmbeddingLists& lists,
                            const CudaTarget& target) {
  const int64_t count = args.indices.count, rows = args.indices.vocabulary;
  const SortPlan plan = choose_plan(args.indices);
  Status status = launch(embedding_clear, {ceil_divide(rows, int64_t{kThreads}), kThreads}, target,
                         lists, rows);
  const int64_t blocks = ceil_divide(plan.runs, int64_t{kWarps});
  for (int pass = 0; pass < plan.passes && count > 0 && status.ok(); ++pass) {
    status = launch(embedding_count_digits, {blocks, kThreads}, target, args, lists, plan, pass);
    if (!status.ok()) return status;
    status =
        launch(embedding_scan, {1, kScanThreads}, target, lists.digit_counts, kDigits * plan.runs);
    if (!status.ok()) return status;
    status = launch(embedding_place, {blocks, kThreads}, target, count, lists, plan, pass);
    std::swap(lists.rows, lists.next_rows);
    std::swap(lists.positions, lists.next_positions);
  }
  if (status.ok() && count > 0) {
    status = launch(embedding_find_lists, {ceil_divide(count, int64_t{kThreads}), kThreads}, target,
                    args.indices, lists);
  }
  return status;
}

}  // namespace fastdl
