// The convolution kernels of one instruction set.
#include "common/dispatch.h"
#include "conv/conv_depthwise_weight_cpu.h"
#include "conv/conv_direct_cpu.h"
#include "conv/conv_pointwise_cpu.h"
#include "conv/conv_winograd_cpu.h"
#include "conv/conv_winograd_weight_cpu.h"

namespace fastdl {
namespace {

using conv_detail::Epilogue;
using conv_detail::PlaneSum;

// Calls f with the element type of the kernels: float32 and the 16-bit types.
template <class F>
void dispatch_conv_dtype(DType dtype, F&& f) {
  dispatch_dtype<CpuTypes>(dtype, [&]<class T> {
    if constexpr (!std::is_same_v<T, double>) f.template operator()<T>();
  });
}

template <class T>
void sum_dense(const PlaneSum& sum, const ConvShape& shape, const ConvPlan& plan, const void* from,
               const void* packed, void* to, void* workspace, const Epilogue<T>& epilogue) {
  const auto* source = static_cast<const T*>(from);
  const auto* weight = static_cast<const float*>(packed);
  if (plan.algorithm == ConvAlgorithm::kWinograd) {
    conv_detail::winograd_sum<T>(sum, source, weight, static_cast<T*>(to), workspace, epilogue);
  } else if (plan.algorithm == ConvAlgorithm::kPointwise) {
    conv_detail::pointwise_sum<T>(sum, source, weight, static_cast<T*>(to), epilogue);
  } else {
    conv_detail::direct_sum<T>(sum, source, weight, conv_detail::packed_count(sum, shape),
                               static_cast<T*>(to), epilogue);
  }
}

}  // namespace

template <>
void conv_pack_weight<kBuildIsa>(const ConvPackArgs& args) {
  dispatch_conv_dtype(args.dtype, [&]<class T> {
    args.algorithm == ConvAlgorithm::kWinograd    ? conv_detail::pack_winograd<T>(args)
    : args.algorithm == ConvAlgorithm::kDepthwise ? conv_detail::depthwise_pack_weight<T>(args)
    : args.algorithm == ConvAlgorithm::kPointwise ? conv_detail::pack_rows<T>(args)
                                                  : conv_detail::pack_panels<T>(args);
  });
}

template <>
void conv_forward<kBuildIsa>(const ConvForwardArgs& args, const ConvPlan& plan) {
  dispatch_conv_dtype(args.dtype, [&]<class T> {
    if (plan.algorithm == ConvAlgorithm::kDepthwise) return conv_detail::depthwise_forward<T>(args);
    sum_dense<T>(
        conv_detail::plane_sum(args.shape, false), args.shape, plan, args.input, args.packed_weight,
        args.output, args.workspace,
        {static_cast<const T*>(args.bias), static_cast<const T*>(args.residual), args.relu});
  });
}

template <>
void conv_backward_input<kBuildIsa>(const ConvBackwardInputArgs& args, const ConvPlan& plan) {
  dispatch_conv_dtype(args.dtype, [&]<class T> {
    if (plan.algorithm == ConvAlgorithm::kDepthwise) {
      return conv_detail::depthwise_backward_input<T>(args);
    }
    sum_dense<T>(conv_detail::plane_sum(args.shape, true), args.shape, plan, args.grad_output,
                 args.packed_weight, args.grad_input, args.workspace, {nullptr, nullptr, false});
  });
}

template <>
void conv_backward_weight<kBuildIsa>(const ConvBackwardWeightArgs& args, const ConvPlan& plan) {
  if (plan.algorithm == ConvAlgorithm::kDepthwise) {
    return dispatch_conv_dtype(args.dtype,
                               [&]<class T> { conv_detail::depthwise_backward_weight<T>(args); });
  }
  const bool winograd = plan.algorithm == ConvAlgorithm::kWinograd;
  const int64_t floats = winograd ? winograd_weight_sizes(args.shape, kLaneCount).floats()
                                  : weight_sizes(args.shape, kPanelWidth).floats();
  dispatch_conv_dtype(args.dtype, [&]<class T> {
    conv_detail::for_groups(args, floats, [&](int64_t group, float* workspace) {
      winograd ? conv_detail::winograd_backward_weight<T>(args, group, workspace)
               : conv_detail::direct_backward_weight<T>(args, group, workspace);
    });
  });
}

}  // namespace fastdl
