// Attention backward on the CPU, weights computed again from lse:
//
//   weights^T (keys x queries) = 2^(key query^T - lse)       delta = sum of grad_output * output
//   grad_scores^T = weights^T * (value grad_output^T - delta)
//   grad_query^T (head_dim x queries) += key^T grad_scores^T
//   grad_value (keys x value_dim) += weights^T grad_output
//   grad_key (keys x head_dim) += grad_scores^T query
//
// all five products of product_tile_cpu.h, none of whose operands need be turned: a block of
// queries is kept both as panels and as rows. A task (attention_backward_plan.h) walks over its
// blocks of queries, and each over tiles of keys; a block with its weights (100 KB) stays in L2,
// and sums of a key head pass through L2 once a block. Floor: 2 (3 head_dim + 2 value_dim)
// multiply-adds a pair at the FMA rate. Sums are always added in the same order.
// Source: Dao, "FlashAttention-2", 2023.
#include "attention/attention_backward_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace attention_detail {
namespace {

class Backward {
 public:
  explicit Backward(const AttentionBackwardArgs& args)
      : args_(args), plan_(args, sums_bytes_of_a_key(args.sizes)) {
    Pieces sums(nullptr), work(nullptr);
    key_sums(sums, args.sizes);
    sums_bytes_ = sums.bytes();
    Task(args, work);
    work_bytes_ = work.bytes();
    workers_ = std::min(tasks(), num_threads());
  }

  size_t workspace_bytes() const { return workers_ * work_bytes_ + slots() * sums_bytes_; }

  void run() {
    for_tasks(tasks(), [&](int64_t task, int64_t worker) {
      Pieces pieces(workspace() + slots() * sums_bytes_ + worker * work_bytes_);
      Task at(args_, pieces);
      // The last chunks, of which a causal mask leaves most, first
      const int64_t chunk = plan_.chunks - 1 - task % plan_.chunks, unit = task / plan_.chunks;
      const int64_t units = args_.sizes.kv_heads / plan_.unit_heads;
      for (int64_t b = 0; b < plan_.unit_batches; ++b) {
        for (int64_t h = 0; h < plan_.unit_heads; ++h) {
          key_head(at, unit / units * plan_.unit_batches + b, unit % units * plan_.unit_heads + h,
                   chunk, worker);
        }
      }
    });
    if (plan_.chunks > 1) add_chunks();
  }

 private:
  // A worker's memory
  struct Task {
    Task(const AttentionBackwardArgs& args, Pieces& pieces)
        : block(args, pieces),
          keys(pieces.floats(kMaskCols * args.sizes.head_dim)),
          values(pieces.floats(kMaskCols * args.sizes.value_dim)) {}
    BackwardBlock block;
    float *keys, *values;
  };

  static int64_t sums_bytes_of_a_key(const AttentionSizes& s) {
    return (round_up(s.head_dim, kPanelWidth) + round_up(s.value_dim, kPanelWidth)) *
           static_cast<int64_t>(sizeof(float));
  }

  char* workspace() const { return static_cast<char*>(args_.workspace); }
  int64_t tasks() const { return plan_.units * plan_.chunks; }
  int64_t key_heads() const { return args_.sizes.batch * args_.sizes.kv_heads; }
  // Sums that exist at a time: those of all chunks, or of the key heads being worked on
  int64_t slots() const { return plan_.chunks > 1 ? plan_.chunks * key_heads() : workers_; }

  KeySums sums(int64_t slot) const {
    Pieces pieces(workspace() + slot * sums_bytes_);
    return key_sums(pieces, args_.sizes);
  }

