// What the activation functions are made of: exponentials that need not reach the ends of the
// number range, and the normal distribution.
#pragma once

#include <cmath>

#include "common/vector_math_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {

// 2^n for integral n from -127 (gives 0) to 128 (infinity); double: -1023 to 1024.
inline Vec<float> power_of_two(Vec<float> n) {
#if defined(CPU_CAPABILITY_AVX512)
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
#elif defined(CPU_CAPABILITY_AVX2)
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
#else
  alignas(64) float values[Vec<float>::size()];
  n.store(values);
  for (float& value : values) {
    value = value > -127.0f ? std::ldexp(1.0f, static_cast<int>(value)) : 0.0f;
  }
  return Vec<float>::loadu(values);
#endif
}

inline Vec<double> power_of_two(Vec<double> n) {
  // The sum's lowest bits are the biased exponent.
  [[maybe_unused]] const Vec<double> biased = n + Vec<double>(0x1.8p52 + 1023);
#if defined(CPU_CAPABILITY_AVX512)
  return _mm512_castsi512_pd(_mm512_slli_epi64(_mm512_castpd_si512(biased), 52));
#elif defined(CPU_CAPABILITY_AVX2)
  return _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(biased), 52));
#else
  alignas(64) double values[Vec<double>::size()];
  n.store(values);
  for (double& value : values) {
    value = value > -1023.0 ? std::ldexp(1.0, static_cast<int>(value)) : 0.0;
  }
  return Vec<double>::loadu(values);
#endif
}

// exp(x) = 2^n (1 + q) with q = exp(r) - 1 = r + r^2 P(r): as in exp() of vector_math_cpu.h.
template <class V>
inline V split_exp(V x, V& n) {
  using T = typename V::value_type;
  constexpr bool is_double = std::is_same_v<T, double>;
  constexpr T log2_e = 1.4426950408889634;
  constexpr T ln2_high = is_double ? 0x1.62e42fefa38p-1 : 0x1.62e4p-1f;
  constexpr T ln2_low = is_double ? 0x1.ef35793c7673p-45 : 0x1.7f7d1cp-20f;
  n = (x * V(log2_e)).round();
  const V r = fmadd(n, V(-ln2_low), fmadd(n, V(-ln2_high), x));
  const V square = r * r;
  if constexpr (is_double) {
    V p(1.0 / 6227020800.0);
    for (const double coefficient :
         {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
          1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5}) {
      p = fmadd(p, r, V(coefficient));
    }
    return fmadd(p, square, r);
  } else {
    // In two halves, which need not wait for each other
    const V low = fmadd(r, V(0.166665201078f), V(0.499999934125f));
    const V high = fmadd(r, V(0.00836878041118f), V(0.0416683942109f));
    return fmadd(fmadd(square, fmadd(square, V(0.00138144670593f), high), low), square, r);
  }
}

// exp(x), scaled in half the instructions of exp(): 0 where that would be denormal, and infinity
// from 0.7 times the largest number on.
template <class V>
inline V quick_exp(V x) {
  using T = typename V::value_type;
  constexpr bool is_double = std::is_same_v<T, double>;
  constexpr T lowest = is_double ? -709.0 : -88.0f, highest = is_double ? 709.7 : 88.7f;
  V n;
  const V q = split_exp(clamp_max(clamp_min(x, V(lowest)), V(highest)), n);
  return (q + V(1)) * power_of_two(n);
}

// exp(x) - 1 for x <= 0, within about 1 ulp.
template <class V>
inline V exp_minus_1_of_negative(V x) {
  V n;
  const V q = split_exp(clamp_min(x, V(-40)), n);
  const V scale = power_of_two(n);
  return fmadd(scale, q, scale - V(1));
}

template <class V>
inline V sigmoid(V x) {
  return V(1) / (V(1) + quick_exp(x.neg()));
}

// With E = exp(-2|x|) and e = E - 1: tanh |x| = -e / (E + 1), and 1 - 2 E / (E + 1) where that is
// more than a half: within 1 ulp over all of the range.
template <class V>
inline V tanh(V x) {
  const V sign = x & V(-0.0), one(1), magnitude = x.abs();
  V n;
  const V q = split_exp(clamp_min(magnitude * V(-2), V(-60)), n);
  const V scale = power_of_two(n), power = fmadd(scale, q, scale);
  const V e = fmadd(scale, q, scale - one);
  const V large = magnitude > V(0.6);
  const V quotient = V::blendv(e, power + power, large) / (power + one);
  return V::blendv(quotient.abs(), one - quotient, large) | sign;
}

// The normal distribution of -|x|.
// float: 1/2 - |x| P(x^2) / Q(x^2), a fit for |x| <= 5.5 (relative error 2e-8), and 0 beyond.
// double: exp(-x^2 / 2) P(s), s = 2 / (1 + |x| / 4) - 1 (absolute error 1e-15).
template <class V>
inline V normal_tail(V x) {
  using T = typename V::value_type;
  const V magnitude = x.abs();
  if constexpr (std::is_same_v<T, double>) {
    const V s = V(2.0) / fmadd(magnitude, V(0.25), V(1.0)) - V(1.0);
    V p(-7.087111252093016e-10);
    for (const double coefficient :
         {-4.237890168821146e-09, 1.1042339685207489e-08,  3.771830524715523e-08,
          -9.60524346606891e-08,  -1.8831707494663575e-07, 6.628374906599355e-07,
          8.163488521076052e-07,  -4.304163978892107e-06,  -4.625374838338951e-06,
          2.8648520027072186e-05, 4.5553042760135645e-05,  -0.00018718430016647868,
          -0.0006388135164081389, 0.0005075620780151764,   0.008492095448578025,
          0.030864804106184442,   0.07170740733928084,     0.12437925533926522,
          0.1703977215484344,     0.09441064130196894}) {
      p = fmadd(p, s, V(coefficient));
    }
    return quick_exp(x * x * V(-0.5)) * p;
  } else {
    const V range(5.5f), bounded = clamp_max(magnitude, range), square = bounded * bounded;
    V p(2.293158826e-8f), q(1.19896392e-6f);
    for (const float coefficient :
         {6.300536059e-6f, 0.0001645093f, 0.004651076514f, 0.03345323668f, 0.3989422739f}) {
      p = fmadd(p, square, V(coefficient));
    }
    for (const float coefficient :
         {7.214325898e-5f, 0.001860280603f, 0.02841274338f, 0.250521234f, 1.0f}) {
      q = fmadd(q, square, V(coefficient));
    }
    return V::blendv(V(0.5f) - bounded * (p / q), V(0.0f), magnitude > range);
  }
}

template <class V>
inline V normal_cdf(V x) {
  const V tail = normal_tail(x);
  return V::blendv(tail, V(1) - tail, x > V(0));
}

}  // namespace CPU_CAPABILITY
}  // namespace fastdl
