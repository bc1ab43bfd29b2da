// Which elements a dropout keeps: a function of the seed, p and the element's index in memory
// order, the same on every device and for every number of threads.
//
// Random numbers come from Philox4x32 with 7 rounds (Salmon et al., "Parallel random numbers: as
// easy as 1, 2, 3", SC 2011: 7 rounds pass all of BigCrush), its key the seed. A tile of 256
// elements takes one block of 128 bits from each of 32 counters: element i has 16 bits,
//   counter (i / 256 * 32 + i / 4 % 32, stream 0), 64-bit half i / 128 % 2 of it, quarter i % 4,
// so that four neighbours share a load, and 32 neighbouring threads or vector lanes neighbouring
// memory. The element is dropped if its bits, as a fraction, are less than p. Where they equal the
// leading 16 bits of p, 32 more decide: word 0 of counter (i, stream 1).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace fastdl {

inline constexpr int kPhiloxRounds = 7;
inline constexpr uint32_t kPhiloxMultipliers[2] = {0xd2511f53, 0xcd9e8d57};
inline constexpr uint32_t kPhiloxKeySteps[2] = {0x9e3779b9, 0xbb67ae85};

inline constexpr int64_t kDropoutTile = 256;       // elements
inline constexpr int64_t kDropoutTileBlocks = 32;  // counters

// What a kernel needs to know of a dropout with 0 < p < 1.
struct DropoutRule {
  uint64_t seed;
  uint32_t leading;   // the first 16 bits of p as a binary fraction
  uint32_t trailing;  // the next 32
};

inline DropoutRule make_dropout_rule(double p, uint64_t seed) {
  constexpr double digits = 0x1p48;
  const auto fraction = static_cast<uint64_t>(std::min(std::nearbyint(p * digits), digits - 1));
  return {seed, static_cast<uint32_t>(fraction >> 32), static_cast<uint32_t>(fraction)};
}

}  // namespace fastdl