  // What a chunk of the queries gives to a key head
  void key_head(Task& task, int64_t b, int64_t kv_head, int64_t chunk, int64_t worker) {
    const AttentionSizes& s = args_.sizes;
    const int64_t head = b * s.kv_heads + kv_head;
    const int64_t slot = plan_.chunks > 1 ? chunk * key_heads() + head : worker;
    const KeySums into = sums(slot);
    std::memset(workspace() + slot * sums_bytes_, 0, sums_bytes_);
    const Rows keys = head_rows(args_.key, args_.key_strides, b, kv_head, args_.dtype);
    const Rows values = head_rows(args_.value, args_.value_strides, b, kv_head, args_.dtype);
    const int64_t blocks_of_a_head = plan_.blocks / s.heads_of_a_key();
    const int64_t first = chunk * plan_.chunk_blocks;
    const int64_t end = std::min(plan_.blocks, first + plan_.chunk_blocks);
    for (int64_t block = first; block < end; ++block) {
      const int64_t query = block % blocks_of_a_head * kBackwardQueries;
      task.block.begin(b, kv_head * s.heads_of_a_key() + block / blocks_of_a_head, query,
                       std::min(kBackwardQueries, s.queries - query));
      for (int64_t key = 0; key < s.keys; key += kMaskCols) {
        const int64_t count = std::min(kMaskCols, s.keys - key);
        if (!task.block.needs(key, count)) continue;
        KeyTile tile{key, count, nullptr, nullptr, s.head_dim, s.value_dim};
        tile.keys = float_rows(keys, key, count, s.head_dim, task.keys);
        tile.values = float_rows(values, key, count, s.value_dim, task.values);
        task.block.add_tile(tile, into);
      }
      task.block.finish();
    }
    if (plan_.chunks == 1) store(into, head, 0, s.keys);
  }

  static const float* float_rows(const Rows& rows, int64_t first, int64_t count, int64_t dim,
                                 float* copy) {
    if (rows.dtype == DType::kFloat32 && rows.stride == dim) return rows.row<float>(first);
    copy_rows(copy, dim, rows, first, count, dim);
    return copy;
  }

  void store(const KeySums& from, int64_t head, int64_t first, int64_t count) const {
    const AttentionSizes& s = args_.sizes;
    const int64_t b = head / s.kv_heads, kv_head = head % s.kv_heads;
    const auto store_one = [&](void* to, const AttentionStrides& strides, const float* sums,
                               int64_t stride, int64_t dim) {
      if (to == nullptr) return;
      store_rows(head_rows(to, strides, b, kv_head, args_.dtype), first, sums + first * stride,
                 stride, count, dim);
    };
    store_one(args_.grad_key, args_.grad_key_strides, from.key, from.key_stride, s.head_dim);
    store_one(args_.grad_value, args_.grad_value_strides, from.value, from.value_stride,
              s.value_dim);
  }

  // Adds the sums of the later chunks to those of the first, and stores them.
  void add_chunks() const {
    constexpr int64_t kRows = 128;
    const int64_t blocks = ceil_divide(args_.sizes.keys, kRows);
    const auto add = [](float* to, const float* from, int64_t count) {
      for (int64_t k = 0; k < count; k += kLaneCount) {
        (Vec<float>::loadu(to + k) + Vec<float>::loadu(from + k)).store(to + k);
      }
    };
    for_tasks(key_heads() * blocks, [&](int64_t task, int64_t) {
      const int64_t head = task / blocks, first = task % blocks * kRows;
      const int64_t count = std::min(kRows, args_.sizes.keys - first);
      const KeySums to = sums(head);
      for (int64_t chunk = 1; chunk < plan_.chunks; ++chunk) {
        const KeySums from = sums(chunk * key_heads() + head);
        const int64_t key = first * to.key_stride, value = first * to.value_stride;
        add(to.key + key, from.key + key, count * to.key_stride);
        add(to.value + value, from.value + value, count * to.value_stride);
      }
      store(to, head, first, count);
    });
  }

  const AttentionBackwardArgs& args_;
  AttentionBackwardPlan plan_;
  size_t sums_bytes_, work_bytes_;
  int64_t workers_;
};

}  // namespace
}  // namespace attention_detail
}  // namespace CPU_CAPABILITY

template <>
size_t attention_backward_workspace<kBuildIsa>(const AttentionBackwardArgs& args) {
  return attention_detail::Backward(args).workspace_bytes();
}

template <>
void attention_backward<kBuildIsa>(const AttentionBackwardArgs& args) {
  attention_detail::Backward(args).run();
}

}  // namespace fastdl
