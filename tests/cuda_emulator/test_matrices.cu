// ldmatrix and mma.sync against a plain product of matrices.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>

#include "common/ptx.cuh"
#include "planted.h"
#include "tests.h"

namespace fastdl::testing {
namespace {

template <class T>
__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<T, __half>) {
    ptx::mma_m16n8k16_f16(d, a, b);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    ptx::mma_m16n8k16_bf16(d, a, b);
  } else {
    ptx::mma_m16n8k8_tf32(d, a, b);
  }
}

// One warp, c (16 x 8) = a (16 x K) b (K x 8), K = 16 or for float 8. The registers are filled as
// the PTX manual says, without ldmatrix.
template <class T>
__global__ void single_product(const T* a, const T* b, float* c) {
  constexpr bool kPairs = sizeof(T) == 2;
  constexpr int kDepth = kPairs ? 16 : 8;
  const int group = ptx::lane_id() / 4, place = ptx::lane_id() % 4;
  const auto word = [&](int row, int k, bool of_a) {
    const auto element = [&](int i) { return of_a ? a[row * kDepth + i] : b[i * 8 + row]; };
    if constexpr (kPairs) {
      struct {
        T low, high;
      } pair{element(k), element(k + 1)};
      return std::bit_cast<uint32_t>(pair);
    } else {
      return ptx::to_tf32(element(k));
    }
  };
  const int k = kPairs ? 2 * place : place, step = kDepth / 2;
  const uint32_t a_words[4] = {word(group, k, true), word(group + 8, k, true),
                               word(group, k + step, true), word(group + 8, k + step, true)};
  const uint32_t b_words[2] = {word(group, k, false), word(group, k + step, false)};
  float d[4] = {};
  multiply<T>(d, a_words, b_words);
  for (int i = 0; i < 4; ++i) c[(group + i / 2 * 8) * 8 + 2 * place + i % 2] = d[i];
}

// c (64 x 64) = a (64 x 64) b (64 x 64) by four warps, 16 rows each. In shared memory a has rows of
// 64, b is stored by columns if it need not be transposed: floats are pairs of 16-bit elements for
// ldmatrix, which takes 16 bytes of a row, but cannot transpose them.
template <class T, bool kTransposed, bool kPlanted>
__global__ void product(const T* a, const T* b, float* c, int* planted_line) {
  constexpr int kSize = 64, kPad = 16 / sizeof(T), kRow = kSize + kPad, kVector = 16 / sizeof(T);
  T* a_tile = dynamic_shared<T>();
  T* b_tile = a_tile + kSize * kRow;
  for (int i = threadIdx.x * kVector; i < kSize * kSize; i += blockDim.x * kVector) {
    ptx::cp_async_16(&a_tile[i / kSize * kRow + i % kSize], &a[i]);
    ptx::cp_async_16(&b_tile[i / kSize * kRow + i % kSize], &b[i]);
  }
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  if (!kPlanted) __syncthreads();
  constexpr int kStep = 2 * kVector;  // columns of a that an mma takes
  const int lane = ptx::lane_id(), row = threadIdx.x / 32 * 16;
  float d[kSize / 8][4] = {};
  for (int k = 0; k < kSize; k += kStep) {
    uint32_t a_words[4];
    const T* a_rows = &a_tile[(row + lane % 16) * kRow + k + lane / 16 * kVector];
    (PLANTED, ptx::ldmatrix_x4(a_words, a_rows));
    for (int n = 0; n < kSize / 8; n += 2) {
      uint32_t words[4];
      if constexpr (kTransposed) {
        ptx::ldmatrix_x4_trans(words, &b_tile[(k + lane % 16) * kRow + n * 8 + lane / 16 * 8]);
      } else {
        ptx::ldmatrix_x4(
            words, &b_tile[(n * 8 + lane / 16 * 8 + lane % 8) * kRow + k + lane / 8 % 2 * kVector]);
      }
      multiply<T>(d[n], a_words, {words[0], words[1]});
      multiply<T>(d[n + 1], a_words, {words[2], words[3]});
    }
  }
  for (int n = 0; n < kSize / 8; ++n) {
    for (int i = 0; i < 4; ++i) {
      c[(row + lane / 4 + i / 2 * 8) * kSize + n * 8 + lane % 4 * 2 + i % 2] = d[n][i];
    }
  }
}

