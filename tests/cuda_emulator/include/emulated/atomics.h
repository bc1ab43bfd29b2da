// Atomic functions, with the host's atomic instructions: blocks run on several host threads.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "emulated/keywords.h"

namespace fastdl::emulator {

template <class T>
using WordOf = std::conditional_t<sizeof(T) == 8, uint64_t,
                                  std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>>;

// For what the host has no instruction for
template <class T, class F>
__forceinline__ T atomic_update(T* address, F&& updated) {
  using Word = WordOf<T>;
  Word* word = reinterpret_cast<Word*>(address);
  Word old = __atomic_load_n(word, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(word, &old,
                                      std::bit_cast<Word>(T(updated(std::bit_cast<T>(old)))), false,
                                      __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return std::bit_cast<T>(old);
}

}  // namespace fastdl::emulator

template <class T>
__forceinline__ T atomicAdd(T* address, std::type_identity_t<T> value) {
  if constexpr (std::is_integral_v<T>) {
    return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
  } else {
    return fastdl::emulator::atomic_update(address, [&](T old) { return old + value; });
  }
}

template <class T>
__forceinline__ T atomicSub(T* address, std::type_identity_t<T> value) {
  return __atomic_fetch_sub(address, value, __ATOMIC_RELAXED);
}

template <class T>
__forceinline__ T atomicMax(T* address, std::type_identity_t<T> value) {
  return fastdl::emulator::atomic_update(address, [&](T old) { return old < value ? value : old; });
}

template <class T>
__forceinline__ T atomicMin(T* address, std::type_identity_t<T> value) {
  return fastdl::emulator::atomic_update(address, [&](T old) { return value < old ? value : old; });
}

template <class T>
__forceinline__ T atomicAnd(T* address, std::type_identity_t<T> value) {
  return __atomic_fetch_and(address, value, __ATOMIC_RELAXED);
}

template <class T>
__forceinline__ T atomicOr(T* address, std::type_identity_t<T> value) {
  return __atomic_fetch_or(address, value, __ATOMIC_RELAXED);
}

template <class T>
__forceinline__ T atomicXor(T* address, std::type_identity_t<T> value) {
  return __atomic_fetch_xor(address, value, __ATOMIC_RELAXED);
}

template <class T>
__forceinline__ T atomicExch(T* address, std::type_identity_t<T> value) {
  return fastdl::emulator::atomic_update(address, [&](T) { return value; });
}

// Old + 1, or 0 once it has reached `limit`.
__forceinline__ unsigned atomicInc(unsigned* address, unsigned limit) {
  return fastdl::emulator::atomic_update(address,
                                         [&](unsigned old) { return old >= limit ? 0u : old + 1; });
}

template <class T>
__forceinline__ T atomicCAS(T* address, std::type_identity_t<T> expected,
                            std::type_identity_t<T> value) {
  __atomic_compare_exchange_n(address, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}
