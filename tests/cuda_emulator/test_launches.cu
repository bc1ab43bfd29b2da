// What a device refuses to launch, and the runtime API around it.
#include <cstring>

#include "planted.h"
#include "tests.h"

namespace fastdl::testing {
namespace {

__global__ void nothing(int*) {}

struct Large {
  int values[100];
};

__global__ void last_of(const __grid_constant__ Large large, int* y) {
  y[threadIdx.x] = large.values[99 - threadIdx.x];
}

__global__ void largest_shared(int* y) {
  unsigned char* bytes = dynamic_shared<unsigned char>();
  bytes[232447 - threadIdx.x] = static_cast<unsigned char>(threadIdx.x);
  __syncthreads();
  y[threadIdx.x] = bytes[232447 - threadIdx.x];
}

__global__ void order_of_threads(int* next, int* y) { y[atomicAdd(next, 1)] = threadIdx.x; }

void must_refuse(cudaError_t error, const LaunchShape& shape, const std::string& what) {
  emulator::print_reports(false);
  const Status status = launch(nothing, shape, kTarget, nullptr);
  const auto reports = emulator::take_reports();
  check(status.cuda_error == error && cudaGetLastError() == error, what + " is refused");
  check(reports.empty() || reports[0].kind == emulator::Kind::kLaunch, what + " is reported");
  emulator::print_reports(true);
}

std::vector<int> drawn_order(uint64_t seed) {
  DeviceArray<int> next(1, 0), y(64, -1);
  emulator::set_seed(seed);
  (void)launch(order_of_threads, {1, 64}, kTarget, next, y);
  return std::vector<int>(static_cast<int*>(y), y + 64);
}

}  // namespace

void test_launches() {
  must_refuse(cudaErrorInvalidConfiguration, {1, 1056}, "a block of 1056 threads");
  must_refuse(cudaErrorInvalidConfiguration, {0, 32}, "a grid of no blocks");
  must_refuse(cudaErrorInvalidValue, {1, 32, 232449}, "too much shared memory");
  must_refuse(cudaErrorInvalidConfiguration, {6, 32, 0, 4},
              "a cluster that does not divide the grid");
  must_refuse(cudaErrorInvalidClusterSize, {32, 32, 0, 16}, "a cluster of 16");
  must_refuse(cudaErrorCooperativeLaunchTooLarge, {9, 1024, 0, 1, true},
              "too large a cooperative grid");
  emulator::set_device({4, 80});
  must_refuse(cudaErrorNotSupported, {8, 32, 0, 4}, "a cluster on capability 8.0");
  emulator::set_device({});

  emulator::print_reports(false);
  cudaLaunchConfig_t config{};
  config.dynamicSmemBytes = 49153;
  check(cudaLaunchKernelEx(&config, nothing, nullptr) == cudaErrorInvalidValue,
        "more than 48 KiB of shared memory must be asked for");
  config.dynamicSmemBytes = 49152;
  check(cudaLaunchKernelEx(&config, nothing, nullptr) == cudaSuccess, "48 KiB need not");
  check(emulator::take_reports().size() == 1 && cudaGetLastError() == cudaErrorInvalidValue &&
            cudaGetLastError() == cudaSuccess,
        "the last error is kept until it is asked for");
  emulator::print_reports(true);

  DeviceArray<int> y(64, 0);
  Large large;
  for (int i = 0; i < 100; ++i) large.values[i] = i;
  bool right = launch(last_of, {2, 64}, kTarget, large, y).ok();
  for (int i = 0; i < 64; ++i) right &= y[i] == 99 - i;
  check(right, "a large structure is an argument");
  right = launch(largest_shared, {2, 64, 232448}, kTarget, y).ok();
  for (int i = 0; i < 64; ++i) right &= y[i] == i;
  check(right, "all of the shared memory is there");

  check(drawn_order(5) == drawn_order(5), "a seed repeats its order");
  check(drawn_order(5) != drawn_order(6), "another seed gives another one");

  int value = 0;
  cudaFuncAttributes attributes;
  check(cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, 0) == cudaSuccess &&
            value == 4 &&
            cudaDeviceGetAttribute(&value, cudaDevAttrComputeCapabilityMajor, 0) == cudaSuccess &&
            value == 9 && cudaFuncGetAttributes(&attributes, nothing) == cudaSuccess,
        "the device has attributes");
  check(cudaSetDevice(1) == cudaErrorInvalidDevice && cudaGetLastError() != cudaSuccess,
        "there is one device");
  float *memory = nullptr, host[4] = {1, 2, 3, 4}, back[4] = {};
  check(cudaMalloc(&memory, sizeof(host)) == cudaSuccess &&
            cudaMemcpyAsync(memory, host, sizeof(host), cudaMemcpyHostToDevice) == cudaSuccess &&
            cudaMemsetAsync(memory, 0, 4) == cudaSuccess &&
            cudaMemcpyAsync(back, memory, sizeof(back), cudaMemcpyDeviceToHost) == cudaSuccess &&
            back[0] == 0 && back[3] == 4,
        "memory is copied to and from the device");
  check(cudaMemcpyAsync(memory, host, 17, cudaMemcpyHostToDevice) == cudaErrorInvalidValue &&
            cudaFree(memory) == cudaSuccess && cudaFree(memory) == cudaErrorInvalidValue &&
            cudaGetLastError() == cudaErrorInvalidValue,
        "copies past the end and a second cudaFree are errors");
  int blocks = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, nothing, 1024, 0) == cudaSuccess &&
            blocks == 2 &&
            cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, nothing, 128, 100 * 1024) ==
                cudaSuccess &&
            blocks == 2,
        "the occupancy is estimated");
}

}  // namespace fastdl::testing
