// cross_entropy on CPU where the classes are not the last dimension (segmentation; formulas:
// cross_entropy.h): neighbouring columns of [outer, classes, inner] are the lanes of vectors.
// A block of 4 vectors of columns is packed into scratch, chunk by chunk of its classes, with the
// maximum; exponentials are summed from there and, for the gradient, kept and rescaled as they are
// written. The target's logit and its own term are picked where the class is the lane's target.
// Blocks too long for the scratch are read a second time.
// Rows of few classes are first transposed, in L1, into such a block.
// Memory: the logits read once, the gradient written once. The floor is these bytes / copy
// bandwidth.

#include "cross_entropy/cross_entropy_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace {

using namespace cross_entropy_detail;

// A block of columns: where it is, its targets, and what its gradient takes from its statistics.
template <class T, int kVectors, class Count>
struct Block {
  using A = Accumulate<T>;
  using V = Vec<T>;
  static constexpr int64_t kColumns = kVectors * kWidth<T>;

  const Problem<T>& problem;
  int64_t at;   // the first element
  int64_t row;  // the first column's number among all
  Count count;
  V index[kVectors], hit[kVectors], grad[kVectors], counts[kVectors];

  Block(const Problem<T>& problem, int64_t at, int64_t row, Count count)
      : problem(problem), at(at), row(row), count(count) {
    int64_t columns = kColumns;
    if constexpr (!std::is_same_v<Count, Whole>) columns = count;
    alignas(64) A indices[kColumns] = {}, hits[kColumns] = {}, grads[kColumns] = {},
                  counted[kColumns] = {};
    for (int64_t i = 0; i < columns; ++i) {
      const auto target = problem.target_of(row + i);
      indices[i] = static_cast<A>(target.index);
      hits[i] = target.hit;
      grads[i] = target.grad;
      counted[i] = target.ignored ? A(0) : A(1);
    }
    for (int k = 0; k < kVectors; ++k) {
      index[k] = V::loadu(indices + k * kWidth<T>);
      hit[k] = V::loadu(hits + k * kWidth<T>);
      grad[k] = V::loadu(grads + k * kWidth<T>);
      counts[k] = V::loadu(counted + k * kWidth<T>);
    }
  }

  int64_t element(int64_t j, int k) const { return at + j * problem.inner + k * kWidth<T>; }
  V load(int64_t j, int k) const {
    return load_vector(problem.input + element(j, k), count, -kInfinity<A>);
  }
  V q(int64_t j, int k) const { return problem.spread_of_columns(element(j, k), j, count); }
  // The gradient of class j, from factor exp(x_j - shift)
  void write(int64_t j, int k, V value, bool spread) const {
    const V own = grad[k] * hit[k];
    value = value - V::blendv(V(A(0)), own, index[k] == V(static_cast<A>(j)));
    if (spread) value = value - grad[k] * q(j, k);
    write_vector(problem.grad_input + element(j, k), value, count, problem.streaming);
  }
};

