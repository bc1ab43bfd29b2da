// Races in shared memory: found whatever the order in which the threads happened to run.
#include "common/ptx.cuh"
#include "planted.h"
#include "tests.h"

namespace fastdl::testing {
namespace {

template <bool kPlanted>
__global__ void missing_barrier_after_write(const float* x, float* y, int* planted_line) {
  __shared__ float tile[256];
  tile[threadIdx.x] = x[threadIdx.x];
  if (!kPlanted) __syncthreads();
  y[threadIdx.x] = (PLANTED, tile[threadIdx.x ^ 37]);
}

template <bool kPlanted>
__global__ void missing_barrier_before_reuse(const float* x, float* y, int* planted_line) {
  __shared__ float tile[256];
  float sum = 0;
  for (int turn = 0; turn < 3; ++turn) {
    tile[threadIdx.x] = (PLANTED, x[threadIdx.x] + turn);
    __syncthreads();
    sum += tile[255 - threadIdx.x];
    if (!kPlanted) __syncthreads();
  }
  y[threadIdx.x] = sum;
}

template <bool kPlanted>
__global__ void two_writers(const float* x, float* y, int* planted_line) {
  __shared__ float total;
  if (threadIdx.x == (kPlanted ? threadIdx.x / 64 * 64 : 0)) {
    total = (PLANTED, x[0]);
  }
  __syncthreads();
  y[threadIdx.x] = total;
}

// A warp's lanes exchange through shared memory: that takes __syncwarp(), a shuffle is not enough.
template <bool kPlanted>
__global__ void missing_warp_barrier(const float* x, float* y, int* planted_line) {
  __shared__ float of_lanes[32];
  of_lanes[threadIdx.x] = x[threadIdx.x];
  float shuffled = __shfl_xor_sync(~0u, x[threadIdx.x], 1);
  if (!kPlanted) __syncwarp();
  y[threadIdx.x] = shuffled + (PLANTED, of_lanes[threadIdx.x ^ 1]);
}

// Half-warps, each with its own barrier, must not read each other's values.
template <bool kPlanted>
__global__ void half_warps(const float* x, float* y, int* planted_line) {
  __shared__ float of_lanes[32];
  of_lanes[threadIdx.x] = x[threadIdx.x];
  const int other = kPlanted ? 16 : 8;
  if (threadIdx.x < 16) {
    __syncwarp(0x0000ffff);
    y[threadIdx.x] = (PLANTED, of_lanes[threadIdx.x ^ other]);
  } else {
    __syncwarp(0xffff0000);
    y[threadIdx.x] = of_lanes[threadIdx.x ^ 8];
  }
}

// __syncwarp() orders a warp, not the block.
template <bool kPlanted>
__global__ void warp_barrier_for_a_block(const float* x, float* y, int* planted_line) {
  __shared__ float tile[128];
  tile[threadIdx.x] = x[threadIdx.x];
  __syncwarp();
  y[threadIdx.x] = (PLANTED, tile[threadIdx.x ^ (kPlanted ? 32 : 16)]);
}

template <bool kPlanted>
__global__ void plain_sum(const float* x, float* y, int* planted_line) {
  __shared__ float total;
  if (threadIdx.x == 0) total = 0;
  __syncthreads();
  if (kPlanted) {
    total += (PLANTED, x[threadIdx.x]);
  } else {
    atomicAdd(&total, x[threadIdx.x]);
  }
  __syncthreads();
  y[threadIdx.x] = total;
}

// Elements of 2 bytes: neighbours share a word, and do not race. With a mistake, they do.
template <bool kPlanted>
__global__ void neighbours_in_a_word(const float*, float* y, int* planted_line) {
  __shared__ unsigned short tile[64];
  tile[threadIdx.x] = static_cast<unsigned short>(threadIdx.x);
  if (kPlanted && threadIdx.x == 40) tile[41] = (PLANTED, 7);
  __syncthreads();
  y[threadIdx.x] = tile[63 - threadIdx.x];
}

template <bool kPlanted>
__global__ void dynamic_tile(const float* x, float* y, int* planted_line) {
  float4* tile = dynamic_shared<float4>();
  tile[threadIdx.x] = make_float4(x[threadIdx.x], 1, 2, 3);
  if (!kPlanted) __syncthreads();
  const float4 other = (PLANTED, tile[threadIdx.x ^ 32]);
  y[threadIdx.x] = other.x + other.w;
}

// One producer warp, one consumer warp and a named barrier for each direction. With the mistake,
// the consumer gives the tile back before it has read it.
template <bool kPlanted>
__global__ void producer_and_consumer(const float* x, float* y, int* planted_line) {
  __shared__ float tile[32];
  const int lane = threadIdx.x % 32;
  for (int turn = 0; turn < 4; ++turn) {
    if (threadIdx.x < 32) {
      if (turn > 0) ptx::named_barrier_sync(2, 64);
      tile[lane] = x[lane] + turn;
      ptx::named_barrier_arrive(1, 64);
    } else {
      ptx::named_barrier_sync(1, 64);
      if (turn < 3 && kPlanted) ptx::named_barrier_arrive(2, 64);
      y[lane] += (PLANTED, tile[lane ^ 1]);
      if (turn < 3 && !kPlanted) ptx::named_barrier_arrive(2, 64);
    }
  }
}

}  // namespace

void test_races() {
  DeviceArray<float> x(256, [](size_t i) { return static_cast<float>(i); }), y(256, 0.0f);
  const float* in = x;
  float* out = y;
  const LaunchShape block{2, 256}, warp{3, 32};
  CHECK_PLANTED(kRace, missing_barrier_after_write, block, in, out);
  CHECK_PLANTED(kRace, missing_barrier_before_reuse, block, in, out);
  CHECK_PLANTED(kRace, two_writers, block, in, out);
  CHECK_PLANTED(kRace, missing_warp_barrier, warp, in, out);
  CHECK_PLANTED(kRace, half_warps, warp, in, out);
  CHECK_PLANTED(kRace, warp_barrier_for_a_block, (LaunchShape{2, 128}), in, out);
  CHECK_PLANTED(kRace, plain_sum, block, in, out);
  CHECK_PLANTED(kRace, neighbours_in_a_word, (LaunchShape{2, 64}), in, out);
  CHECK_PLANTED(kRace, dynamic_tile, (LaunchShape{2, 128, 128 * sizeof(float4)}), in, out);
  CHECK_PLANTED(kRace, producer_and_consumer, (LaunchShape{1, 64}), in, out);
}

}  // namespace fastdl::testing
