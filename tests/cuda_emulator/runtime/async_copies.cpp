// cp.async: bytes arrive at the wait that covers them, and not before.
#include "async_copies.h"

#include <algorithm>
#include <cstring>

#include "block.h"
#include "instrumentation.h"

namespace fastdl::emulator {

void copy_async(void* shared, const void* global, bool valid) {
  const void* pc = __builtin_return_address(0);
  Outside outside;
  Block& block = *current.block;
  AsyncCopies& copies = block.self().copies;
  const auto to = reinterpret_cast<uintptr_t>(shared), from = reinterpret_cast<uintptr_t>(global);
  check_alignment(to, 16, pc);
  if (valid) {
    check_alignment(from, 16, pc);
    check_global_read(from, 16, pc);
  }
  begin_shared_copy(to, pc);
  copies.in_flight.push_back({static_cast<char*>(shared),
                              valid ? static_cast<const char*>(global) : nullptr, copies.committed,
                              pc});
}

void commit_copies() { ++current.block->self().copies.committed; }

void wait_for_copies(int groups_left) {
  Outside outside;
  AsyncCopies& copies = current.block->self().copies;
  const int64_t landed = int64_t{copies.committed} - groups_left;  // groups before this one
  auto& all = copies.in_flight;
  const auto rest = std::find_if(all.begin(), all.end(),
                                 [&](const AsyncCopy& copy) { return copy.group >= landed; });
  for (auto copy = all.begin(); copy != rest; ++copy) {
    land_shared_copy(reinterpret_cast<uintptr_t>(copy->shared), copy->pc);
    if (copy->global) {
      std::memcpy(copy->shared, copy->global, 16);
    } else {
      std::memset(copy->shared, 0, 16);
    }
  }
  all.erase(all.begin(), rest);
}

}  // namespace fastdl::emulator
