// Attention forward on the CPU: online softmax over windows of keys.
//
//   scores^T (keys x queries) = key query^T        product_tile_cpu.h, rows are keys in place
//   maximum, weights = 2^(scores - maximum), sum   down the lanes, in L1
//   output^T (value_dim x queries) += value^T weights
//
// A task is a block of kBlockQueries queries of a head; it walks over windows of kWindow keys, of
// which it reads those that the mask leaves to some of its panels. The scores of a panel and a
// window (16 KB) stay in L1, keys and values of a window in L2, where all panels of the block read
// them. Floor: 2 (head_dim + value_dim) multiply-adds a pair at the FMA rate; the exponential adds
// about 10 % to that at head_dim 64.
// One or two queries a head go to attention_decode_cpu.h.
// Limits: rows whose elements are side by side; 16-bit types and rows far apart are copied, a
// window at a time.
#include "attention/attention_decode_cpu.h"
#include "attention/attention_dropout_cpu.h"
#include "attention/attention_mask_cpu.h"
#include "attention/attention_work_cpu.h"
#include "common/exp_negative_cpu.h"
#include "common/vector_math_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace attention_detail {
namespace {

constexpr int64_t kBlockQueries = 128, kBlockPanels = kBlockQueries / kPanelWidth;
constexpr int64_t kWindow = 256, kWindowTiles = kWindow / kMaskCols;

// A panel of queries and what has been summed for it
struct Panel {
  int64_t first, count;
  PanelMask mask;
  float *query, *output;  // [head_dim][kPanelWidth], [value_dim][kPanelWidth]
  alignas(64) float maximum[kPanelWidth], sum[kPanelWidth];
  AttentionTile tiles[kWindowTiles];  // of the window
};

// The keys or values of a window: float rows
struct Window {
  const float* rows;
  int64_t stride;
  float* copy;
};

class Block {
 public:
  Block(const AttentionForwardArgs& args, void* memory) : args_(args), pieces_(memory) {
    const AttentionSizes& s = args.sizes;
    for (Panel& panel : panels_) {
      panel.query = pieces_.floats(s.head_dim * kPanelWidth);
      panel.output = pieces_.floats(s.value_dim * kPanelWidth);
    }
    scores_ = pieces_.floats(kWindow * kPanelWidth);
    key_.copy = pieces_.floats(kWindow * s.head_dim);
    value_.copy = pieces_.floats(kWindow * s.value_dim);
    turned_ = pieces_.floats(kPanelWidth * s.value_dim);
  }
  size_t bytes() const { return pieces_.bytes(); }

  void compute(int64_t b, int64_t h, int64_t first, int64_t count) {
    b_ = b, h_ = h;
    begin(first, count);
    const int64_t kv_head = h / args_.sizes.heads_of_a_key();
    const Rows keys = head_rows(args_.key, args_.key_strides, b, kv_head, args_.dtype);
    const Rows values = head_rows(args_.value, args_.value_strides, b, kv_head, args_.dtype);
    for (int64_t key = 0; key < args_.sizes.keys; key += kWindow) {
      const int64_t size = std::min(kWindow, args_.sizes.keys - key);
      if (!look_at_masks(key, size)) continue;
      load(key_, keys, key, size, args_.sizes.head_dim);
      load(value_, values, key, size, args_.sizes.value_dim);
      for (int64_t p = 0; p < count_; ++p) {
        panels_[p].count > kLaneCount ? attend<2>(panels_[p], key, size)
                                      : attend<1>(panels_[p], key, size);
      }
    }
    for (int64_t p = 0; p < count_; ++p) finish(panels_[p]);
  }

 private:
  void begin(int64_t first, int64_t count) {
    const Rows queries = head_rows(args_.query, args_.query_strides, b_, h_, args_.dtype);
    count_ = ceil_divide(count, kPanelWidth);
    for (int64_t p = 0; p < count_; ++p) {
      Panel& panel = panels_[p];
      panel.first = first + p * kPanelWidth;
      panel.count = std::min(kPanelWidth, first + count - panel.first);
      panel.mask = PanelMask(args_.mask, b_, h_, panel.first, panel.count);
      pack_panel(panel.query, queries, panel.first, panel.count, args_.sizes.head_dim,
                 args_.scale * kLog2E);
      std::memset(panel.output, 0, args_.sizes.value_dim * kPanelWidth * sizeof(float));
      std::fill_n(panel.maximum, kPanelWidth, kNone);
      std::fill_n(panel.sum, kPanelWidth, 0.0f);
    }
  }

