// Functions of a warp to which not all of its lanes come, or not to the same one.
#include "common/ptx.cuh"
#include "planted.h"
#include "tests.h"

namespace fastdl::testing {
namespace {

template <bool kPlanted>
__global__ void shuffle_in_a_branch(float* y, int* planted_line) {
  const float v = y[threadIdx.x];
  if (threadIdx.x < 16) {
    y[threadIdx.x] = (PLANTED, __shfl_xor_sync(kPlanted ? ~0u : 0xffffu, v, 1));
  }
}

template <bool kPlanted>
__global__ void shuffle_after_return(float* y, int* planted_line) {
  if (threadIdx.x == 20) return;
  y[threadIdx.x] = (PLANTED, __shfl_down_sync(kPlanted ? ~0u : ~(1u << 20), y[threadIdx.x], 1));
}

template <bool kPlanted>
__global__ void different_masks(float* y, int* planted_line) {
  const unsigned half = threadIdx.x < 16 ? 0xffffu : 0xffff0000u;
  const unsigned mask = kPlanted && threadIdx.x >= 16 ? ~0u : half;
  y[threadIdx.x] = (PLANTED, __shfl_sync(mask, y[threadIdx.x], 3, 16));
}

template <bool kPlanted>
__global__ void mask_without_the_caller(int* y, int* planted_line) {
  y[threadIdx.x] = (PLANTED, __ballot_sync(kPlanted ? 0x7fffffffu : ~0u, 1)) != 0;
}

template <bool kPlanted>
__global__ void different_functions(int* y, int* planted_line) {
  if (kPlanted && threadIdx.x % 2) {
    y[threadIdx.x] = (PLANTED, __any_sync(~0u, 1));
  } else {
    y[threadIdx.x] = __shfl_sync(kPlanted ? ~0u : __activemask(), 1, 0);
  }
}

// A warp of half the lanes has no others.
template <bool kPlanted>
__global__ void lanes_that_never_existed(float* y, int* planted_line) {
  y[threadIdx.x] = (PLANTED, __shfl_xor_sync(kPlanted ? ~0u : 0xffffu, y[threadIdx.x], 8));
}

template <bool kPlanted>
__global__ void warp_barrier_and_block_barrier(float* y, int* planted_line) {
  if (kPlanted && threadIdx.x == 5) {
    __syncthreads();
    __syncwarp();
  } else {
    (PLANTED, __syncwarp());
    __syncthreads();
  }
  y[threadIdx.x] = 1;
}

template <bool kPlanted>
__global__ void multiplication_by_half_a_warp(float* y, int* planted_line) {
  float d[4] = {};
  const uint32_t a[4] = {}, b[2] = {};
  if (!kPlanted || threadIdx.x < 16) (PLANTED, ptx::mma_m16n8k16_bf16(d, a, b));
  y[threadIdx.x] = d[0];
}

}  // namespace

void test_collective_errors() {
  DeviceArray<float> x(32, 1.0f);
  DeviceArray<int> n(32, 1);
  float* floats = x;
  int* ints = n;
  const LaunchShape warp{1, 32};
  CHECK_PLANTED(kWarpCollective, shuffle_in_a_branch, warp, floats);
  CHECK_PLANTED(kWarpCollective, shuffle_after_return, warp, floats);
  CHECK_PLANTED(kWarpCollective, different_masks, warp, floats);
  CHECK_PLANTED(kWarpCollective, mask_without_the_caller, warp, ints);
  CHECK_PLANTED(kWarpCollective, different_functions, warp, ints);
  CHECK_PLANTED(kWarpCollective, lanes_that_never_existed, (LaunchShape{1, 16}), floats);
  CHECK_PLANTED(kWarpCollective, warp_barrier_and_block_barrier, warp, floats);
  CHECK_PLANTED(kWarpCollective, multiplication_by_half_a_warp, warp, floats);
}

}  // namespace fastdl::testing
