// Elements and vectors of them between memory and registers: 16 bytes at a time, whatever the type,
// and element by element where a row does not begin or end at a multiple of 16 bytes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/ptx.cuh"

namespace fastdl {

// For dispatch.h
struct CudaTypes {
  using BFloat16 = __nv_bfloat16;
  using Float16 = __half;
};

// Kernels compute in float, for float64 in double.
template <class T>
using Accumulate = std::conditional_t<std::is_same_v<T, double>, double, float>;

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ double widen(double value) { return value; }
__device__ __forceinline__ float widen(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ float widen(__half value) { return __half2float(value); }

// Rounds to nearest, ties to even.
template <class T>
__device__ __forceinline__ T narrow(Accumulate<T> value) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(value);
  } else if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(value);
  } else {
    return value;
  }
}

// Two elements in one word, the first in its lower half
__device__ __forceinline__ void unpack_pair(uint32_t word, __nv_bfloat16, float& low, float& high) {
  low = __uint_as_float(word << 16);
  high = __uint_as_float(word & 0xffff0000u);
}
__device__ __forceinline__ void unpack_pair(uint32_t word, __half, float& low, float& high) {
  __half2 pair;
  memcpy(&pair, &word, sizeof(pair));
  const float2 values = __half22float2(pair);
  low = values.x;
  high = values.y;
}
__device__ __forceinline__ uint32_t pack_pair(float low, float high, __nv_bfloat16) {
  const __nv_bfloat162 pair = __float22bfloat162_rn(make_float2(low, high));
  uint32_t word;
  memcpy(&word, &pair, sizeof(word));
  return word;
}
__device__ __forceinline__ uint32_t pack_pair(float low, float high, __half) {
  const __half2 pair = __float22half2_rn(make_float2(low, high));
  uint32_t word;
  memcpy(&word, &pair, sizeof(word));
  return word;
}

// Elements of the widest access; of a pair of types that of the wider one.
template <class T, class U = T>
inline constexpr int kVectorWidth = 16 / (sizeof(T) > sizeof(U) ? sizeof(T) : sizeof(U));

// W elements as they lie in memory. 16-bit ones are kept in pairs, one register each.
template <class T, int W>
struct alignas(sizeof(T) * W) Vector {
  using A = Accumulate<T>;
  static constexpr bool kPairs = sizeof(T) == 2 && W % 2 == 0;
  static constexpr int kWords = kPairs ? W / 2 : W;
  std::conditional_t<kPairs, uint32_t, T> words[kWords];

  __device__ __forceinline__ void unpack(A (&values)[W]) const {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      if constexpr (kPairs) {
        unpack_pair(words[i], T(), values[2 * i], values[2 * i + 1]);
      } else {
        values[i] = widen(words[i]);
      }
    }
  }
  __device__ __forceinline__ void pack(const A (&values)[W]) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      if constexpr (kPairs) {
        words[i] = pack_pair(values[2 * i], values[2 * i + 1], T());
      } else {
        words[i] = narrow<T>(values[i]);
      }
    }
  }
  // One element, for the ends of a row
  __device__ __forceinline__ void load_element(int i, const T* data) {
    if constexpr (kPairs) {
      const uint32_t bits = *reinterpret_cast<const uint16_t*>(data);
      words[i / 2] = i % 2 == 0 ? (words[i / 2] & 0xffff0000u) | bits
                                : (words[i / 2] & 0x0000ffffu) | bits << 16;
    } else {
      words[i] = *data;
    }
  }
  __device__ __forceinline__ void store_element(int i, T* data) const {
    if constexpr (kPairs) {
      *reinterpret_cast<uint16_t*>(data) =
          static_cast<uint16_t>(i % 2 == 0 ? words[i / 2] : words[i / 2] >> 16);
    } else {
      *data = words[i];
    }
  }
  __device__ __forceinline__ void fill(A value) {
    A values[W];
#pragma unroll
    for (A& each : values) each = value;
    pack(values);
  }
};

template <int W, class T>
__device__ __forceinline__ Vector<T, W> load_vector(const T* data) {
  return *reinterpret_cast<const Vector<T, W>*>(data);
}

template <int W, class T>
__device__ __forceinline__ void store_vector(T* data, const Vector<T, W>& vector) {
  *reinterpret_cast<Vector<T, W>*>(data) = vector;
}

// Makes the compiler forget what it knows of these bits. A row that is held from one pass over it
// to the next stays packed then: without this the compiler keeps its float values for the next
// pass, two registers for one, and spills.
template <class T, int W>
__device__ __forceinline__ void keep_packed(Vector<T, W>& vector) {
  if constexpr (sizeof(vector.words[0]) >= sizeof(uint32_t)) {
#pragma unroll
    for (auto& word : vector.words) ptx::opaque(word);
  }
}
template <class T, int W, int K>
__device__ __forceinline__ void keep_packed(Vector<T, W> (&vectors)[K]) {
#pragma unroll
  for (int k = 0; k < K; ++k) keep_packed(vectors[k]);
}

// How many elements after a multiple of W elements in memory `data` lies.
template <int W, class T>
__host__ __device__ __forceinline__ int shift_of(const T* data) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(data) / sizeof(T) % W);
}

// A row as vectors of W elements that are aligned in memory: vector v has the elements from
// W v - shift on. The first and the last may lack some; these are loaded as `fill` and not stored.
// All arrays that are accessed with it must have their rows at the same shift. Rows that are held
// in registers are short enough for Index = int, which takes half the registers of int64_t.
template <int W, class Index = int>
struct RowVectors {
  Index cols;
  int shift;

  template <class Size>
  __device__ __forceinline__ RowVectors(Size cols, int shift)
      : cols(static_cast<Index>(cols)), shift(shift) {}

  __device__ __forceinline__ Index count() const { return (shift + cols + W - 1) / W; }

  template <class T>
  __device__ __forceinline__ Vector<T, W> load(const T* row, Index v, Accumulate<T> fill) const {
    const Index begin = W * v - shift;
    if (begin >= 0 && begin + W <= cols) return load_vector<W>(row + begin);
    Vector<T, W> vector;
    vector.fill(fill);
#pragma unroll
    for (int i = 0; i < W; ++i) {
      if (begin + i >= 0 && begin + i < cols) vector.load_element(i, row + begin + i);
    }
    return vector;
  }

  // The same for v < end, else only `fill`.
  template <class T>
  __device__ __forceinline__ Vector<T, W> load_before(Index end, const T* row, Index v,
                                                      Accumulate<T> fill) const {
    if (v < end) return load(row, v, fill);
    Vector<T, W> vector;
    vector.fill(fill);
    return vector;
  }

  template <class T>
  __device__ __forceinline__ void store(T* row, Index v, const Vector<T, W>& vector) const {
    const Index begin = W * v - shift;
    if (begin >= 0 && begin + W <= cols) return store_vector<W>(row + begin, vector);
#pragma unroll
    for (int i = 0; i < W; ++i) {
      if (begin + i >= 0 && begin + i < cols) vector.store_element(i, row + begin + i);
    }
  }
};

}  // namespace fastdl
