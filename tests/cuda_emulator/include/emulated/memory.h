// Loads and stores with a hint for the caches, which the emulator has not; fences.
#pragma once

#include "emulated/hooks.h"
#include "emulated/keywords.h"

#define FASTDL_LOAD(name)                    \
  template <class T>                         \
  __forceinline__ T name(const T* address) { \
    return *address;                         \
  }
#define FASTDL_STORE(name)                         \
  template <class T>                               \
  __forceinline__ void name(T* address, T value) { \
    *address = value;                              \
  }
FASTDL_LOAD(__ldg)
FASTDL_LOAD(__ldca)
FASTDL_LOAD(__ldcg)
FASTDL_LOAD(__ldcs)
FASTDL_LOAD(__ldlu)
FASTDL_LOAD(__ldcv)
FASTDL_STORE(__stwb)
FASTDL_STORE(__stcg)
FASTDL_STORE(__stcs)
FASTDL_STORE(__stwt)
#undef FASTDL_LOAD
#undef FASTDL_STORE

__forceinline__ void __threadfence() { fastdl::emulator::fence(); }
__forceinline__ void __threadfence_block() { fastdl::emulator::fence(); }
__forceinline__ void __threadfence_system() { fastdl::emulator::fence(); }
