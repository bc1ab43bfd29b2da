// dropout_add_layer_norm on CUDA, the formulas of dropout_add_layer_norm_cpu.cpp.
// Forward: a block takes a row. It makes s = dropout(x) + residual from memory and writes it, and
// finds it in the caches again for the variance and for the output: 2 tensors read, 2 written.
// Backward: a block takes the rows of a task, one after the other: a first pass adds up the means
// and, in the block's own partial_sums, which the L2 cache holds, the weight gradients; a second
// writes both gradients. A second launch adds the tasks' sums in a fixed order. 2 (3) tensors read,
// 2 written.
// Elements are taken in vectors of up to four that begin at a multiple of their number in the whole
// tensor, as the mask has them; a row may begin and end within one (see RowVectors). Any number of
// columns works; long rows find less of themselves in the caches.
// Floor: 4 (5) tensors / copy bandwidth.
#include <cmath>

#include "common/dispatch.h"
#include "common/dropout_mask.cuh"
#include "common/launch.cuh"
#include "common/row_team.cuh"
#include "common/vector_io.cuh"
#include "layer_norm/dropout_add_layer_norm.h"

namespace fastdl {
namespace {

constexpr int kMaxThreads = 512;
constexpr int kTasksOfProcessor = 4;
constexpr int kSets = 16;  // of tasks whose sums are added apart

template <class T>
constexpr int kWidth = kVectorWidth<T> < 4 ? kVectorWidth<T> : 4;

// Multiplies W values, the first of them element `index` of the tensor, by their factors. The index
// is a multiple of W; elements before the tensor's first or a row's are not looked at later.
template <int W, class A>
__device__ __forceinline__ void drop(const DropoutRule& rule, A scale, int64_t index,
                                     A (&values)[W]) {
  const uint64_t bits = bits_of_four(rule, index / 4 * 4);
#pragma unroll
  for (int i = 0; i < W; ++i) {
    const auto own = static_cast<uint32_t>(bits >> (16 * ((index + i) % 4))) & 0xffff;
    values[i] *= is_kept(rule, own, index + i) ? scale : A(0);
  }
}

// W elements of a weight or bias from column `begin` on, which may be outside of the row.
template <class P, int W>
__device__ __forceinline__ void load_parameter(const void* data, int64_t begin, int64_t cols,
                                               Accumulate<P> otherwise,
                                               Accumulate<P> (&values)[W]) {
#pragma unroll
  for (int i = 0; i < W; ++i) {
    const bool exists = data != nullptr && begin + i >= 0 && begin + i < cols;
    values[i] = exists ? widen(static_cast<const P*>(data)[begin + i]) : otherwise;
  }
}

template <int W>
__device__ __forceinline__ RowVectors<W, int64_t> vectors_of(int64_t row, int64_t cols) {
  return {cols, static_cast<int>(row * cols % W)};
}

template <class T, class P>
__global__ void __launch_bounds__(kMaxThreads)
    dropout_add_norm_forward_row(DropoutAddNormForwardArgs args, DropoutRule rule) {
  using A = Accumulate<T>;
  constexpr int W = kWidth<T>;
  BlockTeam team(blockDim.x);
  const int64_t row = blockIdx.x, cols = args.cols, start = row * cols;
  const T* const x = static_cast<const T*>(args.input) + start;
  const T* const residual = static_cast<const T*>(args.residual) + start;
  T* const sum = static_cast<T*>(args.sum) + start;
  const auto vectors = vectors_of<W>(row, cols);
  const A scale = static_cast<A>(1 / (1 - args.p));

  A total[1] = {0};
  for (int64_t v = threadIdx.x; v < vectors.count(); v += blockDim.x) {
    A values[W], others[W];
    vectors.load(x, v, 0).unpack(values);
    vectors.load(residual, v, 0).unpack(others);
    const int64_t begin = W * v - vectors.shift;
    if (args.p > 0) drop(rule, scale, start + begin, values);
#pragma unroll
    for (int i = 0; i < W; ++i) values[i] += others[i];
    Vector<T, W> rounded;
    rounded.pack(values);
    vectors.store(sum, v, rounded);
    rounded.unpack(values);
#pragma unroll
    for (int i = 0; i < W; ++i) {
      if (begin + i >= 0 && begin + i < cols) total[0] += values[i];
    }
  }
  team.reduce<Sum>(total);
  const A mean = total[0] / static_cast<A>(cols);

  // About the mean; the deviations correct what it lost in rounding.
  A sums[2] = {0, 0};
  for (int64_t v = threadIdx.x; v < vectors.count(); v += blockDim.x) {
    A values[W];
    vectors.load(sum, v, mean).unpack(values);
    const int64_t begin = W * v - vectors.shift;
#pragma unroll
    for (int i = 0; i < W; ++i) {
      const bool exists = begin + i >= 0 && begin + i < cols;
      const A difference = exists ? values[i] - mean : A(0);
      sums[0] += difference;
      sums[1] += difference * difference;
    }
  }
  team.reduce<Sum>(sums);
  const A rest = sums[0] / static_cast<A>(cols);
  // NaN where the squares overflow, as inf - inf is
  const A squares = fmax(sums[1] - rest * rest * static_cast<A>(cols), A(0)) + (sums[1] - sums[1]);
  const A rstd = rsqrt(squares / static_cast<A>(cols) + static_cast<A>(args.eps));
  if (threadIdx.x == 0) {
    static_cast<A*>(args.mean)[row] = mean + rest;
    static_cast<A*>(args.rstd)[row] = rstd;
  }
  T* const y = static_cast<T*>(args.output) + start;
  for (int64_t v = threadIdx.x; v < vectors.count(); v += blockDim.x) {
    A values[W], weight[W], bias[W];
    vectors.load(sum, v, 0).unpack(values);
    load_parameter<P>(args.weight, W * v - vectors.shift, cols, 1, weight);
    load_parameter<P>(args.bias, W * v - vectors.shift, cols, 0, bias);
#pragma unroll
    for (int i = 0; i < W; ++i) {
      values[i] = (values[i] - mean - rest) * rstd * weight[i] + bias[i];
    }
    Vector<T, W> output;
    output.pack(values);
    vectors.store(y, v, output);
  }
}

template <class T, class P>
__global__ void __launch_bounds__(kMaxThreads)
    dropout_add_norm_backward_rows(DropoutAddNormBackwardArgs args, DropoutRule rule) {
  using A = Accumulate<T>;
  constexpr int W = kWidth<T>;
  BlockTeam team(blockDim.x);
  const int64_t cols = args.cols, task = blockIdx.x;
  const A scale = static_cast<A>(1 / (1 - args.p));
  A* const sums_weight = static_cast<A*>(args.partial_sums) + 2 * cols * task;
  A* const sums_bias = sums_weight + cols;
  const bool wants_sums = args.grad_weight != nullptr || args.grad_bias != nullptr;
  if (wants_sums) {
    for (int64_t j = threadIdx.x; j < 2 * cols; j += blockDim.x) sums_weight[j] = 0;
    __syncthreads();
  }
  for (int64_t row = args.rows * task / args.tasks; row < args.rows * (task + 1) / args.tasks;
       ++row) {
    const int64_t start = row * cols;
    const T* const s = static_cast<const T*>(args.sum) + start;
    const T* const grad = static_cast<const T*>(args.grad_output) + start;
    const A mean = static_cast<const A*>(args.mean)[row];
    const A rstd = static_cast<const A*>(args.rstd)[row];
    const auto vectors = vectors_of<W>(row, cols);
    A products[2] = {0, 0};
    for (int64_t v = threadIdx.x; v < vectors.count(); v += blockDim.x) {
      A values[W], grads[W], weight[W];
      vectors.load(s, v, mean).unpack(values);
      vectors.load(grad, v, 0).unpack(grads);
      const int64_t begin = W * v - vectors.shift;
      load_parameter<P>(args.weight, begin, cols, 1, weight);
#pragma unroll
      for (int i = 0; i < W; ++i) {
        if (begin + i < 0 || begin + i >= cols) continue;
        const A normalised = (values[i] - mean) * rstd, weighted = grads[i] * weight[i];
        products[0] += weighted;
        products[1] += weighted * normalised;
        if (!wants_sums) continue;
        sums_weight[begin + i] += grads[i] * normalised;
        sums_bias[begin + i] += grads[i];
      }
    }
    // Its barrier also keeps the next row's sums behind these, whichever threads have them.
    team.reduce<Sum>(products);
    const A centre = products[0] / static_cast<A>(cols);
    const A projection = products[1] / static_cast<A>(cols);
    for (int64_t v = threadIdx.x; v < vectors.count(); v += blockDim.x) {
      A values[W], grads[W], weight[W];
      vectors.load(s, v, mean).unpack(values);
      vectors.load(grad, v, 0).unpack(grads);
      const int64_t begin = W * v - vectors.shift;
      load_parameter<P>(args.weight, begin, cols, 1, weight);
#pragma unroll
      for (int i = 0; i < W; ++i) {
        const A normalised = (values[i] - mean) * rstd;
        grads[i] = rstd * (grads[i] * weight[i] - centre - normalised * projection);
      }
      if (args.grad_sum != nullptr) {
        vectors.load(static_cast<const T*>(args.grad_sum) + start, v, 0).unpack(values);
#pragma unroll
        for (int i = 0; i < W; ++i) grads[i] += values[i];
      }
      Vector<T, W> output;
      output.pack(grads);
      vectors.store(static_cast<T*>(args.grad_residual) + start, v, output);
      if (args.grad_input == nullptr) continue;
      if (args.p > 0) drop(rule, scale, start + begin, grads);
      output.pack(grads);
      vectors.store(static_cast<T*>(args.grad_input) + start, v, output);
    }
  }
}

// Adds the tasks' sums: 32 columns a block, the tasks in kSets sets.
template <class A, class P>
__global__ void __launch_bounds__(kSets* kWarp)
    dropout_add_norm_add_tasks(DropoutAddNormBackwardArgs args) {
  __shared__ A of_sets[kSets][kWarp];
  const int lane = threadIdx.x % kWarp, set = threadIdx.x / kWarp;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kWarp + lane;
  const A* const partial = static_cast<const A*>(args.partial_sums);
  A sum = 0;
  if (column < 2 * args.cols) {
#pragma unroll 8
    for (int64_t task = set; task < args.tasks; task += kSets) {
      sum += partial[task * 2 * args.cols + column];
    }
  }
  of_sets[set][lane] = sum;
  __syncthreads();
  if (set != 0 || column >= 2 * args.cols) return;
  for (int other = 1; other < kSets; ++other) sum += of_sets[other][lane];
  void* const gradient = column < args.cols ? args.grad_weight : args.grad_bias;
  if (gradient != nullptr) static_cast<P*>(gradient)[column % args.cols] = narrow<P>(sum);
}

// Up to four vectors of a row a thread, if that makes a block.
int threads_for(int64_t cols, int width) {
  const int64_t threads = ceil_divide(ceil_divide(cols, int64_t{4} * width), kWarp) * kWarp;
  return static_cast<int>(std::min<int64_t>(threads, kMaxThreads));
}

}  // namespace

int64_t dropout_add_norm_tasks_cuda(const DropoutAddNormBackwardArgs& args,
                                    const CudaTarget& target) {
  return std::clamp<int64_t>(int64_t{kTasksOfProcessor} * target.multiprocessors, 1, args.rows);
}

Status dropout_add_norm_forward_cuda(const DropoutAddNormForwardArgs& args,
                                     const CudaTarget& target) {
  if (args.rows * args.cols == 0) return {};
  const DropoutRule rule = make_dropout_rule(args.p, args.seed);
  Status status;
  dispatch_dtype_pair<CudaTypes>(args.dtype, args.weight_dtype, [&]<class T, class P> {
    const LaunchShape shape{.blocks = args.rows, .threads = threads_for(args.cols, kWidth<T>)};
    status = launch(dropout_add_norm_forward_row<T, P>, shape, target, args, rule);
  });
  return status;
}

Status dropout_add_norm_backward_cuda(const DropoutAddNormBackwardArgs& args,
                                      const CudaTarget& target) {
  if (args.rows * args.cols == 0) return {};
  const DropoutRule rule = make_dropout_rule(args.p, args.seed);
  Status status;
  dispatch_dtype_pair<CudaTypes>(args.dtype, args.weight_dtype, [&]<class T, class P> {
    const LaunchShape shape{.blocks = args.tasks, .threads = threads_for(args.cols, kWidth<T>)};
    status = launch(dropout_add_norm_backward_rows<T, P>, shape, target, args, rule);
    if (!status.ok() || (args.grad_weight == nullptr && args.grad_bias == nullptr)) return;
    const LaunchShape adding{ceil_divide(2 * args.cols, int64_t{kWarp}), kSets * kWarp};
    status = launch(dropout_add_norm_add_tasks<Accumulate<T>, P>, adding, target, args);
  });
  return status;
}

}  // namespace fastdl
