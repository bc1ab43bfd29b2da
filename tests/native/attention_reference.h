// Attention in double, with plain loops, and the tensors and masks of its tests.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "attention/attention.h"
#include "buffer.h"
#include "tests.h"

namespace fastdl::testing {

// [batch, heads, rows, cols], as such in memory or with rows before heads, `gap` elements between
// rows and `skip` before the first.
struct Layout {
  bool rows_first = false;
  int64_t gap = 0, skip = 0;
};

struct Tensor {
  int64_t batch, heads, rows, cols;
  AttentionStrides strides;
  Buffer buffer;

  Tensor(DType dtype, int64_t batch, int64_t heads, int64_t rows, int64_t cols,
         const Layout& layout = {}, uint32_t seed = 0)
      : batch(batch),
        heads(heads),
        rows(rows),
        cols(cols),
        strides{heads * rows * (cols + layout.gap),
                (layout.rows_first ? 1 : rows) * (cols + layout.gap),
                (layout.rows_first ? heads : 1) * (cols + layout.gap), 1},
        buffer(dtype, batch * heads * rows * (cols + layout.gap), layout.skip) {
    if (seed == 0) return;
    std::mt19937 generator(seed);
    std::normal_distribution<double> normal;
    for (int64_t i = 0; i < batch * heads * rows; ++i) {
      for (int64_t c = 0; c < cols; ++c) {
        buffer.set(offset(i / rows / heads, i / rows % heads, i % rows, c), normal(generator));
      }
    }
  }
  int64_t offset(int64_t b, int64_t h, int64_t i, int64_t c) const {
    return b * strides.batch + h * strides.head + i * strides.row + c * strides.col;
  }
  double get(int64_t b, int64_t h, int64_t i, int64_t c) const {
    return buffer.get(offset(b, h, i, c));
  }
};

// Elements that kernels may read, of any type.
template <class T>
class Array {
 public:
  explicit Array(size_t count)
      : count_(count),
        data_(count == 0 ? nullptr : static_cast<T*>(allocate_bytes(count * sizeof(T)))) {}
  Array(const Array&) = delete;
  ~Array() {
    if (data_ != nullptr) release_bytes(data_);
  }
  T* data() const { return data_; }
  T& operator[](size_t i) const { return data_[i]; }
  size_t count() const { return count_; }

