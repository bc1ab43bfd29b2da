// What the glue of batch_norm and group_norm shares.
#pragma once

#include <ATen/core/Tensor.h>

#include <initializer_list>
#include <optional>

#include "torch/run_kernel.h"

namespace fastdl {

inline const void* pointer_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr() : nullptr;
}

inline at::Tensor contiguous_or_undefined(const std::optional<at::Tensor>& tensor,
                                          at::MemoryFormat format = at::MemoryFormat::Contiguous) {
  if (!tensor.has_value() || !tensor->defined()) return at::Tensor();
  return aligned_on_gpu(tensor->contiguous(format));
}

// Of the type that the statistics of x have
inline at::TensorOptions channel_statistics_options(const at::Tensor& x) {
  return x.options().dtype(x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
}

// Whether parameters of this type go with x.
inline bool fits_channel_norm(const at::Tensor& x, at::ScalarType type) {
  return type == x.scalar_type() ||
         (type == at::kFloat && at::isReducedFloatingType(x.scalar_type()));
}

// Lists of pointers here and below: a list of tensors would count references to all of them.

// Why these, of one number a channel (undefined for None), do not fit x, or nullptr.
inline const char* reason_of_channel_parameters(
    const at::Tensor& x, std::initializer_list<const at::Tensor*> parameters) {
  const at::Tensor* first = nullptr;
  for (const at::Tensor* parameter : parameters) {
    if (!parameter->defined()) continue;
    if (parameter->device() != x.device()) return "a parameter on another device";
    if (parameter->dim() != 1 || parameter->size(0) != x.size(1)) {
      return "a parameter of another shape";
    }
    if (!fits_channel_norm(x, parameter->scalar_type())) return "a parameter of another dtype";
    if (first != nullptr && parameter->scalar_type() != first->scalar_type()) {
      return "parameters of different dtypes";
    }
    first = parameter;
  }
  return nullptr;
}

inline const at::Tensor* tensor_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? &tensor : nullptr;
}
inline const at::Tensor* tensor_or_null(const std::optional<at::Tensor>& tensor) {
  return tensor.has_value() ? tensor_or_null(*tensor) : nullptr;
}

// Whether autograd is on for any of them, each a tensor or an optional one.
template <class... Tensors>
bool any_requires_grad(const Tensors&... tensors) {
  if (!at::GradMode::is_enabled()) return false;
  for (const at::Tensor* tensor : {tensor_or_null(tensors)...}) {
    if (tensor != nullptr && tensor->requires_grad()) return true;
  }
  return false;
}

// An error unless all of the others, each a tensor or an optional one, are where x is. A call that
// mixes devices may come to the kernel of any of them, to the one for meta tensors too.
template <class... Tensors>
void check_same_device(const char* op, const at::Tensor& x, const Tensors&... others) {
  for (const at::Tensor* other : {tensor_or_null(others)...}) {
    TORCH_CHECK(other == nullptr || other->device() == x.device(), op,
                ": all tensors must be on the same device, got ", x.device(), " and ",
                other->device());
  }
}

}  // namespace fastdl
