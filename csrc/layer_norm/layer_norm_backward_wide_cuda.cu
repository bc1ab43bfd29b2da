// The gradients of layer_norm and rms_norm on CUDA for rows that no block or cluster can hold.
// Formulas: layer_norm_backward_cuda.cu. Three launches: the two sums of each row, by parts of a
// row; dx, from these; the weight gradients of every tasks-th row, a vector of columns a thread.
// x and dy are read three times, dx is written once.
// Floor: (6 inputs + 1 output) / copy bandwidth, less what is still in the cache.
#include "layer_norm/layer_norm_cuda.cuh"

namespace fastdl {
namespace {

// The two sums of a part of a row, or (the second launch) dx of that part.
template <int W, class T, class P, bool kWrite>
__global__ void __launch_bounds__(kNormSplitThreads)
    norm_backward_split(NormBackwardArgs args, int parts) {
  using A = Accumulate<T>;
  BlockTeam team(blockDim.x);
  const int64_t row = blockIdx.x / parts, start = row * args.cols;
  const PartOfRow part(args.cols / W, blockIdx.x % parts, parts);
  const bool centred = args.kind == NormKind::kLayerNorm;
  const A mean = centred ? static_cast<const A*>(args.mean)[row] : A(0);
  const A rstd = static_cast<const A*>(args.rstd)[row], of_cols = 1 / static_cast<A>(args.cols);
  A* const of_parts = static_cast<A*>(args.scratch);
  A products[2] = {0, 0};
  if (kWrite) {
    if (static_cast<int>(threadIdx.x) < parts) {
      products[0] = of_parts[2 * (row * parts + threadIdx.x)];
      products[1] = of_parts[2 * (row * parts + threadIdx.x) + 1];
    }
    team.reduce<Sum>(products);
  }
  const A mean_g = centred ? products[0] * of_cols : A(0), mean_gx = products[1] * of_cols;
#pragma unroll 2
  for (int64_t v = part.begin + threadIdx.x; v < part.end; v += blockDim.x) {
    A values[W], grads[W], weight[W];
    load_vector<W>(static_cast<const T*>(args.input) + start + W * v).unpack(values);
    load_vector<W>(static_cast<const T*>(args.grad_output) + start + W * v).unpack(grads);
    load_parameter<P>(args.weight, W * v, 1, weight);
#pragma unroll
    for (int i = 0; i < W; ++i) {
      const A g = grads[i] * weight[i], normalised = (values[i] - mean) * rstd;
      if (kWrite) {
        grads[i] = rstd * (g - mean_g - normalised * mean_gx);
      } else {
        products[0] += g;
        products[1] += g * normalised;
      }
    }
    if (!kWrite) continue;
    Vector<T, W> dx;
    dx.pack(grads);
    store_vector(static_cast<T*>(args.grad_input) + start + W * v, dx);
  }
  if (!kWrite) {
    team.reduce<Sum>(products);
    if (threadIdx.x == 0) {
      of_parts[2 * static_cast<int64_t>(blockIdx.x)] = products[0];
      of_parts[2 * static_cast<int64_t>(blockIdx.x) + 1] = products[1];
    }
  }
}

// The weight gradients of every tasks-th row, for one vector of columns a thread.
template <int W, class T>
__global__ void __launch_bounds__(kNormSplitThreads)
    norm_backward_columns(NormBackwardArgs args, int64_t tiles) {
  using A = Accumulate<T>;
  const int64_t v = blockIdx.x % tiles * blockDim.x + threadIdx.x, task = blockIdx.x / tiles;
  if (W * v >= args.cols) return;
  const bool centred = args.kind == NormKind::kLayerNorm;
  A of_weight[W] = {}, of_bias[W] = {};
#pragma unroll 4
  for (int64_t row = task; row < args.rows; row += args.tasks) {
    const int64_t at = row * args.cols + W * v;
    A values[W], grads[W];
    load_vector<W>(static_cast<const T*>(args.input) + at).unpack(values);
    load_vector<W>(static_cast<const T*>(args.grad_output) + at).unpack(grads);
    const A mean = centred ? static_cast<const A*>(args.mean)[row] : A(0);
    const A rstd = static_cast<const A*>(args.rstd)[row];
#pragma unroll
    for (int i = 0; i < W; ++i) {
      of_weight[i] += grads[i] * ((values[i] - mean) * rstd);
      of_bias[i] += grads[i];
    }
  }
  A* const partial = static_cast<A*>(args.partial_sums) + 2 * args.cols * task;
#pragma unroll
  for (int i = 0; i < W; ++i) {
    partial[W * v + i] = of_weight[i];
    partial[args.cols + W * v + i] = of_bias[i];
  }
}

template <int W, class T, class P>
Status launch_wide(const NormBackwardArgs& args, int parts, const CudaTarget& target) {
  const LaunchShape rows{args.rows * parts, kNormSplitThreads};
  Status status;
  if (args.grad_input != nullptr) {
    status = launch(norm_backward_split<W, T, P, false>, rows, target, args, parts);
    if (!status.ok()) return status;
    status = launch(norm_backward_split<W, T, P, true>, rows, target, args, parts);
  }
  if (!status.ok() || (args.grad_weight == nullptr && args.grad_bias == nullptr)) return status;
  const int64_t tiles = ceil_divide(args.cols / W, kNormSplitThreads);
  const LaunchShape columns{tiles * args.tasks, kNormSplitThreads};
  return launch(norm_backward_columns<W, T>, columns, target, args, tiles);
}

}  // namespace

Status norm_backward_wide_cuda(const NormBackwardArgs& args, int parts, bool aligned,
                               const CudaTarget& target) {
  Status status;
  dispatch_norm(args, [&]<class T, class P> {
    status = aligned ? launch_wide<kVectorWidth<T>, T, P>(args, parts, target)
                     : launch_wide<1, T, P>(args, parts, target);
  });
  return status;
}

}  // namespace fastdl
