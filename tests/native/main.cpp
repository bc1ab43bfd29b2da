// Runs the CPU kernels without torch, on memory of exactly their size: the address sanitizer's
// program.
#include <algorithm>
#include <cstdio>
#include <new>
#include <vector>

#include "backends.h"
#include "check.h"
#include "instruction_sets.h"
#include "tests.h"

namespace fastdl::testing {
namespace {

// Memory for the time of one call, aligned to 64 bytes
class Workspace {
 public:
  explicit Workspace(size_t bytes) : data_(::operator new(bytes, kAlignment)) {}
  Workspace(const Workspace&) = delete;
  ~Workspace() { ::operator delete(data_, kAlignment); }
  void* data() const { return data_; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  void* data_;
};

template <CpuIsa isa>
Backend backend_of() {
  return {cpu_isa_name(isa),
          [](SoftmaxForwardArgs args) { softmax_forward<isa>(args); },
          [](SoftmaxBackwardArgs args) { softmax_backward<isa>(args); },
          [](NormForwardArgs args) { norm_forward<isa>(args); },
          [](NormBackwardArgs args) { norm_backward<isa>(args); },
          [](ElementwiseLossForwardArgs args) { elementwise_loss_forward<isa>(args); },
          [](ElementwiseLossBackwardArgs args) { elementwise_loss_backward<isa>(args); },
          [](EmbeddingForwardArgs args) { embedding_forward<isa>(args); },
          [](EmbeddingBackwardArgs args) { embedding_backward<isa>(args); },
          [](StepArgs args, Adam adam) { optimizer_step<isa>(args, adam); },
          [](StepArgs args, Sgd sgd) { optimizer_step<isa>(args, sgd); },
          [](StepArgs args, Adagrad adagrad) { optimizer_step<isa>(args, adagrad); },
          [](StepArgs args, RmsProp rms) { optimizer_step<isa>(args, rms); },
          [](ActivationForwardArgs args) { activation_forward<isa>(args); },
          [](ActivationBackwardArgs args) { activation_backward<isa>(args); },
          [](DropoutArgs args) { dropout<isa>(args); },
          [](DropoutAddNormForwardArgs args) { dropout_add_norm_forward<isa>(args); },
          [](DropoutAddNormBackwardArgs args) {
            args.tasks = std::min<int64_t>(args.rows, 3);
            std::vector<double> sums(args.tasks * 2 * args.cols);
            args.partial_sums = sums.data();
            dropout_add_norm_backward<isa>(args);
          },
          [](GradNormArgs args) {
            std::vector<double> sums(table_blocks(args.tensors, args.count));
            args.block_sums = sums.data();
            grad_norm<isa>(args);
          },
          [](const GradTensor* tensors, int64_t count, const double* coefficient) {
            scale_grads<isa>(tensors, count, *coefficient);
          },
          [](BatchNormForwardArgs args) { batch_norm_forward<isa>(args); },
          [](BatchNormBackwardArgs args) { batch_norm_backward<isa>(args); },
          [](GroupNormForwardArgs args) { group_norm_forward<isa>(args); },
          [](GroupNormBackwardArgs args) { group_norm_backward<isa>(args); },
          [](CrossEntropyArgs args) { cross_entropy_forward<isa>(args); },
          [](CrossEntropyArgs args) { cross_entropy_backward<isa>(args); },
          [](TargetWeightArgs args) { (void)target_weight<isa>(args); },
          [](LossSumArgs args) { loss_sum<isa>(args); },
          [](NllLossArgs args) { nll_loss_forward<isa>(args); },
          [](NllLossArgs args) { nll_loss_backward<isa>(args); },
          [](MaxPoolForwardArgs args) { max_pool_forward<isa>(args); },
          [](MaxPoolBackwardArgs args) { max_pool_backward<isa>(args); },
          [](MaxPoolIndicesArgs args) { max_pool_indices<isa>(args); },
          [](AveragePoolArgs args) { average_pool_forward<isa>(args); },
          [](AveragePoolArgs args) { average_pool_backward<isa>(args); },
          [](AttentionForwardArgs args) {
            const Workspace workspace(attention_forward_workspace<isa>(args));
            args.workspace = workspace.data();
            attention_forward<isa>(args);
          },
          [](AttentionBackwardArgs args) {
            const Workspace workspace(attention_backward_workspace<isa>(args));
            args.workspace = workspace.data();
            attention_backward<isa>(args);
          },
          [](AttentionMaskTilesArgs args) { attention_mask_tiles<isa>(args); },
          [](AttentionKeptArgs args) { attention_kept<isa>(args); },
          [] {}};
}

std::vector<Backend> instruction_sets() {
  std::vector<Backend> all;
  for_each_instruction_set([&]<CpuIsa isa> { all.push_back(backend_of<isa>()); });
  return all;
}

}  // namespace

const std::vector<Backend>& backends() {
  static const std::vector<Backend> all = instruction_sets();
  return all;
}

bool streams_past_the_cache() { return true; }

void* allocate_bytes(size_t bytes) { return new char[bytes]; }
void release_bytes(void* bytes) { delete[] static_cast<char*>(bytes); }

}  // namespace fastdl::testing

int main() {
  using namespace fastdl::testing;
  test_parallel();
  test_row_plan();
  test_conv_cuda_plan();
  test_attention_cuda_plan();
  test_conv_depthwise();
  test_softmax();
  test_layer_norm();
  test_elementwise_loss();
  test_embedding();
  test_optimizer();
  test_activation();
  test_dropout();
  test_dropout_add_layer_norm();
  test_grad_norm();
  test_batch_norm();
  test_group_norm();
  test_cross_entropy();
  test_pool();
  test_conv();
  test_attention();
  std::printf("%ld passed, %ld failed\n", tally().passed, tally().failed);
  return tally().failed == 0 && tally().passed > 0 ? 0 : 1;
}
