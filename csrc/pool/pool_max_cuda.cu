// Maximum of each window with its offset in the window, the gradient, and the maxima's indices.
//   The rule is torch's: in the order of rows the first of equal maxima; a NaN is taken whatever
//   was before it. A window of only -inf has its first element inside.
// Forward: a thread has an output, or 16 bytes of channels of one; its neighbours in the warp read
// the same lines, so that the taps come from the first cache. Windows of 32 taps and more of NCHW
// are shared by a warp, whose lanes take every 32nd tap and then agree.
// Backward: a thread has 16 bytes of the input's gradient, neighbouring columns or channels, and
// adds the gradients of the windows there whose offset names one of its elements: no atomics, and
// the same order of sums in every run.
// Memory: everything is read from and written to it once. Floor: bytes of values, and one of each
// offset, / copy bandwidth.
#include "pool/pool_cuda.cuh"

namespace fastdl {
namespace {

// What offsets mean
struct PoolTaps {
  int in_row;         // of the widest window
  bool byte_offsets;  // or int32

  explicit PoolTaps(const PoolShape& shape)
      : in_row(static_cast<int>(longest_window(shape.w))), byte_offsets(has_byte_offsets(shape)) {}
};

// The maximum so far, of one element
template <class A>
struct Best {
  A value;
  int offset;

