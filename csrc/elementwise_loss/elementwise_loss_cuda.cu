// Losses that are a sum over elements, on CUDA: formulas in elementwise_loss_cpu.cpp.
// A block has a run of vectors of 16 bytes, a thread kBatch of them at a time: that many of both
// inputs are in flight. Losses are written, or added up in float32 (float64 for float64) by a
// thread, which has at most kMost vectors, then by its block, whose sum is kept in float64; a
// second launch of one block adds those in a fixed order. No atomics: the same bits on the same
// GPU. The backward is one pass without sums. Weights are read by element, through the caches.
// Memory: input and target read once, losses or gradients written once. Floor: these bytes / copy
// bandwidth.
#include <algorithm>
#include <cmath>

#include "common/dispatch.h"
#include "common/launch.cuh"
#include "common/row_team.cuh"
#include "common/vector_io.cuh"
#include "elementwise_loss/elementwise_loss.h"

namespace fastdl {
namespace {

constexpr int kThreads = 256;
// Vectors of each input that a thread loads at a time; float64 would spill with more.
template <class T>
inline constexpr int kBatch = sizeof(T) == 8 ? 2 : 4;
constexpr int kMost = 64;  // vectors that a thread adds up

template <class A>
struct Loss {
  LossKind kind;
  bool has_pos_weight;
  A threshold, curvature, outer_slope;

  __device__ __forceinline__ explicit Loss(const ElementwiseLossTerms& terms)
      : kind(terms.kind),
        has_pos_weight(terms.pos_weight != nullptr),
        threshold(static_cast<A>(terms.threshold)),
        curvature(static_cast<A>(kind == LossKind::kSmoothL1 ? 1 / terms.threshold : 1.0)),
        outer_slope(static_cast<A>(kind == LossKind::kHuber ? terms.threshold : 1.0)) {}

  __device__ __forceinline__ A value(A x, A t, A weight, A pos_weight) const {
    const A d = x - t, distance = fabs(d);
    switch (kind) {
      case LossKind::kMse:
        return d * d;
      case LossKind::kL1:
        return distance;
      case LossKind::kBinaryCrossEntropy: {
        // Without differences of large terms; x = -inf gives NaN through `positive`, as in torch.
        const A negative = min(x, A(0)), positive = x - negative;
        const A large = (1 - t) * positive - pos_weight * t * negative;
        const A factor = (pos_weight - 1) * t + 1;
        return weight * (large + factor * log1p(exp(-fabs(x))));
      }
      default:
        return distance < threshold ? A(0.5) * d * d * curvature
                                    : (distance - A(0.5) * threshold) * outer_slope;
    }
  }

  __device__ __forceinline__ A slope(A x, A t, A weight, A pos_weight) const {
    const A d = x - t;
    const A sign = static_cast<A>((d > 0) - (d < 0));
    switch (kind) {
      case LossKind::kMse:
        return d + d;
      case LossKind::kL1:
        return sign;
      case LossKind::kBinaryCrossEntropy: {
        const A e = exp(-fabs(x)), sigmoid = (x >= 0 ? A(1) : e) / (1 + e);
        if (!has_pos_weight) return weight * (sigmoid - t);
        const A positive = pos_weight * t;
        return weight * ((positive + (1 - t)) * sigmoid - positive);
      }
      default:
        return fabs(d) >= threshold ? sign * outer_slope : d * curvature;
    }
  }

