#pragma once

#include "optimizer/optimizer_torch.h"

namespace fastdl {

// One step of torch.optim's optimizer of that name, in place. Returns the indices of the tensors
// that no kernel covers, which are left as they were. A list without tensors is one that the step
// does without; `clip` is what all gradients are multiplied by in this step.
std::vector<int64_t> adam_step_all(
    const PlainTensors& params, const PlainTensors& grads, const PlainTensors& exp_avgs,
    const PlainTensors& exp_avg_sqs, const PlainTensors& max_exp_avg_sqs, const PlainTensors& steps,
    Number lr, Number beta1, Number beta2, Number weight_decay, Number eps, bool maximize,
    bool decoupled, const OptionalPlainTensor& lr_tensor, const OptionalPlainTensor& grad_scale,
    const OptionalPlainTensor& found_inf, const OptionalPlainTensor& clip);
std::vector<int64_t> sgd_step_all(const PlainTensors& params, const PlainTensors& grads,
                                  const PlainTensors& momentum_buffers, Number lr, Number momentum,
                                  Number dampening, Number weight_decay, bool nesterov,
                                  bool maximize, bool first, const OptionalPlainTensor& lr_tensor,
                                  const OptionalPlainTensor& grad_scale,
                                  const OptionalPlainTensor& found_inf,
                                  const OptionalPlainTensor& clip);
std::vector<int64_t> adagrad_step_all(const PlainTensors& params, const PlainTensors& grads,
                                      const PlainTensors& sums, const PlainTensors& steps,
                                      Number lr, Number lr_decay, Number weight_decay, Number eps,
                                      bool maximize, const OptionalPlainTensor& lr_tensor,
                                      const OptionalPlainTensor& grad_scale,
                                      const OptionalPlainTensor& found_inf,
                                      const OptionalPlainTensor& clip);
std::vector<int64_t> rmsprop_step_all(
    const PlainTensors& params, const PlainTensors& grads, const PlainTensors& square_avgs,
    const PlainTensors& grad_avgs, const PlainTensors& momentum_buffers, const PlainTensors& steps,
    Number lr, Number alpha, Number weight_decay, Number eps, Number momentum, bool maximize,
    const OptionalPlainTensor& lr_tensor, const OptionalPlainTensor& grad_scale,
    const OptionalPlainTensor& found_inf, const OptionalPlainTensor& clip);

}  // namespace fastdl
