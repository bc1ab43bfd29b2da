// The element types that kernels know, named at the border between torch and the kernels.
#pragma once

#include <cstdint>

namespace fastdl {

enum class DType : int8_t { kFloat32, kFloat64, kBFloat16, kFloat16 };

}  // namespace fastdl
