// Barriers of a block, and what the lanes of a warp do together.
#pragma once

#include <cstdint>
#include <cstring>

#include "emulated/hooks.h"
#include "emulated/keywords.h"

__forceinline__ void __syncthreads(const char* file = __builtin_FILE(),
                                   int line = __builtin_LINE()) {
  fastdl::emulator::block_barrier(file, line, fastdl::emulator::Reduction::kCount, false);
}
__forceinline__ int __syncthreads_or(int predicate, const char* file = __builtin_FILE(),
                                     int line = __builtin_LINE()) {
  using fastdl::emulator::Reduction;
  return fastdl::emulator::block_barrier(file, line, Reduction::kOr, predicate != 0);
}
__forceinline__ int __syncthreads_and(int predicate, const char* file = __builtin_FILE(),
                                      int line = __builtin_LINE()) {
  using fastdl::emulator::Reduction;
  return fastdl::emulator::block_barrier(file, line, Reduction::kAnd, predicate != 0);
}
__forceinline__ int __syncthreads_count(int predicate, const char* file = __builtin_FILE(),
                                        int line = __builtin_LINE()) {
  using fastdl::emulator::Reduction;
  return fastdl::emulator::block_barrier(file, line, Reduction::kCount, predicate != 0);
}

__forceinline__ void __syncwarp(unsigned mask = 0xffffffffu) {
  fastdl::emulator::warp_barrier(mask);
}
__forceinline__ unsigned __activemask() { return fastdl::emulator::active_mask(); }
__forceinline__ unsigned __ballot_sync(unsigned mask, int predicate) {
  return fastdl::emulator::ballot(mask, predicate != 0);
}
__forceinline__ int __any_sync(unsigned mask, int predicate) {
  return fastdl::emulator::ballot(mask, predicate != 0) != 0;
}
__forceinline__ int __all_sync(unsigned mask, int predicate) {
  return fastdl::emulator::ballot(mask, predicate == 0) == 0;
}

namespace fastdl::emulator {

// Any type of up to 8 bytes
template <class T>
__forceinline__ T shuffle_as(Shuffle mode, unsigned mask, T value, int source, int width) {
  static_assert(sizeof(T) <= 8);
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof(T));
  word = shuffle(mode, mask, word, source, width);
  std::memcpy(&value, &word, sizeof(T));
  return value;
}

}  // namespace fastdl::emulator

template <class T>
__forceinline__ T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  return fastdl::emulator::shuffle_as(fastdl::emulator::Shuffle::kIndex, mask, value, source,
                                      width);
}
template <class T>
__forceinline__ T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return fastdl::emulator::shuffle_as(fastdl::emulator::Shuffle::kUp, mask, value,
                                      static_cast<int>(delta), width);
}
template <class T>
__forceinline__ T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return fastdl::emulator::shuffle_as(fastdl::emulator::Shuffle::kDown, mask, value,
                                      static_cast<int>(delta), width);
}
template <class T>
__forceinline__ T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  return fastdl::emulator::shuffle_as(fastdl::emulator::Shuffle::kXor, mask, value, lanes, width);
}

__forceinline__ void __trap() { fastdl::emulator::trap(); }
