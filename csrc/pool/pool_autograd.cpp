// Autograd of pooling, and the entry points from Python.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "pool/pool_arguments_torch.h"
#include "torch/hand_over.h"

namespace fastdl {
namespace {

using at::IntArrayRef;
using at::Tensor;
using c10::SymIntArrayRef;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using TwoTensors = std::tuple<Tensor, Tensor>;

// A C++ signature whose arguments between First and Last are those of the windows.
template <class Result, class First, class... Last>
using WindowsOp = Result(First, IntArrayRef, IntArrayRef, IntArrayRef, IntArrayRef, IntArrayRef,
                         Last...);

Tensor call_max_pool(const Tensor& input, const PoolWindows& w) {
  static const auto op = find_op<WindowsOp<Tensor, const Tensor&>>("fastdl::max_pool");
  return op.call(input, w.kernel, w.stride, w.padding, w.dilation, w.output);
}

TwoTensors call_with_indices(const Tensor& input, const PoolWindows& w) {
  static const auto op =
      find_op<WindowsOp<TwoTensors, const Tensor&>>("fastdl::max_pool_with_indices");
  return op.call(input, w.kernel, w.stride, w.padding, w.dilation, w.output);
}

TwoTensors call_forward(const Tensor& input, const PoolWindows& w) {
  static const auto op = find_op<WindowsOp<TwoTensors, const Tensor&>>("fastdl::max_pool_forward");
  return op.call(input, w.kernel, w.stride, w.padding, w.dilation, w.output);
}

Tensor call_indices(const Tensor& offsets, SymIntArrayRef input_size, const PoolWindows& w,
                    bool channels_last) {
  static const auto op =
      find_op<Tensor(const Tensor&, SymIntArrayRef, IntArrayRef, IntArrayRef, IntArrayRef,
                     IntArrayRef, IntArrayRef, bool)>("fastdl::max_pool_indices");
  return op.call(offsets, input_size, w.kernel, w.stride, w.padding, w.dilation, w.output,
                 channels_last);
}

Tensor call_backward(const Tensor& grad_output, const Tensor& offsets, SymIntArrayRef input_size,
                     const PoolWindows& w, bool channels_last) {
  static const auto op =
      find_op<Tensor(const Tensor&, const Tensor&, SymIntArrayRef, IntArrayRef, IntArrayRef,
                     IntArrayRef, IntArrayRef, IntArrayRef, bool)>("fastdl::max_pool_backward");
  return op.call(grad_output, offsets, input_size, w.kernel, w.stride, w.padding, w.dilation,
                 w.output, channels_last);
}

Tensor call_avg_pool(const Tensor& input, const PoolWindows& w, bool count_include_pad,
                     int64_t divisor) {
  static const auto op =
      find_op<WindowsOp<Tensor, const Tensor&, bool, int64_t>>("fastdl::avg_pool");
  return op.call(input, w.kernel, w.stride, w.padding, w.dilation, w.output, count_include_pad,
                 divisor);
}

Tensor call_avg_pool_backward(const Tensor& grad_output, SymIntArrayRef input_size,
                              const PoolWindows& w, bool count_include_pad, int64_t divisor,
                              bool channels_last) {
  static const auto op =
      find_op<Tensor(const Tensor&, SymIntArrayRef, IntArrayRef, IntArrayRef, IntArrayRef,
                     IntArrayRef, IntArrayRef, bool, int64_t, bool)>("fastdl::avg_pool_backward");
  return op.call(grad_output, input_size, w.kernel, w.stride, w.padding, w.dilation, w.output,
                 count_include_pad, divisor, channels_last);
}

bool is_channels_last(const Tensor& x) {
  return x.dim() == 4 && x.suggest_memory_format() == at::MemoryFormat::ChannelsLast;
}

// What a backward pass needs to know
struct PoolCall {
  PoolWindows windows;
  bool channels_last, count_include_pad = true;
  int64_t divisor = 0;
};

// In one list: every entry of saved_data costs a call most of a microsecond.
void save_call(AutogradContext* ctx, const Tensor& input, const PoolCall& call) {
  const PoolWindows& w = call.windows;
  std::vector<int64_t> numbers = {call.channels_last, call.count_include_pad, call.divisor,
                                  static_cast<int64_t>(w.output.size())};
  for (const auto* part : {&w.output, &w.kernel, &w.stride, &w.padding, &w.dilation}) {
    numbers.insert(numbers.end(), part->begin(), part->end());
  }
  ctx->saved_data["call"] = std::move(numbers);
  ctx->saved_data["input_size"] = c10::IValue(input.sym_sizes());
}

PoolCall saved_call(AutogradContext* ctx) {
  const std::vector<int64_t> numbers = ctx->saved_data["call"].toIntVector();
  PoolCall call{{}, numbers[0] != 0, numbers[1] != 0, numbers[2]};
  PoolWindows& w = call.windows;
  auto from = numbers.begin() + 4;
  for (auto* part : {&w.output, &w.kernel, &w.stride, &w.padding, &w.dilation}) {
    if (from == numbers.end()) break;  // adaptive windows have only output sizes
    part->assign(from, from + numbers[3]);
    from += numbers[3];
  }
  return call;
}

const char* reason_of_backward(const Tensor& grad_output) {
  return at::GradMode::is_enabled() ? "create_graph=True" : reason_to_hand_over(grad_output);
}

// The same gradient from native ops, which torch can differentiate again.
Tensor differentiable_max_backward(const Tensor& grad_output, const Tensor& indices,
                                   SymIntArrayRef input_size, int64_t dims) {
  // [..., h * w]; not -1, which an empty batch leaves open
  const auto with_planes = [dims](SymIntArrayRef sizes) {
    std::vector<c10::SymInt> flat = sizes.slice(0, sizes.size() - dims).vec();
    c10::SymInt plane = 1;
    for (const auto& size : sizes.slice(flat.size())) plane = plane * size;
    flat.push_back(plane);
    return flat;
  };
  const auto planes = with_planes(grad_output.sym_sizes());
  return at::zeros_symint(with_planes(input_size), grad_output.options())
      .scatter_add(-1, indices.reshape_symint(planes), grad_output.reshape_symint(planes))
      .reshape_symint(input_size);
}

Tensor differentiable_avg_backward(Tensor grad_output, std::vector<c10::SymInt> input_size,
                                   PoolWindows windows, bool count_include_pad, int64_t divisor) {
  const bool one_dimension = windows.output.size() == 1;
  if (one_dimension) {
    grad_output = grad_output.unsqueeze(-2);
    input_size.insert(input_size.end() - 1, 1);
    if (!windows.kernel.empty()) {
      windows.kernel.insert(windows.kernel.begin(), 1);
      windows.stride.insert(windows.stride.begin(), 1);
      windows.padding.insert(windows.padding.begin(), 0);
    }
    windows.output.insert(windows.output.begin(), 1);
  }
  const Tensor input = at::empty_symint(input_size, grad_output.options());  // its sizes count
  Tensor grad;
  if (windows.kernel.empty()) {
    grad = at::_adaptive_avg_pool2d_backward(grad_output, input);
  } else {
    bool ceil_mode = false;  // only if a size says so
    for (size_t d = 0; d < 2; ++d) {
      const int64_t size = input_size[input_size.size() - 2 + d].guard_int(__FILE__, __LINE__);
      const int64_t last = size + 2 * windows.padding[d] - windows.kernel[d];
      ceil_mode |= windows.output[d] != last / windows.stride[d] + 1;
    }
    grad = at::avg_pool2d_backward(grad_output, input, windows.kernel, windows.stride,
                                   windows.padding, ceil_mode, count_include_pad,
                                   divisor == 0 ? std::nullopt : std::optional<int64_t>(divisor));
  }
  return one_dimension ? grad.squeeze(-2) : grad;
}

struct MaxPoolFunction : torch::autograd::Function<MaxPoolFunction> {
  // The output, and the indices if they are wanted.
  static variable_list forward(AutogradContext* ctx, const Tensor& input,
                               const PoolWindows& windows, bool wants_indices) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [output, offsets] = call_forward(input, windows);
    ctx->save_for_backward({offsets});
    save_call(ctx, input, {windows, is_channels_last(input)});
    if (!wants_indices) return {output};
    Tensor indices = call_indices(offsets, input.sym_sizes(), windows, is_channels_last(input));
    ctx->mark_non_differentiable({indices});
    return {output, indices};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    if (!grads[0].defined()) return variable_list(3);
    const Tensor offsets = ctx->get_saved_variables()[0];
    const PoolCall call = saved_call(ctx);
    const auto input_size = ctx->saved_data["input_size"].toSymIntVector();
    const char* reason = reason_of_backward(grads[0]);
    if (reason != nullptr) hand_over("max_pool backward", reason);
    const Tensor indices = [&] {
      const at::AutoDispatchBelowADInplaceOrView below;
      return reason == nullptr
                 ? Tensor()
                 : call_indices(offsets, input_size, call.windows, call.channels_last);
    }();
    if (reason != nullptr) {
      const int64_t dims = static_cast<int64_t>(call.windows.output.size());
      return {differentiable_max_backward(grads[0], indices, input_size, dims), Tensor(), Tensor()};
    }
    const at::AutoDispatchBelowADInplaceOrView below;
    return {call_backward(grads[0], offsets, input_size, call.windows, call.channels_last),
            Tensor(), Tensor()};
  }
};

struct AvgPoolFunction : torch::autograd::Function<AvgPoolFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const PoolWindows& windows,
                        bool count_include_pad, int64_t divisor) {
    const at::AutoDispatchBelowADInplaceOrView below;
    save_call(ctx, input, {windows, is_channels_last(input), count_include_pad, divisor});
    return call_avg_pool(input, windows, count_include_pad, divisor);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list results(4);
    if (!grads[0].defined()) return results;
    (void)ctx->get_saved_variables();  // none, but a second backward is then an error as in torch
    const auto [windows, channels_last, count_include_pad, divisor] = saved_call(ctx);
    const auto input_size = ctx->saved_data["input_size"].toSymIntVector();
    if (const char* reason = reason_of_backward(grads[0])) {
      hand_over("avg_pool backward", reason);
      results[0] =
          differentiable_avg_backward(grads[0], input_size, windows, count_include_pad, divisor);
    } else {
      const at::AutoDispatchBelowADInplaceOrView below;
      results[0] = call_avg_pool_backward(grads[0], input_size, windows, count_include_pad, divisor,
                                          channels_last);
    }
    return results;
  }
};

