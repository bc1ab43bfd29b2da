// What runs the kernels that the native tests call: each instruction set of this CPU, or the CUDA
// emulator for each capability. main.cpp of each program lists its own.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "activation/activation.h"
#include "attention/attention.h"
#include "batch_norm/batch_norm.h"
#include "cross_entropy/cross_entropy.h"
#include "dropout/dropout.h"
#include "elementwise_loss/elementwise_loss.h"
#include "embedding/embedding.h"
#include "group_norm/group_norm.h"
#include "layer_norm/dropout_add_layer_norm.h"
#include "layer_norm/layer_norm.h"
#include "optimizer/grad_norm.h"
#include "optimizer/optimizer.h"
#include "pool/pool.h"
#include "softmax/softmax.h"

namespace fastdl::testing {

// tasks, partial_sums, block_sums and scratch of the arguments are the back end's to fill in, where
// it says so.
struct Backend {
  std::string name;
  void (*softmax_forward)(SoftmaxForwardArgs);
  void (*softmax_backward)(SoftmaxBackwardArgs);
  void (*norm_forward)(NormForwardArgs);
  void (*norm_backward)(NormBackwardArgs);
  void (*elementwise_loss_forward)(ElementwiseLossForwardArgs);
  void (*elementwise_loss_backward)(ElementwiseLossBackwardArgs);
  void (*embedding_forward)(EmbeddingForwardArgs);
  void (*embedding_backward)(EmbeddingBackwardArgs);
  void (*adam_step)(StepArgs, Adam);
  void (*sgd_step)(StepArgs, Sgd);
  void (*adagrad_step)(StepArgs, Adagrad);
  void (*rmsprop_step)(StepArgs, RmsProp);
  void (*activation_forward)(ActivationForwardArgs);
  void (*activation_backward)(ActivationBackwardArgs);
  void (*dropout)(DropoutArgs);
  void (*dropout_add_norm_forward)(DropoutAddNormForwardArgs);
  void (*dropout_add_norm_backward)(DropoutAddNormBackwardArgs);
  void (*grad_norm)(GradNormArgs);
  void (*scale_grads)(const GradTensor*, int64_t, const double*);
  void (*batch_norm_forward)(BatchNormForwardArgs);
  void (*batch_norm_backward)(BatchNormBackwardArgs);
  void (*group_norm_forward)(GroupNormForwardArgs);
  void (*group_norm_backward)(GroupNormBackwardArgs);
  void (*cross_entropy_forward)(CrossEntropyArgs);
  void (*cross_entropy_backward)(CrossEntropyArgs);
  void (*target_weight)(TargetWeightArgs);
  void (*loss_sum)(LossSumArgs);
  void (*nll_loss_forward)(NllLossArgs);
  void (*nll_loss_backward)(NllLossArgs);
  void (*max_pool_forward)(MaxPoolForwardArgs);
  void (*max_pool_backward)(MaxPoolBackwardArgs);
  void (*max_pool_indices)(MaxPoolIndicesArgs);
  void (*average_pool_forward)(AveragePoolArgs);
  void (*average_pool_backward)(AveragePoolArgs);
  void (*attention_forward)(AttentionForwardArgs);
  void (*attention_backward)(AttentionBackwardArgs);
  void (*attention_mask_tiles)(AttentionMaskTilesArgs);
  void (*attention_kept)(AttentionKeptArgs);
  void (*select)();  // makes it the one that the functions run on
};

const std::vector<Backend>& backends();

// Whether the kernels write large results in another way than small ones.
bool streams_past_the_cache();

// Memory that kernels may touch to the byte, and no further.
void* allocate_bytes(size_t bytes);
void release_bytes(void* bytes);

template <class F>
void for_each_backend(F&& f) {
  for (const Backend& backend : backends()) {
    backend.select();
    f(backend);
  }
}

}  // namespace fastdl::testing
