// Weights in the order of their kernel, kept from one call to the next while nobody changes them.
//
// An entry counts for one weight, the only tensor of its memory (a weak reference to that, so that
// no other can get its address), its version and the convolution that it was packed for. Writes
// through `.data` leave the version alone, so 64 elements spread over the weight are compared as
// well; such a write that changes none of these goes unseen. At most kPackedWeightBytes are kept,
// those used last.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Allocator.h>

#include <memory>
#include <utility>

#include "conv/conv.h"

namespace fastdl {

inline constexpr size_t kPackedWeightBytes = size_t{512} << 20;

using PackedWeight = std::shared_ptr<c10::DataPtr>;

// Whether this weight can be kept: it has a version, and its memory for itself, without gaps.
bool can_keep_packed(const at::Tensor& weight);

// `args` without packed_weight. Null if there is none.
PackedWeight find_packed(const at::Tensor& weight, const ConvPackArgs& args, size_t bytes);
void keep_packed(const at::Tensor& weight, const ConvPackArgs& args, size_t bytes,
                 const PackedWeight& packed);

// How many there are, and their bytes.
std::pair<int64_t, int64_t> packed_weights();
// Changes the most bytes that are kept; returns what it was.
int64_t limit_packed_weights(int64_t bytes);

}  // namespace fastdl
