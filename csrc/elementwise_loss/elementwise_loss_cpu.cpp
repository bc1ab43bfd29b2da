// Losses that are a sum over elements, on CPU. With d = x - t:
//   mse  d^2;  l1  |d|;  smooth_l1  d^2 / (2 beta) if |d| < beta, else |d| - beta / 2;  huber is
//   smooth_l1 times beta = delta;  binary cross-entropy, for logits x and l = 1 + (p - 1) t:
//   w ((1 - t) max(x, 0) - p t min(x, 0) + l log(1 + exp(-|x|))).
// The elements are cut into blocks of kBlock, a block is summed in kLanes vectors of float32 (of
// float64 for float64: at most 256 numbers a lane), the blocks' sums are added in float64 and in
// order: the same bits with any number of threads. The backward multiplies the derivative by the
// gradient of the output. Memory: x and t read once each, the output or the gradients written once,
// past the cache when larger than it. Floor: these bytes / read bandwidth, or copy bandwidth.
#include <algorithm>

#include "common/dispatch.h"
#include "common/loops_cpu.h"
#include "common/parallel.h"
#include "common/vector_math_cpu.h"
#include "elementwise_loss/elementwise_loss.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace {

constexpr int64_t kBlock = 8192;  // elements
constexpr int64_t kGrain = 2;     // blocks that are worth a thread

// A loss has value(), the derivatives by input, slope(), and by target, target_slope(); kFill is an
// input for which the loss of target 0 is 0.
template <class T>
struct MeanSquare {
  static constexpr bool kWeighted = false;
  static constexpr Accumulate<T> kFill = 0;
  using V = Vec<T>;

  explicit MeanSquare(const ElementwiseLossTerms&) {}
  V value(V x, V t, V, V) const { return (x - t) * (x - t); }
  V slope(V x, V t, V, V) const { return (x - t) + (x - t); }
};

template <class T>
struct Absolute {
  static constexpr bool kWeighted = false;
  static constexpr Accumulate<T> kFill = 0;
  using V = Vec<T>;

  explicit Absolute(const ElementwiseLossTerms&) {}
  V value(V x, V t, V, V) const { return (x - t).abs(); }
  V slope(V x, V t, V, V) const {  // 0 where x = t, and where one is NaN, as in torch
    const V d = x - t, zero(Accumulate<T>(0)), one(Accumulate<T>(1));
    return ((zero < d) & one) - ((d < zero) & one);
  }
};

template <class T>
struct SmoothAbsolute {
  static constexpr bool kWeighted = false;
  static constexpr Accumulate<T> kFill = 0;
  using V = Vec<T>;
  using A = Accumulate<T>;
  V threshold, half_threshold, curvature, outer_slope;

  explicit SmoothAbsolute(const ElementwiseLossTerms& terms) {
    const bool huber = terms.kind == LossKind::kHuber;
    threshold = V(static_cast<A>(terms.threshold));
    half_threshold = V(static_cast<A>(0.5 * terms.threshold));
    curvature = V(static_cast<A>(huber ? 1 : 1 / terms.threshold));
    outer_slope = V(static_cast<A>(huber ? terms.threshold : 1));
  }
  V value(V x, V t, V, V) const {
    const V d = (x - t).abs();
    const V inner = V(A(0.5)) * d * d * curvature, outer = (d - half_threshold) * outer_slope;
    return V::blendv(outer, inner, d < threshold);
  }
  V slope(V x, V t, V, V) const {
    const V d = x - t, zero(A(0));
    const V outer = V::blendv(zero - outer_slope, outer_slope, d > zero);
    return V::blendv(d * curvature, outer, d.abs() >= threshold);
  }
};

template <class T>
struct BinaryCrossEntropy {
  static constexpr bool kWeighted = true;
  static constexpr Accumulate<T> kFill = -10000;
  using V = Vec<T>;
  using A = Accumulate<T>;
  const bool has_pos_weight;

  explicit BinaryCrossEntropy(const ElementwiseLossTerms& terms)
      : has_pos_weight(terms.pos_weight != nullptr) {}

  static V exp_of_minus(V x) { return exp(V(A(0)) - x.abs()); }

  // log(1 + u) for 0 <= u <= 1, by 2 atanh(z) = 2 (z + z^3 / 3 + ..) with z = u / (2 + u) <= 1/3.
  static V log_of_1_plus(V u) {
    constexpr int terms = std::is_same_v<T, double> ? 17 : 7;
    const V z = u / (V(A(2)) + u), z2 = z * z;
    V p(A(1) / (2 * terms + 1));
    for (int k = terms - 1; k > 0; --k) p = at::vec::fmadd(p, z2, V(A(1) / (2 * k + 1)));
    const V twice = z + z;
    return at::vec::fmadd(twice * z2, p, twice);
  }

