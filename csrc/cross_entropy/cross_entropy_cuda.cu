// cross_entropy of contiguous rows on CUDA (formulas: cross_entropy.h): loss and gradient of a row
// in one pass.
// A row is held in registers, as 16-byte vectors, by lanes of a warp (up to 1024 classes of
// float32), a block (12 thousand, 24 where there are no clusters) or a cluster of blocks (196): the
// logits are read once and the gradient is written once, if wanted over the logits themselves.
// Longer rows, and on older GPUs those beyond a block, are split over blocks that each reduce a
// part; a second launch combines the parts' statistics, writes the loss and reads the logits again
// for the gradient. Rows need not be aligned: see RowVectors. Probabilities are read twice, the
// second time from the cache.
// The backward that has statistics reads the logits and writes the gradient once, in one pass.
// Floor: (bytes of logits + bytes of gradient) / copy bandwidth.
#include "cross_entropy/cross_entropy_cuda.cuh"

namespace fastdl {
namespace {

constexpr int kHeld = 8;  // vectors a thread holds: 32 registers
constexpr int kSplitThreads = 256;
// Vectors a thread of the other kernels loads at a time: float64 has no registers for more.
template <class T>
constexpr int kBatch = sizeof(T) == 8 ? 2 : 4;

// The elements of one row that kernels touch, W at a time.
template <class T, int W, class Index>
struct LossRow {
  using A = Accumulate<T>;
  const T* x;
  const T* probabilities;
  T* dx;
  RowVectors<W, Index> vectors;

  __device__ __forceinline__ LossRow(const CrossEntropyArgs& args, int64_t row, int64_t classes)
      : x(static_cast<const T*>(args.input) + row * args.classes),
        probabilities(args.probabilities == nullptr
                          ? nullptr
                          : static_cast<const T*>(args.probabilities) + row * args.classes),
        dx(static_cast<T*>(args.grad_input) + row * args.classes),
        vectors(classes, shift_of<W>(x)) {}

