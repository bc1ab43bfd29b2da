// What the lanes of a warp compute together.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "planted.h"
#include "tests.h"

namespace fastdl::testing {
namespace {

constexpr unsigned kAll = 0xffffffffu;

// y[function][thread]; source lanes as the CUDA manual defines them.
__global__ void shuffles(int* y, int width) {
  const int i = threadIdx.x, threads = blockDim.x;
  y[0 * threads + i] = __shfl_sync(kAll, i, 5, width);
  y[1 * threads + i] = __shfl_up_sync(kAll, i, 3, width);
  y[2 * threads + i] = __shfl_down_sync(kAll, i, 3, width);
  y[3 * threads + i] = __shfl_xor_sync(kAll, i, 6, width);
  y[4 * threads + i] = __shfl_sync(kAll, i, i + 7, width);
}

int expected_shuffle(int function, int i, int width) {
  const int lane = i % 32, begin = lane / width * width, in_part = lane % width;
  const int sources[] = {begin + 5 % width, in_part >= 3 ? lane - 3 : lane,
                         in_part + 3 < width ? lane + 3 : lane,
                         (lane ^ 6) < begin + width ? lane ^ 6 : lane, begin + (lane + 7) % width};
  return i - lane + sources[function];
}

template <class T>
__global__ void sum_of_type(T* y) {
  T value = T(static_cast<float>(threadIdx.x % 8));
  for (int offset = 16; offset > 0; offset /= 2) {
    value = value + __shfl_xor_sync(kAll, value, offset);
  }
  y[threadIdx.x] = value;
}

__global__ void votes(unsigned* y) {
  const int i = threadIdx.x;
  if (i < 8) {
    y[i] = __ballot_sync(0xff, i % 2) | __any_sync(0xff, i == 3) << 8 | __any_sync(0xff, 0) << 9 |
           __all_sync(0xff, i < 8) << 10 | __all_sync(0xff, i < 7) << 11;
  } else {
    y[i] = __ballot_sync(0xffffff00u, i >= 16);
  }
  y[i] += (__activemask() >> i & 1) << 15;
}

// Lanes wait for a smaller group and for all, in different orders.
__global__ void nested_groups(int* y) {
  int value = threadIdx.x;
  if (threadIdx.x < 8) {
    for (int offset = 1; offset < 8; offset *= 2) value += __shfl_xor_sync(0xff, value, offset);
  }
  value += __shfl_sync(kAll, value, 0);
  y[threadIdx.x] = value;
}

__global__ void block_of_three_dimensions(int* y) {
  const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const int threads = blockDim.x * blockDim.y * blockDim.z;
  const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  y[block * threads + thread] = 1000 * block + __shfl_xor_sync(kAll, thread, 1);
}

template <class T>
bool sums_right() {
  DeviceArray<T> y(32, T(0.0f));
  bool right = launch(sum_of_type<T>, {1, 32}, kTarget, y).ok();
  for (int i = 0; i < 32; ++i) right &= static_cast<float>(y[i]) == 4 * 28;
  return right;
}

}  // namespace

void test_warp_functions() {
  for (const int width : {32, 16, 8, 4, 2, 1}) {
    for_each_seed([&] {
      DeviceArray<int> y(5 * 96, -1);
      bool right = launch(shuffles, {2, 96}, kTarget, y, width).ok();
      for (int n = 0; n < 5 * 96; ++n) right &= y[n] == expected_shuffle(n / 96, n % 96, width);
      check(right, "shuffles of width " + std::to_string(width));
    });
  }
  check(sums_right<int>() && sums_right<unsigned>() && sums_right<long long>() &&
            sums_right<float>() && sums_right<double>() && sums_right<__half>() &&
            sums_right<__nv_bfloat16>(),
        "all types are shuffled");
  for_each_seed([&] {
    DeviceArray<unsigned> y(32, 0u);
    DeviceArray<int> nested(32, 0);
    bool right = launch(votes, {1, 32}, kTarget, y).ok();
    right &= launch(nested_groups, {1, 32}, kTarget, nested).ok();
    for (int i = 0; i < 32; ++i) {
      right &= y[i] == (i < 8 ? 0xaau | 1 << 8 | 1 << 10 : 0xffff0000u) + (1u << 15);
      right &= nested[i] == 28 + (i < 8 ? 28 : i);
    }
    check(right, "parts of a warp vote and shuffle");
  });
  DeviceArray<int> y(12 * 64, -1);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(2, 3, 2);
  config.blockDim = dim3(4, 8, 2);
  bool right =
      cudaLaunchKernelEx(&config, block_of_three_dimensions, static_cast<int*>(y)) == cudaSuccess;
  for (int i = 0; i < 12 * 64; ++i) right &= y[i] == 1000 * (i / 64) + (i % 64 ^ 1);
  check(right, "blocks and grids of three dimensions");
}

}  // namespace fastdl::testing
