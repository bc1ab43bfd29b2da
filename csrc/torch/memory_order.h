// Elementwise kernels run over memory in its own order: what that asks of their tensors.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>

namespace fastdl {

// The tensor if its elements fill their memory without gaps or overlaps, whatever the order of its
// dimensions; else a copy that does, in the order that torch's elementwise ops give their output.
inline at::Tensor dense(const at::Tensor& tensor) {
  return tensor.is_non_overlapping_and_dense() ? tensor : at::empty_like(tensor).copy_(tensor);
}

// The tensor if its elements lie in memory in the order of those of `like`, which is dense; else a
// copy in that order.
inline at::Tensor in_order_of(const at::Tensor& like, const at::Tensor& tensor) {
  if (tensor.strides() == like.strides()) return tensor;
  return at::empty_like(like, tensor.options()).copy_(tensor);
}

}  // namespace fastdl
