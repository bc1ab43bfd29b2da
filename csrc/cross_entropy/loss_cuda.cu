// nll_loss on CUDA (formulas: cross_entropy.h), and what it shares with cross_entropy: the weight
// of the targets, the sum of the losses, and the gradient times the loss's own. Sums are float64
// and taken in an order that depends on the number of rows alone: blocks sum their rows, and where
// there is more than one, a second launch sums the blocks'. nll_loss touches one element a row, a
// thread each. Scaling reads and writes the gradient once, by 16-byte vectors, or not at all: floor
// (2 bytes of gradient) / copy bandwidth, or the launch.
#include "cross_entropy/cross_entropy_cuda.cuh"

namespace fastdl {
namespace {

constexpr int kThreads = 256;
constexpr int kRowsOfThread = 16;
constexpr int kMostBlocks = 256;
constexpr int kBatch = 4;  // vectors of a thread

int blocks_of(int64_t rows) {
  const int64_t enough = ceil_divide(rows, int64_t{kThreads} * kRowsOfThread);
  return static_cast<int>(std::clamp<int64_t>(enough, 1, kMostBlocks));
}

// Where a sum goes, divided if it is complete.
struct SumOutput {
  double* parts;  // [blocks], if there is more than one
  const double* divisor;
  void* output;
  DType dtype;

  __device__ __forceinline__ void write(double total) const {
    if (divisor != nullptr) total /= *divisor;
    switch (dtype) {
      case DType::kFloat64:
        *static_cast<double*>(output) = total;
        break;
      case DType::kFloat32:
        *static_cast<float*>(output) = static_cast<float>(total);
        break;
      case DType::kBFloat16:
        *static_cast<__nv_bfloat16*>(output) = narrow<__nv_bfloat16>(static_cast<float>(total));
        break;
      case DType::kFloat16:
        *static_cast<__half*>(output) = narrow<__half>(static_cast<float>(total));
        break;
    }
  }
};

// The block's total of all threads' sums: the result, or a part of it.
__device__ __forceinline__ void finish_sum(double sum, const SumOutput& output, bool complete) {
  BlockTeam team(blockDim.x);
  double total[1] = {sum};
  team.reduce<Sum>(total);
  if (threadIdx.x != 0) return;
  if (complete) {
    output.write(total[0]);
  } else {
    output.parts[blockIdx.x] = total[0];
  }
}

template <class A>
__global__ void __launch_bounds__(kThreads)
    sum_of_losses(const A* losses, int64_t rows, SumOutput output) {
  double sum = 0;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; row < rows;
       row += step) {
    sum += losses[row];
  }
  finish_sum(sum, output, gridDim.x == 1);
}

template <class A>
__global__ void __launch_bounds__(kThreads)
    sum_of_weights(TargetWeightArgs args, SumOutput output) {
  const A* const weight = static_cast<const A*>(args.weight);
  double sum = 0;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; row < args.rows;
       row += step) {
    const int64_t index = checked_target(args.target, row, args.classes, args.ignore_index);
    if (index >= 0) sum += weight == nullptr ? 1.0 : static_cast<double>(weight[index]);
  }
  finish_sum(sum, output, gridDim.x == 1);
}

__global__ void __launch_bounds__(kThreads) sum_of_parts(SumOutput output, int parts) {
  const double sum = static_cast<int>(threadIdx.x) < parts ? output.parts[threadIdx.x] : 0.0;
  finish_sum(sum, output, /*complete=*/true);
}

Status combine_parts(const SumOutput& output, int blocks, const CudaTarget& target) {
  if (blocks == 1) return {};
  const LaunchShape shape{1, kThreads};
  return launch(sum_of_parts, shape, target, output, blocks);
}

template <class T>
__global__ void __launch_bounds__(kThreads) nll_loss_row_per_thread(NllLossArgs args) {
  using A = Accumulate<T>;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row >= args.outer * args.inner) return;
  const int64_t outer = row / args.inner, inner = row % args.inner;
  const int64_t index = checked_target(args.target, row, args.classes, args.ignore_index);
  const A weight =
      args.weight == nullptr || index < 0 ? A(1) : static_cast<const A*>(args.weight)[index];
  if (args.grad_input == nullptr) {
    A loss = 0;
    if (index >= 0) {
      const int64_t at =
          outer * args.outer_stride + inner * args.inner_stride + index * args.class_stride;
      loss = -weight * A(widen(static_cast<const T*>(args.input)[at]));
    }
    static_cast<A*>(args.losses)[row] = loss;
    return;
  }
  if (index < 0) return;
  double grad = args.divisor == nullptr ? 1 : 1 / *args.divisor;
  grad *= static_cast<const A*>(args.grad_output)[args.grad_output_of_rows ? row : 0];
  static_cast<T*>(args.grad_input)[(outer * args.classes + index) * args.inner + inner] =
      narrow<T>(-weight * static_cast<A>(grad));
}

