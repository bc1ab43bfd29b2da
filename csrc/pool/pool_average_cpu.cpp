// Mean of each window, and its gradient.
//   y = sum of the window's elements / divisor: the taps inside the input (or inside the padded
//   input with count_include_pad) along the height times those along the width, or a number that is
//   given dx = sum of dy / divisor over the windows that an element lies in
// NCHW: an output row adds the input rows of its windows as vectors into scratch memory, from where
// its taps along the width are contiguous vectors (pool_cpu.h); other strides than 1 and 2 and
// adaptive windows add element by element. The gradient goes the same way back: an input row adds
// the rows of dy whose windows have it, then spreads them along the width; rows in the same windows
// are computed once. channels_last: vectors over channels, in both directions.
// Memory: reads and writes everything once. Floor: its bytes / copy bandwidth.
#include "pool/pool_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace {

using namespace pool_detail;

// What sums are divided by along one axis.
int64_t divisor_at(const AveragePoolArgs& args, const PoolAxis& axis, int64_t i) {
  if (args.divisor != 0) return 1;
  const Window window = window_at(axis, i);
  if (axis.kernel == 0 || !args.count_include_pad) return window.count();
  return std::min(axis.kernel, axis.input + axis.padding - window.start);
}

// The number that all divisors of an axis are multiplied with.
int64_t common_divisor(const AveragePoolArgs& args) { return args.divisor != 0 ? args.divisor : 1; }

