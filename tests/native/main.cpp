// Runs the kernels without torch, on memory of exactly their size: the address sanitizer's program.
#include <cstdio>

#include "check.h"
#include "tests.h"

int main() {
  using namespace fastdl::testing;
  test_parallel();
  test_softmax();
  test_layer_norm();
  test_adam();
  std::printf("%ld passed, %ld failed\n", tally().passed, tally().failed);
  return tally().failed == 0 && tally().passed > 0 ? 0 : 1;
}
