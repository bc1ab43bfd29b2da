// torch op of dropout: seed, allocation, autograd. Formula: dropout_cpu.cpp.
#include "dropout/dropout_torch.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "dropout/dropout.h"
#include "torch/hand_over.h"
#include "torch/memory_order.h"
#include "torch/random_seed.h"
#include "torch/run_kernel.h"

namespace fastdl {
namespace {

using at::Tensor;

Tensor dropout_kernel(const Tensor& input, double p, int64_t seed) {
  TORCH_CHECK(p > 0 && p < 1, "fastdl::dropout: p must be between 0 and 1, not ", p);
  const auto dtype = kernel_dtype(input.scalar_type());
  TORCH_CHECK_NOT_IMPLEMENTED(dtype, "fastdl::dropout: no kernel for ", input.scalar_type());
  const Tensor x = dense(input);
  const Tensor output = x.is_same(input) ? at::empty_like(x) : x;
  const DropoutArgs args{x.const_data_ptr(),
                         output.mutable_data_ptr(),
                         x.numel(),
                         p,
                         static_cast<uint64_t>(seed),
                         *dtype};
  if (args.count > 0) {
    run_kernel(
        x, [&]<CpuIsa isa> { dropout<isa>(args); },
        [&](const auto& target) { return dropout_cuda(args, target); });
  }
  return output;
}

Tensor dropout_meta(const Tensor& input, double, int64_t) { return at::empty_like(input); }

Tensor call_dropout(const Tensor& input, double p, int64_t seed) {
  static const auto op = find_op<decltype(dropout_kernel)>("fastdl::dropout");
  return op.call(input, p, seed);
}

// Linear in its input: the backward is the same op, and so is the backward of that.
struct DropoutFunction : torch::autograd::Function<DropoutFunction> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& input, double p,
                        int64_t seed) {
    const at::AutoDispatchBelowADInplaceOrView below;
    Tensor output = call_dropout(input, p, seed);
    ctx->saved_data["p"] = p;
    ctx->saved_data["seed"] = seed;
    // The mask goes by memory order, which must be that of the output again.
    ctx->saved_data["strides"] = output.strides();
    return output;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    Tensor grad = grads[0];
    if (grad.defined()) {
      const double p = ctx->saved_data["p"].toDouble();
      const int64_t seed = ctx->saved_data["seed"].toInt();
      const std::vector<int64_t> strides = ctx->saved_data["strides"].toIntVector();
      if (const char* reason = reason_to_hand_over(grad)) {
        hand_over("dropout backward", reason);
        const at::TensorOptions options = grad.options();
        const Tensor ones = at::empty_strided(grad.sizes(), strides, options).fill_(1);
        grad = grad * call_dropout(ones, p, seed);
      } else {
        if (grad.strides() != strides) {
          grad = at::empty_strided(grad.sizes(), strides, grad.options()).copy_(grad);
        }
        grad = call_dropout(grad, p, seed);
      }
    }
    return {grad, Tensor(), Tensor()};
  }
};

Tensor dropout_autograd(const Tensor& input, double p, int64_t seed) {
  if (at::GradMode::is_enabled() && input.requires_grad()) {
    return DropoutFunction::apply(input, p, seed);
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_dropout(input, p, seed);
}

TORCH_LIBRARY_FRAGMENT(fastdl, library) {
  library.def("dropout(Tensor input, float p, int seed) -> Tensor");
}
TORCH_LIBRARY_IMPL(fastdl, CPU, library) { library.impl("dropout", dropout_kernel); }
TORCH_LIBRARY_IMPL(fastdl, CUDA, library) { library.impl("dropout", dropout_kernel); }
TORCH_LIBRARY_IMPL(fastdl, Meta, library) { library.impl("dropout", dropout_meta); }
TORCH_LIBRARY_IMPL(fastdl, Autograd, library) { library.impl("dropout", dropout_autograd); }

}  // namespace

std::optional<Tensor> dropout_in_training(const PlainTensor& input, Number p, bool training,
                                          bool inplace) {
  const Tensor& x = input.tensor;
  // Nothing is random then, and torch hands back its input, multiplies by 0, or raises.
  if (!training || !(p > 0 && p < 1)) return std::nullopt;
  const char* reason = reason_to_hand_over(x);
  if (reason == nullptr) reason = reason_without_seed(x);
  if (reason != nullptr) {
    hand_over("dropout", reason);
    return std::nullopt;
  }
  if (x.numel() == 0) return std::nullopt;  // as above
  const int64_t seed = draw_seed(x);
  if (!inplace) return call_dropout(x, p, seed);
  // As in torch: multiplied by its noise, which is the gradient of that.
  Tensor noise;
  {
    const at::NoGradGuard no_grad;
    noise = call_dropout(at::ones_like(x), p, seed);
  }
  return Tensor(x).mul_(noise);
}

}  // namespace fastdl
