// softmax, log_softmax and softmin along a dimension that is not the last, and their gradients, on
// CUDA: [outer, size, inner], along size. Formulas: softmax_forward_cuda.cu,
// softmax_backward_cuda.cu. A block has the columns of `lanes` neighbouring vectors; its `groups`
// of so many lanes have every groups-th row each. Up to a size of 7168 (gradients 3584) the columns
// stay in registers: every input is read once, every output written once. Longer ones are read
// again for each of three (two) passes, the block's last rows from the cache. Few lanes keep longer
// columns in registers; where that is one (16 bytes), its neighbour finds the other half of what
// memory hands out in the cache. Floor: the bytes of inputs and output / copy bandwidth.
#include "softmax/softmax_cuda.cuh"

namespace fastdl {
namespace {

struct ColumnPlan {
  int lanes, groups;
  bool held;  // in registers
  int64_t tiles, blocks;
  int threads() const { return lanes * groups; }
};

// float64 needs more registers.
template <class T>
constexpr int kMaxThreads = sizeof(T) == 8 ? 512 : 896;
constexpr int kLoopThreads = 512;  // of a block that does not hold its columns

// The sums of a block's warps go through shared memory: this many, for any plan.
constexpr int kShared = 2048;

// For columns in vectors of W elements and `bytes` bytes, of which a thread holds K.
ColumnPlan choose_column_plan(int64_t outer, int64_t size, int64_t inner, int W, int bytes, int K,
                              int threads) {
  constexpr int line = 128;  // bytes of the cache
  const int64_t vectors = ceil_divide(inner, W);
  const int enough = static_cast<int>(std::min<int64_t>(32, next_power_of_two(vectors)));
  ColumnPlan plan{};
  for (int lanes = enough; !plan.held && lanes >= 1; lanes /= 2) {
    const int most = std::min(threads / lanes, kShared * 32 / (lanes * lanes * W));
    const int whole = std::max(1, 32 / lanes);  // groups that fill a warp
    const int64_t groups = ceil_divide(ceil_divide(size, K), whole) * whole;
    plan.held = groups <= most;
    plan.lanes = lanes;
    plan.groups = static_cast<int>(std::min<int64_t>(groups, most));
  }
  if (!plan.held) {
    plan.lanes = std::min(enough, std::max(1, line / bytes));
    plan.groups = kLoopThreads / plan.lanes;
  }
  plan.tiles = ceil_divide(vectors, plan.lanes);
  plan.blocks = outer * plan.tiles;
  return plan;
}

// One thread's place: its columns are `W` elements from `start` on, in rows first, first + step, ..
struct ColumnPlace {
  int64_t start;
  int first, step;
  bool exists;

  __device__ __forceinline__ ColumnPlace(int64_t size, int64_t inner, int64_t tiles, int lanes,
                                         int W) {
    const int64_t column =
        (blockIdx.x % tiles * lanes + threadIdx.x % lanes) * static_cast<int64_t>(W);
    start = blockIdx.x / tiles * size * inner + column;
    first = threadIdx.x / lanes;
    step = blockDim.x / lanes;
    exists = column < inner;
  }
};

// Op over the threads of the block that have the same columns, for each of the W columns.
template <class Op, class A, int W>
__device__ __forceinline__ void reduce_columns(A (&values)[W], int lanes) {
  __shared__ A of_warps[kShared], of_block[32 * W];
  for (int offset = kWarp / 2; offset >= lanes; offset /= 2) {
#pragma unroll
    for (int i = 0; i < W; ++i) {
      values[i] = Op()(values[i], __shfl_xor_sync(kAllLanes, values[i], offset));
    }
  }
  const int columns = lanes * W, lane = threadIdx.x % lanes, warps = blockDim.x / kWarp;
  if (static_cast<int>(threadIdx.x % kWarp) < lanes) {
#pragma unroll
    for (int i = 0; i < W; ++i) of_warps[threadIdx.x / kWarp * columns + lane * W + i] = values[i];
  }
  __syncthreads();
  for (int column = threadIdx.x; column < columns; column += blockDim.x) {
    A all = of_warps[column];
    for (int warp = 1; warp < warps; ++warp) all = Op()(all, of_warps[warp * columns + column]);
    of_block[column] = all;
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < W; ++i) values[i] = of_block[lane * W + i];
  __syncthreads();  // the next reduction writes the same memory
}

// The thread's part of N arrays of the same columns: in registers, or read anew by each pass.
template <class T, int W, int K, int N, bool kHeld>
struct Columns {
  const T* data[N];
  ColumnPlace place;
  int64_t size, inner;
  Vector<T, W> held[kHeld ? K : 1][N];