  // Without differences of large terms; x = -inf gives NaN through `positive`, as in torch.
  V value(V x, V t, V weight, V pos_weight) const {
    const V zero(A(0)), one(A(1));
    const V negative = at::vec::clamp_max(x, zero), positive = x - negative;
    const V large = at::vec::fmadd(zero - pos_weight * t, negative, (one - t) * positive);
    const V factor = at::vec::fmadd(pos_weight - one, t, one);
    return weight * at::vec::fmadd(factor, log_of_1_plus(exp_of_minus(x)), large);
  }
  V slope(V x, V t, V weight, V pos_weight) const {
    const V one(A(1)), e = exp_of_minus(x);
    const V sigmoid = V::blendv(e, one, x >= V(A(0))) / (one + e);
    if (!has_pos_weight) return weight * (sigmoid - t);
    const V positive = pos_weight * t;
    return weight * at::vec::fmsub(positive + (one - t), sigmoid, positive);
  }
  V target_slope(V x, V, V weight, V pos_weight) const {
    const V zero(A(0));
    if (!has_pos_weight) return weight * (zero - x);
    const V small = log_of_1_plus(exp_of_minus(x));
    const V log_sigmoid = at::vec::clamp_max(x, zero) - small;
    const V log_of_rest = at::vec::clamp_max(zero - x, zero) - small;
    return weight * (log_of_rest - pos_weight * log_sigmoid);
  }
};

// What is fetched while elements are computed: those 4 KiB ahead, or those themselves.
template <class T>
struct Ahead {
  const T *input, *target;

  void fetch(int64_t i) const {
    prefetch(input + i);
    prefetch(target + i);
  }
};

template <class T>
struct Operands {
  const T *input, *target, *weight, *pos_weight;

  Ahead<T> ahead(bool far) const {
    constexpr int64_t distance = 4096 / sizeof(T);
    return {input + (far ? distance : 0), target + (far ? distance : 0)};
  }

  template <class Loss, class Count, class F>
  auto at(int64_t i, Count count, F&& f) const {
    using A = Accumulate<T>;
    const Vec<T> x = load_vector(input + i, count, Loss::kFill);
    const Vec<T> t = load_vector(target + i, count, A(0));
    Vec<T> w(A(1)), p(A(1));
    if constexpr (Loss::kWeighted) {
      if (weight != nullptr) w = load_vector(weight + i, count, A(1));
      if (pos_weight != nullptr) p = load_vector(pos_weight + i, count, A(1));
    }
    return f(x, t, w, p);
  }
};

// Calls f(operands, begin, size) on pieces of [begin, end) in which the weights are contiguous.
template <class T, class Loss, class F>
void for_pieces(const ElementwiseLossTerms& terms, int64_t begin, int64_t end, F&& f) {
  const T* const input = static_cast<const T*>(terms.input);
  const T* const target = static_cast<const T*>(terms.target);
  if constexpr (!Loss::kWeighted) {
    f(Operands<T>{input + begin, target + begin, nullptr, nullptr}, begin, end - begin);
  } else {
    const T* const weight = static_cast<const T*>(terms.weight);
    const T* const pos_weight = static_cast<const T*>(terms.pos_weight);
    for (int64_t i = begin; i < end;) {
      const int64_t in_weight = i % terms.weight_period, in_pos = i % terms.pos_weight_period;
      const int64_t size =
          std::min({end - i, terms.weight_period - in_weight, terms.pos_weight_period - in_pos});
      f(Operands<T>{input + i, target + i, weight ? weight + in_weight : nullptr,
                    pos_weight ? pos_weight + in_pos : nullptr},
        i, size);
      i += size;
    }
  }
}

template <class F>
void dispatch(const ElementwiseLossTerms& terms, F&& f) {
  dispatch_dtype<CpuTypes>(terms.dtype, [&]<class T> {
    switch (terms.kind) {
      case LossKind::kMse:
        return f.template operator()<T>(MeanSquare<T>(terms));
      case LossKind::kL1:
        return f.template operator()<T>(Absolute<T>(terms));
      case LossKind::kSmoothL1:
      case LossKind::kHuber:
        return f.template operator()<T>(SmoothAbsolute<T>(terms));
      case LossKind::kBinaryCrossEntropy:
        return f.template operator()<T>(BinaryCrossEntropy<T>(terms));
    }
  });
}

// Writes the losses where there is an output, else adds them up.
template <class T, class Loss>
double forward_piece(const Loss& loss, const Operands<T>& operands, T* output, int64_t size,
                     bool streaming, bool far) {
  using V = Vec<T>;
  V sums[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) sums[lane] = V(Accumulate<T>(0));
  const auto ahead = operands.ahead(far);
  for_output_vectors(output, size, streaming, [&](int64_t i, auto count, int lane) {
    ahead.fetch(i);
    const V value = operands.template at<Loss>(
        i, count, [&](V x, V t, V w, V p) { return loss.value(x, t, w, p); });
    if (output != nullptr) {
      write_vector(output + i, value, count, streaming);
    } else {
      sums[lane] = sums[lane] + value;
    }
  });
  return reduce_sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

template <class T>
bool is_same_shift(const T* one, const T* other) {
  constexpr uintptr_t bytes = kWidth<T> * sizeof(T);
  return (reinterpret_cast<uintptr_t>(one) - reinterpret_cast<uintptr_t>(other)) % bytes == 0;
}

}  // namespace
}  // namespace CPU_CAPABILITY