Status launch_nll_loss(const NllLossArgs& args, const CudaTarget& target) {
  Status status;
  const LaunchShape shape{ceil_divide(args.outer * args.inner, kThreads), kThreads};
  dispatch_dtype<CudaTypes>(args.dtype, [&]<class T> {
    status = launch(nll_loss_row_per_thread<T>, shape, target, args);
  });
  return status;
}

template <class T>
__global__ void __launch_bounds__(kThreads) scale_vectors(ScaleGradientArgs args) {
  using A = Accumulate<T>;
  constexpr int W = kVectorWidth<T>;
  const A factor = *static_cast<const A*>(args.factor);
  if (factor == 1) return;
  T* const gradient = static_cast<T*>(args.gradient);
  const RowVectors<W, int64_t> vectors(args.count, shift_of<W>(gradient));
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * (kBatch * kThreads) + threadIdx.x;
  Vector<T, W> x[kBatch];
#pragma unroll
  for (int k = 0; k < kBatch; ++k) {
    x[k] = vectors.load_before(vectors.count(), gradient, begin + k * kThreads, 0);
  }
#pragma unroll
  for (int k = 0; k < kBatch; ++k) {
    if (begin + k * kThreads >= vectors.count()) break;
    A values[W];
    x[k].unpack(values);
#pragma unroll
    for (A& value : values) value *= factor;
    x[k].pack(values);
    vectors.store(gradient, begin + k * kThreads, x[k]);
  }
}

}  // namespace

size_t loss_scratch_cuda(int64_t rows) {
  const int blocks = blocks_of(rows);
  return blocks == 1 ? 0 : blocks * sizeof(double);
}

Status target_weight_cuda(const TargetWeightArgs& args, const CudaTarget& target) {
  const int blocks = blocks_of(args.rows);
  const SumOutput output{static_cast<double*>(args.scratch), nullptr, args.total, DType::kFloat64};
  const LaunchShape shape{blocks, kThreads};
  const Status status = args.dtype == DType::kFloat64
                            ? launch(sum_of_weights<double>, shape, target, args, output)
                            : launch(sum_of_weights<float>, shape, target, args, output);
  return status.ok() ? combine_parts(output, blocks, target) : status;
}

Status loss_sum_cuda(const LossSumArgs& args, const CudaTarget& target) {
  const int blocks = blocks_of(args.rows);
  const SumOutput output{static_cast<double*>(args.scratch), args.divisor, args.output,
                         args.output_dtype};
  const LaunchShape shape{blocks, kThreads};
  const Status status = args.dtype == DType::kFloat64
                            ? launch(sum_of_losses<double>, shape, target,
                                     static_cast<const double*>(args.losses), args.rows, output)
                            : launch(sum_of_losses<float>, shape, target,
                                     static_cast<const float*>(args.losses), args.rows, output);
  return status.ok() ? combine_parts(output, blocks, target) : status;
}

Status nll_loss_forward_cuda(const NllLossArgs& args, const CudaTarget& target) {
  return launch_nll_loss(args, target);
}

Status nll_loss_backward_cuda(const NllLossArgs& args, const CudaTarget& target) {
  return launch_nll_loss(args, target);
}

Status scale_gradient_cuda(const ScaleGradientArgs& args, const CudaTarget& target) {
  if (args.count == 0) return {};
  Status status;
  dispatch_dtype<CudaTypes>(args.dtype, [&]<class T> {
    constexpr int W = kVectorWidth<T>;
    const int64_t vectors = ceil_divide(args.count, W) + 1;  // they may begin off 16 bytes
    const LaunchShape shape{ceil_divide(vectors, int64_t{kBatch} * kThreads), kThreads};
    status = launch(scale_vectors<T>, shape, target, args);
  });
  return status;
}

}  // namespace fastdl
