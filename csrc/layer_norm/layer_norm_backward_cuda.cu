// The gradients of layer_norm and rms_norm on CUDA.
//   x^ = (x - mean) rstd, g = dy weight;  dx = rstd (g - mean(g) - x^ mean(g x^)), rms_norm without
//   mean(g);  dweight = sum over rows dy x^,  dbias = sum over rows dy
// A fixed grid goes over the rows. A thread has the same columns of every row it takes part in, so
// that it adds up their weight gradients in registers while it computes dx: x and dy are read once,
// dx is written once. The next row is on its way while a row is reduced. A row belongs to lanes of
// a warp (up to 512 columns), a group of warps or a whole block (12 thousand of bfloat16), or a
// cluster (98 thousand, capability 90). Each block writes its sums to partial_sums; a second
// launch adds these in a fixed order: two runs give the same bits.
// Wider rows, and on older GPUs those beyond a block: layer_norm_backward_wide_cuda.cu.
// Floor: (2 inputs + 1 output) / copy bandwidth; partial_sums add 8 cols bytes a block, twice.
#include "layer_norm/layer_norm_cuda.cuh"

namespace fastdl {
namespace {

// Vectors of a row that a thread has, at most, and threads of a block that has K of them each: a
// vector of 16-bit elements has two sums for each of 8 columns, for 4 vectors 168 registers.
template <class T>
constexpr int kHeld = sizeof(T) == 8 ? 2 : 4;
template <class T, int K>
constexpr int kThreads = K == 4 && sizeof(T) == 2 ? 384 : 512;
constexpr int kSets = 16;          // of tasks whose sums are added apart
constexpr int kTogether = 256;     // threads of a block whose groups are smaller
constexpr int kSharedSums = 4224;  // of one block, while its groups add up theirs: 128 (32 + 1)

struct BackwardPlan {
  bool held;           // rows in registers, else the three launches
  int vectors, group;  // vectors a thread has, threads that share a row
  int groups;          // of a block
  int cluster;         // blocks that share a row
  int parts;           // of a row, when not held
  int64_t tasks;
};

// For rows of `count` vectors of W elements of T
template <class T>
BackwardPlan choose_plan(int64_t rows, int64_t count, int W, const CudaTarget& target) {
  constexpr int held = kHeld<T>, most_threads = kThreads<T, held>;
  BackwardPlan plan{.held = true,
                    .vectors = 1,
                    .group = kWarp,
                    .groups = 1,
                    .cluster = 1,
                    .parts = 1,
                    .tasks = 1};
  const auto warps_for = [](int64_t threads) {
    return static_cast<int>(ceil_divide(threads, kWarp) * kWarp);
  };
  // Single elements are taken by the kernel of the most vectors, whatever the plan.
  const auto threads_for = [&](int vectors) {
    return W > 1 && vectors <= 2 ? kThreads<T, 2> : most_threads;
  };
  // 4 vectors leave no registers to load ahead: only where less will not do.
  if (count <= kWarp * (sizeof(T) == 2 && W > 1 ? 2 : held)) {
    plan.group = static_cast<int>(std::min<int64_t>(kWarp, next_power_of_two(count)));
    plan.vectors = static_cast<int>(next_power_of_two(ceil_divide(count, plan.group)));
  } else if (count <= most_threads * held) {
    // Two vectors of 16-bit elements have twice the bytes on their way for half again the
    // registers.
    plan.vectors = sizeof(T) == 2 && W > 1 && count > 96 ? 2 : 1;
    while (count > threads_for(plan.vectors) * plan.vectors) plan.vectors *= 2;
    plan.group = warps_for(ceil_divide(count, plan.vectors));
  } else if (target.capability >= 90 && count <= ClusterTeam::kMaxBlocks * most_threads * held) {
    plan.vectors = held;
    plan.cluster = static_cast<int>(next_power_of_two(ceil_divide(count, most_threads * held)));
    plan.group = warps_for(ceil_divide(ceil_divide(count, plan.cluster), held));
  } else {
    plan.held = false;
    plan.parts =
        static_cast<int>(std::min<int64_t>({ceil_divide(6 * int64_t{target.multiprocessors}, rows),
                                            ceil_divide(count, int64_t{2048}), kNormSplitThreads}));
    const int64_t tiles = ceil_divide(count, kNormSplitThreads);
    plan.tasks = std::clamp<int64_t>(4 * target.multiprocessors / tiles, 1, rows);
    return plan;
  }
  if (plan.cluster == 1) plan.groups = std::max(1, kTogether / plan.group);
  // Blocks that a multiprocessor has registers for: 64 (16-bit: 80) a thread for one vector.
  const int registers = (sizeof(T) == 2 ? 80 : 64) *
                        (plan.vectors == 1   ? 2
                         : plan.vectors == 2 ? 3
                                             : 4) /
                        2;
  const int resident = std::max(1, 65536 / (registers * plan.group * plan.groups));
  plan.tasks = std::clamp<int64_t>(resident * target.multiprocessors / plan.cluster, 1,
                                   ceil_divide(rows, plan.groups));
  return plan;
}

// A group of a block's threads: a power of two of lanes, or whole warps.
class GroupTeam {
 public:
  __device__ __forceinline__ explicit GroupTeam(int size)
      : size_(size), rank_(threadIdx.x % size), group_(threadIdx.x / size) {}
  __device__ __forceinline__ int size() const { return size_; }
  __device__ __forceinline__ int rank() const { return rank_; }
  __device__ __forceinline__ int group() const { return group_; }
  __device__ __forceinline__ int groups() const { return blockDim.x / size_; }
  __device__ __forceinline__ int64_t task() const { return blockIdx.x; }

