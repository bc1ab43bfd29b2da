// The activation functions on vectors, and what their kernels share with others: exponentials whose
// argument is bounded, and the normal distribution.
#pragma once

#include "activation/activation.h"
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
  for (float& value : values) value = value == -127.0f ? 0.0f : std::ldexp(1.0f, int(value));
  return Vec<float>::loadu(values);
#endif
}

inline Vec<double> power_of_two(Vec<double> n) {
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
  // The sum has n + 1023 as its lowest bits.
  const Vec<double> biased = n + Vec<double>(0x1.8p52 + 1023);
#if defined(CPU_CAPABILITY_AVX512)
  return _mm512_castsi512_pd(_mm512_slli_epi64(_mm512_castpd_si512(biased), 52));
#else
  return _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(biased), 52));
#endif
#else
  alignas(64) double values[Vec<double>::size()];
  n.store(values);
  for (double& value : values) value = value == -1023.0 ? 0.0 : std::ldexp(1.0, int(value));
  return Vec<double>::loadu(values);
#endif
}

// exp(x) = 2^n (1 + q): q = exp(r) - 1 = r + r^2 P(r), as in exp(), for x within the limits.
template <class V>
inline V split_exp(V x, V& n) {
  using T = typename V::value_type;
  constexpr bool is_double = std::is_same_v<T, double>;
  constexpr T ln2_high = is_double ? 0x1.62e42fefa38p-1 : 0x1.62e4p-1f;
  constexpr T ln2_low = is_double ? 0x1.ef35793c7673p-45 : 0x1.7f7d1cp-20f;
  n = (x * V(T(1.4426950408889634))).round();
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
  return at::vec::fmadd(p * r, r, r);
}

// exp(x) in half the instructions that exp() takes to scale: 0 where the result would be
// denormal, infinity from 0.7 times the largest number on.
template <class V>
inline V quick_exp(V x) {
  using T = typename V::value_type;
  constexpr bool is_double = std::is_same_v<T, double>;
  constexpr T lowest = is_double ? -709.0 : -88.0f, highest = is_double ? 709.7 : 88.7f;
  V n;
  const V q = split_exp(at::vec::clamp_max(at::vec::clamp_min(x, V(lowest)), V(highest)), n);
  const V scale = power_of_two(n);
  return at::vec::fmadd(scale, q, scale);
}

// exp(x) - 1 for x <= 0.
template <class V>
inline V exp_minus_1_of_negative(V x) {
  using T = typename V::value_type;
  V n;
  const V q = split_exp(at::vec::clamp_min(x, V(T(-40))), n);
  const V scale = power_of_two(n);
  return at::vec::fmadd(scale, q, scale - V(T(1)));
}

template <class V>
inline V sigmoid(V x) {
  using T = typename V::value_type;
  return V(T(1)) / (V(T(1)) + quick_exp(x.neg()));
}

// With e = exp(-2|x|) - 1: tanh |x| = -e / (e + 2). Exact to the last digits for small x, too.
template <class V>
inline V tanh(V x) {
  using T = typename V::value_type;
  const V sign = x & V(T(-0.0));
  const V e = exp_minus_1_of_negative((x.abs()) * V(T(-2)));
  return (e.neg() / (e + V(T(2)))) ^ sign;
}

// The normal distribution, within about one digit of 1.
// float: 1/2 + x P(x^2) / Q(x^2), a rational fit for |x| <= 5.5 (relative error 2e-8), below 0.
// double: exp(-x^2 / 2) P(s) of -|x|, s = 2 / (1 + |x| / 4) - 1 (absolute error 1e-15).
inline Vec<float> normal_cdf(Vec<float> x) {
  using V = Vec<float>;
  constexpr float range = 5.5f;
  const V bounded = at::vec::clamp_max(at::vec::clamp_min(x, V(-range)), V(range));
  const V square = bounded * bounded;
  V p(2.293246388e-8f), q(1.198893812e-6f);
  for (const float coefficient :
       {6.299226183e-6f, 0.000164426384f, 0.004650553423f, 0.03344591542f, 0.398942274f}) {
    p = at::vec::fmadd(p, square, V(coefficient));
  }
  for (const float coefficient :
       {7.211293947e-5f, 0.001859809366f, 0.02840836495f, 0.2505028868f, 1.0f}) {
    q = at::vec::fmadd(q, square, V(coefficient));
  }
  const V value = at::vec::fmadd(bounded, p / q, V(0.5f));
  return V::blendv(value, V(0.0f), x < V(-range));
}
