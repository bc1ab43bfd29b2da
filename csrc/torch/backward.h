// What the autograd functions of heavy ops ask, which stay one op under torch.compile.
#pragma once

#include <ATen/core/TorchDispatchUtils.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>

#include "torch/checks.h"

namespace fastdl {

// A compiler records the backward as it runs: with our op, for which it has no other.
inline bool is_being_compiled() {
  using c10::impl::TorchDispatchModeKey;
  using c10::impl::TorchDispatchModeTLS;
  return TorchDispatchModeTLS::get_mode(TorchDispatchModeKey::FUNCTIONAL).has_value() ||
         TorchDispatchModeTLS::get_mode(TorchDispatchModeKey::PROXY).has_value();
}

// Why native ops must compute a backward, or nullptr.
inline const char* reason_of_backward(const at::Tensor& grad_output) {
  if (at::GradMode::is_enabled()) return "create_graph=True";
  return is_being_compiled() ? nullptr : reason_to_hand_over(grad_output);
}

// torch.func, which knows no autograd function of C++
inline bool is_transformed() {
  using c10::impl::tls_is_dispatch_key_included;
  return tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode) ||
         tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerBackMode);
}

}  // namespace fastdl