  // Finds the tiles of each panel; whether there are any but empty ones.
  bool look_at_masks(int64_t key, int64_t size) {
    bool any = false;
    for (int64_t t = 0; t * kMaskCols < size; ++t) {
      used_[t] = false;
      for (int64_t p = 0; p < count_; ++p) {
        const int64_t at = t * kMaskCols;
        panels_[p].tiles[t] = panels_[p].mask.tile(key + at, std::min(kMaskCols, size - at));
        used_[t] = used_[t] || panels_[p].tiles[t] != kTileEmpty;
      }
      any = any || used_[t];
    }
    return any;
  }

  void load(Window& window, const Rows& rows, int64_t key, int64_t size, int64_t dim) {
    if (rows.dtype == DType::kFloat32 && rows.stride == dim) {
      window.rows = rows.row<float>(key);
      window.stride = rows.stride;
      return;
    }
    window.rows = window.copy;
    window.stride = dim;
    for (int64_t t = 0; t * kMaskCols < size; ++t) {
      const int64_t at = t * kMaskCols;
      if (!used_[t]) continue;
      copy_rows(window.copy + at * dim, dim, rows, key + at, std::min(kMaskCols, size - at), dim);
    }
  }

  // Calls f(first, count) for the runs of keys of the window that the panel needs.
  template <class F>
  static void for_runs(const Panel& panel, int64_t size, F&& f) {
    int64_t first = 0;
    for (int64_t t = 0; t * kMaskCols < size; ++t) {
      const int64_t end = std::min(size, (t + 1) * kMaskCols);
      if (panel.tiles[t] == kTileEmpty) {
        first = end;
      } else if (end == size || panel.tiles[t + 1] == kTileEmpty) {
        f(first, end - first);
        first = end;
      }
    }
  }

  template <int kVectors>
  void attend(Panel& panel, int64_t key, int64_t size) {
    using V = Vec<float>;
    V maximum[kVectors];
    for (int v = 0; v < kVectors; ++v) maximum[v] = V::loadu(panel.maximum + v * kLaneCount);
    bool any = false;
    for_runs(panel, size, [&](int64_t first, int64_t count) {
      any = true;
      multiply_by_panel<kVectors>(key_.rows + first * key_.stride, key_.stride, count,
                                  args_.sizes.head_dim, panel.query, scores_ + first * kPanelWidth);
      apply_mask(panel, key, first, count);
      const float* score = scores_ + first * kPanelWidth;
      for (int64_t j = 0; j < count; ++j, score += kPanelWidth) {
        for (int v = 0; v < kVectors; ++v) {
          maximum[v] = max_number(V::loadu(score + v * kLaneCount), maximum[v]);
        }
      }
    });
    if (!any) return;
    rescale<kVectors>(panel, maximum);
    for_runs(panel, size, [&](int64_t first, int64_t count) {
      weigh<kVectors>(panel, first, count);
      if (args_.dropout.p > 0) drop(panel, key, first, count);
      multiply_columns_by_panel<kVectors>(value_.rows + first * value_.stride, value_.stride, count,
                                          args_.sizes.value_dim, scores_ + first * kPanelWidth,
                                          panel.output);
    });
  }

  // Changes the scores of a run.
  void apply_mask(const Panel& panel, int64_t key, int64_t first, int64_t count) {
    const bool all = panel.mask.changes_scores();
    for (int64_t j = first; j < first + count; j += kMaskCols) {
      const bool partial = panel.tiles[j / kMaskCols] == kTilePartial;
      if (!all && !partial) continue;
      panel.mask.apply(scores_ + j * kPanelWidth, key + j, std::min(kMaskCols, first + count - j),
                       partial, nullptr);
    }
  }

  // Makes what has been summed relative to the new maximum.
  template <int kVectors>
  void rescale(Panel& panel, const Vec<float> (&maximum)[kVectors]) {
    using V = Vec<float>;
    V factor[kVectors];
    bool same = true;
    for (int v = 0; v < kVectors; ++v) {
      const V before = V::loadu(panel.maximum + v * kLaneCount);
      factor[v] = before - finite(maximum[v]);
      maximum[v].store(panel.maximum + v * kLaneCount);
      same = same && (before == maximum[v]).zero_mask() == 0;
    }
    if (same) return;
    exp2_negative(factor);
    for (int v = 0; v < kVectors; ++v) {
      float* sum = panel.sum + v * kLaneCount;
      (V::loadu(sum) * factor[v]).store(sum);
    }
    for (int64_t d = 0; d < args_.sizes.value_dim; ++d) {
      for (int v = 0; v < kVectors; ++v) {
        float* at = panel.output + d * kPanelWidth + v * kLaneCount;
        (V::loadu(at) * factor[v]).store(at);
      }
    }
  }

