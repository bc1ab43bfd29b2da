// Layer norm and RMS norm on CPU, one row of `cols` elements at a time.
//   layer_norm  x^ = (x - mean) rstd, rstd = 1 / sqrt(var + eps);  y = x^ weight + bias
//   rms_norm    x^ = x rstd, rstd = 1 / sqrt(mean(x^2) + eps);     y = x^ weight
//   backward    g = dy weight,  dx = rstd (g - mean(g) - x^ mean(g x^)); rms_norm without mean(g)
//               dweight = sum over rows dy x^,  dbias = sum over rows dy
// The passes over a row (mean; variance about it, and the mean's rounding; write) find it in L1/L2
// after the first, so that memory sees every input once and every output once: forward 2 moves,
// backward 3. The backward adds the weight gradients of each task's rows in the task's own buffer,
// and the buffers in a fixed order: deterministic. Outputs larger than the cache go past it. Floor:
// these bytes / copy bandwidth.

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "common/dispatch.h"
#include "common/loops_cpu.h"
#include "common/parallel.h"
#include "common/vector_cpu.h"
#include "layer_norm/layer_norm.h"
#include "layer_norm/layer_norm_rows_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace {

// Short rows that the backward takes at once, with two sums and two statistics each in registers.
// For rows beyond kLanes vectors one at a time is faster (8192x768 1.19x native against 1.00x,
// 6304x192 1.00x against 0.79x): more would be as many streams for the hardware to fetch ahead.
constexpr int kSideBySide = kWidth<float> == 16 ? 4 : 2;

template <NormKind kind, class T, class W>
void forward_row(const NormForwardArgs& args, int64_t row, bool streaming) {
  using A = Accumulate<T>;
  using V = Vec<T>;
  const int64_t cols = args.cols;
  const T* const x = static_cast<const T*>(args.input) + row * cols;
  T* const y = static_cast<T*>(args.output) + row * cols;
  const W* const weight = static_cast<const W*>(args.weight);
  const W* const bias = static_cast<const W*>(args.bias);

  A mean = 0;
  double variance;
  if constexpr (kind == NormKind::kLayerNorm) {
    const auto sum = [&](int64_t i, auto count) {
      return std::array{load_vector(x + i, count, A(0))};
    };
    mean = sum_row<T, 1>(cols, sum)[0] / cols;
    // The sum of deviations from the rounded mean corrects both: exact for rows of equal values.
    const auto [deviations, squares] = sum_row<T, 2>(cols, [&](int64_t i, auto count) {
      const V centred = load_vector(x + i, count, mean) - V(mean);
      return std::array{centred, centred * centred};
    });
    const double correction = deviations / cols;
    mean += correction;
    variance = std::max(0.0, squares / cols - correction * correction);
    // An overflow must not pass for an infinite variance, which would give zeros.
    if (!std::isfinite(squares)) variance = std::numeric_limits<double>::quiet_NaN();
  } else {
    const auto squares = sum_row<T, 1>(cols, [&](int64_t i, auto count) {
      const V value = load_vector(x + i, count, A(0));
      return std::array{value * value};
    });
    variance = squares[0] / cols;
  }
  const A rstd = 1 / std::sqrt(static_cast<A>(variance + args.eps));
  if (args.mean != nullptr) static_cast<A*>(args.mean)[row] = mean;
  if (args.rstd != nullptr) static_cast<A*>(args.rstd)[row] = rstd;

  const T* const next = next_row(x, cols);
  for_output_vectors(y, cols, streaming, [&](int64_t i, auto count, int) {
    prefetch(next + i);
    const V normalised = (load_vector(x + i, count, A(0)) - V(mean)) * V(rstd);
    const V value =
        at::vec::fmadd(normalised, load_or(weight, i, count, 1), load_or(bias, i, count, 0));
    write_vector(y + i, value, count, streaming);
  });
}

