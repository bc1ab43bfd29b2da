// The gradient of embedding's weight on CUDA: dw[v] = the sum of dy[i] over the i with
// index[i] = v, in the order of i; 0 where there is none.
// The positions i are sorted by index with a stable radix sort of 8 bits a pass (as many passes as
// the vocabulary needs): a warp counts the digits of its run of positions, one block turns the
// counts into offsets, and each warp puts its run in place, in order, lanes with the same digit
// ranked by ballots. Then one launch writes all rows: a warp has kHeld vectors of a row in
// registers and adds the gradients of its list. Rows with more than kLong of them are left to
// blocks, whose warps share the list and add their sums in a fixed order. Integer atomics only: the
// same bits on every run. Memory: dy read and dw written once, besides 16 bytes an index and pass.
// Floor: these bytes / copy bandwidth.
#include <algorithm>

#include "common/dispatch.h"
#include "common/launch.cuh"
#include "common/reduce.cuh"
#include "common/row_plan.h"
#include "common/vector_io.cuh"
#include "embedding/embedding_cuda.cuh"

namespace fastdl {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kDigits = 256, kDigitBits = 8;
constexpr int kScanThreads = 1024;
constexpr int kLong = 64;           // gradients of a row that a warp adds alone, at most
constexpr int64_t kMaxRuns = 2048;  // of positions, each sorted by a warp

// The scratch memory. A row of dw has the sorted positions [begin, end).
struct SortMemory {
  uint32_t* rows[2];      // [count], sorted from one into the other
  int32_t* positions[2];  // [count]
  int32_t* digit_counts;  // [kDigits, runs], then where each begins
  int32_t* begins;        // [vocabulary]
  int32_t* ends;          // [vocabulary]
  int32_t* long_rows;     // [count / kLong]
  int32_t* long_count;    // [1]
};

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

__global__ void __launch_bounds__(kThreads) embedding_clear(SortMemory memory, int64_t vocabulary) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (row < vocabulary) memory.begins[row] = memory.ends[row] = 0;
  if (row == 0) *memory.long_count = 0;
}

__global__ void __launch_bounds__(kThreads)
    embedding_count_digits(EmbeddingBackwardArgs args, SortMemory memory, SortPlan plan, int pass) {
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
      memory.rows[0][i] = row;
      memory.positions[0][i] = static_cast<int32_t>(i);
    } else {
      row = memory.rows[pass % 2][i];
    }
    atomicAdd(&counts[warp][digit_of(row, pass)], 1);
  }
  __syncwarp();
  if (run >= plan.runs) return;
  for (int digit = lane; digit < kDigits; digit += kWarp) {
    memory.digit_counts[digit * plan.runs + run] = counts[warp][digit];
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
    embedding_place(int64_t count, SortMemory memory, SortPlan plan, int pass) {
  __shared__ int offsets[kWarps][kDigits];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t run = static_cast<int64_t>(blockIdx.x) * kWarps + warp;
  if (run >= plan.runs) return;
  for (int digit = lane; digit < kDigits; digit += kWarp) {
    offsets[warp][digit] = memory.digit_counts[digit * plan.runs + run];
  }
  __syncwarp();
  const int from = pass % 2, to = 1 - from;
  const int64_t end = min((run + 1) * plan.run, count);
  for (int64_t first = run * plan.run; first < end; first += kWarp) {
    const bool inside = first + lane < end;
    const uint32_t row = inside ? memory.rows[from][first + lane] : 0;
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
      memory.rows[to][offset + rank] = row;
      memory.positions[to][offset + rank] = memory.positions[from][first + lane];
      if (rank == 0) offsets[warp][digit] = offset + __popc(same);
    }
    __syncwarp();
  }
}

