// The choice of CUDA's blocks for an attention, a pure function.
#include "attention/attention_cuda_plan.h"
#include "check.h"
#include "tests.h"

namespace fastdl::testing {
namespace {

constexpr AttentionPass kPasses[] = {AttentionPass::kForward, AttentionPass::kGradKeyValue,
                                     AttentionPass::kGradQuery, AttentionPass::kGradBias};

AttentionCudaPlan plan_of(const AttentionSizes& sizes, DType dtype = DType::kBFloat16,
                          AttentionPass pass = AttentionPass::kForward) {
  return plan_attention_cuda(pass, sizes, dtype, 132);
}

// Every block must be one that its kernels can be built and launched with.
void check_table() {
  for (const AttentionBlock& block : kAttentionBlocks) {
    check(block.warps % block.parts == 0 && block.cols % 16 == 0, "whole warps and dropout blocks");
    check(kAttentionTerms % block.cols == 0 && kAttentionTerms % block.rows() == 0,
          "terms of the gradients are padded for every block");
    check(kMaskCols % block.cols == 0, "a step lies in one tile of a mask");
    check(block.shared_bytes() <= 99 * 1024, "a block fits into any GPU");
    check((block.shared_bytes() + 1024) * block.blocks <= 163 * 1024, "blocks fit together");
    check(block.threads() * block.blocks * 255 <= 65536 || block.blocks > 1,
          "a block's threads may have all registers");
  }
}

void check_choices() {
  for (const AttentionPass pass : kPasses) {
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
      for (const int64_t dims : {1, 63, 64, 65, 128, 129, 256}) {
        for (const int64_t queries : {1, 16, 17, 1000}) {
          const AttentionSizes sizes{2, 4, 2, queries, 300, dims, (dims + 1) / 2};
          const int index = plan_of(sizes, dtype, pass).block;
          check(index >= 0 && kAttentionBlocks[index].pass == pass &&
                    kAttentionBlocks[index].dims >= dims && kAttentionBlocks[index].dims <= 256,
                "every size has a block");
        }
      }
    }
  }
  check(kAttentionBlocks[plan_of({1, 8, 8, 1024, 1024, 64, 100}).block].dims == 128,
        "wide values count");
  check(kAttentionBlocks[plan_of({1, 8, 8, 16, 1024, 64, 64}).block].rows() == 16,
        "few queries take a warp");
  check(kAttentionBlocks[plan_of({1, 8, 8, 17, 1024, 64, 64}).block].rows() == 128,
        "many take large blocks");
}

void check_splits() {
  const AttentionCudaPlan decoding = plan_of({1, 8, 8, 1, 16384, 128, 128});
  const AttentionBlock& block = kAttentionBlocks[decoding.block];
  check(decoding.splits > 8 && decoding.splits * 8 <= 132 * block.blocks,
        "decoding splits the keys over the GPU, once");
  check(16384 / block.cols / decoding.splits >= 4, "in shares of some steps");
  check(plan_of({1, 8, 8, 1, 100, 128, 128}).splits == 1, "few keys are not split");
  check(plan_of({16, 16, 16, 2048, 2048, 64, 64}).splits == 1, "nor those of many blocks");
  check(plan_of({1, 1, 1, 1, int64_t{1} << 25, 64, 64}).splits <= 64,
        "what splits leave is combined by one warp");
  check(
      plan_of({1, 1, 1, 64, 4096, 64, 64}, DType::kBFloat16, AttentionPass::kGradQuery).splits == 1,
      "gradients are not split");
}

void check_coverage() {
  const AttentionSizes sizes{2, 4, 2, 100, 300, 64, 64};
  check(attention_cuda_covers(sizes, DType::kBFloat16, DType::kFloat32), "a bias of float32");
  check(!attention_cuda_covers(sizes, DType::kBFloat16, DType::kFloat16), "no other 16-bit bias");
  check(!attention_cuda_covers(sizes, DType::kFloat64, DType::kFloat64), "float64 is torch's");
  check(!attention_cuda_covers({2, 4, 2, 100, 300, 257, 64}, DType::kFloat32, DType::kFloat32),
        "so are more than 256 columns");
  check(!attention_cuda_covers({1, 1, 1, 1, int64_t{1} << 30, 64, 64}, DType::kFloat32,
                               DType::kFloat32),
        "and positions beyond 30 bits");
}

}  // namespace

void test_attention_cuda_plan() {
  check_table();
  check_choices();
  check_splits();
  check_coverage();
}

}  // namespace fastdl::testing
