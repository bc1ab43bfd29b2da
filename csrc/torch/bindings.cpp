// The extension module: the native table of contents. An op returns None where native torch must
// compute; a call whose arguments fit no signature does too, so that torch itself reports it.
#include <ATen/PythonTorchFunctionTLS.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/PyInterpreter.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/utils/pybind.h>

#include "activation/activation_torch.h"
#include "attention/attention_torch.h"
#include "batch_norm/batch_norm_torch.h"
#include "common/cpu_isa.h"
#include "common/device_cuda.h"
#include "common/parallel.h"
#include "conv/conv_torch.h"
#include "conv/conv_weight_cache_torch.h"
#include "cross_entropy/cross_entropy_torch.h"
#include "dropout/dropout_torch.h"
#include "elementwise_loss/elementwise_loss_torch.h"
#include "embedding/embedding_torch.h"
#include "group_norm/group_norm_torch.h"
#include "layer_norm/dropout_add_layer_norm_torch.h"
#include "layer_norm/layer_norm_torch.h"
#include "optimizer/grad_norm_torch.h"
#include "optimizer/optimizer_ops_torch.h"
#include "pool/pool_torch.h"
#include "softmax/softmax_torch.h"
#include "torch/hand_over.h"

namespace {

// torch.utils._device.DeviceContext, never released
const PyObject* default_device = nullptr;

// Whether a __torch_function__ mode is on that wants to see calls like ours. That of
// torch.set_default_device does not: it changes only functions that make tensors of nothing.
bool function_mode_sees_calls() {
  using at::impl::PythonTorchFunctionTLS;
  if (!at::impl::torch_function_mode_enabled()) return false;
  if (PythonTorchFunctionTLS::stack_len() != 1) return true;
  const PyObject* const mode = PythonTorchFunctionTLS::get_stack_at(0)->ptr(getPyInterpreter());
  return reinterpret_cast<const PyObject*>(Py_TYPE(mode)) != default_device;
}

}  // namespace

namespace pybind11::detail {

template <>
struct type_caster<fastdl::PlainTensor> {
  PYBIND11_TYPE_CASTER(fastdl::PlainTensor, const_name("torch.Tensor"));

  bool load(handle source, bool) {
    if (!THPVariable_CheckExact(source.ptr()) || function_mode_sees_calls()) return false;
    value.tensor = THPVariable_Unpack(source.ptr());
    return true;
  }
};

template <>
struct type_caster<fastdl::Number> {
  PYBIND11_TYPE_CASTER(fastdl::Number, const_name("float"));

  bool load(handle source, bool) {
    if (!PyFloat_CheckExact(source.ptr()) && !PyLong_CheckExact(source.ptr())) return false;
    value.value = PyFloat_AsDouble(source.ptr());
    return in_range();
  }

  static bool in_range() {
    if (PyErr_Occurred() == nullptr) return true;
    PyErr_Clear();
    return false;
  }
};

template <>
struct type_caster<fastdl::Integer> {
  PYBIND11_TYPE_CASTER(fastdl::Integer, const_name("int"));

  bool load(handle source, bool) {
    if (!PyLong_CheckExact(source.ptr())) return false;
    value.value = PyLong_AsLongLong(source.ptr());
    return type_caster<fastdl::Number>::in_range();
  }
};

template <>
struct type_caster<fastdl::Integers> {
  PYBIND11_TYPE_CASTER(fastdl::Integers, const_name("Sequence[int]"));

  bool load(handle source, bool convert) {
    if (!PyTuple_Check(source.ptr()) && !PyList_Check(source.ptr())) return false;
    for (const handle item : reinterpret_borrow<sequence>(source)) {
      type_caster<fastdl::Integer> integer;
      if (!integer.load(item, convert)) return false;
      value.values.push_back(static_cast<fastdl::Integer&>(integer));
    }
    return true;
  }
};

template <>
struct type_caster<fastdl::Sizes> {
  PYBIND11_TYPE_CASTER(fastdl::Sizes, const_name("int | Sequence[int] | None"));

