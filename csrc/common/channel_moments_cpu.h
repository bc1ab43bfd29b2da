// Mean and variance of channels for batch_norm and group_norm on CPU, over runs (the planes of a
// channel) or over the columns of rows (channels last). One pass over blocks, of kChunk elements of
// runs or kRows of each column: sums of d = x - shift and d^2 in Accumulate<T>, which are combined
// in double by Chan's formula. The shift is the mean of the blocks before, and of the first block
// that of a few of its elements. Where it is off, d^2 is larger than the variance, which costs its
// roundings so much more: little, as what shifts by m are elements that lie m from the others, and
// so part of the variance. Where sums or squares overflow, all is read again in double.
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
    if (count == 0) {
      *this = other;
      return;
    }
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
  if (runs.count == 1 || runs.length >= kChunk) {
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

// A whole vector whose first lanes have been taken before: those are not `open`.
template <class V>
struct Overlapping {
  V open;
};

template <class T>
inline Vec<T> load_vector(const T* data, Overlapping<Vec<T>> count, Accumulate<T> fill) {
  return Vec<T>::blendv(Vec<T>(fill), load_vector(data), count.open);
}

// Of both vectors, in fewer steps than one by one
template <class V>
inline std::array<double, 2> reduce_sums(V a, V b) {
#if defined(CPU_CAPABILITY_AVX2) && !defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<V, at::vec::Vectorized<float>>) {
    const __m128 four_a = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 four_b = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    const __m128 two =  // a, b, a, b
        _mm_add_ps(_mm_unpacklo_ps(four_a, four_b), _mm_unpackhi_ps(four_a, four_b));
    std::array<double, 2> totals;
    _mm_storeu_pd(totals.data(), _mm_cvtps_pd(_mm_add_ps(two, _mm_movehl_ps(two, two))));
    return totals;
  }
#endif
#if defined(CPU_CAPABILITY_AVX2) || defined(CPU_CAPABILITY_AVX512)
  return {reduce_sum(a), reduce_sum(b)};
#else
  alignas(64) typename V::value_type lanes[2][V::size()];
  a.store(lanes[0]);
  b.store(lanes[1]);
  std::array<double, 2> totals{};
  for (int i = 0; i < V::size(); ++i) {
    for (int t = 0; t < 2; ++t) totals[t] += lanes[t][i];
  }
  return totals;
#endif
}

// The sums over runs of what term(offset, count, sum, other) adds to its two vectors: nothing for
// the fill of lanes past the end. The end of a run of a vector or more is a vector that overlaps
// the one before it, which costs less than to load a part.
template <class T, class F>
inline std::array<double, 2> sum_runs(const Runs& runs, F&& term) {
  using V = Vec<T>;
  V sums[2][kLanes];
  for (auto& lanes : sums) {
    for (V& sum : lanes) sum = V(0);
  }
  constexpr int64_t width = kWidth<T>;
  const int64_t rest = runs.length % width, whole = runs.length - rest;
  using A = Accumulate<T>;
  const Overlapping<V> end{V::arange(A(0), A(1)) >= V(static_cast<A>(width - rest))};
  for (int64_t run = 0; run < runs.count; ++run) {
    const int64_t start = run * runs.stride;
    for_vectors<T>(whole, [&](int64_t i, auto count, int lane) {
      term(start + i, count, sums[0][lane], sums[1][lane]);
    });
    if (rest == 0) continue;
    if (whole == 0) {
      term(start, rest, sums[0][1], sums[1][1]);
    } else {
      term(start + runs.length - width, end, sums[0][1], sums[1][1]);
    }
  }
  const auto all = [](const V* lanes) { return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]); };
  return reduce_sums(all(sums[0]), all(sums[1]));
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

