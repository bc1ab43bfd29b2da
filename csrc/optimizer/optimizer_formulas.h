// The formulas of the optimizers, once for CPU and CUDA: V is a vector or a number, A the type of
// its elements. An Update is made once a block, and then called with parameter p, gradient g (with
// scale, sign, clipping and L2 decay done) and the states, which it replaces.
//   Adam     m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;  amsgrad: v^ = max(v^, v)
//            p = (1 - lr decay) p - lr / (1 - beta1^t) m / (sqrt(v^ / (1 - beta2^t)) + eps)
//   SGD      b = momentum b + (1 - dampening) g, in the first step g
//            p -= lr b;  nesterov: p -= lr (g + momentum b)
//   Adagrad  s += g^2;  p -= lr / (1 + (t - 1) lr_decay) g / (sqrt(s) + eps)
//   RMSprop  v = alpha v + (1 - alpha) g^2;  centered: a = alpha a + (1 - alpha) g, u = v - a^2
//            else u = v;  d = g / (sqrt(u) + eps);  momentum: b = momentum b + d, d = b;  p -= lr d
// Kingma & Ba, arXiv:1412.6980; Loshchilov & Hutter, arXiv:1711.05101; Reddi et al., 1904.09237;
// Sutskever et al., ICML 2013; Duchi et al., JMLR 12 (2011); Graves, arXiv:1308.0850.
#pragma once

#include <cmath>
#include <type_traits>

#include "optimizer/optimizer.h"

namespace fastdl {

template <class V>
FASTDL_HOST_DEVICE V multiply_add(V a, V b, V c) {
  if constexpr (std::is_floating_point_v<V>) {
    return a * b + c;
  } else {
    return fmadd(a, b, c);
  }
}

template <class V>
FASTDL_HOST_DEVICE V square_root(V value) {
  if constexpr (std::is_floating_point_v<V>) {
    return sqrt(value);
  } else {
    return value.sqrt();
  }
}

// The larger one, NaN if one is.
template <class V>
FASTDL_HOST_DEVICE V larger(V a, V b) {
  if constexpr (std::is_floating_point_v<V>) {
    return a > b || a != a ? a : b;
  } else {
    return maximum(a, b);
  }
}

// What depends on the step of one tensor.
struct StepRates {
  double lr;
  double step_size;   // lr / corrections.rate
  double root_scale;  // corrections.root
};

// average += (1 - keep) (value - average), as torch.lerp: exact for keep = 0 too.
template <class A, class V>
struct MovingAverage {
  V kept, added;
  bool keeps_more;

  FASTDL_HOST_DEVICE explicit MovingAverage(double keep)
      : kept(static_cast<A>(keep)), added(static_cast<A>(1 - keep)), keeps_more(keep > 0.5) {}

  FASTDL_HOST_DEVICE V operator()(V average, V value) const {
    return keeps_more ? multiply_add(added, value - average, average)
                      : value - (value - average) * kept;
  }
};

template <class Algorithm, class A, class V>
struct Update;

template <class A, class V>
struct Update<Adam, A, V> {
  MovingAverage<A, V> mean;
  V beta2, one_minus_beta2, shrink, step_size, root_scale, eps;
  bool amsgrad;

  FASTDL_HOST_DEVICE Update(const Adam& adam, const StepRates& rates, const StepTensor& tensor)
      : mean(adam.beta1),
        beta2(static_cast<A>(adam.beta2)),
        one_minus_beta2(static_cast<A>(1 - adam.beta2)),
        shrink(static_cast<A>(1 - rates.lr * adam.decoupled_weight_decay)),
        step_size(static_cast<A>(rates.step_size)),
        root_scale(static_cast<A>(rates.root_scale)),
        eps(static_cast<A>(adam.eps)),
        amsgrad(tensor.states[2] != nullptr) {}

  FASTDL_HOST_DEVICE void operator()(V& p, V g, V (&states)[3]) const {
    V& m = states[0];
    V& v = states[1];
    m = mean(m, g);
    v = multiply_add(one_minus_beta2 * g, g, beta2 * v);
    V second = v;
    if (amsgrad) second = states[2] = larger(states[2], v);
    p = p * shrink - step_size * m / multiply_add(square_root(second), root_scale, eps);
  }
};

template <class A, class V>
struct Update<Sgd, A, V> {
  V momentum, one_minus_dampening, step_size;
  bool has_buffer, nesterov, first;

  FASTDL_HOST_DEVICE Update(const Sgd& sgd, const StepRates& rates, const StepTensor& tensor)
      : momentum(static_cast<A>(sgd.momentum)),
        one_minus_dampening(static_cast<A>(1 - sgd.dampening)),
        step_size(static_cast<A>(rates.step_size)),
        has_buffer(tensor.states[0] != nullptr),
        nesterov(sgd.nesterov),
        first(sgd.first) {}

  FASTDL_HOST_DEVICE void operator()(V& p, V g, V (&states)[1]) const {
    if (has_buffer) {
      V& b = states[0];
      b = first ? g : multiply_add(one_minus_dampening, g, momentum * b);
      g = nesterov ? multiply_add(momentum, b, g) : b;
    }
    p = p - step_size * g;
  }
};

template <class A, class V>
struct Update<Adagrad, A, V> {
  V step_size, eps;

  FASTDL_HOST_DEVICE Update(const Adagrad& adagrad, const StepRates& rates, const StepTensor&)
      : step_size(static_cast<A>(rates.step_size)), eps(static_cast<A>(adagrad.eps)) {}

  FASTDL_HOST_DEVICE void operator()(V& p, V g, V (&states)[1]) const {
    states[0] = multiply_add(g, g, states[0]);
    p = p - step_size * g / (square_root(states[0]) + eps);
  }
};

template <class A, class V>
struct Update<RmsProp, A, V> {
  MovingAverage<A, V> mean;
  V alpha, one_minus_alpha, momentum, step_size, eps;
  bool centered, has_buffer;

  FASTDL_HOST_DEVICE Update(const RmsProp& rms, const StepRates& rates, const StepTensor& tensor)
      : mean(rms.alpha),
        alpha(static_cast<A>(rms.alpha)),
        one_minus_alpha(static_cast<A>(1 - rms.alpha)),
        momentum(static_cast<A>(rms.momentum)),
        step_size(static_cast<A>(rates.step_size)),
        eps(static_cast<A>(rms.eps)),
        centered(tensor.states[1] != nullptr),
        has_buffer(tensor.states[2] != nullptr) {}

  FASTDL_HOST_DEVICE void operator()(V& p, V g, V (&states)[3]) const {
    V& v = states[0];
    v = multiply_add(one_minus_alpha * g, g, alpha * v);
    V variance = v;
    if (centered) {
      states[1] = mean(states[1], g);
      variance = v - states[1] * states[1];
    }
    V d = g / (square_root(variance) + eps);
    if (has_buffer) d = states[2] = multiply_add(momentum, states[2], d);
    p = p - step_size * d;
  }
};

}  // namespace fastdl
