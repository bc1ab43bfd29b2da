#pragma once

#include <ATen/ops/empty.h>

#include <optional>
#include <string>

#include "cross_entropy/cross_entropy.h"
#include "torch/checks.h"

namespace fastdl {

// torch.nn.functional's functions; nothing where native torch must compute. reduction: "none",
// "mean" or "sum".
std::optional<at::Tensor> cross_entropy(const PlainTensor& input, const PlainTensor& target,
                                        const std::optional<PlainTensor>& weight,
                                        const std::string& reduction, Integer ignore_index,
                                        Number label_smoothing);
std::optional<at::Tensor> nll_loss(const PlainTensor& input, const PlainTensor& target,
                                   const std::optional<PlainTensor>& weight,
                                   const std::string& reduction, Integer ignore_index);
std::optional<at::Tensor> linear_cross_entropy(
    const PlainTensor& input, const PlainTensor& linear_weight, const PlainTensor& target,
    const std::optional<PlainTensor>& linear_bias, const std::optional<PlainTensor>& weight,
    const std::string& reduction, Integer ignore_index, Number label_smoothing);

// ---- what the glue files of this folder share

using OptionalTensor = std::optional<at::Tensor>;

enum ReductionNumber : int64_t { kNoReduction, kMean, kTotal };  // as at::Reduction has them

// Class indices are integral, probabilities floating.
inline bool has_probabilities(const at::Tensor& target) { return target.is_floating_point(); }

// Of logits; those of one row have no others.
inline int64_t class_dim(const at::Tensor& logits) { return logits.dim() == 1 ? 0 : 1; }

inline at::ScalarType statistics_type(at::ScalarType dtype) {
  return dtype == at::kDouble ? at::kDouble : at::kFloat;
}

// Why no kernel covers a loss of logits of this shape and dtype, or nullptr.
const char* reason_of_loss(at::IntArrayRef shape, const at::Tensor& logits,
                           const at::Tensor& target, const at::Tensor& weight, bool autocast,
                           double label_smoothing);
// The same of a target, whose dtype is no kernel's, being something else than a plain tensor.
const char* reason_of_target(const at::Tensor& target);
std::optional<int64_t> reduction_of(const std::string& name);
// Whether autocast makes torch compute the loss of this tensor in float32.
bool autocasts_loss(const at::Tensor& input);
// The same in the dtype of the kernels' statistics, contiguous; undefined where there is none.
at::Tensor statistics_of(const OptionalTensor& tensor, at::ScalarType dtype);

// What a mean divides by, where the kernels want it: in host or GPU memory.
class Divisor {
 public:
  // Checks the bounds of class indices, whatever the reduction.
  Divisor(const at::Tensor& logits, const at::Tensor& target, const at::Tensor& weight,
          int64_t classes, int64_t reduction, int64_t ignore_index);
  // One made by as_tensor()
  explicit Divisor(const at::Tensor& saved);
  const double* pointer() const;
  at::Tensor as_tensor(const at::Tensor& like) const;  // empty where nothing is divided

 private:
  bool divides_;
  double on_cpu_ = 0;
  at::Tensor on_gpu_;
};

// The gradient times grad_output, a number: in its own memory, which nobody else sees.
at::Tensor scale_gradient(const at::Tensor& gradient, const at::Tensor& grad_output);

// The row losses as the reduction gives them.
at::Tensor reduce_losses(const at::Tensor& losses, const Divisor& divisor, int64_t reduction,
                         at::IntArrayRef shape, at::ScalarType dtype);

// The gradient of the reduced losses with respect to logits (or, for nll_loss, log-probabilities),
// from native ops that torch can differentiate again.
at::Tensor differentiable_gradient(const at::Tensor& grad_output, const at::Tensor& input,
                                   const at::Tensor& target, const at::Tensor& weight,
                                   int64_t reduction, int64_t ignore_index, double label_smoothing,
                                   bool of_logits);

}  // namespace fastdl
