// The instruction sets that the native tests were built for and this CPU runs.
#pragma once

#include "common/cpu_isa.h"

namespace fastdl::testing {

// Calls f.operator()<isa>() for each.
template <class F>
void for_each_instruction_set(F&& f) {
#if defined(FASTDL_WITH_DEFAULT)
  f.template operator()<CpuIsa::kDefault>();
#endif
#if defined(FASTDL_WITH_AVX2)
  if (cpu_isa() >= CpuIsa::kAvx2) f.template operator()<CpuIsa::kAvx2>();
#endif
#if defined(FASTDL_WITH_AVX512)
  if (cpu_isa() >= CpuIsa::kAvx512) f.template operator()<CpuIsa::kAvx512>();
#endif
}

}  // namespace fastdl::testing
