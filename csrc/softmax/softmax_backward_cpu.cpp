// Softmax family on CPU, backward.
//   softmax  dx = y (dy - sum y dy);  softmin  dx = -y (dy - sum y dy)
//   log_softmax  dx = dy - exp(y) sum dy
// Rows and columns as in the forward: two passes, sum and write, over a row or block of columns
// that stays in cache; columns are packed into scratch by the first pass while that fits. Memory:
// dy and y read once, dx written once, past the cache when it is larger than it. The floor is these
// bytes / triad bandwidth.

#include <numeric>

#include "common/vector_math_cpu.h"
#include "softmax/softmax_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace {

using namespace softmax_detail;

constexpr int64_t kPackedBytes = int64_t{512} << 10;  // half of a 1 MiB L2

// What the backward sums along the dimension, and what it makes of the sum.
template <SoftmaxKind kind, class V>
inline V backward_term(V grad, V y, V sum) {
  return kind == SoftmaxKind::kLogSoftmax ? sum + grad : at::vec::fmadd(grad, y, sum);
}

template <SoftmaxKind kind, class V>
inline V backward_value(V grad, V y, V sum) {
  if (kind == SoftmaxKind::kLogSoftmax) return grad - exp(y) * sum;
  return kind == SoftmaxKind::kSoftmin ? y * (sum - grad) : y * (grad - sum);
}

template <SoftmaxKind kind, int kVectors, class In, class Out, class Count>
void backward_short_rows(const Out* grad, const Out* y, In* grad_input, int64_t rows, int64_t size,
                         Count tail, bool streaming) {
  using A = Accumulate<In>;
  using V = Vec<In>;
  constexpr int64_t width = kWidth<In>;
  constexpr int end = kVectors - 1;
  for (int64_t row = 0; row < rows; ++row, grad += size, y += size, grad_input += size) {
    V g[kVectors], output[kVectors], sum(A(0));
    for (int k = 0; k < end; ++k) {
      g[k] = load_vector(grad + k * width);
      output[k] = load_vector(y + k * width);
    }
    g[end] = load_vector(grad + end * width, tail, A(0));
    output[end] = load_vector(y + end * width, tail, A(0));
    for (int k = 0; k < kVectors; ++k) sum = backward_term<kind>(g[k], output[k], sum);
    const V total(reduce_sum(sum));
    for (int k = 0; k < end; ++k) {
      const V value = backward_value<kind>(g[k], output[k], total);
      write_vector(grad_input + k * width, value, kWhole, streaming);
    }
    const V value = backward_value<kind>(g[end], output[end], total);
    write_vector(grad_input + end * width, value, tail, streaming);
  }
}

template <SoftmaxKind kind, class In, class Out>
void backward_row(const Out* grad, const Out* y, In* grad_input, int64_t size, bool streaming) {
  using A = Accumulate<In>;
  using V = Vec<In>;
  V sums[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) sums[lane] = V(A(0));
  for_vectors<In>(size, [&](int64_t i, auto count, int lane) {
    sums[lane] = backward_term<kind>(load_vector(grad + i, count, A(0)),
                                     load_vector(y + i, count, A(0)), sums[lane]);
  });
  const V sum(reduce_sum((sums[0] + sums[1]) + (sums[2] + sums[3])));
  // Inputs that are in the cache are only delayed by being fetched (1024x1024: 0.87x to 1.01x
  // native).
  const Out* const next_grad = streaming ? next_row(grad, size) : grad;
  const Out* const next_y = streaming ? next_row(y, size) : y;
  for_output_vectors(grad_input, size, streaming, [&](int64_t i, auto count, int) {
    prefetch(next_grad + i);
    prefetch(next_y + i);
    const V value = backward_value<kind>(load_vector(grad + i, count, A(0)),
                                         load_vector(y + i, count, A(0)), sum);
    write_vector(grad_input + i, value, count, streaming);
  });
}

// Whether lines `stride` bytes apart, `size` of them from two tensors, would push each other out of
// an L2 of 1024 sets and 16 ways before the second pass, while packed they fit.
bool worth_packing(int64_t size, int64_t stride, int64_t packed_bytes) {
  constexpr int64_t set_period = int64_t{64} << 10, ways = 16;
  const int64_t distinct = set_period / std::gcd(stride, set_period);
  return 2 * size > distinct * ways / 2 && packed_bytes <= kPackedBytes;
}

template <SoftmaxKind kind, int kVectors, class In, class Out, class Count>
void backward_columns(const Out* grad, const Out* y, In* grad_input, int64_t size, int64_t inner,
                      Count count, bool streaming) {
  using A = Accumulate<In>;
  using V = Vec<In>;
  constexpr int64_t width = kWidth<In>, block = kVectors * width;
  const bool pack = worth_packing(size, inner * static_cast<int64_t>(sizeof(Out)),
                                  2 * size * block * static_cast<int64_t>(sizeof(A)));
  A* const packed = pack ? static_cast<A*>(thread_scratch(2 * size * block * sizeof(A))) : nullptr;
  V sums[kVectors];
  for (int k = 0; k < kVectors; ++k) sums[k] = V(A(0));
  for (int64_t i = 0; i < size; ++i) {
    for (int k = 0; k < kVectors; ++k) {
      const int64_t at = i * inner + k * width;
      prefetch(grad + at + block);
      prefetch(y + at + block);
      const V g = load_vector(grad + at, count, A(0)), output = load_vector(y + at, count, A(0));
      sums[k] = backward_term<kind>(g, output, sums[k]);
      if (pack) store_vector(packed + (2 * i + 0) * block + k * width, g);
      if (pack) store_vector(packed + (2 * i + 1) * block + k * width, output);
    }
  }
  for (int64_t i = 0; i < size; ++i) {
    for (int k = 0; k < kVectors; ++k) {
      const int64_t at = i * inner + k * width;
      const V g = pack ? load_vector(packed + (2 * i + 0) * block + k * width)
                       : load_vector(grad + at, count, A(0));
      const V output = pack ? load_vector(packed + (2 * i + 1) * block + k * width)
                            : load_vector(y + at, count, A(0));
      write_vector(grad_input + at, backward_value<kind>(g, output, sums[k]), count, streaming);
    }
  }
}

}  // namespace
}  // namespace CPU_CAPABILITY

template <>
void softmax_backward<kBuildIsa>(const SoftmaxBackwardArgs& args) {
  auto run = [&]<SoftmaxKind kind, class In, class Out>(bool streaming) {
    const Out* const grad = static_cast<const Out*>(args.grad_output);
    const Out* const y = static_cast<const Out*>(args.output);
    In* const grad_input = static_cast<In*>(args.grad_input);
    const int64_t size = args.size;
    if (args.inner > 1) {
      return for_columns<In>(
          args.outer, size, args.inner, [&](int64_t at, auto vectors, auto count) {
            backward_columns<kind, vectors()>(grad + at, y + at, grad_input + at, size, args.inner,
                                              count, streaming);
          });
    }
    for_rows<In>(args.outer, size,
                 [&](int64_t first, int64_t rows, auto vectors, [[maybe_unused]] auto tail) {
                   const int64_t at = first * size;
                   if constexpr (vectors() > 0) {
                     backward_short_rows<kind, vectors()>(grad + at, y + at, grad_input + at, rows,
                                                          size, tail, streaming);
                   } else {
                     for (int64_t row = at; row < at + rows * size; row += size) {
                       backward_row<kind>(grad + row, y + row, grad_input + row, size, streaming);
                     }
                   }
                 });
  };
  dispatch(args, args.grad_input, args.input_dtype, run);
}

}  // namespace fastdl
