#include "common/parallel.h"

#include <memory>
#include <new>

namespace fastdl {
namespace {

void serial_for(int64_t begin, int64_t end, int64_t, RangeBody body, void* context) {
  body(begin, end, context);
}

int64_t one_thread() { return 1; }

ParallelFor pool_parallel_for = serial_for;
int64_t (*pool_num_threads)() = one_thread;

constexpr std::align_val_t kAlignment{64};

struct AlignedDelete {
  void operator()(void* memory) const { ::operator delete(memory, kAlignment); }
};

}  // namespace

void set_thread_pool(ParallelFor parallel_for, int64_t (*num_threads)()) {
  pool_parallel_for = parallel_for;
  pool_num_threads = num_threads;
}

int64_t num_threads() { return pool_num_threads(); }

void parallel_for_erased(int64_t begin, int64_t end, int64_t grain, RangeBody body, void* context) {
  pool_parallel_for(begin, end, grain, body, context);
}

void* thread_scratch(size_t bytes) {
  thread_local std::unique_ptr<void, AlignedDelete> memory;
  thread_local size_t capacity = 0;
  if (bytes > capacity) {
    memory.reset();
    capacity = 0;
    memory.reset(::operator new(bytes, kAlignment));
    capacity = bytes;
  }
  return memory.get();
}

}  // namespace fastdl
