// How batch_norm and group_norm on CPU spread work over threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/loops_cpu.h"
#include "common/parallel.h"
#include "common/vector_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {

inline constexpr int64_t kGrain = 16384;      // elements worth waking a thread for
inline constexpr int64_t kUnitCost = 100;     // elements that the rest of a unit takes the time of
inline constexpr int64_t kPart = 128 * 1024;  // elements that are worth a part of their own

// first(unit, part) for all of `parts` parts, then second(unit), then third(unit, part) for all:
// one unit, of `elements`, after another where there are enough of them, which finds it in the
// cache again.
template <class First, class Second, class Third>
inline void for_each_unit(int64_t units, int64_t parts, int64_t elements, First&& first,
                          Second&& second, Third&& third) {
  const auto for_parts = [&](int64_t begin, int64_t end, auto&& f) {
    int64_t unit = begin / parts, part = begin % parts;
    for (int64_t i = begin; i < end; ++i) {
      f(unit, part);
      if (++part == parts) ++unit, part = 0;
    }
  };
  if (parts == 1 || units >= 4 * num_threads()) {
    const int64_t grain = kGrain / (elements + kUnitCost) + 1;
    parallel_for(0, units, grain, [&](auto begin, auto end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        for (int64_t part = 0; part < parts; ++part) first(unit, part);
        second(unit);
        for (int64_t part = 0; part < parts; ++part) third(unit, part);
      }
      finish_writes();
    });
  } else {
    const int64_t grain = std::max<int64_t>(1, kGrain * parts / elements);  // planes may be small
    parallel_for(0, units * parts, grain,
                 [&](auto begin, auto end) { for_parts(begin, end, first); });
    for (int64_t unit = 0; unit < units; ++unit) second(unit);
    parallel_for(0, units * parts, grain, [&](auto begin, auto end) {
      for_parts(begin, end, third);
      finish_writes();
    });
  }
}

// How far ahead to fetch while a unit of `bytes` is written: as far as the next unit lies, if the
// cache has room for both on all threads, else not at all (the unit's own second half would go).
inline int64_t ahead(int64_t distance, int64_t bytes) {
  return 2 * bytes * num_threads() <= last_level_cache_bytes() ? distance : 0;
}

// Where part `number` of `parts` begins
inline int64_t part_begin(int64_t size, int64_t number, int64_t parts) {
  return size * number / parts;
}

}  // namespace CPU_CAPABILITY
}  // namespace fastdl
