// Adam and AdamW on CPU, all tensors of a step in one parallel loop over blocks of kAdamBlock.
//   g = grad / grad_scale (negated to maximize);  L2 decay: g += weight_decay p
//   decoupled decay (AdamW): p *= 1 - lr weight_decay
//   m += (1 - beta1) (g - m);  v = beta2 v + (1 - beta2) g^2;  amsgrad: v^ = max(v^, v), else v^
//   = v p -= lr / bias_correction1 m / (sqrt(v^) / sqrt(bias_correction2) + eps)
// Kingma & Ba, arXiv:1412.6980; Loshchilov & Hutter, arXiv:1711.05101; Reddi et al., 1904.09237.
// Arithmetic in float (double for float64); 16-bit tensors are rounded once, when stored.
// Memory: 4 reads and 3 writes an element, 28 bytes in float32 (36 with amsgrad), each once. Lines
// are written where they were just read, so nothing is gained by going past the cache.

#include <algorithm>
#include <cmath>

#include "adam/adam.h"
#include "common/dispatch.h"
#include "common/loops_cpu.h"
#include "common/parallel.h"
#include "common/vector_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace {

constexpr int64_t kGrainBlocks = 4;  // blocks worth waking a thread for

template <class T>
void step_block(const AdamStepArgs& args, const AdamTensor& tensor, int64_t start) {
  using A = Accumulate<T>;
  using V = Vec<T>;
  T* const param = static_cast<T*>(tensor.param) + start;
  T* const grad = static_cast<T*>(tensor.grad) + start;
  T* const exp_avg = static_cast<T*>(tensor.exp_avg) + start;
  T* const exp_avg_sq = static_cast<T*>(tensor.exp_avg_sq) + start;
  T* const largest =
      tensor.max_exp_avg_sq == nullptr ? nullptr : static_cast<T*>(tensor.max_exp_avg_sq) + start;
  const bool scaled = args.grad_scale != 1, l2 = !args.decoupled && args.weight_decay != 0;
  const bool keeps_more = args.beta1 > 0.5;  // of m than of g: as torch.lerp, exact for beta1 = 0
  const V sign(args.maximize ? A(-1) : A(1)), scale(static_cast<A>(args.grad_scale));
  const V decay(static_cast<A>(args.weight_decay));
  const V shrink(static_cast<A>(args.decoupled ? 1 - args.lr * args.weight_decay : 1));
  const V beta1(static_cast<A>(args.beta1)), one_minus_beta1(static_cast<A>(1 - args.beta1));
  const V beta2(static_cast<A>(args.beta2)), one_minus_beta2(static_cast<A>(1 - args.beta2));
  const V step_size(static_cast<A>(args.lr / tensor.bias_correction1));
  const V root_scale(static_cast<A>(1 / std::sqrt(tensor.bias_correction2)));
  const V eps(static_cast<A>(args.eps));

  for_vectors<T>(std::min(kAdamBlock, tensor.size - start), [&](int64_t i, auto count, int) {
    V g = load_vector(grad + i, count, A(0));
    if (scaled) {
      g = g / scale;
      store_vector(grad + i, g, count);
    }
    g = g * sign;
    V p = load_vector(param + i, count, A(0));
    if (l2) g = at::vec::fmadd(decay, p, g);
    V m = load_vector(exp_avg + i, count, A(0));
    m = keeps_more ? at::vec::fmadd(one_minus_beta1, g - m, m) : g - (g - m) * beta1;
    store_vector(exp_avg + i, m, count);
    V v = load_vector(exp_avg_sq + i, count, A(0));
    v = at::vec::fmadd(one_minus_beta2 * g, g, beta2 * v);
    store_vector(exp_avg_sq + i, v, count);
    if (largest != nullptr) {
      v = at::vec::maximum(load_vector(largest + i, count, A(0)), v);
      store_vector(largest + i, v, count);
    }
    p = p * shrink - step_size * m / at::vec::fmadd(v.sqrt(), root_scale, eps);
    store_vector(param + i, p, count);
  });
}

}  // namespace
}  // namespace CPU_CAPABILITY

template <>
void adam_step<kBuildIsa>(const AdamStepArgs& args) {
  if (args.count == 0) return;
  const AdamTensor* const last = args.tensors + args.count - 1;
  const int64_t blocks = last->first_block + adam_blocks(last->size);
  parallel_for(0, blocks, kGrainBlocks, [&](int64_t begin, int64_t end) {
    // The last tensor whose first block is not past `begin`.
    const AdamTensor* tensor =
        std::upper_bound(args.tensors, last + 1, begin,
                         [](int64_t block, const AdamTensor& t) { return block < t.first_block; }) -
        1;
    for (int64_t block = begin; block < end; ++block) {
      if (tensor != last && block == tensor[1].first_block) ++tensor;
      dispatch_dtype<CpuTypes>(tensor->dtype, [&]<class T> {
        step_block<T>(args, *tensor, (block - tensor->first_block) * kAdamBlock);
      });
    }
  });
}

}  // namespace fastdl
