// The mask of dropout_mask.h on vectors: counters in 64-bit lanes, whose upper halves are left to
// hold anything, since the multiplication reads the lower ones alone.
#pragma once

#include "common/dropout_mask.h"
#include "common/vector_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {

#if defined(CPU_CAPABILITY_AVX512)
struct Lanes64 {
  static constexpr int kCount = 8;
  __m512i bits;
  static Lanes64 all(uint64_t value) { return {_mm512_set1_epi64(static_cast<int64_t>(value))}; }
  static Lanes64 upwards_from(uint64_t first) {
    return {_mm512_add_epi64(all(first).bits, _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7))};
  }
  Lanes64 upper() const { return {_mm512_srli_epi64(bits, 32)}; }
  Lanes64 times(Lanes64 other) const { return {_mm512_mul_epu32(bits, other.bits)}; }
  Lanes64 operator^(Lanes64 other) const { return {_mm512_xor_si512(bits, other.bits)}; }
  Lanes64 with_upper(Lanes64 other) const {
    return {_mm512_mask_blend_epi32(0xaaaa, bits, _mm512_slli_epi64(other.bits, 32))};
  }
};
#elif defined(CPU_CAPABILITY_AVX2)
struct Lanes64 {
  static constexpr int kCount = 4;
  __m256i bits;
  static Lanes64 all(uint64_t value) { return {_mm256_set1_epi64x(static_cast<int64_t>(value))}; }
  static Lanes64 upwards_from(uint64_t first) {
    return {_mm256_add_epi64(all(first).bits, _mm256_setr_epi64x(0, 1, 2, 3))};
  }
  Lanes64 upper() const { return {_mm256_srli_epi64(bits, 32)}; }
  Lanes64 times(Lanes64 other) const { return {_mm256_mul_epu32(bits, other.bits)}; }
  Lanes64 operator^(Lanes64 other) const { return {_mm256_xor_si256(bits, other.bits)}; }
  Lanes64 with_upper(Lanes64 other) const {
    return {_mm256_blend_epi32(bits, _mm256_slli_epi64(other.bits, 32), 0xaa)};
  }
};
#else
struct Lanes64 {
  static constexpr int kCount = 1;
  uint64_t bits;
  static Lanes64 all(uint64_t value) { return {value}; }
  static Lanes64 upwards_from(uint64_t first) { return {first}; }
  Lanes64 upper() const { return {bits >> 32}; }
  Lanes64 times(Lanes64 other) const { return {(bits & 0xffffffff) * (other.bits & 0xffffffff)}; }
  Lanes64 operator^(Lanes64 other) const { return {bits ^ other.bits}; }
  Lanes64 with_upper(Lanes64 other) const { return {(bits & 0xffffffff) | other.bits << 32}; }
};
#endif

// Four words of Philox for each counter, in two halves.
struct PhiloxHalves {
  Lanes64 first, second;
};

struct PhiloxKeys {
  Lanes64 of_round[kPhiloxRounds][2];

  explicit PhiloxKeys(uint64_t seed) {
    uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
    for (auto& keys : of_round) {
      keys[0] = Lanes64::all(key0);
      keys[1] = Lanes64::all(key1);
      key0 += kPhiloxKeySteps[0];
      key1 += kPhiloxKeySteps[1];
    }
  }
};

// Of the counters from `counter` on. kSets vectors of them go side by side: a round is a chain of
// operations that wait for each other.
template <int kSets>
inline void philox(const PhiloxKeys& keys, uint64_t counter, uint64_t stream,
                   PhiloxHalves (&results)[kSets]) {
  const Lanes64 m0 = Lanes64::all(kPhiloxMultipliers[0]), m1 = Lanes64::all(kPhiloxMultipliers[1]);
  Lanes64 c[kSets][4];
  for (int set = 0; set < kSets; ++set) {
    c[set][0] = Lanes64::upwards_from(counter + set * Lanes64::kCount);
    c[set][1] = c[set][0].upper();
    c[set][2] = Lanes64::all(stream);
    c[set][3] = Lanes64::all(0);
  }
#pragma GCC unroll 8
  for (const auto& key : keys.of_round) {
#pragma GCC unroll 4
    for (int set = 0; set < kSets; ++set) {
      const Lanes64 product0 = c[set][0].times(m0), product1 = c[set][2].times(m1);
      c[set][0] = product1.upper() ^ c[set][1] ^ key[0];
      c[set][1] = product1;
      c[set][2] = product0.upper() ^ c[set][3] ^ key[1];
      c[set][3] = product0;
    }
  }
  for (int set = 0; set < kSets; ++set) {
    results[set] = {c[set][0].with_upper(c[set][1]), c[set][2].with_upper(c[set][3])};
  }
}

