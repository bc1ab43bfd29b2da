// Atomic functions on device memory, among many blocks, and on shared memory.
#include "planted.h"
#include "tests.h"

namespace fastdl::testing {
namespace {

struct Totals {
  int count, maximum, minimum, exchanged;
  unsigned bits, wrapped;
  unsigned long long large;
  float sum;
  double precise;
  int locked, lock;
};

__global__ void all_of_them(Totals* totals) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  atomicAdd(&totals->count, 1);
  atomicMax(&totals->maximum, i);
  atomicMin(&totals->minimum, -i);
  atomicExch(&totals->exchanged, 5);
  atomicOr(&totals->bits, 1u << i % 32);
  atomicInc(&totals->wrapped, 9u);
  atomicAdd(&totals->large, 1ull << 32);
  atomicAdd(&totals->sum, 0.5f);
  atomicAdd(&totals->precise, 0.25);
}

__global__ void one_at_a_time(Totals* totals) {
  while (atomicCAS(&totals->lock, 0, 1) != 0) {
  }
  totals->locked += 1;
  atomicExch(&totals->lock, 0);
}

__global__ void histogram(const int* x, int count, int* y) {
  __shared__ int bins[16];
  if (threadIdx.x < 16) bins[threadIdx.x] = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += blockDim.x) atomicAdd(&bins[x[i] % 16], 1);
  __syncthreads();
  if (threadIdx.x < 16) y[threadIdx.x] = bins[threadIdx.x];
}

// The last block to end adds up what all have written.
__global__ void last_block_sums(unsigned* ended, int* parts, int* sum) {
  __shared__ bool is_last;
  if (threadIdx.x == 0) {
    parts[blockIdx.x] = blockIdx.x + 1;
    __threadfence();
    is_last = atomicAdd(ended, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (is_last && threadIdx.x == 0) {
    for (unsigned i = 0; i < gridDim.x; ++i) *sum += parts[i];
  }
}

}  // namespace

void test_atomics() {
  for_each_seed([&] {
    DeviceArray<Totals> totals(1, Totals{});
    bool right = launch(all_of_them, {20, 64}, kTarget, totals).ok();
    right &= launch(one_at_a_time, {8, 32}, kTarget, totals).ok();
    const Totals& t = totals[0];
    right &= t.count == 1280 && t.maximum == 1279 && t.minimum == -1279 && t.exchanged == 5;
    right &= t.bits == 0xffffffffu && t.wrapped == 0 && t.large == 1280ull << 32;
    right &= t.sum == 640 && t.precise == 320 && t.locked == 256;
    check(right, "atomic functions");

    DeviceArray<int> x(1000, [](size_t i) { return static_cast<int>(i); }), bins(16, 0);
    right = launch(histogram, {1, 128}, kTarget, x, 1000, bins).ok();
    for (int i = 0; i < 16; ++i) right &= bins[i] == (i < 8 ? 63 : 62);
    check(right, "atomic functions on shared memory");

    DeviceArray<unsigned> ended(1, 0u);
    DeviceArray<int> parts(30, 0), sum(1, 0);
    right = launch(last_block_sums, {30, 32}, kTarget, ended, parts, sum).ok();
    check(right && *sum == 465, "the last block sees what the others wrote");
  });
}

}  // namespace fastdl::testing
