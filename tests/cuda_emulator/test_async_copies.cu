// cp.async: what has not been waited for has not arrived.
#include "common/ptx.cuh"
#include "planted.h"
#include "tests.h"

namespace fastdl::testing {
namespace {

template <bool kPlanted>
__global__ void read_in_flight(const float4* x, float* y, int* planted_line) {
  __shared__ float4 tile[64];
  ptx::cp_async_16(&tile[threadIdx.x], &x[threadIdx.x]);
  ptx::cp_async_commit();
  if (!kPlanted) ptx::cp_async_wait<0>();
  y[threadIdx.x] = (PLANTED, tile[threadIdx.x].y);
  ptx::cp_async_wait<0>();
}

// Each thread waits for its own copies only: the others' take a barrier.
template <bool kPlanted>
__global__ void missing_barrier_after_wait(const float4* x, float* y, int* planted_line) {
  __shared__ float4 tile[64];
  ptx::cp_async_16(&tile[threadIdx.x], &x[threadIdx.x]);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  if (!kPlanted) __syncthreads();
  y[threadIdx.x] = (PLANTED, tile[threadIdx.x ^ 32].y);
}

template <bool kPlanted>
__global__ void never_waited_for(const float4* x, float* y, int* planted_line) {
  __shared__ float4 tile[64];
  (PLANTED, ptx::cp_async_16(&tile[threadIdx.x], &x[threadIdx.x]));
  ptx::cp_async_commit();
  if (!kPlanted) ptx::cp_async_wait<0>();
  y[threadIdx.x] = 1;
}

// A copy that was not committed is in no group that a wait covers.
template <bool kPlanted>
__global__ void not_committed(const float4* x, float* y, int* planted_line) {
  __shared__ float4 tile[64];
  ptx::cp_async_16(&tile[threadIdx.x], &x[threadIdx.x]);
  if (!kPlanted) ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  y[threadIdx.x] = (PLANTED, tile[threadIdx.x].y);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
}

template <bool kPlanted>
__global__ void written_in_flight(const float4* x, float* y, int* planted_line) {
  __shared__ float4 tile[64];
  ptx::cp_async_16(&tile[threadIdx.x], &x[threadIdx.x]);
  ptx::cp_async_commit();
  if (!kPlanted) ptx::cp_async_wait<0>();
  tile[threadIdx.x].x = (PLANTED, 3);
  ptx::cp_async_wait<0>();
  y[threadIdx.x] = tile[threadIdx.x].x;
}

template <bool kPlanted>
__global__ void misaligned_copy(const float* x, float* y, int* planted_line) {
  __shared__ float4 tile[64];
  (PLANTED, ptx::cp_async_16(&tile[threadIdx.x], &x[kPlanted ? 1 : 4]));
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  y[threadIdx.x] = tile[threadIdx.x].x;
}

template <bool kPlanted>
__global__ void copy_from_beyond(const float4* x, float* y, int* planted_line) {
  __shared__ float4 tile[64];
  const bool valid = kPlanted || threadIdx.x < 63;
  const float4* from = &x[8 * 64 + 1 + threadIdx.x];
  (PLANTED, ptx::cp_async_16_or_zero(&tile[threadIdx.x], from, valid));
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  y[threadIdx.x] = tile[threadIdx.x].x;
}

// Three buffers, two groups in flight: the sum over 9 tiles, the last ones partly zeros. The
// barrier that is missing in one form keeps a buffer from being refilled while it is still being
// read.
template <bool kPlanted>
__global__ void pipeline(const float4* x, float* y, int* planted_line) {
  constexpr int kStages = 3, kTiles = 9, kValid = 9 * 64 - 10;
  __shared__ float4 tiles[kStages][64];
  const auto fetch = [&](int tile) {
    if (tile < kTiles) {
      const int i = 64 * tile + threadIdx.x;
      (PLANTED, ptx::cp_async_16_or_zero(&tiles[tile % kStages][threadIdx.x], &x[i], i < kValid));
    }
    ptx::cp_async_commit();
  };
  fetch(0);
  fetch(1);
  float sum = 0;
  for (int tile = 0; tile < kTiles; ++tile) {
    ptx::cp_async_wait<1>();
    if (!kPlanted) __syncthreads();
    if (kPlanted) __syncwarp();
    fetch(tile + 2);
    sum += tiles[tile % kStages][kPlanted ? threadIdx.x ^ 32 : 63 - threadIdx.x].x;
  }
  ptx::cp_async_wait<0>();
  y[threadIdx.x] = sum;
}

}  // namespace

void test_async_copies() {
  const auto value = [](size_t i) {
    const float f = static_cast<float>(i);
    return make_float4(f, f + 1, f + 2, f + 3);
  };
  DeviceArray<float4> x(9 * 64, value);
  DeviceArray<float> y(64, 0.0f);
  const float4* in = x;
  const float* in_floats = reinterpret_cast<const float*>(in);
  float* out = y;
  const LaunchShape block{2, 64};
  CHECK_PLANTED(kAsyncCopy, read_in_flight, block, in, out);
  CHECK_PLANTED(kRace, missing_barrier_after_wait, block, in, out);
  CHECK_PLANTED(kAsyncCopy, never_waited_for, block, in, out);
  CHECK_PLANTED(kAsyncCopy, not_committed, block, in, out);
  CHECK_PLANTED(kAsyncCopy, written_in_flight, block, in, out);
  CHECK_PLANTED(kMisaligned, misaligned_copy, block, in_floats, out);
  CHECK_PLANTED(kOutOfBounds, copy_from_beyond, block, in, out);
  CHECK_PLANTED(kRace, pipeline, block, in, out);
  bool right = true;
  for (int thread = 0; thread < 64; ++thread) {
    float sum = 0;
    for (int i = 63 - thread; i < 9 * 64 - 10; i += 64) sum += i;
    right &= y[thread] == sum;
  }
  check(right, "a pipeline of asynchronous copies sums all tiles");
}

}  // namespace fastdl::testing
