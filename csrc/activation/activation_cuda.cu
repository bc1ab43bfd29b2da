// Activation functions on CUDA, forward and backward: the formulas of activation_cpu.cpp.
// A thread takes kVectors vectors of 16 bytes, a block's width apart: 32 bytes a tensor in flight
// keep the memory busy. The elements past the last whole vector, and all of a tensor that does not
// begin at 16 bytes, are taken one by one. The function is chosen at run time, once a vector, as
// the memory decides: a kernel for each dtype and direction is enough. Memory: every tensor once.
// Floor: 2 tensors (backward 3) / copy bandwidth; with float16 and bfloat16 the exponentials and
// erf come near to what the arithmetic units can do meanwhile.
#include <cmath>

#include "activation/activation.h"
#include "common/dispatch.h"
#include "common/launch.cuh"
#include "common/vector_io.cuh"

namespace fastdl {
namespace {

constexpr int kThreads = 256;
constexpr int kVectors = 2;

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float exponential_minus_1(float x) { return expm1f(x); }
__device__ __forceinline__ double exponential_minus_1(double x) { return expm1(x); }
__device__ __forceinline__ float hyperbolic_tangent(float x) { return tanhf(x); }
__device__ __forceinline__ double hyperbolic_tangent(double x) { return tanh(x); }
__device__ __forceinline__ float error_function(float x) { return erff(x); }
__device__ __forceinline__ double error_function(double x) { return erf(x); }

template <class A>
__device__ __forceinline__ A sigmoid(A x) {
  return A(1) / (A(1) + exponential(-x));
}

template <class A>
__device__ __forceinline__ A normal_cdf(A x) {
  return A(0.5) + A(0.5) * error_function(x * A(0.7071067811865476));
}

// Calls f(function) with function(value) of this kind.
template <class A, class F>
__device__ __forceinline__ void with_forward(ActivationKind kind, A parameter, F&& f) {
  switch (kind) {
    case ActivationKind::kRelu:
      return f([](A x) { return x < A(0) ? A(0) : x; });
    case ActivationKind::kSigmoid:
      return f([](A x) { return sigmoid(x); });
    case ActivationKind::kTanh:
      return f([](A x) { return hyperbolic_tangent(x); });
    case ActivationKind::kGelu:
      return f([](A x) { return x * normal_cdf(x); });
    case ActivationKind::kGeluTanh:
      return f(
          [](A x) { return x * sigmoid(A(1.5957691216057308) * (x + A(0.044715) * x * x * x)); });
    case ActivationKind::kSilu:
      return f([](A x) { return x / (A(1) + exponential(-x)); });
    case ActivationKind::kLeakyRelu:
      return f([parameter](A x) { return x > A(0) ? x : x * parameter; });
    case ActivationKind::kElu:
      return f([parameter](A x) { return x > A(0) ? x : parameter * exponential_minus_1(x); });
  }
}

// Calls f(function) with function(saved, dy) of this kind.
template <class A, class F>
__device__ __forceinline__ void with_backward(ActivationKind kind, A parameter, F&& f) {
  switch (kind) {
    case ActivationKind::kRelu:
      return f([](A y, A dy) { return y <= A(0) ? A(0) : dy; });
    case ActivationKind::kSigmoid:
      return f([](A y, A dy) { return dy * (A(1) - y) * y; });
    case ActivationKind::kTanh:
      return f([](A y, A dy) { return dy * (A(1) - y * y); });
    case ActivationKind::kGelu:
      return f([](A x, A dy) {
        const A density = exponential(x * x * A(-0.5)) * A(0.3989422804014327);
        return dy * (normal_cdf(x) + x * density);
      });
    case ActivationKind::kGeluTanh:
      return f([](A x, A dy) {
        const A slope = A(1.5957691216057308) * (A(1) + A(3 * 0.044715) * x * x);
        const A s = sigmoid(A(1.5957691216057308) * (x + A(0.044715) * x * x * x));
        return dy * (s + x * s * (A(1) - s) * slope);
      });
    case ActivationKind::kSilu:
      return f([](A x, A dy) {
        const A s = sigmoid(x);
        return dy * s * (A(1) + x * (A(1) - s));
      });
    case ActivationKind::kLeakyRelu:
      return f([parameter](A x, A dy) { return x > A(0) ? dy : dy * parameter; });
    case ActivationKind::kElu:
      return f([parameter](A x, A dy) { return x > A(0) ? dy : dy * parameter * exponential(x); });
  }
}

// All elements as one row; without whole vectors if it does not begin at 16 bytes.
template <class T>
struct Elements {
  static constexpr int W = kVectorWidth<T>;
  int64_t count;
  bool aligned;

