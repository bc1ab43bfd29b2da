// Barriers that not all threads reach, and what barriers compute.
#include "common/ptx.cuh"
#include "planted.h"
#include "tests.h"

namespace fastdl::testing {
namespace {

template <bool kPlanted>
__global__ void barrier_after_return(float* y, int* planted_line) {
  if (threadIdx.x == 70 && kPlanted) return;
  (PLANTED, __syncthreads());
  y[threadIdx.x] = 1;
}

template <bool kPlanted>
__global__ void barrier_in_a_branch(float* y, int* planted_line) {
  if (threadIdx.x < 64 || !kPlanted) {
    (PLANTED, __syncthreads());
  }
  y[threadIdx.x] = 1;
}

// All wait, but at different barriers.
template <bool kPlanted>
__global__ void barriers_in_both_branches(float* y, int* planted_line) {
  if (threadIdx.x < 64 || !kPlanted) {
    (PLANTED, __syncthreads());
    y[threadIdx.x] = 1;
  } else {
    __syncthreads();
    y[threadIdx.x] = 2;
  }
}

template <bool kPlanted>
__global__ void too_few_for_a_named_barrier(float* y, int* planted_line) {
  if (threadIdx.x < 64) (PLANTED, ptx::named_barrier_sync(3, kPlanted ? 128 : 64));
  y[threadIdx.x] = 1;
}

template <bool kPlanted>
__global__ void crossed_named_barriers(float* y, int* planted_line) {
  const bool first = threadIdx.x < 64 || !kPlanted;
  (PLANTED, ptx::named_barrier_sync(first ? 1 : 2, 128));
  (PLANTED, ptx::named_barrier_sync(first ? 2 : 1, 128));
  y[threadIdx.x] = 1;
}

template <bool kPlanted>
__global__ void different_counts(float* y, int* planted_line) {
  (PLANTED, ptx::named_barrier_sync(1, kPlanted && threadIdx.x < 64 ? 64 + 32 : 128));
  y[threadIdx.x] = 1;
}

template <bool kPlanted>
__global__ void halves_of_warps(float* y, int* planted_line) {
  const bool comes = kPlanted ? threadIdx.x % 32 < 16 : threadIdx.x < 64;
  if (comes) (PLANTED, ptx::named_barrier_sync(1, 64));
  __syncthreads();
  y[threadIdx.x] = 1;
}

template <bool kPlanted>
__global__ void no_such_barrier(float* y, int* planted_line) {
  (PLANTED, ptx::named_barrier_sync(kPlanted ? 16 : 15, 128));
  y[threadIdx.x] = 1;
}

template <bool kPlanted>
__global__ void waits_for_a_flag(int* flag, int* planted_line) {
  if (threadIdx.x == 0) {
    if (!kPlanted) atomicExch(flag, 1);
  } else {
    while ((PLANTED, *static_cast<volatile int*>(flag)) == 0) {
    }
  }
}

// Two groups of two warps, each with its barrier, take turns with the whole block's.
__global__ void groups(int* y) {
  __shared__ int tile[128];
  const int group = threadIdx.x / 64, i = threadIdx.x % 64;
  for (int turn = 0; turn < 10; ++turn) {
    tile[threadIdx.x] = turn + i;
    ptx::named_barrier_sync(1 + group, 64);
    y[threadIdx.x] += tile[group * 64 + (i ^ 63)];
    ptx::named_barrier_sync(1 + group, 64);
    if (turn % 3 == 0) __syncthreads();
  }
}

__global__ void votes(int* y) {
  const int i = threadIdx.x;
  y[i] = __syncthreads_or(i == 77);
  y[i] += 10 * __syncthreads_or(0);
  y[i] += 100 * __syncthreads_and(i < 128);
  y[i] += 1000 * __syncthreads_and(i != 3);
  y[i] += 10000 * __syncthreads_count(i % 4 == 0);
}

}  // namespace

void test_barriers() {
  DeviceArray<float> y(128, 0.0f);
  float* out = y;
  const LaunchShape block{2, 128};
  CHECK_PLANTED(kDivergentBarrier, barrier_after_return, block, out);
  CHECK_PLANTED(kDivergentBarrier, barrier_in_a_branch, block, out);
  CHECK_PLANTED(kDivergentBarrier, barriers_in_both_branches, block, out);
  CHECK_PLANTED(kDeadlock, too_few_for_a_named_barrier, block, out);
  CHECK_PLANTED(kDeadlock, crossed_named_barriers, block, out);
  CHECK_PLANTED(kDivergentBarrier, different_counts, block, out);
  CHECK_PLANTED(kDivergentBarrier, halves_of_warps, block, out);
  DeviceArray<int> flag(1, 0);
  int* waited_for = flag;
  CHECK_PLANTED(kDeadlock, waits_for_a_flag, (LaunchShape{1, 64}), waited_for);
  CHECK_PLANTED(kDeadlock, no_such_barrier, block, out);

  for_each_seed([&] {
    DeviceArray<int> sums(128, 0), results(128, 0);
    check(launch(groups, {1, 128}, kTarget, sums).ok(), "groups");
    check(launch(votes, {1, 128}, kTarget, results).ok(), "votes");
    bool right = true, voted = true;
    for (int i = 0; i < 128; ++i) {
      right &= sums[i] == 45 + 10 * (i % 64 ^ 63);
      voted &= results[i] == 1 + 0 + 100 + 0 + 32 * 10000;
    }
    check(right, "groups of warps exchange values through named barriers");
    check(voted, "barriers count, and and or predicates");
  });
}

}  // namespace fastdl::testing