  bool load(handle source, bool convert) {
    if (source.is_none()) return true;
    value.is_int = !PyTuple_Check(source.ptr()) && !PyList_Check(source.ptr());
    if (value.is_int) return load_one(source, convert);
    for (const handle item : reinterpret_borrow<sequence>(source)) {
      if (item.is_none()) {
        value.values.push_back(fastdl::Sizes::kNoSize);
      } else if (!load_one(item, convert)) {
        return false;
      }
    }
    return true;
  }

  bool load_one(handle item, bool convert) {
    type_caster<fastdl::Integer> integer;
    if (!integer.load(item, convert)) return false;
    value.values.push_back(static_cast<fastdl::Integer&>(integer));
    return true;
  }
};

template <>
struct type_caster<fastdl::ConvPadding> {
  PYBIND11_TYPE_CASTER(fastdl::ConvPadding, const_name("int | Sequence[int] | str"));

  bool load(handle source, bool convert) {
    if (PyUnicode_CheckExact(source.ptr())) {
      value.name = source.cast<std::string>();
      return !value.name.empty();
    }
    type_caster<fastdl::Sizes> sizes;
    if (source.is_none() || !sizes.load(source, convert)) return false;
    value.sizes = std::move(static_cast<fastdl::Sizes&>(sizes));
    return true;
  }
};

}  // namespace pybind11::detail

