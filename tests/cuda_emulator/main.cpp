#include <chrono>
#include <cstdio>

#include "check.h"
#include "emulator.h"
#include "tests.h"

int main() {
  using namespace fastdl::testing;
  const auto begin = std::chrono::steady_clock::now();
  test_races();
  test_barriers();
  test_memory_errors();
  test_collective_errors();
  test_async_copies();
  test_warp_functions();
  test_clusters();
  test_launches();
  test_atomics();
  test_numbers();
  test_matrices();
  check(fastdl::emulator::take_reports().empty(), "nothing else was reported");
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  std::printf("%ld passed, %ld failed in %.1f s\n", tally().passed, tally().failed, seconds);
  return tally().failed != 0;
}
