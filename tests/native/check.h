// The checks of the native tests: each counts, failures are printed with where and what.
#pragma once

#include <cmath>
#include <cstdio>
#include <string>

namespace fastdl::testing {

struct Tally {
  long passed = 0, failed = 0;
};

inline Tally& tally() {
  static Tally counts;
  return counts;
}

inline void check(bool holds, const std::string& what) {
  ++(holds ? tally().passed : tally().failed);
  if (!holds && tally().failed <= 50) std::printf("FAILED  %s\n", what.c_str());
}

// Equal up to `tolerance` of the larger of 1 and the expected magnitude; NaN equals NaN.
inline bool close(double got, double expected, double tolerance) {
  if (std::isnan(expected)) return std::isnan(got);
  if (std::isinf(expected)) return got == expected;
  return std::abs(got - expected) <= tolerance * std::fmax(1, std::abs(expected));
}

}  // namespace fastdl::testing