  __device__ __forceinline__ Columns(const ColumnPlace& place, int64_t size, int64_t inner)
      : place(place), size(size), inner(inner) {}

  __device__ __forceinline__ void load() {
    if constexpr (kHeld) {
#pragma unroll
      for (int k = 0; k < K; ++k) {
        const int row = place.first + k * place.step;
        if (place.exists && row < static_cast<int>(size)) load_row(held[k], row);
      }
    }
  }
  __device__ __forceinline__ void load_row(Vector<T, W> (&vectors)[N], int64_t row) const {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      vectors[n] = load_vector<W>(data[n] + place.start + row * inner);
    }
  }
  // Calls body(row, vectors) for every row of the thread.
  template <class F>
  __device__ __forceinline__ void for_each_row(F&& body) {
    if (!place.exists) return;
    if constexpr (kHeld) {
#pragma unroll
      for (int k = 0; k < K; ++k) keep_packed(held[k]);
#pragma unroll
      for (int k = 0; k < K; ++k) {
        const int row = place.first + k * place.step;
        if (row < static_cast<int>(size)) body(row, held[k]);
      }
    } else {
#pragma unroll 4
      for (int64_t row = place.first; row < size; row += place.step) {
        load_row(held[0], row);
        body(row, held[0]);
      }
    }
  }
};

template <class In, class Out, int W, int K, bool kHeld>
__global__ void __launch_bounds__(kHeld ? kMaxThreads<In> : kLoopThreads, 1)
    softmax_forward_columns(SoftmaxForwardArgs args, int64_t tiles, int lanes) {
  using A = Accumulate<In>;
  const ColumnPlace place(args.size, args.inner, tiles, lanes, W);
  Columns<In, W, K, 1, kHeld> x(place, args.size, args.inner);
  x.data[0] = static_cast<const In*>(args.input);
  x.load();
  const A sign = sign_of(args.kind);
  A largest[W], sum[W] = {};
#pragma unroll
  for (int i = 0; i < W; ++i) largest[i] = Max::identity<A>();
  x.for_each_row([&](int64_t, const auto& vectors) {
    A values[W];
    vectors[0].unpack(values);
#pragma unroll
    for (int i = 0; i < W; ++i) largest[i] = Max()(largest[i], sign * values[i]);
  });
  reduce_columns<Max>(largest, lanes);
  x.for_each_row([&](int64_t, const auto& vectors) {
    A values[W];
    vectors[0].unpack(values);
#pragma unroll
    for (int i = 0; i < W; ++i) sum[i] += exponential<Out>(sign * values[i] - largest[i]);
  });
  reduce_columns<Sum>(sum, lanes);
  const bool logarithm = args.kind == SoftmaxKind::kLogSoftmax;
#pragma unroll
  for (int i = 0; i < W; ++i) sum[i] = divisor_of(logarithm, sum[i]);
  x.for_each_row([&](int64_t row, const auto& vectors) {
    A values[W];
    vectors[0].unpack(values);
#pragma unroll
    for (int i = 0; i < W; ++i) {
      values[i] = normalised<Out>(logarithm, sign * values[i] - largest[i], sum[i]);
    }
    Vector<Out, W> y;
    y.pack(values);
    store_vector(static_cast<Out*>(args.output) + place.start + row * args.inner, y);
  });
}

template <class In, class Out, int W, int K, bool kHeld>
__global__ void __launch_bounds__(kHeld ? kMaxThreads<In> : kLoopThreads, 1)
    softmax_backward_columns(SoftmaxBackwardArgs args, int64_t tiles, int lanes) {
  using A = Accumulate<In>;
  const ColumnPlace place(args.size, args.inner, tiles, lanes, W);
  Columns<Out, W, K, 2, kHeld> both(place, args.size, args.inner);
  both.data[0] = static_cast<const Out*>(args.grad_output);
  both.data[1] = static_cast<const Out*>(args.output);
  both.load();
  const bool logarithm = args.kind == SoftmaxKind::kLogSoftmax;
  const A sign = sign_of(args.kind);
  A sum[W] = {};
  both.for_each_row([&](int64_t, const auto& vectors) {
    A grads[W], values[W];
    vectors[0].unpack(grads);
    vectors[1].unpack(values);
#pragma unroll
    for (int i = 0; i < W; ++i) sum[i] += logarithm ? grads[i] : grads[i] * values[i];
  });
  reduce_columns<Sum>(sum, lanes);
  both.for_each_row([&](int64_t row, const auto& vectors) {
    A grads[W], values[W];
    vectors[0].unpack(grads);
    vectors[1].unpack(values);
#pragma unroll
    for (int i = 0; i < W; ++i) {
      grads[i] = logarithm ? grads[i] - exponential<Out>(values[i]) * sum[i]
                           : sign * values[i] * (grads[i] - sum[i]);
    }
    Vector<In, W> dx;
    dx.pack(grads);
    store_vector(static_cast<In*>(args.grad_input) + place.start + row * args.inner, dx);
  });
}

// Whether vectors of W can be used: every row then begins at a multiple of W elements.
template <int W, class... T>
bool is_aligned(int64_t inner, const T*... data) {
  return inner % W == 0 && (... && (shift_of<W>(data) == 0));
}

}  // namespace

