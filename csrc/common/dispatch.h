// Recovers the element type that was erased at the border: calls a templated lambda with the C++
// type of a DType. `Types` names the back end's 16-bit types (CpuTypes in vector_cpu.h).
#pragma once

#include "common/dtype.h"

namespace fastdl {

template <class Types, class F>
void dispatch_dtype(DType dtype, F&& call) {
  switch (dtype) {
    case DType::kFloat32:
      return call.template operator()<float>();
    case DType::kFloat64:
      return call.template operator()<double>();
    case DType::kBFloat16:
      return call.template operator()<typename Types::BFloat16>();
    case DType::kFloat16:
      return call.template operator()<typename Types::Float16>();
  }
}

// The same for a pair of types that are either equal or 16-bit and float32, in that order.
template <class Types, class F>
void dispatch_dtype_pair(DType first, DType second, F&& call) {
  dispatch_dtype<Types>(first, [&]<class First> {
    if constexpr (sizeof(First) == 2) {
      if (second == DType::kFloat32) return call.template operator()<First, float>();
    }
    call.template operator()<First, First>();
  });
}

}  // namespace fastdl