  __device__ __forceinline__ void take(A other, int at) {
    if (other > value || other != other) value = other, offset = at;
  }
  // The same of two sets of elements in any order
  __device__ __forceinline__ void merge(A other, int at) {
    const bool is_nan = value != value, other_is_nan = other != other;
    const bool later = at > offset;
    const bool takes =
        other_is_nan ? !is_nan || later : !is_nan && (other > value || (other == value && !later));
    if (takes) value = other, offset = at;
  }
};

__device__ __forceinline__ void write_offset(void* offsets, int64_t at, int offset, bool bytes) {
  if (bytes) {
    static_cast<uint8_t*>(offsets)[at] = static_cast<uint8_t>(offset);
  } else {
    static_cast<int32_t*>(offsets)[at] = offset;
  }
}

__device__ __forceinline__ int read_offset(const void* offsets, int64_t at, bool bytes) {
  return bytes ? static_cast<const uint8_t*>(offsets)[at]
               : static_cast<const int32_t*>(offsets)[at];
}

// Units: [outer, h.output, w.output, inner / W]
template <class T, int W>
__global__ void __launch_bounds__(kPoolThreads)
    max_pool_output_per_thread(int64_t units, MaxPoolForwardArgs args, PoolTaps taps) {
  using A = Accumulate<T>;
  const int64_t unit = unit_of_thread();
  if (unit >= units) return;
  const PoolAxis &h = args.shape.h, &w = args.shape.w;
  const int64_t inner = args.shape.inner;
  const PoolPlace place = place_of(unit, h.output, w.output, inner / W);
  const PoolWindow rows = window_at(h, place.row), cols = window_at(w, place.col);
  const int row_taps = taps.in_row;
  Best<A> best[W];
#pragma unroll
  for (int i = 0; i < W; ++i) {
    best[i] = {-static_cast<A>(INFINITY), rows.first * row_taps + cols.first};
  }
  const T* const x =
      static_cast<const T*>(args.input) + place.outer * h.input * w.input * inner + place.part * W;
  const int64_t step = w.dilation * inner;
  for (int i = rows.first; i < rows.end; ++i) {
    const int64_t row = (rows.start + i * h.dilation) * w.input + cols.start;
    const T* tap = x + row * inner + cols.first * step;
    for (int j = cols.first; j < cols.end; ++j, tap += step) {
      A values[W];
      load_vector<W>(tap).unpack(values);
#pragma unroll
      for (int k = 0; k < W; ++k) best[k].take(values[k], i * row_taps + j);
    }
  }
  Vector<T, W> output;
  A values[W];
#pragma unroll
  for (int i = 0; i < W; ++i) values[i] = best[i].value;
  output.pack(values);
  store_vector<W>(static_cast<T*>(args.output) + unit * W, output);
  if (args.offsets == nullptr) return;
  const bool bytes = taps.byte_offsets;
  if (bytes && W > 1) {
    Vector<uint8_t, W> narrow;
#pragma unroll
    for (int i = 0; i < W; ++i) narrow.words[i] = static_cast<uint8_t>(best[i].offset);
    store_vector<W>(static_cast<uint8_t*>(args.offsets) + unit * W, narrow);
  } else {
#pragma unroll
    for (int i = 0; i < W; ++i) write_offset(args.offsets, unit * W + i, best[i].offset, bytes);
  }
}

// Units: [outer, h.output, w.output] of NCHW
template <class T>
__global__ void __launch_bounds__(kPoolThreads)
    max_pool_output_per_warp(int64_t units, MaxPoolForwardArgs args, PoolTaps taps) {
  using A = Accumulate<T>;
  const int64_t unit = unit_of_thread(kWarp);
  if (unit >= units) return;  // the whole warp
  const PoolAxis &h = args.shape.h, &w = args.shape.w;
  const PoolPlace place = place_of(unit, h.output, w.output, 1);
  const PoolWindow rows = window_at(h, place.row), cols = window_at(w, place.col);
  const int row_taps = taps.in_row;
  const int width = cols.end - cols.first;
  const int count = width * (rows.end - rows.first);
  const T* const x = static_cast<const T*>(args.input) + place.outer * h.input * w.input;
  Best<A> best{-static_cast<A>(INFINITY), rows.first * row_taps + cols.first};
#pragma unroll 4
  for (int tap = threadIdx.x % kWarp; tap < count; tap += kWarp) {
    const int i = rows.first + tap / width, j = cols.first + tap % width;
    const int64_t row = rows.start + i * h.dilation, col = cols.start + j * w.dilation;
    best.take(widen(x[row * w.input + col]), i * row_taps + j);
  }
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    const A value = __shfl_xor_sync(kAllLanes, best.value, lanes);
    best.merge(value, __shfl_xor_sync(kAllLanes, best.offset, lanes));
  }
  if (threadIdx.x % kWarp != 0) return;
  static_cast<T*>(args.output)[unit] = narrow<T>(best.value);
  if (args.offsets != nullptr) {
    write_offset(args.offsets, unit, best.offset, taps.byte_offsets);
  }
}

// Units: [outer, h.input, ceil(w.input / W)] of NCHW
template <class T, int W>
__global__ void __launch_bounds__(kPoolThreads)
    max_pool_backward_columns_per_thread(int64_t units, MaxPoolBackwardArgs args, PoolTaps taps) {
  using A = Accumulate<T>;
  const int64_t unit = unit_of_thread();
  if (unit >= units) return;
  const PoolAxis &h = args.shape.h, &w = args.shape.w;
  const PoolPlace place = place_of(unit, h.input, (w.input + W - 1) / W, 1);
  const int64_t begin = place.col * W, end = min(w.input, begin + W);
  const PoolCover rows = cover_of(h, place.row, place.row + 1), cols = cover_of(w, begin, end);
  const int row_taps = taps.in_row;
  const bool bytes = taps.byte_offsets;
  A sums[W] = {};
  for (int64_t i = rows.first; i <= rows.last; ++i) {
    const int64_t down = place.row - window_at(h, i).start;
    if (h.dilation > 1 && down % h.dilation != 0) continue;
    const int first_tap = static_cast<int>(h.dilation > 1 ? down / h.dilation : down) * row_taps;
    const int64_t line = (place.outer * h.output + i) * w.output;
    for (int64_t j = cols.first; j <= cols.last; ++j) {
      const int tap = read_offset(args.offsets, line + j, bytes) - first_tap;
      if (tap < 0 || tap >= row_taps) continue;  // in another row
      const int64_t lane = window_at(w, j).start + tap * w.dilation - begin;
      const A grad = widen(static_cast<const T*>(args.grad_output)[line + j]);
#pragma unroll
      for (int k = 0; k < W; ++k) {
        if (lane == k) sums[k] += grad;
      }
    }
  }
  Vector<T, W> dx;
  dx.pack(sums);
  T* const to =
      static_cast<T*>(args.grad_input) + (place.outer * h.input + place.row) * w.input + begin;
  if (w.input % W == 0) return store_vector<W>(to, dx);
#pragma unroll
  for (int k = 0; k < W; ++k) {
    if (begin + k < end) dx.store_element(k, to + k);
  }
}

// Units: [outer, h.input, w.input, inner / W]
template <class T, int W>
__global__ void __launch_bounds__(kPoolThreads)
    max_pool_backward_channels_per_thread(int64_t units, MaxPoolBackwardArgs args, PoolTaps taps) {
  using A = Accumulate<T>;
  const int64_t unit = unit_of_thread();
  if (unit >= units) return;
  const PoolAxis &h = args.shape.h, &w = args.shape.w;
  const int64_t inner = args.shape.inner;
  const PoolPlace place = place_of(unit, h.input, w.input, inner / W);
  const PoolCover rows = cover_of(h, place.row, place.row + 1);
  const PoolCover cols = cover_of(w, place.col, place.col + 1);
  const int row_taps = taps.in_row;
  const bool bytes = taps.byte_offsets;
  A sums[W] = {};
  for (int64_t i = rows.first; i <= rows.last; ++i) {
    const int64_t down = place.row - window_at(h, i).start;
    if (h.dilation > 1 && down % h.dilation != 0) continue;
    for (int64_t j = cols.first; j <= cols.last; ++j) {
      const int64_t right = place.col - window_at(w, j).start;
      if (w.dilation > 1 && right % w.dilation != 0) continue;
      const int tap = static_cast<int>(down / h.dilation * row_taps + right / w.dilation);
      const int64_t at = ((place.outer * h.output + i) * w.output + j) * inner + place.part * W;
      A grads[W];
      load_vector<W>(static_cast<const T*>(args.grad_output) + at).unpack(grads);
      if (bytes) {
        const auto offsets = load_vector<W>(static_cast<const uint8_t*>(args.offsets) + at);
#pragma unroll
        for (int k = 0; k < W; ++k) sums[k] += offsets.words[k] == tap ? grads[k] : A(0);
      } else {
#pragma unroll
        for (int k = 0; k < W; ++k) {
          sums[k] += read_offset(args.offsets, at + k, false) == tap ? grads[k] : A(0);
        }
      }
    }
  }
  Vector<T, W> dx;
  dx.pack(sums);
  store_vector<W>(static_cast<T*>(args.grad_input) + unit * W, dx);
}

// Units: [outer, h.output, w.output, inner]
__global__ void __launch_bounds__(kPoolThreads)
    max_pool_index_per_thread(int64_t units, MaxPoolIndicesArgs args, PoolTaps taps) {
  const int64_t unit = unit_of_thread();
  if (unit >= units) return;
  const PoolAxis &h = args.shape.h, &w = args.shape.w;
  const PoolPlace place = place_of(unit, h.output, w.output, args.shape.inner);
  const int row_taps = taps.in_row;
  const int offset = read_offset(args.offsets, unit, taps.byte_offsets);
  const int64_t row = window_at(h, place.row).start + offset / row_taps * h.dilation;
  const int64_t col = window_at(w, place.col).start + offset % row_taps * w.dilation;
  args.indices[unit] = row * w.input + col;
}

int64_t outputs_of(const PoolShape& shape) {
  return shape.outer * shape.h.output * shape.w.output * shape.inner;
}

}  // namespace

