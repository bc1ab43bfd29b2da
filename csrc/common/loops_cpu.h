// Loops over the vectors of a row. Passes are written once as a lambda (position, count, lane):
// count is kWhole for a whole vector or the number of elements of a partial one, lane says which
// of kLanes independent accumulators to use (sums and maxima wait for the one before otherwise).
#pragma once

#include <utility>

#include "common/cpu_isa.h"
#include "common/vector_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {

struct Whole {};
inline constexpr Whole kWhole;

inline constexpr int kLanes = 4;

template <class T>
inline Vec<T> load_vector(const T* data, Whole, Accumulate<T>) {
  return load_vector(data);
}

template <class T>
inline void store_vector(T* data, Vec<T> value, Whole) {
  store_vector(data, value);
}

// Writes through the caches, or past them when `streaming` (see stream_vector).
template <class T, class Count>
inline void write_vector(T* data, Vec<T> value, Count count, bool streaming) {
  if constexpr (std::is_same_v<Count, Whole>) {
    if (streaming) return stream_vector(data, value);
  }
  store_vector(data, value, count);
}

// Calls f on the vectors of [0, size); the first one is partial when `head` > 0.
template <class T, class F>
inline void for_vectors(int64_t size, F&& f, int64_t head = 0) {
  constexpr int64_t width = kWidth<T>;
  int64_t i = head < size ? head : size;
  if (i > 0) f(int64_t{0}, i, 0);
  for (; i + kLanes * width <= size; i += kLanes * width) {
    f(i, kWhole, 0);
    f(i + width, kWhole, 1);
    f(i + 2 * width, kWhole, 2);
    f(i + 3 * width, kWhole, 3);
  }
  for (; i + width <= size; i += width) f(i, kWhole, 0);
  if (i < size) f(i, size - i, 0);
}

// One vector at a time, for passes with enough independent work in each: f(position, count).
template <class T, class F>
inline void for_single_vectors(int64_t size, F&& f) {
  int64_t i = 0;
  for (; i + kWidth<T> <= size; i += kWidth<T>) f(i, kWhole);
  if (i < size) f(i, size - i);
}

// for_vectors for a pass that writes `output`: streaming stores need aligned vectors.
template <class T, class F>
inline void for_output_vectors(T* output, int64_t size, bool streaming, F&& f) {
  constexpr uintptr_t bytes = kWidth<T> * sizeof(T);
  const uintptr_t past = reinterpret_cast<uintptr_t>(output) % bytes;
  const bool shift = streaming && past != 0;
  for_vectors<T>(size, f, shift ? static_cast<int64_t>((bytes - past) / sizeof(T)) : 0);
}

// Outputs are streamed when all that a call reads and writes no longer fits the last-level cache:
// the next reader would not find them there anyway.
inline bool worth_streaming(int64_t bytes_moved) { return bytes_moved > last_level_cache_bytes(); }

// Whether rows of `cols` elements from `data` on can be streamed: in whole, aligned vectors.
template <class T>
inline bool rows_are_aligned(const void* data, int64_t cols) {
  return cols % kWidth<T> == 0 && reinterpret_cast<uintptr_t>(data) % (kWidth<T> * sizeof(T)) == 0;
}

// Fetches into L2 what is read next. A pass that computes or writes leaves the memory's read side
// idle: fetching the next row meanwhile took a row-wise copy from 21 to 47 GB/s on one core, from
// 42 to 51 on two. Past the end of a tensor it does no harm.
template <class T>
inline void prefetch(const T* data) {
  __builtin_prefetch(data, /*write=*/0, /*locality=*/2);
}

template <class T>
inline constexpr int64_t kAhead = 2048 / sizeof(T);  // elements of channels last to fetch ahead

// What to fetch while a row is computed: the next row, or for short rows what lies 4 KiB ahead (the
// next would be needed before it comes). Rows so long that the hardware has seen the stream, and
// that the next would push out, are left to it.
template <class T>
inline const T* next_row(const T* row, int64_t size) {
  constexpr int64_t nearest = 4096 / sizeof(T), longest = 65536 / sizeof(T);
  return size > longest ? row : row + (size < nearest ? nearest : size);
}

// Ends a task that may have written with streaming stores: they are ordered by this alone.
inline void finish_writes() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace CPU_CAPABILITY
}  // namespace fastdl
