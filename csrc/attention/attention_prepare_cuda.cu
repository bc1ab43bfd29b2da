// Before attention: how much counts of the tiles of a dense mask (a warp each), and the bounds of
// the intervals of 16 queries (16 lanes each). After it: the combination of what splits of the keys
// have left (a warp a row), output = sum of exp(lse of a split - lse) * its output. Before
// gradients: the terms of each row (a warp each). And the matrix of what dropout keeps, a warp for
// each of its 16 x 16 blocks.
#include "attention/attention_prepare_cuda.cuh"

namespace fastdl {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / kWarp;

__device__ __forceinline__ int64_t warp_number() {
  return int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
}

int64_t blocks_for(int64_t warps) { return ceil_divide(warps, int64_t{kWarps}); }

struct BoundsSizes {
  int64_t batch, heads, groups;  // 1 where intervals are broadcast
  bool each_row;
};

BoundsSizes bounds_sizes(const AttentionMask& mask, const AttentionSizes& sizes) {
  const auto& strides = mask.interval_strides;
  return {strides.batch == 0 ? 1 : sizes.batch, strides.head == 0 ? 1 : sizes.heads,
          strides.row == 0 ? 1 : ceil_divide(sizes.queries, kAttentionGroup), strides.row != 0};
}

__global__ void __launch_bounds__(kThreads)
    attention_interval_bounds(AttentionMask mask, BoundsSizes sizes, int queries,
                              IntervalBounds* bounds) {
  const int64_t at = warp_number() * 2 + threadIdx.x % kWarp / kAttentionGroup;
  const int64_t line = at / sizes.groups, group = at - line * sizes.groups;
  const int64_t head = line % sizes.heads, batch = line / sizes.heads % sizes.batch;
  const int64_t interval = line / sizes.heads / sizes.batch;
  const int64_t query = group * kAttentionGroup + threadIdx.x % kAttentionGroup;
  IntervalBounds own = kNoBounds;
  if (interval < mask.intervals && query < (sizes.each_row ? queries : 1)) {
    const auto& strides = mask.interval_strides;
    const int64_t place = interval * strides.interval + batch * strides.batch +
                          head * strides.head + query * strides.row;
    const int begin = mask.begin[place], end = mask.end[place];
    own = begin < end ? IntervalBounds{begin, begin, end, end}
                      : IntervalBounds{INT_MAX, INT_MAX, 0, 0};
  }
#pragma unroll
  for (int lanes = kAttentionGroup / 2; lanes > 0; lanes /= 2) {
    own.merge({__shfl_xor_sync(kAllLanes, own.first_begin, lanes),
               __shfl_xor_sync(kAllLanes, own.last_begin, lanes),
               __shfl_xor_sync(kAllLanes, own.first_end, lanes),
               __shfl_xor_sync(kAllLanes, own.last_end, lanes)});
  }
  if (interval < mask.intervals && threadIdx.x % kAttentionGroup == 0) bounds[at] = own;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    attention_combine_parts(AttentionParts parts, AttentionSizes sizes, AttentionStrides strides,
                            T* output, float* lse) {
  const int64_t row = warp_number();
  if (row >= parts.rows) return;
  const int lane = threadIdx.x % kWarp;
  float logs[2], largest[1] = {-INFINITY}, total[1] = {0};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int split = lane + i * kWarp;
    logs[i] = split < parts.splits ? parts.lse[split * parts.rows + row] : -INFINITY;
    largest[0] = fmaxf(largest[0], logs[i]);
  }
  warp_reduce<Max>(largest);
  const float offset = largest[0] == -INFINITY ? 0 : largest[0];
#pragma unroll
  for (float& log : logs) {
    log = expf(log - offset);
    total[0] += log;
  }
  warp_reduce<Sum>(total);
  if (lane == 0) lse[row] = total[0] == 0 ? -INFINITY : offset + logf(total[0]);
  const float factor = total[0] == 0 ? 0 : 1 / total[0];
  const int64_t query = row % sizes.queries, line = row / sizes.queries;
  T* const to = output + line / sizes.heads * strides.batch + line % sizes.heads * strides.head +
                query * strides.row;
  for (int first = 0; first < sizes.value_dim; first += kWarp) {
    float sum = 0;
    for (int split = 0; split < parts.splits; ++split) {
      const float weight = __shfl_sync(kAllLanes, split < kWarp ? logs[0] : logs[1], split % kWarp);
      sum += weight * parts.parts[(split * parts.rows + row) * parts.dims + first + lane];
    }
    if (first + lane < sizes.value_dim) to[first + lane] = narrow<T>(sum * factor);
  }
}

int64_t padded_queries(const AttentionSizes& sizes) {
  return ceil_divide(sizes.queries, kAttentionTerms) * kAttentionTerms;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    attention_row_terms(AttentionBackwardArgs args, int64_t padded, AttentionTerms* terms) {
  const int64_t at = warp_number(), line = at / padded, query = at - line * padded;
  const AttentionSizes& sizes = args.sizes;
  const int64_t head = line % sizes.heads, batch = line / sizes.heads;
  if (batch >= sizes.batch) return;
  const int lane = threadIdx.x % kWarp;
  float lse = INFINITY, sum[1] = {0};
  if (query < sizes.queries) {
    const AttentionStrides &of_output = args.output_strides, &of_grad = args.grad_output_strides;
    const T* const output = static_cast<const T*>(args.output) + batch * of_output.batch +
                            head * of_output.head + query * of_output.row;
    const T* const grad = static_cast<const T*>(args.grad_output) + batch * of_grad.batch +
                          head * of_grad.head + query * of_grad.row;
    for (int64_t c = lane; c < sizes.value_dim; c += kWarp) {
      sum[0] = fmaf(widen(output[c]), widen(grad[c]), sum[0]);
    }
    lse = args.lse[line * sizes.queries + query] * kLog2E;
    if (lse == -INFINITY) lse = INFINITY;
  }
  warp_reduce<Sum>(sum);
  if (lane == 0) terms[at] = {lse, sum[0]};
}

__global__ void __launch_bounds__(kThreads)
    attention_classify_tiles(AttentionMaskTilesArgs args, int64_t down, int64_t across) {
  const int64_t at = warp_number(), line = at / across, tile_col = at - line * across;
  const int64_t tile_row = line % down, head = line / down % args.heads;
  const int64_t batch = line / down / args.heads;
  if (batch >= args.batch) return;
  const uint8_t* const first = args.allowed + batch * args.strides.batch + head * args.strides.head;
  bool some = false, all = true;
  for (int64_t i = tile_row * kMaskRows; i < min((tile_row + 1) * kMaskRows, args.queries); ++i) {
    for (int64_t j = tile_col * kMaskCols + threadIdx.x % kWarp;
         j < min((tile_col + 1) * kMaskCols, args.keys); j += kWarp) {
      const bool allowed = first[i * args.strides.row + j * args.strides.col] != 0;
      some |= allowed;
      all &= allowed;
    }
  }
  some = __any_sync(kAllLanes, some);
  all = __all_sync(kAllLanes, all);
  if (threadIdx.x % kWarp == 0) {
    args.tiles[at] = all ? kTileFull : some ? kTilePartial : kTileEmpty;
  }
}

__global__ void __launch_bounds__(kThreads)
    attention_write_kept(AttentionKeptArgs args, CudaDropout dropout) {
  const int64_t at = warp_number(), line = at / dropout.key_blocks;
  const int head = static_cast<int>(line / dropout.query_blocks);
  if (head >= args.batch * args.heads) return;
  const LanePairs<false, 16> pairs(
      static_cast<int>(line % dropout.query_blocks * kDropoutBlock),
      static_cast<int>((at - line * dropout.key_blocks) * kDropoutBlock));
  const uint32_t kept = kept_elements(dropout, head, pairs);
#pragma unroll
  for (int q = 0; q < 2; ++q) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (pairs.query(q) >= args.queries || pairs.key(k) >= args.keys) continue;
      args.kept[(head * args.queries + pairs.query(q)) * args.keys + pairs.key(k)] =
          (kept >> pairs.element(q, k) & 1) != 0 ? dropout.scale : 0;
    }
  }
}

}  // namespace

