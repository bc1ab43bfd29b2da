#pragma once

#include <optional>
#include <vector>

#include "adam/adam.h"
#include "torch/checks.h"

namespace fastdl {

// One step of torch.optim.Adam or AdamW, in place. Returns the indices of the tensors that no
// kernel covers, which are left as they were.
std::vector<int64_t> adam_step_all(
    const std::vector<PlainTensor>& params, const std::vector<PlainTensor>& grads,
    const std::vector<PlainTensor>& exp_avgs, const std::vector<PlainTensor>& exp_avg_sqs,
    const std::vector<PlainTensor>& max_exp_avg_sqs, const std::vector<PlainTensor>& steps,
    Number lr, Number beta1, Number beta2, Number weight_decay, Number eps, bool maximize,
    bool decoupled, const std::optional<PlainTensor>& lr_tensor,
    const std::optional<PlainTensor>& grad_scale, const std::optional<PlainTensor>& found_inf);

}  // namespace fastdl