  template <class Op, class A, int N>
  __device__ __forceinline__ void reduce(A (&values)[N]) {
    warp_reduce<Op>(values, min(size_, kWarp));
    if (size_ <= kWarp) return;
    __shared__ A of_warps[2][N][kWarp / 2];  // warps of a block
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = size_ / kWarp;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      if (lane == 0) of_warps[turn_][n][warp] = values[n];
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < N; ++n) {
      values[n] =
          lane < warps ? of_warps[turn_][n][group() * warps + lane] : Op::template identity<A>();
    }
    warp_reduce<Op>(values);
    turn_ ^= 1;
  }

 private:
  int size_, rank_, group_, turn_ = 0;
};

// A cluster whose blocks are one group each
class ClusterGroup : public ClusterTeam {
 public:
  using ClusterTeam::ClusterTeam;
  __device__ __forceinline__ int group() const { return 0; }
  __device__ __forceinline__ int groups() const { return 1; }
  __device__ __forceinline__ int64_t task() const { return row(); }
};

// Adds the sums of the block's groups in shared memory, group after group, into those of the first.
template <class A, int N>
__device__ __forceinline__ void add_groups(A (&sums)[N], int size) {
  for (int offset = kWarp / 2; offset >= size; offset /= 2) {
#pragma unroll
    for (int n = 0; n < N; ++n) sums[n] += __shfl_xor_sync(kAllLanes, sums[n], offset);
  }
  const int width = max(size, kWarp);  // threads that have different columns, or copies of them
  if (static_cast<int>(blockDim.x) == width) return;
  __shared__ A shared[kSharedSums];
  const int rank = threadIdx.x % width, group = threadIdx.x / width;
  const bool adds = rank < size;
  for (int turn = blockDim.x / width - 1; turn >= 0; --turn) {
    const bool is_first = turn == static_cast<int>(blockDim.x) / width - 1;
    if (group == turn && adds) {
#pragma unroll
      for (int n = 0; n < N; ++n) {
        A& place = shared[rank * (N + 1) + n];  // + 1: no two lanes in one bank
        if (!is_first) sums[n] += place;
        place = sums[n];
      }
    }
    __syncthreads();
  }
}

template <class Team, int K, int W, class T, class P>
__global__ void __launch_bounds__(kThreads<T, K>, 1)
    norm_backward_rows(NormBackwardArgs args, int group_size) {
  using A = Accumulate<T>;
  constexpr bool kAhead = K <= 2;  // the next row needs registers too
  Team team(group_size);
  const int count = static_cast<int>(args.cols / W);
  const bool centred = args.kind == NormKind::kLayerNorm;
  const A of_cols = 1 / static_cast<A>(args.cols);

  struct Row {
    Vector<T, W> x[K], dy[K];
    A mean, rstd;
  };
  const auto load_row = [&](int64_t row, Row& loaded) {
    const bool exists = row < args.rows;
    const RowVectors<W> vectors(exists ? args.cols : 0, 0);
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int v = k * team.size() + team.rank();
      loaded.x[k] = vectors.load(static_cast<const T*>(args.input) + row * args.cols, v, 0);
      loaded.dy[k] = vectors.load(static_cast<const T*>(args.grad_output) + row * args.cols, v, 0);
    }
    loaded.mean = exists && centred ? static_cast<const A*>(args.mean)[row] : A(0);
    loaded.rstd = exists ? static_cast<const A*>(args.rstd)[row] : A(0);
  };
  const auto load_weight = [&](int k, A(&weight)[W]) {
    const int v = k * team.size() + team.rank();
    load_parameter<P>(v < count ? args.weight : nullptr, W * v, 1, weight);
  };

