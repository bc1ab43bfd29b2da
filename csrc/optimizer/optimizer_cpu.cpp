// The steps of the optimizers on CPU, all tensors of a step in one parallel loop over blocks of
// kTensorBlock elements. The formulas are in optimizer_formulas.h; before them
//   g = grad / grad_scale, kept in grad;  g *= clip, negated to maximize;  g += weight_decay p
// Arithmetic in float (double for float64); 16-bit tensors are rounded once, when stored.
// Memory, each once, bytes an element in float32: Adam reads 4 arrays and writes 3, 28 (amsgrad
// 36); SGD 12, with momentum 20; Adagrad and RMSprop 20, centered and with momentum 36. Lines are
// written where they were just read, so nothing is gained by going past the cache.
#include <algorithm>

#include "common/dispatch.h"
#include "common/loops_cpu.h"
#include "common/vector_cpu.h"
#include "optimizer/optimizer_formulas.h"
#include "optimizer/tensor_blocks_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace {

// How far ahead to fetch, in elements. The hardware follows a stream only to the end of its 4 KiB
// page, and a step follows two to five of them.
constexpr int64_t kAhead = 512;

template <class T, class Algorithm>
void step_block(const StepArgs& args, const Algorithm& algorithm, const StepTensor& tensor,
                int64_t start) {
  using A = Accumulate<T>;
  using V = Vec<T>;
  constexpr int count_of_states = Algorithm::kStates;
  T* const param = static_cast<T*>(tensor.param) + start;
  T* const grad = static_cast<T*>(tensor.grad) + start;
  T* states[count_of_states];
  for (int k = 0; k < count_of_states; ++k) {
    states[k] = tensor.states[k] == nullptr ? nullptr : static_cast<T*>(tensor.states[k]) + start;
  }
  const bool scaled = args.grad_scale != 1, l2 = args.weight_decay != 0;
  const V scale(static_cast<A>(args.grad_scale)), decay(static_cast<A>(args.weight_decay));
  const V factor(static_cast<A>(args.maximize ? -args.clip : args.clip));
  const Corrections& corrections = tensor.corrections;
  const Update<Algorithm, A, V> update(
      algorithm, {args.lr, args.lr / corrections.rate, corrections.root}, tensor);

  for_vectors<T>(std::min(kTensorBlock, tensor.size - start), [&](int64_t i, auto count, int lane) {
    if (lane * kWidth<T> * sizeof(T) % 64 == 0) {  // a new line of the cache
      prefetch(grad + i + kAhead);
      prefetch(param + i + kAhead);
      for (T* const state : states) {
        if (state != nullptr) prefetch(state + i + kAhead);
      }
    }
    V g = load_vector(grad + i, count, A(0));
    if (scaled) {
      g = g / scale;
      store_vector(grad + i, g, count);
    }
    g = g * factor;
    V p = load_vector(param + i, count, A(0));
    if (l2) g = at::vec::fmadd(decay, p, g);
    V values[count_of_states];
    for (int k = 0; k < count_of_states; ++k) {
      if (states[k] != nullptr) values[k] = load_vector(states[k] + i, count, A(0));
    }
    update(p, g, values);
    for (int k = 0; k < count_of_states; ++k) {
      if (states[k] != nullptr) store_vector(states[k] + i, values[k], count);
    }
    store_vector(param + i, p, count);
  });
}

template <class Algorithm>
void step_all(const StepArgs& args, const Algorithm& algorithm) {
  if (args.count == 0) return;
  for_tensor_blocks(
      args.tensors, args.count, [&](const StepTensor& tensor, int64_t start, int64_t) {
        dispatch_dtype<CpuTypes>(tensor.dtype,
                                 [&]<class T> { step_block<T>(args, algorithm, tensor, start); });
      });
}

}  // namespace
}  // namespace CPU_CAPABILITY

template <>
void optimizer_step<kBuildIsa>(const StepArgs& args, const Adam& adam) {
  step_all(args, adam);
}
template <>
void optimizer_step<kBuildIsa>(const StepArgs& args, const Sgd& sgd) {
  step_all(args, sgd);
}
template <>
void optimizer_step<kBuildIsa>(const StepArgs& args, const Adagrad& adagrad) {
  step_all(args, adagrad);
}
template <>
void optimizer_step<kBuildIsa>(const StepArgs& args, const RmsProp& rms) {
  step_all(args, rms);
}

}  // namespace fastdl