 private:
  size_t count_;
  T* data_;
};

struct AttentionProblem {
  AttentionSizes sizes;
  AttentionMask mask;
  AttentionDropout dropout;
  float scale;
  const Tensor &query, &key, &value, &grad_output;
};

// Contiguous, [batch, heads, rows, cols]; grad_bias as in the contract.
struct AttentionReference {
  std::vector<double> output, lse, grad_query, grad_key, grad_value, grad_bias;
};

inline bool pair_counts(const AttentionProblem& p, int64_t b, int64_t h, int64_t i, int64_t j) {
  const AttentionMask& mask = p.mask;
  if (mask.lowest > j - i || j - i > mask.highest) return false;
  bool within = mask.intervals == 0;
  for (int64_t n = 0; n < mask.intervals; ++n) {
    const auto& strides = mask.interval_strides;
    const int64_t at =
        n * strides.interval + b * strides.batch + h * strides.head + i * strides.row;
    within |= mask.begin[at] <= j && j < mask.end[at];
  }
  const AttentionStrides& strides = mask.allowed_strides;
  return within &&
         (mask.allowed == nullptr ||
          mask.allowed[b * strides.batch + h * strides.head + i * strides.row + j * strides.col] !=
              0);
}

inline AttentionReference reference_attention(const AttentionProblem& p, int64_t grad_biases) {
  const AttentionSizes& s = p.sizes;
  const AttentionMask& mask = p.mask;
  const int64_t rows = s.batch * s.heads * s.queries, kv_rows = s.batch * s.kv_heads * s.keys;
  AttentionReference r;
  r.output.assign(rows * s.value_dim, 0);
  r.lse.assign(rows, -INFINITY);
  r.grad_query.assign(rows * s.head_dim, 0);
  r.grad_key.assign(kv_rows * s.head_dim, 0);
  r.grad_value.assign(kv_rows * s.value_dim, 0);
  r.grad_bias.assign(grad_biases, 0);
  const int64_t row_blocks = (s.queries + 15) / 16, col_blocks = (s.keys + 15) / 16;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t i = row % s.queries, h = row / s.queries % s.heads, b = row / s.queries / s.heads;
    const int64_t kv = h / s.heads_of_a_key(), kv_row = (b * s.kv_heads + kv) * s.keys;
    std::vector<double> score(s.keys, -INFINITY), slope(s.keys, 1), kept(s.keys, 1);
    double largest = -INFINITY, sum = 0;
    for (int64_t j = 0; j < s.keys; ++j) {
      if (!pair_counts(p, b, h, i, j)) continue;
      double product = 0;
      for (int64_t c = 0; c < s.head_dim; ++c)
        product += p.query.get(b, h, i, c) * p.key.get(b, kv, j, c);
      product *= p.scale;
      if (mask.soft_cap > 0) {
        const double share = std::tanh(product / mask.soft_cap);
        product = mask.soft_cap * share;
        slope[j] = 1 - share * share;
      }
      if (mask.bias != nullptr) {
        const AttentionStrides& at = mask.bias_strides;
        const int64_t place = b * at.batch + h * at.head + i * at.row + j * at.col;
        product += mask.bias_dtype == DType::kFloat32 ? static_cast<const float*>(mask.bias)[place]
                   : mask.bias_dtype == DType::kBFloat16
                       ? bfloat16_value(static_cast<const uint16_t*>(mask.bias)[place])
                       : float16_value(static_cast<const uint16_t*>(mask.bias)[place]);
      }
      if (mask.slopes != nullptr) {
        product -= mask.slopes[b * mask.slope_strides.batch + h * mask.slope_strides.head] *
                   std::abs(static_cast<double>(i + mask.slope_offset - j));
      }
      score[j] = product;
      largest = std::fmax(largest, product);
    }
    for (int64_t j = 0; j < s.keys; ++j) {
      if (score[j] > -INFINITY) sum += std::exp(score[j] - largest);
    }
    if (sum == 0) continue;
    r.lse[row] = largest + std::log(sum);
    double delta = 0;
    std::vector<double> grad(s.keys, 0);
    for (int64_t j = 0; j < s.keys; ++j) {
      score[j] = std::exp(score[j] - r.lse[row]);
      if (p.dropout.p > 0) {
        const int64_t tile = ((b * s.heads + h) * row_blocks + i / 16) * col_blocks + j / 16;
        const bool keeps =
            dropout_keeps(p.dropout.p, p.dropout.seed, tile * 256 + j % 16 * 16 + i % 16);
        kept[j] = keeps ? 1 / (1 - p.dropout.p) : 0;
      }
      for (int64_t c = 0; c < s.value_dim; ++c) {
        const double of_output = p.grad_output.get(b, h, i, c);
        r.output[row * s.value_dim + c] += kept[j] * score[j] * p.value.get(b, kv, j, c);
        r.grad_value[(kv_row + j) * s.value_dim + c] += kept[j] * score[j] * of_output;
        grad[j] += kept[j] * of_output * p.value.get(b, kv, j, c);
      }
      delta += score[j] * grad[j];
    }
    for (int64_t j = 0; j < s.keys; ++j) {
      const double of_score = score[j] * (grad[j] - delta);
      if (grad_biases > 0) {
        const AttentionStrides& at = mask.bias_strides;
        r.grad_bias[b * at.batch + h * at.head + i * at.row + j * at.col] += of_score;
      }
      for (int64_t c = 0; c < s.head_dim; ++c) {
        const double factor = of_score * slope[j] * p.scale;
        r.grad_query[row * s.head_dim + c] += factor * p.key.get(b, kv, j, c);
        r.grad_key[(kv_row + j) * s.head_dim + c] += factor * p.query.get(b, h, i, c);
      }
    }
  }
  return r;
}

}  // namespace fastdl::testing
