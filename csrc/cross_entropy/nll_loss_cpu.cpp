// nll_loss on CPU (formulas: cross_entropy.h), and what it shares with cross_entropy: checking and
// weighing the targets, and the sum of the losses.
// The forward picks one element a row, wherever it is: no tensor is read whole. The backward writes
// one element a row among zeros. Sums are taken in float64, in blocks of kTargetBlock rows in
// order, so that they do not depend on the number of threads. Memory: forward the targets and a
// cache line a row, and of the gradient.

#include <vector>

#include "common/dispatch.h"
#include "common/loops_cpu.h"
#include "common/parallel.h"
#include "cross_entropy/cross_entropy.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace {

// Halves are summed on their own, so that rounding errors do not add up.
template <class A>
double sum_of(const A* values, int64_t begin, int64_t end) {
  if (end - begin > 128) {
    const int64_t middle = begin + (end - begin) / 2;
    return sum_of(values, begin, middle) + sum_of(values, middle, end);
  }
  double sums[4] = {};
  int64_t i = begin;
  for (; i + 4 <= end; i += 4) {
    for (int lane = 0; lane < 4; ++lane) sums[lane] += values[i + lane];
  }
  for (; i < end; ++i) sums[0] += values[i];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// The sum over all blocks of rows of term(begin, end).
template <class F>
double sum_of_blocks(int64_t rows, F&& term) {
  const int64_t blocks = (rows + kTargetBlock - 1) / kTargetBlock;
  if (blocks <= 1) return term(int64_t{0}, rows);
  std::vector<double> sums(blocks);
  parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      sums[block] = term(block * kTargetBlock, std::min(rows, (block + 1) * kTargetBlock));
    }
  });
  return sum_of(sums.data(), 0, blocks);
}

template <class T>
double grad_scale(const NllLossArgs& args, int64_t row) {
  const auto* const grad = static_cast<const Accumulate<T>*>(args.grad_output);
  const double scale = args.divisor == nullptr ? 1 : 1 / *args.divisor;
  return grad == nullptr ? scale : scale * grad[args.grad_output_of_rows ? row : 0];
}

}  // namespace
}  // namespace CPU_CAPABILITY

template <>
TargetOutOfBounds target_weight<kBuildIsa>(const TargetWeightArgs& args) {
  const int64_t none = args.rows;
  const int64_t blocks = (args.rows + kTargetBlock - 1) / kTargetBlock;
  std::vector<int64_t> wrong(std::max<int64_t>(blocks, 1), none);  // the first row of each block
  const auto weigh = [&]<class A>(const A* weight) {
    return sum_of_blocks(args.rows, [&](int64_t begin, int64_t end) {
      double total = 0, part = 0;
      int64_t count = 0;
      for (int64_t row = begin; row < end; ++row) {
        const int64_t index = args.target[row];
        if (index == args.ignore_index) continue;
        if (index < 0 || index >= args.classes) {
          wrong[begin / kTargetBlock] = row;
          break;
        }
        if (weight != nullptr) part += weight[index];
        if (++count % 128 == 0) {  // as in sum_of
          total += part;
          part = 0;
        }
      }
      return weight != nullptr ? total + part : static_cast<double>(count);
    });
  };
  const double total = args.dtype == DType::kFloat64
                           ? weigh(static_cast<const double*>(args.weight))
                           : weigh(static_cast<const float*>(args.weight));
  if (args.total != nullptr) *args.total = total;
  for (const int64_t row : wrong) {
    if (row != none) return {true, args.target[row]};
  }
  return {false, -1};
}

template <>
void loss_sum<kBuildIsa>(const LossSumArgs& args) {
  const auto sum = [&](const auto* losses) {
    return sum_of_blocks(args.rows,
                         [&](int64_t begin, int64_t end) { return sum_of(losses, begin, end); });
  };
  double total = args.dtype == DType::kFloat64 ? sum(static_cast<const double*>(args.losses))
                                               : sum(static_cast<const float*>(args.losses));
  if (args.divisor != nullptr) total /= *args.divisor;
  dispatch_dtype<CpuTypes>(args.output_dtype, [&]<class T> {
    *static_cast<T*>(args.output) = static_cast<T>(static_cast<Accumulate<T>>(total));
  });
}

template <>
void nll_loss_forward<kBuildIsa>(const NllLossArgs& args) {
  dispatch_dtype<CpuTypes>(args.dtype, [&]<class T> {
    using A = Accumulate<T>;
    const auto* const weight = static_cast<const A*>(args.weight);
    parallel_for(0, args.outer * args.inner, 4096, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t index = args.target[row];
        A loss = 0;
        if (index != args.ignore_index) {
          const int64_t at = row / args.inner * args.outer_stride +
                             row % args.inner * args.inner_stride + index * args.class_stride;
          const A value = static_cast<const T*>(args.input)[at];
          loss = -(weight ? weight[index] * value : value);
        }
        static_cast<A*>(args.losses)[row] = loss;
      }
    });
  });
}

template <>
void nll_loss_backward<kBuildIsa>(const NllLossArgs& args) {
  dispatch_dtype<CpuTypes>(args.dtype, [&]<class T> {
    using A = Accumulate<T>;
    const auto* const weight = static_cast<const A*>(args.weight);
    parallel_for(0, args.outer * args.inner, 4096, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t index = args.target[row];
        if (index == args.ignore_index) continue;
        const int64_t at =
            (row / args.inner * args.classes + index) * args.inner + row % args.inner;
        const A grad = static_cast<A>(grad_scale<T>(args, row));
        static_cast<T*>(args.grad_input)[at] =
            static_cast<T>(-(weight ? weight[index] * grad : grad));
      }
    });
  });
}

}  // namespace fastdl
