// Accesses to memory that is not there, not written or not aligned.
#include <cuda_bf16.h>

#include "planted.h"
#include "tests.h"

namespace fastdl::testing {
namespace {

constexpr float kTable[4] = {1, 2, 3, 4};
float host_variable = 5;

template <bool kPlanted>
__global__ void reads_past_the_end(const float* x, int count, float* y, int* planted_line) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count + (kPlanted ? 1 : 0)) y[i % 32] = (PLANTED, x[i]);
}

template <bool kPlanted>
__global__ void writes_before_the_beginning(float* x, int* planted_line) {
  if (threadIdx.x < 16) x[static_cast<int>(threadIdx.x) - (kPlanted ? 1 : 0)] = (PLANTED, 1);
}

// The last vector reaches past an end that is not a multiple of its width.
template <bool kPlanted>
__global__ void vector_over_the_end(const __nv_bfloat16* x, int count, float* y,
                                    int* planted_line) {
  const int vectors = kPlanted ? (count + 7) / 8 : count / 8;
  if (static_cast<int>(threadIdx.x) < vectors) {
    const uint4 bits = (PLANTED, reinterpret_cast<const uint4*>(x)[threadIdx.x]);
    y[threadIdx.x % 32] = __uint_as_float(bits.x ^ bits.w);
  }
}

template <bool kPlanted>
__global__ void far_away(const float* x, float* y, int* planted_line) {
  y[threadIdx.x] = (PLANTED, x[kPlanted ? 1'000'000 : 0]);
}

template <bool kPlanted>
__global__ void null_pointer(const float* x, float* y, int* planted_line) {
  const float* pointer = kPlanted ? nullptr : x;
  y[threadIdx.x] = (PLANTED, pointer[threadIdx.x]);
}

template <bool kPlanted>
__global__ void reads_freed_memory(const float* freed, const float* x, float* y,
                                   int* planted_line) {
  y[threadIdx.x] = (PLANTED, (kPlanted ? freed : x)[threadIdx.x]);
}

template <bool kPlanted>
__global__ void reads_host_variable(float* y, int* planted_line) {
  y[threadIdx.x] = (PLANTED, kPlanted ? host_variable : kTable[threadIdx.x % 4]);
}

template <bool kPlanted>
__global__ void writes_host_memory(float* host, float* y, int* planted_line) {
  (kPlanted ? host : y)[threadIdx.x] = (PLANTED, 1);
}

template <bool kPlanted>
__global__ void shares_a_local_variable(float* y, int* planted_line) {
  __shared__ float* shared;
  float local = threadIdx.x;
  if (threadIdx.x == 0) shared = &local;
  __syncthreads();
  y[threadIdx.x] = (PLANTED, kPlanted || threadIdx.x == 0 ? *shared : 0);
  __syncthreads();
}

template <bool kPlanted>
__global__ void misaligned_load(const float* x, float* y, int* planted_line) {
  const int i = kPlanted ? 4 * threadIdx.x + 1 : 4 * threadIdx.x;
  const float4 v = (PLANTED, *reinterpret_cast<const float4*>(x + i));
  y[threadIdx.x] = v.x + v.w;
}

template <bool kPlanted>
__global__ void misaligned_store(float* y, int* planted_line) {
  (PLANTED, *reinterpret_cast<uint4*>(y + (kPlanted ? 2 : 4)) = make_uint4(1, 2, 3, 4));
}

template <bool kPlanted>
__global__ void misaligned_shared(float* y, int* planted_line) {
  __shared__ __align__(16) float tile[64];
  tile[threadIdx.x] = tile[threadIdx.x + 32] = 1;
  __syncthreads();
  const int i = kPlanted ? threadIdx.x : threadIdx.x / 2 * 2;
  y[threadIdx.x] = (PLANTED, *reinterpret_cast<float2*>(tile + i)).y;
}

