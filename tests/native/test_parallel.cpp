// The thread pool's border: ranges cover everything once, scratch memory is aligned and one's own.
#include <cstdint>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "common/parallel.h"
#include "tests.h"

namespace fastdl::testing {
namespace {

int64_t smallest_part, parts;

// A pool that runs the parts last to first: a kernel must not rely on an order.
void reversed_pool(int64_t begin, int64_t end, int64_t grain, RangeBody body, void* context) {
  std::vector<int64_t> borders;
  for (int64_t at = begin; at < end; at += grain) borders.push_back(at);
  borders.push_back(end);
  for (size_t i = borders.size() - 1; i > 0; --i) {
    ++parts;
    if (i + 1 < borders.size())
      smallest_part = std::min(smallest_part, borders[i] - borders[i - 1]);
    body(borders[i - 1], borders[i], context);
  }
}

int64_t three_threads() { return 3; }

void check_ranges(const std::string& pool) {
  for (const int64_t grain : {1, 3, 1000}) {
    for (const int64_t size : {0, 1, 2, 3, 4, 999, 1000, 1001}) {
      std::vector<int> visits(size, 0);
      smallest_part = size;
      parallel_for(0, size, grain, [&](int64_t from, int64_t to) {
        for (int64_t i = from; i < to; ++i) ++visits[i];
      });
      bool once = true;
      for (const int visit : visits) once &= visit == 1;
      check(once, pool + ": every element once, size " + std::to_string(size));
      check(size <= grain || smallest_part >= grain, pool + ": no part below the grain");
    }
  }
}

}  // namespace

void test_parallel() {
  check(num_threads() == 1, "one thread before a pool is set");
  check_ranges("serial");
  char* const first = static_cast<char*>(thread_scratch(100));
  check(reinterpret_cast<uintptr_t>(first) % 64 == 0, "scratch memory is aligned");
  first[0] = first[99] = 1;
  char* const larger = static_cast<char*>(thread_scratch(100000));
  check(reinterpret_cast<uintptr_t>(larger) % 64 == 0, "larger scratch memory is aligned");
  larger[0] = larger[99999] = 1;
  check(thread_scratch(5) == larger, "scratch memory is kept");
  void* other = larger;
  std::thread([&] { other = thread_scratch(100000); }).join();
  check(other != larger, "each thread has its own scratch memory");

  set_thread_pool(reversed_pool, three_threads);
  check(num_threads() == 3, "threads of the pool");
  check_ranges("reversed");
  check(parts > 0, "the pool is used");
}

}  // namespace fastdl::testing
