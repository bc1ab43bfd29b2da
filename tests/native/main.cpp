// Runs the CPU kernels without torch, on memory of exactly their size: the address sanitizer's
// program.
#include <cstdio>

#include "backends.h"
#include "check.h"
#include "common/cpu_isa.h"
#include "tests.h"

namespace fastdl::testing {
namespace {

template <CpuIsa isa>
Backend backend_of() {
  return {cpu_isa_name(isa),
          [](SoftmaxForwardArgs args) { softmax_forward<isa>(args); },
          [](SoftmaxBackwardArgs args) { softmax_backward<isa>(args); },
          [](NormForwardArgs args) { norm_forward<isa>(args); },
          [](NormBackwardArgs args) { norm_backward<isa>(args); },
          [](AdamStepArgs args) { adam_step<isa>(args); },
          [](MaxPoolForwardArgs args) { max_pool_forward<isa>(args); },
          [](MaxPoolBackwardArgs args) { max_pool_backward<isa>(args); },
          [](MaxPoolIndicesArgs args) { max_pool_indices<isa>(args); },
          [](AveragePoolArgs args) { average_pool_forward<isa>(args); },
          [](AveragePoolArgs args) { average_pool_backward<isa>(args); },
          [] {}};
}

std::vector<Backend> instruction_sets() {
  std::vector<Backend> all = {backend_of<CpuIsa::kDefault>()};
#if defined(__x86_64__)
  if (cpu_isa() >= CpuIsa::kAvx2) all.push_back(backend_of<CpuIsa::kAvx2>());
  if (cpu_isa() >= CpuIsa::kAvx512) all.push_back(backend_of<CpuIsa::kAvx512>());
#endif
  return all;
}

}  // namespace

const std::vector<Backend>& backends() {
  static const std::vector<Backend> all = instruction_sets();
  return all;
}

bool streams_past_the_cache() { return true; }

void* allocate_bytes(size_t bytes) { return new char[bytes]; }
void release_bytes(void* bytes) { delete[] static_cast<char*>(bytes); }

}  // namespace fastdl::testing

int main() {
  using namespace fastdl::testing;
  test_parallel();
  test_row_plan();
  test_softmax();
  test_layer_norm();
  test_adam();
  test_pool();
  std::printf("%ld passed, %ld failed\n", tally().passed, tally().failed);
  return tally().failed == 0 && tally().passed > 0 ? 0 : 1;
}
