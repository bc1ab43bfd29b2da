// torch ops of embedding: checks, allocation, autograd. Formulas: embedding_cpu.cpp.
#include "embedding/embedding_torch.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <limits>

#include "torch/hand_over.h"
#include "torch/run_kernel.h"

namespace fastdl {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Rows must be contiguous, but may lie apart.
bool has_contiguous_rows(const Tensor& weight) {
  return weight.dim() == 2 && (weight.stride(1) == 1 || weight.size(1) <= 1);
}

EmbeddingIndices indices_of(const Tensor& indices, int64_t vocabulary) {
  TORCH_CHECK(indices.scalar_type() == at::kLong || indices.scalar_type() == at::kInt,
              "fastdl::embedding: indices must be int64 or int32, not ", indices.scalar_type());
  return {indices.const_data_ptr(), indices.numel(), vocabulary,
          indices.scalar_type() == at::kLong};
}

Tensor embedding_kernel(const Tensor& weight, const Tensor& indices, int64_t) {
  TORCH_CHECK(has_contiguous_rows(weight), "fastdl::embedding: weight must have contiguous rows");
  TORCH_CHECK(weight.device() == indices.device(),
              "fastdl::embedding: weight and indices must be on one device");
  std::vector<int64_t> sizes = indices.sizes().vec();
  sizes.push_back(weight.size(1));
  const Tensor output = at::empty(sizes, weight.options());
  if (output.numel() == 0 && indices.numel() == 0) return output;
  const Tensor index = indices.contiguous();
  EmbeddingForwardArgs args{indices_of(index, weight.size(0)), weight.const_data_ptr(),
                            output.mutable_data_ptr(), weight.size(1) * weight.element_size(),
                            weight.stride(0) * weight.element_size()};
  run_kernel(
      weight,
      [&]<CpuIsa isa> {
        TORCH_CHECK_INDEX(embedding_indices_in_range<isa>(args.indices),
                          "index out of range in self");
        if (output.numel() > 0) embedding_forward<isa>(args);
      },
      [&](const auto& target) { return embedding_forward_cuda(args, target); });
  return output;
}

Tensor embedding_backward_kernel(const Tensor& grad_output, const Tensor& indices,
                                 int64_t vocabulary, int64_t padding_idx) {
  TORCH_CHECK(grad_output.dim() == indices.dim() + 1 &&
                  grad_output.sizes().slice(0, indices.dim()) == indices.sizes(),
              "fastdl::embedding_backward: grad_output must have indices' shape and one dim more");
  TORCH_CHECK(grad_output.device() == indices.device(),
              "fastdl::embedding_backward: grad_output and indices must be on one device");
  TORCH_CHECK(indices.numel() <= std::numeric_limits<int32_t>::max(),
              "fastdl::embedding_backward: too many indices");
  const auto dtype = kernel_dtype(grad_output.scalar_type());
  TORCH_CHECK_NOT_IMPLEMENTED(dtype, "fastdl::embedding_backward: no kernel for ",
                              grad_output.scalar_type());
  const Tensor grad = aligned_on_gpu(grad_output.contiguous()), index = indices.contiguous();
  const int64_t dim = grad.size(-1);
  const Tensor grad_weight = at::empty({vocabulary, dim}, grad.options());
  if (grad_weight.numel() == 0) return grad_weight;
  EmbeddingBackwardArgs args{indices_of(index, vocabulary),
                             grad.const_data_ptr(),
                             grad_weight.mutable_data_ptr(),
                             dim,
                             padding_idx,
                             *dtype};
  run_kernel(
      grad,
      [&]<CpuIsa isa> {
        TORCH_CHECK_INDEX(embedding_indices_in_range<isa>(args.indices),
                          "index out of range in self");
        embedding_backward<isa>(args);
      },
      [&](const auto& target) {
        const Scratch scratch(grad, embedding_backward_scratch_cuda(args, target));
        args.scratch = scratch.data();
        return embedding_backward_cuda(args, target);
      });
  return grad_weight;
}

Tensor embedding_meta(const Tensor& weight, const Tensor& indices, int64_t) {
  c10::SymDimVector sizes(indices.sym_sizes().begin(), indices.sym_sizes().end());
  sizes.push_back(weight.sym_size(1));
  return at::empty_symint(sizes, weight.options());
}

Tensor embedding_backward_meta(const Tensor& grad_output, const Tensor&, c10::SymInt vocabulary,
                               int64_t) {
  return at::empty_symint({vocabulary, grad_output.sym_size(-1)}, grad_output.options());
}

Tensor call_embedding(const Tensor& weight, const Tensor& indices, int64_t padding_idx) {
  static const auto op = find_op<decltype(call_embedding)>("fastdl::embedding");
  return op.call(weight, indices, padding_idx);
}

Tensor call_backward(const Tensor& grad_output, const Tensor& indices, c10::SymInt vocabulary,
                     int64_t padding_idx) {
  static const auto op = find_op<decltype(call_backward)>("fastdl::embedding_backward");
  return op.call(grad_output, indices, vocabulary, padding_idx);
}

struct EmbeddingFunction : torch::autograd::Function<EmbeddingFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& weight, const Tensor& indices,
                        int64_t padding_idx) {
    const at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({indices});
    ctx->saved_data["vocabulary"] = weight.sym_size(0);
    ctx->saved_data["padding_idx"] = padding_idx;
    return call_embedding(weight, indices, padding_idx);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    Tensor grad_weight;
    if (grads[0].defined()) {
      const Tensor indices = ctx->get_saved_variables()[0];
      const c10::SymInt vocabulary = ctx->saved_data["vocabulary"].toSymInt();
      const int64_t padding_idx = ctx->saved_data["padding_idx"].toInt();
      const char* reason =
          at::GradMode::is_enabled() ? "create_graph=True" : reason_to_hand_over(grads[0]);
      if (reason != nullptr) {
        hand_over("embedding backward", reason);
        grad_weight =
            at::embedding_dense_backward_symint(grads[0], indices, vocabulary, padding_idx, false);
      } else {
        const at::AutoDispatchBelowADInplaceOrView below;
        grad_weight = call_backward(grads[0], indices, vocabulary, padding_idx);
      }
    }
    return {grad_weight, Tensor(), Tensor()};
  }
};

