// Softmax family on CPU, forward.
//   softmax      y = exp(x - m) / s,  m = max x,  s = sum exp(x - m);  softmin: the same of -x
//   log_softmax  y = (x - m) - log s
// Short rows (up to kLanes vectors): in registers from load to store.
// Rows (inner = 1): chunk by chunk, maximum and exponentials while the chunk is in L1, with a
// running maximum and sum; exponentials are kept in L2 scratch and rescaled as they are written.
// Rows too long for that are read a second time, instead of being written and read again.
// Columns (inner > 1): the same with neighbouring columns as lanes. They are packed into scratch
// first: lines a power of two apart share a few cache sets and would not stay.
// Memory: the input read once, the output written once, past the cache when it is larger than it.
// The floor is these bytes / copy bandwidth.

#include <limits>

#include "common/exp_negative_cpu.h"
#include "softmax/softmax_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace {

using namespace softmax_detail;

// Passes over a chunk find it in L1. Exponentials are kept for up to kChunks of them (2 MiB): read
// from L3 they still cost less than computed again.
constexpr int64_t kChunkBytes = int64_t{16} << 10;
constexpr int64_t kChunks = 128;

template <class A>
constexpr A kInfinity = std::numeric_limits<A>::infinity();

// x, or -x for softmin; lanes past the end never win the maximum and add nothing to the sum.
template <SoftmaxKind kind, class In, class Count>
inline Vec<In> load_score(const In* x, Count count) {
  if constexpr (kind == SoftmaxKind::kSoftmin) {
    return load_vector(x, count, kInfinity<Accumulate<In>>).neg();
  }
  return load_vector(x, count, -kInfinity<Accumulate<In>>);
}

// What scores are reduced by before exp: their maximum, or 0 where all are -inf.
template <class V>
inline V shift_of(V maximum) {
  using A = typename V::value_type;
  return V::blendv(maximum, V(A(0)), maximum == V(-kInfinity<A>));
}

// exp(from - to), the factor that moves a sum from one maximum to another; 1 when both are -inf.
template <class V>
inline V rescale(V from, V to) {
  using A = typename V::value_type;
  return exp_negative(V::blendv(from - to, V(A(0)), from == to));
}

// A running maximum and the sum of exp(score - maximum).
template <class V>
struct Statistics {
  using A = typename V::value_type;
  V maximum = V(-kInfinity<A>), sum = V(A(0));

  void add(V chunk_maximum, V chunk_sum, bool first) {
    if (first) {
      maximum = chunk_maximum;
      sum = chunk_sum;
      return;
    }
    const V raised = max_number(chunk_maximum, maximum);
    sum = sum * rescale(maximum, raised) + chunk_sum * rescale(chunk_maximum, raised);
    maximum = raised;
  }
};

// y from the score, once maximum and sum are known.
template <SoftmaxKind kind, class V>
struct Output {
  V shift, factor;  // factor: 1 / sum, or log sum

  Output() = default;
  explicit Output(const Statistics<V>& of) : shift(shift_of(of.maximum)) {
    factor = kind == SoftmaxKind::kLogSoftmax ? log(of.sum) : V(1) / of.sum;
  }
  V operator()(V score) const {
    if (kind == SoftmaxKind::kLogSoftmax) return (score - shift) - factor;
    return exp_negative(V(score - shift)) * factor;
  }
};

