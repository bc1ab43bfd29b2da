// float16 and bfloat16: arithmetic in float, rounded once to nearest, ties to even.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "emulated/keywords.h"
#include "emulated/vector_types.h"

namespace fastdl::emulator {

__forceinline__ uint16_t float_to_half(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return 0x7fff;                                 // NaN
  if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // infinity
  if (magnitude < 0x38800000) {  // below 2^-14: counts 2^-24, which this sum leaves in its low bits
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000));
  }
  const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
  return static_cast<uint16_t>(sign | ((rounded >> 13) - (112 << 10)));
}

__forceinline__ float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, magnitude = half & 0x7fff;
  if (magnitude < 0x400) {  // denormal
    const float value = static_cast<float>(magnitude) * 0x1p-24f;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | sign);
  }
  const uint32_t exponent = magnitude >= 0x7c00 ? 224u << 23 : 112u << 23;
  return std::bit_cast<float>(sign | ((magnitude << 13) + exponent));
}

__forceinline__ uint16_t float_to_bfloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;  // NaN
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

__forceinline__ float bfloat16_to_float(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

}  // namespace fastdl::emulator

#define FASTDL_HALF_TYPE(T, from_float, to_float)                                          \
  struct T {                                                                               \
    uint16_t bits;                                                                         \
    T() = default;                                                                         \
    __forceinline__ explicit T(float x) : bits(fastdl::emulator::from_float(x)) {}         \
    __forceinline__ explicit T(double x) : T(static_cast<float>(x)) {}                     \
    __forceinline__ explicit T(int x) : T(static_cast<float>(x)) {}                        \
    __forceinline__ operator float() const { return fastdl::emulator::to_float(bits); }    \
    __forceinline__ T& operator+=(T y) { return *this = T(float(*this) + float(y)); }      \
    __forceinline__ T& operator-=(T y) { return *this = T(float(*this) - float(y)); }      \
    __forceinline__ T& operator*=(T y) { return *this = T(float(*this) * float(y)); }      \
    __forceinline__ T& operator/=(T y) { return *this = T(float(*this) / float(y)); }      \
  };                                                                                       \
  __forceinline__ T operator+(T x, T y) { return T(float(x) + float(y)); }                 \
  __forceinline__ T operator-(T x, T y) { return T(float(x) - float(y)); }                 \
  __forceinline__ T operator*(T x, T y) { return T(float(x) * float(y)); }                 \
  __forceinline__ T operator/(T x, T y) { return T(float(x) / float(y)); }                 \
  __forceinline__ T operator-(T x) { return std::bit_cast<T>(uint16_t(x.bits ^ 0x8000)); } \
  __forceinline__ bool operator==(T x, T y) { return float(x) == float(y); }               \
  __forceinline__ bool operator<(T x, T y) { return float(x) < float(y); }                 \
  __forceinline__ bool operator>(T x, T y) { return float(x) > float(y); }                 \
  __forceinline__ bool operator<=(T x, T y) { return float(x) <= float(y); }               \
  __forceinline__ bool operator>=(T x, T y) { return float(x) >= float(y); }               \
  struct alignas(4) T##2 { T x, y; };

FASTDL_HALF_TYPE(__half, float_to_half, half_to_float)
FASTDL_HALF_TYPE(__nv_bfloat16, float_to_bfloat16, bfloat16_to_float)
#undef FASTDL_HALF_TYPE

__forceinline__ __half __float2half_rn(float x) { return __half(x); }
__forceinline__ __half __float2half(float x) { return __half(x); }
__forceinline__ float __half2float(__half x) { return float(x); }
__forceinline__ __half2 __floats2half2_rn(float x, float y) { return {__half(x), __half(y)}; }
__forceinline__ __half2 __float22half2_rn(float2 v) { return {__half(v.x), __half(v.y)}; }
__forceinline__ float2 __half22float2(__half2 v) { return {float(v.x), float(v.y)}; }
__forceinline__ float __low2float(__half2 v) { return float(v.x); }
__forceinline__ float __high2float(__half2 v) { return float(v.y); }
__forceinline__ __half2 __halves2half2(__half x, __half y) { return {x, y}; }
__forceinline__ unsigned short __half_as_ushort(__half x) { return x.bits; }
__forceinline__ __half __ushort_as_half(unsigned short x) { return std::bit_cast<__half>(x); }

__forceinline__ __nv_bfloat16 __float2bfloat16_rn(float x) { return __nv_bfloat16(x); }
__forceinline__ __nv_bfloat16 __float2bfloat16(float x) { return __nv_bfloat16(x); }
__forceinline__ float __bfloat162float(__nv_bfloat16 x) { return float(x); }
__forceinline__ __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__nv_bfloat16(x), __nv_bfloat16(y)};
}
__forceinline__ __nv_bfloat162 __float22bfloat162_rn(float2 v) {
  return {__nv_bfloat16(v.x), __nv_bfloat16(v.y)};
}
__forceinline__ float2 __bfloat1622float2(__nv_bfloat162 v) { return {float(v.x), float(v.y)}; }
__forceinline__ float __low2float(__nv_bfloat162 v) { return float(v.x); }
__forceinline__ float __high2float(__nv_bfloat162 v) { return float(v.y); }
__forceinline__ __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) {
  return {x, y};
}
__forceinline__ unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
__forceinline__ __nv_bfloat16 __ushort_as_bfloat16(unsigned short x) {
  return std::bit_cast<__nv_bfloat16>(x);
}