  // A maximum to subtract: of no keys it is -inf, and -inf - -inf no number.
  static Vec<float> finite(Vec<float> maximum) {
    return Vec<float>::blendv(maximum, Vec<float>(0.0f), maximum == Vec<float>(kNone));
  }

  // scores = 2^(scores - maximum), and adds up the sums.
  template <int kVectors>
  void weigh(Panel& panel, int64_t first, int64_t count) {
    using V = Vec<float>;
    constexpr int kKeys = 4 / kVectors;  // four vectors in step
    V maximum[kVectors], sum[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      maximum[v] = finite(V::loadu(panel.maximum + v * kLaneCount));
      sum[v] = V::loadu(panel.sum + v * kLaneCount);
    }
    const auto some = [&]<int kCount>(float* score) {
      V x[kCount * kVectors];
      for (int k = 0; k < kCount * kVectors; ++k) {
        x[k] = V::loadu(score + k / kVectors * kPanelWidth + k % kVectors * kLaneCount) -
               maximum[k % kVectors];
      }
      exp2_negative(x);
      for (int k = 0; k < kCount * kVectors; ++k) {
        sum[k % kVectors] = sum[k % kVectors] + x[k];
        x[k].store(score + k / kVectors * kPanelWidth + k % kVectors * kLaneCount);
      }
    };
    float* score = scores_ + first * kPanelWidth;
    int64_t j = 0;
    for (; j + kKeys <= count; j += kKeys) {
      some.template operator()<kKeys>(score + j * kPanelWidth);
    }
    for (; j < count; ++j) some.template operator()<1>(score + j * kPanelWidth);
    for (int v = 0; v < kVectors; ++v) sum[v].store(panel.sum + v * kLaneCount);
  }

  void drop(const Panel& panel, int64_t key, int64_t first, int64_t count) {
    PanelDropout dropout(args_.dropout, args_.sizes, b_, h_, panel.first);
    for (int64_t at = first; at < first + count; at += kMaskCols) {
      const int64_t keys = std::min(kMaskCols, first + count - at);
      dropout.fill(key + at, keys);
      for (int64_t j = 0; j < keys; ++j) {
        for (int64_t i = 0; i < kPanelWidth; i += kLaneCount) {
          float* weight = scores_ + (at + j) * kPanelWidth + i;
          (Vec<float>::loadu(weight) * dropout.kept(j, i)).store(weight);
        }
      }
    }
  }

  void finish(Panel& panel) {
    using V = Vec<float>;
    alignas(64) float inverse[kPanelWidth], lse[kPanelWidth];
    for (int64_t i = 0; i < kPanelWidth; i += kLaneCount) {
      const V sum = V::loadu(panel.sum + i), maximum = V::loadu(panel.maximum + i);
      const V none = sum == V(0.0f);
      V::blendv(V(1.0f) / sum, V(0.0f), none).store(inverse + i);
      V::blendv(at::vec::fmadd(maximum, V(kLn2), log(sum)), V(kNone), none).store(lse + i);
    }
    const AttentionSizes& s = args_.sizes;
    store_panel(head_rows(args_.output, args_.output_strides, b_, h_, args_.dtype), panel.first,
                panel.output, inverse, panel.count, s.value_dim, turned_);
    std::memcpy(args_.lse + (b_ * s.heads + h_) * s.queries + panel.first, lse,
                panel.count * sizeof(float));
  }

  const AttentionForwardArgs& args_;
  Pieces pieces_;
  Panel panels_[kBlockPanels];
  int64_t count_ = 0, b_ = 0, h_ = 0;
  Window key_, value_;
  float *scores_, *turned_;
  bool used_[kWindowTiles];
};

}  // namespace
}  // namespace attention_detail
}  // namespace CPU_CAPABILITY

template <>
size_t attention_forward_workspace<kBuildIsa>(const AttentionForwardArgs& args) {
  using attention_detail::Decoding;
  return Decoding::suits(args) ? Decoding(args).workspace_bytes() : 0;
}

template <>
void attention_forward<kBuildIsa>(const AttentionForwardArgs& args) {
  using namespace attention_detail;
  if (Decoding::suits(args)) return Decoding(args).run();
  const AttentionSizes& s = args.sizes;
  const int64_t blocks = ceil_divide(s.queries, kBlockQueries);
  const size_t bytes = Block(args, nullptr).bytes();
  for_tasks(s.batch * s.heads * blocks, [&](int64_t task, int64_t) {
    // The last blocks, of which a causal mask leaves most, first
    const int64_t first = (blocks - 1 - task % blocks) * kBlockQueries;
    const int64_t head = task / blocks;
    Block(args, thread_scratch(bytes))
        .compute(head / s.heads, head % s.heads, first, std::min(kBlockQueries, s.queries - first));
  });
}

}  // namespace fastdl
