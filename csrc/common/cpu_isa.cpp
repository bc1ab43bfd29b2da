#include "common/cpu_isa.h"

#include <cstdlib>
#include <fstream>
#include <string_view>

namespace fastdl {
namespace {

CpuIsa detected_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx2 && avx512) return CpuIsa::kAvx512;
  if (avx2) return CpuIsa::kAvx2;
#endif
  return CpuIsa::kDefault;
}

CpuIsa chosen_isa() {
  const CpuIsa detected = detected_isa();
  const char* wish = std::getenv("FASTDL_CPU_ISA");
  for (const CpuIsa isa : {CpuIsa::kDefault, CpuIsa::kAvx2}) {
    if (wish != nullptr && std::string_view(wish) == cpu_isa_name(isa) && isa < detected) {
      return isa;
    }
  }
  return detected;
}

}  // namespace

CpuIsa cpu_isa() {
  static const CpuIsa isa = chosen_isa();
  return isa;
}

const char* cpu_isa_name(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kAvx512:
      return "avx512";
    case CpuIsa::kAvx2:
      return "avx2";
    case CpuIsa::kDefault:
      break;
  }
  return "default";
}

long last_level_cache_bytes() {
  // Not sysconf: on processors with several last-level caches it gives their sum.
  static const long bytes = [] {
    long kibibytes = 0;
    std::ifstream("/sys/devices/system/cpu/cpu0/cache/index3/size") >> kibibytes;
    return kibibytes > 0 ? kibibytes << 10 : 32L << 20;
  }();
  return bytes;
}

}  // namespace fastdl
