// layer_norm and rms_norm on CUDA, forward.
//   layer_norm  y = (x - mean) rstd weight + bias, rstd = 1 / sqrt(var + eps)
//   rms_norm    y = x rstd weight,                 rstd = 1 / sqrt(mean(x^2) + eps)
// A row is held in registers, as 16-byte vectors, by lanes of a warp (up to 1024 columns of
// float32), a block (12 thousand, 24 where there are no clusters) or a cluster (196): the input is
// read once, the output written once; weight and bias come from the cache. The variance is taken
// about the mean, in a second pass over the registers that also finds what the mean lost in
// rounding. Longer rows, and on older GPUs those beyond a block, are split over blocks that each
// find the moments of a part; a second launch combines them (Chan et al.) and reads the input
// again. Rows that do not all begin at 16 bytes are taken element by element.
// Floor: (bytes of input + bytes of output) / copy bandwidth.
#include "layer_norm/layer_norm_cuda.cuh"

namespace fastdl {
namespace {

constexpr int kHeld = 8;  // vectors a thread holds, at most

// Mean and sum of squares about it, of the `count` elements in the team's registers; rms_norm's
// mean is 0.
template <class A>
struct Moments {
  A mean = 0;
  A rest = 0;  // what must be added to mean: the difference of a sum and its rounding
  A squares = 0;

  template <class Team, class T, int W, int K>
  __device__ __forceinline__ Moments(Team& team, Vector<T, W> (&x)[K], const bool (&exists)[K],
                                     bool centred, A count) {
    if (centred) {
      A sum[1] = {0};
#pragma unroll
      for (int k = 0; k < K; ++k) {
        A values[W];
        x[k].unpack(values);
#pragma unroll
        for (const A value : values) sum[0] += value;
      }
      team.template reduce<Sum>(sum);
      mean = sum[0] / count;
      keep_packed(x);
    }
    A sums[2] = {0, 0};
#pragma unroll
    for (int k = 0; k < K; ++k) {
      if (!exists[k]) continue;
      A values[W];
      x[k].unpack(values);
#pragma unroll
      for (const A value : values) {
        const A difference = value - mean;
        sums[0] += difference;
        sums[1] += difference * difference;
      }
    }
    team.template reduce<Sum>(sums);
    keep_packed(x);
    if (centred) rest = sums[0] / count;
    squares = sums[1] - rest * rest * count;
  }
};

// For layer_norm NaN where the squares overflow (inf - inf), never a wrong 0; rms_norm is 0 then,
// as in torch.
template <class A>
__device__ __forceinline__ A rstd_of(A squares, const NormForwardArgs& args) {
  if (args.kind == NormKind::kLayerNorm) squares = fmax(squares, A(0)) + (squares - squares);
  return rsqrt(squares / static_cast<A>(args.cols) + static_cast<A>(args.eps));
}

template <class P, int W, class T, class A>
__device__ __forceinline__ void write_vector(const NormForwardArgs& args, int64_t row,
                                             int64_t column, const Vector<T, W>& x, A mean, A rest,
                                             A rstd) {
  A values[W], weight[W], bias[W];
  x.unpack(values);
  load_parameter<P>(args.weight, column, 1, weight);
  load_parameter<P>(args.bias, column, 0, bias);
#pragma unroll
  for (int i = 0; i < W; ++i) {
    values[i] = (values[i] - mean - rest) * rstd * weight[i] + bias[i];
  }
  Vector<T, W> y;
  y.pack(values);
  keep_packed(y);  // one vector after the other: the weights of all would need more registers
  store_vector(static_cast<T*>(args.output) + row * args.cols + column, y);
}

template <class A>
__device__ __forceinline__ void write_statistics(const NormForwardArgs& args, int64_t row, A mean,
                                                 A rstd) {
  if (args.mean != nullptr) static_cast<A*>(args.mean)[row] = mean;
  if (args.rstd != nullptr) static_cast<A*>(args.rstd)[row] = rstd;
}

template <class Team, int K, int W, class T, class P>
__global__ void __launch_bounds__(Team::max_threads(sizeof(T) == 8), Team::kMinBlocks)
    norm_forward_row(NormForwardArgs args, int team_size) {
  using A = Accumulate<T>;
  Team team(team_size);
  const int64_t row = team.row();
  const T* const input = static_cast<const T*>(args.input) + row * args.cols;
  const RowVectors<W> vectors(row < args.rows ? args.cols : 0, 0);
  Vector<T, W> x[K];
  bool exists[K];
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int v = k * team.size() + team.rank();
    exists[k] = v < vectors.count();
    x[k] = vectors.load(input, v, 0);
  }
  const bool centred = args.kind == NormKind::kLayerNorm;
  const Moments<A> moments(team, x, exists, centred, static_cast<A>(args.cols));
  const A rstd = rstd_of(moments.squares, args);
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int v = k * team.size() + team.rank();
    if (exists[k]) write_vector<P>(args, row, W * v, x[k], moments.mean, moments.rest, rstd);
  }
  if (team.rank() == 0 && row < args.rows) {
    write_statistics(args, row, moments.mean + moments.rest, rstd);
  }
}

// The mean of part of a row, and the sum of squares about it.
template <class A>
struct PartMoments {
  A count, mean, squares;
};

