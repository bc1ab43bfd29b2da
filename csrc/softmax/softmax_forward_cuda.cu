// softmax, log_softmax and softmin of contiguous rows on CUDA (other dims:
// softmax_columns_cuda.cu).
//   softmax x: y_i = exp(x_i - max) / sum_j exp(x_j - max);  log_softmax: (x_i - max) - log(sum)
// A row is held in registers, as 16-byte vectors, by lanes of a warp (up to 1024 columns of
// float32), a block (12 thousand, 24 where there are no clusters) or a cluster of blocks (196):
// every input is read once and every output written once. Longer rows, and on older GPUs those
// beyond a block, are split over blocks that each reduce a part; a second launch combines the
// parts' (max, sum) and reads the input again. Rows need not be aligned: see RowVectors.
// Floor: (bytes of input + bytes of output) / copy bandwidth. With 16-bit outputs two fast
// exponentials an element take 60 % of what the special function units can do at that speed.
#include "softmax/softmax_cuda.cuh"

namespace fastdl {
namespace {

constexpr int kHeld = 8;   // vectors a thread holds, at most: 32 registers
constexpr int kBatch = 4;  // vectors a thread of the split kernels loads at a time

template <class Team, int K, class In, class Out>
__global__ void __launch_bounds__(Team::max_threads(sizeof(In) == 8), Team::kMinBlocks)
    softmax_forward_row(SoftmaxForwardArgs args, int team_size) {
  using A = Accumulate<In>;
  constexpr int W = kVectorWidth<In, Out>;
  Team team(team_size);
  const int64_t row = team.row();
  const In* const input = static_cast<const In*>(args.input) + row * args.size;
  Out* const output = static_cast<Out*>(args.output) + row * args.size;
  const RowVectors<W> vectors(row < args.outer ? args.size : 0, shift_of<W>(input));
  const A sign = sign_of(args.kind);

  Vector<In, W> x[K];
#pragma unroll
  for (int k = 0; k < K; ++k) {
    x[k] = vectors.load(input, k * team.size() + team.rank(), -sign * static_cast<A>(INFINITY));
  }
  A largest[1] = {Max::identity<A>()};
#pragma unroll
  for (int k = 0; k < K; ++k) {
    A values[W];
    x[k].unpack(values);
#pragma unroll
    for (int i = 0; i < W; ++i) largest[0] = Max()(largest[0], sign * values[i]);
  }
  team.template reduce<Max>(largest);
  keep_packed(x);
  A sum[1] = {0};
#pragma unroll
  for (int k = 0; k < K; ++k) {
    A values[W];
    x[k].unpack(values);
#pragma unroll
    for (int i = 0; i < W; ++i) sum[0] += exponential<Out>(sign * values[i] - largest[0]);
    ptx::opaque(sum[0]);  // one vector after the other: all K at once would need more registers
  }
  team.template reduce<Sum>(sum);
  keep_packed(x);

  const bool logarithm = args.kind == SoftmaxKind::kLogSoftmax;
  const A divisor = divisor_of(logarithm, sum[0]);
#pragma unroll
  for (int k = 0; k < K; ++k) {
    A values[W];
    x[k].unpack(values);
#pragma unroll
    for (A& value : values) {
      value = normalised<Out>(logarithm, sign * value - largest[0], divisor);
    }
    Vector<Out, W> y;
    y.pack(values);
    vectors.store(output, k * team.size() + team.rank(), y);
  }
}

// The maximum of the values seen so far, and the sum of exp(value - maximum).
template <class A>
struct OnlineSoftmax {
  A largest = Max::identity<A>();
  A sum = 0;

