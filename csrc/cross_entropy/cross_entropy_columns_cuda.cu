// cross_entropy on CUDA where the classes are not the last dimension (segmentation; formulas:
// cross_entropy.h), forward and the backward that has statistics.
// A block has the columns of `lanes` neighbouring vectors of 16 bytes; its `groups` of so many
// lanes have every groups-th class each, with a running maximum and sum for each column, which are
// combined in shared memory. Up to kHeld classes a group (64 for wide tensors, 2048 for narrow
// ones) stay in registers: the logits are read once and the gradient is written once. More classes
// are read a second time for the gradient. The backward reads and writes once.
// Floor: (bytes of logits + bytes of gradient) / copy bandwidth.
#include "cross_entropy/cross_entropy_cuda.cuh"

namespace fastdl {
namespace {

constexpr int kHeld = 8;       // classes of a thread that stay in registers
constexpr int kThreads = 256;  // of a block, at most

// The statistics of each thread's columns and the logits of their targets; then those of the
// block's columns. Shared memory has no constructors: numbers, field by field.
template <class A, int W>
struct SharedStatistics {
  A fields[5][kThreads * W];

  __device__ __forceinline__ void write(int at, const LossStatistics<A>& of, A logit) {
    const A values[] = {of.largest, of.sum, of.q, of.distance, logit};
#pragma unroll
    for (int i = 0; i < 5; ++i) fields[i][at] = values[i];
  }
  __device__ __forceinline__ LossStatistics<A> statistics(int at) const {
    return {fields[0][at], fields[1][at], fields[2][at], fields[3][at]};
  }
  __device__ __forceinline__ A logit(int at) const { return fields[4][at]; }
};

// All threads of the block get the statistics of their columns over all groups.
template <class A, int W>
__device__ __forceinline__ void combine(LossStatistics<A> (&seen)[W], A (&logit)[W], int lanes) {
  __shared__ SharedStatistics<A, W> shared;
  const int columns = lanes * W, groups = blockDim.x / lanes;
  const int mine = threadIdx.x / lanes * columns + threadIdx.x % lanes * W;
#pragma unroll
  for (int i = 0; i < W; ++i) shared.write(mine + i, seen[i], logit[i]);
  __syncthreads();
  for (int column = threadIdx.x; column < columns; column += blockDim.x) {
    LossStatistics<A> all = shared.statistics(column);
    A found = shared.logit(column);  // of all groups one has found it, the others have 0
    for (int group = 1; group < groups; ++group) {
      all.add(shared.statistics(group * columns + column));
      found += shared.logit(group * columns + column);
    }
    shared.write(column, all, found);
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < W; ++i) {
    seen[i] = shared.statistics(threadIdx.x % lanes * W + i);
    logit[i] = shared.logit(threadIdx.x % lanes * W + i);
  }
}

template <class T, int W, int K>
__global__ void __launch_bounds__(kThreads, 2)
    cross_entropy_columns(CrossEntropyArgs args, int64_t tiles, int lanes, bool backward) {
  using A = Accumulate<T>;
  const int64_t column = (blockIdx.x % tiles * lanes + threadIdx.x % lanes) * int64_t{W};
  const int64_t outer = blockIdx.x / tiles, row = outer * args.inner + column;
  const int first = threadIdx.x / lanes, step = blockDim.x / lanes;
  const int classes = static_cast<int>(args.classes);
  const bool exists = column < args.inner, spread = has_spread(args);
  const int64_t start = outer * args.classes * args.inner + column;
  const T* const x = static_cast<const T*>(args.input) + start;
  const T* const probabilities = static_cast<const T*>(args.probabilities);
  const Spread<A> q(args);

  Vector<T, W> held[K > 0 ? K : 1];
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int j = first + k * step;
    if (exists && j < classes) held[k] = load_vector<W>(x + j * args.inner);
  }
  // Calls body(class, logits of the columns, their q) for all classes of the thread.
  const auto for_classes = [&](auto&& body) {
    const auto with_spread = [&](int j, const Vector<T, W>& vector) {
      A values[W], q_values[W] = {};
      vector.unpack(values);
      if (spread) {
        A given[W] = {};
        if (probabilities != nullptr) {
          load_vector<W>(probabilities + start + j * args.inner).unpack(given);
        }
#pragma unroll
        for (int i = 0; i < W; ++i) q_values[i] = q(j, given[i]);
      }
      body(j, values, q_values);
    };
    if (!exists) return;
    if constexpr (K > 0) {
      keep_packed(held);
#pragma unroll
      for (int k = 0; k < K; ++k) {
        if (first + k * step < classes) with_spread(first + k * step, held[k]);
      }
    } else {
#pragma unroll 4
      for (int j = first; j < classes; j += step) {
        with_spread(j, load_vector<W>(x + j * args.inner));
      }
    }
  };