// Sets keep[i] to all ones for the elements `first` + i whose bits are not below p, else to 0, for
// as many as a Lanes64 has bits. Returns whether some need their further bits.
inline bool compare_bits(Lanes64 random, uint32_t leading, uint16_t* keep) {
#if defined(CPU_CAPABILITY_AVX512)
  const __m512i edge = _mm512_set1_epi16(static_cast<short>(leading));
  const __mmask32 kept = _mm512_cmp_epu16_mask(random.bits, edge, _MM_CMPINT_NLT);
  _mm512_storeu_si512(keep, _mm512_movm_epi16(kept));
  return _mm512_cmpeq_epi16_mask(random.bits, edge) != 0;
#elif defined(CPU_CAPABILITY_AVX2)
  const __m256i edge = _mm256_set1_epi16(static_cast<short>(leading));
  const __m256i kept = _mm256_cmpeq_epi16(_mm256_max_epu16(random.bits, edge), random.bits);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(keep), kept);
  return _mm256_movemask_epi8(_mm256_cmpeq_epi16(random.bits, edge)) != 0;
#else
  bool equal = false;
  for (int i = 0; i < 4; ++i) {
    const uint32_t bits = random.bits >> (16 * i) & 0xffff;
    keep[i] = bits >= leading ? 0xffff : 0;
    equal |= bits == leading;
  }
  return equal;
#endif
}

// The rare end of it, for the elements whose bits equal those of p.
inline void compare_further_bits(Lanes64 random, const DropoutRule& rule, const PhiloxKeys& keys,
                                 int64_t first, uint16_t* keep) {
  uint16_t bits[4 * Lanes64::kCount];
  std::memcpy(bits, &random, sizeof(bits));
  for (int i = 0; i < 4 * Lanes64::kCount; ++i) {
    if (bits[i] != rule.leading) continue;
    PhiloxHalves further[1];
    philox(keys, static_cast<uint64_t>(first + i), 1, further);
    uint32_t word;
    std::memcpy(&word, &further[0].first, sizeof(word));
    keep[i] = word >= rule.trailing ? 0xffff : 0;
  }
}

// Fills keep[0, count rounded up to a whole tile) for the elements from `first` on, the first of a
// tile.
inline void fill_keep(const DropoutRule& rule, int64_t first, int64_t count, uint16_t* keep) {
  constexpr int kSets = 2;
  constexpr int64_t lanes = Lanes64::kCount, half = kDropoutTile / 2;
  const PhiloxKeys keys(rule.seed);
  for (int64_t start = 0; start < count; start += kDropoutTile) {
    const int64_t wanted = std::min(half, count - start);
    const int64_t block = (first + start) / kDropoutTile * kDropoutTileBlocks;
    for (int64_t lane = 0; 4 * lane < wanted; lane += kSets * lanes) {
      PhiloxHalves random[kSets];
      philox(keys, static_cast<uint64_t>(block + lane), 0, random);
      for (int set = 0; set < kSets; ++set) {
        const int64_t at = start + 4 * (lane + set * lanes);
        const bool first_equal = compare_bits(random[set].first, rule.leading, keep + at);
        const bool second_equal = compare_bits(random[set].second, rule.leading, keep + at + half);
        if (first_equal || second_equal) [[unlikely]] {
          compare_further_bits(random[set].first, rule, keys, first + at, keep + at);
          compare_further_bits(random[set].second, rule, keys, first + at + half, keep + at + half);
        }
      }
    }
  }
}

// `scale` where an element is kept, else 0.
template <class T>
inline Vec<T> scale_of_kept(const uint16_t* keep, Vec<T> scale) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<T, double>) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(keep));
    return _mm512_and_pd(_mm512_castsi512_pd(_mm512_cvtepi16_epi64(bits)), scale);
  } else {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(keep));
    return _mm512_and_ps(_mm512_castsi512_ps(_mm512_cvtepi16_epi32(bits)), scale);
  }
#elif defined(CPU_CAPABILITY_AVX2)
  if constexpr (std::is_same_v<T, double>) {
    const __m128i bits = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(keep));
    return _mm256_and_pd(_mm256_castsi256_pd(_mm256_cvtepi16_epi64(bits)), scale);
  } else {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(keep));
    return _mm256_and_ps(_mm256_castsi256_ps(_mm256_cvtepi16_epi32(bits)), scale);
  }
#else
  alignas(64) Accumulate<T> values[kWidth<T>];
  scale.store(values);
  for (int64_t i = 0; i < kWidth<T>; ++i) values[i] = keep[i] != 0 ? values[i] : 0;
  return Vec<T>::loadu(values);
#endif
}

}  // namespace CPU_CAPABILITY
}  // namespace fastdl
