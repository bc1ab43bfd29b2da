// What batch_norm and group_norm on CPU do with the elements of channels once their statistics are
// known, over runs (planes) with numbers for the channel, or over rows (channels last) with arrays.
//   forward   y = (x - mean) scale + shift [+ residual] [ReLU]
//   sums      of g and of g (x - mean), with g = dy where the ReLU was open
//   backward  dx = g slope + (x - mean) pull + offset
// The ReLU's state is that of its output, which is computed again unless there is a residual.
#pragma once

#include "common/channel_moments_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {

// Of a channel, of a vector of channels, or pointers to those of all
template <class A>
struct ForwardFactors {
  A mean, scale, shift;
};
template <class A>
struct BackwardFactors {
  A slope, pull, offset;
};

template <class T>
struct ForwardData {
  const T* input;
  const T* residual;  // or null
  T* output;
  bool relu, streaming;

  ForwardData from(int64_t offset) const {
    return {input + offset, residual == nullptr ? nullptr : residual + offset, output + offset,
            relu, streaming};
  }

  template <class V, class Count>
  inline void write(int64_t i, Count count, V mean, V scale, V shift) const {
    using A = Accumulate<T>;
    V value = at::vec::fmadd(load_vector(input + i, count, A(0)) - mean, scale, shift);
    if (residual != nullptr) value = value + load_vector(residual + i, count, A(0));
    if (relu) value = at::vec::clamp_min(value, V(A(0)));
    write_vector(output + i, value, count, streaming);
  }
};

template <class T>
struct BackwardData {
  const T* grad_output;
  const T* input;
  const T* output;   // of a ReLU that had a residual, else null
  T* grad_input;     // or null
  T* grad_residual;  // or null
  bool relu, streaming;

  T* written() const { return grad_input != nullptr ? grad_input : grad_residual; }

  // Whether rows' g is written by the pass that adds it up, and read again instead of dy and y: 7
  // moves of the tensor instead of 8. Where all fits the cache, that is slower.
  bool residual_goes_first() const { return grad_residual != nullptr && streaming; }
  // Once it is
  BackwardData after_residual() const {
    return {grad_residual, input, nullptr, grad_input, nullptr, false, streaming};
  }

  BackwardData from(int64_t offset) const {
    const auto moved = [&](auto* data) { return data == nullptr ? data : data + offset; };
    return {grad_output + offset, input + offset, moved(output), moved(grad_input),
            moved(grad_residual), relu,           streaming};
  }

  // dy where the ReLU was open, for the elements whose x - mean is `centred`
  template <class V, class Count>
  inline V gradient(int64_t i, Count count, V centred, V scale, V shift) const {
    using A = Accumulate<T>;
    const V grad = load_vector(grad_output + i, count, A(0)), zero(A(0));
    if (!relu) return grad;
    const V activated = output == nullptr ? at::vec::fmadd(centred, scale, shift)
                                          : load_vector(output + i, count, A(0));
    return V::blendv(grad, zero, activated <= zero);  // as torch's, NaN lets through
  }

  template <class V, class Count>
  inline void write(int64_t i, Count count, ForwardFactors<V> f, BackwardFactors<V> b) const {
    const V centred = load_vector(input + i, count, Accumulate<T>(0)) - f.mean;
    const V grad = gradient(i, count, centred, f.scale, f.shift);
    if (grad_residual != nullptr) write_vector(grad_residual + i, grad, count, streaming);
    if (grad_input == nullptr) return;
    const V value = at::vec::fmadd(grad, b.slope, at::vec::fmadd(centred, b.pull, b.offset));
    write_vector(grad_input + i, value, count, streaming);
  }
};

// ---- runs, with numbers for factors

// Both ends of a run lie in cache lines that it writes in part, which costs more when streamed. Of
// runs from 2048 bytes on that is at most every 16th line; of 8x2048x7x7, whose backward took 2.1
// ms streamed, about every second.
template <class T>
inline bool worth_streaming_runs(const Runs& runs) {
  return runs.length * static_cast<int64_t>(sizeof(T)) >= 2048;
}

// Calls f(position, count) one vector at a time, aligned when streaming: memory, not arithmetic, is
// what these passes wait for. The last vector overlaps the one before it where that is allowed: so
// it writes the same twice, instead of a part.
template <class T, class F>
inline void for_output_run(T* output, int64_t size, bool streaming, F&& f) {
  const int64_t past = reinterpret_cast<uintptr_t>(output) % (kWidth<T> * sizeof(T)) / sizeof(T);
  int64_t i = streaming && past != 0 ? std::min(kWidth<T> - past, size) : 0;
  if (i > 0) f(int64_t{0}, i);
  for (; i + kWidth<T> <= size; i += kWidth<T>) f(i, kWhole);
  if (i == size) return;
  if (streaming || size < kWidth<T>) return f(i, size - i);
  f(size - kWidth<T>, kWhole);
}

template <class T>
inline void normalise_runs(ForwardData<T> data, Runs runs, ForwardFactors<Accumulate<T>> f,
                           int64_t next) {
  using V = Vec<T>;
  const V mean(f.mean), scale(f.scale), shift(f.shift);
  data.streaming = data.streaming && worth_streaming_runs<T>(runs);
  for (int64_t run = 0; run < runs.count; ++run) {
    const int64_t start = run * runs.stride;
    for_output_run(data.output + start, runs.length, data.streaming, [=](int64_t i, auto count) {
      prefetch(data.input + start + i + next);
      if (data.residual != nullptr) prefetch(data.residual + start + i + next);
      data.write(start + i, count, mean, scale, shift);
    });
  }
}

