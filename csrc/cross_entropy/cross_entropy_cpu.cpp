// cross_entropy on CPU along contiguous rows (formulas: cross_entropy.h), loss and gradient of a
// row while it is in cache. Rows up to kLanes vectors stay in registers. Longer ones are taken in
// chunks: maximum, then exponentials with a running maximum and sum, while the chunk is in L1;
// where the gradient is wanted the exponentials are kept in L2 scratch and rescaled as they are
// written. Rows too long for that are read a second time. The target's own term is added last, from
// its logit alone, so that softmax - 1 is exact to a rounding. Memory: the logits read once, the
// gradient written once, past the cache when it is larger. The log-probabilities never exist. The
// floor is these bytes / copy bandwidth (the loss alone: read bandwidth).

#include "cross_entropy/cross_entropy_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace {

using namespace cross_entropy_detail;

// What all gradients of a row share: dx_j = exp(x_j - shift) factor - grad q_j, less grad hit at
// the target.
template <class T>
struct RowGradient {
  using A = Accumulate<T>;
  A shift, factor, grad;

  // The element of the target, from its logit.
  void fix_target(const Problem<T>& problem, const typename Problem<T>::Target& target, A logit,
                  T* dx) const {
    if (target.index < 0) return;
    const Vec<T> e = exp_negative(Vec<T>(logit - shift));
    alignas(64) A lanes[kWidth<T>];
    e.store(lanes);
    const A others = grad * (target.hit + problem.spread_of_index(target.index));
    dx[target.index] = static_cast<T>(lanes[0] * factor - others);
  }
};

// Writes what is known of a row once its statistics are, and returns what its gradient needs.
template <bool spread, class T>
RowGradient<T> finish_row(const Problem<T>& problem, int64_t row,
                          const typename Problem<T>::Target& target, Accumulate<T> logit,
                          const Statistics<Vec<T>, spread>& of_row) {
  using A = Accumulate<T>;
  using V = Vec<T>;
  constexpr auto first = [](const V& value) {
    alignas(64) A lanes[kWidth<T>];
    value.store(lanes);
    return lanes[0];
  };
  const A shift = first(shift_of(of_row.maximum)), log_sum = first(log(of_row.sum));
  const A q = spread ? first(problem.spread_sum(of_row.q)) : A(0),
          reciprocal = 1 / first(of_row.sum);
  if (problem.losses != nullptr) {
    A loss = target.index < 0 ? A(0) : target.hit * (log_sum - (logit - shift));
    if (spread) loss = loss + (q * log_sum + first(of_row.distance));
    problem.losses[row] = target.ignored ? A(0) : loss;
  }
  const A coefficient = target.hit + q;
  if (problem.shifts != nullptr) {
    problem.shifts[row] = shift;
    problem.reciprocals[row] = reciprocal;
    problem.coefficients[row] = coefficient;
  }
  return {shift, target.grad * coefficient * reciprocal, target.grad};
}

template <bool spread, class T>
void forward_row(const Problem<T>& problem, int64_t row) {
  using A = Accumulate<T>;
  using V = Vec<T>;
  constexpr int64_t chunk = kChunkBytes / sizeof(A), width = kWidth<T>;
  const int64_t size = problem.classes, at = row * size;
  const T* const x = problem.input + at;
  const bool keep = problem.grad_input != nullptr && size <= kChunks * chunk;
  A* const kept = keep ? static_cast<A*>(thread_scratch(size * sizeof(A))) : nullptr;
  const T* const next = next_row(x, size);
  const auto target = problem.target_of(row);
  const A logit = target.index < 0 ? A(0) : static_cast<A>(x[target.index]);
  A chunk_maximum[kChunks];
  Statistics<V, spread> of_row;
  for (int64_t start = 0; start < size; start += chunk) {
    const int64_t length = std::min(chunk, size - start);
    V maxima[kLanes], sums[kLanes], qs[kLanes], distances[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      maxima[lane] = V(-kInfinity<A>);
      sums[lane] = qs[lane] = distances[lane] = V(A(0));
    }
    for_vectors<T>(length, [&](int64_t i, auto count, int lane) {
      maxima[lane] = max_number(load_vector(x + start + i, count, -kInfinity<A>), maxima[lane]);
    });
    const A largest =
        reduce_max(max_number(max_number(maxima[0], maxima[1]), max_number(maxima[2], maxima[3])));
    Statistics<V, spread> of_chunk;
    of_chunk.maximum = V(largest);
    const V shift = shift_of(of_chunk.maximum);
    for_vector_groups<T>(length, [&](int64_t i, auto count, auto vectors) {
      constexpr int N = vectors();
      const int64_t j = start + i;
      V score[N], e[N];
      for (int k = 0; k < N; ++k) {
        prefetch(next + j + k * width);
        score[k] = load_vector(x + j + k * width, count, -kInfinity<A>);
        e[k] = score[k] - shift;
      }
      exp_negative(e);
      for (int k = 0; k < N; ++k) {
        sums[k] = sums[k] + e[k];
        if (keep) store_vector(kept + j + k * width, e[k], count);
        if constexpr (spread) {
          const V q = problem.spread(at, j + k * width, count);
          qs[k] = qs[k] + q;
          distances[k] = at::vec::fmadd(q, keep_lanes(shift - score[k], count), distances[k]);
        }
      }
    });
    const auto total = [](const V(&of)[kLanes]) {
      return V(reduce_sum((of[0] + of[1]) + (of[2] + of[3])));
    };
    of_chunk.sum = total(sums);
    if (spread) {
      of_chunk.q = total(qs);
      of_chunk.distance = total(distances);
    }
    of_row.add(of_chunk, start == 0);
    if (keep) chunk_maximum[start / chunk] = largest;
  }
  const RowGradient<T> gradient = finish_row<spread>(problem, row, target, logit, of_row);
  if (problem.grad_input == nullptr) return;
  T* const dx = problem.grad_input + at;
  const V grad(gradient.grad), row_shift(gradient.shift), row_factor(gradient.factor);
  for (int64_t start = 0; start < size; start += chunk) {
    const V factor =
        keep ? rescale(V(chunk_maximum[start / chunk]), of_row.maximum) * row_factor : row_factor;
    const int64_t length = std::min(chunk, size - start);
    for_output_vectors(dx + start, length, problem.streaming, [&](int64_t i, auto count, int) {
      const V e = keep ? load_vector(kept + start + i, count, A(0))
                       : exp_negative(load_vector(x + start + i, count, -kInfinity<A>) - row_shift);
      V value = e * factor;
      if constexpr (spread) value = value - grad * problem.spread(at, start + i, count);
      write_vector(dx + start + i, value, count, problem.streaming);
    });
  }
  gradient.fix_target(problem, target, logit, dx);
}

