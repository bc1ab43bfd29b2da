// What the glue of every op asks of its tensors.
#pragma once

#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <optional>
#include <vector>

#include "common/dtype.h"
#include "torch/cuda_device.h"

namespace fastdl {

// An argument from Python that is exactly a torch.Tensor or Parameter (no subclass), while no
// __torch_function__ mode is on (but that of a default device): all others are torch's to dispatch.
struct PlainTensor {
  at::Tensor tensor;
};

// Python numbers as torch takes them: a float or int; an int that is no bool; a tuple or list of
// such ints. (pybind11's own types would convert more, and take an int for a float only after all
// other overloads.)
struct Number {
  double value;
  operator double() const { return value; }
};
struct Integer {
  int64_t value;
  operator int64_t() const { return value; }
};
struct Integers {
  std::vector<int64_t> values;
};

// The dispatcher's handle of a fastdl op, to be kept in a static.
template <class Signature>
c10::TypedOperatorHandle<Signature> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

inline std::optional<DType> kernel_dtype(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return DType::kFloat32;
    case at::kDouble:
      return DType::kFloat64;
    case at::kBFloat16:
      return DType::kBFloat16;
    case at::kHalf:
      return DType::kFloat16;
    default:
      return std::nullopt;
  }
}

// Whether a tensor is strided, on the CPU or a GPU, and nothing but torch's own.
inline bool is_plain_dense(const at::Tensor& tensor) {
  using c10::DispatchKey;
  constexpr c10::DispatchKeySet plain(
      {DispatchKey::CPU, DispatchKey::AutogradCPU, DispatchKey::AutocastCPU, DispatchKey::CUDA,
       DispatchKey::AutogradCUDA, DispatchKey::AutocastCUDA, DispatchKey::ADInplaceOrView});
  return (tensor.key_set().raw_repr() & ~plain.raw_repr()) == 0;
}

// Why no kernel covers a call with this tensor now, or nullptr when one does.
inline const char* reason_to_hand_over(const at::Tensor& tensor) {
  const c10::DispatchKeySet modes = c10::impl::tls_local_dispatch_key_set().included_;
  if ((modes.raw_repr() & ~c10::default_included_set.raw_repr()) != 0) {
    return "a torch.func transform, tracer or dispatch mode is on";
  }
  if (!tensor.defined()) return "an undefined tensor";
  if (tensor.is_cuda()) {
    if (const char* reason = reason_of_gpu(tensor.get_device())) return reason;
  } else if (!tensor.device().is_cpu()) {
    return "no kernel for this device";
  }
  if (!is_plain_dense(tensor)) return "not a plain dense tensor";
  if (!kernel_dtype(tensor.scalar_type())) return "no kernel for this dtype";
  if (tensor._fw_grad(/*level=*/0).defined()) return "forward-mode differentiation";
  return nullptr;
}

// Whether autocast is on and makes torch's op take this tensor as float32. On a GPU torch has the
// softmax family and the norms on that list, on the CPU it has not.
inline bool is_autocast_to_float(const at::Tensor& tensor) {
  return tensor.is_cuda() && at::autocast::is_autocast_enabled(at::kCUDA) &&
         tensor.is_floating_point() && tensor.scalar_type() != at::kDouble;
}

// The tensor, or what autocast makes of it.
inline at::Tensor autocast_to_float(const at::Tensor& tensor) {
  if (!tensor.defined() || !is_autocast_to_float(tensor)) return tensor;
  return at::autocast::cached_cast(at::kFloat, tensor, at::kCUDA);
}

}  // namespace fastdl
