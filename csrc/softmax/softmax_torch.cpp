// torch ops of the softmax family: checks, allocation, autograd. Formulas: softmax.h.
#include "softmax/softmax_torch.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "softmax/softmax.h"
#include "torch/checks.h"
#include "torch/hand_over.h"
#include "torch/run_kernel.h"

namespace fastdl {
namespace {

using at::ScalarType;
using at::Tensor;

constexpr const char* kNames[] = {"softmax", "log_softmax", "softmin"};

// Fills what both directions share; `like` is the contiguous tensor whose sizes count.
template <class Args>
void fill_sizes(Args& args, const Tensor& like, int64_t dim, ScalarType input_dtype, int64_t kind) {
  TORCH_CHECK(kind >= 0 && kind < 3, "fastdl::softmax: kind must be 0, 1 or 2, not ", kind);
  dim = at::maybe_wrap_dim(dim, like.dim());
  args.outer = args.size = args.inner = 1;
  for (int64_t d = 0; d < like.dim(); ++d) {
    (d < dim ? args.outer : d == dim ? args.size : args.inner) *= like.size(d);
  }
  const auto input_type = kernel_dtype(input_dtype), output_type = kernel_dtype(like.scalar_type());
  TORCH_CHECK_NOT_IMPLEMENTED(input_type && output_type, "fastdl::softmax: no kernel from ",
                              input_dtype, " to ", like.scalar_type());
  args.input_dtype = *input_type;
  args.output_dtype = *output_type;
  args.kind = static_cast<SoftmaxKind>(kind);
}

bool kernel_converts(ScalarType from, ScalarType to) {
  return from == to || (at::isReducedFloatingType(from) && to == at::kFloat);
}

Tensor softmax_kernel(const Tensor& input, int64_t dim, ScalarType dtype, int64_t kind) {
  const Tensor converted = kernel_converts(input.scalar_type(), dtype) ? input : input.to(dtype);
  const Tensor x = aligned_on_gpu(converted.contiguous());
  const Tensor output = at::empty(x.sizes(), x.options().dtype(dtype));
  SoftmaxForwardArgs args;
  fill_sizes(args, output, dim, x.scalar_type(), kind);
  args.input = x.const_data_ptr();
  args.output = output.mutable_data_ptr();
  if (output.numel() == 0) return output;
  run_kernel(
      x, [&]<CpuIsa isa> { softmax_forward<isa>(args); },
      [&](const auto& target) {
        const Scratch scratch(x, softmax_forward_scratch_cuda(args, target));
        args.scratch = scratch.data();
        return softmax_forward_cuda(args, target);
      });
  return output;
}

Tensor softmax_backward_kernel(const Tensor& grad_output, const Tensor& output, int64_t dim,
                               ScalarType input_dtype, int64_t kind) {
  TORCH_CHECK(
      grad_output.sizes() == output.sizes() && grad_output.scalar_type() == output.scalar_type(),
      "fastdl::softmax_backward: grad_output and output must agree in shape and dtype");
  TORCH_CHECK(grad_output.device() == output.device(),
              "fastdl::softmax_backward: grad_output is on ", grad_output.device(), ", output on ",
              output.device());
  const bool converts = kernel_converts(input_dtype, output.scalar_type());
  const Tensor grad = aligned_on_gpu(grad_output.contiguous());
  const Tensor y = aligned_on_gpu(output.contiguous());
  const Tensor grad_input =
      at::empty(y.sizes(), y.options().dtype(converts ? input_dtype : y.scalar_type()));
  SoftmaxBackwardArgs args;
  fill_sizes(args, y, dim, grad_input.scalar_type(), kind);
  args.grad_output = grad.const_data_ptr();
  args.output = y.const_data_ptr();
  args.grad_input = grad_input.mutable_data_ptr();
  if (y.numel() > 0) {
    run_kernel(
        y, [&]<CpuIsa isa> { softmax_backward<isa>(args); },
        [&](const auto& target) {
          const Scratch scratch(y, softmax_backward_scratch_cuda(args, target));
          args.scratch = scratch.data();
          return softmax_backward_cuda(args, target);
        });
  }
  return converts ? grad_input : grad_input.to(input_dtype);
}

Tensor softmax_meta(const Tensor& input, int64_t, ScalarType dtype, int64_t) {
  return at::empty_symint(input.sym_sizes(), input.options().dtype(dtype));
}

Tensor softmax_backward_meta(const Tensor& grad_output, const Tensor&, int64_t,
                             ScalarType input_dtype, int64_t) {
  return at::empty_symint(grad_output.sym_sizes(), grad_output.options().dtype(input_dtype));
}

Tensor call_softmax(const Tensor& input, int64_t dim, ScalarType dtype, int64_t kind) {
  static const auto op = find_op<decltype(softmax_kernel)>("fastdl::softmax");
  return op.call(input, dim, dtype, kind);
}

Tensor call_softmax_backward(const Tensor& grad_output, const Tensor& output, int64_t dim,
                             ScalarType input_dtype, int64_t kind) {
  static const auto op = find_op<decltype(softmax_backward_kernel)>("fastdl::softmax_backward");
  return op.call(grad_output, output, dim, input_dtype, kind);
}

// The same gradient from native ops, which torch can differentiate again.
Tensor differentiable_backward(const Tensor& grad_output, const Tensor& output, int64_t dim,
                               ScalarType input_dtype, int64_t kind) {
  const ScalarType dtype = output.scalar_type();
  if (static_cast<SoftmaxKind>(kind) == SoftmaxKind::kLogSoftmax) {
    return at::_log_softmax_backward_data(grad_output, output, dim, dtype).to(input_dtype);
  }
  const Tensor grad = at::_softmax_backward_data(grad_output, output, dim, dtype).to(input_dtype);
  return static_cast<SoftmaxKind>(kind) == SoftmaxKind::kSoftmin ? grad.neg() : grad;
}

struct SoftmaxFunction : torch::autograd::Function<SoftmaxFunction> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& input, int64_t dim,
                        ScalarType dtype, int64_t kind) {
    const at::AutoDispatchBelowADInplaceOrView below;
    Tensor output = call_softmax(input, dim, dtype, kind);
    ctx->save_for_backward({output});
    ctx->saved_data["dim"] = dim;
    ctx->saved_data["input_dtype"] = input.scalar_type();
    ctx->saved_data["kind"] = kind;
    return output;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    Tensor grad_input;
    if (grads[0].defined()) {
      const Tensor output = ctx->get_saved_variables()[0];
      const int64_t dim = ctx->saved_data["dim"].toInt(), kind = ctx->saved_data["kind"].toInt();
      const ScalarType input_dtype = ctx->saved_data["input_dtype"].toScalarType();
      const char* reason =
          at::GradMode::is_enabled() ? "create_graph=True" : reason_to_hand_over(grads[0]);
      if (reason != nullptr) {
        hand_over(std::string(kNames[kind]) + " backward", reason);
        grad_input = differentiable_backward(grads[0], output, dim, input_dtype, kind);
      } else {
        const at::AutoDispatchBelowADInplaceOrView below;
        grad_input = call_softmax_backward(grads[0], output, dim, input_dtype, kind);
      }
    }
    return {grad_input, Tensor(), Tensor(), Tensor()};
  }
};