template <int kVectors, class T, class Count>
void forward_block(const Block<T, kVectors, Count>& block) {
  using A = Accumulate<T>;
  using V = Vec<T>;
  constexpr int64_t width = kWidth<T>, columns = kVectors * width;
  constexpr int64_t chunk = kChunkBytes / (columns * sizeof(A));
  const Problem<T>& problem = block.problem;
  const bool spread = problem.has_spread();
  const int64_t size = problem.classes;
  const bool write = problem.grad_input != nullptr, keep = write && size <= kChunks * chunk;
  const int64_t packed_rows = keep ? size : std::min(chunk, size);
  A* const packed = static_cast<A*>(thread_scratch((packed_rows + kChunks) * columns * sizeof(A)));
  A* const chunk_maximum = packed + packed_rows * columns;  // [kChunks, columns]
  Statistics<V, true> of_columns[kVectors];
  V logit[kVectors];
  for (int k = 0; k < kVectors; ++k) logit[k] = V(A(0));
  for (int64_t start = 0; start < size; start += chunk) {
    const int64_t length = std::min(chunk, size - start);
    A* const scores = keep ? packed + start * columns : packed;
    Statistics<V, true> of_chunk[kVectors];
    for (int64_t i = 0; i < length; ++i) {
      const V j(static_cast<A>(start + i));
      for (int k = 0; k < kVectors; ++k) {
        prefetch(problem.input + block.element(start + i, k) + columns);
        const V score = block.load(start + i, k);
        of_chunk[k].maximum = max_number(score, of_chunk[k].maximum);
        logit[k] = V::blendv(logit[k], score, block.index[k] == j);
        store_vector(scores + i * columns + k * width, score);
      }
    }
    V shift[kVectors];
    for (int k = 0; k < kVectors; ++k) shift[k] = shift_of(of_chunk[k].maximum);
    for (int64_t i = 0; i < length; ++i) {
      A* const place = scores + i * columns;
      V score[kVectors], e[kVectors];
      for (int k = 0; k < kVectors; ++k) {
        score[k] = load_vector(place + k * width);
        e[k] = score[k] - shift[k];
      }
      exp_negative(e);
      for (int k = 0; k < kVectors; ++k) {
        of_chunk[k].sum = of_chunk[k].sum + e[k];
        if (keep) store_vector(place + k * width, e[k]);
        if (spread) {
          const V q = block.q(start + i, k);
          of_chunk[k].q = of_chunk[k].q + q;
          of_chunk[k].distance = at::vec::fmadd(q, shift[k] - score[k], of_chunk[k].distance);
        }
      }
    }
    for (int k = 0; k < kVectors; ++k) {
      of_columns[k].add(of_chunk[k], start == 0);
      if (keep) {
        store_vector(chunk_maximum + start / chunk * columns + k * width, of_chunk[k].maximum);
      }
    }
  }
  V row_shift[kVectors], row_factor[kVectors];
  for (int k = 0; k < kVectors; ++k) {
    const auto& of = of_columns[k];
    const V log_sum = log(of.sum), reciprocal = V(A(1)) / of.sum, zero(A(0));
    row_shift[k] = shift_of(of.maximum);
    const V q = spread ? problem.spread_sum(of.q) : zero, coefficient = block.hit[k] + q;
    const int64_t row = block.row + k * width;
    if (problem.losses != nullptr) {
      V loss(A(0));
      if (problem.target != nullptr) loss = block.hit[k] * (log_sum - (logit[k] - row_shift[k]));
      if (spread) loss = loss + at::vec::fmadd(q, log_sum, of.distance);
      loss = V::blendv(loss, zero, block.counts[k] == zero);
      store_vector(problem.losses + row, loss, block.count);
    }
    if (problem.shifts != nullptr) {
      store_vector(problem.shifts + row, row_shift[k], block.count);
      store_vector(problem.reciprocals + row, reciprocal, block.count);
      store_vector(problem.coefficients + row, coefficient, block.count);
    }
    row_factor[k] = block.grad[k] * coefficient * reciprocal;
  }
  if (!write) return;
  for (int64_t start = 0; start < size; start += chunk) {
    V factor[kVectors];
    for (int k = 0; k < kVectors; ++k) {
      factor[k] = row_factor[k];
      if (keep && size > chunk) {
        const V from = load_vector(chunk_maximum + start / chunk * columns + k * width);
        factor[k] = factor[k] * rescale(from, of_columns[k].maximum);
      }
    }
    for (int64_t j = start; j < std::min(start + chunk, size); ++j) {
      for (int k = 0; k < kVectors; ++k) {
        const V e = keep ? load_vector(packed + j * columns + k * width)
                         : exp_negative(block.load(j, k) - row_shift[k]);
        block.write(j, k, e * factor[k], spread);
      }
    }
  }
}

template <int kVectors, class T, class Count>
void backward_block(const Block<T, kVectors, Count>& block) {
  using A = Accumulate<T>;
  using V = Vec<T>;
  const Problem<T>& problem = block.problem;
  const bool spread = problem.has_spread();
  V shift[kVectors], factor[kVectors];
  for (int k = 0; k < kVectors; ++k) {
    const int64_t row = block.row + k * kWidth<T>;
    shift[k] = load_vector(problem.shifts + row, block.count, A(0));
    factor[k] = block.grad[k] * load_vector(problem.reciprocals + row, block.count, A(0)) *
                load_vector(problem.coefficients + row, block.count, A(0));
  }
  for (int64_t j = 0; j < problem.classes; ++j) {
    V e[kVectors];
    for (int k = 0; k < kVectors; ++k) {
      prefetch(problem.input + block.element(j, k) + kVectors * kWidth<T>);
      e[k] = block.load(j, k) - shift[k];
    }
    exp_negative(e);
    for (int k = 0; k < kVectors; ++k) block.write(j, k, e[k] * factor[k], spread);
  }
}