  // q of vector v; zeros past the ends of the row
  __device__ __forceinline__ void spread(const Spread<A>& q, Index v, A (&values)[W]) const {
    const Index begin = W * v - vectors.shift;
#pragma unroll
    for (int i = 0; i < W; ++i) {
      const Index j = begin + i;
      const bool exists = j >= 0 && j < vectors.cols;
      const A probability = exists && probabilities != nullptr ? A(widen(probabilities[j])) : A(0);
      values[i] = exists ? q(j, probability) : A(0);
    }
  }
  // Makes the gradient of the logits of vector v, and writes it.
  __device__ __forceinline__ void write(const CrossEntropyArgs& args, const RowGradient<A>& of,
                                        int64_t target, Index v, A (&values)[W]) const {
    const Index own = static_cast<Index>(target) - (W * v - vectors.shift);
    const bool has_target = target >= 0;
#pragma unroll
    for (int i = 0; i < W; ++i) {
      values[i] = exponential<T>(values[i] - of.shift) * of.factor;
      if (has_target && own == i) values[i] -= of.grad * of.hit;
    }
    if (has_spread(args)) {
      A q[W];
      spread(Spread<A>(args), v, q);
#pragma unroll
      for (int i = 0; i < W; ++i) values[i] -= of.grad * q[i];
    }
    Vector<T, W> packed;
    packed.pack(values);
    vectors.store(dx, v, packed);
  }
};

template <class Team, int K, class T>
__global__ void __launch_bounds__(Team::max_threads(sizeof(T) == 8), Team::kMinBlocks)
    cross_entropy_forward_row(CrossEntropyArgs args, int team_size) {
  using A = Accumulate<T>;
  constexpr int W = kVectorWidth<T>;
  Team team(team_size);
  const int64_t row = team.row();
  const bool exists = row < args.outer;
  const LossRow<T, W, int> of(args, exists ? row : 0, exists ? args.classes : 0);
  const LossTarget<A> target =
      exists ? target_of<A>(args, row) : LossTarget<A>{-1, A(0), A(0), true};
  const A logit = target.index < 0 ? A(0) : A(widen(of.x[target.index]));
  const int count = of.vectors.count();

  Vector<T, W> x[K];
#pragma unroll
  for (int k = 0; k < K; ++k) {
    if (k * team.size() < count) {
      x[k] = of.vectors.load(of.x, k * team.size() + team.rank(), Max::identity<A>());
    }
  }
  A largest[1] = {Max::identity<A>()};
#pragma unroll
  for (int k = 0; k < K; ++k) {
    if (k * team.size() >= count) break;
    A values[W];
    x[k].unpack(values);
#pragma unroll
    for (const A value : values) largest[0] = Max()(largest[0], value);
  }
  team.template reduce<Max>(largest);
  keep_packed(x);
  LossStatistics<A> seen;
  seen.largest = largest[0];
  A sums[3] = {0, 0, 0};
#pragma unroll
  for (int k = 0; k < K; ++k) {
    if (k * team.size() >= count) break;
    A values[W];
    x[k].unpack(values);
#pragma unroll
    for (const A value : values) sums[0] += exponential<T>(value - seen.shift());
    if (has_spread(args)) {
      A q[W];
      of.spread(Spread<A>(args), k * team.size() + team.rank(), q);
#pragma unroll
      for (int i = 0; i < W; ++i) {
        sums[1] += q[i];
        // Past the ends of the row q is 0 and x is -inf.
        const int j = W * (k * team.size() + team.rank()) - of.vectors.shift + i;
        if (j >= 0 && j < of.vectors.cols) sums[2] += q[i] * (seen.shift() - values[i]);
      }
    }
    ptx::opaque(sums[0]);  // one vector after the other: all K at once would need more registers
  }
  team.template reduce<Sum>(sums);
  keep_packed(x);
  seen.sum = sums[0];
  seen.q = sums[1];
  seen.distance = sums[2];
  if (!exists) return;
  const RowGradient<A> gradient =
      finish_row(args, row, target, logit, seen, /*writes=*/team.rank() == 0);
  if (args.grad_input == nullptr) return;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    if (k * team.size() >= count) break;
    A values[W];
    x[k].unpack(values);
    of.write(args, gradient, target.index, k * team.size() + team.rank(), values);
  }
}

// Over the threads of a block
template <class A>
__device__ __forceinline__ void combine(BlockTeam& team, LossStatistics<A>& seen) {
  A largest[1] = {seen.largest};
  team.reduce<Max>(largest);
  seen.raise(largest[0]);
  A sums[3] = {seen.sum, seen.q, seen.distance};
  team.reduce<Sum>(sums);
  seen.sum = sums[0];
  seen.q = sums[1];
  seen.distance = sums[2];
}

// Reduces a part of a row, or (kWrite, the second launch) combines the parts' statistics, finishes
// the row and writes its part of the gradient.
template <class T, bool kWrite>
__global__ void __launch_bounds__(kSplitThreads)
    cross_entropy_forward_split(CrossEntropyArgs args, const T* logits_of_targets, int parts) {
  using A = Accumulate<T>;
  constexpr int W = kVectorWidth<T>;
  BlockTeam team(blockDim.x);
  const int64_t row = blockIdx.x / parts;
  const LossRow<T, W, int64_t> of(args, row, args.classes);
  const PartOfRow part(of.vectors.count(), blockIdx.x % parts, parts);
  LossStatistics<A>* const partial = static_cast<LossStatistics<A>*>(args.scratch);
  const LossTarget<A> target = target_of<A>(args, row);
  LossStatistics<A> seen;
  RowGradient<A> gradient{};
  if (kWrite) {
    if (static_cast<int>(threadIdx.x) < parts) seen = partial[row * parts + threadIdx.x];
    combine(team, seen);
    // Saved by the first launch: here another block may have written over it.
    const A logit = target.index < 0 ? A(0) : A(widen(logits_of_targets[row]));
    gradient = finish_row(args, row, target, logit, seen,
                          /*writes=*/blockIdx.x % parts == 0 && threadIdx.x == 0);
    if (args.grad_input == nullptr) return;
  } else if (blockIdx.x % parts == 0 && threadIdx.x == 0 && target.index >= 0) {
    const_cast<T*>(logits_of_targets)[row] = of.x[target.index];
  }
  for (int64_t v = part.begin + threadIdx.x; v < part.end; v += kBatch<T> * blockDim.x) {
    Vector<T, W> x[kBatch<T>];
#pragma unroll
    for (int k = 0; k < kBatch<T>; ++k) {
      x[k] = of.vectors.load_before(part.end, of.x, v + k * blockDim.x, Max::identity<A>());
    }
#pragma unroll
    for (int k = 0; k < kBatch<T>; ++k) {
      if (v + k * blockDim.x >= part.end) break;
      A values[W];
      x[k].unpack(values);
      if (kWrite) {
        of.write(args, gradient, target.index, v + k * blockDim.x, values);
        continue;
      }
      A largest = seen.largest;
#pragma unroll
      for (const A value : values) largest = Max()(largest, value);
      seen.raise(largest);
#pragma unroll
      for (const A value : values) seen.sum += exponential<T>(value - seen.shift());
      if (!has_spread(args)) continue;
      A q[W];
      of.spread(Spread<A>(args), v + k * blockDim.x, q);
      const int64_t begin = W * (v + k * blockDim.x) - of.vectors.shift;
#pragma unroll
      for (int i = 0; i < W; ++i) {
        seen.q += q[i];
        const bool exists = begin + i >= 0 && begin + i < args.classes;
        if (exists) seen.distance += q[i] * (seen.shift() - values[i]);
      }
    }
  }
  if (!kWrite) {
    combine(team, seen);
    if (threadIdx.x == 0) partial[blockIdx.x] = seen;
  }
}

// `team` neighbouring threads have a part of a row.
template <class T>
__global__ void __launch_bounds__(kSplitThreads)
    cross_entropy_backward_rows(CrossEntropyArgs args, int team, int parts) {
  using A = Accumulate<T>;
  constexpr int W = kVectorWidth<T>;
  const int64_t unit = static_cast<int64_t>(blockIdx.x) * (blockDim.x / team) + threadIdx.x / team;
  const int64_t row = unit / parts;
  if (row >= args.outer) return;
  const LossRow<T, W, int64_t> of(args, row, args.classes);
  const PartOfRow part(of.vectors.count(), static_cast<int>(unit % parts), parts);
  const LossTarget<A> target = target_of<A>(args, row);
  const RowGradient<A> gradient = gradient_of_row(args, row, target);
  for (int64_t v = part.begin + threadIdx.x % team; v < part.end; v += kBatch<T> * team) {
    Vector<T, W> x[kBatch<T>];
#pragma unroll
    for (int k = 0; k < kBatch<T>; ++k) {
      x[k] = of.vectors.load_before(part.end, of.x, v + k * team, Max::identity<A>());
    }
#pragma unroll
    for (int k = 0; k < kBatch<T>; ++k) {
      if (v + k * team >= part.end) break;
      A values[W];
      x[k].unpack(values);
      of.write(args, gradient, target.index, v + k * team, values);
    }
  }
}

template <class T>
RowPlan choose_plan(const CrossEntropyArgs& args, const CudaTarget& target) {
  constexpr int W = kVectorWidth<T>;
  const int shift = shift_of<W>(static_cast<const T*>(args.input));
  return choose_row_plan(args.outer, vectors_of_row(args.classes, shift, W), kHeld, sizeof(T) == 8,
                         target);
}

template <class T>
bool has_same_shift(const CrossEntropyArgs& args) {
  constexpr int W = kVectorWidth<T>;
  return args.grad_input == nullptr || shift_of<W>(static_cast<const T*>(args.input)) ==
                                           shift_of<W>(static_cast<const T*>(args.grad_input));
}

template <class T>
Status launch_split(const CrossEntropyArgs& args, const RowPlan& plan, const CudaTarget& target) {
  const LaunchShape shape{plan.blocks, plan.threads};
  const T* const logits = reinterpret_cast<const T*>(
      static_cast<const LossStatistics<Accumulate<T>>*>(args.scratch) + plan.blocks);
  const Status status =
      launch(cross_entropy_forward_split<T, false>, shape, target, args, logits, plan.parts);
  if (!status.ok()) return status;
  return launch(cross_entropy_forward_split<T, true>, shape, target, args, logits, plan.parts);
}

}  // namespace

