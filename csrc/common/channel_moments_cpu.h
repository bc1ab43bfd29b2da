// Mean and variance of channels for batch_norm and group_norm on CPU, over runs (the planes of a
// channel) or over the columns of rows (channels last). One pass over blocks, of kChunk elements of
// runs or kRows of each column: sums of d = x - shift and d^2 in Accumulate<T>, which are combined
// in double by Chan's formula. The shift is the mean of the blocks before: where that is off, the
// difference is part of the variance, and what it costs is about a rounding of that. Only the first
// block is read twice, for a shift of its own; where the squares overflow, all is read again.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>

#include "common/loops_cpu.h"
#include "common/vector_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {

// Of a set of numbers; `squares` is the sum of their squared distances from the mean.
struct Moments {
  double count = 0, mean = 0, squares = 0;

  void add(const Moments& other) {
    const double total = count + other.count, difference = other.mean - mean;
    mean += difference * (other.count / total);
    squares += other.squares + difference * difference * (count * other.count / total);
    count = total;
  }
  // From n numbers' sums of distances and squared distances from `shift`
  void add_sums(double n, double shift, double sum, double sum_of_squares) {
    const double offset = sum / n;
    add({n, shift + offset, std::max(sum_of_squares - sum * offset, 0.0)});  // NaN stays
  }
};

// `count` runs of `length` elements, `stride` apart: the planes of one channel, or parts of them.
struct Runs {
  int64_t count, length, stride;
  int64_t elements() const { return count * length; }
};

inline constexpr int64_t kChunk = 2048;  // elements added in float before going on in double

// Calls f(offset, runs) for pieces of at most kChunk elements.
template <class F>
inline void for_chunks(const Runs& runs, F&& f) {
  if (runs.length >= kChunk) {
    for (int64_t run = 0; run < runs.count; ++run) {
      for (int64_t begin = 0; begin < runs.length; begin += kChunk) {
        f(run * runs.stride + begin, Runs{1, std::min(kChunk, runs.length - begin), runs.stride});
      }
    }
  } else {
    const int64_t together = kChunk / runs.length;
    for (int64_t run = 0; run < runs.count; run += together) {
      f(run * runs.stride, Runs{std::min(together, runs.count - run), runs.length, runs.stride});
    }
  }
}

// The sums over runs of what term(offset, count, sum, other) adds to its two vectors: nothing in
// lanes past the end.
template <class T, class F>
inline std::array<double, 2> sum_runs(const Runs& runs, F&& term) {
  using V = Vec<T>;
  V sums[2][kLanes];
  for (auto& lanes : sums) {
    for (V& sum : lanes) sum = V(0);
  }
  for (int64_t run = 0; run < runs.count; ++run) {
    const int64_t start = run * runs.stride;
    for_vectors<T>(runs.length, [&](int64_t i, auto count, int lane) {
      term(start + i, count, sums[0][lane], sums[1][lane]);
    });
  }
  std::array<double, 2> totals;
  for (int t = 0; t < 2; ++t) {
    totals[t] = reduce_sum((sums[t][0] + sums[t][1]) + (sums[t][2] + sums[t][3]));
  }
  return totals;
}

// As they are found when a float overflows: in double, from the numbers that at(i) gives.
template <class F>
inline Moments moments_in_double(int64_t count, F&& at) {
  Moments moments{static_cast<double>(count)};
  for (int64_t i = 0; i < count; ++i) moments.mean += at(i);
  moments.mean /= moments.count;
  for (int64_t i = 0; i < count; ++i) {
    const double difference = at(i) - moments.mean;
    moments.squares += difference * difference;
  }
  return moments;
}

