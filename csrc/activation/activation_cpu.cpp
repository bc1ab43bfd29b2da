// Activation functions on CPU: elements in memory order, whatever the tensor's layout.
//   relu  max(x, 0)      leaky_relu  x > 0 ? x : slope x      elu  x > 0 ? x : alpha (exp(x) - 1)
//   sigmoid s(x) = 1 / (1 + exp(-x))      tanh      silu  x s(x)
//   gelu  x Phi(x), Phi the normal distribution, or x s(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3)
// NaN, infinities and the sign of zeros as in torch. Memory: forward reads x and writes y, backward
// reads dy and x (or y) and writes dx: once, past the cache when all of it is larger. Floor: these
// bytes / copy bandwidth. On two cores of a Zen 1 with AVX2 the functions with an exponential need
// about as long for their arithmetic as the memory does.

#include <algorithm>

#include "activation/activation.h"
#include "activation/bounded_math_cpu.h"
#include "common/dispatch.h"
#include "common/loops_cpu.h"
#include "common/parallel.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace {

constexpr int64_t kBlock = 4096;       // elements: keeps the ranges of threads aligned
constexpr int64_t kGrainBlocks = 4;    // worth waking a thread for
constexpr int64_t kAheadBytes = 4096;  // what is fetched while a vector is computed

// forward(x, parameter) and backward(x or y, dy, parameter) of each function.
template <ActivationKind kind>
struct Function;

template <>
struct Function<ActivationKind::kRelu> {
  template <class V>
  static V forward(V x, V) {
    return at::vec::clamp_min(x, V(0));
  }
  template <class V>
  static V backward(V y, V dy, V) {
    return V::blendv(dy, V(0), y <= V(0));
  }
};

template <>
struct Function<ActivationKind::kSigmoid> {
  template <class V>
  static V forward(V x, V) {
    return sigmoid(x);
  }
  template <class V>
  static V backward(V y, V dy, V) {
    return dy * (V(1) - y) * y;
  }
};

template <>
struct Function<ActivationKind::kTanh> {
  template <class V>
  static V forward(V x, V) {
    return tanh(x);
  }
  template <class V>
  static V backward(V y, V dy, V) {
    return dy * (V(1) - y * y);
  }
};

template <>
struct Function<ActivationKind::kGelu> {
  template <class V>
  static V forward(V x, V) {
    return x * normal_cdf(x);
  }
  template <class V>
  static V backward(V x, V dy, V) {
    using A = typename V::value_type;
    const V density = quick_exp(x * x * V(A(-0.5))) * V(A(0.3989422804014327));
    return dy * at::vec::fmadd(x, density, normal_cdf(x));
  }
};

template <>
struct Function<ActivationKind::kGeluTanh> {
  // 2 sqrt(2 / pi), and 0.044715 times it
  static constexpr double kLinear = 1.5957691216057308, kCubic = 0.0713548162726009;

  // exp(-2 u)
  template <class V>
  static V power(V x, V square) {
    using A = typename V::value_type;
    return quick_exp(x * at::vec::fmadd(square, V(A(-kCubic)), V(A(-kLinear))));
  }
  template <class V>
  static V forward(V x, V) {
    return x / (V(1) + power(x, x * x));
  }
  template <class V>
  static V backward(V x, V dy, V) {
    using A = typename V::value_type;
    const V square = x * x, e = power(x, square), s = V(1) / (V(1) + e);
    // 1 - s, without cancellation where s is near 1
    const V rest = V::blendv(V(1) - s, e * s, s > V(A(0.5)));
    const V slope = at::vec::fmadd(square, V(A(3 * kCubic)), V(A(kLinear)));
    return dy * at::vec::fmadd(x * s * rest, slope, s);
  }
};

template <>
struct Function<ActivationKind::kSilu> {
  template <class V>
  static V forward(V x, V) {
    return x / (V(1) + quick_exp(x.neg()));
  }
  template <class V>
  static V backward(V x, V dy, V) {
    const V s = sigmoid(x);
    return dy * s * at::vec::fmadd(x, V(1) - s, V(1));
  }
};

template <>
struct Function<ActivationKind::kLeakyRelu> {
  template <class V>
  static V forward(V x, V slope) {
    return V::blendv(x * slope, x, x > V(0));
  }
  template <class V>
  static V backward(V x, V dy, V slope) {
    return V::blendv(dy * slope, dy, x > V(0));
  }
};