// The two halves of an x4 load by x2 loads, and the transposition of a loaded matrix
__global__ void pairs_of_loads(const uint4* x, uint32_t* y) {
  __shared__ uint4 rows[32];
  rows[threadIdx.x] = x[threadIdx.x];
  __syncwarp();
  uint32_t four[4], four_trans[4], two[2], two_trans[2];
  const int lane = threadIdx.x;
  ptx::ldmatrix_x4(four, &rows[lane]);
  ptx::ldmatrix_x4_trans(four_trans, &rows[lane]);
  ptx::ldmatrix_x2(two, &rows[16 + lane % 16]);
  ptx::ldmatrix_x2_trans(two_trans, &rows[16 + lane % 16]);
  y[lane] = four[2] == two[0] && four[3] == two[1] && four_trans[2] == two_trans[0] &&
            four_trans[3] == two_trans[1] && four[2] != four_trans[2] &&
            ptx::movmatrix_trans(four[2]) == four_trans[2];
}

template <bool kPlanted>
__global__ void misaligned_row(float* y, int* planted_line) {
  __shared__ __align__(16) unsigned short tile[8 * 36];
  for (int i = threadIdx.x; i < 8 * 36; i += 32) tile[i] = 0;
  __syncwarp();
  uint32_t words[2];
  (PLANTED, ptx::ldmatrix_x2(words, &tile[threadIdx.x % 8 * (kPlanted ? 36 : 32)]));
  y[threadIdx.x] = words[0];
}

// Small whole numbers are exact in every type.
template <class T>
T element(size_t i) {
  return T(static_cast<float>(static_cast<int>(i * 7 % 11) - 5));
}

template <class T>
void test_single_product(const std::string& name) {
  const int depth = sizeof(T) == 2 ? 16 : 8;
  DeviceArray<T> a(16 * 16, element<T>), b(16 * 8, element<T>);
  DeviceArray<float> c(16 * 8, NAN);
  bool right = launch(single_product<T>, {1, 32}, kTarget, a, b, c).ok();
  for (int i = 0; i < 16 * 8; ++i) {
    float sum = 0;
    for (int k = 0; k < depth; ++k) {
      sum += float(a[i / 8 * depth + k]) * float(b[k * 8 + i % 8]);
    }
    right &= c[i] == sum;
  }
  check(right, "one mma of " + name);
}

template <class T, bool kTransposed>
void test_product(const std::string& name) {
  DeviceArray<T> a(64 * 64, element<T>),
      b(64 * 64, [](size_t i) { return element<T>(i + i / 64); });
  DeviceArray<float> c(64 * 64, NAN);
  const T *left = a, *right = b;
  float* out = c;
  const LaunchShape shape{1, 128, 2 * 64 * (64 + 16 / sizeof(T)) * sizeof(T)};
  must_report(emulator::Kind::kRace, "product", shape, product<T, kTransposed, true>, left, right,
              out);
  must_be_clean("product of " + name, shape, product<T, kTransposed, false>, left, right, out);
  bool equal = true;
  for (int i = 0; i < 64 * 64; ++i) {
    float sum = 0;
    for (int k = 0; k < 64; ++k) {
      sum += float(a[i / 64 * 64 + k]) * float(b[kTransposed ? k * 64 + i % 64 : i % 64 * 64 + k]);
    }
    equal &= c[i] == sum;
  }
  check(equal, "64 x 64 product of " + name);
}

}  // namespace

void test_matrices() {
  test_single_product<__half>("float16");
  test_single_product<__nv_bfloat16>("bfloat16");
  test_single_product<float>("tf32");
  test_product<__half, true>("float16, transposed");
  test_product<__nv_bfloat16, true>("bfloat16, transposed");
  test_product<__nv_bfloat16, false>("bfloat16");
  test_product<float, false>("tf32");
  DeviceArray<uint4> x(32, [](size_t i) {
    const unsigned n = static_cast<unsigned>(i) * 0x01000193u;
    return make_uint4(n + 1, n * 3 + 2, n * 5 + 3, n * 7 + 4);
  });
  DeviceArray<uint32_t> same(32, 0u);
  bool right = launch(pairs_of_loads, {1, 32}, kTarget, x, same).ok();
  for (int i = 0; i < 32; ++i) right &= same[i] == 1;
  check(right, "ldmatrix of two and of four matrices, and movmatrix");
  DeviceArray<float> y(32, 0.0f);
  float* out = y;
  CHECK_PLANTED(kMisaligned, misaligned_row, (LaunchShape{1, 32}), out);
}

}  // namespace fastdl::testing
