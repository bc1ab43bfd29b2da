// What both directions of embedding on CUDA share.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "embedding/embedding.h"

namespace fastdl {

// Index i; stops the kernel if it is not in the vocabulary, as torch does.
__device__ __forceinline__ int64_t checked_index(const EmbeddingIndices& indices, int64_t i) {
  const int64_t index = indices.is_int64 ? static_cast<const int64_t*>(indices.data)[i]
                                         : static_cast<const int32_t*>(indices.data)[i];
  if (index < 0 || index >= indices.vocabulary) __trap();
  return index;
}

}  // namespace fastdl
