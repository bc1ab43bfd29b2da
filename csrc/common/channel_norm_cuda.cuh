// What the forward and the backward kernels of batch_norm and group_norm on CUDA share.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/channel_norm_cuda.h"
#include "common/dispatch.h"
#include "common/launch.cuh"
#include "common/reduce.cuh"
#include "common/vector_io.cuh"

namespace fastdl {

inline constexpr int kChannelThreads = 256;
inline constexpr int kInFlight = 4;  // vectors that a thread loads at once

// A thread's way over its part
struct Walker {
  int64_t base, left, run, offset, step_runs, step_offset;
  int64_t column;  // of the first element of each vector
  int64_t part;
  int rank, lane, groups;
  bool exists;

  __device__ __forceinline__ explicit Walker(const ChannelWalk& walk) {
    rank = threadIdx.x % walk.team;
    lane = rank % walk.lanes;
    groups = walk.team / walk.lanes;
    const int64_t unit =
        static_cast<int64_t>(blockIdx.x) * (blockDim.x / walk.team) + threadIdx.x / walk.team;
    const int64_t tile = unit / walk.parts, total = walk.runs * walk.run_vectors;
    part = unit % walk.parts;
    column = walk.by_rows ? (tile * walk.lanes + lane) * walk.width : tile;
    exists = tile < walk.tiles && (!walk.by_rows || tile * walk.lanes + lane < walk.vectors);
    base = tile * walk.tile_stride + static_cast<int64_t>(lane) * walk.width;
    const int64_t first = total * part / walk.parts + rank / walk.lanes;
    const int64_t end = total * (part + 1) / walk.parts;
    left = exists && first < end ? (end - first + groups - 1) / groups : 0;
    run = first / walk.run_vectors;
    offset = first % walk.run_vectors;
    step_runs = groups / walk.run_vectors;
    step_offset = groups % walk.run_vectors;
  }

  // The positions of up to kInFlight vectors; gives how many there are.
  __device__ __forceinline__ int next(const ChannelWalk& walk, int64_t (&positions)[kInFlight]) {
    const int count = static_cast<int>(min(left, static_cast<int64_t>(kInFlight)));
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      positions[k] = base + run * walk.run_stride + offset * walk.width;
      run += step_runs;
      offset += step_offset;
      if (offset >= walk.run_vectors) {
        offset -= walk.run_vectors;
        ++run;
      }
    }
    left -= count;
    return count;
  }
};

template <class T, int W>
__device__ __forceinline__ void load_vectors(const void* data,
                                             const int64_t (&positions)[kInFlight], int count,
                                             Vector<T, W> (&vectors)[kInFlight]) {
#pragma unroll
  for (int k = 0; k < kInFlight; ++k) {
    if (k < count) vectors[k] = load_vector<W>(static_cast<const T*>(data) + positions[k]);
  }
}

template <class A>
__device__ __forceinline__ A parameter(const void* data, DType dtype, int64_t i, A otherwise) {
  if (data == nullptr) return otherwise;
  switch (dtype) {
    case DType::kFloat32:
      return static_cast<A>(static_cast<const float*>(data)[i]);
    case DType::kFloat64:
      return static_cast<A>(static_cast<const double*>(data)[i]);
    case DType::kBFloat16:
      return widen(static_cast<const __nv_bfloat16*>(data)[i]);
    case DType::kFloat16:
      return widen(static_cast<const __half*>(data)[i]);
  }
  return otherwise;
}

template <class A>
__device__ __forceinline__ void set_parameter(void* data, DType dtype, int64_t i, A value) {
  if (data == nullptr) return;
  switch (dtype) {
    case DType::kFloat32:
      static_cast<float*>(data)[i] = static_cast<float>(value);
      break;
    case DType::kFloat64:
      static_cast<double*>(data)[i] = static_cast<double>(value);
      break;
    case DType::kBFloat16:
      static_cast<__nv_bfloat16*>(data)[i] = narrow<__nv_bfloat16>(static_cast<float>(value));
      break;
    case DType::kFloat16:
      static_cast<__half*>(data)[i] = narrow<__half>(static_cast<float>(value));
      break;
  }
}

