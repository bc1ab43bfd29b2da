// Attention forward and backward against plain loops in double: every mask, dropout, grouped heads,
// sizes around those of the tiles, and rows anywhere in memory.
#include <algorithm>
#include <string>
#include <vector>

#include "attention_reference.h"
#include "check.h"

namespace fastdl::testing {
namespace {

// Which dimensions a mask is broadcast along: "bhqk", those that it has
bool has(const std::string& dims, char dim) { return dims.find(dim) != std::string::npos; }

struct Case {
  std::string name;
  AttentionSizes sizes;
  DType dtype = DType::kFloat32;
  bool allow_tf32 = false;
  Layout layout = {};
  int64_t lowest = INT64_MIN, highest = INT64_MAX;
  int64_t intervals = 0;
  std::string interval_dims = "bhq", allowed_dims = "", bias_dims = "";
  bool bias_float32 = true, slopes = false;
  float soft_cap = 0;
  double dropout = 0;
  float scale = 0;  // 0: 1 / sqrt(head_dim)
};

void check_tensor(const Tensor& got, const std::vector<double>& expected, double tolerance,
                  const std::string& what) {
  for (int64_t n = 0; n < static_cast<int64_t>(expected.size()); ++n) {
    const int64_t c = n % got.cols, i = n / got.cols % got.rows;
    const int64_t h = n / got.cols / got.rows % got.heads, b = n / got.cols / got.rows / got.heads;
    const double value = got.get(b, h, i, c);
    if (close(value, expected[n], tolerance)) continue;
    return check(false, what + " at " + std::to_string(b) + ", " + std::to_string(h) + ", " +
                            std::to_string(i) + ", " + std::to_string(c) + ": got " +
                            std::to_string(value) + ", expected " + std::to_string(expected[n]));
  }
  check(true, what);
}

// The arrays that a case's mask points into
struct Masks {
  Array<int32_t> begin, end;
  Array<uint8_t> allowed, tiles;
  Buffer bias;
  Array<float> slopes;
  AttentionMask mask;

  static int64_t size(const AttentionSizes& s, const std::string& dims, int64_t queries,
                      int64_t keys) {
    return dims.empty() ? 0
                        : (has(dims, 'b') ? s.batch : 1) * (has(dims, 'h') ? s.heads : 1) *
                              (has(dims, 'q') ? queries : 1) * (has(dims, 'k') ? keys : 1);
  }
  static AttentionStrides strides(const AttentionSizes& s, const std::string& dims, int64_t queries,
                                  int64_t keys) {
    const int64_t row = has(dims, 'k') ? keys : 1, head = row * (has(dims, 'q') ? queries : 1);
    const int64_t batch = head * (has(dims, 'h') ? s.heads : 1);
    return {has(dims, 'b') ? batch : 0, has(dims, 'h') ? head : 0, has(dims, 'q') ? row : 0,
            has(dims, 'k') ? 1 : 0};
  }