// Calls f(row) for all rows.
template <class T, class F>
void for_rows(const Problem<T>& problem, F&& f) {
  parallel_for(0, problem.rows, std::max<int64_t>(1, kGrain / problem.classes),
               [&](int64_t begin, int64_t end) {
                 for (int64_t row = begin; row < end; ++row) f(row);
                 finish_writes();
               });
}

// The elements before the first that streaming stores can write, 0 if that is the first of all.
template <class T>
int64_t to_alignment(const T* data, int64_t size) {
  constexpr uintptr_t bytes = kWidth<T> * sizeof(T);
  const uintptr_t past = reinterpret_cast<uintptr_t>(data) % bytes;
  return past == 0 ? 0 : std::min(size, static_cast<int64_t>((bytes - past) / sizeof(T)));
}

template <class T>
void backward_row(const Problem<T>& problem, int64_t row) {
  using A = Accumulate<T>;
  using V = Vec<T>;
  const int64_t size = problem.classes, at = row * size;
  const T* const x = problem.input + at;
  T* const dx = problem.grad_input + at;
  const auto target = problem.target_of(row);
  const A logit = target.index < 0 ? A(0) : static_cast<A>(x[target.index]);
  const bool spread = problem.has_spread();
  const RowGradient<T> gradient = {
      problem.shifts[row], target.grad * problem.coefficients[row] * problem.reciprocals[row],
      target.grad};
  const V shift(gradient.shift), factor(gradient.factor), grad(gradient.grad);
  const T* const next = problem.streaming ? next_row(x, size) : x;
  const int64_t head = problem.streaming ? to_alignment(dx, size) : 0;
  const auto write = [&](int64_t i, auto count, auto vectors) {
    V e[vectors()];
    for (int k = 0; k < vectors(); ++k) {
      prefetch(next + i + k * kWidth<T>);
      e[k] = load_vector(x + i + k * kWidth<T>, count, -kInfinity<A>) - shift;
    }
    exp_negative(e);
    for (int k = 0; k < vectors(); ++k) {
      const int64_t j = i + k * kWidth<T>;
      V value = e[k] * factor;
      if (spread) value = value - grad * problem.spread(at, j, count);
      write_vector(dx + j, value, count, problem.streaming);
    }
  };
  if (head > 0) write(0, head, std::integral_constant<int, 1>());
  for_vector_groups<T>(
      size - head, [&](int64_t i, auto count, auto vectors) { write(head + i, count, vectors); });
  gradient.fix_target(problem, target, logit, dx);
}

}  // namespace
}  // namespace CPU_CAPABILITY

template <>
void cross_entropy_forward<kBuildIsa>(const CrossEntropyArgs& args) {
  if (args.inner != 1 || args.classes <= cross_entropy_detail::kShortRow) {
    return cross_entropy_columns_forward(args);
  }
  dispatch_dtype<CpuTypes>(args.dtype, [&]<class T> {
    const cross_entropy_detail::Problem<T> problem(args);
    for_rows(problem, [&](int64_t row) {
      problem.has_spread() ? forward_row<true>(problem, row) : forward_row<false>(problem, row);
    });
  });
}

template <>
void cross_entropy_backward<kBuildIsa>(const CrossEntropyArgs& args) {
  if (args.inner != 1) return cross_entropy_columns_backward(args);
  dispatch_dtype<CpuTypes>(args.dtype, [&]<class T> {
    const cross_entropy_detail::Problem<T> problem(args);
    for_rows(problem, [&](int64_t row) { backward_row(problem, row); });
  });
}

}  // namespace fastdl
