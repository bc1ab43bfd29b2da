// Memory that is read next, fetched into L2 piece by piece while something else is computed, which
// leaves the memory idle otherwise.
#pragma once

#include <cstdint>

#include "common/vector_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {

struct FetchAhead {
  const char* next = nullptr;
  int64_t run = 0, stride = 0, runs = 0, at = 0;  // bytes of a run, and to the next; runs left

  void lines(int64_t count) {
    for (; count > 0 && runs > 0; --count) {
      __builtin_prefetch(next + at, 0, 2);
      at += kLineBytes;
      if (at >= run) next += stride, at = 0, --runs;
    }
  }
  int64_t lines_left() const { return runs * ((run + kLineBytes - 1) / kLineBytes); }

 private:
  static constexpr int64_t kLineBytes = 64;
};

}  // namespace CPU_CAPABILITY
}  // namespace fastdl