// Rows of kVectors vectors, the last with `tail` elements: in registers from load to store.
template <SoftmaxKind kind, int kVectors, class In, class Out, class Count>
void forward_short_rows(const In* x, Out* y, int64_t rows, int64_t size, Count tail,
                        bool streaming) {
  using A = Accumulate<In>;
  using V = Vec<In>;
  constexpr int64_t width = kWidth<In>;
  for (int64_t row = 0; row < rows; ++row, x += size, y += size) {
    V score[kVectors], e[kVectors];
    for (int k = 0; k < kVectors - 1; ++k) score[k] = load_score<kind>(x + k * width, kWhole);
    score[kVectors - 1] = load_score<kind>(x + (kVectors - 1) * width, tail);
    V maximum = score[0];
    for (int k = 1; k < kVectors; ++k) maximum = max_number(score[k], maximum);
    const V shift(reduce_max(maximum));
    V sum(A(0));
    for (int k = 0; k < kVectors; ++k) e[k] = score[k] - shift;
    exp_negative(e);
    for (int k = 0; k < kVectors; ++k) sum = sum + e[k];
    const V total(reduce_sum(sum));
    const V factor = kind == SoftmaxKind::kLogSoftmax ? log(total) : V(1) / total;
    for (int k = 0; k < kVectors; ++k) {
      const V value =
          kind == SoftmaxKind::kLogSoftmax ? (score[k] - shift) - factor : e[k] * factor;
      if (k < kVectors - 1) {
        write_vector(y + k * width, value, kWhole, streaming);
      } else {
        write_vector(y + k * width, value, tail, streaming);
      }
    }
  }
}

template <SoftmaxKind kind, class In, class Out>
void forward_row(const In* x, Out* y, int64_t size, bool streaming) {
  using A = Accumulate<In>;
  using V = Vec<In>;
  constexpr int64_t chunk = kChunkBytes / sizeof(A);
  const bool keep = kind != SoftmaxKind::kLogSoftmax && size <= kChunks * chunk;
  A* const kept = keep ? static_cast<A*>(thread_scratch(size * sizeof(A))) : nullptr;
  const In* const next = next_row(x, size);
  A chunk_maximum[kChunks];
  Statistics<V> row;
  for (int64_t start = 0; start < size; start += chunk) {
    const int64_t length = std::min(chunk, size - start);
    V maxima[kLanes], sums[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) maxima[lane] = V(-kInfinity<A>);
    for_vectors<In>(length, [&](int64_t i, auto count, int lane) {
      maxima[lane] = max_number(load_score<kind>(x + start + i, count), maxima[lane]);
    });
    const V pair = max_number(maxima[0], maxima[1]);
    const A largest = reduce_max(max_number(pair, max_number(maxima[2], maxima[3])));
    const V maximum(largest);
    const V shift = shift_of(maximum);
    for (int lane = 0; lane < kLanes; ++lane) sums[lane] = V(A(0));
    for_vectors<In>(length, [&](int64_t i, auto count, int lane) {
      prefetch(next + start + i);
      const V e = exp_negative(V(load_score<kind>(x + start + i, count) - shift));
      sums[lane] = sums[lane] + e;
      if (keep) store_vector(kept + start + i, e, count);
    });
    row.add(maximum, V(reduce_sum((sums[0] + sums[1]) + (sums[2] + sums[3]))), start == 0);
    if (keep) chunk_maximum[start / chunk] = largest;
  }
  const Output<kind, V> output(row);
  if (!keep) {
    return for_output_vectors(y, size, streaming, [&](int64_t i, auto count, int) {
      write_vector(y + i, output(load_score<kind>(x + i, count)), count, streaming);
    });
  }
  for (int64_t start = 0; start < size; start += chunk) {
    const V factor = rescale(V(chunk_maximum[start / chunk]), row.maximum) * output.factor;
    const int64_t length = std::min(chunk, size - start);
    for_output_vectors(y + start, length, streaming, [&](int64_t i, auto count, int) {
      const V value = load_vector(kept + start + i, count, A(0)) * factor;
      write_vector(y + start + i, value, count, streaming);
    });
  }
}

