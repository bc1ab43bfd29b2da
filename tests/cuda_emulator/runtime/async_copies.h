// The cp.async copies of a thread that have not landed.
#pragma once

#include <cstdint>
#include <vector>

namespace fastdl::emulator {

struct AsyncCopy {
  char* shared;
  const char* global;  // nullptr: zeros
  uint32_t group;
  const void* pc;
};

struct AsyncCopies {
  std::vector<AsyncCopy> in_flight;
  uint32_t committed = 0;  // groups

  void reset() {
    in_flight.clear();
    committed = 0;
  }
};

}  // namespace fastdl::emulator
