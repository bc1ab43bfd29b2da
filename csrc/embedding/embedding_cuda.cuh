// What the files of embedding on CUDA share.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "embedding/embedding.h"

namespace fastdl {

// Gradients of a row that a warp adds alone, at most.
inline constexpr int kLongList = 64;

// The scratch memory of the backward. Row v of dw has the sorted positions [begins[v], ends[v]).
struct EmbeddingLists {
  uint32_t* rows;           // [count], and the position of each; a pass sorts them into
  int32_t* positions;       // [count]
  uint32_t* next_rows;      // [count] these, which then change places with them
  int32_t* next_positions;  // [count]
  int32_t* digit_counts;    // [kDigits, runs], then where each begins
  int32_t* begins;          // [vocabulary]
  int32_t* ends;            // [vocabulary]
  int32_t* long_rows;       // [count / kLongList + 1]
  int32_t* long_count;      // [1]
};

// Cuts args.scratch into the arrays; returns its bytes.
size_t divide_embedding_scratch(const EmbeddingBackwardArgs& args, EmbeddingLists& lists);

// Sorts the positions and finds the list of each row.
Status make_embedding_lists(const EmbeddingBackwardArgs& args, EmbeddingLists& lists,
                            const CudaTarget& target);

// Index i; stops the kernel if it is not in the vocabulary, as torch does.
__device__ __forceinline__ int64_t checked_index(const EmbeddingIndices& indices, int64_t i) {
  const int64_t index = indices.is_int64 ? static_cast<const int64_t*>(indices.data)[i]
                                         : static_cast<const int32_t*>(indices.data)[i];
  if (index < 0 || index >= indices.vocabulary) __trap();
  return index;
}

}  // namespace fastdl
