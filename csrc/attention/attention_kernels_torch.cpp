// Runs the kernels of attention: strides, memory, what they may be asked for.
#include <ATen/ATen.h>

#include <algorithm>

#include "attention/attention.h"
#include "attention/attention_cuda_plan.h"
#include "attention/attention_torch.h"
#include "torch/run_kernel.h"
#include "torch/workspace.h"

namespace fastdl {
namespace {

using at::Tensor;

constexpr int64_t kMostCols = 256;  // of a query, key or value

Tensor tensor_or_undefined(const OptionalTensor& tensor) { return tensor.value_or(Tensor()); }

Tensor with_rows_side_by_side(const Tensor& tensor) {
  return tensor.stride(-1) == 1 || tensor.size(-1) == 1 ? tensor : tensor.contiguous();
}

bool is_repeated(const Tensor& tensor, int64_t d) {
  return tensor.stride(d) == 0 && tensor.size(d) > 1;
}

AttentionStrides strides_of(const Tensor& tensor) {
  return {tensor.stride(0), tensor.stride(1), tensor.stride(2), 1};
}

int64_t mask_stride(const Tensor& tensor, int64_t d) {
  return tensor.size(d) == 1 ? 0 : tensor.stride(d);
}
AttentionStrides mask_strides_of(const Tensor& t) {
  return {mask_stride(t, 0), mask_stride(t, 1), mask_stride(t, 2), mask_stride(t, 3)};
}

// The mask of the contract, and the tensors that it points into.
struct KernelMask {
  Tensor allowed, tiles, bias, begin, end, slopes;
  AttentionMask mask;

  KernelMask(const AttentionOptions& o, bool wants_grad_bias) {
    const auto number = [](const OptionalSize& size, int64_t missing) {
      return size.has_value() ? size->guard_int(__FILE__, __LINE__) : missing;
    };
    mask.lowest = number(o.lowest, INT64_MIN);
    mask.highest = number(o.highest, INT64_MAX);
    mask.slope_offset = o.slope_offset.guard_int(__FILE__, __LINE__);
    mask.soft_cap = static_cast<float>(o.soft_cap);
    set_allowed(tensor_or_undefined(o.allowed), tensor_or_undefined(o.tiles));
    set_bias(tensor_or_undefined(o.bias), wants_grad_bias);
    set_intervals(tensor_or_undefined(o.begin), tensor_or_undefined(o.end));
    slopes = tensor_or_undefined(o.slopes);
    if (slopes.defined()) {
      mask.slopes = slopes.const_data_ptr<float>();
      mask.slope_strides = {mask_stride(slopes, 0), mask_stride(slopes, 1)};
    }
  }

 private:
  void set_allowed(const Tensor& given, const Tensor& known_tiles) {
    if (!given.defined()) return;
    allowed = attention_mask_without_repetitions(given);
    tiles = known_tiles.defined() ? known_tiles : run_attention_mask_tiles(allowed);
    mask.allowed = static_cast<const uint8_t*>(allowed.const_data_ptr());
    mask.allowed_strides = mask_strides_of(allowed);
    mask.tiles = tiles.const_data_ptr<uint8_t>();
    mask.tile_strides = mask_strides_of(tiles);
  }

  void set_bias(const Tensor& given, bool wants_gradient) {
    if (!given.defined()) return;
    // The gradient of an element is not that of all which share its memory.
    bias =
        wants_gradient ? with_rows_side_by_side(given) : attention_mask_without_repetitions(given);
    for (int64_t d = 0; d < 4; ++d) {
      if (is_repeated(bias, d)) bias = bias.contiguous();
    }
    mask.bias = bias.const_data_ptr();
    mask.bias_strides = mask_strides_of(bias);
    mask.bias_dtype = *kernel_dtype(bias.scalar_type());
  }