  int index[W];
  RowGradient<A> gradient[W];
#pragma unroll
  for (int i = 0; i < W; ++i) {
    const bool has_target = exists && args.target != nullptr;
    index[i] = has_target ? static_cast<int>(checked_target(args.target, row + i, args.classes,
                                                            args.ignore_index))
                          : -1;
  }
  if (backward) {
    if (!exists) return;
#pragma unroll
    for (int i = 0; i < W; ++i) {
      gradient[i] = gradient_of_row(args, row + i, target_of<A>(args, row + i));
    }
  } else {
    LossStatistics<A> seen[W];
    A logit[W] = {};
    for_classes([&](int j, const A(&values)[W], const A(&q_values)[W]) {
#pragma unroll
      for (int i = 0; i < W; ++i) {
        if (j == index[i]) logit[i] = values[i];
        seen[i].raise(Max()(seen[i].largest, values[i]));
        seen[i].sum += exponential<T>(values[i] - seen[i].shift());
        if (!spread) continue;
        seen[i].q += q_values[i];
        seen[i].distance += q_values[i] * (seen[i].shift() - values[i]);
      }
    });
    combine(seen, logit, lanes);
    if (!exists) return;
#pragma unroll
    for (int i = 0; i < W; ++i) {
      gradient[i] = finish_row(args, row + i, target_of<A>(args, row + i), logit[i], seen[i],
                               /*writes=*/first == 0);
    }
    if (args.grad_input == nullptr) return;
  }
  T* const dx = static_cast<T*>(args.grad_input) + start;
  for_classes([&](int j, A(&values)[W], const A(&q_values)[W]) {
#pragma unroll
    for (int i = 0; i < W; ++i) {
      const RowGradient<A>& of = gradient[i];
      values[i] = exponential<T>(values[i] - of.shift) * of.factor;
      values[i] -= of.grad * (q_values[i] + (j == index[i] ? of.hit : A(0)));
    }
    Vector<T, W> packed;
    packed.pack(values);
    store_vector(dx + j * args.inner, packed);
  });
}

struct ColumnPlan {
  int lanes, groups;
  bool held;  // in registers
  int64_t tiles;
};

ColumnPlan choose_column_plan(const CrossEntropyArgs& args, int W, bool backward) {
  const int64_t vectors = ceil_divide(args.inner, W);
  ColumnPlan plan{};
  plan.lanes = static_cast<int>(std::min<int64_t>(32, next_power_of_two(vectors)));
  const int64_t most = kThreads / plan.lanes;
  plan.groups =
      static_cast<int>(std::min(most, next_power_of_two(ceil_divide(args.classes, kHeld))));
  // Whole warps
  plan.groups = std::max(plan.groups, 32 / plan.lanes);
  plan.held = !backward && args.classes <= int64_t{plan.groups} * kHeld;
  plan.tiles = ceil_divide(vectors, plan.lanes);
  return plan;
}

template <class T, int W>
Status launch_columns(const CrossEntropyArgs& args, const CudaTarget& target, bool backward) {
  const ColumnPlan plan = choose_column_plan(args, W, backward);
  const LaunchShape shape{args.outer * plan.tiles, plan.lanes * plan.groups};
  if constexpr (W > 1) {
    if (plan.held) {
      return launch(cross_entropy_columns<T, W, kHeld>, shape, target, args, plan.tiles, plan.lanes,
                    backward);
    }
  }
  return launch(cross_entropy_columns<T, W, 0>, shape, target, args, plan.tiles, plan.lanes,
                backward);
}

}  // namespace

Status cross_entropy_columns_cuda(const CrossEntropyArgs& args, const CudaTarget& target,
                                  bool backward) {
  Status status;
  dispatch_dtype<CudaTypes>(args.dtype, [&]<class T> {
    constexpr int W = kVectorWidth<T>;
    const void* const pointers[] = {args.input, args.probabilities, args.grad_input};
    bool aligned = args.inner % W == 0;
    for (const void* pointer : pointers) aligned &= reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
    status = aligned ? launch_columns<T, W>(args, target, backward)
                     : launch_columns<T, 1>(args, target, backward);
  });
  return status;
}

}  // namespace fastdl