  __device__ __forceinline__ bool has(int64_t v) const { return v * W < count; }
  __device__ __forceinline__ Vector<T, W> load(const void* data, int64_t v) const {
    const T* const from = static_cast<const T*>(data) + v * W;
    if (aligned && v * W + W <= count) return load_vector<W>(from);
    Vector<T, W> vector;
    vector.fill(0);
#pragma unroll
    for (int i = 0; i < W; ++i) {
      if (v * W + i < count) vector.load_element(i, from + i);
    }
    return vector;
  }
  __device__ __forceinline__ void store(void* data, int64_t v, const Vector<T, W>& vector) const {
    T* const to = static_cast<T*>(data) + v * W;
    if (aligned && v * W + W <= count) return store_vector<W>(to, vector);
#pragma unroll
    for (int i = 0; i < W; ++i) {
      if (v * W + i < count) vector.store_element(i, to + i);
    }
  }
};

__device__ __forceinline__ int64_t first_vector() {
  return static_cast<int64_t>(blockIdx.x) * (kThreads * kVectors) + threadIdx.x;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    activation_forward_vectors(ActivationForwardArgs args, bool aligned) {
  using A = Accumulate<T>;
  constexpr int W = kVectorWidth<T>;
  const Elements<T> elements{args.count, aligned};
  const int64_t first = first_vector();
  Vector<T, W> x[kVectors];
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    if (elements.has(first + k * kThreads)) x[k] = elements.load(args.input, first + k * kThreads);
  }
  with_forward(args.kind, static_cast<A>(args.parameter), [&](auto function) {
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      if (!elements.has(first + k * kThreads)) return;
      A values[W];
      x[k].unpack(values);
#pragma unroll
      for (A& value : values) value = function(value);
      x[k].pack(values);
      elements.store(args.output, first + k * kThreads, x[k]);
    }
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    activation_backward_vectors(ActivationBackwardArgs args, bool aligned) {
  using A = Accumulate<T>;
  constexpr int W = kVectorWidth<T>;
  const Elements<T> elements{args.count, aligned};
  const int64_t first = first_vector();
  Vector<T, W> saved[kVectors], dy[kVectors];
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    const int64_t v = first + k * kThreads;
    if (!elements.has(v)) continue;
    saved[k] = elements.load(args.saved, v);
    dy[k] = elements.load(args.grad_output, v);
  }
  with_backward(args.kind, static_cast<A>(args.parameter), [&](auto function) {
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      if (!elements.has(first + k * kThreads)) return;
      A values[W], grads[W];
      saved[k].unpack(values);
      dy[k].unpack(grads);
#pragma unroll
      for (int i = 0; i < W; ++i) grads[i] = function(values[i], grads[i]);
      dy[k].pack(grads);
      elements.store(args.grad_input, first + k * kThreads, dy[k]);
    }
  });
}

template <class T>
LaunchShape shape_for(int64_t count) {
  constexpr int64_t of_block = int64_t{kThreads} * kVectors * kVectorWidth<T>;
  return {.blocks = (count + of_block - 1) / of_block, .threads = kThreads};
}

template <class T>
bool begins_at_16_bytes(const void* data) {
  return shift_of<kVectorWidth<T>>(static_cast<const T*>(data)) == 0;
}

}  // namespace

Status activation_forward_cuda(const ActivationForwardArgs& args, const CudaTarget& target) {
  if (args.count == 0) return {};
  Status status;
  dispatch_dtype<CudaTypes>(args.dtype, [&]<class T> {
    const bool aligned = begins_at_16_bytes<T>(args.input) && begins_at_16_bytes<T>(args.output);
    status = launch(activation_forward_vectors<T>, shape_for<T>(args.count), target, args, aligned);
  });
  return status;
}

Status activation_backward_cuda(const ActivationBackwardArgs& args, const CudaTarget& target) {
  if (args.count == 0) return {};
  Status status;
  dispatch_dtype<CudaTypes>(args.dtype, [&]<class T> {
    const bool aligned = begins_at_16_bytes<T>(args.saved) &&
                         begins_at_16_bytes<T>(args.grad_output) &&
                         begins_at_16_bytes<T>(args.grad_input);
    status =
        launch(activation_backward_vectors<T>, shape_for<T>(args.count), target, args, aligned);
  });
  return status;
}

}  // namespace fastdl