template <>
void elementwise_loss_forward<kBuildIsa>(const ElementwiseLossForwardArgs& args) {
  const ElementwiseLossTerms& terms = args.terms;
  const bool reduces = terms.reduction != LossReduction::kNone;
  const int64_t blocks = (terms.size + kBlock - 1) / kBlock;
  dispatch(terms, [&]<class T, class Loss>(const Loss& loss) {
    T* const output = reduces ? nullptr : static_cast<T*>(args.output);
    const bool far = worth_streaming((reduces ? 2 : 3) * terms.size * sizeof(T));
    const bool streaming = far && !reduces;
    double* const sums = static_cast<double*>(thread_scratch(blocks * sizeof(double)));
    parallel_for(0, blocks, kGrain, [&](int64_t first, int64_t last) {
      for (int64_t block = first; block < last; ++block) {
        double sum = 0;
        const int64_t begin = block * kBlock, end = std::min(begin + kBlock, terms.size);
        for_pieces<T, Loss>(terms, begin, end,
                            [&](const Operands<T>& operands, int64_t at, int64_t size) {
                              sum += forward_piece(loss, operands, output ? output + at : nullptr,
                                                   size, streaming, far);
                            });
        sums[block] = sum;
      }
      finish_writes();
    });
    if (!reduces) return;
    double sum = 0;
    for (int64_t block = 0; block < blocks; ++block) sum += sums[block];
    if (terms.reduction == LossReduction::kMean) sum /= static_cast<double>(terms.size);
    *static_cast<T*>(args.output) = static_cast<T>(static_cast<Accumulate<T>>(sum));
  });
}

template <>
void elementwise_loss_backward<kBuildIsa>(const ElementwiseLossBackwardArgs& args) {
  const ElementwiseLossTerms& terms = args.terms;
  const int64_t blocks = (terms.size + kBlock - 1) / kBlock;
  dispatch(terms, [&]<class T, class Loss>(const Loss& loss) {
    using A = Accumulate<T>;
    using V = Vec<T>;
    const T* const grads = static_cast<const T*>(args.grad_output);
    T* const grad_input = static_cast<T*>(args.grad_input);
    T* const grad_target = static_cast<T*>(args.grad_target);
    T* const written = grad_input != nullptr ? grad_input : grad_target;
    const bool both = grad_input != nullptr && grad_target != nullptr;
    const int64_t tensors = (args.same_grad_output ? 3 : 4) + (both ? 1 : 0);
    const bool streaming = worth_streaming(tensors * terms.size * sizeof(T)) &&
                           (!both || is_same_shift(grad_input, grad_target));
    const bool mean = terms.reduction == LossReduction::kMean;
    const V norm(static_cast<A>(mean ? 1.0 / static_cast<double>(terms.size) : 1.0));
    const V same = args.same_grad_output ? V(static_cast<A>(*grads)) * norm : norm;
    const auto run = [&](const Operands<T>& operands, int64_t at, int64_t size) {
      const auto ahead = operands.ahead(streaming);
      for_output_vectors(written + at, size, streaming, [&](int64_t i, auto count, int) {
        ahead.fetch(i);
        V scale = same;
        if (!args.same_grad_output) scale = norm * load_vector(grads + at + i, count, A(0));
        operands.template at<Loss>(i, count, [&](V x, V t, V w, V p) {
          const V grad = scale * loss.slope(x, t, w, p);
          if (grad_input != nullptr) write_vector(grad_input + at + i, grad, count, streaming);
          if (grad_target == nullptr) return;
          V target_grad = V(A(0)) - grad;
          if constexpr (Loss::kWeighted) target_grad = scale * loss.target_slope(x, t, w, p);
          write_vector(grad_target + at + i, target_grad, count, streaming);
        });
      });
    };
    // The usual call: one number for all, the gradient of the input alone. Without its decisions
    // inside the loop, which cost most while everything is in cache, it is worth its lines.
    const auto run_usual = [&](const Operands<T>& operands, int64_t at, int64_t size) {
      const auto ahead = operands.ahead(streaming);
      T* const output = grad_input + at;
      for_output_vectors(output, size, streaming, [&](int64_t i, auto count, int) {
        ahead.fetch(i);
        const V slope = operands.template at<Loss>(
            i, count, [&](V x, V t, V w, V p) { return loss.slope(x, t, w, p); });
        write_vector(output + i, same * slope, count, streaming);
      });
    };
    const bool usual = args.same_grad_output && grad_target == nullptr;
    parallel_for(0, blocks, kGrain, [&](int64_t first, int64_t last) {
      const int64_t begin = first * kBlock, end = std::min(last * kBlock, terms.size);
      if (usual) {
        for_pieces<T, Loss>(terms, begin, end, run_usual);
      } else {
        for_pieces<T, Loss>(terms, begin, end, run);
      }
      finish_writes();
    });
  });
}

}  // namespace fastdl