Tensor softmax_autograd(const Tensor& input, int64_t dim, ScalarType dtype, int64_t kind) {
  if (at::GradMode::is_enabled() && input.requires_grad()) {
    return SoftmaxFunction::apply(input, dim, dtype, kind);
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_softmax(input, dim, dtype, kind);
}

TORCH_LIBRARY_FRAGMENT(fastdl, library) {
  // kind: 0 softmax, 1 log_softmax, 2 softmin
  library.def("softmax(Tensor input, int dim, ScalarType dtype, int kind) -> Tensor");
  library.def(
      "softmax_backward(Tensor grad_output, Tensor output, int dim, ScalarType input_dtype, "
      "int kind) -> Tensor");
}
TORCH_LIBRARY_IMPL(fastdl, CPU, library) {
  library.impl("softmax", softmax_kernel);
  library.impl("softmax_backward", softmax_backward_kernel);
}
TORCH_LIBRARY_IMPL(fastdl, CUDA, library) {
  library.impl("softmax", softmax_kernel);
  library.impl("softmax_backward", softmax_backward_kernel);
}
TORCH_LIBRARY_IMPL(fastdl, Meta, library) {
  library.impl("softmax", softmax_meta);
  library.impl("softmax_backward", softmax_backward_meta);
}
TORCH_LIBRARY_IMPL(fastdl, Autograd, library) {
  library.impl("softmax", softmax_autograd);
  library.impl("softmax_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace

std::optional<Tensor> softmax(const PlainTensor& input, int64_t dim,
                              std::optional<ScalarType> dtype, SoftmaxKind kind) {
  const Tensor& x = input.tensor;
  const char* reason = reason_to_hand_over(x);
  const int64_t dims = std::max<int64_t>(x.dim(), 1);
  if (reason == nullptr && (dim < -dims || dim >= dims)) reason = "dim is out of range";
  const ScalarType output_dtype =
      dtype.value_or(is_autocast_to_float(x) ? at::kFloat : x.scalar_type());
  if (reason == nullptr && !kernel_converts(x.scalar_type(), output_dtype)) {
    reason = "no kernel for this conversion to dtype";
  }
  if (reason != nullptr) {
    hand_over(kNames[static_cast<int>(kind)], reason);
    return std::nullopt;
  }
  return call_softmax(x, dim, output_dtype, static_cast<int64_t>(kind));
}

}  // namespace fastdl