template <int W, class T>
__global__ void __launch_bounds__(256) norm_forward_split_reduce(NormForwardArgs args, int parts) {
  using A = Accumulate<T>;
  constexpr int K = 4;
  BlockTeam team(blockDim.x);
  const int64_t row = blockIdx.x / parts;
  const T* const input = static_cast<const T*>(args.input) + row * args.cols;
  const RowVectors<W, int64_t> vectors(args.cols, 0);
  const PartOfRow part(vectors.count(), blockIdx.x % parts, parts);
  const bool centred = args.kind == NormKind::kLayerNorm;
  PartMoments<A> all{0, 0, 0};
  for (int64_t start = part.begin; start < part.end; start += K * team.size()) {
    Vector<T, W> x[K];
    bool exists[K];
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int64_t v = start + k * team.size() + team.rank();
      exists[k] = v < part.end;
      x[k] = RowVectors<W, int64_t>(W * part.end, 0).load(input, v, 0);
    }
    const A count = W * min(part.end - start, static_cast<int64_t>(K * team.size()));
    const Moments<A> moments(team, x, exists, centred, count);
    const A difference = moments.mean + moments.rest - all.mean, total = all.count + count;
    all.squares += moments.squares + difference * difference * (all.count * count / total);
    all.mean += difference * (count / total);
    all.count = total;
  }
  if (threadIdx.x == 0) static_cast<PartMoments<A>*>(args.scratch)[blockIdx.x] = all;
}

template <int W, class T, class P>
__global__ void __launch_bounds__(256) norm_forward_split_write(NormForwardArgs args, int parts) {
  using A = Accumulate<T>;
  BlockTeam team(blockDim.x);
  const int64_t row = blockIdx.x / parts;
  const T* const input = static_cast<const T*>(args.input) + row * args.cols;
  const RowVectors<W, int64_t> vectors(args.cols, 0);
  const PartOfRow part(vectors.count(), blockIdx.x % parts, parts);
  PartMoments<A> own{0, 0, 0};
  if (static_cast<int>(threadIdx.x) < parts) {
    own = static_cast<const PartMoments<A>*>(args.scratch)[row * parts + threadIdx.x];
  }
  A sum[1] = {own.count / static_cast<A>(args.cols) * own.mean};
  team.reduce<Sum>(sum);
  const A mean = sum[0], difference = own.mean - mean;
  sum[0] = own.squares + own.count * difference * difference;
  team.reduce<Sum>(sum);
  const A rstd = rstd_of(sum[0], args);
#pragma unroll 2
  for (int64_t v = part.begin + threadIdx.x; v < part.end; v += blockDim.x) {
    write_vector<P>(args, row, W * v, load_vector<W>(input + W * v), mean, A(0), rstd);
  }
  if (threadIdx.x == 0 && blockIdx.x % parts == 0) write_statistics(args, row, mean, rstd);
}

template <class T, class P>
bool is_aligned(const NormForwardArgs& args) {
  constexpr int W = kVectorWidth<T>;
  return rows_are_aligned<W, T>(args.cols, {args.input, args.output}) &&
         rows_are_aligned<W, P>(args.cols, {args.weight, args.bias});
}

template <class T, class P>
RowPlan choose_plan(const NormForwardArgs& args, const CudaTarget& target) {
  const int64_t W = is_aligned<T, P>(args) ? kVectorWidth<T> : 1;
  return choose_row_plan(args.rows, args.cols / W, kHeld, sizeof(T) == 8, target);
}

template <int W, class T, class P>
Status launch_with_width(const NormForwardArgs& args, const RowPlan& plan,
                         const CudaTarget& target) {
  const LaunchShape shape{.blocks = plan.blocks, .threads = plan.threads};
  if (plan.kind == RowTeam::kSplit) {
    const Status status = launch(norm_forward_split_reduce<W, T>, shape, target, args, plan.parts);
    if (!status.ok()) return status;
    return launch(norm_forward_split_write<W, T, P>, shape, target, args, plan.parts);
  }
  return dispatch_row_plan<kHeld, /*kOnlyHeld=*/W == 1>(plan, [&]<class Team, int K> {
    const LaunchShape row_shape{
        .blocks = plan.blocks, .threads = plan.threads, .cluster = plan.parts};
    return launch(norm_forward_row<Team, K, W, T, P>, row_shape, target, args, plan.team);
  });
}

}  // namespace

size_t norm_forward_scratch_cuda(const NormForwardArgs& args, const CudaTarget& target) {
  size_t bytes = 0;
  dispatch_norm(args, [&]<class T, class P> {
    const RowPlan plan = choose_plan<T, P>(args, target);
    if (plan.kind == RowTeam::kSplit) bytes = plan.blocks * sizeof(PartMoments<Accumulate<T>>);
  });
  return bytes;
}

Status norm_forward_cuda(const NormForwardArgs& args, const CudaTarget& target) {
  if (args.rows * args.cols == 0) return {};
  Status status;
  dispatch_norm(args, [&]<class T, class P> {
    const RowPlan plan = choose_plan<T, P>(args, target);
    status = is_aligned<T, P>(args) ? launch_with_width<kVectorWidth<T>, T, P>(args, plan, target)
                                    : launch_with_width<1, T, P>(args, plan, target);
  });
  return status;
}

}  // namespace fastdl
