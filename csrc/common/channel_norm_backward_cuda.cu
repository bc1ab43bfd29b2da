// batch_norm and group_norm on CUDA, backward. Formulas: batch_norm_backward_cpu.cpp and
// group_norm_backward_cpu.cpp. Work is spread as in channel_norm_forward_cuda.cu: one kernel adds
// g and g (x - mean) over parts of columns, a small one with a warp for each statistic and each
// channel turns these sums, in a fixed order, into the parameters' gradients and two factors, and
// the third one reads dy and x again and writes dx (5 moves of memory where they do not fit the
// cache; 3 in evaluation without parameters). Floor: bytes moved / copy bandwidth.
#include "common/channel_norm_cuda.cuh"

namespace fastdl {
namespace {

template <class A>
struct GradientSums {
  A sum, product;

  __device__ __forceinline__ void add(const GradientSums& other) {
    sum += other.sum;
    product += other.product;
  }
  __device__ __forceinline__ GradientSums from_lane_xor(int offset) const {
    return {__shfl_xor_sync(kAllLanes, sum, offset), __shfl_xor_sync(kAllLanes, product, offset)};
  }
};

// Gradients g of the next vectors, and their x - mean
template <class T, int W>
struct GradientVectors {
  using A = Accumulate<T>;
  Vector<T, W> grad[kInFlight], x[kInFlight], activated[kInFlight];