// kRows rows of the backward. The first pass takes them side by side, so that weight and the sums
// over rows, kept in this task's sums_weight and sums_bias (null when not wanted), are read and
// written once for all of them.
template <NormKind kind, int kRows, class T, class W>
void backward_rows(const NormBackwardArgs& args, int64_t row, Accumulate<T>* sums_weight,
                   Accumulate<T>* sums_bias, bool streaming) {
  using A = Accumulate<T>;
  using V = Vec<T>;
  const int64_t cols = args.cols;
  const T* const x = static_cast<const T*>(args.input) + row * cols;
  const T* const grad = static_cast<const T*>(args.grad_output) + row * cols;
  const W* const weight = static_cast<const W*>(args.weight);
  const A* const rstds = static_cast<const A*>(args.rstd) + row;
  const A* const means =
      kind == NormKind::kLayerNorm ? static_cast<const A*>(args.mean) + row : rstds;
  A mean[kRows];
  V rstd[kRows], sum[kRows], sum_x[kRows];
  for (int r = 0; r < kRows; ++r) {
    mean[r] = kind == NormKind::kLayerNorm ? means[r] : A(0);
    rstd[r] = V(rstds[r]);
    sum[r] = sum_x[r] = V(A(0));
  }
  const auto normalise = [&](int r, int64_t i, auto count) {
    return (load_vector(x + r * cols + i, count, mean[r]) - V(mean[r])) * rstd[r];
  };

  for_single_vectors<T>(cols, [&](int64_t i, auto count) {
    const V w = load_or(weight, i, count, 1);
    V sum_weight(A(0)), sum_bias(A(0));
    for (int r = 0; r < kRows; ++r) {
      const V g = load_vector(grad + r * cols + i, count, A(0)),
              normalised = normalise(r, i, count);
      const V weighted = g * w;
      sum[r] = sum[r] + weighted;
      sum_x[r] = at::vec::fmadd(weighted, normalised, sum_x[r]);
      sum_weight = at::vec::fmadd(g, normalised, sum_weight);
      sum_bias = sum_bias + g;
    }
    if (sums_weight != nullptr) {
      const V before = load_vector(sums_weight + i, count, A(0));
      store_vector(sums_weight + i, before + sum_weight, count);
    }
    if (sums_bias != nullptr) {
      store_vector(sums_bias + i, load_vector(sums_bias + i, count, A(0)) + sum_bias, count);
    }
  });
  if (args.grad_input == nullptr) return;

  const T *const next_x = next_row(x, kRows * cols), *const next_grad =
                                                         next_row(grad, kRows * cols);
  for (int r = 0; r < kRows; ++r) {
    const V centre(kind == NormKind::kLayerNorm ? reduce_sum(sum[r]) / cols : A(0));
    const V projection(reduce_sum(sum_x[r]) / cols);
    const int64_t start = r * cols;
    T* const grad_input = static_cast<T*>(args.grad_input) + (row + r) * cols;
    for_output_vectors(grad_input, cols, streaming, [&](int64_t i, auto count, int) {
      prefetch(next_x + start + i);
      prefetch(next_grad + start + i);
      const V weighted = load_vector(grad + start + i, count, A(0)) * load_or(weight, i, count, 1);
      const V value = (weighted - centre - normalise(r, i, count) * projection) * rstd[r];
      write_vector(grad_input + i, value, count, streaming);
    });
  }
}

template <NormKind kind, class T, class W>
void backward(const NormBackwardArgs& args) {
  using A = Accumulate<T>;
  const int64_t rows = args.rows, cols = args.cols, tasks = args.tasks;
  const bool streaming = worth_streaming(3 * rows * cols * static_cast<int64_t>(sizeof(T)));
  A* const partial_sums = static_cast<A*>(args.partial_sums);
  parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      A* const sums_weight = partial_sums + task * 2 * cols;
      A* const sums_bias = sums_weight + cols;
      if (args.grad_weight != nullptr) std::fill_n(sums_weight, cols, A(0));
      if (args.grad_bias != nullptr) std::fill_n(sums_bias, cols, A(0));
      A* const weight_sums = args.grad_weight != nullptr ? sums_weight : nullptr;
      A* const bias_sums = args.grad_bias != nullptr ? sums_bias : nullptr;
      int64_t row = rows * task / tasks;
      const int64_t end_row = rows * (task + 1) / tasks;
      const bool short_rows = cols <= kLanes * kWidth<T>;
      for (; short_rows && row + kSideBySide <= end_row; row += kSideBySide) {
        backward_rows<kind, kSideBySide, T, W>(args, row, weight_sums, bias_sums, streaming);
      }
      for (; row < end_row; ++row) {
        backward_rows<kind, 1, T, W>(args, row, weight_sums, bias_sums, streaming);
      }
    }
    finish_writes();
  });
  add_tasks<A, W>(partial_sums, tasks, 2 * cols, cols, args.grad_weight);
  add_tasks<A, W>(partial_sums + cols, tasks, 2 * cols, cols, args.grad_bias);
}

template <class Args, class F>
void dispatch(const Args& args, F&& call) {
  dispatch_dtype_pair<CpuTypes>(args.dtype, args.weight_dtype, [&]<class T, class W> {
    if (args.kind == NormKind::kLayerNorm) {
      call.template operator()<NormKind::kLayerNorm, T, W>();
    } else {
      call.template operator()<NormKind::kRmsNorm, T, W>();
    }
  });
}

}  // namespace
}  // namespace CPU_CAPABILITY

template <>
void norm_forward<kBuildIsa>(const NormForwardArgs& args) {
  dispatch(args, [&]<NormKind kind, class T, class W> {
    const int64_t bytes = args.rows * args.cols * static_cast<int64_t>(sizeof(T));
    const int64_t grain = std::max<int64_t>(1, kGrain / args.cols);
    parallel_for(0, args.rows, grain, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        forward_row<kind, T, W>(args, row, worth_streaming(2 * bytes));
      }
      finish_writes();
    });
  });
}

template <>
void norm_backward<kBuildIsa>(const NormBackwardArgs& args) {
  dispatch(args, [&]<NormKind kind, class T, class W> { backward<kind, T, W>(args); });
}

}  // namespace fastdl
