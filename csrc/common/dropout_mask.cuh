// The mask of dropout_mask.h for one thread.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/dropout_mask.h"

namespace fastdl {

struct PhiloxWords {
  uint32_t word[4];
};

__device__ __forceinline__ PhiloxWords philox(uint64_t counter, uint32_t stream, uint64_t seed) {
  uint32_t c0 = static_cast<uint32_t>(counter), c1 = static_cast<uint32_t>(counter >> 32);
  uint32_t c2 = stream, c3 = 0;
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
#pragma unroll
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t product0 = uint64_t{c0} * uint64_t{0xd2511f53};
    const uint64_t product1 = uint64_t{c2} * uint64_t{0xcd9e8d57};
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ key0;
    c1 = static_cast<uint32_t>(product1);
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ key1;
    c3 = static_cast<uint32_t>(product0);
    key0 += 0x9e3779b9;
    key1 += 0xbb67ae85;
  }
  return {{c0, c1, c2, c3}};
}

// Whether the element at `index`, which has these 16 bits, is kept.
__device__ __forceinline__ bool is_kept(const DropoutRule& rule, uint32_t bits, int64_t index) {
  if (bits != rule.leading) return bits > rule.leading;
  return philox(static_cast<uint64_t>(index), 1, rule.seed).word[0] >= rule.trailing;
}

// The random bits of the four elements from `index` on, a multiple of 4.
__device__ __forceinline__ uint64_t bits_of_four(const DropoutRule& rule, int64_t index) {
  const int64_t block = index / kDropoutTile * kDropoutTileBlocks + index / 4 % kDropoutTileBlocks;
  const PhiloxWords random = philox(static_cast<uint64_t>(block), 0, rule.seed);
  const bool second = index / (kDropoutTile / 2) % 2 != 0;
  const uint32_t low = second ? random.word[2] : random.word[0];
  const uint32_t high = second ? random.word[3] : random.word[1];
  return uint64_t{high} << 32 | low;
}

}  // namespace fastdl
