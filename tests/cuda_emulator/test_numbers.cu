// Conversions between the types of numbers, and the functions that approximate.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <random>

#include "buffer.h"
#include "common/ptx.cuh"
#include "planted.h"
#include "tests.h"

namespace fastdl::testing {
namespace {

// Bits of all kinds of floats: every exponent, halves of the last bit that is kept, and around it.
std::vector<float> interesting_floats() {
  std::vector<float> all = {0, -0.0f, INFINITY, -INFINITY, NAN, 65504, 65519.996f, 65520, 1e30f};
  std::mt19937 generator(1);
  for (uint32_t exponent = 0; exponent < 255; ++exponent) {
    for (const uint32_t tail : {0u, 1u, 0xfffu, 0x1000u, 0x1001u, 0x7fffu, 0x8000u, 0x8001u}) {
      for (int i = 0; i < 4; ++i) {
        const uint32_t head = generator() & 0x807f0000u;
        all.push_back(__uint_as_float(head | exponent << 23 | (generator() & 0xe000u) | tail));
        all.push_back(__uint_as_float(head | exponent << 23 | tail));
      }
    }
  }
  return all;
}

bool same_half(double expected, float got) {
  return std::isnan(expected) ? std::isnan(got)
                              : expected == got && std::signbit(expected) == std::signbit(got);
}

void test_halves() {
  bool float16 = true, bfloat16 = true;
  for (const float value : interesting_floats()) {
    const __half half = __float2half_rn(value);
    const __nv_bfloat16 brain = __float2bfloat16_rn(value);
    if (std::isnan(value)) {
      float16 &= std::isnan(__half2float(half));
      bfloat16 &= std::isnan(__bfloat162float(brain));
      continue;
    }
    float16 &= __half_as_ushort(half) == float16_bits(value);
    bfloat16 &= __bfloat16_as_ushort(brain) == bfloat16_bits(value);
  }
  check(float16, "float to float16 rounds to nearest, ties to even");
  check(bfloat16, "float to bfloat16 rounds to nearest, ties to even");
  float16 = bfloat16 = true;
  for (unsigned bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<unsigned short>(bits);
    float16 &= same_half(float16_value(half), __half2float(__ushort_as_half(half)));
    bfloat16 &= same_half(bfloat16_value(half), __bfloat162float(__ushort_as_bfloat16(half)));
  }
  check(float16 && bfloat16, "every float16 and bfloat16 becomes its float");

  const float2 pair = __half22float2(__float22half2_rn(make_float2(1.5f, -3)));
  const float2 brains = __bfloat1622float2(__float22bfloat162_rn(make_float2(2.5f, -7)));
  check(pair.x == 1.5f && pair.y == -3 && brains.x == 2.5f && brains.y == -7, "pairs of halves");
  const __nv_bfloat16 three(3.0f), third = __nv_bfloat16(1.0f) / three;
  check(float(third) == bfloat16_value(bfloat16_bits(1.0 / 3)) && float(three * three) == 9 &&
            float(-three) == -3 && __half(2.0f) < __half(3.0f),
        "arithmetic of halves is rounded once");
  check(std::is_trivially_default_constructible_v<__half> &&
            std::is_trivially_default_constructible_v<__nv_bfloat162> && sizeof(__half2) == 4 &&
            alignof(__half2) == 4 && alignof(float4) == 16 && alignof(float2) == 8 &&
            alignof(double2) == 16 && alignof(int2) == 8 && sizeof(float3) == 12,
        "types have CUDA's sizes and alignments");
}

void test_functions() {
  check(ptx::to_tf32(1.0f) == 0x3f800000 && ptx::to_tf32(1 + 0x1p-11f) == 0x3f802000 &&
            ptx::to_tf32(-1 - 0x1p-11f) == 0xbf802000 && ptx::to_tf32(1 + 0x1p-12f) == 0x3f800000 &&
            ptx::to_tf32(INFINITY) == 0x7f800000,
        "tf32 rounds to nearest, ties away from zero");
  check(ptx::exp2_approx(3) == 8 && ptx::exp2_approx(-INFINITY) == 0 &&
            ptx::exp2_approx(-130) == 0 && std::isinf(ptx::exp2_approx(128)) &&
            std::isnan(ptx::exp2_approx(NAN)),
        "exp2 without denormal numbers");
  check(close(__expf(1.5f), std::exp(1.5), 1e-6) && close(__logf(7), std::log(7.0), 1e-6) &&
            close(rsqrtf(5), 1 / std::sqrt(5.0), 1e-6) && rsqrt(4.0) == 0.5 &&
            __fdividef(1, 4) == 0.25f && __frcp_rn(8) == 0.125f && __fmaf_rn(2, 3, 4) == 10,
        "fast functions");
  check(__saturatef(-1) == 0 && __saturatef(0.25f) == 0.25f && __saturatef(2) == 1 &&
            __saturatef(NAN) == 0 && fmaxf(NAN, 1) == 1 && max(3, 5) == 5 && min(2.0f, 1.0f) == 1,
        "saturation, minimum and maximum");
  check(__popc(0xf0f0) == 8 && __ffs(0) == 0 && __ffs(8) == 4 && __clz(0) == 32 && __clz(1) == 31 &&
            __brev(1) == 0x80000000u && __umulhi(1u << 31, 6) == 3,
        "functions of bits");
}

}  // namespace

void test_numbers() {
  test_halves();
  test_functions();
}

}  // namespace fastdl::testing