  void set_intervals(const Tensor& from, const Tensor& to) {
    if (!from.defined()) return;
    begin = from, end = to;
    if (begin.sizes() != end.sizes() || begin.strides() != end.strides()) {
      const auto both = at::broadcast_tensors({from, to});
      begin = both[0].contiguous(), end = both[1].contiguous();
    }
    mask.intervals = begin.size(0);
    mask.begin = begin.const_data_ptr<int32_t>();
    mask.end = end.const_data_ptr<int32_t>();
    mask.interval_strides = {begin.stride(0), mask_stride(begin, 1), mask_stride(begin, 2),
                             mask_stride(begin, 3)};
  }
};

AttentionSizes sizes_of(const Tensor& query, const Tensor& key, const Tensor& value) {
  return {query.size(0), query.size(1), key.size(1),  query.size(2),
          key.size(2),   query.size(3), value.size(3)};
}

bool allow_tf32(const Tensor& like) {
  return is_on_gpu(like) && at::globalContext().allowTF32CuBLAS();
}

}  // namespace

Tensor empty_in_order_of(const Tensor& like, c10::SymIntArrayRef sizes) {
  std::array<int64_t, 4> order = {0, 1, 2, 3};
  const auto strides = like.sym_strides();
  if (strides[0] != 0 && strides[1] != 0 && strides[2] != 0) {
    std::stable_sort(order.begin(), order.begin() + 3,
                     [&](int64_t a, int64_t b) { return strides[a] > strides[b]; });
  }
  return at::empty_permuted_symint(sizes, order, like.options());
}

Tensor attention_mask_without_repetitions(Tensor mask) {
  for (int64_t d = 0; d < mask.dim(); ++d) {
    if (is_repeated(mask, d)) mask = mask.narrow(d, 0, 1);
  }
  return with_rows_side_by_side(mask);
}

bool attention_has_kernel(const Tensor& query, const Tensor& key, const Tensor& value) {
  const auto dtype = kernel_dtype(query.scalar_type());
  const AttentionSizes sizes = sizes_of(query, key, value);
  if (!dtype || *dtype == DType::kFloat64) return false;
  if (is_on_gpu(query)) return attention_cuda_covers(sizes, *dtype, DType::kFloat32);
#if defined(__x86_64__)
  if (cpu_isa() == CpuIsa::kDefault) return false;
#endif
  return std::max(sizes.head_dim, sizes.value_dim) <= kMostCols;
}

std::tuple<Tensor, Tensor> run_attention(const Tensor& query, const Tensor& key,
                                         const Tensor& value, const AttentionOptions& options) {
  const Tensor q = with_rows_side_by_side(query), k = with_rows_side_by_side(key),
               v = with_rows_side_by_side(value);
  const KernelMask mask(options, /*wants_grad_bias=*/false);
  const AttentionSizes sizes = sizes_of(q, k, v);
  const Tensor output =
      empty_in_order_of(query, {sizes.batch, sizes.heads, sizes.queries, sizes.value_dim});
  const Tensor lse =
      at::empty({sizes.batch, sizes.heads, sizes.queries}, q.options().dtype(at::kFloat));
  AttentionForwardArgs args{
      .sizes = sizes,
      .query = q.const_data_ptr(),
      .key = k.const_data_ptr(),
      .value = v.const_data_ptr(),
      .output = output.mutable_data_ptr(),
      .query_strides = strides_of(q),
      .key_strides = strides_of(k),
      .value_strides = strides_of(v),
      .output_strides = strides_of(output),
      .lse = lse.mutable_data_ptr<float>(),
      .mask = mask.mask,
      .dropout = {options.dropout_p, static_cast<uint64_t>(options.seed)},
      .scale = static_cast<float>(options.scale),
      .dtype = *kernel_dtype(q.scalar_type()),
      .allow_tf32 = allow_tf32(q),
      .workspace = nullptr,
  };
  run_kernel(
      q,
      [&]<CpuIsa isa> {
        const c10::DataPtr memory = workspace_memory(attention_forward_workspace<isa>(args));
        args.workspace = memory.get();
        attention_forward<isa>(args);
      },
      [&](const auto& target) {
        const Scratch scratch(q, attention_forward_workspace_cuda(args, target));
        args.workspace = scratch.data();
        return attention_forward_cuda(args, target);
      });
  return {output, lse};
}

std::array<Tensor, 4> run_attention_backward(const Tensor& grad_output, const Tensor& query,
                                             const Tensor& key, const Tensor& value,
                                             const Tensor& output, const Tensor& lse,
                                             const AttentionOptions& options,
                                             std::array<bool, 4> wanted) {
  const Tensor q = with_rows_side_by_side(query), k = with_rows_side_by_side(key),
               v = with_rows_side_by_side(value), y = with_rows_side_by_side(output),
               dy = with_rows_side_by_side(grad_output);
  const KernelMask mask(options, wanted[3]);
  std::array<Tensor, 4> grads;
  std::array<AttentionStrides, 4> strides{};
  std::array<void*, 4> pointers{};
  const std::array<const Tensor*, 3> inputs = {&query, &key, &value};
  for (size_t i = 0; i < 3; ++i) {
    if (!wanted[i]) continue;
    grads[i] = empty_in_order_of(*inputs[i], inputs[i]->sym_sizes());
    strides[i] = strides_of(grads[i]);
  }
  if (wanted[3]) {
    grads[3] = at::zeros(options.bias->sizes(), q.options().dtype(at::kFloat));
    strides[3] = mask_strides_of(grads[3]);
  }
  for (size_t i = 0; i < 4; ++i) {
    if (wanted[i]) pointers[i] = grads[i].mutable_data_ptr();
  }
  AttentionBackwardArgs args{
      .sizes = sizes_of(q, k, v),
      .query = q.const_data_ptr(),
      .key = k.const_data_ptr(),
      .value = v.const_data_ptr(),
      .output = y.const_data_ptr(),
      .grad_output = dy.const_data_ptr(),
      .query_strides = strides_of(q),
      .key_strides = strides_of(k),
      .value_strides = strides_of(v),
      .output_strides = strides_of(y),
      .grad_output_strides = strides_of(dy),
      .lse = lse.const_data_ptr<float>(),
      .grad_query = pointers[0],
      .grad_key = pointers[1],
      .grad_value = pointers[2],
      .grad_query_strides = strides[0],
      .grad_key_strides = strides[1],
      .grad_value_strides = strides[2],
      .grad_bias = static_cast<float*>(pointers[3]),
      .grad_bias_strides = strides[3],
      .mask = mask.mask,
      .dropout = {options.dropout_p, static_cast<uint64_t>(options.seed)},
      .scale = static_cast<float>(options.scale),
      .dtype = *kernel_dtype(q.scalar_type()),
      .allow_tf32 = allow_tf32(q),
      .workspace = nullptr,
  };
  run_kernel(
      q,
      [&]<CpuIsa isa> {
        const c10::DataPtr memory = workspace_memory(attention_backward_workspace<isa>(args));
        args.workspace = memory.get();
        attention_backward<isa>(args);
      },
      [&](const auto& target) {
        const Scratch scratch(q, attention_backward_workspace_cuda(args, target));
        args.workspace = scratch.data();
        return attention_backward_cuda(args, target);
      });
  return grads;
}

Tensor run_attention_mask_tiles(const Tensor& given) {
  const Tensor allowed = with_rows_side_by_side(given);
  const auto tiles_of = [](int64_t size, int64_t tile) { return (size + tile - 1) / tile; };
  AttentionMaskTilesArgs args{
      .allowed = static_cast<const uint8_t*>(allowed.const_data_ptr()),
      .strides = mask_strides_of(allowed),
      .batch = allowed.size(0),
      .heads = allowed.size(1),
      .queries = allowed.size(2),
      .keys = allowed.size(3),
      .tiles = nullptr,
  };
  const Tensor tiles = at::empty(
      {args.batch, args.heads, tiles_of(args.queries, kMaskRows), tiles_of(args.keys, kMaskCols)},
      allowed.options().dtype(at::kByte));
  args.tiles = tiles.mutable_data_ptr<uint8_t>();
  if (tiles.numel() > 0) {
    run_kernel(
        allowed, [&]<CpuIsa isa> { attention_mask_tiles<isa>(args); },
        [&](const auto& target) { return attention_mask_tiles_cuda(args, target); });
  }
  return tiles;
}

Tensor run_attention_kept(const Tensor& query, const Tensor& key, double dropout_p, int64_t seed) {
  const Tensor kept = at::empty({query.size(0), query.size(1), query.size(2), key.size(2)},
                                query.options().dtype(at::kFloat));
  const AttentionKeptArgs args{
      .batch = kept.size(0),
      .heads = kept.size(1),
      .queries = kept.size(2),
      .keys = kept.size(3),
      .dropout = {dropout_p, static_cast<uint64_t>(seed)},
      .kept = kept.mutable_data_ptr<float>(),
  };
  if (kept.numel() > 0) {
    run_kernel(
        kept, [&]<CpuIsa isa> { attention_kept<isa>(args); },
        [&](const auto& target) { return attention_kept_cuda(args, target); });
  }
  return kept;
}

}  // namespace fastdl