  // What the exponentials are taken from: any finite number while all values are -inf.
  __device__ __forceinline__ A reference() const {
    return largest == Max::identity<A>() ? A(0) : largest;
  }
  template <class Out, int N>
  __device__ __forceinline__ void add(const A (&values)[N]) {
    const A before = largest;
    for (int i = 0; i < N; ++i) largest = Max()(largest, values[i]);
    if (largest != before) sum *= exponential<Out>(before - reference());
    for (int i = 0; i < N; ++i) sum += exponential<Out>(values[i] - reference());
  }
  // Over the threads of a block
  __device__ __forceinline__ void combine(BlockTeam& team) {
    const A own = largest;
    A value[1] = {largest};
    team.reduce<Max>(value);
    largest = value[0];
    value[0] = own == largest ? sum : sum * exponential<A>(own - largest);
    team.reduce<Sum>(value);
    sum = value[0];
  }
};

template <class In, class Out>
__global__ void __launch_bounds__(256)
    softmax_forward_split_reduce(SoftmaxForwardArgs args, int parts) {
  using A = Accumulate<In>;
  constexpr int W = kVectorWidth<In, Out>;
  BlockTeam team(blockDim.x);
  const int64_t row = blockIdx.x / parts;
  const In* const input = static_cast<const In*>(args.input) + row * args.size;
  const RowVectors<W, int64_t> vectors(args.size, shift_of<W>(input));
  const PartOfRow part(vectors.count(), blockIdx.x % parts, parts);
  const A sign = sign_of(args.kind);
  OnlineSoftmax<A> seen;
  for (int64_t v = part.begin + threadIdx.x; v < part.end; v += kBatch * blockDim.x) {
    Vector<In, W> x[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      x[k] = vectors.load_before(part.end, input, v + k * blockDim.x,
                                 -sign * static_cast<A>(INFINITY));
    }
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      A values[W];
      x[k].unpack(values);
#pragma unroll
      for (A& value : values) value *= sign;
      seen.template add<Out>(values);
    }
  }
  seen.combine(team);
  if (threadIdx.x == 0) static_cast<OnlineSoftmax<A>*>(args.scratch)[blockIdx.x] = seen;
}

template <class In, class Out>
__global__ void __launch_bounds__(256)
    softmax_forward_split_write(SoftmaxForwardArgs args, int parts) {
  using A = Accumulate<In>;
  constexpr int W = kVectorWidth<In, Out>;
  BlockTeam team(blockDim.x);
  const int64_t row = blockIdx.x / parts;
  const In* const input = static_cast<const In*>(args.input) + row * args.size;
  Out* const output = static_cast<Out*>(args.output) + row * args.size;
  const RowVectors<W, int64_t> vectors(args.size, shift_of<W>(input));
  const PartOfRow part(vectors.count(), blockIdx.x % parts, parts);
  OnlineSoftmax<A> seen;
  if (static_cast<int>(threadIdx.x) < parts) {
    seen = static_cast<const OnlineSoftmax<A>*>(args.scratch)[row * parts + threadIdx.x];
  }
  seen.combine(team);
  const bool logarithm = args.kind == SoftmaxKind::kLogSoftmax;
  const A divisor = divisor_of(logarithm, seen.sum), sign = sign_of(args.kind);
  for (int64_t v = part.begin + threadIdx.x; v < part.end; v += kBatch * blockDim.x) {
    Vector<In, W> x[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      x[k] = vectors.load_before(part.end, input, v + k * blockDim.x, 0);
    }
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      if (v + k * blockDim.x >= part.end) break;
      A values[W];
      x[k].unpack(values);
#pragma unroll
      for (A& value : values) {
        value = normalised<Out>(logarithm, sign * value - seen.largest, divisor);
      }
      Vector<Out, W> y;
      y.pack(values);
      vectors.store(output, v + k * blockDim.x, y);
    }
  }
}

template <class In, class Out>
RowPlan choose_plan(const SoftmaxForwardArgs& args, const CudaTarget& target) {
  constexpr int W = kVectorWidth<In, Out>;
  const int shift = shift_of<W>(static_cast<const In*>(args.input));
  return choose_row_plan(args.outer, vectors_of_row(args.size, shift, W), kHeld, sizeof(In) == 8,
                         target);
}

template <class In, class Out>
Status launch_split(const SoftmaxForwardArgs& args, const RowPlan& plan, const CudaTarget& target) {
  const LaunchShape shape{plan.blocks, plan.threads};
  const Status status =
      launch(softmax_forward_split_reduce<In, Out>, shape, target, args, plan.parts);
  if (!status.ok()) return status;
  return launch(softmax_forward_split_write<In, Out>, shape, target, args, plan.parts);
}

}  // namespace

size_t softmax_forward_scratch_cuda(const SoftmaxForwardArgs& args, const CudaTarget& target) {
  size_t bytes = 0;
  if (args.inner != 1) return bytes;
  dispatch_dtype_pair<CudaTypes>(args.input_dtype, args.output_dtype, [&]<class In, class Out> {
    const RowPlan plan = choose_plan<In, Out>(args, target);
    if (plan.kind == RowTeam::kSplit) bytes = plan.blocks * sizeof(OnlineSoftmax<Accumulate<In>>);
  });
  return bytes;
}

Status softmax_forward_cuda(const SoftmaxForwardArgs& args, const CudaTarget& target) {
  if (args.outer * args.size * args.inner == 0) return {};
  if (args.inner != 1) return softmax_forward_columns_cuda(args, target);
  Status status;
  dispatch_dtype_pair<CudaTypes>(args.input_dtype, args.output_dtype, [&]<class In, class Out> {
    constexpr int W = kVectorWidth<In, Out>;
    const RowPlan plan = choose_plan<In, Out>(args, target);
    if (shift_of<W>(static_cast<const In*>(args.input)) !=
        shift_of<W>(static_cast<const Out*>(args.output))) {
      status = {cudaErrorInvalidValue};
      return;
    }
    if (plan.kind == RowTeam::kSplit) {
      status = launch_split<In, Out>(args, plan, target);
      return;
    }
    status = dispatch_row_plan<kHeld>(plan, [&]<class Team, int K> {
      const LaunchShape shape{
          .blocks = plan.blocks, .threads = plan.threads, .cluster = plan.parts};
      return launch(softmax_forward_row<Team, K, In, Out>, shape, target, args, plan.team);
    });
  });
  return status;
}

}  // namespace fastdl