template <class T>
Accumulate<T> sum_of(const T* x, int64_t count) {
  using A = Accumulate<T>;
  using V = Vec<T>;
  if (count < kWidth<T>) {
    A sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += static_cast<A>(x[i]);
    return sum;
  }
  V sums[kLanes];
  for (V& each : sums) each = V(A(0));
  for_vectors<T>(count, [&](int64_t i, auto rest, int lane) {
    sums[lane] = sums[lane] + load_vector(x + i, rest, A(0));
  });
  return reduce_sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// ---- NCHW, forward

template <class T>
class PlaneMean {
  using A = Accumulate<T>;
  using V = Vec<T>;

 public:
  PlaneMean(const AveragePoolArgs& args, const PoolShape& shape, bool streaming)
      : args_(args), shape_(shape), streaming_(streaming) {}

  void rows(int64_t plane, int64_t block, int64_t first, int64_t last) {
    const PoolAxis &h = shape_.h, &w = shape_.w;
    const Columns columns = Columns::block(w, block);
    if (block != block_) prepare(columns);
    block_ = block;
    const T* const x = static_cast<const T*>(args_.input) + plane * h.input * w.input;
    for (int64_t row = first; row < last; ++row) {
      const Window window = window_at(h, row);
      const A divisor = static_cast<A>(divisor_at(args_, h, row) * common_divisor(args_));
      T* const output =
          static_cast<T*>(args_.output) + (plane * h.output + row) * w.output + columns.begin;
      const T* const from = x + (window.start + window.first) * w.input;
      if (columns.taps != Taps::kGathered) {
        average(columns, from, window.count(), divisor, output);
      } else if (window.count() == 1) {
        average_gathered(columns, from, divisor, output);
      } else {
        for_single_vectors<T>(columns.high - columns.low, [&](int64_t i, auto rest) {
          store_vector(phase_ + i, sum_rows(from + columns.low + i, window.count(), rest));
        });
        average_gathered(columns, phase_ - columns.low, divisor, output);
      }
    }
  }

 private:
  void prepare(const Columns& columns) {
    const int64_t width = kWidth<T>;
    const bool gathered = columns.taps == Taps::kGathered;
    size_ = round_up((gathered ? columns.high - columns.low : columns.pitch) + width, 16);
    const int64_t phases = gathered ? 1 : columns.phases();
    phase_ = static_cast<A*>(
        thread_scratch((phases * size_ + round_up(columns.count() + width, 16)) * sizeof(A)));
    divisors_ = phase_ + phases * size_;
    std::fill(phase_, divisors_, A(0));
    for (int64_t i = 0; i < columns.count(); ++i) {
      divisors_[i] = static_cast<A>(divisor_at(args_, shape_.w, columns.begin + i));
    }
  }

  template <class Count>
  V sum_rows(const T* x, int64_t rows, Count count) const {
    V sum = load_vector(x, count, A(0));
    for (int64_t i = 1; i < rows; ++i) {
      sum = sum + load_vector(x + i * shape_.w.input, count, A(0));
    }
    return sum;
  }

  void average(const Columns& columns, const T* x, int64_t rows, A divisor, T* y) {
    columns.lay_out<T>(phase_, size_,
                       [&](int64_t i, auto rest) { return sum_rows(x + i, rows, rest); });
    const int64_t taps = shape_.w.kernel;
    for_single_vectors<T>(columns.count(), [&](int64_t i, auto count) {
      V sum = load_vector(phase_ + i);
      for (int64_t t = 1; t < taps; ++t) {
        sum = sum + load_vector(phase_ + columns.tap_at(t, size_) + i);
      }
      const V divisors = load_vector(divisors_ + i, count, A(1));
      write_vector(y + i, sum / (divisors * V(divisor)), count, streaming_);
    });
  }

  template <class Element>
  void average_gathered(const Columns& columns, const Element* x, A divisor, T* y) const {
    for (int64_t i = 0; i < columns.count(); ++i) {
      const Window window = window_at(shape_.w, columns.begin + i);
      const A sum = sum_of(x + window.start + window.first, window.count());
      y[i] = static_cast<T>(sum / (divisors_[i] * divisor));
    }
  }

  const AveragePoolArgs& args_;
  const PoolShape& shape_;
  const bool streaming_;
  int64_t block_ = -1, size_ = 0;
  A *phase_ = nullptr, *divisors_ = nullptr;
};

// ---- NCHW, backward

// Rows of the gradient of a plane's input. `columns` are outputs, as in the forward pass: all.
template <class T>
class PlaneGradient {
  using A = Accumulate<T>;
  using V = Vec<T>;

 public:
  PlaneGradient(const AveragePoolArgs& args, const PoolShape& shape, bool streaming)
      : args_(args), shape_(shape), taps_(taps_of(shape.w)), streaming_(streaming) {
    const PoolAxis& w = shape.w;
    // Sums over the height lie between zeros, for taps that no output has.
    margin_ = taps_ == Taps::kGathered ? 0 : round_up(w.kernel, 8);
    const int64_t spread = w.input + w.padding;
    const int64_t sums = margin_ + std::max(w.output, spread) + 4 * kWidth<T>;
    const int64_t total = round_up(sums, 16) + round_up(spread + 4 * kWidth<T>, 16) +
                          round_up(w.output + kWidth<T>, 16);
    sums_ = static_cast<A*>(thread_scratch(total * sizeof(A)));
    row_ = sums_ + round_up(sums, 16);
    factors_ = row_ + round_up(spread + 4 * kWidth<T>, 16);
    std::fill(sums_, sums_ + total, A(0));
    for (int64_t i = 0; i < w.output; ++i) {
      factors_[i] = A(1) / static_cast<A>(divisor_at(args, w, i));
    }
  }

  void rows(int64_t plane, int64_t first, int64_t last) {
    const PoolAxis &h = shape_.h, &w = shape_.w;
    const T* const dy = static_cast<const T*>(args_.input) + plane * h.output * w.output;
    T* const dx = static_cast<T*>(args_.output) + plane * h.input * w.input;
    Cover before{-1, -1};
    for (int64_t row = first; row < last; ++row) {
      const Cover cover = cover_of(h, row);
      if (!(cover == before)) {
        sum_rows(dy, cover);
        spread();
      }
      before = cover;
      const A* const from = row_ + w.padding;
      for_single_vectors<T>(w.input, [&](int64_t i, auto rest) {
        write_vector(dx + row * w.input + i, load_vector(from + i, rest, A(0)), rest, streaming_);
      });
    }
  }

 private:
  void sum_rows(const T* dy, const Cover& cover) {
    const PoolAxis &h = shape_.h, &w = shape_.w;
    for_single_vectors<T>(w.output, [&](int64_t i, auto rest) {
      V sum(A(0));
      for (int64_t row = cover.first; row <= cover.last; ++row) {
        const A divisor = static_cast<A>(divisor_at(args_, h, row) * common_divisor(args_));
        sum = sum + load_vector(dy + row * w.output + i, rest, A(0)) * V(A(1) / divisor);
      }
      store_vector(sums_ + margin_ + i, sum * load_vector(factors_ + i), rest);
    });
  }

  // Adds the sums to the elements of their windows, in a row that begins with the padding.
  void spread() {
    const PoolAxis& w = shape_.w;
    const int64_t size = w.input + w.padding, width = kWidth<T>;
    const A* const sums = sums_ + margin_;
    if (taps_ == Taps::kStride1) {
      for (int64_t i = 0; i < size; i += width) {
        V sum(A(0));
        for (int64_t t = 0; t < w.kernel; ++t) sum = sum + load_vector(sums + i - t);
        store_vector(row_ + i, sum);
      }
    } else if (taps_ == Taps::kStride2) {
      for (int64_t i = 0; 2 * i < size; i += width) {
        V even(A(0)), odd(A(0));
        for (int64_t t = 0; t < w.kernel; t += 2) even = even + load_vector(sums + i - t / 2);
        for (int64_t t = 1; t < w.kernel; t += 2) odd = odd + load_vector(sums + i - t / 2);
        const auto [low, high] = at::vec::interleave2(even, odd);
        store_vector(row_ + 2 * i, low);
        store_vector(row_ + 2 * i + width, high);
      }
    } else {
      std::fill(row_, row_ + size, A(0));
      for (int64_t i = 0; i < w.output; ++i) {
        const Window window = window_at(w, i);
        A* const to = row_ + w.padding + window.start;
        for (int64_t t = window.first; t < window.end; ++t) to[t] += sums[i];
      }
    }
  }

  const AveragePoolArgs& args_;
  const PoolShape& shape_;
  const Taps taps_;
  const bool streaming_;
  int64_t margin_;
  A *sums_, *row_, *factors_;
};

// ---- channels_last

// Calls f(channel, kVectors as a type, count) on all channels, four vectors at a time while they
// fit.
template <class T, class F>
void for_channels(int64_t channels, F&& f) {
  constexpr int64_t width = kWidth<T>;
  int64_t c = 0;
  for (; c + kLanes * width <= channels; c += kLanes * width) {
    f(c, std::integral_constant<int, kLanes>(), kWhole);
  }
  for (; c + width <= channels; c += width) f(c, std::integral_constant<int, 1>(), kWhole);
  if (c < channels) f(c, std::integral_constant<int, 1>(), channels - c);
}

template <class T>
void mean_of_pixels(const AveragePoolArgs& args, int64_t begin, int64_t end, bool streaming) {
  using A = Accumulate<T>;
  using V = Vec<T>;
  const PoolShape& shape = args.shape;
  const PoolAxis &h = shape.h, &w = shape.w;
  const int64_t inner = shape.inner;
  for (int64_t pixel = begin; pixel < end; ++pixel) {
    const int64_t col = pixel % w.output, row = pixel / w.output % h.output;
    const int64_t image = pixel / w.output / h.output;
    const Window rows = window_at(h, row), cols = window_at(w, col);
    const int64_t first =
        (image * h.input + rows.start + rows.first) * w.input + cols.start + cols.first;
    const T* const x = static_cast<const T*>(args.input) + first * inner;
    T* const y = static_cast<T*>(args.output) + pixel * inner;
    const V divisor(
        static_cast<A>(divisor_at(args, h, row) * divisor_at(args, w, col) * common_divisor(args)));
    for_channels<T>(inner, [&](int64_t c, auto vectors, auto count) {
      V sums[vectors()];
      for (V& sum : sums) sum = V(A(0));
      for (int64_t i = 0; i < rows.count(); ++i) {
        V line[vectors()];  // rows are summed apart: many numbers one by one would lose digits
        for (V& sum : line) sum = V(A(0));
        for (int64_t j = 0; j < cols.count(); ++j) {
          const T* const tap = x + (i * w.input + j) * inner + c;
          for (int k = 0; k < vectors(); ++k) {
            line[k] = line[k] + load_vector(tap + k * kWidth<T>, count, A(0));
          }
        }
        for (int k = 0; k < vectors(); ++k) sums[k] = sums[k] + line[k];
      }
      for (int k = 0; k < vectors(); ++k) {
        write_vector(y + c + k * kWidth<T>, sums[k] / divisor, count, streaming);
      }
    });
  }
}

template <class T>
void gradient_of_pixels(const AveragePoolArgs& args, int64_t begin, int64_t end, bool streaming) {
  using A = Accumulate<T>;
  using V = Vec<T>;
  const PoolShape& shape = args.shape;
  const PoolAxis &h = shape.h, &w = shape.w;
  const int64_t inner = shape.inner;
  for (int64_t pixel = begin; pixel < end; ++pixel) {
    const int64_t col = pixel % w.input, row = pixel / w.input % h.input;
    const int64_t image = pixel / w.input / h.input;
    const Cover rows = cover_of(h, row), cols = cover_of(w, col);
    const T* const dy = static_cast<const T*>(args.input) + image * h.output * w.output * inner;
    T* const dx = static_cast<T*>(args.output) + pixel * inner;
    for_channels<T>(inner, [&](int64_t c, auto vectors, auto count) {
      V sums[vectors()];
      for (V& sum : sums) sum = V(A(0));
      for (int64_t i = rows.first; i <= rows.last; ++i) {
        const int64_t divisor = divisor_at(args, h, i) * common_divisor(args);
        for (int64_t j = cols.first; j <= cols.last; ++j) {
          const V factor(A(1) / static_cast<A>(divisor * divisor_at(args, w, j)));
          const T* const from = dy + (i * w.output + j) * inner + c;
          for (int k = 0; k < vectors(); ++k) {
            sums[k] = sums[k] + load_vector(from + k * kWidth<T>, count, A(0)) * factor;
          }
        }
      }
      for (int k = 0; k < vectors(); ++k) {
        write_vector(dx + c + k * kWidth<T>, sums[k], count, streaming);
      }
    });
  }
}

template <class T, class F>
void for_pixels(int64_t pixels, int64_t cost, F&& f) {
  parallel_for(0, pixels, std::max<int64_t>(1, kGrain / cost), [&](int64_t begin, int64_t end) {
    f(begin, end);
    finish_writes();
  });
}

template <class T>
bool past_cache(const PoolShape& shape) {
  const int64_t elements = shape.h.input * shape.w.input + shape.h.output * shape.w.output;
  return worth_streaming(shape.outer * shape.inner * elements * static_cast<int64_t>(sizeof(T)));
}

template <class T>
void forward(const AveragePoolArgs& args) {
  const PoolShape shape = simplified(args.shape);
  const PoolAxis &h = shape.h, &w = shape.w;
  const int64_t taps = window_taps(shape);
  if (shape.inner > 1) {
    const bool streaming = past_cache<T>(shape) && aligned_rows<T>(args.output, shape.inner);
    return for_pixels<T>(
        shape.outer * h.output * w.output, taps * shape.inner,
        [&](int64_t begin, int64_t end) { mean_of_pixels<T>(args, begin, end, streaming); });
  }
  const bool streaming = past_cache<T>(shape) && aligned_rows<T>(args.output, w.output);
  for_pixels<T>(shape.outer * Columns::blocks(w) * h.output,
                taps * std::min(w.output, Columns::kMost), [&](int64_t begin, int64_t end) {
                  PlaneMean<T> mean(args, shape, streaming);
                  for_rows(shape, begin, end,
                           [&](int64_t plane, int64_t block, int64_t first, int64_t last) {
                             mean.rows(plane, block, first, last);
                           });
                });
}

template <class T>
void backward(const AveragePoolArgs& args) {
  const PoolShape shape = simplified(args.shape);
  const PoolAxis &h = shape.h, &w = shape.w;
  if (shape.inner > 1) {
    const bool streaming = past_cache<T>(shape) && aligned_rows<T>(args.output, shape.inner);
    const int64_t windows =
        ceil_divide(window_taps(shape) * h.output * w.output, h.input * w.input);
    return for_pixels<T>(
        shape.outer * h.input * w.input, windows * shape.inner,
        [&](int64_t begin, int64_t end) { gradient_of_pixels<T>(args, begin, end, streaming); });
  }
  const bool streaming = past_cache<T>(shape) && aligned_rows<T>(args.output, w.input);
  for_pixels<T>(shape.outer * h.input, w.input + w.output, [&](int64_t begin, int64_t end) {
    PlaneGradient<T> gradient(args, shape, streaming);
    while (begin < end) {
      const int64_t row = begin % h.input, count = std::min(h.input - row, end - begin);
      gradient.rows(begin / h.input, row, row + count);
      begin += count;
    }
  });
}

}  // namespace
}  // namespace CPU_CAPABILITY

template <>
void average_pool_forward<kBuildIsa>(const AveragePoolArgs& args) {
  dispatch_dtype<CpuTypes>(args.dtype, [&]<class T> { forward<T>(args); });
}

template <>
void average_pool_backward<kBuildIsa>(const AveragePoolArgs& args) {
  dispatch_dtype<CpuTypes>(args.dtype, [&]<class T> { backward<T>(args); });
}

}  // namespace fastdl