template <bool kPlanted>
__global__ void uninitialized_element(const float* x, float* y, int* planted_line) {
  __shared__ float tile[64];
  if (threadIdx.x < (kPlanted ? 63 : 64)) tile[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x % 64] = (PLANTED, tile[63 - threadIdx.x]);
}

// What an earlier block left there is not what this one wrote.
template <bool kPlanted>
__global__ void leftover_of_another_block(float* y, int* planted_line) {
  __shared__ int count;
  if (threadIdx.x == 0 && (!kPlanted || blockIdx.x == 0)) count = 1;
  __syncthreads();
  y[threadIdx.x] = (PLANTED, count);
}

template <bool kPlanted>
__global__ void uninitialized_sum(float* y, int* planted_line) {
  __shared__ float sum;
  if (threadIdx.x == 0 && !kPlanted) sum = 0;
  __syncthreads();
  (PLANTED, atomicAdd(&sum, 1.0f));
  __syncthreads();
  y[threadIdx.x] = sum;
}

template <bool kPlanted>
__global__ void past_dynamic_shared(float* y, int* planted_line) {
  float* tile = dynamic_shared<float>();
  tile[threadIdx.x + (kPlanted ? 1 : 0)] = (PLANTED, 1);
  __syncthreads();
  y[threadIdx.x] = 1;
}

template <bool kPlanted>
__global__ void traps(float* y, int* planted_line) {
  if (kPlanted && y[0] == 0) (PLANTED, __trap());
}

}  // namespace

void test_memory_errors() {
  DeviceArray<float> x(128, 1.0f), y(128, 0.0f);
  DeviceArray<__nv_bfloat16> halves(100, __nv_bfloat16(1.0f));
  float* freed = static_cast<float*>(emulator::allocate(512));
  emulator::release(freed);
  static float host[32];
  const float *in = x, *gone = freed;
  float* out = y;
  const LaunchShape warp{1, 32};
  const __nv_bfloat16* odd = halves;
  CHECK_PLANTED(kOutOfBounds, reads_past_the_end, (LaunchShape{5, 32}), in, 128, out);
  CHECK_PLANTED(kOutOfBounds, writes_before_the_beginning, warp, out);
  CHECK_PLANTED(kOutOfBounds, vector_over_the_end, warp, odd, 100, out);
  CHECK_PLANTED(kOutOfBounds, far_away, warp, in, out);
  CHECK_PLANTED(kHostMemory, null_pointer, warp, in, out);
  CHECK_PLANTED(kUseAfterFree, reads_freed_memory, warp, gone, in, out);
  CHECK_PLANTED(kHostMemory, reads_host_variable, warp, out);
  CHECK_PLANTED(kHostMemory, writes_host_memory, warp, static_cast<float*>(host), out);
  CHECK_PLANTED(kHostMemory, shares_a_local_variable, warp, out);
  CHECK_PLANTED(kMisaligned, misaligned_load, warp, in, out);
  CHECK_PLANTED(kMisaligned, misaligned_store, warp, out);
  CHECK_PLANTED(kMisaligned, misaligned_shared, warp, out);
  CHECK_PLANTED(kUninitialized, uninitialized_element, (LaunchShape{2, 64}), in, out);
  CHECK_PLANTED(kUninitialized, leftover_of_another_block, (LaunchShape{20, 32}), out);
  CHECK_PLANTED(kUninitialized, uninitialized_sum, warp, out);
  CHECK_PLANTED(kOutOfBounds, past_dynamic_shared, (LaunchShape{1, 32, 32 * sizeof(float)}), out);
  y[0] = 0;
  CHECK_PLANTED(kTrap, traps, warp, out);

  emulator::allow_host_memory(true);
  must_be_clean("writes_host_memory", warp, writes_host_memory<true>, static_cast<float*>(host),
                out);
  emulator::allow_host_memory(false);
  check(host[31] == 1, "host memory is written when it is allowed");
  emulator::set_detectors(false);
  must_be_clean("uninitialized_element", warp, uninitialized_element<true>, in, out);
  emulator::set_detectors(true);
}

}  // namespace fastdl::testing
