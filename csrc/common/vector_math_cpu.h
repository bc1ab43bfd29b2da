// Elementary functions on vectors.
#pragma once

#include <array>

#include "common/vector_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {

// 2^n for integral n; zero below the smallest normal number.
inline Vec<float> scale_by_power_of_two(Vec<float> value, Vec<float> n) {
#if defined(CPU_CAPABILITY_AVX512)
  return _mm512_scalef_ps(value, n);
#elif defined(CPU_CAPABILITY_AVX2)
  // Two factors, so that n = 128 (a result just below the largest float) does not overflow.
  const __m256i exponent = _mm256_cvtps_epi32(n);
  const __m256i half = _mm256_srai_epi32(exponent, 1);
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256i rest = _mm256_sub_epi32(exponent, half);
  const __m256 first = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
  const __m256 second = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
  return _mm256_mul_ps(_mm256_mul_ps(value, first), second);
#else
  alignas(64) float values[Vec<float>::size()], powers[Vec<float>::size()];
  value.store(values);
  n.store(powers);
  for (int i = 0; i < Vec<float>::size(); ++i) {
    values[i] = std::ldexp(values[i], static_cast<int>(powers[i]));
  }
  return Vec<float>::loadu(values);
#endif
}

inline Vec<double> scale_by_power_of_two(Vec<double> value, Vec<double> n) {
#if defined(CPU_CAPABILITY_AVX512)
  return _mm512_scalef_pd(value, n);
#else
  alignas(64) double values[Vec<double>::size()], powers[Vec<double>::size()];
  value.store(values);
  n.store(powers);
  for (int i = 0; i < Vec<double>::size(); ++i) {
    values[i] = std::ldexp(values[i], static_cast<int>(powers[i]));
  }
  return Vec<double>::loadu(values);
#endif
}

// exp(x) within about 1 ulp: x = n ln 2 + r, |r| <= ln 2 / 2, exp(x) = 2^n (1 + r + r^2 P(r)).
// NaN stays NaN, -inf gives 0, overflow gives inf. P: a Remez fit (float, relative error 3e-9) and
// the Taylor series (double, 4e-18); ln 2 is split in two so that n ln 2 is subtracted exactly.
template <class V>
inline V exp(V x) {
  using T = typename V::value_type;
  constexpr bool is_double = std::is_same_v<T, double>;
  constexpr T lowest = is_double ? -746.0 : -104.0f;
  constexpr T highest = is_double ? 710.0 : 89.0f;
  constexpr T log2_e = 1.4426950408889634;
  constexpr T ln2_high = is_double ? 0x1.62e42fefa38p-1 : 0x1.62e4p-1f;
  constexpr T ln2_low = is_double ? 0x1.ef35793c7673p-45 : 0x1.7f7d1cp-20f;
  x = at::vec::clamp_max(at::vec::clamp_min(x, V(lowest)), V(highest));
  const V n = (x * V(log2_e)).round();
  const V r = at::vec::fmadd(n, V(-ln2_low), at::vec::fmadd(n, V(-ln2_high), x));
  V p;
  if constexpr (is_double) {
    p = V(1.0 / 6227020800.0);
    for (const double coefficient :
         {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
          1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5}) {
      p = at::vec::fmadd(p, r, V(coefficient));
    }
  } else {
    p = V(0.00138144670593f);
    for (const float coefficient :
         {0.00836878041118f, 0.0416683942109f, 0.166665201078f, 0.499999934125f}) {
      p = at::vec::fmadd(p, r, V(coefficient));
    }
  }
  const V scaled = at::vec::fmadd(p * r, r, r) + V(T(1));
  return scale_by_power_of_two(scaled, n);
}

#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
// x = 2^n f with f in [sqrt(1/2), sqrt(2)); false where a lane is not a positive normal number.
inline bool split_exponent(Vec<float> x, Vec<float>& n, Vec<float>& f) {
  constexpr float smallest = 0x1p-126f, largest = 0x1.fffffep127f;
  constexpr int sqrt_half = 0x3f3504f3;
#if defined(CPU_CAPABILITY_AVX512)
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i exponent =
      _mm512_srai_epi32(_mm512_sub_epi32(bits, _mm512_set1_epi32(sqrt_half)), 23);
  n = _mm512_cvtepi32_ps(exponent);
  f = _mm512_castsi512_ps(_mm512_sub_epi32(bits, _mm512_slli_epi32(exponent, 23)));
  const __mmask16 big = _mm512_cmp_ps_mask(x, _mm512_set1_ps(smallest), _CMP_GE_OQ);
  return _mm512_mask_cmp_ps_mask(big, x, _mm512_set1_ps(largest), _CMP_LE_OQ) == 0xffff;
#else
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i exponent =
      _mm256_srai_epi32(_mm256_sub_epi32(bits, _mm256_set1_epi32(sqrt_half)), 23);
  n = _mm256_cvtepi32_ps(exponent);
  f = _mm256_castsi256_ps(_mm256_sub_epi32(bits, _mm256_slli_epi32(exponent, 23)));
  const __m256 big = _mm256_cmp_ps(x, _mm256_set1_ps(smallest), _CMP_GE_OQ);
  const __m256 small = _mm256_cmp_ps(x, _mm256_set1_ps(largest), _CMP_LE_OQ);
  return _mm256_movemask_ps(_mm256_and_ps(big, small)) == 0xff;
#endif
}
#endif

// log(x): log f = 2 atanh z = 2 (z + z^3/3 + ...) with z = (f - 1) / (f + 1), within about 1 ulp;
// doubles and vectors with a zero, denormal, infinity or NaN by the C library.
template <class V>
inline V log(V x) {
  using T = typename V::value_type;
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
  if constexpr (std::is_same_v<T, float>) {
    V n, f;
    if (split_exponent(x, n, f)) {
      const V z = (f - V(1.0f)) / (f + V(1.0f));
      const V z2 = z * z;
      V p = V(2.0f / 9);
      for (const float coefficient : {2.0f / 7, 2.0f / 5, 2.0f / 3}) {
        p = at::vec::fmadd(p, z2, V(coefficient));
      }
      const V log_f = at::vec::fmadd(p * z2, z, z + z);
      return at::vec::fmadd(n, V(0x1.62e4p-1f), at::vec::fmadd(n, V(0x1.7f7d1cp-20f), log_f));
    }
  }
#endif
  alignas(64) T values[V::size()];
  x.store(values);
  for (T& value : values) value = std::log(value);
  return V::loadu(values);
}

}  // namespace CPU_CAPABILITY
}  // namespace fastdl
