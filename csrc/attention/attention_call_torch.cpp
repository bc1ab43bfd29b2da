// What Python calls: the arguments of torch's function, and why native torch must judge them.
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "attention/attention_torch.h"
#include "common/cpu_isa.h"
#include "torch/hand_over.h"
#include "torch/random_seed.h"

namespace fastdl {
namespace {

using at::Tensor;

constexpr const char* kName = "scaled_dot_product_attention";

struct Call {
  Tensor query, key, value;
  AttentionOptions options;
  std::optional<Number> scale;
  bool enable_gqa;
};

bool requires_grad(const OptionalTensor& tensor) { return tensor && tensor->requires_grad(); }

OptionalTensor optional(const std::optional<PlainTensor>& tensor) {
  return tensor ? OptionalTensor(tensor->tensor) : std::nullopt;
}
OptionalSize optional(std::optional<Integer> size) {
  return size ? OptionalSize(size->value) : std::nullopt;
}

// Like reason_to_hand_over(), which takes no other dtypes than those of values.
const char* reason_of_mask(const Tensor& mask, const Tensor& query) {
  if (!mask.defined()) return "an undefined tensor";
  if (!is_plain_dense(mask)) return "not a plain dense tensor";
  return mask.device() == query.device() ? nullptr : "arguments on several devices";
}

const char* reason_of_tensors(const Call& c) {
  for (const Tensor* tensor : {&c.query, &c.key, &c.value}) {
    if (const char* reason = reason_to_hand_over(*tensor)) return reason;
    if (tensor->device() != c.query.device()) return "arguments on several devices";
  }
  const AttentionOptions& o = c.options;
  for (const OptionalTensor* part : {&o.allowed, &o.bias, &o.begin, &o.end, &o.slopes}) {
    if (!*part) continue;
    if (const char* reason = reason_of_mask(**part, c.query)) return reason;
  }
  if (o.bias) {
    if (const char* reason = reason_to_hand_over(*o.bias)) return reason;
  }
  if (requires_grad(o.slopes)) return "slopes that require a gradient";
  return nullptr;
}

void cast_by_autocast(Call& c) {
  const auto device = c.query.device().type();
  if (!at::autocast::is_autocast_enabled(device)) return;
  for (Tensor* tensor : {&c.query, &c.key, &c.value}) {
    *tensor = autocast_attention(*tensor, device);
  }
  if (c.options.bias) c.options.bias = autocast_attention(*c.options.bias, device);
}

const char* reason_of_dtypes(const Call& c) {
  const auto dtype = c.query.scalar_type();
  if (dtype == at::kDouble) return "no kernel for float64";
  if (c.key.scalar_type() != dtype || c.value.scalar_type() != dtype) {
    return "arguments of several dtypes";
  }
  const AttentionOptions& o = c.options;
  if (o.allowed && o.allowed->scalar_type() != at::kBool) return "a mask of another dtype";
  if (o.bias && o.bias->scalar_type() != dtype && o.bias->scalar_type() != at::kFloat) {
    return "a mask of another dtype";
  }
  return nullptr;
}

// [batch, heads, rows, cols], where all leading dimensions but the last are one batch
Tensor of_four_dims(const Tensor& tensor) {
  if (tensor.dim() > 4) return tensor.flatten(0, -4);
  Tensor result = tensor;
  while (result.dim() < 4) result = result.unsqueeze(0);
  return result;
}

// The same of a mask that broadcasts to the dimensions of the query; undefined where it does not.
Tensor mask_of_four_dims(const Tensor& mask, const Tensor& query) {
  const int64_t dims = query.dim();
  if (mask.dim() < 2 || mask.dim() > dims) return {};
  if (dims <= 4 || mask.dim() <= 3) return of_four_dims(mask);
  auto sizes = mask.sizes().vec();
  sizes.insert(sizes.begin(), dims - mask.dim(), 1);
  for (int64_t d = 0; d < dims - 3; ++d) {
    if (sizes[d] != 1 && sizes[d] != query.size(d)) return {};
    sizes[d] = query.size(d);
  }
  return of_four_dims(mask.expand(sizes));
}

// Makes dimension d of both as large, where one of them is 1; false where neither is.
bool meet(Tensor& one, Tensor& other, int64_t d) {
  if (one.size(d) == other.size(d)) return true;
  Tensor& smaller = one.size(d) == 1 ? one : other;
  if (smaller.size(d) != 1) return false;
  auto sizes = smaller.sizes().vec();
  sizes[d] = std::max(one.size(d), other.size(d));
  smaller = smaller.expand(sizes);
  return true;
}

// Brings all to four dimensions that fit together, or says why torch must judge them.
const char* reason_of_shape(Call& c) {
  constexpr const char* wrong = "sizes that native torch must judge";
  Tensor &q = c.query, &k = c.key, &v = c.value;
  const int64_t dims = q.dim();
  if (dims < 2 || k.dim() != dims || v.dim() != dims) return wrong;
  for (int64_t d = 0; dims > 4 && d < dims - 3; ++d) {
    if (k.size(d) != q.size(d) || v.size(d) != q.size(d)) return wrong;
  }
  for (OptionalTensor* mask : {&c.options.allowed, &c.options.bias}) {
    if (!*mask) continue;
    *mask = mask_of_four_dims(**mask, q);
    if (!(*mask)->defined()) return wrong;
  }
  q = of_four_dims(q), k = of_four_dims(k), v = of_four_dims(v);
  if (q.numel() == 0 || k.numel() == 0 || v.numel() == 0) return "an empty tensor";
  if (q.size(3) != k.size(3) || k.size(2) != v.size(2)) return wrong;
  if (!meet(k, v, 0) || !meet(q, k, 0) || !meet(k, v, 0)) return wrong;
  if (c.enable_gqa) {
    if (k.size(1) != v.size(1) || q.size(1) % k.size(1) != 0) return wrong;
  } else if (!meet(k, v, 1) || (k.size(1) != 1 && !meet(q, k, 1))) {
    return wrong;  // (one head of keys and values serves all queries as it is)
  }
  const std::array whole = {q.size(0), q.size(1), q.size(2), k.size(2)};
  for (const OptionalTensor* mask : {&c.options.allowed, &c.options.bias}) {
    for (int64_t d = 0; *mask && d < 4; ++d) {
      if ((*mask)->size(d) != 1 && (*mask)->size(d) != whole[d]) return wrong;
    }
  }
  return nullptr;
}

// With AVX-512 torch multiplies 16-bit types by instructions that the kernels here do not use.
bool is_faster_by_torch(const Call& c) {
  const AttentionOptions& o = c.options;
  const bool of_torch = !o.begin && !o.lowest && !o.slopes && o.soft_cap == 0 && o.dropout_p == 0 &&
                        !requires_grad(o.bias) && o.highest.value_or(0) == 0;
  return of_torch && !is_on_gpu(c.query) && cpu_isa() == CpuIsa::kAvx512 &&
         c.query.element_size() == 2;
}

const char* reason_of_settings(const Call& c) {
  const AttentionOptions& o = c.options;
  if (!(o.dropout_p >= 0 && o.dropout_p < 1)) return "a dropout_p outside of [0, 1)";
  if (o.dropout_p > 0) {
    if (const char* reason = reason_without_seed(c.query)) return reason;
  }
  const bool any =
      at::GradMode::is_enabled() && (c.query.requires_grad() || c.key.requires_grad() ||
                                     c.value.requires_grad() || requires_grad(o.bias));
  bool inference = c.query.is_inference() || c.key.is_inference() || c.value.is_inference();
  for (const OptionalTensor* part : {&o.allowed, &o.bias, &o.begin, &o.end, &o.slopes}) {
    inference = inference || (*part && (*part)->is_inference());
  }
  if (any && inference) return "an inference tensor that the backward would need";
  if (is_faster_by_torch(c)) return "native torch is faster here";
  return attention_has_kernel(c.query, c.key, c.value) ? nullptr
                                                       : "no kernel for this head_dim or CPU";
}

// Whether torch.nn.attention.sdpa_kernel, or a global setting, forbids any of torch's kernels.
bool backends_are_restricted() {
  const at::Context& context = at::globalContext();
  return !(context.userEnabledFlashSDP() && context.userEnabledMemEfficientSDP() &&
           context.userEnabledMathSDP() && context.userEnabledCuDNNSDP() &&
           context.userEnabledOverrideableSDP());
}

std::optional<Tensor> compute(Call c) {
  const char* reason =
      backends_are_restricted() ? "sdpa_kernel restricts the backends" : reason_of_tensors(c);
  if (reason == nullptr) {
    cast_by_autocast(c);
    reason = reason_of_dtypes(c);
  }
  std::vector<int64_t> output_sizes;
  if (reason == nullptr) {
    output_sizes = c.query.sizes().vec();
    reason = reason_of_shape(c);
  }
  if (reason == nullptr) reason = reason_of_settings(c);
  if (reason != nullptr) {
    hand_over(kName, reason);
    return std::nullopt;
  }
  AttentionOptions& o = c.options;
  if (o.allowed) o.allowed = attention_mask_without_repetitions(*o.allowed);
  o.scale = c.scale ? c.scale->value : 1 / std::sqrt(static_cast<double>(c.query.size(3)));
  if (o.dropout_p > 0) o.seed = draw_seed(c.query);
  Tensor output = std::get<0>(call_attention(c.query, c.key, c.value, o));
  if (output_sizes.size() == 4) return output;
  output_sizes.back() = output.size(3);
  return output.reshape(output_sizes);
}

}  // namespace

std::optional<Tensor> attention(const PlainTensor& query, const PlainTensor& key,
                                const PlainTensor& value,
                                const std::optional<PlainTensor>& attn_mask, Number dropout_p,
                                bool is_causal, std::optional<Number> scale, bool enable_gqa) {
  if (attn_mask && is_causal) {
    hand_over(kName, "a mask together with is_causal");
    return std::nullopt;
  }
  AttentionOptions options;
  if (attn_mask) {
    const bool is_bool = attn_mask->tensor.scalar_type() == at::kBool;
    (is_bool ? options.allowed : options.bias) = attn_mask->tensor;
  }
  if (is_causal) options.highest = 0;
  options.dropout_p = dropout_p;
  return compute({query.tensor, key.tensor, value.tensor, options, scale, enable_gqa});
}

std::optional<Tensor> masked_attention(
    const PlainTensor& query, const PlainTensor& key, const PlainTensor& value,
    std::optional<Integer> lowest, std::optional<Integer> highest,
    const std::optional<PlainTensor>& begin, const std::optional<PlainTensor>& end,
    const std::optional<PlainTensor>& allowed, const std::optional<PlainTensor>& bias,
    const std::optional<PlainTensor>& slopes, Integer slope_offset, Number soft_cap,
    Number dropout_p, std::optional<Number> scale, bool enable_gqa) {
  const AttentionOptions options{.allowed = optional(allowed),
                                 .tiles = std::nullopt,
                                 .bias = optional(bias),
                                 .begin = optional(begin),
                                 .end = optional(end),
                                 .slopes = optional(slopes),
                                 .lowest = optional(lowest),
                                 .highest = optional(highest),
                                 .slope_offset = slope_offset.value,
                                 .soft_cap = soft_cap,
                                 .scale = 1,
                                 .dropout_p = dropout_p,
                                 .seed = 0};
  return compute({query.tensor, key.tensor, value.tensor, options, scale, enable_gqa});
}

}  // namespace fastdl