namespace {

using fastdl::ActivationKind;
using fastdl::SoftmaxKind;

// Binds `function` under `name`, with the catch-all overload that hands over.
template <class Function>
void bind_op(py::module_& module, const char* name, Function function) {
  module.def(name, torch::wrap_pybind_function_no_gil(function));
  module.def(name, torch::wrap_pybind_function([name = std::string(name)](const py::args&) {
               fastdl::hand_over(name, "an argument that is not a plain tensor or number");
               return py::none();
             }));
}

template <SoftmaxKind kind>
std::optional<at::Tensor> softmax_of(const fastdl::PlainTensor& input, fastdl::Integer dim,
                                     std::optional<at::ScalarType> dtype) {
  return fastdl::softmax(input, dim, dtype, kind);
}

template <ActivationKind kind>
std::optional<at::Tensor> activation_of(const fastdl::PlainTensor& input) {
  return fastdl::activation(input, 0, /*inplace=*/false, kind);
}

template <ActivationKind kind>
std::optional<at::Tensor> activation_in_place_of(const fastdl::PlainTensor& input, bool inplace) {
  return fastdl::activation(input, 0, inplace, kind);
}

template <ActivationKind kind>
std::optional<at::Tensor> activation_with_parameter(const fastdl::PlainTensor& input,
                                                    fastdl::Number parameter, bool inplace) {
  return fastdl::activation(input, parameter, inplace, kind);
}

void torch_parallel_for_pool(int64_t begin, int64_t end, int64_t grain, fastdl::RangeBody body,
                             void* context) {
  torch_parallel_for(begin, end, grain, body, context);
}

int64_t torch_num_threads() {
  uint32_t threads = 1;
  torch_get_num_threads(&threads);
  return threads;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  default_device =
      py::object(py::module_::import("torch.utils._device").attr("DeviceContext")).release().ptr();
  fastdl::set_thread_pool(torch_parallel_for_pool, torch_num_threads);

  bind_op(module, "softmax", softmax_of<SoftmaxKind::kSoftmax>);
  bind_op(module, "log_softmax", softmax_of<SoftmaxKind::kLogSoftmax>);
  bind_op(module, "softmin", softmax_of<SoftmaxKind::kSoftmin>);
  bind_op(module, "layer_norm", fastdl::layer_norm);
  bind_op(module, "rms_norm", fastdl::rms_norm);
  bind_op(module, "mse_loss", fastdl::mse_loss);
  bind_op(module, "l1_loss", fastdl::l1_loss);
  bind_op(module, "smooth_l1_loss", fastdl::smooth_l1_loss);
  bind_op(module, "huber_loss", fastdl::huber_loss);
  bind_op(module, "binary_cross_entropy_with_logits", fastdl::binary_cross_entropy_with_logits);
  bind_op(module, "embedding", fastdl::embedding);
  bind_op(module, "relu", activation_in_place_of<ActivationKind::kRelu>);
  bind_op(module, "sigmoid", activation_of<ActivationKind::kSigmoid>);
  bind_op(module, "tanh", activation_of<ActivationKind::kTanh>);
  bind_op(module, "gelu", fastdl::gelu);
  bind_op(module, "silu", activation_in_place_of<ActivationKind::kSilu>);
  bind_op(module, "leaky_relu", activation_with_parameter<ActivationKind::kLeakyRelu>);
  bind_op(module, "elu", activation_with_parameter<ActivationKind::kElu>);
  bind_op(module, "dropout", fastdl::dropout_in_training);
  bind_op(module, "dropout_add_layer_norm", fastdl::dropout_add_layer_norm);
  bind_op(module, "cross_entropy", fastdl::cross_entropy);
  bind_op(module, "linear_cross_entropy", fastdl::linear_cross_entropy);
  bind_op(module, "nll_loss", fastdl::nll_loss);
  bind_op(module, "adam_step", fastdl::adam_step_all);
  bind_op(module, "sgd_step", fastdl::sgd_step_all);
  bind_op(module, "adagrad_step", fastdl::adagrad_step_all);
  bind_op(module, "rmsprop_step", fastdl::rmsprop_step_all);
  bind_op(module, "grad_norm", fastdl::grad_norm_of);
  bind_op(module, "scale_grads", fastdl::scale_all_grads);
  bind_op(module, "batch_norm", fastdl::batch_norm);
  bind_op(module, "batch_norm_relu", fastdl::batch_norm_relu);
  bind_op(module, "group_norm", fastdl::group_norm);
  bind_op(module, "attention", fastdl::attention);
  bind_op(module, "masked_attention", fastdl::masked_attention);
  bind_op(module, "conv1d", fastdl::conv<1>);
  bind_op(module, "conv2d", fastdl::conv<2>);
  bind_op(module, "max_pool1d", fastdl::max_pool<1>);
  bind_op(module, "max_pool2d", fastdl::max_pool<2>);
  bind_op(module, "max_pool1d_with_indices", fastdl::max_pool_with_indices<1>);
  bind_op(module, "max_pool2d_with_indices", fastdl::max_pool_with_indices<2>);
  bind_op(module, "avg_pool1d", fastdl::avg_pool<1>);
  bind_op(module, "avg_pool2d", fastdl::avg_pool<2>);
  bind_op(module, "adaptive_max_pool1d", fastdl::adaptive_max_pool<1>);
  bind_op(module, "adaptive_max_pool2d", fastdl::adaptive_max_pool<2>);
  bind_op(module, "adaptive_max_pool1d_with_indices", fastdl::adaptive_max_pool_with_indices<1>);
  bind_op(module, "adaptive_max_pool2d_with_indices", fastdl::adaptive_max_pool_with_indices<2>);
  bind_op(module, "adaptive_avg_pool1d", fastdl::adaptive_avg_pool<1>);
  bind_op(module, "adaptive_avg_pool2d", fastdl::adaptive_avg_pool<2>);

  module.def("hand_over", torch::wrap_pybind_function(fastdl::hand_over));
  module.def("hand_overs", torch::wrap_pybind_function(fastdl::hand_overs));
  module.def("reset_hand_overs", fastdl::reset_hand_overs);
  module.def("set_strict", fastdl::set_strict);
  module.def("set_allow_winograd", fastdl::set_allow_winograd);
  module.def("always_use_conv_kernels", fastdl::always_use_conv_kernels);
  module.def("packed_weights", fastdl::packed_weights);
  module.def("limit_packed_weights", fastdl::limit_packed_weights);
  module.def("why_cuda_device_not_covered", fastdl::why_cuda_device_not_covered);
  module.def("cpu_isa", [] { return fastdl::cpu_isa_name(fastdl::cpu_isa()); });
}
