// The host's memory and code, as the loader laid them out.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace fastdl::emulator {

// Of the constants of the program or one of its libraries: kernels may read them.
bool is_constant(uintptr_t address);

// A place in the source; functions that were inlined into others have several, innermost first.
struct Frame {
  std::string function, file;
  int line = 0;
};
std::vector<std::vector<Frame>> find_sources(const std::vector<const void*>& addresses);

}  // namespace fastdl::emulator
