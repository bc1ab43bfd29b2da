// Vectors for CPU kernels, on top of ATen/cpu/vec: loads that widen 16-bit types to float, stores
// that narrow them, tails, streaming stores and an accurate exp. Everything is computed in
// Accumulate<T>: float, or double for double.
#pragma once

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/cpu_isa.h"

namespace fastdl {

struct CpuTypes {
  using BFloat16 = c10::BFloat16;
  using Float16 = c10::Half;
};

inline namespace CPU_CAPABILITY {

template <class T>
using Accumulate = std::conditional_t<std::is_same_v<T, double>, double, float>;
template <class T>
using Vec = at::vec::Vectorized<Accumulate<T>>;

template <class T>
inline constexpr int64_t kWidth = Vec<T>::size();

// 16-bit elements as they lie in memory, kWidth of them, and their way to float and back (to
// nearest, ties to even).
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
#if defined(CPU_CAPABILITY_AVX512)
using Bits16 = __m256i;
using Float32s = __m512;
#else
using Bits16 = __m128i;
using Float32s = __m256;
#endif

template <class T>
inline Vec<T> widen(Bits16 bits) {
  Float32s wide;
  if constexpr (std::is_same_v<T, c10::BFloat16>) {
    at::vec::cvtbf16_fp32(bits, wide);
  } else {
    at::vec::cvtfp16_fp32(bits, wide);
  }
  return wide;
}

template <class T>
inline Bits16 narrow(Vec<T> value) {
  if constexpr (std::is_same_v<T, c10::BFloat16>)
    return at::vec::cvtfp32_bf16(value);
  else
    return at::vec::cvtfp32_fp16(value);
}
#endif

// The kWidth<T> elements at `data`.
template <class T>
inline Vec<T> load_vector(const T* data) {
  if constexpr (sizeof(T) != 2) {
    return Vec<T>::loadu(data);
  } else {
#if defined(CPU_CAPABILITY_AVX512)
    return widen<T>(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(data)));
#elif defined(CPU_CAPABILITY_AVX2)
    return widen<T>(_mm_loadu_si128(reinterpret_cast<const __m128i*>(data)));
#else
    Vec<T> wide;
    at::vec::load_to_float<T>(data, wide);
    return wide;
#endif
  }
}

// Stores kWidth<T> elements, 16-bit ones rounded.
template <class T>
inline void store_vector(T* data, Vec<T> value) {
  if constexpr (sizeof(T) != 2) {
    value.store(data);
  } else {
#if defined(CPU_CAPABILITY_AVX512)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(data), narrow<T>(value));
#elif defined(CPU_CAPABILITY_AVX2)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(data), narrow<T>(value));
#else
    alignas(64) float wide[kWidth<T>];
    value.store(wide);
    for (int64_t i = 0; i < kWidth<T>; ++i) data[i] = wide[i];
#endif
  }
}

#if defined(CPU_CAPABILITY_AVX2) && !defined(CPU_CAPABILITY_AVX512)
// Puts the 2^n bytes before `end` in front of those of a vector.
template <int kBytes>
inline const char* load_front(const char* end, __m128i& bits) {
  __m128i front = _mm_setzero_si128();
  std::memcpy(&front, end - kBytes, kBytes);  // a single move
  bits = _mm_or_si128(_mm_slli_si128(bits, kBytes), front);
  return end - kBytes;
}
#endif

// The first `count` (1 to kWidth<T>) elements at `data`, the other lanes `fill`.
template <class T>
inline Vec<T> load_vector(const T* data, int64_t count, Accumulate<T> fill) {
#if defined(CPU_CAPABILITY_AVX512)
  const unsigned mask = (1u << count) - 1;
  const auto lanes = static_cast<__mmask16>(mask);
  if constexpr (std::is_same_v<T, double>) {
    return _mm512_mask_loadu_pd(_mm512_set1_pd(fill), static_cast<__mmask8>(mask), data);
  } else if constexpr (std::is_same_v<T, float>) {
    return _mm512_mask_loadu_ps(_mm512_set1_ps(fill), lanes, data);
  } else {
    return _mm512_mask_mov_ps(_mm512_set1_ps(fill), lanes,
                              widen<T>(_mm256_maskz_loadu_epi16(lanes, data)));
  }
#else
#if defined(CPU_CAPABILITY_AVX2)
  if constexpr (std::is_same_v<T, double>) {
    const __m256i mask =
        _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), _mm256_setr_epi64x(0, 1, 2, 3));
    return _mm256_blendv_pd(_mm256_set1_pd(fill), _mm256_maskload_pd(data, mask),
                            _mm256_castsi256_pd(mask));
  }
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lanes);
  if constexpr (std::is_same_v<T, float>) {
    return _mm256_blendv_ps(_mm256_set1_ps(fill), _mm256_maskload_ps(data, mask),
                            _mm256_castsi256_ps(mask));
  } else if constexpr (sizeof(T) == 2) {
    if (count == kWidth<T>) return load_vector(data);
    const char* from = reinterpret_cast<const char*>(data + count);
    __m128i bits = _mm_setzero_si128();
    if (count & 1) from = load_front<2>(from, bits);
    if (count & 2) from = load_front<4>(from, bits);
    if (count & 4) load_front<8>(from, bits);
    return _mm256_blendv_ps(_mm256_set1_ps(fill), widen<T>(bits), _mm256_castsi256_ps(mask));
  }