size_t interval_bounds_bytes(const AttentionMask& mask, const AttentionSizes& sizes) {
  const BoundsSizes all = bounds_sizes(mask, sizes);
  return static_cast<size_t>(mask.intervals * all.batch * all.heads * all.groups) *
         sizeof(IntervalBounds);
}

Status find_interval_bounds(CudaMask& mask, const AttentionSizes& sizes, void* workspace,
                            const CudaTarget& target) {
  if (mask.mask.intervals == 0) return {};
  const BoundsSizes all = bounds_sizes(mask.mask, sizes);
  IntervalBounds* const bounds = static_cast<IntervalBounds*>(workspace);
  mask.bounds = bounds;
  mask.bound_strides = {all.batch * all.heads * all.groups,
                        all.batch == 1 ? 0 : all.heads * all.groups,
                        all.heads == 1 ? 0 : all.groups, all.each_row ? 1 : 0};
  const int64_t count = mask.mask.intervals * all.batch * all.heads * all.groups;
  return launch(attention_interval_bounds, {blocks_for(ceil_divide(count, int64_t{2})), kThreads},
                target, mask.mask, all, static_cast<int>(sizes.queries), bounds);
}

Status combine_attention_parts(const AttentionParts& parts, const AttentionForwardArgs& args,
                               const CudaTarget& target) {
  const auto combine = [&]<class T> {
    return launch(attention_combine_parts<T>, {blocks_for(parts.rows), kThreads}, target, parts,
                  args.sizes, args.output_strides, static_cast<T*>(args.output), args.lse);
  };
  if (args.dtype == DType::kBFloat16) return combine.template operator()<__nv_bfloat16>();
  if (args.dtype == DType::kFloat16) return combine.template operator()<__half>();
  return combine.template operator()<float>();
}

