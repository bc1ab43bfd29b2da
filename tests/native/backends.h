// What runs the kernels that the native tests call: each instruction set of this CPU, or the CUDA
// emulator for each capability. main.cpp of each program lists its own.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "adam/adam.h"
#include "layer_norm/layer_norm.h"
#include "pool/pool.h"
#include "softmax/softmax.h"

namespace fastdl::testing {

// tasks, partial_sums and scratch of the arguments are the back end's to fill in, where it says so.
struct Backend {
  std::string name;
  void (*softmax_forward)(SoftmaxForwardArgs);
  void (*softmax_backward)(SoftmaxBackwardArgs);
  void (*norm_forward)(NormForwardArgs);
  void (*norm_backward)(NormBackwardArgs);
  void (*adam_step)(AdamStepArgs);
  void (*max_pool_forward)(MaxPoolForwardArgs);
  void (*max_pool_backward)(MaxPoolBackwardArgs);
  void (*max_pool_indices)(MaxPoolIndicesArgs);
  void (*average_pool_forward)(AveragePoolArgs);
  void (*average_pool_backward)(AveragePoolArgs);
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
