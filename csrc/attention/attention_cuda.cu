// The entry points of attention on CUDA: plans, workspaces, and the kernels in their order.
#include "attention/attention_backward_blocks_cuda.cuh"
#include "attention/attention_forward_blocks_cuda.cuh"
#include "attention/attention_prepare_cuda.cuh"

namespace fastdl {
namespace {

// Consecutive parts of a workspace, at multiples of 64 bytes
class Workspace {
 public:
  explicit Workspace(void* data) : data_(static_cast<char*>(data)) {}

  template <class T = void>
  T* take(size_t bytes) {
    char* const part = data_ == nullptr ? nullptr : data_ + used_;
    used_ += (bytes + 63) / 64 * 64;
    return static_cast<T*>(static_cast<void*>(part));
  }
  size_t used() const { return used_; }

 private:
  char* data_;
  size_t used_ = 0;
};

template <class Args>
CudaAttention common_parameters(const Args& args, bool whole) {
  constexpr int64_t kBand = int64_t{1} << 30;
  const AttentionSizes& sizes = args.sizes;
  CudaMask mask{args.mask,
                static_cast<int>(sizes.queries),
                static_cast<int>(sizes.keys),
                static_cast<int>(std::clamp(args.mask.lowest, -kBand, kBand)),
                static_cast<int>(std::clamp(args.mask.highest, -kBand, kBand)),
                nullptr,
                {}};
  return {sizes,
          mask,
          cuda_dropout(args.dropout, sizes.queries, sizes.keys),
          args.scale,
          has_changed_scores(args.mask, args.scale),
          whole};
}

// Whether all rows of a tensor begin and end at multiples of 16 bytes
bool is_whole(const void* data, const AttentionStrides& strides, int64_t cols, DType dtype) {
  const int64_t width = dtype == DType::kFloat32 ? 4 : 8;
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && strides.batch % width == 0 &&
         strides.head % width == 0 && strides.row % width == 0 && cols % width == 0;
}

// Calls f.operator()<Math>() with the arithmetic.
template <class F>
void dispatch_attention_math(DType dtype, bool allow_tf32, F&& f) {
  if (dtype == DType::kBFloat16) {
    f.template operator()<AttentionMath<__nv_bfloat16, true>>();
  } else if (dtype == DType::kFloat16) {
    f.template operator()<AttentionMath<__half, true>>();
  } else if (allow_tf32) {
    f.template operator()<AttentionMath<float, true>>();
  } else {
    f.template operator()<AttentionMath<float, false>>();
  }
}

bool has_results(const AttentionSizes& sizes) {
  return sizes.batch > 0 && sizes.heads > 0 && sizes.queries > 0;
}

struct ForwardParts {
  void* bounds;
  float *parts, *lse;
};

ForwardParts forward_parts(const AttentionForwardArgs& args, const AttentionCudaPlan& plan,
                           Workspace& workspace) {
  const AttentionSizes& sizes = args.sizes;
  const int64_t rows =
      plan.splits == 1 ? 0 : plan.splits * sizes.batch * sizes.heads * sizes.queries;
  const int64_t dims = kAttentionBlocks[plan.block].dims;
  ForwardParts parts{};
  parts.bounds = workspace.take(interval_bounds_bytes(args.mask, sizes));
  parts.parts = workspace.take<float>(static_cast<size_t>(rows * dims * 4));
  parts.lse = workspace.take<float>(static_cast<size_t>(rows * 4));
  return parts;
}

AttentionCudaPlan forward_plan(const AttentionForwardArgs& args, const CudaTarget& target) {
  return plan_attention_cuda(AttentionPass::kForward, args.sizes, args.dtype,
                             target.multiprocessors);
}

struct BackwardParts {
  void *bounds, *terms;
};

BackwardParts backward_parts(const AttentionBackwardArgs& args, Workspace& workspace) {
  BackwardParts parts{};
  parts.bounds = workspace.take(interval_bounds_bytes(args.mask, args.sizes));
  parts.terms = workspace.take(attention_terms_bytes(args.sizes));
  return parts;
}

}  // namespace

size_t attention_forward_workspace_cuda(const AttentionForwardArgs& args,
                                        const CudaTarget& target) {
  Workspace workspace(nullptr);
  forward_parts(args, forward_plan(args, target), workspace);
  return workspace.used();
}

Status attention_forward_cuda(const AttentionForwardArgs& args, const CudaTarget& target) {
  const AttentionSizes& sizes = args.sizes;
  if (!has_results(sizes)) return {};
  const AttentionCudaPlan plan = forward_plan(args, target);
  Workspace workspace(args.workspace);
  const ForwardParts parts = forward_parts(args, plan, workspace);
  const bool whole = is_whole(args.query, args.query_strides, sizes.head_dim, args.dtype) &&
                     is_whole(args.key, args.key_strides, sizes.head_dim, args.dtype) &&
                     is_whole(args.value, args.value_strides, sizes.value_dim, args.dtype) &&
                     is_whole(args.output, args.output_strides, sizes.value_dim, args.dtype);
  AttentionForward forward{common_parameters(args, whole),
                           args.query,
                           args.key,
                           args.value,
                           args.output,
                           args.query_strides,
                           args.key_strides,
                           args.value_strides,
                           args.output_strides,
                           args.lse,
                           parts.parts,
                           parts.lse,
                           plan.splits};
  Status status = find_interval_bounds(forward.attention.mask, sizes, parts.bounds, target);
  if (!status.ok()) return status;
  dispatch_attention_math(args.dtype, args.allow_tf32, [&]<class Math> {
    status = attention_forward_blocks<Math>(forward, plan.block, target);
  });
  if (!status.ok() || plan.splits == 1) return status;
  return combine_attention_parts(
      {parts.parts, parts.lse, plan.splits, kAttentionBlocks[plan.block].dims,
       sizes.batch * sizes.heads * sizes.queries},
      args, target);
}

size_t attention_backward_workspace_cuda(const AttentionBackwardArgs& args, const CudaTarget&) {
  Workspace workspace(nullptr);
  backward_parts(args, workspace);
  return workspace.used();
}

Status attention_backward_cuda(const AttentionBackwardArgs& args, const CudaTarget& target) {
  const AttentionSizes& sizes = args.sizes;
  const DType dtype = args.dtype;
  Workspace workspace(args.workspace);
  const BackwardParts parts = backward_parts(args, workspace);
  const auto whole = [&](const void* data, const AttentionStrides& strides, int64_t cols) {
    return data == nullptr || is_whole(data, strides, cols, dtype);
  };
  const bool all_whole = whole(args.query, args.query_strides, sizes.head_dim) &&
                         whole(args.key, args.key_strides, sizes.head_dim) &&
                         whole(args.value, args.value_strides, sizes.value_dim) &&
                         whole(args.grad_output, args.grad_output_strides, sizes.value_dim) &&
                         whole(args.grad_query, args.grad_query_strides, sizes.head_dim) &&
                         whole(args.grad_key, args.grad_key_strides, sizes.head_dim) &&
                         whole(args.grad_value, args.grad_value_strides, sizes.value_dim);
  AttentionBackward backward{common_parameters(args, all_whole),
                             args.query,
                             args.key,
                             args.value,
                             args.grad_output,
                             args.grad_query,
                             args.grad_key,
                             args.grad_value,
                             args.grad_bias,
                             args.query_strides,
                             args.key_strides,
                             args.value_strides,
                             args.grad_output_strides,
                             args.grad_query_strides,
                             args.grad_key_strides,
                             args.grad_value_strides,
                             args.grad_bias_strides,
                             static_cast<const AttentionTerms*>(parts.terms)};
  Status status = find_interval_bounds(backward.attention.mask, sizes, parts.bounds, target);
  if (status.ok()) status = find_attention_terms(args, parts.terms, target);
  const auto block_of = [&](AttentionPass pass) {
    return plan_attention_cuda(pass, sizes, dtype, target.multiprocessors).block;
  };
  const bool has_keys = sizes.batch > 0 && sizes.kv_heads > 0 && sizes.keys > 0;
  dispatch_attention_math(dtype, args.allow_tf32, [&]<class Math> {
    if (status.ok() && has_keys && (args.grad_key != nullptr || args.grad_value != nullptr)) {
      status = attention_grad_key_value_blocks<Math>(
          backward, block_of(AttentionPass::kGradKeyValue), target);
    }
    if (status.ok() && has_results(sizes) && args.grad_query != nullptr) {
      status =
          attention_grad_query_blocks<Math>(backward, block_of(AttentionPass::kGradQuery), target);
    }
    if (status.ok() && has_results(sizes) && has_keys && args.grad_bias != nullptr) {
      status =
          attention_grad_bias_blocks<Math>(backward, block_of(AttentionPass::kGradBias), target);
    }
  });
  return status;
}

}  // namespace fastdl