// Combines the threads of a team that have the same columns. The team's first `lanes` threads get
// the results, in values[0] alone where they have one column. All threads of the block must call.
template <class Value, int W>
__device__ __forceinline__ void combine_team(const ChannelWalk& walk, Value (&values)[W]) {
  __shared__ Value of_warps[kChannelThreads / kWarp][kMaxLanes * W];
  const int lane = threadIdx.x % walk.lanes;
  if (!walk.by_rows) {
#pragma unroll
    for (int i = 1; i < W; ++i) values[0].add(values[i]);
    for (int offset = 1; offset < kWarp; offset *= 2) {
      values[0].add(values[0].from_lane_xor(offset));
    }
  } else {
    for (int offset = walk.lanes; offset < kWarp; offset *= 2) {
#pragma unroll
      for (int i = 0; i < W; ++i) values[i].add(values[i].from_lane_xor(offset));
    }
  }
  if (walk.team == kWarp) return;
  if (static_cast<int>(threadIdx.x % kWarp) < walk.lanes) {
#pragma unroll
    for (int i = 0; i < W; ++i) of_warps[threadIdx.x / kWarp][lane * W + i] = values[i];
  }
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < walk.lanes) {
    for (int warp = 1; warp < kChannelThreads / kWarp; ++warp) {
#pragma unroll
      for (int i = 0; i < W; ++i) values[i].add(of_warps[warp][lane * W + i]);
    }
  }
}

// [parts, columns]
template <class Value, int W>
__device__ __forceinline__ void write_team(const ChannelWalk& walk, const Walker& walker,
                                           const Value (&values)[W], void* all) {
  if (!walker.exists || walker.rank >= walk.lanes) return;
  Value* const to = static_cast<Value*>(all) + walker.part * walk.columns + walker.column;
#pragma unroll
  for (int i = 0; i < W; ++i) {
    if (i == 0 || walk.by_rows) to[i] = values[i];
  }
}

// What a thread's columns have
template <class A, int W>
struct Columns {
  A mean[W], scale[W], shift[W];
  int64_t first;

  __device__ __forceinline__ Columns(const ChannelTensors& tensors, const ChannelWalk& walk,
                                     const Walker& walker)
      : first(walker.column) {
    if (!walker.exists) return;
#pragma unroll
    for (int i = 0; i < W; ++i) {
      const int64_t column = column_of(walk, i), channel = column % tensors.channels;
      mean[i] = statistic(tensors.mean, tensors, column);
      scale[i] = statistic(tensors.rstd, tensors, column) *
                 parameter<A>(tensors.weight, tensors.weight_dtype, channel, 1);
      shift[i] = parameter<A>(tensors.bias, tensors.weight_dtype, channel, 0);
    }
  }
  __device__ __forceinline__ int64_t column_of(const ChannelWalk& walk, int i) const {
    return walk.by_rows ? first + i : first;
  }
  static __device__ __forceinline__ A statistic(const void* data, const ChannelTensors& tensors,
                                                int64_t column) {
    return static_cast<const A*>(data)[column / tensors.columns_of_statistic];
  }
};

// Calls f.operator()<T, W>() with the elements' type and the width of the walk's vectors.
template <class F>
void dispatch_vectors(DType dtype, const ChannelWalk& walk, F&& f) {
  dispatch_dtype<CudaTypes>(dtype, [&]<class T> {
    walk.width == 1 ? f.template operator()<T, 1>() : f.template operator()<T, kVectorWidth<T>>();
  });
}

// A block for every kChannelThreads / walk.team parts
inline LaunchShape shape_of(const ChannelWalk& walk) {
  const int64_t teams = kChannelThreads / walk.team;
  return {.blocks = (walk.tiles * walk.parts + teams - 1) / teams, .threads = kChannelThreads};
}
// A warp for every unit
inline LaunchShape shape_of_warps(int64_t units) {
  const int64_t warps = kChannelThreads / kWarp;
  return {.blocks = (units + warps - 1) / warps, .threads = kChannelThreads};
}

}  // namespace fastdl
