// dropout_add_layer_norm on CPU, one row of `cols` elements at a time.
//   s = keep x / (1 - p) + residual;  s^ = (s - mean) rstd;  y = s^ weight + bias
//   backward  g = dy weight,  ds = rstd (g - mean(g) - s^ mean(g s^)) + (gradient of s as an
//   output)
//             dresidual = ds,  dx = keep ds / (1 - p),  dweight = sum dy s^,  dbias = sum dy
// Formulas, precision and sums over rows are those of layer_norm_cpu.cpp, on s rounded to its
// dtype. The mask of a row is made in thread scratch, forward and backward; s of a row stays there,
// too. Memory: forward reads x and the residual, writes s and y; backward reads dy, s (and the
// gradient of s) and writes dx and dresidual: each once, past the cache if they are larger. Floor:
// 4 and 4 (5) moves / copy bandwidth.

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "common/dispatch.h"
#include "common/dropout_mask_cpu.h"
#include "common/loops_cpu.h"
#include "common/parallel.h"
#include "layer_norm/dropout_add_layer_norm.h"
#include "layer_norm/layer_norm_rows_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace {

// The value that memory has of it.
template <class T>
inline Vec<T> rounded(Vec<T> value) {
  if constexpr (sizeof(T) != 2) {
    return value;
  } else {
    alignas(64) T memory[kWidth<T>];
    store_vector(memory, value);
    return load_vector(memory);
  }
}

// A thread's mask of one row, in scratch memory.
class RowMask {
 public:
  static int64_t size(int64_t cols) { return cols + 2 * kDropoutTile; }  // of its memory

  RowMask(double p, uint64_t seed, uint16_t* memory)
      : p_(p), rule_(make_dropout_rule(p, seed)), memory_(memory) {}

  // The mask of the elements [first, first + cols), or null where all are kept. Whole vectors may
  // be read past its end.
  const uint16_t* of_row(int64_t first, int64_t cols) const {
    if (!(p_ > 0)) return nullptr;
    const int64_t before = first % kDropoutTile;
    fill_keep(rule_, first - before, before + cols, memory_);
    return memory_ + before;
  }

 private:
  double p_;
  DropoutRule rule_;
  uint16_t* memory_;
};

template <class T>
inline Vec<T> drop(Vec<T> value, const uint16_t* keep, int64_t i, Vec<T> scale) {
  return keep != nullptr ? value * scale_of_kept<T>(keep + i, scale) : value;
}

template <class T, class W>
void forward_row(const DropoutAddNormForwardArgs& args, int64_t row, const RowMask& mask,
                 Accumulate<T>* values, bool streaming) {
  using A = Accumulate<T>;
  using V = Vec<T>;
  const int64_t cols = args.cols;
  const T* const x = static_cast<const T*>(args.input) + row * cols;
  const T* const residual = static_cast<const T*>(args.residual) + row * cols;
  T* const sum = static_cast<T*>(args.sum) + row * cols;
  T* const y = static_cast<T*>(args.output) + row * cols;
  const W* const weight = static_cast<const W*>(args.weight);
  const W* const bias = static_cast<const W*>(args.bias);
  const V scale(static_cast<A>(1 / (1 - args.p)));
  const uint16_t* const keep = mask.of_row(row * cols, cols);

  for_output_vectors(sum, cols, streaming, [&](int64_t i, auto count, int) {
    const V value = drop<T>(load_vector(x + i, count, A(0)), keep, i, scale) +
                    load_vector(residual + i, count, A(0));
    write_vector(sum + i, value, count, streaming);
    store_vector(values + i, rounded<T>(value), count);
  });
  const A mean_of_row = sum_row<T, 1>(cols,
                                      [&](int64_t i, auto count) {
                                        return std::array{load_vector(values + i, count, A(0))};
                                      })[0] /
                        cols;
  const auto [deviations, squares] = sum_row<T, 2>(cols, [&](int64_t i, auto count) {
    const V centred = load_vector(values + i, count, mean_of_row) - V(mean_of_row);
    return std::array{centred, centred * centred};
  });
  const double correction = deviations / cols;
  const A mean = mean_of_row + correction;
  double variance = std::max(0.0, squares / cols - correction * correction);
  // An overflow must not pass for an infinite variance, which would give zeros.
  if (!std::isfinite(squares)) variance = std::numeric_limits<double>::quiet_NaN();
  const A rstd = 1 / std::sqrt(static_cast<A>(variance + args.eps));
  static_cast<A*>(args.mean)[row] = mean;
  static_cast<A*>(args.rstd)[row] = rstd;

  const T *const next_x = next_row(x, cols), *const next_residual = next_row(residual, cols);
  for_output_vectors(y, cols, streaming, [&](int64_t i, auto count, int) {
    prefetch(next_x + i);
    prefetch(next_residual + i);
    const V normalised = (load_vector(values + i, count, A(0)) - V(mean)) * V(rstd);
    const V value =
        at::vec::fmadd(normalised, load_or(weight, i, count, 1), load_or(bias, i, count, 0));
    write_vector(y + i, value, count, streaming);
  });
}