size_t attention_terms_bytes(const AttentionSizes& sizes) {
  return static_cast<size_t>(sizes.batch * sizes.heads * padded_queries(sizes)) *
         sizeof(AttentionTerms);
}

Status find_attention_terms(const AttentionBackwardArgs& args, void* terms,
                            const CudaTarget& target) {
  const int64_t padded = padded_queries(args.sizes);
  const int64_t rows = args.sizes.batch * args.sizes.heads * padded;
  if (rows == 0) return {};
  const auto find = [&]<class T> {
    return launch(attention_row_terms<T>, {blocks_for(rows), kThreads}, target, args, padded,
                  static_cast<AttentionTerms*>(terms));
  };
  if (args.dtype == DType::kBFloat16) return find.template operator()<__nv_bfloat16>();
  if (args.dtype == DType::kFloat16) return find.template operator()<__half>();
  return find.template operator()<float>();
}

Status attention_mask_tiles_cuda(const AttentionMaskTilesArgs& args, const CudaTarget& target) {
  const int64_t down = ceil_divide(args.queries, kMaskRows);
  const int64_t across = ceil_divide(args.keys, kMaskCols);
  const int64_t tiles = args.batch * args.heads * down * across;
  if (tiles == 0) return {};
  return launch(attention_classify_tiles, {blocks_for(tiles), kThreads}, target, args, down,
                across);
}

Status attention_kept_cuda(const AttentionKeptArgs& args, const CudaTarget& target) {
  const CudaDropout dropout = cuda_dropout(args.dropout, args.queries, args.keys);
  const int64_t blocks =
      args.batch * args.heads * int64_t{dropout.query_blocks} * dropout.key_blocks;
  if (blocks == 0) return {};
  return launch(attention_write_kept, {blocks_for(blocks), kThreads}, target, args, dropout);
}

}  // namespace fastdl
