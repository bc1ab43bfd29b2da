// What the kernels of cross_entropy on CPU share: the typed view of the arguments, a row's target
// and the statistics of its chunks. Formulas: cross_entropy.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/dispatch.h"
#include "common/exp_negative_cpu.h"
#include "common/loops_cpu.h"
#include "common/parallel.h"
#include "cross_entropy/cross_entropy.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace cross_entropy_detail {

constexpr int64_t kGrain = 16384;  // elements worth waking a thread for
// Passes over a chunk find it in L1; exponentials are kept for up to kChunks of them (2 MiB).
constexpr int64_t kChunkBytes = int64_t{16} << 10;
constexpr int64_t kChunks = 128;
// Rows of at most so many classes are transposed into columns: 8192 x 10 takes 40 % of the time it
// takes along the rows, whose sums and maxima over lanes wait for each other.
constexpr int64_t kShortRow = 32;

template <class A>
constexpr A kInfinity = std::numeric_limits<A>::infinity();

// What exp is taken relative to: the maximum, or 0 where all are -inf.
template <class V>
inline V shift_of(V maximum) {
  using A = typename V::value_type;
  return V::blendv(maximum, V(A(0)), maximum == V(-kInfinity<A>));
}

// exp(from - to), the factor that moves a sum from one maximum to another; 1 when both are -inf.
template <class V>
inline V rescale(V from, V to) {
  using A = typename V::value_type;
  return exp_negative(V::blendv(from - to, V(A(0)), from == to));
}

// The first `count` lanes of the vector, zeros after them.
template <class V>
inline V keep_lanes(V value, Whole) {
  return value;
}
template <class V>
inline V keep_lanes(V value, int64_t count) {
  return V::set(V(0), value, count);
}

// Calls f(position, count, vectors) on the elements of [0, size): kLanes whole vectors at a time
// while they fit, then one, of which the last may be partial. exp takes them in step.
template <class T, class F>
inline void for_vector_groups(int64_t size, F&& f) {
  constexpr int64_t width = kWidth<T>;
  int64_t i = 0;
  for (; i + kLanes * width <= size; i += kLanes * width) {
    f(i, kWhole, std::integral_constant<int, kLanes>());
  }
  for (; i + width <= size; i += width) f(i, kWhole, std::integral_constant<int, 1>());
  if (i < size) f(i, size - i, std::integral_constant<int, 1>());
}

// A running maximum m, the sum of exp(x - m), and of q and q (m - x) for spread targets.
template <class V, bool spread>
struct Statistics {
  using A = typename V::value_type;
  V maximum = V(-kInfinity<A>), sum = V(A(0)), q = V(A(0)), distance = V(A(0));

  void add(const Statistics& chunk, bool first) {
    if (first) {
      *this = chunk;
      return;
    }
    const V raised = max_number(chunk.maximum, maximum);
    sum = sum * rescale(maximum, raised) + chunk.sum * rescale(chunk.maximum, raised);
    if (spread) {
      const V shift = shift_of(raised);
      distance = (distance + q * (shift - shift_of(maximum))) +
                 (chunk.distance + chunk.q * (shift - shift_of(chunk.maximum)));
      q = q + chunk.q;
    }
    maximum = raised;
  }
};

// The typed arguments.
template <class T>
struct Problem {
  using A = Accumulate<T>;
  using V = Vec<T>;

  const T* input;
  const T* probabilities;
  const int64_t* target;
  const A* weight;
  const A* grad_output;
  A *losses, *shifts, *reciprocals, *coefficients;
  T* grad_input;
  int64_t outer, classes, inner, rows, ignore_index;
  A on_target, uniform, uniform_sum;
  double scale;
  bool grad_output_of_rows, streaming;

