// The table of contents of the native tests; main.cpp runs them all.
#pragma once

namespace fastdl::testing {

void test_softmax();
void test_layer_norm();
void test_adam();
void test_pool();
void test_parallel();
void test_row_plan();

}  // namespace fastdl::testing
