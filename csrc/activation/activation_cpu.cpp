// Activation functions on CPU: elements in memory order, whatever the tensor's layout.
//   relu  max(x, 0)      leaky_relu  x > 0 ? x : slope x      elu  x > 0 ? x : alpha (exp(x) - 1)
//   sigmoid s(x) = 1 / (1 + exp(-x))      tanh      silu  x s(x)
//   gelu  x Phi(x), Phi the normal distribution, or x s(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3)
// NaN, infinities and the sign of zeros as in torch. Memory: forward reads x and writes y, backward
// reads dy and x (or y) and writes dx: once, past the cache when all of it is larger. Floor: these
// bytes / copy bandwidth. On two cores of a Zen 1 with AVX2 the functions with an exponential need
// about as long for their arithmetic as the memory does.

#include <algorithm>
#include <cstring>

#include "activation/activation.h"
#include "activation/four_vectors_cpu.h"
#include "activation/relu_bits_cpu.h"
#include "common/bounded_math_cpu.h"
#include "common/dispatch.h"
#include "common/loops_cpu.h"
#include "common/parallel.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace {

constexpr int64_t kBlock = 4096;     // elements: keeps the ranges of threads aligned
constexpr int64_t kGrainBlocks = 4;  // worth waking a thread for
constexpr int64_t kLineBytes = 64;
constexpr int64_t kAheadBytes = 4096;  // what is fetched while a vector is computed

// forward(x, parameter) and backward(x or y, dy, parameter) of each function.
template <ActivationKind kind>
struct Function;

template <>
struct Function<ActivationKind::kRelu> {
  template <class V>
  static V forward(V x, V) {
    return clamp_min(x, V(0));
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
    const V density = quick_exp(x * x * V(-0.5)) * V(0.3989422804014327);
    return dy * fmadd(x, density, normal_cdf(x));
  }
};

template <>
struct Function<ActivationKind::kGeluTanh> {
  // 2 sqrt(2 / pi), and 0.044715 times it
  static constexpr double kLinear = 1.5957691216057308, kCubic = 0.0713548162726009;

  // exp(-2 u)
  template <class V>
  static V power(V x, V square) {
    return quick_exp(x * fmadd(square, V(-kCubic), V(-kLinear)));
  }
  template <class V>
  static V forward(V x, V) {
    return x / (V(1) + power(x, x * x));
  }
  template <class V>
  static V backward(V x, V dy, V) {
    const V square = x * x, e = power(x, square), s = V(1) / (V(1) + e);
    // 1 - s, without cancellation where s is near 1
    const V rest = V::blendv(V(1) - s, e * s, s > V(0.5));
    const V slope = fmadd(square, V(3 * kCubic), V(kLinear));
    return dy * fmadd(x * s * rest, slope, s);
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
    return dy * s * fmadd(x, V(1) - s, V(1));
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
    return V::blendv(alpha * exp_minus_1_of_negative(clamp_max(x, V(0))), x, x >= V(0));
  }
  template <class V>
  static V backward(V x, V dy, V alpha) {
    return V::blendv(dy * alpha * quick_exp(clamp_max(x, V(0))), dy, x > V(0));
  }
};

// y = f(x), or f(x, other), on the `count` elements of a thread. The last ones go the same way as
// all others, from and to memory of a whole step: one copy of f is enough to compile.
template <class T, bool kBinary, class F>
void apply(F f, const T* x, const T* other, T* y, int64_t count, bool streaming) {
  const int64_t ahead = streaming ? kAheadBytes / static_cast<int64_t>(sizeof(T)) : 0;
  alignas(64) T padded[3][kStep<T>];
  for (int64_t i = 0; i < count; i += kStep<T>) {
    const T *from = x + i, *from_other = kBinary ? other + i : nullptr;
    T* to = y + i;
    const int64_t rest = count - i;
    if (rest < kStep<T>) [[unlikely]] {
      std::memset(padded, 0, sizeof(padded));
      std::memcpy(padded[0], from, rest * sizeof(T));
      if (kBinary) std::memcpy(padded[1], from_other, rest * sizeof(T));
      from = padded[0], from_other = padded[1], to = padded[2];
    }
    prefetch(from + ahead);
    prefetch(from + ahead + kStep<T> / 2);
    if constexpr (kBinary) {
      prefetch(from_other + ahead);
      prefetch(from_other + ahead + kStep<T> / 2);
      write_four(to, f(load_four(from), load_four(from_other)), streaming && to == y + i);
    } else {
      write_four(to, f(load_four(from)), streaming && to == y + i);
    }
    if (rest < kStep<T>) [[unlikely]]
      std::memcpy(y + i, padded[2], rest * sizeof(T));
  }
}

// Calls f(first, count) on ranges that cover all elements, in parallel.
template <class F>
void for_ranges(int64_t count, F&& f) {
  const int64_t blocks = (count + kBlock - 1) / kBlock;
  parallel_for(0, blocks, kGrainBlocks, [&](int64_t begin, int64_t end) {
    f(begin * kBlock, std::min(end * kBlock, count) - begin * kBlock);
    finish_writes();
  });
}

// Streaming stores need aligned vectors, as new tensors have them.
template <class T>
bool streams(const T* output, int64_t elements_moved) {
  constexpr int64_t bytes = sizeof(T);
  return worth_streaming(elements_moved * bytes) &&
         reinterpret_cast<uintptr_t>(output) % kLineBytes == 0;
}

template <ActivationKind kind, class T>
void forward(const ActivationForwardArgs& args) {
  using V = Four<Vec<T>>;
  const auto parameter = static_cast<Accumulate<T>>(args.parameter);
  const T* const x = static_cast<const T*>(args.input);
  T* const y = static_cast<T*>(args.output);
  // In place, a line is in the cache already when it is written.
  const bool streaming = x != y && streams(y, 2 * args.count);
  for_ranges(args.count, [&](int64_t first, int64_t count) {
    if constexpr (kind == ActivationKind::kRelu && sizeof(T) == 2) {
      relu_bits(x + first, y + first, count);
    } else {
      const auto f = [parameter](const V& v) { return Function<kind>::forward(v, V(parameter)); };
      apply<T, false>(f, x + first, nullptr, y + first, count, streaming);
    }
  });
}

template <ActivationKind kind, class T>
void backward(const ActivationBackwardArgs& args) {
  using V = Four<Vec<T>>;
  const auto parameter = static_cast<Accumulate<T>>(args.parameter);
  const T* const saved = static_cast<const T*>(args.saved);
  const T* const dy = static_cast<const T*>(args.grad_output);
  T* const dx = static_cast<T*>(args.grad_input);
  const bool streaming = streams(dx, 3 * args.count);
  for_ranges(args.count, [&](int64_t first, int64_t count) {
    if constexpr (kind == ActivationKind::kRelu && sizeof(T) == 2) {
      relu_backward_bits(saved + first, dy + first, dx + first, count);
    } else {
      const auto f = [parameter](const V& v, const V& grad) {
        return Function<kind>::backward(v, grad, V(parameter));
      };
      apply<T, true>(f, saved + first, dy + first, dx + first, count, streaming);
    }
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