  __device__ __forceinline__ void load(const ChannelTensors& tensors,
                                       const int64_t (&positions)[kInFlight], int count) {
    load_vectors(tensors.grad_output, positions, count, grad);
    load_vectors(tensors.input, positions, count, x);
    if (tensors.activated != nullptr) load_vectors(tensors.activated, positions, count, activated);
  }
  __device__ __forceinline__ void unpack(const ChannelTensors& tensors, int k,
                                         const Columns<A, W>& columns, A (&grads)[W],
                                         A (&centred)[W]) const {
    A outputs[W];
    grad[k].unpack(grads);
    x[k].unpack(centred);
    if (tensors.activated != nullptr) activated[k].unpack(outputs);
#pragma unroll
    for (int i = 0; i < W; ++i) {
      centred[i] -= columns.mean[i];
      if (!tensors.relu) continue;
      const A output = tensors.activated != nullptr
                           ? outputs[i]
                           : fma(centred[i], columns.scale[i], columns.shift[i]);
      if (output <= 0) grads[i] = 0;
    }
  }
};

template <class T, int W>
__global__ void __launch_bounds__(kChannelThreads)
    channel_gradient_sums_of_part(ChannelTensors tensors, ChannelWalk walk, void* sums) {
  using A = Accumulate<T>;
  Walker walker(walk);
  const Columns<A, W> columns(tensors, walk, walker);
  GradientSums<A> all[W] = {};
  while (walker.left > 0) {
    int64_t positions[kInFlight];
    const int count = walker.next(walk, positions);
    GradientVectors<T, W> vectors;
    vectors.load(tensors, positions, count);
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      if (k >= count) continue;
      A grads[W], centred[W];
      vectors.unpack(tensors, k, columns, grads, centred);
#pragma unroll
      for (int i = 0; i < W; ++i) all[i].add({grads[i], grads[i] * centred[i]});
    }
  }
  combine_team(walk, all);
  write_team(walk, walker, all, sums);
}

// A warp has a statistic, or a channel.
template <class A>
__global__ void __launch_bounds__(kChannelThreads) channel_factors_of_sums(ChannelFactors args) {
  const auto* const sums = static_cast<const GradientSums<A>*>(args.sums);
  const A* const rstd = static_cast<const A*>(args.rstd);
  const int lane = threadIdx.x % kWarp;
  const int64_t each = args.columns_of_statistic, statistics = args.columns / each;
  const int64_t unit =
      static_cast<int64_t>(blockIdx.x) * (kChannelThreads / kWarp) + threadIdx.x / kWarp;
  const bool is_statistic = unit < statistics, exists = unit < statistics + args.channels;
  const int64_t channel = unit - statistics, samples = args.columns / args.channels;
  const int64_t items = exists ? (is_statistic ? each : samples) * args.parts : 0;
  A all[2] = {0, 0};
  for (int64_t i = lane; i < items; i += kWarp) {
    const int64_t item = i / args.parts;
    const int64_t column = is_statistic ? unit * each + item : item * args.channels + channel;
    const GradientSums<A> of_part = sums[i % args.parts * args.columns + column];
    const A weight = parameter<A>(args.weight, args.weight_dtype, column % args.channels, 1);
    all[0] += is_statistic ? weight * of_part.sum : of_part.sum;
    all[1] += of_part.product * (is_statistic ? weight : rstd[column / each]);
  }
  warp_reduce<Sum>(all);
  if (!exists || lane > 0) return;
  if (!is_statistic) {
    set_parameter(args.grad_bias, args.weight_dtype, channel, all[0]);
    set_parameter(args.grad_weight, args.weight_dtype, channel, all[1]);
  } else if (args.pull != nullptr) {
    const A scale = rstd[unit], share = A(1) / static_cast<A>(args.count);
    static_cast<A*>(args.offset)[unit] = -all[0] * share * scale;
    static_cast<A*>(args.pull)[unit] = -all[1] * share * scale * scale * scale;
  }
}

template <class T, int W>
__global__ void __launch_bounds__(kChannelThreads)
    channel_differentiate_part(ChannelTensors tensors, ChannelWalk walk) {
  using A = Accumulate<T>;
  Walker walker(walk);
  const Columns<A, W> columns(tensors, walk, walker);
  A pull[W] = {}, offset[W] = {};
  if (tensors.pull != nullptr && walker.exists) {
#pragma unroll
    for (int i = 0; i < W; ++i) {
      const int64_t column = columns.column_of(walk, i);
      pull[i] = Columns<A, W>::statistic(tensors.pull, tensors, column);
      offset[i] = Columns<A, W>::statistic(tensors.offset, tensors, column);
    }
  }
  while (walker.left > 0) {
    int64_t positions[kInFlight];
    const int count = walker.next(walk, positions);
    GradientVectors<T, W> vectors;
    vectors.load(tensors, positions, count);
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      if (k >= count) continue;
      A grads[W], centred[W];
      vectors.unpack(tensors, k, columns, grads, centred);
      Vector<T, W> out;
      if (tensors.grad_residual != nullptr) {
        out.pack(grads);
        store_vector(static_cast<T*>(tensors.grad_residual) + positions[k], out);
      }
      if (tensors.grad_input == nullptr) continue;
#pragma unroll
      for (int i = 0; i < W; ++i) {
        grads[i] = fma(grads[i], columns.scale[i], fma(centred[i], pull[i], offset[i]));
      }
      out.pack(grads);
      store_vector(static_cast<T*>(tensors.grad_input) + positions[k], out);
    }
  }
}

}  // namespace

size_t channel_sums_bytes(const ChannelWalk& walk, DType dtype) {
  return walk.parts * walk.columns * 2 * (dtype == DType::kFloat64 ? 8 : 4);
}

Status channel_gradient_sums(const ChannelTensors& tensors, const ChannelWalk& walk, void* sums,
                             const CudaTarget& target) {
  Status status;
  dispatch_vectors(tensors.dtype, walk, [&]<class T, int W> {
    status =
        launch(channel_gradient_sums_of_part<T, W>, shape_of(walk), target, tensors, walk, sums);
  });
  return status;
}

Status channel_gradient_factors(const ChannelFactors& args, const CudaTarget& target) {
  const int64_t units = args.columns / args.columns_of_statistic + args.channels;
  const auto kernel = args.dtype == DType::kFloat64 ? channel_factors_of_sums<double>
                                                    : channel_factors_of_sums<float>;
  return launch(kernel, shape_of_warps(units), target, args);
}

Status channel_differentiate(const ChannelTensors& tensors, const ChannelWalk& walk,
                             const CudaTarget& target) {
  Status status;
  dispatch_vectors(tensors.dtype, walk, [&]<class T, int W> {
    status = launch(channel_differentiate_part<T, W>, shape_of(walk), target, tensors, walk);
  });
  return status;
}

}  // namespace fastdl
