// What the CUDA kernels of cross_entropy share: a row's target and the statistics of its parts.
// Formulas: cross_entropy.h.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/dispatch.h"
#include "common/launch.cuh"
#include "common/row_plan.h"
#include "common/row_team.cuh"
#include "common/vector_io.cuh"
#include "cross_entropy/cross_entropy.h"

namespace fastdl {

// exp(x), for logits of type T: 16 bits leave room for the error of the fast one.
template <class T>
__device__ __forceinline__ float exponential(float x) {
  if constexpr (sizeof(T) == 2) return __expf(x);
  return expf(x);
}
template <class T>
__device__ __forceinline__ double exponential(double x) {
  return exp(x);
}

// The index, unless it is the ignored one (-1). One out of bounds stops the kernel.
__device__ __forceinline__ int64_t checked_target(const int64_t* target, int64_t row,
                                                  int64_t classes, int64_t ignore_index) {
  const int64_t index = target[row];
  if (index == ignore_index) return -1;
  if (index < 0 || index >= classes) __trap();
  return index;
}

template <class A>
struct LossTarget {
  int64_t index;  // -1: ignored, or probabilities
  A hit;          // its part of the target's weight
  A grad;         // of the row's loss
  bool ignored;
};

template <class A>
__device__ __forceinline__ LossTarget<A> target_of(const CrossEntropyArgs& args, int64_t row) {
  const A* const grads = static_cast<const A*>(args.grad_output);
  double grad = args.divisor == nullptr ? 1 : 1 / *args.divisor;
  if (grads != nullptr) grad *= grads[args.grad_output_of_rows ? row : 0];
  if (args.target == nullptr) return {-1, 0, static_cast<A>(grad), false};
  const int64_t index = checked_target(args.target, row, args.classes, args.ignore_index);
  if (index < 0) return {-1, 0, 0, true};
  const A* const weight = static_cast<const A*>(args.weight);
  const A on_target = static_cast<A>(1 - args.label_smoothing);
  return {index, on_target * (weight == nullptr ? A(1) : weight[index]), static_cast<A>(grad),
          false};
}

__host__ __device__ __forceinline__ bool has_spread(const CrossEntropyArgs& args) {
  return args.probabilities != nullptr || args.label_smoothing != 0;
}

// q of a class, given its probability
template <class A>
struct Spread {
  A uniform, on_target;
  const A* weight;

  __device__ __forceinline__ explicit Spread(const CrossEntropyArgs& args)
      : uniform(static_cast<A>(args.label_smoothing / static_cast<double>(args.classes))),
        on_target(static_cast<A>(1 - args.label_smoothing)),
        weight(static_cast<const A*>(args.weight)) {}
  __device__ __forceinline__ A operator()(int64_t j, A probability) const {
    const A q = uniform + on_target * probability;
    return weight == nullptr ? q : q * weight[j];
  }
};

// The maximum of some of a row's logits, and relative to it the sum of their exponentials; the sums
// of q and of q (maximum - x).
template <class A>
struct LossStatistics {
  A largest = Max::identity<A>();
  A sum = 0, q = 0, distance = 0;

  // What exponentials and distances are relative to: any finite number while all logits are -inf.
  __device__ __forceinline__ A shift() const {
    return largest == Max::identity<A>() ? A(0) : largest;
  }
  // Makes it relative to a maximum that is not smaller.
  __device__ __forceinline__ void raise(A to) {
    if (to == largest) return;
    const A before = shift();
    if (largest != Max::identity<A>()) sum *= exponential<A>(largest - to);
    largest = to;
    distance += q * (shift() - before);
  }
  __device__ __forceinline__ void add(LossStatistics other) {
    const A most = Max()(largest, other.largest);
    raise(most);
    other.raise(most);
    sum += other.sum;
    q += other.q;
    distance += other.distance;
  }
};

// What the gradient needs of a row: dx_j = exp(x_j - shift) factor - grad (q_j + hit [j = target]).
template <class A>
struct RowGradient {
  A shift, factor, grad, hit;
};

// Writes the loss and the statistics of a row if `writes`; `logit`: that of the target.
template <class A>
__device__ __forceinline__ RowGradient<A> finish_row(const CrossEntropyArgs& args, int64_t row,
                                                     const LossTarget<A>& target, A logit,
                                                     const LossStatistics<A>& of_row, bool writes) {
  // The sum of q is known where all are equal: adding one up rounds in one direction.
  const bool equal = args.probabilities == nullptr && args.weight == nullptr;
  const A q = equal ? static_cast<A>(args.label_smoothing) : of_row.q;
  const A shift = of_row.shift(), reciprocal = 1 / of_row.sum, coefficient = target.hit + q;
  if (writes && args.losses != nullptr) {
    const A log_sum = log(of_row.sum);
    A loss = target.index < 0 ? A(0) : target.hit * (log_sum - (logit - shift));
    if (has_spread(args)) loss += q * log_sum + of_row.distance;
    static_cast<A*>(args.losses)[row] = target.ignored ? A(0) : loss;
  }
  if (writes && args.statistics != nullptr) {
    A* const statistics = static_cast<A*>(args.statistics);
    const int64_t rows = args.outer * args.inner;
    statistics[row] = shift;
    statistics[rows + row] = reciprocal;
    statistics[2 * rows + row] = coefficient;
  }
  return {shift, target.grad * coefficient * reciprocal, target.grad, target.hit};
}

// The same from what a forward wrote
template <class A>
__device__ __forceinline__ RowGradient<A> gradient_of_row(const CrossEntropyArgs& args, int64_t row,
                                                          const LossTarget<A>& target) {
  const A* const statistics = static_cast<const A*>(args.statistics);
  const int64_t rows = args.outer * args.inner;
  return {statistics[row], target.grad * statistics[2 * rows + row] * statistics[rows + row],
          target.grad, target.hit};
}

// How many vectors of W a row has, at most, whose first row begins `shift` elements after a
// multiple of W.
inline int64_t vectors_of_row(int64_t classes, int shift, int W) {
  if (shift == 0 && classes % W == 0) return classes / W;
  return ceil_divide(classes + W - 1, W);  // the shift differs from row to row
}

Status cross_entropy_columns_cuda(const CrossEntropyArgs& args, const CudaTarget& target,
                                  bool backward);

}  // namespace fastdl