Status softmax_forward_columns_cuda(const SoftmaxForwardArgs& args, const CudaTarget& target) {
  constexpr int K = 8;
  Status status;
  dispatch_dtype_pair<CudaTypes>(args.input_dtype, args.output_dtype, [&]<class In, class Out> {
    constexpr int kWide = kVectorWidth<In, Out>;
    const auto launch_with = [&]<int W>() {
      const ColumnPlan plan = choose_column_plan(args.outer, args.size, args.inner, W,
                                                 16 * W / kWide, K, kMaxThreads<In>);
      const auto kernel = plan.held ? softmax_forward_columns<In, Out, W, K, true>
                                    : softmax_forward_columns<In, Out, W, K, false>;
      status = launch(kernel, {plan.blocks, plan.threads()}, target, args, plan.tiles, plan.lanes);
    };
    const bool aligned = is_aligned<kWide>(args.inner, static_cast<const In*>(args.input),
                                           static_cast<const Out*>(args.output));
    aligned ? launch_with.template operator()<kWide>() : launch_with.template operator()<1>();
  });
  return status;
}

Status softmax_backward_columns_cuda(const SoftmaxBackwardArgs& args, const CudaTarget& target) {
  constexpr int K = 4;  // of each of the two inputs
  Status status;
  dispatch_dtype_pair<CudaTypes>(args.input_dtype, args.output_dtype, [&]<class In, class Out> {
    constexpr int kWide = kVectorWidth<In, Out>;
    const auto launch_with = [&]<int W>() {
      const ColumnPlan plan = choose_column_plan(args.outer, args.size, args.inner, W,
                                                 16 * W / kWide, K, kMaxThreads<In>);
      const auto kernel = plan.held ? softmax_backward_columns<In, Out, W, K, true>
                                    : softmax_backward_columns<In, Out, W, K, false>;
      status = launch(kernel, {plan.blocks, plan.threads()}, target, args, plan.tiles, plan.lanes);
    };
    const bool aligned = is_aligned<kWide>(args.inner, static_cast<const Out*>(args.grad_output),
                                           static_cast<const Out*>(args.output),
                                           static_cast<const In*>(args.grad_input));
    aligned ? launch_with.template operator()<kWide>() : launch_with.template operator()<1>();
  });
  return status;
}

}  // namespace fastdl