// kVectors x kWidth neighbouring columns (kVectors = 1: `count` of them), `inner` apart in memory.
template <SoftmaxKind kind, int kVectors, class In, class Out, class Count>
void forward_columns(const In* x, Out* y, int64_t size, int64_t inner, Count count,
                     bool streaming) {
  using A = Accumulate<In>;
  using V = Vec<In>;
  constexpr int64_t width = kWidth<In>, block = kVectors * width;
  constexpr int64_t chunk = kChunkBytes / (block * sizeof(A));
  constexpr bool is_log = kind == SoftmaxKind::kLogSoftmax;
  const bool keep = size <= kChunks * chunk;  // exponentials, or scores for log_softmax
  const int64_t packed_rows = keep ? size : chunk;
  A* const packed = static_cast<A*>(thread_scratch((packed_rows + kChunks) * block * sizeof(A)));
  A* const chunk_maximum = packed + packed_rows * block;  // [kChunks, block]
  Statistics<V> columns[kVectors];
  for (int64_t start = 0; start < size; start += chunk) {
    const int64_t length = std::min(chunk, size - start);
    A* const scores = keep ? packed + start * block : packed;
    V maximum[kVectors], shift[kVectors], sum[kVectors];
    for (int k = 0; k < kVectors; ++k) maximum[k] = V(-kInfinity<A>);
    for (int64_t i = 0; i < length; ++i) {
      for (int k = 0; k < kVectors; ++k) {
        const In* const from = x + (start + i) * inner + k * width;
        prefetch(from + block);
        const V score = load_score<kind>(from, count);
        maximum[k] = max_number(score, maximum[k]);
        store_vector(scores + i * block + k * width, score);
      }
    }
    for (int k = 0; k < kVectors; ++k) {
      shift[k] = shift_of(maximum[k]);
      sum[k] = V(A(0));
    }
    for (int64_t i = 0; i < length; ++i) {
      for (int k = 0; k < kVectors; ++k) {
        A* const score = scores + i * block + k * width;
        const V e = exp_negative(V(load_vector(score) - shift[k]));
        sum[k] = sum[k] + e;
        if (keep && !is_log) store_vector(score, e);
      }
    }
    for (int k = 0; k < kVectors; ++k) {
      columns[k].add(maximum[k], sum[k], start == 0);
      if (keep) store_vector(chunk_maximum + start / chunk * block + k * width, maximum[k]);
    }
  }
  Output<kind, V> outputs[kVectors];
  for (int k = 0; k < kVectors; ++k) outputs[k] = Output<kind, V>(columns[k]);
  for (int64_t start = 0; start < size; start += chunk) {
    V factor[kVectors];
    for (int k = 0; k < kVectors && keep && !is_log; ++k) {
      factor[k] = outputs[k].factor;
      if (size > chunk) {
        const V from = load_vector(chunk_maximum + start / chunk * block + k * width);
        factor[k] = factor[k] * rescale(from, columns[k].maximum);
      }
    }
    for (int64_t i = start; i < std::min(start + chunk, size); ++i) {
      for (int k = 0; k < kVectors; ++k) {
        const int64_t at = i * inner + k * width;
        const A* const from = packed + i * block + k * width;
        const V value = !keep    ? outputs[k](load_score<kind>(x + at, count))
                        : is_log ? outputs[k](load_vector(from))
                                 : load_vector(from) * factor[k];
        write_vector(y + at, value, count, streaming);
      }
    }
  }
}

}  // namespace
}  // namespace CPU_CAPABILITY

template <>
void softmax_forward<kBuildIsa>(const SoftmaxForwardArgs& args) {
  auto run = [&]<SoftmaxKind kind, class In, class Out>(bool streaming) {
    const In* const x = static_cast<const In*>(args.input);
    Out* const y = static_cast<Out*>(args.output);
    const int64_t size = args.size;
    if (args.inner > 1) {
      return for_columns<In>(
          args.outer, size, args.inner, [&](int64_t at, auto vectors, auto count) {
            forward_columns<kind, vectors()>(x + at, y + at, size, args.inner, count, streaming);
          });
    }
    for_rows<In>(args.outer, size,
                 [&](int64_t first, int64_t rows, auto vectors, [[maybe_unused]] auto tail) {
                   if constexpr (vectors() > 0) {
                     forward_short_rows<kind, vectors()>(x + first * size, y + first * size, rows,
                                                         size, tail, streaming);
                   } else {
                     for (int64_t row = first; row < first + rows; ++row) {
                       forward_row<kind>(x + row * size, y + row * size, size, streaming);
                     }
                   }
                 });
  };
  dispatch(args, args.output, args.output_dtype, run);
}

}  // namespace fastdl
