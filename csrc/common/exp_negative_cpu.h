// exp for arguments that are at most 0, as in softmax: half the operations of the general one.
#pragma once

#include "common/vector_math_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {

#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
// The bits of each element, shifted to the left.
template <int count>
inline Vec<float> shift_bits(Vec<float> value) {
#if defined(CPU_CAPABILITY_AVX512)
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(value), count));
#else
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(value), count));
#endif
}
template <int count>
inline Vec<double> shift_bits(Vec<double> value) {
#if defined(CPU_CAPABILITY_AVX512)
  return _mm512_castsi512_pd(_mm512_slli_epi64(_mm512_castpd_si512(value), count));
#else
  return _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(value), count));
#endif
}
#endif

// x = exp(x) within about 1 ulp for x <= 0. Results below the smallest normal number are 0, NaN
// stays NaN. Adding 1.5 * 2^23 (2^52) rounds x / ln 2 to an integer n in the lowest bits; with the
// bias of the exponent added they are, shifted into place, the number 2^n, or 0 where x was cut
// off. The N vectors go in step: a core looks only some 36 operations ahead, two and a half of
// these chains one after the other. Losses of rows of 4000, one core: 0.93 ns an element with one
// vector at a time, 0.75 with four.
template <int N, class V>
inline void exp_negative(V (&x)[N]) {
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
  using T = typename V::value_type;
  constexpr bool is_double = std::is_same_v<T, double>;
  constexpr T log2_e = 1.4426950408889634;
  constexpr T lowest = is_double ? -708.9 : -87.9f;  // n = -1023 or -127
  constexpr T shifter = is_double ? 0x1.8p52 + 1023 : 0x1.8p23f + 127;
  constexpr T ln2_high = is_double ? 0x1.62e42fefa38p-1 : 0x1.62e4p-1f;
  constexpr T ln2_low = is_double ? 0x1.ef35793c7673p-45 : 0x1.7f7d1cp-20f;
  V biased[N], p[N];
  for (int k = 0; k < N; ++k) x[k] = at::vec::clamp_min(x[k], V(lowest));
  for (int k = 0; k < N; ++k) biased[k] = at::vec::fmadd(x[k], V(log2_e), V(shifter));
  for (int k = 0; k < N; ++k) p[k] = biased[k] - V(shifter);
  for (int k = 0; k < N; ++k) x[k] = at::vec::fmadd(p[k], V(-ln2_high), x[k]);
  for (int k = 0; k < N; ++k) x[k] = at::vec::fmadd(p[k], V(-ln2_low), x[k]);
  const auto next_coefficient = [&](T coefficient) {
    for (int k = 0; k < N; ++k) p[k] = at::vec::fmadd(p[k], x[k], V(coefficient));
  };
  if constexpr (is_double) {
    for (int k = 0; k < N; ++k) p[k] = V(1.0 / 6227020800.0);
    for (const double coefficient :
         {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
          1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5, 1.0, 1.0}) {
      next_coefficient(coefficient);
    }
  } else {
    for (int k = 0; k < N; ++k) p[k] = V(0.00138144670593f);
    for (const float coefficient :
         {0.00836878041118f, 0.0416683942109f, 0.166665201078f, 0.499999934125f, 1.0f, 1.0f}) {
      next_coefficient(coefficient);
    }
  }
  for (int k = 0; k < N; ++k) x[k] = p[k] * shift_bits<is_double ? 52 : 23>(biased[k]);
#else
  for (int k = 0; k < N; ++k) x[k] = exp(x[k]);
#endif
}

template <class V>
inline V exp_negative(V x) {
  V one[1] = {x};
  exp_negative(one);
  return one[0];
}

// x = 2^x within about 1 ulp for x <= 0, float, otherwise as exp_negative: no rounding error of a
// factor to make up for, and one product less.
template <int N>
inline void exp2_negative(Vec<float> (&x)[N]) {
  using V = Vec<float>;
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
  constexpr float shifter = 0x1.8p23f + 127;
  V biased[N], p[N];
  for (int k = 0; k < N; ++k) x[k] = at::vec::clamp_min(x[k], V(-127.0f));
  for (int k = 0; k < N; ++k) biased[k] = x[k] + V(shifter);
  for (int k = 0; k < N; ++k) x[k] = x[k] - (biased[k] - V(shifter));
  for (int k = 0; k < N; ++k) p[k] = V(0.000153209926f);
  for (const float coefficient :
       {0.00133902744f, 0.00961852789f, 0.0555036206f, 0.240226475f, 0.693147181f, 1.0f}) {
    for (int k = 0; k < N; ++k) p[k] = at::vec::fmadd(p[k], x[k], V(coefficient));
  }
  for (int k = 0; k < N; ++k) x[k] = p[k] * shift_bits<23>(biased[k]);
#else
  for (int k = 0; k < N; ++k) x[k] = exp(x[k] * V(0.693147181f));
#endif
}

}  // namespace CPU_CAPABILITY
}  // namespace fastdl