template <class T>
inline Moments moments_of_runs(const T* x, const Runs& runs) {
  using A = Accumulate<T>;
  using V = Vec<T>;
  Moments moments;
  for_chunks(runs, [&](int64_t offset, const Runs& chunk) {
    A shift = static_cast<A>(moments.mean);
    const auto sums_of_chunk = [&] {
      return sum_runs<T>(chunk, [&](int64_t i, auto count, V& sum, V& squares) {
        const V difference = load_vector(x + offset + i, count, shift) - V(shift);
        sum = sum + difference;
        squares = at::vec::fmadd(difference, difference, squares);
      });
    };
    const double n = static_cast<double>(chunk.elements());
    if (moments.count == 0) {
      shift = static_cast<A>(x[0]);
      shift += static_cast<A>(sums_of_chunk()[0] / n);
    }
    const auto [sum, squares] = sums_of_chunk();
    moments.add_sums(n, shift, sum, squares);
  });
  if (!std::isfinite(moments.squares)) {
    moments = moments_in_double(runs.elements(), [&](int64_t i) {
      return static_cast<double>(x[i / runs.length * runs.stride + i % runs.length]);
    });
  }
  return moments;
}

inline constexpr int64_t kColumns = 512;  // that are taken at once: their sums stay in L1
inline constexpr int64_t kRows = 64;      // added in float before going on in double
inline constexpr int kTogether = 4;       // rows that share a load of what a column has

// Of what term(offset, column, count, sum, other) adds over rows, in sums[2][kColumns].
template <class T, class F>
inline void sum_columns(int64_t rows, int64_t cols, int64_t stride, Accumulate<T>* sums, F&& term) {
  using A = Accumulate<T>;
  using V = Vec<T>;
  std::fill_n(sums, cols, A(0));
  std::fill_n(sums + kColumns, cols, A(0));
  for (int64_t row = 0; row < rows; row += kTogether) {
    const int64_t together = std::min<int64_t>(kTogether, rows - row);
    for_single_vectors<T>(cols, [&](int64_t i, auto count) {
      V sum = load_vector(sums + i, count, A(0));
      V other = load_vector(sums + kColumns + i, count, A(0));
      const int64_t start = row * stride + i;
      bool unrolled = false;
      if constexpr (std::is_same_v<decltype(count), Whole>) unrolled = together == kTogether;
      if (unrolled) {
#pragma GCC unroll 4
        for (int r = 0; r < kTogether; ++r) term(start + r * stride, i, count, sum, other);
      } else {
        for (int64_t r = 0; r < together; ++r) term(start + r * stride, i, count, sum, other);
      }
      store_vector(sums + i, sum, count);
      store_vector(sums + kColumns + i, other, count);
    });
  }
}

// Of each of at most kColumns columns of rows that are `stride` apart.
template <class T>
inline void moments_of_columns(const T* x, int64_t rows, int64_t cols, int64_t stride,
                               double* means, double* squares) {
  using A = Accumulate<T>;
  using V = Vec<T>;
  A shift[kColumns], sums[2 * kColumns];
  for (int64_t c = 0; c < cols; ++c) shift[c] = static_cast<A>(x[c]);
  for (int64_t row = 0; row < rows; row += kRows) {
    const int64_t n = std::min(kRows, rows - row);
    const auto sum_block = [&] {
      sum_columns<T>(n, cols, stride, sums,
                     [&](int64_t offset, int64_t i, auto count, V& sum, V& other) {
                       const V difference = load_vector(x + row * stride + offset, count, A(0)) -
                                            load_vector(shift + i, count, A(0));
                       sum = sum + difference;
                       other = at::vec::fmadd(difference, difference, other);
                     });
    };
    if (row == 0) {
      sum_block();
      for (int64_t c = 0; c < cols; ++c) shift[c] += sums[c] / static_cast<A>(n);
    }
    sum_block();
    for (int64_t c = 0; c < cols; ++c) {
      Moments moments{static_cast<double>(row), row == 0 ? 0 : means[c], row == 0 ? 0 : squares[c]};
      moments.add_sums(static_cast<double>(n), shift[c], sums[c], sums[kColumns + c]);
      means[c] = moments.mean;
      squares[c] = moments.squares;
      shift[c] = static_cast<A>(moments.mean);
    }
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace fastdl
