// What the forward and backward kernels of the softmax family share: how a tensor
// [outer, size, inner] is cut into rows or blocks of columns, and the recovery of types and kind.
#pragma once

#include <algorithm>

#include "common/dispatch.h"
#include "common/loops_cpu.h"
#include "common/parallel.h"
#include "softmax/softmax.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace softmax_detail {

constexpr int64_t kGrain = 16384;  // elements worth waking a thread for

// Calls f(offset, kVectors as a type, count) on all columns of [outer, size, inner], four vectors
// at a time while they fit.
template <class T, class F>
void for_columns(int64_t outer, int64_t size, int64_t inner, F&& f) {
  constexpr int64_t width = kWidth<T>, block = kLanes * width;
  const int64_t blocks = (inner + block - 1) / block;
  parallel_for(0, outer * blocks, std::max<int64_t>(1, kGrain / (size * block)),
               [&](int64_t begin, int64_t end) {
                 for (int64_t unit = begin; unit < end; ++unit) {
                   int64_t column = unit % blocks * block;
                   const int64_t offset = unit / blocks * size * inner;
                   const int64_t last = std::min(inner, column + block);
                   if (last - column == block) {
                     f(offset + column, std::integral_constant<int, kLanes>(), kWhole);
                     continue;
                   }
                   for (; column + width <= last; column += width) {
                     f(offset + column, std::integral_constant<int, 1>(), kWhole);
                   }
                   if (column < last) {
                     f(offset + column, std::integral_constant<int, 1>(), last - column);
                   }
                 }
                 finish_writes();
               });
}

// Calls f(first row, rows, vectors a row, elements of the last vector), the latter two as types
// where they can be; 0 vectors: more than kLanes.
template <class T, class F>
void for_rows(int64_t rows, int64_t size, F&& f) {
  const int64_t tail = size % kWidth<T>;
  auto with_vectors = [&]<int vectors>(int64_t first, int64_t count) {
    constexpr std::integral_constant<int, vectors> constant;
    tail == 0 ? f(first, count, constant, kWhole) : f(first, count, constant, tail);
  };
  parallel_for(0, rows, std::max<int64_t>(1, kGrain / size), [&](int64_t begin, int64_t end) {
    switch ((size + kWidth<T> - 1) / kWidth<T>) {
      case 1:
        with_vectors.template operator()<1>(begin, end - begin);
        break;
      case 2:
        with_vectors.template operator()<2>(begin, end - begin);
        break;
      case 3:
        with_vectors.template operator()<3>(begin, end - begin);
        break;
      case 4:
        with_vectors.template operator()<4>(begin, end - begin);
        break;
      default:
        f(begin, end - begin, std::integral_constant<int, 0>(), kWhole);
    }
    finish_writes();
  });
}

template <class F>
void dispatch_kind(SoftmaxKind kind, F&& call) {
  switch (kind) {
    case SoftmaxKind::kSoftmax:
      return call.template operator()<SoftmaxKind::kSoftmax>();
    case SoftmaxKind::kLogSoftmax:
      return call.template operator()<SoftmaxKind::kLogSoftmax>();
    case SoftmaxKind::kSoftmin:
      return call.template operator()<SoftmaxKind::kSoftmin>();
  }
}

// Recovers the types and the kind. Outputs past the cache are streamed, but for columns and short
// rows only when every vector written is aligned (longer rows see to that themselves).
template <class Args, class F>
void dispatch(const Args& args, const void* output, DType output_dtype, F&& call) {
  constexpr bool is_backward = std::is_same_v<Args, SoftmaxBackwardArgs>;
  dispatch_dtype_pair<CpuTypes>(args.input_dtype, args.output_dtype, [&]<class In, class Out> {
    const int64_t bytes = output_dtype == args.input_dtype ? sizeof(In) : sizeof(Out);
    const int64_t contiguous = args.inner == 1 ? args.size : args.inner;
    const bool aligned = reinterpret_cast<uintptr_t>(output) % (kWidth<In> * bytes) == 0 &&
                         contiguous % kWidth<In> == 0;
    const int64_t moved = (is_backward ? 2 * sizeof(Out) : sizeof(Out)) + sizeof(In);
    const bool long_rows = args.inner == 1 && args.size > kLanes * kWidth<In>;
    const bool streaming =
        (long_rows || aligned) && worth_streaming(args.outer * args.size * args.inner * moved);
    dispatch_kind(args.kind,
                  [&]<SoftmaxKind kind> { call.template operator()<kind, In, Out>(streaming); });
  });
}

}  // namespace softmax_detail
}  // namespace CPU_CAPABILITY
}  // namespace fastdl
