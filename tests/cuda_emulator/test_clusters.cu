// Clusters of blocks that share their shared memory, and cooperative grids.
#include "common/ptx.cuh"
#include "planted.h"
#include "tests.h"

namespace fastdl::testing {
namespace {

// Every block gives the next one of its cluster a value.
template <bool kPlanted>
__global__ void gives_to_the_next(int* y, int* planted_line) {
  __shared__ int inbox[64];
  const int rank = ptx::cluster_rank(), size = ptx::cluster_size();
  ptx::cluster_sync();  // all have started
  int* next = ptx::map_shared(inbox, (rank + 1) % size);
  next[threadIdx.x] = 100 * blockIdx.x + threadIdx.x;
  if (!kPlanted) ptx::cluster_sync();
  y[blockIdx.x * 64 + threadIdx.x] = (PLANTED, inbox[threadIdx.x]);
  ptx::cluster_sync();
}

template <bool kPlanted>
__global__ void block_barrier_is_not_enough(int* y, int* planted_line) {
  __shared__ int value;
  ptx::cluster_sync();
  if (threadIdx.x == 0) value = ptx::cluster_rank();
  if (kPlanted) {
    __syncthreads();
  } else {
    ptx::cluster_sync();
  }
  const int other = ptx::cluster_rank() ^ 1;
  y[blockIdx.x * 64 + threadIdx.x] = (PLANTED, *ptx::map_shared(&value, other));
  ptx::cluster_sync();
}

// The first barrier is missing: the other block may not have begun.
template <bool kPlanted>
__global__ void written_before_all_began(int*, int* planted_line) {
  __shared__ int value;
  if (!kPlanted) ptx::cluster_sync();
  *ptx::map_shared(&value, ptx::cluster_rank() ^ 1) = (PLANTED, 1);
  ptx::cluster_sync();
}

// The last barrier is missing: the other block may have ended.
template <bool kPlanted>
__global__ void ended_before_it_was_read(int* y, int* planted_line) {
  __shared__ int value;
  value = 1;
  ptx::cluster_sync();
  if (ptx::cluster_rank() > 0) y[1] = (PLANTED, *ptx::map_shared(&value, 0));
  if (!kPlanted) ptx::cluster_sync();
}

// Blocks that have ended are not waited for, but one that waits elsewhere is.
__global__ void waits_elsewhere(int* y, int* planted_line) {
  if (ptx::cluster_rank() != 0) {
    if (threadIdx.x < 32) (PLANTED, __syncthreads());
    return;
  }
  ptx::cluster_sync();
  y[threadIdx.x] = 1;
}

template <bool kPlanted>
__global__ void arrives_twice(int*, int* planted_line) {
  ptx::cluster_arrive();
  if (kPlanted) (PLANTED, ptx::cluster_arrive());
  ptx::cluster_wait();
}

template <bool kPlanted>
__global__ void no_such_rank(int* y, int* planted_line) {
  __shared__ int value;
  value = 1;
  ptx::cluster_sync();
  y[threadIdx.x] = (PLANTED, *ptx::map_shared(&value, kPlanted ? 4 : 3));
  ptx::cluster_sync();
}

// Arriving and waiting apart: what is done in between is not ordered.
template <bool kPlanted>
__global__ void written_after_arriving(int* y, int* planted_line) {
  __shared__ int value[2];
  if (threadIdx.x == 0) value[0] = 1;
  if (threadIdx.x == 0 && !kPlanted) value[1] = 2;
  ptx::cluster_arrive();
  if (threadIdx.x == 0 && kPlanted) value[1] = 2;
  ptx::cluster_wait();
  const int* other = ptx::map_shared(value, ptx::cluster_rank() ^ 1);
  y[threadIdx.x] = other[0] + (PLANTED, other[1]);
  ptx::cluster_sync();
}

__global__ void ranks(int* y) {
  const int block = blockIdx.y * gridDim.x + blockIdx.x;
  if (threadIdx.x == 0) y[block] = 10 * ptx::cluster_size() + ptx::cluster_rank();
}

// A barrier of the whole grid, made of an atomic counter.
__global__ void waits_for_the_grid(unsigned* counter, int* values, int* y) {
  const int blocks = gridDim.x, block = blockIdx.x;
  for (int turn = 1; turn <= 3; ++turn) {
    if (threadIdx.x == 0) {
      values[block] = turn * 10 + block;
      __threadfence();
      atomicAdd(counter, 1u);
      while (*static_cast<volatile unsigned*>(counter) < static_cast<unsigned>(turn * blocks)) {
      }
      __threadfence();
    }
    __syncthreads();
    y[block * blockDim.x + threadIdx.x] += values[(block + threadIdx.x) % blocks];
    __syncthreads();
    if (threadIdx.x == 0) {
      atomicAdd(counter + turn, 1u);
      while (atomicAdd(counter + turn, 0u) < static_cast<unsigned>(blocks)) {
      }
    }
    __syncthreads();
  }
}

}  // namespace

void test_clusters() {
  DeviceArray<int> y(8 * 64, 0);
  int* out = y;
  const LaunchShape clusters{8, 64, 0, 4};
  CHECK_PLANTED(kRace, gives_to_the_next, clusters, out);
  bool right = true;
  for (int i = 0; i < 8 * 64; ++i) {
    const int block = i / 64, from = block / 4 * 4 + (block + 3) % 4;
    right &= y[i] == 100 * from + i % 64;
  }
  check(right, "blocks of a cluster write into each other's shared memory");
  y[0] = 0;
  CHECK_PLANTED(kRace, block_barrier_is_not_enough, clusters, out);
  CHECK_PLANTED(kEndedBlock, written_before_all_began, (LaunchShape{4, 1, 0, 4}), out);
  CHECK_PLANTED(kEndedBlock, ended_before_it_was_read, (LaunchShape{4, 1, 0, 4}), out);
  must_report(emulator::Kind::kDivergentBarrier, "waits_elsewhere", clusters, waits_elsewhere, out);
  CHECK_PLANTED(kDivergentBarrier, arrives_twice, clusters, out);
  CHECK_PLANTED(kOutOfBounds, no_such_rank, (LaunchShape{4, 1, 0, 4}), out);
  CHECK_PLANTED(kRace, written_after_arriving, (LaunchShape{4, 32, 0, 2}), out);

  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {2, 2, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(4, 2);
  config.blockDim = dim3(32);
  config.attrs = &attribute;
  config.numAttrs = 1;
  right = cudaLaunchKernelEx(&config, ranks, out) == cudaSuccess;
  const int expected[8] = {40, 41, 40, 41, 42, 43, 42, 43};
  for (int i = 0; i < 8; ++i) right &= y[i] == expected[i];
  check(right, "ranks in clusters of two dimensions");

  for_each_seed([&] {
    DeviceArray<unsigned> counters(4, 0u);
    DeviceArray<int> values(6, 0), sums(6 * 32, 0);
    const LaunchShape grid{6, 32, 0, 1, true};
    bool same = launch(waits_for_the_grid, grid, kTarget, counters, values, sums).ok();
    for (int i = 0; i < 6 * 32; ++i) same &= sums[i] == 60 + 3 * ((i / 32 + i % 32) % 6);
    check(same, "the blocks of a cooperative grid wait for each other");
  });
}

}  // namespace fastdl::testing