template <>
struct Function<ActivationKind::kElu> {
  template <class V>
  static V forward(V x, V alpha) {
    return V::blendv(alpha * exp_minus_1_of_negative(at::vec::clamp_max(x, V(0))), x, x >= V(0));
  }
  template <class V>
  static V backward(V x, V dy, V alpha) {
    return V::blendv(dy * alpha * quick_exp(at::vec::clamp_max(x, V(0))), dy, x > V(0));
  }
};

// Calls f(position, count) on the vectors of [0, count), in parallel: a copy of f for each range,
// so that what it holds stays in registers (vectors that are stored might change anything else).
// Not unrolled as loops_cpu.h does it: a vector is enough work, and 64 functions are to be
// compiled.
template <class T, class F>
void for_elements(int64_t count, const F& f) {
  const int64_t blocks = (count + kBlock - 1) / kBlock;
  parallel_for(0, blocks, kGrainBlocks, [&](int64_t begin, int64_t end) {
    const auto own = f;
    int64_t i = begin * kBlock;
    const int64_t last = std::min(end * kBlock, count);
    for (; i + kWidth<T> <= last; i += kWidth<T>) own(i, kWhole);
    if (i < last) own(i, last - i);
    finish_writes();
  });
}

// Streaming stores need aligned vectors, as new tensors have them.
template <class T>
bool streams(const T* output, int64_t bytes_moved) {
  return worth_streaming(bytes_moved) &&
         reinterpret_cast<uintptr_t>(output) % (kWidth<T> * sizeof(T)) == 0;
}

template <ActivationKind kind, class T>
void forward(const ActivationForwardArgs& args) {
  constexpr int64_t bytes = sizeof(T);
  const auto parameter = static_cast<Accumulate<T>>(args.parameter);
  const T* const x = static_cast<const T*>(args.input);
  T* const y = static_cast<T*>(args.output);
  // In place, a line is in the cache already when it is written.
  const bool streaming = x != y && streams(y, 2 * bytes * args.count);
  const int64_t ahead = streaming ? kAheadBytes / bytes : 0;
  for_elements<T>(args.count, [=](int64_t i, auto count) {
    prefetch(x + i + ahead);
    const Vec<T> value = load_vector(x + i, count, 0);
    write_vector(y + i, Function<kind>::forward(value, Vec<T>(parameter)), count, streaming);
  });
}

template <ActivationKind kind, class T>
void backward(const ActivationBackwardArgs& args) {
  constexpr int64_t bytes = sizeof(T);
  const auto parameter = static_cast<Accumulate<T>>(args.parameter);
  const T* const dy = static_cast<const T*>(args.grad_output);
  const T* const saved = static_cast<const T*>(args.saved);
  T* const dx = static_cast<T*>(args.grad_input);
  const bool streaming = streams(dx, 3 * bytes * args.count);
  const int64_t ahead = streaming ? kAheadBytes / bytes : 0;
  for_elements<T>(args.count, [=](int64_t i, auto count) {
    prefetch(dy + i + ahead);
    prefetch(saved + i + ahead);
    const Vec<T> value = load_vector(saved + i, count, 0), grad = load_vector(dy + i, count, 0);
    write_vector(dx + i, Function<kind>::backward(value, grad, Vec<T>(parameter)), count,
                 streaming);
  });
}

template <class Args, class F>
void dispatch(const Args& args, F&& call) {
  using enum ActivationKind;
  dispatch_dtype<CpuTypes>(args.dtype, [&]<class T> {
    switch (args.kind) {
      case kRelu:
        return call.template operator()<kRelu, T>();
      case kSigmoid:
        return call.template operator()<kSigmoid, T>();
      case kTanh:
        return call.template operator()<kTanh, T>();
      case kGelu:
        return call.template operator()<kGelu, T>();
      case kGeluTanh:
        return call.template operator()<kGeluTanh, T>();
      case kSilu:
        return call.template operator()<kSilu, T>();
      case kLeakyRelu:
        return call.template operator()<kLeakyRelu, T>();
      case kElu:
        return call.template operator()<kElu, T>();
    }
  });
}

}  // namespace
}  // namespace CPU_CAPABILITY

template <>
void activation_forward<kBuildIsa>(const ActivationForwardArgs& args) {
  dispatch(args, [&]<ActivationKind kind, class T> { forward<kind, T>(args); });
}

template <>
void activation_backward<kBuildIsa>(const ActivationBackwardArgs& args) {
  dispatch(args, [&]<ActivationKind kind, class T> { backward<kind, T>(args); });
}

}  // namespace fastdl
