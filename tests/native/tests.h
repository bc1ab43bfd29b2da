// The table of contents of the native tests; main.cpp runs them all.
#pragma once

#include <cstdint>

namespace fastdl::testing {

void test_softmax();
void test_layer_norm();
void test_elementwise_loss();
void test_embedding();
void test_optimizer();
void test_activation();
void test_dropout();
void test_dropout_add_layer_norm();
void test_grad_norm();
void test_batch_norm();
void test_group_norm();
void test_cross_entropy();
void test_pool();
void test_conv();
void test_attention();
void test_conv_kernels();  // of CUDA, in the emulator alone
void test_parallel();
void test_row_plan();
void test_conv_cuda_plan();
void test_attention_cuda_plan();
void test_conv_depthwise();

// Whether a dropout keeps element i, as common/dropout_mask.h has it.
bool dropout_keeps(double p, uint64_t seed, int64_t i);

}  // namespace fastdl::testing
