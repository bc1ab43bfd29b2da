// The table of contents of the emulator's tests; main.cpp runs them all.
#pragma once

namespace fastdl::testing {

void test_races();
void test_barriers();
void test_memory_errors();
void test_collective_errors();
void test_async_copies();
void test_warp_functions();
void test_clusters();
void test_launches();
void test_atomics();
void test_numbers();
void test_matrices();

}  // namespace fastdl::testing
