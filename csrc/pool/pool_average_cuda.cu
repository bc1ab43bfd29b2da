// Mean of each window, and its gradient.
//   y = sum of the window's elements / divisor (pool.h), dx = sum of dy / divisor over the windows
//   that an element lies in
// Forward: a thread has an output, or 16 bytes of channels of one; windows of 32 taps and more of
// NCHW are shared by a warp. Backward: a thread has 16 bytes of the input's gradient, neighbouring
// columns or channels, and adds the gradients of the windows there in their order: no atomics.
// Memory: everything is read from and written to it once. Floor: bytes / copy bandwidth.
#include "pool/pool_cuda.cuh"

namespace fastdl {
namespace {

// What sums are divided by along one axis; a divisor that is given is left to the caller.
__device__ __forceinline__ int64_t divisor_at(const AveragePoolArgs& args, const PoolAxis& axis,
                                              const PoolWindow& window) {
  if (axis.kernel == 0 || !args.count_include_pad) return window.end - window.first;
  return min(axis.kernel, axis.input + axis.padding - window.start);
}

template <class A>
__device__ __forceinline__ A divisor_of(const AveragePoolArgs& args, const PoolWindow& rows,
                                        const PoolWindow& cols) {
  if (args.divisor != 0) return static_cast<A>(args.divisor);
  return static_cast<A>(divisor_at(args, args.shape.h, rows) *
                        divisor_at(args, args.shape.w, cols));
}

// Units: [outer, h.output, w.output, inner / W]
template <class T, int W>
__global__ void __launch_bounds__(kPoolThreads)
    average_pool_output_per_thread(int64_t units, AveragePoolArgs args) {
  using A = Accumulate<T>;
  const int64_t unit = unit_of_thread();
  if (unit >= units) return;
  const PoolAxis &h = args.shape.h, &w = args.shape.w;
  const int64_t inner = args.shape.inner;
  const PoolPlace place = place_of(unit, h.output, w.output, inner / W);
  const PoolWindow rows = window_at(h, place.row), cols = window_at(w, place.col);
  const A divisor = divisor_of<A>(args, rows, cols);
  A sums[W] = {};
  const T* x =
      static_cast<const T*>(args.input) + place.outer * h.input * w.input * inner + place.part * W;
  const int height = rows.end - rows.first;
  const int width = cols.end - cols.first;
  x += ((rows.start + rows.first) * w.input + cols.start + cols.first) * inner;
  for (int i = 0; i < height; ++i, x += w.input * inner) {
    const T* tap = x;
    for (int j = 0; j < width; ++j, tap += inner) {
      A values[W];
      load_vector<W>(tap).unpack(values);
#pragma unroll
      for (int k = 0; k < W; ++k) sums[k] += values[k];
    }
  }
#pragma unroll
  for (int k = 0; k < W; ++k) sums[k] /= divisor;
  Vector<T, W> y;
  y.pack(sums);
  store_vector<W>(static_cast<T*>(args.output) + unit * W, y);
}

// Units: [outer, h.output, w.output] of NCHW
template <class T>
__global__ void __launch_bounds__(kPoolThreads)
    average_pool_output_per_warp(int64_t units, AveragePoolArgs args) {
  using A = Accumulate<T>;
  const int64_t unit = unit_of_thread(kWarp);
  if (unit >= units) return;  // the whole warp
  const PoolAxis &h = args.shape.h, &w = args.shape.w;
  const PoolPlace place = place_of(unit, h.output, w.output, 1);
  const PoolWindow rows = window_at(h, place.row), cols = window_at(w, place.col);
  const int width = cols.end - cols.first;
  const int count = width * (rows.end - rows.first);
  const T* const x = static_cast<const T*>(args.input) +
                     (place.outer * h.input + rows.start + rows.first) * w.input + cols.start +
                     cols.first;
  A sum[1] = {0};
#pragma unroll 4
  for (int tap = threadIdx.x % kWarp; tap < count; tap += kWarp) {
    sum[0] += widen(x[tap / width * w.input + tap % width]);
  }
  warp_reduce<Sum>(sum);
  if (threadIdx.x % kWarp == 0) {
    static_cast<T*>(args.output)[unit] = narrow<T>(sum[0] / divisor_of<A>(args, rows, cols));
  }
}

// Units: [outer, h.input, ceil(w.input / W)] of NCHW
template <class T, int W>
__global__ void __launch_bounds__(kPoolThreads)
    average_pool_backward_columns_per_thread(int64_t units, AveragePoolArgs args) {
  using A = Accumulate<T>;
  const int64_t unit = unit_of_thread();
  if (unit >= units) return;
  const PoolAxis &h = args.shape.h, &w = args.shape.w;
  const PoolPlace place = place_of(unit, h.input, (w.input + W - 1) / W, 1);
  const int64_t begin = place.col * W, end = min(w.input, begin + W);
  const PoolCover over = cover_of(h, place.row, place.row + 1), cols = cover_of(w, begin, end);
  A sums[W] = {};
  for (int64_t i = over.first; i <= over.last; ++i) {
    const PoolWindow rows = window_at(h, i);
    const int64_t line = (place.outer * h.output + i) * w.output;
    for (int64_t j = cols.first; j <= cols.last; ++j) {
      const PoolWindow taps = window_at(w, j);
      const A grad =
          widen(static_cast<const T*>(args.input)[line + j]) / divisor_of<A>(args, rows, taps);
      const int64_t from = taps.start + taps.first - begin, to = taps.start + taps.end - begin;
#pragma unroll
      for (int k = 0; k < W; ++k) {
        if (k >= from && k < to) sums[k] += grad;
      }
    }
  }
  Vector<T, W> dx;
  dx.pack(sums);
  T* const to =
      static_cast<T*>(args.output) + (place.outer * h.input + place.row) * w.input + begin;
  if (w.input % W == 0) return store_vector<W>(to, dx);
#pragma unroll
  for (int k = 0; k < W; ++k) {
    if (begin + k < end) dx.store_element(k, to + k);
  }
}

// Units: [outer, h.input, w.input, inner / W]
template <class T, int W>
__global__ void __launch_bounds__(kPoolThreads)
    average_pool_backward_channels_per_thread(int64_t units, AveragePoolArgs args) {
  using A = Accumulate<T>;
  const int64_t unit = unit_of_thread();
  if (unit >= units) return;
  const PoolAxis &h = args.shape.h, &w = args.shape.w;
  const int64_t inner = args.shape.inner;
  const PoolPlace place = place_of(unit, h.input, w.input, inner / W);
  const PoolCover over = cover_of(h, place.row, place.row + 1);
  const PoolCover cols = cover_of(w, place.col, place.col + 1);
  A sums[W] = {};
  for (int64_t i = over.first; i <= over.last; ++i) {
    const PoolWindow rows = window_at(h, i);
    const T* const dy = static_cast<const T*>(args.input) +
                        (place.outer * h.output + i) * w.output * inner + place.part * W;
#pragma unroll 1
    for (int64_t j = cols.first; j <= cols.last; ++j) {
      const A factor = 1 / divisor_of<A>(args, rows, window_at(w, j));
      A grads[W];
      load_vector<W>(dy + j * inner).unpack(grads);
#pragma unroll
      for (int k = 0; k < W; ++k) sums[k] += grads[k] * factor;
    }
  }
  Vector<T, W> dx;
  dx.pack(sums);
  store_vector<W>(static_cast<T*>(args.output) + unit * W, dx);
}

}  // namespace

Status average_pool_forward_cuda(const AveragePoolArgs& args, const CudaTarget& target) {
  Status status;
  dispatch_dtype<CudaTypes>(args.dtype, [&]<class T> {
    constexpr int W = kVectorWidth<T>;
    const PoolShape& shape = args.shape;
    const int64_t outputs = shape.outer * shape.h.output * shape.w.output * shape.inner;
    if (is_wide(shape)) {
      status = launch_units(average_pool_output_per_warp<T>, outputs, kWarp, target, args);
    } else if (channels_fit<W>(shape, args.input, args.output)) {
      status = launch_units(average_pool_output_per_thread<T, W>, outputs / W, 1, target, args);
    } else {
      status = launch_units(average_pool_output_per_thread<T, 1>, outputs, 1, target, args);
    }
  });
  return status;
}

Status average_pool_backward_cuda(const AveragePoolArgs& args, const CudaTarget& target) {
  Status status;
  dispatch_dtype<CudaTypes>(args.dtype, [&]<class T> {
    constexpr int W = kVectorWidth<T>;
    const PoolShape& shape = args.shape;
    const int64_t inputs = shape.outer * shape.h.input * shape.w.input * shape.inner;
    if (shape.inner == 1) {
      const int64_t units = shape.outer * shape.h.input * ceil_divide(shape.w.input, int64_t{W});
      status = launch_units(average_pool_backward_columns_per_thread<T, W>, units, 1, target, args);
    } else if (channels_fit<W>(shape, args.input, args.output)) {
      status = launch_units(average_pool_backward_channels_per_thread<T, W>, inputs / W, 1, target,
                            args);
    } else {
      status =
          launch_units(average_pool_backward_channels_per_thread<T, 1>, inputs, 1, target, args);
    }
  });
  return status;
}

}  // namespace fastdl