Tensor embedding_autograd(const Tensor& weight, const Tensor& indices, int64_t padding_idx) {
  if (at::GradMode::is_enabled() && weight.requires_grad()) {
    return EmbeddingFunction::apply(weight, indices, padding_idx);
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_embedding(weight, indices, padding_idx);
}

TORCH_LIBRARY_FRAGMENT(fastdl, library) {
  library.def("embedding(Tensor weight, Tensor indices, int padding_idx) -> Tensor");
  library.def(
      "embedding_backward(Tensor grad_output, Tensor indices, SymInt vocabulary, "
      "int padding_idx) -> Tensor");
}
TORCH_LIBRARY_IMPL(fastdl, CPU, library) {
  library.impl("embedding", embedding_kernel);
  library.impl("embedding_backward", embedding_backward_kernel);
}
TORCH_LIBRARY_IMPL(fastdl, CUDA, library) {
  library.impl("embedding", embedding_kernel);
  library.impl("embedding_backward", embedding_backward_kernel);
}
TORCH_LIBRARY_IMPL(fastdl, Meta, library) {
  library.impl("embedding", embedding_meta);
  library.impl("embedding_backward", embedding_backward_meta);
}
TORCH_LIBRARY_IMPL(fastdl, Autograd, library) {
  library.impl("embedding", embedding_autograd);
  library.impl("embedding_backward", torch::autograd::autogradNotImplementedFallback());
}

// Why no kernel takes these indices, or nullptr: they are integers, which reason_to_hand_over()
// does not know.
const char* reason_of_indices(const Tensor& indices, const Tensor& weight) {
  if (!indices.defined()) return "an undefined tensor";
  if (!is_plain_dense(indices)) return "not a plain dense tensor";
  if (indices.device() != weight.device()) return "tensors on different devices";
  if (indices.scalar_type() != at::kLong && indices.scalar_type() != at::kInt) {
    return "indices that are not int64 or int32";
  }
  if (indices.numel() > std::numeric_limits<int32_t>::max()) return "2^31 indices or more";
  if (weight.requires_grad() && at::GradMode::is_enabled() && indices.is_inference()) {
    return "an inference tensor that the backward would need";
  }
  return nullptr;
}

}  // namespace

std::optional<Tensor> embedding(const PlainTensor& input, const PlainTensor& weight,
                                std::optional<Integer> padding_idx, std::optional<Number> max_norm,
                                Number, bool scale_grad_by_freq, bool sparse) {
  const Tensor &indices = input.tensor, &w = weight.tensor;
  const char* reason = reason_to_hand_over(w);
  if (reason == nullptr) reason = reason_of_indices(indices, w);
  if (reason == nullptr && !has_contiguous_rows(w)) reason = "a weight without contiguous rows";
  if (reason == nullptr && max_norm) reason = "max_norm";
  if (reason == nullptr && scale_grad_by_freq) reason = "scale_grad_by_freq";
  if (reason == nullptr && sparse) reason = "sparse gradients";
  int64_t padding = -1;
  if (reason == nullptr && padding_idx) {
    const int64_t rows = w.size(0);
    padding = *padding_idx;
    if (padding < -rows || (padding >= rows && padding > 0)) reason = "padding_idx is out of range";
    if (padding < 0) padding += rows;
  }
  if (reason != nullptr) {
    hand_over("embedding", reason);
    return std::nullopt;
  }
  return call_embedding(w, indices, padding);
}

}  // namespace fastdl