// Adds to this task's sums over rows, null when not wanted.
template <class T, class W>
void backward_row(const DropoutAddNormBackwardArgs& args, int64_t row, const RowMask& mask,
                  Accumulate<T>* sums_weight, Accumulate<T>* sums_bias, bool streaming) {
  using A = Accumulate<T>;
  using V = Vec<T>;
  const int64_t cols = args.cols, start = row * cols;
  const T* const s = static_cast<const T*>(args.sum) + start;
  const T* const grad = static_cast<const T*>(args.grad_output) + start;
  const T* const grad_sum =
      args.grad_sum != nullptr ? static_cast<const T*>(args.grad_sum) + start : nullptr;
  const W* const weight = static_cast<const W*>(args.weight);
  const A mean = static_cast<const A*>(args.mean)[row];
  const V rstd(static_cast<const A*>(args.rstd)[row]);
  const auto normalise = [&](int64_t i, auto count) {
    return (load_vector(s + i, count, mean) - V(mean)) * rstd;
  };

  V sum(A(0)), sum_s(A(0));
  for_single_vectors<T>(cols, [&](int64_t i, auto count) {
    const V g = load_vector(grad + i, count, A(0)), normalised = normalise(i, count);
    const V weighted = g * load_or(weight, i, count, 1);
    sum = sum + weighted;
    sum_s = at::vec::fmadd(weighted, normalised, sum_s);
    if (sums_weight != nullptr) {
      const V before = load_vector(sums_weight + i, count, A(0));
      store_vector(sums_weight + i, at::vec::fmadd(g, normalised, before), count);
    }
    if (sums_bias != nullptr) {
      store_vector(sums_bias + i, load_vector(sums_bias + i, count, A(0)) + g, count);
    }
  });

  const V centre(reduce_sum(sum) / cols), projection(reduce_sum(sum_s) / cols);
  const V scale(static_cast<A>(1 / (1 - args.p)));
  T* const grad_residual = static_cast<T*>(args.grad_residual) + start;
  T* const grad_input =
      args.grad_input != nullptr ? static_cast<T*>(args.grad_input) + start : nullptr;
  const uint16_t* const keep = grad_input != nullptr ? mask.of_row(start, cols) : nullptr;
  const T *const next_s = next_row(s, cols), *const next_grad = next_row(grad, cols);
  for_output_vectors(grad_residual, cols, streaming, [&](int64_t i, auto count, int) {
    prefetch(next_s + i);
    prefetch(next_grad + i);
    const V weighted = load_vector(grad + i, count, A(0)) * load_or(weight, i, count, 1);
    V value = (weighted - centre - normalise(i, count) * projection) * rstd;
    if (grad_sum != nullptr) value = value + load_vector(grad_sum + i, count, A(0));
    write_vector(grad_residual + i, value, count, streaming);
    if (grad_input == nullptr) return;
    write_vector(grad_input + i, drop<T>(value, keep, i, scale), count, streaming);
  });
}

template <class T, class W>
void forward(const DropoutAddNormForwardArgs& args) {
  using A = Accumulate<T>;
  const int64_t rows = args.rows, cols = args.cols;
  const bool streaming = worth_streaming(4 * rows * cols * static_cast<int64_t>(sizeof(T)));
  const auto mask_bytes = static_cast<size_t>(RowMask::size(cols) + 63) / 64 * 64 * 2;
  parallel_for(0, rows, std::max<int64_t>(1, kGrain / cols), [&](int64_t begin, int64_t end) {
    char* const scratch =
        static_cast<char*>(thread_scratch(mask_bytes + static_cast<size_t>(cols) * sizeof(A)));
    const RowMask mask(args.p, args.seed, reinterpret_cast<uint16_t*>(scratch));
    A* const values = reinterpret_cast<A*>(scratch + mask_bytes);
    for (int64_t row = begin; row < end; ++row) {
      forward_row<T, W>(args, row, mask, values, streaming);
    }
    finish_writes();
  });
}

template <class T, class W>
void backward(const DropoutAddNormBackwardArgs& args) {
  using A = Accumulate<T>;
  const int64_t rows = args.rows, cols = args.cols, tasks = args.tasks;
  // The two outputs of a row start equally far off a vector's alignment, or are not streamed.
  const auto offset = [](const void* data) {
    return reinterpret_cast<uintptr_t>(data) % (kWidth<T> * sizeof(T));
  };
  const bool alike =
      args.grad_input == nullptr || offset(args.grad_input) == offset(args.grad_residual);
  const bool streaming =
      alike && worth_streaming(4 * rows * cols * static_cast<int64_t>(sizeof(T)));
  A* const partial_sums = static_cast<A*>(args.partial_sums);
  parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    const RowMask mask(args.p, args.seed,
                       static_cast<uint16_t*>(thread_scratch(RowMask::size(cols) * 2)));
    for (int64_t task = begin; task < end; ++task) {
      A* const sums_weight = partial_sums + task * 2 * cols;
      A* const sums_bias = sums_weight + cols;
      if (args.grad_weight != nullptr) std::fill_n(sums_weight, cols, A(0));
      if (args.grad_bias != nullptr) std::fill_n(sums_bias, cols, A(0));
      const int64_t end_row = rows * (task + 1) / tasks;
      for (int64_t row = rows * task / tasks; row < end_row; ++row) {
        backward_row<T, W>(args, row, mask, args.grad_weight != nullptr ? sums_weight : nullptr,
                           args.grad_bias != nullptr ? sums_bias : nullptr, streaming);
      }
    }
    finish_writes();
  });
  add_tasks<A, W>(partial_sums, tasks, 2 * cols, cols, args.grad_weight);
  add_tasks<A, W>(partial_sums + cols, tasks, 2 * cols, cols, args.grad_bias);
}

}  // namespace
}  // namespace CPU_CAPABILITY

template <>
void dropout_add_norm_forward<kBuildIsa>(const DropoutAddNormForwardArgs& args) {
  dispatch_dtype_pair<CpuTypes>(args.dtype, args.weight_dtype,
                                [&]<class T, class W> { forward<T, W>(args); });
}

template <>
void dropout_add_norm_backward<kBuildIsa>(const DropoutAddNormBackwardArgs& args) {
  dispatch_dtype_pair<CpuTypes>(args.dtype, args.weight_dtype,
                                [&]<class T, class W> { backward<T, W>(args); });
}

}  // namespace fastdl
