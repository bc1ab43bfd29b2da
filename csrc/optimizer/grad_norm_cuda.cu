// The total norm of gradients, and their scaling by it, on CUDA: formulas as in grad_norm_cpu.cpp.
// A thread block adds the squares of one block of kTensorBlock elements in double and leaves the
// sum; a second launch of one thread block adds these in a fixed order and finds norm and
// coefficient. Nothing is added atomically and the host waits for nothing: the scaling, or an
// optimizer's step, reads the coefficient on the GPU. The tables of tensors travel as parameters of
// the launches (960 tensors each), in which thread blocks look theirs up.
// Memory: the norm reads every gradient once, 4 bytes an element in float32; the scaling reads and
// writes it once, 8 bytes; not at all for a coefficient of 1. Floor: these / copy bandwidth.
#include <cmath>

#include "common/vector_io.cuh"
#include "optimizer/grad_norm.h"
#include "optimizer/tensor_blocks.cuh"

namespace fastdl {
namespace {

constexpr int kThreads = 256, kCombineThreads = 1024;
constexpr int kSmallPart = 64, kLargePart = 960;

template <int kCount>
using Part = TablePart<GradTensor, kCount>;

// The sum over all threads of a block, in thread 0.
__device__ __forceinline__ double block_sum(double value) {
  __shared__ double warp_sums[kWarp];
  double sum[1] = {value};
  warp_reduce<Sum>(sum);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  if (lane == 0) warp_sums[warp] = sum[0];
  __syncthreads();
  if (warp > 0) return 0;
  sum[0] = lane < static_cast<int>(blockDim.x) / kWarp ? warp_sums[lane] : 0;
  warp_reduce<Sum>(sum);
  return sum[0];
}

template <class T>
__device__ __forceinline__ double sum_of_squares(const T* data, int size) {
  constexpr int width = kVectorWidth<T>;
  const RowVectors<width> vectors(size, shift_of<width>(data));
  double sum = 0;
#pragma unroll 4
  for (int i = threadIdx.x; i < vectors.count(); i += kThreads) {
    Accumulate<T> values[width];
    vectors.load(data, i, 0).unpack(values);
#pragma unroll
    for (const double value : values) sum += value * value;
  }
  return sum;
}

template <class T>
__device__ __forceinline__ void scale_block(T* data, int size, Accumulate<T> coefficient) {
  constexpr int width = kVectorWidth<T>;
  const RowVectors<width> vectors(size, shift_of<width>(data));
#pragma unroll 4
  for (int i = threadIdx.x; i < vectors.count(); i += kThreads) {
    Accumulate<T> values[width];
    auto vector = vectors.load(data, i, 0);
    vector.unpack(values);
#pragma unroll
    for (auto& value : values) value *= coefficient;
    vector.pack(values);
    vectors.store(data, i, vector);
  }
}

// Calls call(data, size) with the elements of this thread block, of their own type.
template <int kCount, class F>
__device__ __forceinline__ void with_block(const Part<kCount>& part, int count, int64_t block,
                                           const F& call) {
  const int64_t i =
      find_tensor(count, block, [&](int64_t entry) { return part.entries[entry].first_block; });
  const GradTensor grad = part.entries[i];
  const int64_t start = (block - grad.first_block) * kTensorBlock;
  const int size = static_cast<int>(min(kTensorBlock, grad.size - start));
  switch (grad.dtype) {
    case DType::kFloat32:
      return call(static_cast<float*>(grad.data) + start, size);
    case DType::kFloat64:
      return call(static_cast<double*>(grad.data) + start, size);
    case DType::kBFloat16:
      return call(static_cast<__nv_bfloat16*>(grad.data) + start, size);
    case DType::kFloat16:
      return call(static_cast<__half*>(grad.data) + start, size);
  }
}

template <int kCount>
__global__ void __launch_bounds__(kThreads)
    grad_norm_blocks(const __grid_constant__ Part<kCount> part, int count, double* sums) {
  const int64_t block = part.entries[0].first_block + blockIdx.x;
  double sum = 0;
  with_block(part, count, block,
             [&](const auto* data, int size) { sum = sum_of_squares(data, size); });
  sum = block_sum(sum);
  if (threadIdx.x == 0) sums[block] = sum;
}

__global__ void __launch_bounds__(kCombineThreads)
    grad_norm_combine(int64_t blocks, GradNormArgs args, const float* grad_scale) {
  double total = 0;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < blocks; i += kCombineThreads) total += args.block_sums[i];
  total = block_sum(total);
  if (threadIdx.x > 0) return;
  const double norm = sqrt(total) / (grad_scale != nullptr ? *grad_scale : args.grad_scale);
  const double coefficient = args.max_norm / (norm + 1e-6);
  *args.total_norm = norm;
  *args.coefficient = coefficient > 1 ? 1 : coefficient;
}

template <int kCount>
__global__ void __launch_bounds__(kThreads)
    grad_scale_blocks(const __grid_constant__ Part<kCount> part, int count,
                      const double* coefficient) {
  const double factor = *coefficient;
  if (factor == 1) return;
  with_block(part, count, part.entries[0].first_block + blockIdx.x,
             [&]<class T>(T* data, int size) {
               scale_block(data, size, static_cast<Accumulate<T>>(factor));
             });
}

// Calls call(part, count of its tensors, shape) for each part of the table.
template <class F>
Status for_parts(const GradTensor* tensors, int64_t count, const F& call) {
  for (int64_t first = 0; first < count; first += kLargePart) {
    const int64_t size = std::min<int64_t>(kLargePart, count - first);
    const int64_t blocks = table_blocks(tensors, first + size) - tensors[first].first_block;
    const LaunchShape shape{blocks, kThreads};
    const Status status =
        size <= kSmallPart
            ? call(table_part<GradTensor, kSmallPart>(tensors, first, size), size, shape)
            : call(table_part<GradTensor, kLargePart>(tensors, first, size), size, shape);
    if (!status.ok()) return status;
  }
  return {};
}

}  // namespace

Status grad_norm_cuda(const GradNormArgs& args, const float* grad_scale, const CudaTarget& target) {
  const Status status =
      for_parts(args.tensors, args.count,
                [&]<int kCount>(const Part<kCount>& part, int64_t count, const LaunchShape& shape) {
                  return launch(grad_norm_blocks<kCount>, shape, target, part,
                                static_cast<int>(count), args.block_sums);
                });
  if (!status.ok()) return status;
  return launch(grad_norm_combine, {1, kCombineThreads}, target,
                table_blocks(args.tensors, args.count), args, grad_scale);
}

Status scale_grads_cuda(const GradTensor* tensors, int64_t count, const double* coefficient,
                        const CudaTarget& target) {
  return for_parts(
      tensors, count,
      [&]<int kCount>(const Part<kCount>& part, int64_t size, const LaunchShape& shape) {
        return launch(grad_scale_blocks<kCount>, shape, target, part, static_cast<int>(size),
                      coefficient);
      });
}

}  // namespace fastdl
