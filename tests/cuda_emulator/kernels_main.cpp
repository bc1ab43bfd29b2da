// Runs the project's CUDA kernels in the emulator, on the same cases as the CPU's native tests.
#include <cstdio>
#include <cstdlib>

#include "../native/tests.h"
#include "backends.h"
#include "check.h"
#include "emulator.h"

namespace fastdl::testing {
namespace {

CudaTarget target() {
  const emulator::Device device = emulator::device();
  return {nullptr, device.multiprocessors, device.capability};
}

// Device memory for the time of one call
class Scratch {
 public:
  explicit Scratch(size_t bytes) : bytes_(bytes == 0 ? nullptr : emulator::allocate(bytes)) {}
  Scratch(const Scratch&) = delete;
  ~Scratch() {
    if (bytes_ != nullptr) emulator::release(bytes_);
  }
  void* get() const { return bytes_; }

 private:
  void* bytes_;
};

void expect(Status status) {
  check(status.ok(), "launch error " + std::to_string(status.cuda_error));
  const size_t reports = emulator::take_reports().size();
  check(reports == 0, std::to_string(reports) + " reports of the emulator");
}

template <class Algorithm>
void emulated_step(StepArgs args, Algorithm algorithm) {
  const Scratch table(step_scratch_cuda(args.count));
  expect(optimizer_step_cuda(args, algorithm, {}, table.get(), target()));
}

template <int capability>
Backend emulated(int multiprocessors) {
  static const int processors = multiprocessors;
  return {
      "emulated capability " + std::to_string(capability),
      [](SoftmaxForwardArgs args) {
        const Scratch scratch(softmax_forward_scratch_cuda(args, target()));
        args.scratch = scratch.get();
        expect(softmax_forward_cuda(args, target()));
      },
      [](SoftmaxBackwardArgs args) {
        const Scratch scratch(softmax_backward_scratch_cuda(args, target()));
        args.scratch = scratch.get();
        expect(softmax_backward_cuda(args, target()));
      },
      [](NormForwardArgs args) {
        const Scratch scratch(norm_forward_scratch_cuda(args, target()));
        args.scratch = scratch.get();
        expect(norm_forward_cuda(args, target()));
      },
      [](NormBackwardArgs args) {
        args.tasks = norm_backward_tasks_cuda(args, target());
        const size_t sum_bytes = args.dtype == DType::kFloat64 ? 8 : 4;
        const Scratch scratch(norm_backward_scratch_cuda(args, target()));
        const Scratch sums(args.tasks * 2 * args.cols * sum_bytes);
        args.scratch = scratch.get();
        args.partial_sums = sums.get();
        expect(norm_backward_cuda(args, target()));
      },
      [](ElementwiseLossForwardArgs args) {
        const Scratch scratch(elementwise_loss_scratch_cuda(args, target()));
        args.scratch = scratch.get();
        expect(elementwise_loss_forward_cuda(args, target()));
      },
      [](ElementwiseLossBackwardArgs args) {
        expect(elementwise_loss_backward_cuda(args, target()));
      },
      [](EmbeddingForwardArgs args) { expect(embedding_forward_cuda(args, target())); },
      [](EmbeddingBackwardArgs args) {
        const Scratch scratch(embedding_backward_scratch_cuda(args, target()));
        args.scratch = scratch.get();
        expect(embedding_backward_cuda(args, target()));
      },
      emulated_step<Adam>,
      emulated_step<Sgd>,
      emulated_step<Adagrad>,
      emulated_step<RmsProp>,
      [](ActivationForwardArgs args) { expect(activation_forward_cuda(args, target())); },
      [](ActivationBackwardArgs args) { expect(activation_backward_cuda(args, target())); },
      [](DropoutArgs args) { expect(dropout_cuda(args, target())); },
      [](DropoutAddNormForwardArgs args) { expect(dropout_add_norm_forward_cuda(args, target())); },
      [](DropoutAddNormBackwardArgs args) {
        args.tasks = dropout_add_norm_tasks_cuda(args, target());
        const size_t sum_bytes = args.dtype == DType::kFloat64 ? 8 : 4;
        const Scratch sums(args.tasks * 2 * args.cols * sum_bytes);
        args.partial_sums = sums.get();
        expect(dropout_add_norm_backward_cuda(args, target()));
      },
      [](GradNormArgs args) {
        const Scratch sums(table_blocks(args.tensors, args.count) * sizeof(double));
        args.block_sums = static_cast<double*>(sums.get());
        expect(grad_norm_cuda(args, nullptr, target()));
      },
      [](const GradTensor* tensors, int64_t count, const double* coefficient) {
        expect(scale_grads_cuda(tensors, count, coefficient, target()));
      },
      [](BatchNormForwardArgs args) {
        const Scratch scratch(batch_norm_forward_scratch_cuda(args, target()));
        args.scratch = scratch.get();
        expect(batch_norm_forward_cuda(args, target()));
      },
      [](BatchNormBackwardArgs args) {
        const Scratch scratch(batch_norm_backward_scratch_cuda(args, target()));
        args.scratch = scratch.get();
        expect(batch_norm_backward_cuda(args, target()));
      },
      [](GroupNormForwardArgs args) {
        const Scratch scratch(group_norm_forward_scratch_cuda(args, target()));
        args.scratch = scratch.get();
        expect(group_norm_forward_cuda(args, target()));
      },
      [](GroupNormBackwardArgs args) {
        const Scratch scratch(group_norm_backward_scratch_cuda(args, target()));
        args.scratch = scratch.get();
        expect(group_norm_backward_cuda(args, target()));
      },
      [](CrossEntropyArgs args) {
        const Scratch scratch(cross_entropy_forward_scratch_cuda(args, target()));
        args.scratch = scratch.get();
        expect(cross_entropy_forward_cuda(args, target()));
      },
      [](CrossEntropyArgs args) { expect(cross_entropy_backward_cuda(args, target())); },
      [](TargetWeightArgs args) {
        const Scratch scratch(loss_scratch_cuda(args.rows));
        args.scratch = scratch.get();
        expect(target_weight_cuda(args, target()));
      },
      [](LossSumArgs args) {
        const Scratch scratch(loss_scratch_cuda(args.rows));
        args.scratch = scratch.get();
        expect(loss_sum_cuda(args, target()));
      },
      [](NllLossArgs args) { expect(nll_loss_forward_cuda(args, target())); },
      [](NllLossArgs args) { expect(nll_loss_backward_cuda(args, target())); },
      [](MaxPoolForwardArgs args) { expect(max_pool_forward_cuda(args, target())); },
      [](MaxPoolBackwardArgs args) { expect(max_pool_backward_cuda(args, target())); },
      [](MaxPoolIndicesArgs args) { expect(max_pool_indices_cuda(args, target())); },
      [](AveragePoolArgs args) { expect(average_pool_forward_cuda(args, target())); },
      [](AveragePoolArgs args) { expect(average_pool_backward_cuda(args, target())); },
      [](AttentionForwardArgs args) {
        const Scratch workspace(attention_forward_workspace_cuda(args, target()));
        args.workspace = workspace.get();
        expect(attention_forward_cuda(args, target()));
      },
      [](AttentionBackwardArgs args) {
        const Scratch workspace(attention_backward_workspace_cuda(args, target()));
        args.workspace = workspace.get();
        expect(attention_backward_cuda(args, target()));
      },
      [](AttentionMaskTilesArgs args) { expect(attention_mask_tiles_cuda(args, target())); },
      [](AttentionKeptArgs args) { expect(attention_kept_cuda(args, target())); },
      [] { emulator::set_device({processors, capability}); }};
}

}  // namespace

const std::vector<Backend>& backends() {
  static const std::vector<Backend> all = {emulated<80>(3), emulated<90>(4)};
  return all;
}

bool streams_past_the_cache() { return false; }

void* allocate_bytes(size_t bytes) { return emulator::allocate(bytes); }
void release_bytes(void* bytes) { emulator::release(bytes); }

}  // namespace fastdl::testing

int main() {
  using namespace fastdl::testing;
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
  test_conv_kernels();
  test_attention();
  std::printf("%ld passed, %ld failed\n", tally().passed, tally().failed);
  return tally().failed == 0 && tally().passed > 0 ? 0 : 1;
}