// Where the list of each row begins and ends, and which rows have long ones (in any order).
__global__ void __launch_bounds__(kThreads)
    embedding_find_lists(EmbeddingIndices indices, SortMemory memory, int sorted) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= indices.count) return;
  const uint32_t* const rows = memory.rows[sorted];
  const uint32_t row = rows[i];
  if (row >= indices.vocabulary) return;
  if (i == 0 || rows[i - 1] != row) {
    memory.begins[row] = static_cast<int32_t>(i);
    if (i + kLong < indices.count && rows[i + kLong] == row) {
      memory.long_rows[atomicAdd(memory.long_count, 1)] = static_cast<int32_t>(row);
    }
  }
  if (i + 1 == indices.count || rows[i + 1] != row) memory.ends[row] = static_cast<int32_t>(i + 1);
}

// kHeld vectors of W elements of a row, from vector `first` on, in one lane.
template <class T, int W>
struct RowPart {
  static constexpr int kHeld = 16 / W > 4 ? 4 : 16 / W;  // at most 16 sums
  static constexpr int kElements = kHeld * kWarp * W;    // of a warp
  using A = Accumulate<T>;
  A sums[kHeld][W];
  int64_t first, dim;

  __device__ __forceinline__ RowPart(int64_t part, int64_t dim)
      : first(part * kElements + threadIdx.x % kWarp * W), dim(dim) {
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
#pragma unroll
      for (int j = 0; j < W; ++j) sums[k][j] = 0;
    }
  }

  __device__ __forceinline__ bool has(int k) const { return first + k * kWarp * W < dim; }

  // Adds the gradients of positions[begin], positions[begin + step], .. before `end`.
  __device__ __forceinline__ void add(const T* grad, const int32_t* positions, int begin, int end,
                                      int step) {
    constexpr int kAhead = 2;  // rows in flight
    for (int n = begin; n < end; n += kAhead * step) {
      Vector<T, W> loaded[kAhead][kHeld];
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        const int at = n + a * step;
        if (at >= end) break;
        const T* const row = grad + positions[at] * dim + first;
#pragma unroll
        for (int k = 0; k < kHeld; ++k) {
          if (has(k)) loaded[a][k] = load_vector<W>(row + k * kWarp * W);
        }
      }
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        if (n + a * step >= end) break;
#pragma unroll
        for (int k = 0; k < kHeld; ++k) {
          if (!has(k)) continue;
          A values[W];
          loaded[a][k].unpack(values);
#pragma unroll
          for (int j = 0; j < W; ++j) sums[k][j] += values[j];
        }
      }
    }
  }

  __device__ __forceinline__ void store(T* row) const {
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
      if (!has(k)) continue;
      Vector<T, W> packed;
      packed.pack(sums[k]);
      store_vector<W>(row + first + k * kWarp * W, packed);
    }
  }
};

template <class T, int W>
__global__ void __launch_bounds__(kThreads)
    embedding_row_part_per_warp(EmbeddingBackwardArgs args, SortMemory memory, int sorted,
                                int64_t parts) {
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  const int64_t row = warp / parts;
  if (row >= args.indices.vocabulary) return;
  const int begin = memory.begins[row], end = memory.ends[row];
  if (end - begin > kLong) return;
  RowPart<T, W> part(warp % parts, args.dim);
  part.add(static_cast<const T*>(args.grad_output), memory.positions[sorted], begin, end, 1);
  part.store(static_cast<T*>(args.grad_weight) + row * args.dim);
}

template <class T, int W>
__global__ void __launch_bounds__(kThreads)
    embedding_long_row_part_per_block(EmbeddingBackwardArgs args, SortMemory memory, int sorted,
                                      int64_t parts) {
  using Part = RowPart<T, W>;
  __shared__ Accumulate<T> of_warps[kWarps][Part::kHeld * W][kWarp];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t all = *memory.long_count * parts;
  for (int64_t each = blockIdx.x; each < all; each += gridDim.x) {
    const int64_t row = memory.long_rows[each / parts];
    Part part(each % parts, args.dim);
    part.add(static_cast<const T*>(args.grad_output), memory.positions[sorted],
             memory.begins[row] + warp, memory.ends[row], kWarps);
#pragma unroll
    for (int n = 0; n < Part::kHeld * W; ++n) of_warps[warp][n][lane] = part.sums[n / W][n % W];
    __syncthreads();
    if (warp == 0) {
#pragma unroll
      for (int n = 0; n < Part::kHeld * W; ++n) {
        for (int other = 1; other < kWarps; ++other) {
          part.sums[n / W][n % W] += of_warps[other][n][lane];
        }
      }
      part.store(static_cast<T*>(args.grad_weight) + row * args.dim);
    }
    __syncthreads();
  }
}

