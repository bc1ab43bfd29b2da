// Parameters and scratch arrays of batch_norm and group_norm on CPU.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "common/dtype.h"
#include "common/parallel.h"
#include "common/vector_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {

// Element i of a parameter whose type is known at run time alone; `otherwise` where there is none.
inline double parameter(const void* data, DType dtype, int64_t i, double otherwise) {
  if (data == nullptr) return otherwise;
  switch (dtype) {
    case DType::kFloat32:
      return static_cast<const float*>(data)[i];
    case DType::kFloat64:
      return static_cast<const double*>(data)[i];
    case DType::kBFloat16:
      return static_cast<const c10::BFloat16*>(data)[i];
    case DType::kFloat16:
      return static_cast<const c10::Half*>(data)[i];
  }
  return otherwise;
}

template <class A, class P>
inline void read_channels(const P* data, int64_t channels, int64_t repeat, A* to) {
  parallel_for(0, channels, 16384 / repeat + 1, [=](int64_t begin, int64_t end) {
    if (repeat == 1) {
      for (int64_t c = begin; c < end; ++c) to[c] = static_cast<A>(data[c]);
    } else {
      for (int64_t c = begin; c < end; ++c) {
        const A value = static_cast<A>(data[c]);
        for (int64_t i = 0; i < repeat; ++i) to[c * repeat + i] = value;
      }
    }
  });
}

// A parameter of `channels` in the type that kernels compute in, each element `repeat` times over.
template <class A>
inline void read_parameter(const void* data, DType dtype, int64_t channels, int64_t repeat,
                           A otherwise, A* to) {
  if (data == nullptr) {
    std::fill_n(to, channels * repeat, otherwise);
    return;
  }
  switch (dtype) {
    case DType::kFloat32:
      return read_channels(static_cast<const float*>(data), channels, repeat, to);
    case DType::kFloat64:
      return read_channels(static_cast<const double*>(data), channels, repeat, to);
    case DType::kBFloat16:
      return read_channels(static_cast<const c10::BFloat16*>(data), channels, repeat, to);
    case DType::kFloat16:
      return read_channels(static_cast<const c10::Half*>(data), channels, repeat, to);
  }
}

// Does nothing where there is none.
inline void set_parameter(void* data, DType dtype, int64_t i, double value) {
  if (data == nullptr) return;
  switch (dtype) {
    case DType::kFloat32:
      static_cast<float*>(data)[i] = static_cast<float>(value);
      break;
    case DType::kFloat64:
      static_cast<double*>(data)[i] = value;
      break;
    case DType::kBFloat16:
      static_cast<c10::BFloat16*>(data)[i] = static_cast<float>(value);
      break;
    case DType::kFloat16:
      static_cast<c10::Half*>(data)[i] = static_cast<float>(value);
      break;
  }
}

// Arrays in the memory of the thread that calls the kernel. The tasks that it starts may use the
// arrays, and must not ask for memory of their own.
class Carver {
 public:
  Carver(size_t bytes, int arrays)
      : next_(static_cast<char*>(thread_scratch(bytes + arrays * kAlign))) {}

  template <class T>
  T* take(int64_t count) {
    T* const taken = reinterpret_cast<T*>(next_);
    next_ += (count * sizeof(T) + kAlign - 1) / kAlign * kAlign;
    return taken;
  }

 private:
  static constexpr size_t kAlign = 64;
  char* next_;
};

}  // namespace CPU_CAPABILITY
}  // namespace fastdl
