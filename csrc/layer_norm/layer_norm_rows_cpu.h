// What the kernels that normalise rows share: sums over a row, and over the rows of all tasks.
#pragma once

#include <algorithm>
#include <array>

#include "common/loops_cpu.h"
#include "common/parallel.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {

inline constexpr int64_t kGrain = 16384;     // elements worth waking a thread for
inline constexpr int64_t kSumLength = 8192;  // elements added in float before going on in double

// Sums over a row of the kTerms vectors that term(i, count) gives; lanes past the end must be zero.
template <class T, int kTerms, class F>
std::array<double, kTerms> sum_row(int64_t cols, F&& term) {
  using V = Vec<T>;
  std::array<double, kTerms> total{};
  for (int64_t start = 0; start < cols; start += kSumLength) {
    V sums[kTerms][kLanes];
    for (auto& lanes : sums) {
      for (V& sum : lanes) sum = V(0);
    }
    for_vectors<T>(std::min(kSumLength, cols - start), [&](int64_t i, auto count, int lane) {
      const std::array<V, kTerms> terms = term(start + i, count);
      for (int t = 0; t < kTerms; ++t) sums[t][lane] = sums[t][lane] + terms[t];
    });
    for (int t = 0; t < kTerms; ++t) {
      total[t] += reduce_sum((sums[t][0] + sums[t][1]) + (sums[t][2] + sums[t][3]));
    }
  }
  return total;
}

template <class W, class Count>
inline Vec<W> load_or(const W* data, int64_t i, Count count, Accumulate<W> otherwise) {
  return data != nullptr ? load_vector(data + i, count, otherwise) : Vec<W>(otherwise);
}

// Adds the tasks' sums, in a fixed order, into a gradient of the weight's type.
template <class A, class W>
void add_tasks(const A* partial_sums, int64_t tasks, int64_t stride, int64_t cols, void* gradient) {
  if (gradient == nullptr) return;
  parallel_for(0, cols, kGrain, [&](int64_t begin, int64_t end) {
    for_vectors<W>(end - begin, [&](int64_t i, auto count, int) {
      const auto sum_of = [&](int64_t task) {
        return load_vector(partial_sums + task * stride + begin + i, count, A(0));
      };
      Vec<W> sums[kLanes];
      for (auto& sum : sums) sum = Vec<W>(A(0));
      for (int64_t task = 0; task < tasks; ++task) {
        sums[task % kLanes] = sums[task % kLanes] + sum_of(task);
      }
      const Vec<W> sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
      store_vector(static_cast<W*>(gradient) + begin + i, sum, count);
    });
  });
}

}  // namespace CPU_CAPABILITY
}  // namespace fastdl