template <class T, int W>
Status write_rows(const EmbeddingBackwardArgs& args, const SortMemory& memory, int sorted,
                  const CudaTarget& target) {
  const int64_t parts = ceil_divide(args.dim, int64_t{RowPart<T, W>::kElements});
  const int64_t blocks = ceil_divide(args.indices.vocabulary * parts, int64_t{kWarps});
  const Status status = launch(embedding_row_part_per_warp<T, W>, {blocks, kThreads}, target, args,
                               memory, sorted, parts);
  const int64_t most = args.indices.count / (kLong + 1) * parts;
  if (!status.ok() || most == 0) return status;
  return launch(embedding_long_row_part_per_block<T, W>,
                {std::min<int64_t>(most, 4 * target.multiprocessors), kThreads}, target, args,
                memory, sorted, parts);
}

// Cuts the scratch memory into its arrays; returns its bytes.
size_t divide_scratch(const EmbeddingBackwardArgs& args, SortMemory& memory) {
  const int64_t count = args.indices.count, rows = args.indices.vocabulary;
  int32_t* next = static_cast<int32_t*>(args.scratch);
  size_t words = 0;
  const auto take = [&](int64_t size) {
    int32_t* const taken = next == nullptr ? nullptr : next + words;
    words += size;
    return taken;
  };
  for (int side = 0; side < 2; ++side) {
    memory.rows[side] = reinterpret_cast<uint32_t*>(take(count));
    memory.positions[side] = take(count);
  }
  memory.digit_counts = take(kDigits * choose_plan(args.indices).runs);
  memory.begins = take(rows);
  memory.ends = take(rows);
  memory.long_rows = take(count / kLong + 1);
  memory.long_count = take(1);
  return words * sizeof(int32_t);
}

}  // namespace

size_t embedding_backward_scratch_cuda(const EmbeddingBackwardArgs& args, const CudaTarget&) {
  SortMemory memory;
  return divide_scratch(args, memory);
}

Status embedding_backward_cuda(const EmbeddingBackwardArgs& args, const CudaTarget& target) {
  SortMemory memory;
  divide_scratch(args, memory);
  const int64_t count = args.indices.count, rows = args.indices.vocabulary;
  const SortPlan plan = choose_plan(args.indices);
  Status status = launch(embedding_clear, {ceil_divide(rows, int64_t{kThreads}), kThreads}, target,
                         memory, rows);
  const int64_t blocks = ceil_divide(plan.runs, int64_t{kWarps});
  for (int pass = 0; pass < plan.passes && count > 0 && status.ok(); ++pass) {
    status = launch(embedding_count_digits, {blocks, kThreads}, target, args, memory, plan, pass);
    if (!status.ok()) return status;
    status =
        launch(embedding_scan, {1, kScanThreads}, target, memory.digit_counts, kDigits * plan.runs);
    if (!status.ok()) return status;
    status = launch(embedding_place, {blocks, kThreads}, target, count, memory, plan, pass);
  }
  const int sorted = plan.passes % 2;
  if (status.ok() && count > 0) {
    status = launch(embedding_find_lists, {ceil_divide(count, int64_t{kThreads}), kThreads}, target,
                    args.indices, memory, sorted);
  }
  if (!status.ok()) return status;
  dispatch_dtype<CudaTypes>(args.dtype, [&]<class T> {
    constexpr int W = kVectorWidth<T>;
    const bool aligned = args.dim % W == 0 &&
                         shift_of<W>(static_cast<const T*>(args.grad_output)) == 0 &&
                         shift_of<W>(static_cast<const T*>(args.grad_weight)) == 0;
    status = aligned ? write_rows<T, W>(args, memory, sorted, target)
                     : write_rows<T, 1>(args, memory, sorted, target);
  });
  return status;
}

}  // namespace fastdl