template <class T>
inline std::array<double, 2> sum_gradient_runs(BackwardData<T> data, Runs runs,
                                               ForwardFactors<Accumulate<T>> f) {
  using A = Accumulate<T>;
  using V = Vec<T>;
  const V mean(f.mean), scale(f.scale), shift(f.shift);
  std::array<double, 2> totals{};
  for_chunks(runs, [&](int64_t offset, const Runs& chunk) {
    const BackwardData<T> part = data.from(offset);
    const A fill = f.mean;
    const auto sums = sum_runs<T>(chunk, [=](int64_t i, auto count, V& sum, V& product) {
      const V centred = load_vector(part.input + i, count, fill) - mean;
      const V grad = part.gradient(i, count, centred, scale, shift);
      sum = sum + grad;
      product = at::vec::fmadd(grad, centred, product);
    });
    totals[0] += sums[0];
    totals[1] += sums[1];
  });
  return totals;
}

template <class T>
inline void differentiate_runs(BackwardData<T> data, Runs runs, ForwardFactors<Accumulate<T>> f,
                               BackwardFactors<Accumulate<T>> b, int64_t next) {
  using V = Vec<T>;
  const ForwardFactors<V> forward{V(f.mean), V(f.scale), V(f.shift)};
  const BackwardFactors<V> backward{V(b.slope), V(b.pull), V(b.offset)};
  data.streaming = data.streaming && worth_streaming_runs<T>(runs);
  for (int64_t run = 0; run < runs.count; ++run) {
    const int64_t start = run * runs.stride;
    for_output_run(data.written() + start, runs.length, data.streaming, [=](int64_t i, auto count) {
      prefetch(data.input + start + i + next);
      prefetch(data.grad_output + start + i + next);
      if (data.output != nullptr) prefetch(data.output + start + i + next);
      data.write(start + i, count, forward, backward);
    });
  }
}

// ---- rows of `cols` elements, with arrays of factors; streamed only where all rows are aligned

template <class A, class Count>
inline ForwardFactors<at::vec::Vectorized<A>> load_factors(const ForwardFactors<const A*>& f,
                                                           int64_t i, Count count) {
  return {load_vector(f.mean + i, count, A(0)), load_vector(f.scale + i, count, A(0)),
          load_vector(f.shift + i, count, A(0))};
}

// Calls f(offset, column, count) for all vectors, row after row.
template <class T, class F>
inline void for_row_vectors(int64_t rows, int64_t cols, F&& f) {
  for (int64_t row = 0; row < rows; ++row) {
    for_single_vectors<T>(cols, [&](int64_t i, auto count) { f(row * cols + i, i, count); });
  }
}

template <class T>
inline void normalise_rows(ForwardData<T> data, int64_t rows, int64_t cols,
                           ForwardFactors<const Accumulate<T>*> f) {
  for_row_vectors<T>(rows, cols, [&](int64_t i, int64_t column, auto count) {
    prefetch(data.input + i + kAhead<T>);
    const auto factors = load_factors(f, column, count);
    data.write(i, count, factors.mean, factors.scale, factors.shift);
  });
}

// The sums of g and of g (x - mean) of each of at most kColumns columns of rows that are `stride`
// apart; writes g where residual_goes_first().
template <class T>
inline void sum_gradient_columns(BackwardData<T> data, int64_t rows, int64_t cols, int64_t stride,
                                 ForwardFactors<const Accumulate<T>*> f, double* sums,
                                 double* products) {
  using A = Accumulate<T>;
  using V = Vec<T>;
  A of_block[2 * kColumns];
  const int64_t next = kTogether * stride;  // the rows that are read next
  std::fill_n(sums, cols, 0.0);
  std::fill_n(products, cols, 0.0);
  for (int64_t row = 0; row < rows; row += kRows) {
    const BackwardData<T> block = data.from(row * stride);
    sum_columns<T>(
        std::min(kRows, rows - row), cols, stride, of_block,
        [&](int64_t offset, int64_t i, auto count, V& sum, V& product) {
          prefetch(block.input + offset + next);
          prefetch(block.grad_output + offset + next);
          const auto factors = load_factors(f, i, count);
          const V centred = load_vector(block.input + offset, count, A(0)) - factors.mean;
          const V grad = block.gradient(offset, count, centred, factors.scale, factors.shift);
          if (block.residual_goes_first()) {
            write_vector(block.grad_residual + offset, grad, count, block.streaming);
          }
          sum = sum + grad;
          product = at::vec::fmadd(grad, centred, product);
        });
    for (int64_t c = 0; c < cols; ++c) {
      sums[c] += of_block[c];
      products[c] += of_block[kColumns + c];
    }
  }
}

template <class T>
inline void differentiate_rows(BackwardData<T> data, int64_t rows, int64_t cols,
                               ForwardFactors<const Accumulate<T>*> f,
                               BackwardFactors<const Accumulate<T>*> b) {
  using A = Accumulate<T>;
  using V = Vec<T>;
  for_row_vectors<T>(rows, cols, [&](int64_t i, int64_t column, auto count) {
    prefetch(data.input + i + kAhead<T>);
    prefetch(data.grad_output + i + kAhead<T>);
    const BackwardFactors<V> backward{load_vector(b.slope + column, count, A(0)),
                                      load_vector(b.pull + column, count, A(0)),
                                      load_vector(b.offset + column, count, A(0))};
    data.write(i, count, load_factors(f, column, count), backward);
  });
}

}  // namespace CPU_CAPABILITY
}  // namespace fastdl