// The rows from `row` on, as many as fit a block of kVectors vectors, transposed into one.
template <int kVectors, class T>
void forward_short_rows(const Problem<T>& problem, int64_t row) {
  constexpr int64_t columns = kVectors * kWidth<T>;
  alignas(64) T input[kShortRow * columns], probabilities[kShortRow * columns],
      gradient[kShortRow * columns];
  const int64_t classes = problem.classes, rows = std::min(columns, problem.rows - row);
  const auto transpose = [&](const T* from, T* to) {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < classes; ++j) to[j * columns + i] = from[(row + i) * classes + j];
    }
  };
  Problem<T> transposed = problem;
  transpose(problem.input, input);
  transposed.input = input;
  if (problem.probabilities != nullptr) {
    transpose(problem.probabilities, probabilities);
    transposed.probabilities = probabilities;
  }
  transposed.streaming = false;
  if (problem.grad_input != nullptr) transposed.grad_input = gradient;
  transposed.inner = columns;
  if (rows == columns) {
    forward_block(Block<T, kVectors, Whole>(transposed, 0, row, kWhole));
  } else {
    // in vectors, since only the last of a block may be partial
    for (int64_t i = 0; i < rows; i += kWidth<T>) {
      forward_block(Block<T, 1, int64_t>(transposed, i, row + i, std::min(kWidth<T>, rows - i)));
    }
  }
  if (problem.grad_input == nullptr) return;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < classes; ++j) {
      problem.grad_input[(row + i) * classes + j] = gradient[j * columns + i];
    }
  }
}

// Calls f(block) on all columns, four vectors at a time while they fit.
template <class T, class F>
void for_blocks(const Problem<T>& problem, F&& f) {
  constexpr int64_t width = kWidth<T>, columns = kLanes * width;
  const int64_t inner = problem.inner, blocks = (inner + columns - 1) / columns;
  parallel_for(0, problem.outer * blocks,
               std::max<int64_t>(1, kGrain / (problem.classes * columns)),
               [&](int64_t begin, int64_t end) {
                 for (int64_t unit = begin; unit < end; ++unit) {
                   const int64_t first = unit / blocks * problem.classes * inner;
                   const int64_t row = unit / blocks * inner;
                   int64_t column = unit % blocks * columns;
                   const int64_t last = std::min(inner, column + columns);
                   if (last - column == columns) {
                     f(Block<T, kLanes, Whole>(problem, first + column, row + column, kWhole));
                     continue;
                   }
                   for (; column < last; column += width) {
                     f(Block<T, 1, int64_t>(problem, first + column, row + column,
                                            std::min(width, last - column)));
                   }
                 }
                 finish_writes();
               });
}

}  // namespace

void cross_entropy_columns_forward(const CrossEntropyArgs& args) {
  dispatch_dtype<CpuTypes>(args.dtype, [&]<class T> {
    const Problem<T> problem(args);
    if (args.inner != 1) {
      return for_blocks(problem, [](const auto& block) { forward_block(block); });
    }
    constexpr int64_t rows = kLanes * kWidth<T>;
    parallel_for(0, (problem.rows + rows - 1) / rows,
                 std::max<int64_t>(1, kGrain / (rows * args.classes)),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t block = begin; block < end; ++block) {
                     forward_short_rows<kLanes>(problem, block * rows);
                   }
                 });
  });
}

void cross_entropy_columns_backward(const CrossEntropyArgs& args) {
  dispatch_dtype<CpuTypes>(args.dtype, [&]<class T> {
    const Problem<T> problem(args);
    for_blocks(problem, [](const auto& block) { backward_block(block); });
  });
}

}  // namespace CPU_CAPABILITY
}  // namespace fastdl
