// How threads share attention: tasks of unequal length, taken one by one.
#pragma once

#include <algorithm>
#include <atomic>

#include "attention/attention.h"
#include "common/parallel.h"

namespace fastdl {

// Calls f(task, worker) for every task, each worker's one after the other. Which worker gets which
// is left to chance, so results must not depend on it.
template <class F>
void for_tasks(int64_t tasks, F&& f) {
  std::atomic<int64_t> next{0};
  parallel_for(0, std::min(tasks, num_threads()), 1, [&](int64_t from, int64_t to) {
    for (int64_t worker = from; worker < to; ++worker) {
      for (int64_t task = next++; task < tasks; task = next++) f(task, worker);
    }
  });
}

// Pieces of a thread's memory, one behind the other, on cache lines
class Pieces {
 public:
  explicit Pieces(void* memory) : at_(static_cast<char*>(memory)) {}
  float* floats(int64_t count) {
    auto* const piece = reinterpret_cast<float*>(at_);
    at_ += (count * sizeof(float) + 63) / 64 * 64;
    return piece;
  }
  // What all pieces take, of a memory that begins at nullptr
  size_t bytes() const { return reinterpret_cast<size_t>(at_); }

 private:
  char* at_;
};

}  // namespace fastdl