#endif
  alignas(64) T padded[kWidth<T>] = {};
  alignas(64) Accumulate<T> wide[kWidth<T>];
  std::memcpy(padded, data, count * sizeof(T));
  load_vector(padded).store(wide);
  for (int64_t i = count; i < kWidth<T>; ++i) wide[i] = fill;
  return Vec<T>::loadu(wide);
#endif
}

#if defined(CPU_CAPABILITY_AVX2) && !defined(CPU_CAPABILITY_AVX512)
// Stores the first 2^n bytes of a vector, and brings those behind them to the front.
template <int kBytes>
inline char* store_front(char* data, __m128i& bits) {
  std::memcpy(data, &bits, kBytes);  // a single move
  bits = _mm_srli_si128(bits, kBytes);
  return data + kBytes;
}
#endif

// Stores the first `count` (1 to kWidth<T>) elements.
template <class T>
inline void store_vector(T* data, Vec<T> value, int64_t count) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (sizeof(T) != 2) {
    value.store(data, count);
  } else {
    _mm256_mask_storeu_epi16(data, static_cast<__mmask16>((1u << count) - 1), narrow<T>(value));
  }
#elif defined(CPU_CAPABILITY_AVX2)
  // Not a masked store, which takes a hundred cycles on some processors.
  if (count == kWidth<T>) return store_vector(data, value);
  char* to = reinterpret_cast<char*>(data);
  const int64_t bytes = count * static_cast<int64_t>(sizeof(T));
  __m128i bits;
  if constexpr (sizeof(T) == 2) {
    bits = narrow<T>(value);
  } else {
    __m256i whole;
    std::memcpy(&whole, &value, sizeof(whole));
    bits = _mm256_castsi256_si128(whole);
    if (bytes & 16) {
      to = store_front<16>(to, bits);
      bits = _mm256_extracti128_si256(whole, 1);
    }
  }
  if (bytes & 8) to = store_front<8>(to, bits);
  if (bytes & 4) to = store_front<4>(to, bits);
  if (bytes & 2) store_front<2>(to, bits);
#else
  alignas(64) T padded[kWidth<T>];
  store_vector(padded, value);
  std::memcpy(data, padded, count * sizeof(T));
#endif
}

// Stores past the caches; `data` must be aligned to kWidth<T> elements. Only where a whole output
// is larger than the cache: it saves reading each line before it is overwritten.
template <class T>
inline void stream_vector(T* data, Vec<T> value) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<T, double>)
    _mm512_stream_pd(data, value);
  else if constexpr (std::is_same_v<T, float>)
    _mm512_stream_ps(data, value);
  else
    _mm256_stream_si256(reinterpret_cast<__m256i*>(data), narrow<T>(value));
#elif defined(CPU_CAPABILITY_AVX2)
  if constexpr (std::is_same_v<T, double>)
    _mm256_stream_pd(data, value);
  else if constexpr (std::is_same_v<T, float>)
    _mm256_stream_ps(data, value);
  else
    _mm_stream_si128(reinterpret_cast<__m128i*>(data), narrow<T>(value));
#else
  store_vector(data, value);
#endif
}

template <class V>
inline typename V::value_type reduce_sum(V value) {
  return at::vec::vec_reduce_all([](V& a, V& b) { return a + b; }, value);
}

// The larger of each pair; a NaN in `value` is passed over (it returns through exp and the sum).
template <class V>
inline V max_number(V value, V so_far) {
  return at::vec::clamp_min(so_far, value);
}

template <class V>
inline typename V::value_type reduce_max(V value) {
  return at::vec::vec_reduce_all([](V& a, V& b) { return max_number(a, b); }, value);
}

}  // namespace CPU_CAPABILITY
}  // namespace fastdl
