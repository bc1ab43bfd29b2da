// What is done to the scores that a lane has of a tile: soft cap, bias, ALiBi, and dropout.
#pragma once

#include "attention/attention_mask_cuda.cuh"
#include "common/dropout_mask.cuh"

namespace fastdl {

inline constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

// Whether scores are more than products times a positive scale
inline bool has_changed_scores(const AttentionMask& mask, float scale) {
  return mask.soft_cap > 0 || mask.bias != nullptr || mask.slopes != nullptr || !(scale > 0);
}

// Makes scores of products. With `slopes_of`, multiplies gradients by the derivative of the soft
// cap, from the same products.
template <class T, bool kKeyRows, int cols>
__device__ __forceinline__ void change_scores(float (&scores)[cols / 8][4], float (*gradients)[4],
                                              const HeadMask& head,
                                              const LanePairs<kKeyRows, cols>& pairs, float scale) {
  using Pairs = LanePairs<kKeyRows, cols>;
  const CudaMask& all = head.all;
  const AttentionMask& mask = all.mask;
#pragma unroll
  for (int e = 0; e < cols / 2; ++e) scores[e / 4][e % 4] *= scale;
  if (mask.soft_cap > 0) {
    const float inverse = 1 / mask.soft_cap;
#pragma unroll
    for (int e = 0; e < cols / 2; ++e) {
      const float share = tanhf(scores[e / 4][e % 4] * inverse);
      scores[e / 4][e % 4] = mask.soft_cap * share;
      if (gradients != nullptr) gradients[e / 4][e % 4] *= 1 - share * share;
    }
  }
  if (mask.bias != nullptr) {
    const AttentionStrides& strides = mask.bias_strides;
    const int64_t first = head.batch * strides.batch + head.head * strides.head;
#pragma unroll
    for (int q = 0; q < Pairs::kQueries; ++q) {
      const int64_t row = first + pairs.query(q) * strides.row;
#pragma unroll
      for (int k = 0; k < Pairs::kKeys; ++k) {
        if (pairs.query(q) >= all.queries || pairs.key(k) >= all.keys) continue;
        const int64_t at = row + pairs.key(k) * strides.col;
        const int e = Pairs::element(q, k);
        scores[e / 4][e % 4] += mask.bias_dtype == DType::kFloat32
                                    ? static_cast<const float*>(mask.bias)[at]
                                    : widen(static_cast<const T*>(mask.bias)[at]);
      }
    }
  }
  if (mask.slopes != nullptr) {
    const float slope =
        mask.slopes[head.batch * mask.slope_strides.batch + head.head * mask.slope_strides.head];
    const int64_t offset = mask.slope_offset + pairs.first_query - pairs.first_key;
    const int near = static_cast<int>(offset);
#pragma unroll
    for (int q = 0; q < Pairs::kQueries; ++q) {
#pragma unroll
      for (int k = 0; k < Pairs::kKeys; ++k) {
        const int distance =
            near + (pairs.query(q) - pairs.first_query) - (pairs.key(k) - pairs.first_key);
        const int e = Pairs::element(q, k);
        scores[e / 4][e % 4] -= slope * static_cast<float>(abs(distance));
      }
    }
  }
}

// What a kernel needs of a dropout
struct CudaDropout {
  DropoutRule rule;
  int query_blocks, key_blocks;
  float scale;  // 1 / (1 - p); 1 without dropout
  bool exists;
};

inline CudaDropout cuda_dropout(const AttentionDropout& dropout, int64_t queries, int64_t keys) {
  return {make_dropout_rule(dropout.p, dropout.seed),
          static_cast<int>(ceil_divide(queries, kDropoutBlock)),
          static_cast<int>(ceil_divide(keys, kDropoutBlock)),
          static_cast<float>(1 / (1 - dropout.p)), dropout.p > 0};
}

// Bit e: whether dropout keeps the lane's element e. A lane computes one of the 32 counters of each
// 16 x 16 block. Four lanes have the four counters of a key: exchanging halves, each gets the pairs
// of queries that it has with keys in rows. For queries in rows the pairs are transposed.
template <bool kKeyRows, int cols>
__device__ __forceinline__ uint32_t kept_elements(const CudaDropout& dropout, int head,
                                                  const LanePairs<kKeyRows, cols>& pairs) {
  constexpr int kBlock = kDropoutBlock;
  const unsigned lane = ptx::lane_id();
  const bool odd = lane % 2 != 0;
  const int counter = lane / 4 * 4 + lane % 2 * 2 + lane % 4 / 2;
  const int query_block = pairs.first_query / kBlock, key_block = pairs.first_key / kBlock;
  const auto block_at = [&](int n) {
    return (int64_t{head} * dropout.query_blocks + query_block + (kKeyRows ? n : 0)) *
               dropout.key_blocks +
           key_block + (kKeyRows ? 0 : n);
  };
  uint32_t kept = 0, undecided = 0;
#pragma unroll
  for (int n = 0; n < cols / kBlock; ++n) {
    const auto [own] = philox(static_cast<uint64_t>(block_at(n)) * kDropoutTileBlocks + counter, 0,
                              dropout.rule.seed);
    const uint32_t near = __shfl_xor_sync(kAllLanes, odd ? own[0] : own[1], 1);
    const uint32_t far = __shfl_xor_sync(kAllLanes, odd ? own[2] : own[3], 1);
    // Of keys g and g + 8: the pair of queries 2t, and that of 2t + 8
    const uint32_t words[2][2] = {{odd ? near : own[0], odd ? own[1] : near},
                                  {odd ? far : own[2], odd ? own[3] : far}};
#pragma unroll
    for (int row = 0; row < 2; ++row) {
#pragma unroll
      for (int col = 0; col < 2; ++col) {
        const uint32_t word = kKeyRows ? words[row][col] : ptx::movmatrix_trans(words[col][row]);
        const int e = 4 * (2 * n + col) + 2 * row;
        const uint32_t low = word & 0xffff, high = word >> 16;
        kept |= uint32_t{low > dropout.rule.leading} << e;
        kept |= uint32_t{high > dropout.rule.leading} << (e + 1);
        undecided |= uint32_t{low == dropout.rule.leading} << e;
        undecided |= uint32_t{high == dropout.rule.leading} << (e + 1);
      }
    }
  }
  while (undecided != 0) {  // one in 65536 elements
    const int e = __ffs(static_cast<int>(undecided)) - 1, n = e / 8;
    undecided &= undecided - 1;
    const int row = lane / 4 + e / 2 % 2 * 8, col = lane % 4 * 2 + e / 4 % 2 * 8 + e % 2;
    const int within = kKeyRows ? row * kBlock + col : col * kBlock + row;
    const uint64_t index = static_cast<uint64_t>(block_at(n)) * kDropoutTile + within;
    const bool keeps = philox(index, 1, dropout.rule.seed).word[0] >= dropout.rule.trailing;
    kept |= uint32_t{keeps} << e;
  }
  return kept;
}

}  // namespace fastdl