  A sums[2 * K * W] = {};  // of dweight, then of dbias
  Row current, next;
  const int64_t step = args.tasks * team.groups();
  int64_t first =
      team.task() * team.groups();  // of the block's rows: its groups take turns together
  if constexpr (kAhead) load_row(first + team.group(), next);
  for (; first < args.rows; first += step) {
    const int64_t row = first + team.group();
    if constexpr (kAhead) {
      current = next;
      load_row(row + step, next);
    } else {
      load_row(row, current);
    }
    auto& [x, dy, mean, rstd] = current;
    A products[2] = {0, 0};  // mean of g, mean of g x^
#pragma unroll
    for (int k = 0; k < K; ++k) {
      A values[W], grads[W], weight[W];
      x[k].unpack(values);
      dy[k].unpack(grads);
      load_weight(k, weight);
#pragma unroll
      for (int i = 0; i < W; ++i) {
        const A normalised = (values[i] - mean) * rstd;
        products[0] += grads[i] * weight[i];
        products[1] += grads[i] * weight[i] * normalised;
        sums[k * W + i] += grads[i] * normalised;
        sums[(K + k) * W + i] += grads[i];
      }
      // One vector after the other: the weights of all at once would need more registers.
      ptx::opaque(products[0]);
    }
    team.template reduce<Sum>(products);
    keep_packed(x);
    keep_packed(dy);
    const A mean_g = centred ? products[0] * of_cols : A(0), mean_gx = products[1] * of_cols;
    if (args.grad_input == nullptr || row >= args.rows) continue;
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int v = k * team.size() + team.rank();
      if (v >= count) continue;
      A values[W], grads[W], weight[W];
      x[k].unpack(values);
      dy[k].unpack(grads);
      load_weight(k, weight);
#pragma unroll
      for (int i = 0; i < W; ++i) {
        const A normalised = (values[i] - mean) * rstd;
        grads[i] = rstd * (grads[i] * weight[i] - mean_g - normalised * mean_gx);
      }
      Vector<T, W> dx;
      dx.pack(grads);
      keep_packed(dx);
      store_vector(static_cast<T*>(args.grad_input) + row * args.cols + W * v, dx);
    }
  }
  if (args.grad_weight == nullptr && args.grad_bias == nullptr) return;
  if (team.groups() > 1) add_groups(sums, team.size());
  if (team.group() != 0) return;
  A* const partial = static_cast<A*>(args.partial_sums) + 2 * args.cols * team.task();
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int v = k * team.size() + team.rank();
    if (v >= count) continue;