  Masks(const Case& c, const Backend& backend)
      : begin(c.intervals * size(c.sizes, c.interval_dims, c.sizes.queries, 1)),
        end(begin.count()),
        allowed(size(c.sizes, c.allowed_dims, c.sizes.queries, c.sizes.keys)),
        tiles(size(c.sizes, c.allowed_dims, (c.sizes.queries + 15) / 16, (c.sizes.keys + 63) / 64)),
        bias(c.bias_float32 ? DType::kFloat32 : c.dtype,
             size(c.sizes, c.bias_dims, c.sizes.queries, c.sizes.keys)),
        slopes(c.slopes ? c.sizes.heads : 0) {
    const AttentionSizes& s = c.sizes;
    std::mt19937 random(7);
    const auto below = [&](int64_t n) { return static_cast<int32_t>(random() % (n + 1)); };
    mask.lowest = c.lowest;
    mask.highest = c.highest;
    mask.soft_cap = c.soft_cap;
    if (c.intervals > 0) {
      for (size_t i = 0; i < begin.count(); ++i) {
        begin[i] = below(s.keys);
        end[i] = below(s.keys);  // many are empty
      }
      const AttentionStrides at = strides(s, c.interval_dims, s.queries, 1);
      mask.intervals = c.intervals;
      mask.begin = begin.data();
      mask.end = end.data();
      mask.interval_strides = {static_cast<int64_t>(begin.count()) / c.intervals, at.batch, at.head,
                               at.row};
    }
    if (!c.allowed_dims.empty()) {
      const int64_t keys = has(c.allowed_dims, 'k') ? s.keys : 1;
      for (size_t i = 0; i < allowed.count(); ++i) {  // some tiles empty, some full, some mixed
        const int64_t row = i / keys, col = i % keys, kind = (row / 16 + col / 64) % 3;
        allowed[i] = kind == 0 ? 0 : kind == 1 ? 1 : random() % 3 != 0;
      }
      const bool rows = has(c.allowed_dims, 'q'), cols = has(c.allowed_dims, 'k');
      mask.allowed = allowed.data();
      mask.allowed_strides = strides(s, c.allowed_dims, s.queries, s.keys);
      mask.tiles = tiles.data();
      mask.tile_strides = strides(s, c.allowed_dims, (s.queries + 15) / 16, (s.keys + 63) / 64);
      backend.attention_mask_tiles({mask.allowed, mask.allowed_strides,
                                    has(c.allowed_dims, 'b') ? s.batch : 1,
                                    has(c.allowed_dims, 'h') ? s.heads : 1, rows ? s.queries : 1,
                                    cols ? s.keys : 1, tiles.data()});
    }
    if (!c.bias_dims.empty()) {
      std::normal_distribution<double> normal;
      for (int64_t i = 0; i < bias.count(); ++i) {
        bias.set(i, random() % 16 == 0 ? -INFINITY : normal(random));
      }
      mask.bias = bias.data();
      mask.bias_strides = strides(s, c.bias_dims, s.queries, s.keys);
      mask.bias_dtype = c.bias_float32 ? DType::kFloat32 : c.dtype;
    }
    if (c.slopes) {
      for (int64_t h = 0; h < s.heads; ++h) slopes[h] = 0.5f / static_cast<float>(h + 1);
      mask.slopes = slopes.data();
      mask.slope_strides = {0, 1};
      mask.slope_offset = s.keys - s.queries;
    }
  }
};

void test_case(const Backend& backend, const Case& c) {
  const AttentionSizes& s = c.sizes;
  const std::string what =
      backend.name + " attention " + dtype_name(c.dtype) + (c.allow_tf32 ? " tf32 " : " ") + c.name;
  const Tensor query(c.dtype, s.batch, s.heads, s.queries, s.head_dim, c.layout, 1);
  const Tensor key(c.dtype, s.batch, s.kv_heads, s.keys, s.head_dim, c.layout, 2);
  const Tensor value(c.dtype, s.batch, s.kv_heads, s.keys, s.value_dim, c.layout, 3);
  const Tensor grad_output(c.dtype, s.batch, s.heads, s.queries, s.value_dim, c.layout, 4);
  const Masks masks(c, backend);
  const float scale = c.scale != 0 ? c.scale : 1 / std::sqrt(static_cast<float>(s.head_dim));
  const AttentionDropout dropout{c.dropout, 11};
  const AttentionReference expected = reference_attention(
      {s, masks.mask, dropout, scale, query, key, value, grad_output}, masks.bias.count());
  // tf32 has the mantissa of float16.
  const double tolerance = 4 * tolerance_of(c.allow_tf32 ? DType::kFloat16 : c.dtype);

  Tensor output(c.dtype, s.batch, s.heads, s.queries, s.value_dim, c.layout);
  Tensor lse(DType::kFloat32, s.batch, s.heads, s.queries, 1);
  backend.attention_forward({s, query.buffer.data(), key.buffer.data(), value.buffer.data(),
                             output.buffer.data(), query.strides, key.strides, value.strides,
                             output.strides, static_cast<float*>(lse.buffer.data()), masks.mask,
                             dropout, scale, c.dtype, c.allow_tf32, nullptr});
  check_tensor(output, expected.output, tolerance, what + " output");
  check_tensor(lse, expected.lse, tolerance, what + " lse");

  Tensor grad_query(c.dtype, s.batch, s.heads, s.queries, s.head_dim, c.layout);
  Tensor grad_key(c.dtype, s.batch, s.kv_heads, s.keys, s.head_dim, c.layout);
  Tensor grad_value(c.dtype, s.batch, s.kv_heads, s.keys, s.value_dim, c.layout);
  Buffer grad_bias = Buffer::filled(DType::kFloat32, masks.bias.count(), 0);
  backend.attention_backward(
      {s,
       query.buffer.data(),
       key.buffer.data(),
       value.buffer.data(),
       output.buffer.data(),
       grad_output.buffer.data(),
       query.strides,
       key.strides,
       value.strides,
       output.strides,
       grad_output.strides,
       static_cast<const float*>(lse.buffer.data()),
       grad_query.buffer.data(),
       grad_key.buffer.data(),
       grad_value.buffer.data(),
       grad_query.strides,
       grad_key.strides,
       grad_value.strides,
       masks.mask.bias == nullptr ? nullptr : static_cast<float*>(grad_bias.data()),
       masks.mask.bias_strides,
       masks.mask,
       dropout,
       scale,
       c.dtype,
       c.allow_tf32,
       nullptr});
  check_tensor(grad_query, expected.grad_query, tolerance, what + " grad_query");
  check_tensor(grad_key, expected.grad_key, tolerance, what + " grad_key");
  check_tensor(grad_value, expected.grad_value, tolerance, what + " grad_value");
  for (int64_t i = 0; i < grad_bias.count(); ++i) {
    if (close(grad_bias.get(i), expected.grad_bias[i], tolerance)) continue;
    return check(false, what + " grad_bias at " + std::to_string(i) + ": got " +
                            std::to_string(grad_bias.get(i)) + ", expected " +
                            std::to_string(expected.grad_bias[i]));
  }
}

// kept must be what the rule of the contract keeps.
void test_kept(const Backend& backend) {
  constexpr int64_t kBatch = 2, kHeads = 2, kQueries = 21, kKeys = 35;
  const AttentionDropout dropout{0.3, 5};
  Buffer kept(DType::kFloat32, kBatch * kHeads * kQueries * kKeys);
  backend.attention_kept(
      {kBatch, kHeads, kQueries, kKeys, dropout, static_cast<float*>(kept.data())});
  std::vector<double> expected(kept.count());
  for (int64_t n = 0; n < kept.count(); ++n) {
    const int64_t j = n % kKeys, i = n / kKeys % kQueries, head = n / kKeys / kQueries;
    const int64_t tile = (head * ((kQueries + 15) / 16) + i / 16) * ((kKeys + 15) / 16) + j / 16;
    const bool keeps = dropout_keeps(dropout.p, dropout.seed, tile * 256 + j % 16 * 16 + i % 16);
    expected[n] = keeps ? 1 / (1 - dropout.p) : 0;
  }
  check_close(kept, expected, DType::kFloat32, backend.name + " attention kept");
}

// Every block of CUDA's table: sizes just above those of its tiles, few queries and many.
void add_sizes(std::vector<Case>& all, DType dtype) {
  const auto add = [&](const std::string& name, const AttentionSizes& sizes, int64_t highest,
                       const Layout& layout = {}) {
    Case c{name, sizes, dtype};
    c.highest = highest;
    c.layout = layout;
    all.push_back(c);
  };
  add("64, grouped heads", {1, 4, 2, 130, 67, 64, 64}, INT64_MAX);
  add("128, causal", {1, 2, 1, 65, 130, 128, 128}, 0, {true, 0, 0});
  add("256, causal", {1, 1, 1, 67, 66, 256, 256}, 0);
  add("few queries, odd rows", {1, 2, 1, 3, 550, 40, 33}, INT64_MAX, {false, 0, 1});
  add("few queries, split", {1, 1, 1, 2, 600, 128, 128}, INT64_MAX);
  add("few queries, wide values", {2, 2, 2, 1, 300, 32, 160}, INT64_MAX);
}

void add_masks(std::vector<Case>& all, const AttentionSizes& sizes, DType dtype) {
  const Case plain{"", sizes, dtype};
  const auto add = [&](const std::string& name, auto&& change) {
    all.push_back(plain);
    all.back().name = name;
    change(all.back());
  };
  add("sliding window", [](Case& c) {
    c.lowest = -19;
    c.highest = 3;
  });
  add("band beyond the keys", [](Case& c) { c.lowest = c.highest = 60; });
  add("padding", [](Case& c) {
    c.intervals = 1;
    c.interval_dims = "b";
  });
  add("two intervals", [](Case& c) {
    c.intervals = 2;
    c.interval_dims = "hq";
    c.layout = {true, 3, 1};
  });
  add("allowed", [](Case& c) { c.allowed_dims = "bhqk"; });
  add("allowed keys and dropout", [](Case& c) {
    c.allowed_dims = "bk";
    c.dropout = 0.4;
  });
  add("allowed, intervals and a band", [](Case& c) {
    c.allowed_dims = "qk";
    c.intervals = 1;
    c.highest = 10;
  });
  add("bias", [](Case& c) { c.bias_dims = "bhqk"; });
  add("bias of heads and dropout", [](Case& c) {
    c.bias_dims = "hqk";
    c.bias_float32 = false;
    c.dropout = 0.2;
    c.highest = 0;
  });
  add("bias of keys", [](Case& c) {
    c.bias_dims = "bk";
    c.layout = {true, 8, 0};
  });
  add("bias of queries and soft cap", [](Case& c) {
    c.bias_dims = "hq";
    c.soft_cap = 2;
  });
  add("slopes, causal", [](Case& c) {
    c.slopes = true;
    c.highest = c.sizes.keys - c.sizes.queries;
    c.scale = -0.3f;
  });
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    add_sizes(all, dtype);
  }
  add_masks(all, {2, 2, 1, 70, 77, 16, 24}, DType::kFloat32);
  add_masks(all, {2, 2, 2, 135, 70, 24, 8}, DType::kBFloat16);
  for (size_t i = 0, count = all.size(); i < count; ++i) {
    if (all[i].dtype != DType::kFloat32) continue;
    all.push_back(all[i]);
    all.back().allow_tf32 = true;
  }
  return all;
}

}  // namespace

void test_attention() {
  const std::vector<Case> all = cases();
  for_each_backend([&](const Backend& backend) {
    test_kept(backend);
    for (const Case& c : all) test_case(backend, c);
  });
}

}  // namespace fastdl::testing