size_t cross_entropy_forward_scratch_cuda(const CrossEntropyArgs& args, const CudaTarget& target) {
  size_t bytes = 0;
  if (args.inner != 1) return bytes;
  dispatch_dtype<CudaTypes>(args.dtype, [&]<class T> {
    const RowPlan plan = choose_plan<T>(args, target);
    if (plan.kind != RowTeam::kSplit) return;
    bytes = plan.blocks * sizeof(LossStatistics<Accumulate<T>>) + args.outer * sizeof(T);
  });
  return bytes;
}

Status cross_entropy_forward_cuda(const CrossEntropyArgs& args, const CudaTarget& target) {
  if (args.outer * args.classes * args.inner == 0) return {};
  if (args.inner != 1) return cross_entropy_columns_cuda(args, target, /*backward=*/false);
  Status status;
  dispatch_dtype<CudaTypes>(args.dtype, [&]<class T> {
    const RowPlan plan = choose_plan<T>(args, target);
    if (!has_same_shift<T>(args)) {
      status = {cudaErrorInvalidValue};
    } else if (plan.kind == RowTeam::kSplit) {
      status = launch_split<T>(args, plan, target);
    } else {
      status = dispatch_row_plan<kHeld, /*kOnlyHeld=*/true>(plan, [&]<class Team, int K> {
        const LaunchShape shape{
            .blocks = plan.blocks, .threads = plan.threads, .cluster = plan.parts};
        return launch(cross_entropy_forward_row<Team, K, T>, shape, target, args, plan.team);
      });
    }
  });
  return status;
}

Status cross_entropy_backward_cuda(const CrossEntropyArgs& args, const CudaTarget& target) {
  if (args.outer * args.classes * args.inner == 0) return {};
  if (args.inner != 1) return cross_entropy_columns_cuda(args, target, /*backward=*/true);
  Status status;
  dispatch_dtype<CudaTypes>(args.dtype, [&]<class T> {
    constexpr int W = kVectorWidth<T>;
    if (!has_same_shift<T>(args)) {
      status = {cudaErrorInvalidValue};
      return;
    }
    const int shift = shift_of<W>(static_cast<const T*>(args.input));
    const int64_t count = vectors_of_row(args.classes, shift, W);
    const int64_t wanted = next_power_of_two(ceil_divide(count, kBatch<T>));
    const int team = static_cast<int>(std::min<int64_t>(kSplitThreads, wanted));
    // Two batches a thread, if the rows are long.
    const int parts = static_cast<int>(ceil_divide(count, int64_t{2} * kBatch<T> * team));
    const int64_t blocks = ceil_divide(args.outer * parts * team, kSplitThreads);
    const LaunchShape launch_shape{blocks, kSplitThreads};
    status = launch(cross_entropy_backward_rows<T>, launch_shape, target, args, team, parts);
  });
  return status;
}

}  // namespace fastdl