// Of a few elements, spread over the first block unevenly (planes have borders, and a period)
template <class T>
inline Accumulate<T> sampled_mean(const T* x, const Runs& runs) {
  using A = Accumulate<T>;
  constexpr uint64_t kSamples = 16;
  const uint64_t length = std::min(runs.length, kChunk), count = std::min(runs.count, kChunk);
  A sums[2] = {};
  if (count == 1 && length <= kSamples) {
    for (uint64_t i = 0; i < length; ++i) sums[0] += static_cast<A>(x[i]);
    return sums[0] / static_cast<A>(length);
  }
#pragma GCC unroll 16
  for (uint64_t i = 0; i < kSamples; ++i) {
    const uint64_t at = kSamples * i + (7 * i + 5) % kSamples;  // of 256
    const uint64_t run = count == 1 ? 0 : count * i / kSamples * runs.stride;
    sums[i % 2] += static_cast<A>(x[run + length * at / 256]);
  }
  return (sums[0] + sums[1]) / static_cast<A>(kSamples);
}

template <class T>
inline Moments moments_of_runs(const T* x, const Runs& runs) {
  using A = Accumulate<T>;
  using V = Vec<T>;
  Moments moments;
  moments.mean = sampled_mean(x, runs);
  for_chunks(runs, [&](int64_t offset, const Runs& chunk) {
    const A shift = static_cast<A>(moments.mean);
    const auto [sum, squares] = sum_runs<T>(chunk, [&](int64_t i, auto count, V& sum, V& squares) {
      const V difference = load_vector(x + offset + i, count, shift) - V(shift);
      sum = sum + difference;
      squares = at::vec::fmadd(difference, difference, squares);
    });
    moments.add_sums(static_cast<double>(chunk.elements()), shift, sum, squares);
  });
  if (!std::isfinite(moments.squares)) {
    moments = moments_in_double(runs.elements(), [&](int64_t i) {
      return static_cast<double>(x[i / runs.length * runs.stride + i % runs.length]);
    });
  }
  return moments;
}

// The moments of numbers in sets of `count`, from those of `sets` sets
inline Moments moments_of_sets(const double* means, const double* squares, int64_t sets,
                               int64_t stride, double count) {
  Moments all{static_cast<double>(sets) * count};
  for (int64_t i = 1; i < sets; ++i) all.mean += means[i * stride] - means[0];
  all.mean = means[0] + all.mean / static_cast<double>(sets);  // exact where all are equal
  double between = 0;
  for (int64_t i = 0; i < sets; ++i) {
    const double difference = means[i * stride] - all.mean;
    all.squares += squares[i * stride];
    between += difference * difference;
  }
  all.squares += between * count;
  return all;
}

inline constexpr int64_t kColumns = 512;    // that are taken at once: their sums stay in L1
inline constexpr int64_t kRows = 64;        // added in float before going on in double
inline constexpr int64_t kSampledRows = 8;  // whose mean is the first block's shift
inline constexpr int kTogether = 4;         // rows that share a load of what a column has

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
  const int64_t sampled = std::min(rows, kSampledRows);
  sum_columns<T>(sampled, cols, stride, sums, [&](int64_t offset, int64_t, auto count, V& sum, V&) {
    sum = sum + load_vector(x + offset, count, A(0));
  });
  for (int64_t c = 0; c < cols; ++c) {
    shift[c] = sums[c] / static_cast<A>(sampled);
    means[c] = squares[c] = 0;
  }
  for (int64_t row = 0; row < rows; row += kRows) {
    const int64_t block_rows = std::min(kRows, rows - row);
    const T* const block = x + row * stride;
    sum_columns<T>(block_rows, cols, stride, sums,
                   [&](int64_t offset, int64_t i, auto count, V& sum, V& other) {
                     const V difference = load_vector(block + offset, count, A(0)) -
                                          load_vector(shift + i, count, A(0));
                     sum = sum + difference;
                     other = at::vec::fmadd(difference, difference, other);
                   });
    // Moments::add_sums, whose divisions are those of all columns
    const double before = static_cast<double>(row), n = static_cast<double>(block_rows);
    const double part = 1 / n, weight = n / (before + n), between = before * weight;
    for (int64_t c = 0; c < cols; ++c) {
      const double sum = sums[c], offset = sum * part;
      const double difference = shift[c] + offset - means[c];
      means[c] += difference * weight;
      squares[c] +=
          std::max(sums[kColumns + c] - sum * offset, 0.0) + difference * difference * between;
      shift[c] = static_cast<A>(means[c]);
    }
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace fastdl
