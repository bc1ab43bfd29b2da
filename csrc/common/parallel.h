// Threads and per-thread scratch memory for CPU kernels. The pool is the host program's: torch's
// own in the extension (never a second OpenMP runtime), a plain loop in the native tests.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace fastdl {

using RangeBody = void (*)(int64_t begin, int64_t end, void* context);
using ParallelFor = void (*)(int64_t begin, int64_t end, int64_t grain, RangeBody body,
                             void* context);

// Replaces the serial default. Call once, before any kernel runs.
void set_thread_pool(ParallelFor parallel_for, int64_t (*num_threads)());

int64_t num_threads();

void parallel_for_erased(int64_t begin, int64_t end, int64_t grain, RangeBody body, void* context);

// Calls body(from, to) on disjoint ranges that cover [begin, end), none (but the last) shorter
// than `grain`. The body must not throw.
template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, F&& body) {
  if (end - begin <= grain) {
    if (begin < end) body(begin, end);
    return;
  }
  auto call = [](int64_t from, int64_t to, void* context) {
    (*static_cast<std::remove_reference_t<F>*>(context))(from, to);
  };
  parallel_for_erased(begin, end, grain, call, const_cast<void*>(static_cast<const void*>(&body)));
}

// At least `bytes` bytes of this thread's own memory, aligned to 64 bytes and kept until the
// thread ends. The next call on the same thread may return the same memory.
void* thread_scratch(size_t bytes);

}  // namespace fastdl
