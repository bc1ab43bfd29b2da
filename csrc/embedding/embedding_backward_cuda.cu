// The gradient of embedding's weight on CUDA: dw[v] = the sum of dy[i] over the i with
// index[i] = v, in the order of i; 0 where there is none.
// embedding_sort_cuda.cu makes the lists of the i of each row. Then one launch writes all rows: a
// warp has kHeld vectors of a row in registers and adds the gradients of its list, two of them on
// their way at a time. Rows with more than kLongList are left to blocks, whose warps share the list
// and add their sums in a fixed order. No float atomics: the same bits on every run.
// Memory: dy read and dw written once. Floor: these bytes / copy bandwidth.
#include <algorithm>

#include "common/dispatch.h"
#include "common/launch.cuh"
#include "common/reduce.cuh"
#include "common/row_plan.h"
#include "common/vector_io.cuh"
#include "embedding/embedding_cuda.cuh"

namespace fastdl {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;

// kHeld vectors of W elements of a row, from vector `first` on, in one lane.
template <class T, int W>
struct RowPart {
  static constexpr int kHeld = 16 / W > 4 ? 4 : 16 / W;  // at most 16 sums
  static constexpr int kElements = kHeld * kWarp * W;    // of a warp
  using A = Accumulate<T>;
  A sums[kHeld][W];
  int64_t first, dim;

  __device__ __forceinline__ RowPart(int64_t part, int64_t dim)
      : first(part * kElements + threadIdx.x % kWarp * W), dim(dim) {
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
#pragma unroll
      for (int j = 0; j < W; ++j) sums[k][j] = 0;
    }
  }

  __device__ __forceinline__ bool has(int k) const { return first + k * kWarp * W < dim; }

  // Adds the gradients of positions[begin], positions[begin + step], .. before `end`.
  __device__ __forceinline__ void add(const T* grad, const int32_t* positions, int begin, int end,
                                      int step) {
    constexpr int kAhead = 2;  // rows in flight
    for (int n = begin; n < end; n += kAhead * step) {
      Vector<T, W> loaded[kAhead][kHeld];
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        const int at = n + a * step;
        if (at >= end) break;
        const T* const row = grad + positions[at] * dim + first;
#pragma unroll
        for (int k = 0; k < kHeld; ++k) {
          if (has(k)) loaded[a][k] = load_vector<W>(row + k * kWarp * W);
        }
      }
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        if (n + a * step >= end) break;
#pragma unroll
        for (int k = 0; k < kHeld; ++k) {
          if (!has(k)) continue;
          A values[W];
          loaded[a][k].unpack(values);
#pragma unroll
          for (int j = 0; j < W; ++j) sums[k][j] += values[j];
        }
      }
    }
  }

  __device__ __forceinline__ void store(T* row) const {
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
      if (!has(k)) continue;
      Vector<T, W> packed;
      packed.pack(sums[k]);
      store_vector<W>(row + first + k * kWarp * W, packed);
    }
  }
};

template <class T, int W>
__global__ void __launch_bounds__(kThreads)
    embedding_row_part_per_warp(EmbeddingBackwardArgs args, EmbeddingLists lists, int64_t parts) {
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  const int64_t row = warp / parts;
  if (row >= args.indices.vocabulary) return;
  const int begin = lists.begins[row], end = lists.ends[row];
  if (end - begin > kLongList) return;
  RowPart<T, W> part(warp % parts, args.dim);
  part.add(static_cast<const T*>(args.grad_output), lists.positions, begin, end, 1);
  part.store(static_cast<T*>(args.grad_weight) + row * args.dim);
}

template <class T, int W>
__global__ void __launch_bounds__(kThreads)
    embedding_long_row_part_per_block(EmbeddingBackwardArgs args, EmbeddingLists lists,
                                      int64_t parts) {
  using Part = RowPart<T, W>;
  __shared__ Accumulate<T> of_warps[kWarps][Part::kHeld * W][kWarp];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t all = *lists.long_count * parts;
  for (int64_t each = blockIdx.x; each < all; each += gridDim.x) {
    const int64_t row = lists.long_rows[each / parts];
    Part part(each % parts, args.dim);
    part.add(static_cast<const T*>(args.grad_output), lists.positions, lists.begins[row] + warp,
             lists.ends[row], kWarps);
#pragma unroll
    for (int n = 0; n < Part::kHeld * W; ++n) of_warps[warp][n][lane] = part.sums[n / W][n % W];
    __syncthreads();
    if (warp == 0) {
#pragma unroll
      for (int n = 0; n < Part::kHeld * W; ++n) {
        for (int other = 1; other < kWarps; ++other) {
          part.sums[n / W][n % W] += of_warps[other][n][lane];
        }
      }
      part.store(static_cast<T*>(args.grad_weight) + row * args.dim);
    }
    __syncthreads();
  }
}

template <class T, int W>
Status write_rows(const EmbeddingBackwardArgs& args, const EmbeddingLists& lists,
                  const CudaTarget& target) {
  const int64_t parts = ceil_divide(args.dim, int64_t{RowPart<T, W>::kElements});
  const int64_t blocks = ceil_divide(args.indices.vocabulary * parts, int64_t{kWarps});
  const Status status =
      launch(embedding_row_part_per_warp<T, W>, {blocks, kThreads}, target, args, lists, parts);
  const int64_t most = args.indices.count / (kLongList + 1) * parts;
  if (!status.ok() || most == 0) return status;
  return launch(embedding_long_row_part_per_block<T, W>,
                {std::min<int64_t>(most, 4 * target.multiprocessors), kThreads}, target, args,
                lists, parts);
}

}  // namespace

size_t embedding_backward_scratch_cuda(const EmbeddingBackwardArgs& args, const CudaTarget&) {
  EmbeddingLists lists;
  return divide_embedding_scratch(args, lists);
}

Status embedding_backward_cuda(const EmbeddingBackwardArgs& args, const CudaTarget& target) {
  EmbeddingLists lists;
  divide_embedding_scratch(args, lists);
  Status status = make_embedding_lists(args, lists, target);
  if (!status.ok()) return status;
  dispatch_dtype<CudaTypes>(args.dtype, [&]<class T> {
    constexpr int W = kVectorWidth<T>;
    const bool aligned = args.dim % W == 0 &&
                         shift_of<W>(static_cast<const T*>(args.grad_output)) == 0 &&
                         shift_of<W>(static_cast<const T*>(args.grad_weight)) == 0;
    status =
        aligned ? write_rows<T, W>(args, lists, target) : write_rows<T, 1>(args, lists, target);
  });
  return status;
}

}  // namespace fastdl