Status max_pool_forward_cuda(const MaxPoolForwardArgs& args, const CudaTarget& target) {
  Status status;
  dispatch_dtype<CudaTypes>(args.dtype, [&]<class T> {
    constexpr int W = kVectorWidth<T>;
    const int64_t outputs = outputs_of(args.shape);
    if (is_wide(args.shape)) {
      status = launch_units(max_pool_output_per_warp<T>, outputs, kWarp, target, args,
                            PoolTaps(args.shape));
    } else if (channels_fit<W>(args.shape, args.input, args.output)) {
      status = launch_units(max_pool_output_per_thread<T, W>, outputs / W, 1, target, args,
                            PoolTaps(args.shape));
    } else {
      status = launch_units(max_pool_output_per_thread<T, 1>, outputs, 1, target, args,
                            PoolTaps(args.shape));
    }
  });
  return status;
}

Status max_pool_backward_cuda(const MaxPoolBackwardArgs& args, const CudaTarget& target) {
  Status status;
  dispatch_dtype<CudaTypes>(args.dtype, [&]<class T> {
    constexpr int W = kVectorWidth<T>;
    const PoolShape& shape = args.shape;
    const int64_t inputs = shape.outer * shape.h.input * shape.w.input * shape.inner;
    if (shape.inner == 1) {
      const int64_t units = shape.outer * shape.h.input * ceil_divide(shape.w.input, int64_t{W});
      status = launch_units(max_pool_backward_columns_per_thread<T, W>, units, 1, target, args,
                            PoolTaps(args.shape));
    } else if (channels_fit<W>(shape, args.grad_output, args.grad_input)) {
      status = launch_units(max_pool_backward_channels_per_thread<T, W>, inputs / W, 1, target,
                            args, PoolTaps(args.shape));
    } else {
      status = launch_units(max_pool_backward_channels_per_thread<T, 1>, inputs, 1, target, args,
                            PoolTaps(args.shape));
    }
  });
  return status;
}

Status max_pool_indices_cuda(const MaxPoolIndicesArgs& args, const CudaTarget& target) {
  return launch_units(max_pool_index_per_thread, outputs_of(args.shape), 1, target, args,
                      PoolTaps(args.shape));
}

}  // namespace fastdl