  explicit Problem(const CrossEntropyArgs& args)
      : input(static_cast<const T*>(args.input)),
        probabilities(static_cast<const T*>(args.probabilities)),
        target(args.target),
        weight(static_cast<const A*>(args.weight)),
        grad_output(static_cast<const A*>(args.grad_output)),
        losses(static_cast<A*>(args.losses)),
        shifts(static_cast<A*>(args.statistics)),
        grad_input(static_cast<T*>(args.grad_input)),
        outer(args.outer),
        classes(args.classes),
        inner(args.inner),
        rows(args.outer * args.inner),
        ignore_index(args.ignore_index),
        on_target(static_cast<A>(1 - args.label_smoothing)),
        uniform(static_cast<A>(args.label_smoothing / static_cast<double>(args.classes))),
        scale(args.divisor == nullptr ? 1 : 1 / *args.divisor),
        grad_output_of_rows(args.grad_output_of_rows) {
    double weights = static_cast<double>(classes);
    if (weight != nullptr && uniform != 0) {
      weights = 0;
      for (int64_t j = 0; j < classes; ++j) weights += static_cast<double>(weight[j]);
    }
    uniform_sum = static_cast<A>(args.label_smoothing / static_cast<double>(classes) * weights);
    reciprocals = shifts == nullptr ? nullptr : shifts + rows;
    coefficients = shifts == nullptr ? nullptr : shifts + 2 * rows;
    const int64_t moved = rows * classes * static_cast<int64_t>(sizeof(T));
    const bool aligned = reinterpret_cast<uintptr_t>(grad_input) % (kWidth<T> * sizeof(T)) == 0 &&
                         inner % kWidth<T> == 0;
    // A gradient that overwrites its input finds it in the cache.
    streaming = (inner == 1 || aligned) && input != grad_input && worth_streaming(2 * moved);
  }

  // Whether q is not 0 everywhere.
  bool has_spread() const { return probabilities != nullptr || uniform != 0; }

  struct Target {
    int64_t index;  // -1 where there is none: ignored, or probabilities
    A hit;          // its part of the target's weight
    A grad;         // of the row's loss
    bool ignored;
  };
  Target target_of(int64_t row) const {
    const double grad =
        grad_output == nullptr ? scale : scale * grad_output[grad_output_of_rows ? row : 0];
    if (target == nullptr) return {-1, A(0), static_cast<A>(grad), false};
    const int64_t index = target[row];
    if (index == ignore_index) return {-1, A(0), A(0), true};
    return {index, on_target * (weight == nullptr ? A(1) : weight[index]), static_cast<A>(grad),
            false};
  }

  // q of the classes from j on, neighbouring lanes being neighbouring classes. `at`: of the row.
  template <class Count>
  V spread(int64_t at, int64_t j, Count count) const {
    V q(uniform);
    if (probabilities != nullptr) {
      q = at::vec::fmadd(load_vector(probabilities + at + j, count, A(0)), V(on_target), q);
    }
    if (weight != nullptr) q = q * load_vector(weight + j, count, A(0));
    return keep_lanes(q, count);
  }
  // q of class j, neighbouring lanes being neighbouring columns. `at`: of the element.
  template <class Count>
  V spread_of_columns(int64_t at, int64_t j, Count count) const {
    V q(uniform);
    if (probabilities != nullptr) {
      q = at::vec::fmadd(load_vector(probabilities + at, count, A(0)), V(on_target), q);
    }
    return weight == nullptr ? q : q * V(weight[j]);
  }
  // The sum of q over a row, given what was added up along it. Where it is the same for all rows it
  // is not taken from there: additions of one number again and again are all rounded alike.
  V spread_sum(V added) const { return probabilities == nullptr ? V(uniform_sum) : added; }
  // q of class j where it does not differ from row to row: with class indices
  A spread_of_index(int64_t j) const { return uniform * (weight == nullptr ? A(1) : weight[j]); }
};

}  // namespace cross_entropy_detail

// The part of columns (inner > 1) and, for the forward, of short rows:
// cross_entropy_columns_cpu.cpp.
void cross_entropy_columns_forward(const CrossEntropyArgs& args);
void cross_entropy_columns_backward(const CrossEntropyArgs& args);

}  // namespace CPU_CAPABILITY
}  // namespace fastdl
