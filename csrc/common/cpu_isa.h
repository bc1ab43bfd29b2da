// Which vector instruction set a kernel is built for, and which one this machine runs.
//
// Every *_cpu.cpp is compiled once per set, with CPU_CAPABILITY (the namespace that ATen/cpu/vec
// uses too) naming it. A kernel's contract declares `template <CpuIsa isa> void f(const Args&)`,
// each build defines the specialisation f<kBuildIsa>, and the caller writes
// `call_best_isa([&]<CpuIsa isa> { f<isa>(args); })`.
#pragma once

namespace fastdl {

enum class CpuIsa : int { kDefault, kAvx2, kAvx512 };

#if defined(CPU_CAPABILITY_AVX512)
inline constexpr CpuIsa kBuildIsa = CpuIsa::kAvx512;
#elif defined(CPU_CAPABILITY_AVX2)
inline constexpr CpuIsa kBuildIsa = CpuIsa::kAvx2;
#else
inline constexpr CpuIsa kBuildIsa = CpuIsa::kDefault;
#endif

// The best set that this CPU and operating system run; the environment variable FASTDL_CPU_ISA
// (default, avx2, avx512) can lower it. Read once.
CpuIsa cpu_isa();

const char* cpu_isa_name(CpuIsa isa);

// Bytes of the last-level cache that this CPU's cores share; 32 MiB where the system does not say.
// Read once.
long last_level_cache_bytes();

template <class F>
void call_best_isa(F&& call) {
#if defined(__x86_64__)
  if (cpu_isa() == CpuIsa::kAvx512) return call.template operator()<CpuIsa::kAvx512>();
  if (cpu_isa() == CpuIsa::kAvx2) return call.template operator()<CpuIsa::kAvx2>();
#endif
  call.template operator()<CpuIsa::kDefault>();
}

}  // namespace fastdl
