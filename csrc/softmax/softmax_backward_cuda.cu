// The gradients of softmax, log_softmax and softmin of contiguous rows on CUDA.
//   softmax: dx_i = y_i (dy_i - sum_j dy_j y_j), negated for softmin
//   log_softmax: dx_i = dy_i - exp(y_i) sum_j dy_j
// The parts of a row and who holds them are those of softmax_forward_cuda.cu, with half as many
// vectors a thread since there are two inputs: dy and y are read once and dx is written once for
// rows up to 512 columns of float32 by lanes of a warp, 12 thousand by a block, 98 thousand by a
// cluster. Longer rows are split over blocks, which read dy and y twice.
// Floor: (2 bytes of output + bytes of input) / copy bandwidth.
#include "softmax/softmax_cuda.cuh"

namespace fastdl {
namespace {

constexpr int kHeld = 4;   // vectors of each of the two inputs that a thread holds, at most
constexpr int kBatch = 2;  // that a thread of the split kernels loads at a time

// What is summed over a row, and the gradient of an element given that sum.
template <class Out, class A>
struct Gradient {
  bool logarithm;
  A sign;

  __device__ __forceinline__ explicit Gradient(SoftmaxKind kind)
      : logarithm(kind == SoftmaxKind::kLogSoftmax), sign(sign_of(kind)) {}
  __device__ __forceinline__ A term(A grad, A y) const { return logarithm ? grad : grad * y; }
  __device__ __forceinline__ A operator()(A grad, A y, A sum) const {
    return logarithm ? grad - exponential<Out>(y) * sum : sign * y * (grad - sum);
  }
};

template <class Team, int K, class In, class Out>
__global__ void __launch_bounds__(Team::max_threads(sizeof(In) == 8), Team::kMinBlocks)
    softmax_backward_row(SoftmaxBackwardArgs args, int team_size) {
  using A = Accumulate<In>;
  constexpr int W = kVectorWidth<In, Out>;
  Team team(team_size);
  const int64_t row = team.row();
  const Out* const grad_output = static_cast<const Out*>(args.grad_output) + row * args.size;
  const Out* const output = static_cast<const Out*>(args.output) + row * args.size;
  In* const grad_input = static_cast<In*>(args.grad_input) + row * args.size;
  const RowVectors<W> vectors(row < args.outer ? args.size : 0, shift_of<W>(output));
  const Gradient<Out, A> gradient(args.kind);

  Vector<Out, W> dy[K], y[K];
#pragma unroll
  for (int k = 0; k < K; ++k) {
    dy[k] = vectors.load(grad_output, k * team.size() + team.rank(), 0);
    y[k] = vectors.load(output, k * team.size() + team.rank(), 0);
  }
  A sum[1] = {0};
#pragma unroll
  for (int k = 0; k < K; ++k) {
    A grads[W], values[W];
    dy[k].unpack(grads);
    y[k].unpack(values);
#pragma unroll
    for (int i = 0; i < W; ++i) sum[0] += gradient.term(grads[i], values[i]);
  }
  team.template reduce<Sum>(sum);
  keep_packed(dy);
  keep_packed(y);
#pragma unroll
  for (int k = 0; k < K; ++k) {
    A grads[W], values[W];
    dy[k].unpack(grads);
    y[k].unpack(values);
#pragma unroll
    for (int i = 0; i < W; ++i) grads[i] = gradient(grads[i], values[i], sum[0]);
    Vector<In, W> dx;
    dx.pack(grads);
    vectors.store(grad_input, k * team.size() + team.rank(), dx);
  }
}

// Sums a part of a row, or (the second launch) combines the parts' sums and writes its part of dx.
template <class In, class Out, bool kWrite>
__global__ void __launch_bounds__(256) softmax_backward_split(SoftmaxBackwardArgs args, int parts) {
  using A = Accumulate<In>;
  constexpr int W = kVectorWidth<In, Out>;
  BlockTeam team(blockDim.x);
  const int64_t row = blockIdx.x / parts;
  const Out* const grad_output = static_cast<const Out*>(args.grad_output) + row * args.size;
  const Out* const output = static_cast<const Out*>(args.output) + row * args.size;
  In* const grad_input = static_cast<In*>(args.grad_input) + row * args.size;
  A* const sums = static_cast<A*>(args.scratch);
  const RowVectors<W, int64_t> vectors(args.size, shift_of<W>(output));
  const PartOfRow part(vectors.count(), blockIdx.x % parts, parts);
  const Gradient<Out, A> gradient(args.kind);
  A sum[1] = {0};
  if (kWrite) {
    if (static_cast<int>(threadIdx.x) < parts) sum[0] = sums[row * parts + threadIdx.x];
    team.reduce<Sum>(sum);
  }
  for (int64_t v = part.begin + threadIdx.x; v < part.end; v += kBatch * blockDim.x) {
    Vector<Out, W> dy[kBatch], y[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      dy[k] = vectors.load_before(part.end, grad_output, v + k * blockDim.x, 0);
      y[k] = vectors.load_before(part.end, output, v + k * blockDim.x, 0);
    }
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      if (v + k * blockDim.x >= part.end) break;
      A grads[W], values[W];
      dy[k].unpack(grads);
      y[k].unpack(values);
#pragma unroll
      for (int i = 0; i < W; ++i) {
        if (kWrite) {
          grads[i] = gradient(grads[i], values[i], sum[0]);
        } else {
          sum[0] += gradient.term(grads[i], values[i]);
        }
      }
      if (!kWrite) continue;
      Vector<In, W> dx;
      dx.pack(grads);
      vectors.store(grad_input, v + k * blockDim.x, dx);
    }
  }
  if (!kWrite) {
    team.reduce<Sum>(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum[0];
  }
}

template <class In, class Out>
bool has_same_shift(const SoftmaxBackwardArgs& args) {
  constexpr int W = kVectorWidth<In, Out>;
  const int shift = shift_of<W>(static_cast<const Out*>(args.output));
  return shift == shift_of<W>(static_cast<const Out*>(args.grad_output)) &&
         shift == shift_of<W>(static_cast<const In*>(args.grad_input));
}

template <class In, class Out>
RowPlan choose_plan(const SoftmaxBackwardArgs& args, const CudaTarget& target) {
  constexpr int W = kVectorWidth<In, Out>;
  const int shift = shift_of<W>(static_cast<const Out*>(args.output));
  return choose_row_plan(args.outer, vectors_of_row(args.size, shift, W), kHeld, sizeof(In) == 8,
                         target);
}

template <class In, class Out>
Status launch_split(const SoftmaxBackwardArgs& args, const RowPlan& plan,
                    const CudaTarget& target) {
  const LaunchShape shape{plan.blocks, plan.threads};
  const Status status =
      launch(softmax_backward_split<In, Out, false>, shape, target, args, plan.parts);
  if (!status.ok()) return status;
  return launch(softmax_backward_split<In, Out, true>, shape, target, args, plan.parts);
}

}  // namespace

size_t softmax_backward_scratch_cuda(const SoftmaxBackwardArgs& args, const CudaTarget& target) {
  size_t bytes = 0;
  if (args.inner != 1) return bytes;
  dispatch_dtype_pair<CudaTypes>(args.input_dtype, args.output_dtype, [&]<class In, class Out> {
    const RowPlan plan = choose_plan<In, Out>(args, target);
    if (plan.kind == RowTeam::kSplit) bytes = plan.blocks * sizeof(Accumulate<In>);
  });
  return bytes;
}

Status softmax_backward_cuda(const SoftmaxBackwardArgs& args, const CudaTarget& target) {
  if (args.outer * args.size * args.inner == 0) return {};
  if (args.inner != 1) return softmax_backward_columns_cuda(args, target);
  Status status;
  dispatch_dtype_pair<CudaTypes>(args.input_dtype, args.output_dtype, [&]<class In, class Out> {
    const RowPlan plan = choose_plan<In, Out>(args, target);
    if (!has_same_shift<In, Out>(args)) {
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
      return launch(softmax_backward_row<Team, K, In, Out>, shape, target, args, plan.team);
    });
  });
  return status;
}

}  // namespace fastdl
