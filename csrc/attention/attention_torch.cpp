// torch ops of attention: checks, fake tensors, registration. Kernels: attention_kernels_torch.cpp.
#include "attention/attention_torch.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "attention/attention.h"
#include "attention/attention_op_torch.h"

namespace fastdl {
namespace {

using at::Tensor;

void check_part(const char* name, const OptionalTensor& part, const Tensor& query,
                std::initializer_list<at::ScalarType> dtypes,
                std::initializer_list<c10::SymInt> sizes) {
  if (!part.has_value() || !part->defined()) return;
  TORCH_CHECK(part->device() == query.device(), "fastdl::attention: ", name, " is on ",
              part->device(), ", query on ", query.device());
  TORCH_CHECK(std::find(dtypes.begin(), dtypes.end(), part->scalar_type()) != dtypes.end(),
              "fastdl::attention: ", name, " has dtype ", part->scalar_type());
  const auto given = part->sym_sizes();
  bool fits = given.size() == sizes.size();
  for (size_t d = 0; fits && d < given.size(); ++d) {
    fits = given[d] == 1 || given[d] == sizes.begin()[d];
  }
  TORCH_CHECK(fits, "fastdl::attention: ", name, " of size ", given, " does not broadcast to size ",
              c10::SymIntArrayRef(sizes));
}

void check_arguments(const Tensor& query, const Tensor& key, const Tensor& value,
                     const AttentionOptions& o) {
  for (const Tensor* other : {&key, &value}) {
    TORCH_CHECK(other->device() == query.device(),
                "fastdl::attention: all tensors must be on the same device, got ", query.device(),
                " and ", other->device());
    TORCH_CHECK(other->scalar_type() == query.scalar_type(),
                "fastdl::attention: query, key and value must agree in dtype");
  }
  TORCH_CHECK_NOT_IMPLEMENTED(kernel_dtype(query.scalar_type()),
                              "fastdl::attention: no kernel for ", query.scalar_type());
  TORCH_CHECK(query.dim() == 4 && key.dim() == 4 && value.dim() == 4,
              "fastdl::attention: query, key and value must have 4 dimensions");
  const auto q = query.sym_sizes(), k = key.sym_sizes(), v = value.sym_sizes();
  TORCH_CHECK(q[0] == k[0] && q[0] == v[0] && k[1] == v[1] && k[2] == v[2] && q[3] == k[3] &&
                  k[1] > 0 && q[1] % k[1] == 0,
              "fastdl::attention: query ", q, ", key ", k, " and value ", v,
              " do not fit together");
  TORCH_CHECK(o.dropout_p >= 0 && o.dropout_p < 1,
              "fastdl::attention: dropout_p must be in [0, 1), not ", o.dropout_p);
  TORCH_CHECK(o.soft_cap >= 0, "fastdl::attention: soft_cap must not be negative");
  TORCH_CHECK(o.begin.has_value() == o.end.has_value(),
              "fastdl::attention: begin and end belong together");
  const auto heads = q[1], keys = k[2];
  check_part("allowed", o.allowed, query, {at::kBool}, {q[0], heads, q[2], keys});
  check_part("bias", o.bias, query, {at::kFloat, query.scalar_type()}, {q[0], heads, q[2], keys});
  check_part("slopes", o.slopes, query, {at::kFloat}, {q[0], heads});
  if (o.begin.has_value()) {
    const auto intervals = o.begin->sym_size(0);
    check_part("begin", o.begin, query, {at::kInt}, {intervals, q[0], heads, q[2]});
    check_part("end", o.end, query, {at::kInt}, {intervals, q[0], heads, q[2]});
  }
}

bool is_covered(const Tensor& query, const Tensor& key, const Tensor& value) {
  return query.numel() > 0 && key.numel() > 0 && value.numel() > 0 &&
         attention_has_kernel(query, key, value);
}

std::vector<c10::SymInt> output_sizes(const Tensor& query, const Tensor& value) {
  return {query.sym_size(0), query.sym_size(1), query.sym_size(2), value.sym_size(3)};
}

// A tensor as it is given back: in the memory order of `like`, or empty where it is not wanted.
Tensor in_memory_order_of(const Tensor& like, const Tensor& tensor) {
  if (!tensor.defined()) return at::empty({0}, like.options());
  return empty_in_order_of(like, tensor.sym_sizes()).copy_(tensor);
}

AttentionResult attention_kernel(const Tensor& query, const Tensor& key, const Tensor& value,
                                 const AttentionOptions& options) {
  check_arguments(query, key, value, options);
  if (is_covered(query, key, value)) return run_attention(query, key, value, options);
  const auto [output, lse] = native_attention(query, key, value, options);
  return {in_memory_order_of(query, output), lse.contiguous()};
}

AttentionResult attention_meta(const Tensor& query, const Tensor& key, const Tensor& value,
                               const AttentionOptions& options) {
  check_arguments(query, key, value, options);
  const auto sizes = output_sizes(query, value);
  const auto dtype = attention_sum_dtype(query.scalar_type());
  return {empty_in_order_of(query, sizes),
          at::empty_symint(c10::SymIntArrayRef(sizes).slice(0, 3), query.options().dtype(dtype))};
}

void check_backward(const Tensor& grad_output, const Tensor& query, const Tensor& key,
                    const Tensor& value, const Tensor& output, const Tensor& lse,
                    const AttentionOptions& options, std::array<bool, 4> wanted) {
  check_arguments(query, key, value, options);
  const std::vector<c10::SymInt> expected = output_sizes(query, value);
  const c10::SymIntArrayRef sizes(expected);
  const auto dtype = query.scalar_type();
  TORCH_CHECK(grad_output.device() == query.device() && output.device() == query.device() &&
                  lse.device() == query.device(),
              "fastdl::attention_backward: all tensors must be on the same device");
  TORCH_CHECK(grad_output.scalar_type() == dtype && output.scalar_type() == dtype &&
                  lse.scalar_type() == attention_sum_dtype(dtype),
              "fastdl::attention_backward: grad_output, output or lse of another dtype");
  TORCH_CHECK(grad_output.sym_sizes() == sizes && output.sym_sizes() == sizes &&
                  lse.sym_sizes() == sizes.slice(0, 3),
              "fastdl::attention_backward: grad_output, output or lse of another size");
  TORCH_CHECK(!wanted[3] || options.bias.has_value(),
              "fastdl::attention_backward: a gradient of no bias is wanted");
}

AttentionGradients attention_backward_kernel(const Tensor& grad_output, const Tensor& query,
                                             const Tensor& key, const Tensor& value,
                                             const Tensor& output, const Tensor& lse,
                                             const AttentionOptions& options,
                                             std::array<bool, 4> wanted) {
  check_backward(grad_output, query, key, value, output, lse, options, wanted);
  if (is_covered(query, key, value)) {
    auto grads =
        run_attention_backward(grad_output, query, key, value, output, lse, options, wanted);
    for (size_t i = 0; i < 3; ++i) {
      if (!wanted[i]) grads[i] = at::empty({0}, query.options());
    }
    grads[3] =
        wanted[3] ? grads[3].to(options.bias->scalar_type()) : at::empty({0}, query.options());
    return {grads[0], grads[1], grads[2], grads[3]};
  }
  const auto grads = native_attention_backward(grad_output, query, key, value, options, wanted);
  return {in_memory_order_of(query, grads[0]), in_memory_order_of(key, grads[1]),
          in_memory_order_of(value, grads[2]),
          wanted[3] ? grads[3].contiguous() : at::empty({0}, query.options())};
}

AttentionGradients attention_backward_meta(const Tensor& grad_output, const Tensor& query,
                                           const Tensor& key, const Tensor& value,
                                           const Tensor& output, const Tensor& lse,
                                           const AttentionOptions& options,
                                           std::array<bool, 4> wanted) {
  check_backward(grad_output, query, key, value, output, lse, options, wanted);
  const auto like = [&](const Tensor& tensor, bool want) {
    return want ? empty_in_order_of(tensor, tensor.sym_sizes()) : at::empty({0}, query.options());
  };
  return {like(query, wanted[0]), like(key, wanted[1]), like(value, wanted[2]),
          wanted[3] ? at::empty_symint(options.bias->sym_sizes(), options.bias->options())
                    : at::empty({0}, query.options())};
}

void check_mask(const Tensor& allowed) {
  TORCH_CHECK(allowed.dim() == 4 && allowed.scalar_type() == at::kBool,
              "fastdl::attention_mask_tiles: allowed must be bool and have 4 dimensions");
}

Tensor mask_tiles_kernel(const Tensor& allowed) {
  check_mask(allowed);
  return run_attention_mask_tiles(allowed);
}

Tensor mask_tiles_meta(const Tensor& allowed) {
  check_mask(allowed);
  const auto s = allowed.sym_sizes();
  const std::vector<c10::SymInt> sizes = {s[0], s[1], (s[2] + (kMaskRows - 1)) / kMaskRows,
                                          (s[3] + (kMaskCols - 1)) / kMaskCols};
  return at::empty_symint(sizes, allowed.options().dtype(at::kByte));
}

void check_kept(const Tensor& query, const Tensor& key, double p) {
  TORCH_CHECK(query.dim() == 4 && key.dim() == 4,
              "fastdl::attention_kept: query and key must have 4 dimensions");
  TORCH_CHECK(p > 0 && p < 1, "fastdl::attention_kept: dropout_p must be in (0, 1), not ", p);
}

Tensor kept_kernel(const Tensor& query, const Tensor& key, double dropout_p, int64_t seed) {
  check_kept(query, key, dropout_p);
  return run_attention_kept(query, key, dropout_p, seed);
}

Tensor kept_meta(const Tensor& query, const Tensor& key, double dropout_p, int64_t) {
  check_kept(query, key, dropout_p);
  const std::vector<c10::SymInt> sizes = {query.sym_size(0), query.sym_size(1), query.sym_size(2),
                                          key.sym_size(2)};
  return at::empty_symint(sizes, query.options().dtype(at::kFloat));
}

TORCH_LIBRARY_FRAGMENT(fastdl, library) {
  // Of 4 dimensions; the fields of AttentionOptions. The backward's gradients are those of query,
  // key, value and bias.
  library.def(
      "attention(Tensor query, Tensor key, Tensor value, Tensor? allowed, Tensor? tiles, "
      "Tensor? bias, Tensor? begin, Tensor? end, Tensor? slopes, SymInt? lowest, SymInt? highest, "
      "SymInt slope_offset, float soft_cap, float scale, float dropout_p, int seed) -> "
      "(Tensor output, Tensor lse)");
  library.def(
      "attention_backward(Tensor grad_output, Tensor query, Tensor key, Tensor value, "
      "Tensor output, Tensor lse, Tensor? allowed, Tensor? tiles, Tensor? bias, Tensor? begin, "
      "Tensor? end, Tensor? slopes, SymInt? lowest, SymInt? highest, SymInt slope_offset, "
      "float soft_cap, float scale, float dropout_p, int seed, bool[4] wanted) -> "
      "(Tensor grad_query, Tensor grad_key, Tensor grad_value, Tensor grad_bias)");
  // The classes of the tiles of a mask.
  library.def("attention_mask_tiles(Tensor allowed) -> Tensor");
  // [batch, heads, queries, keys], 0 or 1 / (1 - dropout_p).
  library.def("attention_kept(Tensor query, Tensor key, float dropout_p, int seed) -> Tensor");
}
TORCH_LIBRARY_IMPL(fastdl, CPU, library) {
  library.impl("attention", attention_op<attention_kernel>);
  library.impl("attention_backward", attention_backward_op<attention_backward_kernel>);
  library.impl("attention_mask_tiles", mask_tiles_kernel);
  library.impl("attention_kept", kept_kernel);
}
TORCH_LIBRARY_IMPL(fastdl, CUDA, library) {
  library.impl("attention", attention_op<attention_kernel>);
  library.impl("attention_backward", attention_backward_op<attention_backward_kernel>);
  library.impl("attention_mask_tiles", mask_tiles_kernel);
  library.impl("attention_kept", kept_kernel);
}
TORCH_LIBRARY_IMPL(fastdl, Meta, library) {
  library.impl("attention", attention_op<attention_meta>);
  library.impl("attention_backward", attention_backward_op<attention_backward_meta>);
  library.impl("attention_mask_tiles", mask_tiles_meta);
  library.impl("attention_kept", kept_meta);
}

}  // namespace
}  // namespace fastdl
