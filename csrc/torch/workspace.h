#pragma once

#include <c10/core/Allocator.h>

#include <cstddef>

namespace fastdl {

// Memory for one call on the CPU, from torch's allocator. Blocks above kFreshBytes go back to a
// small store when they are released, at most kKeptBytes in all, for the next call that they fit:
// the system gives large blocks page by page and takes them back, which costs as much as a
// convolution. Raises c10::Error where there is no memory.
inline constexpr size_t kFreshBytes = size_t{1} << 20;
inline constexpr size_t kKeptBytes = size_t{128} << 20;

c10::DataPtr workspace_memory(size_t bytes);

}  // namespace fastdl