#pragma unroll
    for (int i = 0; i < W; ++i) {
      partial[W * v + i] = sums[k * W + i];
      partial[args.cols + W * v + i] = sums[(K + k) * W + i];
    }
  }
}

// Adds the tasks' sums: 32 columns a block, the tasks in kSets sets.
template <class A, class P>
__global__ void __launch_bounds__(kSets* kWarp) norm_backward_add_tasks(NormBackwardArgs args) {
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
  void* const target = column < args.cols ? args.grad_weight : args.grad_bias;
  if (target != nullptr) static_cast<P*>(target)[column % args.cols] = narrow<P>(sum);
}

template <class T, class P>
bool is_aligned(const NormBackwardArgs& args) {
  constexpr int W = kVectorWidth<T>;
  return rows_are_aligned<W, T>(args.cols, {args.input, args.grad_output, args.grad_input}) &&
         rows_are_aligned<W, P>(args.cols, {args.weight});
}

template <class T, class P>
BackwardPlan choose_plan(const NormBackwardArgs& args, const CudaTarget& target) {
  const int W = is_aligned<T, P>(args) ? kVectorWidth<T> : 1;
  return choose_plan<T>(args.rows, args.cols / W, W, target);
}

template <int W, class T, class P>
Status launch_held(const NormBackwardArgs& args, const BackwardPlan& plan,
                   const CudaTarget& target) {
  const LaunchShape shape{.blocks = plan.tasks * plan.cluster,
                          .threads = plan.group * plan.groups,
                          .cluster = plan.cluster};
  const auto launch_rows = [&](auto kernel) {
    return launch(kernel, shape, target, args, plan.group);
  };
  if (plan.cluster > 1) return launch_rows(norm_backward_rows<ClusterGroup, kHeld<T>, W, T, P>);
  if constexpr (W > 1) {
    if (plan.vectors == 1) return launch_rows(norm_backward_rows<GroupTeam, 1, W, T, P>);
    if (plan.vectors == 2) return launch_rows(norm_backward_rows<GroupTeam, 2, W, T, P>);
  }
  return launch_rows(norm_backward_rows<GroupTeam, kHeld<T>, W, T, P>);
}

}  // namespace

int64_t norm_backward_tasks_cuda(const NormBackwardArgs& args, const CudaTarget& target) {
  int64_t tasks = 0;
  dispatch_norm(args, [&]<class T, class P> { tasks = choose_plan<T, P>(args, target).tasks; });
  return tasks;
}

size_t norm_backward_scratch_cuda(const NormBackwardArgs& args, const CudaTarget& target) {
  size_t bytes = 0;
  dispatch_norm(args, [&]<class T, class P> {
    const BackwardPlan plan = choose_plan<T, P>(args, target);
    if (!plan.held) bytes = 2 * args.rows * plan.parts * sizeof(Accumulate<T>);
  });
  return bytes;
}

Status norm_backward_cuda(const NormBackwardArgs& args, const CudaTarget& target) {
  if (args.rows * args.cols == 0) return {};
  const bool wants_sums = args.grad_weight != nullptr || args.grad_bias != nullptr;
  Status status;
  dispatch_norm(args, [&]<class T, class P> {
    const BackwardPlan plan = choose_plan<T, P>(args, target);
    const bool aligned = is_aligned<T, P>(args);
    status = !plan.held ? norm_backward_wide_cuda(args, plan.parts, aligned, target)
             : aligned  ? launch_held<kVectorWidth<T>, T, P>(args, plan, target)
                        : launch_held<1, T, P>(args, plan, target);
    if (!status.ok() || !wants_sums) return;
    const LaunchShape shape{ceil_divide(2 * args.cols, int64_t{kWarp}), kSets * kWarp};
    status = launch(norm_backward_add_tasks<Accumulate<T>, P>, shape, target, args);
  });
  return status;
}

}  // namespace fastdl
