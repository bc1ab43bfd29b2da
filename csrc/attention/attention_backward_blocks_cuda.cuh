// The backward kernels, one translation unit for each arithmetic, and what they share.
#pragma once

#include "attention/attention_kernel_cuda.cuh"

namespace fastdl {

// Of a query: log2(e) * lse, infinite where there is no key or no query, and grad_output . output,
// which is what weights' gradients lose to the sum of weights being 1.
struct alignas(8) AttentionTerms {
  float lse, loss;
};

struct AttentionBackward {
  CudaAttention attention;
  const void *query, *key, *value, *grad_output;
  void *grad_query, *grad_key, *grad_value;
  float* grad_bias;
  AttentionStrides query_strides, key_strides, value_strides, grad_output_strides;
  AttentionStrides grad_query_strides, grad_key_strides, grad_value_strides, grad_bias_strides;
  const AttentionTerms* terms;  // [batch, heads, queries, padded to kAttentionTerms]
};

template <class Math>
Status attention_grad_key_value_blocks(const AttentionBackward& backward, int block,
                                       const CudaTarget& target);
template <class Math>
Status attention_grad_query_blocks(const AttentionBackward& backward, int block,
                                   const CudaTarget& target);
template <class Math>
Status attention_grad_bias_blocks(const AttentionBackward& backward, int block,
                                  const CudaTarget& target);

// The terms of a head
__device__ __forceinline__ const AttentionTerms* terms_of(const AttentionBackward& args, int each) {
  constexpr int kPadding = kAttentionTerms;
  const int64_t padded = (args.attention.mask.queries + kPadding - 1) / kPadding * kPadding;
  return args.terms + each * padded;
}

// Makes of a tile's products query . key and grad_output . value the weights, of which dropout
// keeps some, and the gradients of scores: of products, or with kOfBias before the soft cap.
template <class T, bool kOfBias, bool kKeyRows, int cols, class TermsOf>
__device__ __forceinline__ void differentiate(float (&scores)[cols / 8][4],
                                              float (&gradients)[cols / 8][4],
                                              const CudaAttention& all, const HeadMask& mask,
                                              const LanePairs<kKeyRows, cols>& pairs, bool is_full,
                                              int each, TermsOf&& terms_of_query) {
  using Pairs = LanePairs<kKeyRows, cols>;
  uint32_t kept = 0;
  if (all.dropout.exists) {
    kept = kept_elements(all.dropout, each, pairs);
#pragma unroll
    for (int e = 0; e < cols / 2; ++e) {
      float& gradient = gradients[e / 4][e % 4];
      gradient = (kept >> e & 1) != 0 ? gradient * all.dropout.scale : 0;
    }
  }
#pragma unroll
  for (int q = 0; q < Pairs::kQueries; ++q) {
    const float loss = terms_of_query(q).loss;
#pragma unroll
    for (int k = 0; k < Pairs::kKeys; ++k) {
      gradients[Pairs::element(q, k) / 4][Pairs::element(q, k) % 4] -= loss;
    }
  }
  if (all.changes_scores) {
    change_scores<T>(scores, kOfBias ? nullptr : gradients, mask, pairs, all.scale);
  }
  if (!is_full) {
    const uint32_t counting = mask.counting(pairs);
#pragma unroll
    for (int e = 0; e < cols / 2; ++e) {
      if ((counting >> e & 1) == 0) scores[e / 4][e % 4] = -INFINITY;
    }
  }
  const float unit = all.changes_scores ? kLog2E : all.scale * kLog2E;
#pragma unroll
  for (int q = 0; q < Pairs::kQueries; ++q) {
    const float lse = terms_of_query(q).lse;
#pragma unroll
    for (int k = 0; k < Pairs::kKeys; ++k) {
      const int e = Pairs::element(q, k);
      float& score = scores[e / 4][e % 4];
      score = ptx::exp2_approx(fmaf(score, unit, -lse));
      gradients[e / 4][e % 4] *= score;
    }
  }
  if (all.dropout.exists) {
#pragma unroll
    for (int e = 0; e < cols / 2; ++e) {
      if ((kept >> e & 1) == 0) scores[e / 4][e % 4] = 0;
    }
  }
}

}  // namespace fastdl
