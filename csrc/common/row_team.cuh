// The teams of threads that share a row, and how a plan becomes one of them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/ptx.cuh"
#include "common/reduce.cuh"
#include "common/row_plan.h"

namespace fastdl {

// A team is the threads that work on one row together. It has a rank, a size, the row, and
//   reduce<Op>(values): every thread gets Op over all threads' values, for each of N values; all
//   threads of the block (of a cluster) must call.

// 1, 2, 4, .. 32 lanes of a warp
class WarpTeam {
 public:
  static constexpr int max_threads(bool) { return 256; }  // of a block, for float64 or others
  // Blocks that a multiprocessor must have registers for: the next rows load while these reduce.
  static constexpr int kMinBlocks = 2;

  __device__ __forceinline__ explicit WarpTeam(int size) : size_(size) {}
  __device__ __forceinline__ int size() const { return size_; }
  __device__ __forceinline__ int rank() const { return threadIdx.x % size_; }
  __device__ __forceinline__ int64_t row() const {
    return static_cast<int64_t>(blockIdx.x) * (blockDim.x / size_) + threadIdx.x / size_;
  }
  template <class Op, class A, int N>
  __device__ __forceinline__ void reduce(A (&values)[N]) {
    warp_reduce<Op>(values, size_);
  }

 private:
  int size_;
};

// A whole block. Reductions take turns between two buffers, so that one barrier each is enough:
// all have read a buffer before they reach the barrier of the next reduction.
class BlockTeam {
 public:
  static constexpr int max_threads(bool is_double) { return max_row_threads(is_double); }
  static constexpr int kMinBlocks = 1;

  __device__ __forceinline__ explicit BlockTeam(int) {}
  __device__ __forceinline__ int size() const { return blockDim.x; }
  __device__ __forceinline__ int rank() const { return threadIdx.x; }
  __device__ __forceinline__ int64_t row() const { return blockIdx.x; }

  template <class Op, class A, int N>
  __device__ __forceinline__ void reduce(A (&values)[N]) {
    __shared__ A of_warps[2][N][kWarp];
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
    warp_reduce<Op>(values);
#pragma unroll
    for (int n = 0; n < N; ++n) {
      if (lane == 0) of_warps[turn_][n][warp] = values[n];
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < N; ++n) {
      values[n] = lane < warps ? of_warps[turn_][n][lane] : Op::template identity<A>();
    }
    warp_reduce<Op>(values);
    turn_ ^= 1;
  }

 private:
  int turn_ = 0;
};

// The blocks of a cluster (capability 90): each writes its result into the shared memory of all.
class ClusterTeam {
 public:
  static constexpr int max_threads(bool is_double) { return max_row_threads(is_double); }
  static constexpr int kMinBlocks = 1;
  static constexpr int kMaxBlocks = 8;  // what every GPU with clusters has

  __device__ __forceinline__ explicit ClusterTeam(int size) : block_(size) {
    ptx::cluster_sync();  // a block that has not started has no shared memory to write into
  }
  __device__ __forceinline__ int size() const { return blockDim.x * ptx::cluster_size(); }
  __device__ __forceinline__ int rank() const {
    return ptx::cluster_rank() * blockDim.x + threadIdx.x;
  }
  __device__ __forceinline__ int64_t row() const { return blockIdx.x / ptx::cluster_size(); }

  template <class Op, class A, int N>
  __device__ __forceinline__ void reduce(A (&values)[N]) {
    __shared__ A of_blocks[2][N][kMaxBlocks];
    const int blocks = ptx::cluster_size();
    block_.reduce<Op>(values);
    if (static_cast<int>(threadIdx.x) < blocks) {
#pragma unroll
      for (int n = 0; n < N; ++n) {
        *ptx::map_shared(&of_blocks[turn_][n][ptx::cluster_rank()], threadIdx.x) = values[n];
      }
    }
    ptx::cluster_sync();
#pragma unroll
    for (int n = 0; n < N; ++n) {
      values[n] = of_blocks[turn_][n][0];
      for (int block = 1; block < blocks; ++block) {
        values[n] = Op()(values[n], of_blocks[turn_][n][block]);
      }
    }
    turn_ ^= 1;
  }

 private:
  BlockTeam block_;
  int turn_ = 0;
};

// The vectors [begin, end) of a row that part `part` of `parts` has.
struct PartOfRow {
  int64_t begin, end;
  __device__ __forceinline__ PartOfRow(int64_t count, int part, int parts)
      : begin(count * part / parts), end(count * (part + 1) / parts) {}
};

// Calls launch_row.operator()<Team, K>() for a plan that holds its rows in registers. A kernel that
// is seldom used may do with kOnlyHeld: one K for all.
template <int kHeld, bool kOnlyHeld = false, class F>
Status dispatch_row_plan(const RowPlan& plan, F&& launch_row) {
  constexpr auto at_least = [](int vectors) { return kOnlyHeld ? kHeld : vectors; };
  switch (plan.kind) {
    case RowTeam::kWarp:
      if (plan.vectors == 1) return launch_row.template operator()<WarpTeam, at_least(1)>();
      if (plan.vectors == 2) return launch_row.template operator()<WarpTeam, at_least(2)>();
      if (plan.vectors == 4) return launch_row.template operator()<WarpTeam, at_least(4)>();
      return launch_row.template operator()<WarpTeam, kHeld>();
    case RowTeam::kBlock:
      if (plan.vectors == 4) return launch_row.template operator()<BlockTeam, at_least(4)>();
      return launch_row.template operator()<BlockTeam, kHeld>();
    case RowTeam::kCluster:
      return launch_row.template operator()<ClusterTeam, kHeld>();
    case RowTeam::kSplit:
      break;
  }
  return {cudaErrorInvalidValue};
}

}  // namespace fastdl
