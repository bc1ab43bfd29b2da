// Four vectors that go through the same operations side by side. An exponential is a chain of
// some 20 operations that wait for each other; a core that looks few operations ahead (AMD Zen 1:
// two such chains) has the next vectors' to do meanwhile only if they stand between.
#pragma once

#include "common/bounded_math_cpu.h"
#include "common/loops_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {

template <class V>
struct Four {
  using value_type = typename V::value_type;
  V a, b, c, d;

  Four() = default;
  Four(V first, V second, V third, V fourth) : a(first), b(second), c(third), d(fourth) {}
  explicit Four(value_type value) : a(value), b(value), c(value), d(value) {}

  Four neg() const { return {a.neg(), b.neg(), c.neg(), d.neg()}; }
  Four abs() const { return {a.abs(), b.abs(), c.abs(), d.abs()}; }
  Four round() const { return {a.round(), b.round(), c.round(), d.round()}; }

  static Four blendv(const Four& x, const Four& y, const Four& mask) {
    return {V::blendv(x.a, y.a, mask.a), V::blendv(x.b, y.b, mask.b), V::blendv(x.c, y.c, mask.c),
            V::blendv(x.d, y.d, mask.d)};
  }

  friend Four operator+(const Four& x, const Four& y) {
    return {x.a + y.a, x.b + y.b, x.c + y.c, x.d + y.d};
  }
  friend Four operator-(const Four& x, const Four& y) {
    return {x.a - y.a, x.b - y.b, x.c - y.c, x.d - y.d};
  }
  friend Four operator*(const Four& x, const Four& y) {
    return {x.a * y.a, x.b * y.b, x.c * y.c, x.d * y.d};
  }
  friend Four operator/(const Four& x, const Four& y) {
    return {x.a / y.a, x.b / y.b, x.c / y.c, x.d / y.d};
  }
  friend Four operator&(const Four& x, const Four& y) {
    return {x.a & y.a, x.b & y.b, x.c & y.c, x.d & y.d};
  }
  friend Four operator|(const Four& x, const Four& y) {
    return {x.a | y.a, x.b | y.b, x.c | y.c, x.d | y.d};
  }
  friend Four operator>(const Four& x, const Four& y) {
    return {x.a > y.a, x.b > y.b, x.c > y.c, x.d > y.d};
  }
  friend Four operator>=(const Four& x, const Four& y) {
    return {x.a >= y.a, x.b >= y.b, x.c >= y.c, x.d >= y.d};
  }
  friend Four operator<=(const Four& x, const Four& y) {
    return {x.a <= y.a, x.b <= y.b, x.c <= y.c, x.d <= y.d};
  }
  friend Four fmadd(const Four& x, const Four& y, const Four& z) {
    return {fmadd(x.a, y.a, z.a), fmadd(x.b, y.b, z.b), fmadd(x.c, y.c, z.c), fmadd(x.d, y.d, z.d)};
  }
  friend Four clamp_min(const Four& x, const Four& y) {
    return {clamp_min(x.a, y.a), clamp_min(x.b, y.b), clamp_min(x.c, y.c), clamp_min(x.d, y.d)};
  }
  friend Four clamp_max(const Four& x, const Four& y) {
    return {clamp_max(x.a, y.a), clamp_max(x.b, y.b), clamp_max(x.c, y.c), clamp_max(x.d, y.d)};
  }
  friend Four power_of_two(const Four& n) {
    return {power_of_two(n.a), power_of_two(n.b), power_of_two(n.c), power_of_two(n.d)};
  }
};

// kStep elements in memory, and on their way through a function.
template <class T>
inline constexpr int64_t kStep = 4 * kWidth<T>;

template <class T>
Four<Vec<T>> load_four(const T* data) {
  constexpr int64_t w = kWidth<T>;
  return {load_vector(data), load_vector(data + w), load_vector(data + 2 * w),
          load_vector(data + 3 * w)};
}

#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
// Two vectors of 16-bit elements fill one register: rounded together they take fewer instructions.
template <class T>
void write_pair(T* data, Vec<T> first, Vec<T> second, bool streaming) {
  const Float32s low = first, high = second;
  const auto bits = std::is_same_v<T, c10::BFloat16> ? at::vec::cvtfp32_bf16(low, high)
                                                     : at::vec::cvtfp32_fp16(low, high);
#if defined(CPU_CAPABILITY_AVX512)
  __m512i* const to = reinterpret_cast<__m512i*>(data);
  streaming ? _mm512_stream_si512(to, bits) : _mm512_storeu_si512(to, bits);
#else
  __m256i* const to = reinterpret_cast<__m256i*>(data);
  streaming ? _mm256_stream_si256(to, bits) : _mm256_storeu_si256(to, bits);
#endif
}
#else
template <class T>
void write_pair(T* data, Vec<T> first, Vec<T> second, bool) {
  store_vector(data, first);
  store_vector(data + kWidth<T>, second);
}
#endif

template <class T>
void write_four(T* data, const Four<Vec<T>>& values, bool streaming) {
  constexpr int64_t w = kWidth<T>;
  if constexpr (sizeof(T) == 2) {
    write_pair(data, values.a, values.b, streaming);
    write_pair(data + 2 * w, values.c, values.d, streaming);
  } else {
    write_vector(data, values.a, kWhole, streaming);
    write_vector(data + w, values.b, kWhole, streaming);
    write_vector(data + 2 * w, values.c, kWhole, streaming);
    write_vector(data + 3 * w, values.d, kWhole, streaming);
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace fastdl