  // Of binary cross-entropy; the others' is -slope.
  __device__ __forceinline__ A target_slope(A x, A weight, A pos_weight) const {
    if (!has_pos_weight) return -x * weight;
    const A small = log1p(exp(-fabs(x)));
    return weight * ((min(-x, A(0)) - small) - pos_weight * (min(x, A(0)) - small));
  }
};

// The weights of the W elements from element `begin` on, which may be before the first.
template <class T, int W>
__device__ __forceinline__ void load_weights(const void* data, int64_t period, int64_t begin,
                                             int64_t size, Accumulate<T> (&weights)[W]) {
#pragma unroll
  for (int i = 0; i < W; ++i) weights[i] = 1;
  if (data == nullptr) return;
  const int64_t first = begin < 0 ? 0 : begin;
  int64_t at = size <= UINT32_MAX ? static_cast<uint32_t>(first) % static_cast<uint32_t>(period)
                                  : first % period;
#pragma unroll
  for (int i = 0; i < W; ++i) {
    if (begin + i < first || begin + i >= size) continue;
    weights[i] = widen(static_cast<const T*>(data)[at]);
    at = at + 1 == period ? 0 : at + 1;
  }
}

// Calls f(v, x, t, weight, pos_weight) for the vectors [begin, end) that this thread has.
template <class T, class F>
__device__ __forceinline__ void for_vectors(const ElementwiseLossTerms& terms,
                                            const RowVectors<kVectorWidth<T>, int64_t>& vectors,
                                            int64_t begin, int64_t end, F&& f) {
  using A = Accumulate<T>;
  constexpr int W = kVectorWidth<T>;
  const T* const input = static_cast<const T*>(terms.input);
  const T* const target = static_cast<const T*>(terms.target);
  for (int64_t v = begin + threadIdx.x; v < end; v += kBatch<T> * kThreads) {
    Vector<T, W> x[kBatch<T>], t[kBatch<T>];
#pragma unroll
    for (int k = 0; k < kBatch<T>; ++k) {
      x[k] = vectors.load_before(end, input, v + k * kThreads, 0);
      t[k] = vectors.load_before(end, target, v + k * kThreads, 0);
    }
#pragma unroll
    for (int k = 0; k < kBatch<T>; ++k) {
      const int64_t at = v + k * kThreads;
      if (at >= end) break;
      A inputs[W], targets[W], weights[W], pos_weights[W];
      x[k].unpack(inputs);
      t[k].unpack(targets);
      const int64_t first = W * at - vectors.shift;
      load_weights<T>(terms.weight, terms.weight_period, first, terms.size, weights);
      load_weights<T>(terms.pos_weight, terms.pos_weight_period, first, terms.size, pos_weights);
      f(at, inputs, targets, weights, pos_weights);
    }
  }
}

template <class T>
__device__ __forceinline__ void write_reduced(const ElementwiseLossForwardArgs& args, double sum) {
  if (args.terms.reduction == LossReduction::kMean) sum /= static_cast<double>(args.terms.size);
  *static_cast<T*>(args.output) = narrow<T>(static_cast<Accumulate<T>>(sum));
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    elementwise_loss_run(ElementwiseLossForwardArgs args, int64_t run) {
  using A = Accumulate<T>;
  constexpr int W = kVectorWidth<T>;
  const ElementwiseLossTerms& terms = args.terms;
  const Loss<A> loss(terms);
  const RowVectors<W, int64_t> vectors(terms.size, shift_of<W>(static_cast<const T*>(terms.input)));
  const int64_t begin = blockIdx.x * run;
  const int64_t end = min(begin + run, vectors.count());
  const bool reduces = terms.reduction != LossReduction::kNone;
  A sum[1] = {0};
  for_vectors<T>(terms, vectors, begin, end,
                 [&](int64_t v, const A(&x)[W], const A(&t)[W], const A(&w)[W], const A(&p)[W]) {
                   A values[W];
#pragma unroll
                   for (int i = 0; i < W; ++i) values[i] = loss.value(x[i], t[i], w[i], p[i]);
                   if (!reduces) {
                     Vector<T, W> packed;
                     packed.pack(values);
                     return vectors.store(static_cast<T*>(args.output), v, packed);
                   }
                   const int64_t first = W * v - vectors.shift;
#pragma unroll
                   for (int i = 0; i < W; ++i) {
                     if (first + i >= 0 && first + i < terms.size) sum[0] += values[i];
                   }
                 });
  if (!reduces) return;
  BlockTeam team(kThreads);
  team.reduce<Sum>(sum);
  if (threadIdx.x != 0) return;
  if (gridDim.x == 1) {
    write_reduced<T>(args, sum[0]);
  } else {
    static_cast<double*>(args.scratch)[blockIdx.x] = sum[0];
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    elementwise_loss_add_runs(ElementwiseLossForwardArgs args, int64_t runs) {
  double sum[1] = {0};
  for (int64_t i = threadIdx.x; i < runs; i += kThreads) {
    sum[0] += static_cast<const double*>(args.scratch)[i];
  }
  BlockTeam team(kThreads);
  team.reduce<Sum>(sum);
  if (threadIdx.x == 0) write_reduced<T>(args, sum[0]);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    elementwise_loss_gradient(ElementwiseLossBackwardArgs args) {
  using A = Accumulate<T>;
  constexpr int W = kVectorWidth<T>;
  const ElementwiseLossTerms& terms = args.terms;
  const Loss<A> loss(terms);
  const RowVectors<W, int64_t> vectors(terms.size, shift_of<W>(static_cast<const T*>(terms.input)));
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kBatch<T> * kThreads;
  const int64_t end = min(begin + kBatch<T> * kThreads, vectors.count());
  const T* const grads = static_cast<const T*>(args.grad_output);
  const bool mean = terms.reduction == LossReduction::kMean;
  const A norm = static_cast<A>(mean ? 1.0 / static_cast<double>(terms.size) : 1.0);
  const A same = args.same_grad_output ? widen(*grads) * norm : norm;
  for_vectors<T>(terms, vectors, begin, end,
                 [&](int64_t v, const A(&x)[W], const A(&t)[W], const A(&w)[W], const A(&p)[W]) {
                   A scale[W], values[W];
#pragma unroll
                   for (int i = 0; i < W; ++i) scale[i] = same;
                   if (!args.same_grad_output) {
                     vectors.load(grads, v, 0).unpack(scale);
#pragma unroll
                     for (int i = 0; i < W; ++i) scale[i] *= norm;
                   }
                   Vector<T, W> packed;
                   if (args.grad_input != nullptr) {
#pragma unroll
                     for (int i = 0; i < W; ++i) {
                       values[i] = scale[i] * loss.slope(x[i], t[i], w[i], p[i]);
                     }
                     packed.pack(values);
                     vectors.store(static_cast<T*>(args.grad_input), v, packed);
                   }
                   if (args.grad_target == nullptr) return;
#pragma unroll
                   for (int i = 0; i < W; ++i) {
                     values[i] = scale[i] * (loss.kind == LossKind::kBinaryCrossEntropy
                                                 ? loss.target_slope(x[i], w[i], p[i])
                                                 : -loss.slope(x[i], t[i], w[i], p[i]));
                   }
                   packed.pack(values);
                   vectors.store(static_cast<T*>(args.grad_target), v, packed);
                 });
}

// Vectors of all elements, wherever in a vector the first one lies.
template <class T>
int64_t vectors_of(const ElementwiseLossTerms& terms) {
  constexpr int W = kVectorWidth<T>;
  return ceil_divide(terms.size + shift_of<W>(static_cast<const T*>(terms.input)), W);
}

// Vectors of a block: few enough that there are 8 blocks a multiprocessor, within [kBatch, kMost] a
// thread.
template <class T>
int64_t choose_run(int64_t vectors, const CudaTarget& target) {
  const int64_t blocks = 8 * int64_t{target.multiprocessors};
  const int64_t batches = ceil_divide(vectors, blocks * kBatch<T> * kThreads);
  return std::clamp<int64_t>(batches, 1, kMost / kBatch<T>) * kBatch<T> * kThreads;
}

}  // namespace

size_t elementwise_loss_scratch_cuda(const ElementwiseLossForwardArgs& args,
                                     const CudaTarget& target) {
  if (args.terms.reduction == LossReduction::kNone) return 0;
  int64_t blocks = 0;
  dispatch_dtype<CudaTypes>(args.terms.dtype, [&]<class T> {
    const int64_t vectors = vectors_of<T>(args.terms);
    blocks = ceil_divide(vectors, choose_run<T>(vectors, target));
  });
  return blocks * sizeof(double);
}

Status elementwise_loss_forward_cuda(const ElementwiseLossForwardArgs& args,
                                     const CudaTarget& target) {
  Status status;
  dispatch_dtype<CudaTypes>(args.terms.dtype, [&]<class T> {
    const int64_t vectors = vectors_of<T>(args.terms), run = choose_run<T>(vectors, target);
    const int64_t blocks = std::max<int64_t>(1, ceil_divide(vectors, run));
    status = launch(elementwise_loss_run<T>, {blocks, kThreads}, target, args, run);
    if (!status.ok() || blocks == 1 || args.terms.reduction == LossReduction::kNone) return;
    status = launch(elementwise_loss_add_runs<T>, {1, kThreads}, target, args, blocks);
  });
  return status;
}

Status elementwise_loss_backward_cuda(const ElementwiseLossBackwardArgs& args,
                                      const CudaTarget& target) {
  Status status;
  dispatch_dtype<CudaTypes>(args.terms.dtype, [&]<class T> {
    const int64_t blocks = ceil_divide(vectors_of<T>(args.terms), int64_t{kBatch<T> * kThreads});
    if (blocks > 0) {
      status = launch(elementwise_loss_gradient<T>, {blocks, kThreads}, target, args);
    }
  });
  return status;
}

}  // namespace fastdl