bool needs_autograd(const Tensor& input) {
  return at::GradMode::is_enabled() && input.requires_grad();
}

Tensor max_pool_autograd(const Tensor& input, IntArrayRef kernel, IntArrayRef stride,
                         IntArrayRef padding, IntArrayRef dilation, IntArrayRef output) {
  const PoolWindows windows{kernel.vec(), stride.vec(), padding.vec(), dilation.vec(),
                            output.vec()};
  if (needs_autograd(input)) return MaxPoolFunction::apply(input, windows, false)[0];
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_max_pool(input, windows);
}

TwoTensors max_pool_with_indices_autograd(const Tensor& input, IntArrayRef kernel,
                                          IntArrayRef stride, IntArrayRef padding,
                                          IntArrayRef dilation, IntArrayRef output) {
  const PoolWindows windows{kernel.vec(), stride.vec(), padding.vec(), dilation.vec(),
                            output.vec()};
  if (needs_autograd(input)) {
    const auto results = MaxPoolFunction::apply(input, windows, true);
    return {results[0], results[1]};
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_with_indices(input, windows);
}

TwoTensors max_pool_with_indices_kernel(const Tensor& input, IntArrayRef kernel, IntArrayRef stride,
                                        IntArrayRef padding, IntArrayRef dilation,
                                        IntArrayRef output) {
  const PoolWindows windows{kernel.vec(), stride.vec(), padding.vec(), dilation.vec(),
                            output.vec()};
  auto [values, offsets] = call_forward(input, windows);
  return {values, call_indices(offsets, input.sym_sizes(), windows, is_channels_last(input))};
}

Tensor avg_pool_autograd(const Tensor& input, IntArrayRef kernel, IntArrayRef stride,
                         IntArrayRef padding, IntArrayRef dilation, IntArrayRef output,
                         bool count_include_pad, int64_t divisor) {
  const PoolWindows windows{kernel.vec(), stride.vec(), padding.vec(), dilation.vec(),
                            output.vec()};
  if (needs_autograd(input)) {
    return AvgPoolFunction::apply(input, windows, count_include_pad, divisor);
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_avg_pool(input, windows, count_include_pad, divisor);
}

TORCH_LIBRARY_IMPL(fastdl, CPU, library) {
  library.impl("max_pool_with_indices", max_pool_with_indices_kernel);
}
TORCH_LIBRARY_IMPL(fastdl, CUDA, library) {
  library.impl("max_pool_with_indices", max_pool_with_indices_kernel);
}
TORCH_LIBRARY_IMPL(fastdl, Meta, library) {
  library.impl("max_pool_with_indices", max_pool_with_indices_kernel);
}
TORCH_LIBRARY_IMPL(fastdl, Autograd, library) {
  library.impl("max_pool", max_pool_autograd);
  library.impl("max_pool_with_indices", max_pool_with_indices_autograd);
  library.impl("avg_pool", avg_pool_autograd);
  for (const char* name :
       {"max_pool_forward", "max_pool_indices", "max_pool_backward", "avg_pool_backward"}) {
    library.impl(name, torch::autograd::autogradNotImplementedFallback());
  }
}

// ---- what Python calls

template <int64_t dims>
bool handed_over(const char* in_one, const char* in_two, const char* reason) {
  if (reason != nullptr) hand_over(dims == 1 ? in_one : in_two, reason);
  return reason != nullptr;
}

}  // namespace

template <int64_t dims>
std::optional<Tensor> max_pool(const PlainTensor& input, const Sizes& kernel_size,
                               const Sizes& stride, const Sizes& padding, const Sizes& dilation,
                               bool ceil_mode) {
  PoolWindows windows;
  const char* reason =
      slide(input.tensor, dims, kernel_size, stride, padding, dilation, ceil_mode, windows);
  if (handed_over<dims>("max_pool1d", "max_pool2d", reason)) return std::nullopt;
  return call_max_pool(input.tensor, windows);
}

template <int64_t dims>
std::optional<TwoTensors> max_pool_with_indices(const PlainTensor& input, const Sizes& kernel_size,
                                                const Sizes& stride, const Sizes& padding,
                                                const Sizes& dilation, bool ceil_mode) {
  PoolWindows windows;
  const char* reason =
      slide(input.tensor, dims, kernel_size, stride, padding, dilation, ceil_mode, windows);
  if (handed_over<dims>("max_pool1d", "max_pool2d", reason)) return std::nullopt;
  return call_with_indices(input.tensor, windows);
}

template <int64_t dims>
std::optional<Tensor> avg_pool(const PlainTensor& input, const Sizes& kernel_size,
                               const Sizes& stride, const Sizes& padding, bool ceil_mode,
                               bool count_include_pad, std::optional<Integer> divisor_override) {
  PoolWindows windows;
  const Sizes one{{1}, true};
  const char* reason =
      slide(input.tensor, dims, kernel_size, stride, padding, one, ceil_mode, windows);
  const int64_t divisor = divisor_override.value_or(Integer{0});
  if (reason == nullptr && divisor_override && divisor == 0) reason = kWrongSizes;
  if (handed_over<dims>("avg_pool1d", "avg_pool2d", reason)) return std::nullopt;
  return call_avg_pool(input.tensor, windows, count_include_pad, divisor);
}

template <int64_t dims>
std::optional<Tensor> adaptive_max_pool(const PlainTensor& input, const Sizes& output_size) {
  PoolWindows windows;
  const char* reason = adapt(input.tensor, dims, output_size, windows);
  if (handed_over<dims>("adaptive_max_pool1d", "adaptive_max_pool2d", reason)) return std::nullopt;
  return call_max_pool(input.tensor, windows);
}

template <int64_t dims>
std::optional<TwoTensors> adaptive_max_pool_with_indices(const PlainTensor& input,
                                                         const Sizes& output_size) {
  PoolWindows windows;
  const char* reason = adapt(input.tensor, dims, output_size, windows);
  if (handed_over<dims>("adaptive_max_pool1d", "adaptive_max_pool2d", reason)) return std::nullopt;
  return call_with_indices(input.tensor, windows);
}

template <int64_t dims>
std::optional<Tensor> adaptive_avg_pool(const PlainTensor& input, const Sizes& output_size) {
  PoolWindows windows;
  const char* reason = adapt(input.tensor, dims, output_size, windows);
  if (handed_over<dims>("adaptive_avg_pool1d", "adaptive_avg_pool2d", reason)) return std::nullopt;
  return call_avg_pool(input.tensor, windows, /*count_include_pad=*/true, 0);
}

template std::optional<Tensor> max_pool<1>(const PlainTensor&, const Sizes&, const Sizes&,
                                           const Sizes&, const Sizes&, bool);
template std::optional<TwoTensors> max_pool_with_indices<1>(const PlainTensor&, const Sizes&,
                                                            const Sizes&, const Sizes&,
                                                            const Sizes&, bool);
template std::optional<Tensor> avg_pool<1>(const PlainTensor&, const Sizes&, const Sizes&,
                                           const Sizes&, bool, bool, std::optional<Integer>);
template std::optional<Tensor> adaptive_max_pool<1>(const PlainTensor&, const Sizes&);
template std::optional<TwoTensors> adaptive_max_pool_with_indices<1>(const PlainTensor&,
                                                                     const Sizes&);
template std::optional<Tensor> adaptive_avg_pool<1>(const PlainTensor&, const Sizes&);

template std::optional<Tensor> max_pool<2>(const PlainTensor&, const Sizes&, const Sizes&,
                                           const Sizes&, const Sizes&, bool);
template std::optional<TwoTensors> max_pool_with_indices<2>(const PlainTensor&, const Sizes&,
                                                            const Sizes&, const Sizes&,
                                                            const Sizes&, bool);
template std::optional<Tensor> avg_pool<2>(const PlainTensor&, const Sizes&, const Sizes&,
                                           const Sizes&, bool, bool, std::optional<Integer>);
template std::optional<Tensor> adaptive_max_pool<2>(const PlainTensor&, const Sizes&);
template std::optional<TwoTensors> adaptive_max_pool_with_indices<2>(const PlainTensor&,
                                                                     const Sizes&);
template std::optional<Tensor> adaptive_avg_pool<2>(const PlainTensor&, const Sizes&);

}  // namespace fastdl
