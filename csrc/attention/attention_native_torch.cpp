// Attention by native torch ops, with all scores in memory: what no kernel covers, and derivatives
// of the backward. Formula: attention.h.
#include <ATen/ATen.h>

#include "attention/attention_torch.h"

namespace fastdl {
namespace {

using at::Tensor;

bool has(const OptionalTensor& tensor) { return tensor.has_value() && tensor->defined(); }

Tensor indices(const Tensor& like, int64_t dim) {
  return at::arange(like.sym_size(dim), like.options().dtype(at::kLong));
}

// j - i for queries i and keys j, as many as there are rows of `query` and `key`
Tensor distances(const Tensor& query, const Tensor& key) {
  return indices(key, 2) - indices(query, 2).unsqueeze(1);
}

Tensor both(const Tensor& one, const Tensor& other) {
  return one.defined() ? one.logical_and(other) : other;
}

// The pairs that count; undefined for all
Tensor pairs_that_count(const Tensor& query, const Tensor& key, const AttentionOptions& o) {
  Tensor pairs;
  if (o.lowest) pairs = both(pairs, distances(query, key).ge(at::Scalar(*o.lowest)));
  if (o.highest) pairs = both(pairs, distances(query, key).le(at::Scalar(*o.highest)));
  if (has(o.begin)) {
    const Tensor j = indices(key, 2);
    const Tensor inside = j.ge(o.begin->unsqueeze(-1)).logical_and(j.lt(o.end->unsqueeze(-1)));
    pairs = both(pairs, inside.any(0));
  }
  return has(o.allowed) ? both(pairs, *o.allowed) : pairs;
}

// One key and value a head, for heads that share them
Tensor for_every_head(const Tensor& tensor, const c10::SymInt& heads) {
  const c10::SymInt of_a_key = heads / tensor.sym_size(1);
  return of_a_key == 1 ? tensor : tensor.repeat_interleave_symint(of_a_key, 1);
}

// And back: the sum over those heads
Tensor for_every_key(const Tensor& tensor, const c10::SymInt& kv_heads) {
  if (tensor.sym_size(1) == kv_heads) return tensor;
  std::vector<c10::SymInt> sizes = tensor.sym_sizes().vec();
  sizes.insert(sizes.begin() + 2, sizes[1] / kv_heads);
  sizes[1] = kv_heads;
  return tensor.reshape_symint(sizes).sum(2);
}

struct NativeAttention {
  Tensor q, k, v;  // of the type of sums, one for every head
  Tensor capped;   // tanh(score / soft_cap), or undefined
  Tensor scores, weights;
  Tensor kept;  // undefined without dropout

  NativeAttention(const Tensor& query, const Tensor& key, const Tensor& value,
                  const AttentionOptions& o) {
    const auto dtype = attention_sum_dtype(query.scalar_type());
    const c10::SymInt heads = query.sym_size(1);
    q = query.to(dtype);
    k = for_every_head(key.to(dtype), heads);
    v = for_every_head(value.to(dtype), heads);
    scores = at::matmul(q * o.scale, k.transpose(-2, -1));
    if (o.soft_cap > 0) {
      capped = (scores / o.soft_cap).tanh();
      scores = capped * o.soft_cap;
    }
    if (has(o.bias)) scores = scores + o.bias->to(dtype);
    if (has(o.slopes)) {
      const Tensor distance = (distances(q, k) - at::Scalar(o.slope_offset)).abs().to(dtype);
      scores = scores - o.slopes->to(dtype).unsqueeze(-1).unsqueeze(-1) * distance;
    }
    if (const Tensor pairs = pairs_that_count(q, k, o); pairs.defined()) {
      scores = scores.masked_fill(pairs.logical_not(), -std::numeric_limits<double>::infinity());
    }
    weights = at::_safe_softmax(scores, -1);  // zeros for a query without keys
    if (o.dropout_p > 0) {
      kept = call_attention_kept(query.detach(), key.detach(), o.dropout_p, o.seed).to(dtype);
    }
  }

  Tensor kept_weights() const { return kept.defined() ? weights * kept : weights; }
};

}  // namespace

std::tuple<Tensor, Tensor> native_attention(const Tensor& query, const Tensor& key,
                                            const Tensor& value, const AttentionOptions& options) {
  const NativeAttention a(query, key, value, options);
  const Tensor output = at::matmul(a.kept_weights(), a.v).to(query.scalar_type());
  return {output, at::logsumexp(a.scores.detach(), -1)};
}

std::array<Tensor, 4> native_attention_backward(const Tensor& grad_output, const Tensor& query,
                                                const Tensor& key, const Tensor& value,
                                                const AttentionOptions& options,
                                                std::array<bool, 4> wanted) {
  const NativeAttention a(query, key, value, options);
  const Tensor dy = grad_output.to(a.q.scalar_type());
  std::array<Tensor, 4> grads;
  if (wanted[2]) {
    const Tensor grad = at::matmul(a.kept_weights().transpose(-2, -1), dy);
    grads[2] = for_every_key(grad, value.sym_size(1)).to(value.scalar_type());
  }
  if (!wanted[0] && !wanted[1] && !wanted[3]) return grads;
  Tensor grad_weights = at::matmul(dy, a.v.transpose(-2, -1));
  if (a.kept.defined()) grad_weights = grad_weights * a.kept;
  const Tensor weighted = a.weights * grad_weights;
  Tensor grad_scores = weighted - a.weights * weighted.sum(-1, /*keepdim=*/true);
  if (wanted[3]) {
    const Tensor& bias = *options.bias;
    grads[3] = grad_scores.sum_to_size_symint(bias.sym_sizes()).to(bias.scalar_type());
  }
  if (a.capped.defined()) grad_scores = grad_scores * (1 - a.capped.square());
  grad_scores = grad_scores * options.scale;
  if (wanted[0]) grads[0] = at::matmul(grad_scores, a.k).to(query.scalar_type());
  if (wanted[1]) {
    const Tensor grad = at::matmul(grad_scores.transpose(-2, -1), a.q);
    grads[1] = for_every_key(grad, key.sym_size(1)).to(key.scalar_type());
  }
  return grads;
}

}  // namespace fastdl
