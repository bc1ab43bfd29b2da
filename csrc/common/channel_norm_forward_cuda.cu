// batch_norm and group_norm on CUDA, forward. Formulas: batch_norm_forward_cpu.cpp.
// A team (a warp, or a block) walks over part of a column, its threads over every team-th vector;
// channels last, threads have neighbouring columns and walk down the rows. Each has 4 vectors in
// flight. Their mean and squares join those of the ones before by Chan's formula, then do the
// threads', then the parts', all in a fixed order. The input is read twice and the output written
// once (3 moves of memory where it does not fit the cache), in evaluation read once. Between the
// two a small kernel, with a warp for each column, combines the parts. Floor: bytes moved / copy
// bandwidth.
#include "common/channel_norm_cuda.cuh"

namespace fastdl {
namespace {

constexpr int kInFlight = 4;  // vectors that a thread loads at once

template <class A>
struct Moments {
  A count, mean, squares;

  __device__ __forceinline__ void add(const Moments& other) {
    if (other.count == 0) return;
    if (count == 0) {  // what follows would multiply 0 by a square that may be infinite
      *this = other;
      return;
    }
    const A total = count + other.count, share = other.count / total;
    const A difference = other.mean - mean;
    mean += difference * share;
    squares += other.squares + difference * difference * (count * share);
    count = total;
  }
  __device__ __forceinline__ Moments from_lane_xor(int offset) const {
    return {__shfl_xor_sync(kAllLanes, count, offset), __shfl_xor_sync(kAllLanes, mean, offset),
            __shfl_xor_sync(kAllLanes, squares, offset)};
  }
};

template <class T, int W>
__global__ void __launch_bounds__(kChannelThreads, 2)
    channel_moments_of_part(ChannelTensors tensors, ChannelWalk walk, void* moments) {
  using A = Accumulate<T>;
  Walker walker(walk);
  Moments<A> all[W] = {};
  while (walker.left > 0) {
    int64_t positions[kInFlight];
    const int count = walker.next(walk, positions);
    Vector<T, W> x[kInFlight];
    load_vectors(tensors.input, positions, count, x);
    A values[kInFlight][W];
    Moments<A> few[W] = {};
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      if (k >= count) continue;
      x[k].unpack(values[k]);
#pragma unroll
      for (int i = 0; i < W; ++i) few[i].mean += values[k][i];
    }
    const A share = A(1) / static_cast<A>(count);
#pragma unroll
    for (int i = 0; i < W; ++i) {
      few[i].count = static_cast<A>(count);
      few[i].mean *= share;
#pragma unroll
      for (int k = 0; k < kInFlight; ++k) {
        const A difference = values[k][i] - few[i].mean;
        if (k < count) few[i].squares += difference * difference;
      }
      all[i].add(few[i]);
    }
  }
  combine_team(walk, all);
  write_team(walk, walker, all, moments);
}

// A warp has a column.
template <class A>
__global__ void __launch_bounds__(kChannelThreads, 2)
    channel_statistics_of_column(ChannelStatistics args) {
  const int lane = threadIdx.x % kWarp;
  const int64_t column =
      static_cast<int64_t>(blockIdx.x) * (kChannelThreads / kWarp) + threadIdx.x / kWarp;
  const bool exists = column < args.columns;
  A mean = 0, variance = 0;
  if (args.moments != nullptr) {
    const auto* const moments = static_cast<const Moments<A>*>(args.moments);
    Moments<A> all{0, 0, 0};
    for (int64_t part = lane; exists && part < args.parts; part += kWarp) {
      all.add(moments[part * args.columns + column]);
    }
    for (int offset = 1; offset < kWarp; offset *= 2) all.add(all.from_lane_xor(offset));
    mean = all.mean;
    variance = all.squares / all.count;
    if (!exists || lane > 0) return;
    const A momentum = static_cast<A>(args.momentum);
    const auto move = [&](void* running, A towards) {
      const A before = parameter<A>(running, args.weight_dtype, column, 0);
      set_parameter(running, args.weight_dtype, column,
                    momentum * towards + (1 - momentum) * before);
    };
    move(args.running_mean, mean);
    move(args.running_var, all.squares / (all.count - 1));
  } else {
    if (!exists || lane > 0) return;
    mean = parameter<A>(args.running_mean, args.weight_dtype, column, 0);
    variance = parameter<A>(args.running_var, args.weight_dtype, column, 0);
  }
  static_cast<A*>(args.mean)[column] = mean;
  static_cast<A*>(args.rstd)[column] = rsqrt(variance + static_cast<A>(args.eps));
}

template <class T, int W>
__global__ void __launch_bounds__(kChannelThreads, 2)
    channel_normalise_part(ChannelTensors tensors, ChannelWalk walk) {
  using A = Accumulate<T>;
  Walker walker(walk);
  const Columns<A, W> columns(tensors, walk, walker);
  while (walker.left > 0) {
    int64_t positions[kInFlight];
    const int count = walker.next(walk, positions);
    Vector<T, W> x[kInFlight], residual[kInFlight];
    load_vectors(tensors.input, positions, count, x);
    if (tensors.residual != nullptr) load_vectors(tensors.residual, positions, count, residual);
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      if (k >= count) continue;
      A values[W], added[W];
      x[k].unpack(values);
      if (tensors.residual != nullptr) residual[k].unpack(added);
#pragma unroll
      for (int i = 0; i < W; ++i) {
        values[i] = fma(values[i] - columns.mean[i], columns.scale[i], columns.shift[i]);
        if (tensors.residual != nullptr) values[i] += added[i];
        if (tensors.relu) values[i] = values[i] <= 0 ? A(0) : values[i];
      }
      x[k].pack(values);
      store_vector(static_cast<T*>(tensors.output) + positions[k], x[k]);
    }
  }
}

}  // namespace

size_t channel_moments_bytes(const ChannelWalk& walk, DType dtype) {
  const size_t size = dtype == DType::kFloat64 ? sizeof(Moments<double>) : sizeof(Moments<float>);
  return walk.parts * walk.columns * size;
}

Status channel_moments(const ChannelTensors& tensors, const ChannelWalk& walk, void* moments,
                       const CudaTarget& target) {
  Status status;
  dispatch_vectors(tensors.dtype, walk, [&]<class T, int W> {
    status = launch(channel_moments_of_part<T, W>, shape_of(walk), target, tensors, walk, moments);
  });
  return status;
}

Status channel_statistics(const ChannelStatistics& args, const CudaTarget& target) {
  const auto kernel = args.dtype == DType::kFloat64 ? channel_statistics_of_column<double>
                                                    : channel_statistics_of_column<float>;
  return launch(kernel, shape_of_warps(args.columns), target, args);
}

Status channel_normalise(const ChannelTensors& tensors, const ChannelWalk& walk,
                         const CudaTarget& target) {
  Status status;
  dispatch_vectors(tensors.dtype, walk, [&]<class T, int W> {
    status = launch(channel_normalise_part<T, W>, shape_of(walk), target, tensors, walk);
  });
  return status;
}

}  // namespace fastdl
