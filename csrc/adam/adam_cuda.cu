// Adam and AdamW on CUDA: formulas and order of operations as in adam_cpu.cpp.
// All tensors of a step are updated by one launch, in blocks of kAdamBlock elements that find their
// tensor in a table in global memory. The table travels there as the parameter of a first launch
// (320 tensors each, as many launches as needed): no copy from pinned memory whose lifetime a CUDA
// graph would depend on. That launch also counts the steps and finds the bias corrections in
// double, once a tensor. lr, grad_scale and found_inf may stay on the GPU.
// Memory: 4 reads and 3 writes an element, 28 bytes in float32 (36 with amsgrad), each once, as
// 16-byte vectors where all of a tensor's arrays are aligned. Floor: these bytes / copy bandwidth.
#include <algorithm>
#include <cmath>

#include "adam/adam.h"
#include "common/launch.cuh"
#include "common/reduce.cuh"
#include "common/vector_io.cuh"

namespace fastdl {
namespace {

constexpr int kThreads = 256;

struct TableEntry {
  AdamTensor tensor;
  double step_size;   // lr / bias_correction1
  double root_scale;  // 1 / sqrt(bias_correction2)
};

// Part of the table, small enough for the parameters of a kernel: 32764 bytes.
template <int kCount>
struct TablePart {
  AdamTensor tensors[kCount];
};
constexpr int kSmallPart = 32, kLargePart = 320;
static_assert(sizeof(TablePart<kLargePart>) < 32000);

__device__ __forceinline__ double read_scalar(const void* data, DType dtype) {
  return dtype == DType::kFloat64 ? *static_cast<const double*>(data)
                                  : *static_cast<const float*>(data);
}

__device__ __forceinline__ bool is_skipped(const AdamDeviceScalars& scalars) {
  return scalars.found_inf != nullptr && *scalars.found_inf != 0;
}

// 1 - beta^step, without cancellation
__device__ __forceinline__ double bias_correction(double beta, double step) {
  return -expm1(step * log(beta));
}

// One thread a tensor: counts its step and writes its entry of the table.
template <int kCount>
__global__ void __launch_bounds__(kLargePart)
    adam_prepare(const __grid_constant__ TablePart<kCount> part, int count, TableEntry* table,
                 AdamStepArgs args, AdamDeviceScalars scalars) {
  const int i = threadIdx.x;
  if (i >= count || is_skipped(scalars)) return;
  TableEntry entry{part.tensors[i], 0, 0};
  AdamTensor& tensor = entry.tensor;
  if (tensor.step != nullptr) {
    const double step = read_scalar(tensor.step, tensor.step_dtype) + 1;
    if (tensor.step_dtype == DType::kFloat64) {
      *static_cast<double*>(tensor.step) = step;
    } else {
      *static_cast<float*>(tensor.step) = static_cast<float>(step);
    }
    tensor.bias_correction1 = bias_correction(args.beta1, step);
    tensor.bias_correction2 = bias_correction(args.beta2, step);
  }
  const double lr = scalars.lr != nullptr ? read_scalar(scalars.lr, scalars.lr_dtype) : args.lr;
  entry.step_size = lr / tensor.bias_correction1;
  entry.root_scale = 1 / sqrt(tensor.bias_correction2);
  table[i] = entry;
}

// The last tensor whose first block is not past `block`: a search by all lanes of a warp, which
// divide what is left by 32 in each turn.
__device__ __forceinline__ int64_t find_tensor(const TableEntry* table, int64_t count,
                                               int64_t block) {
  const int lane = threadIdx.x % kWarp;
  int64_t first = 0, size = count;
  while (size > 1) {
    const int64_t stride = (size + kWarp - 1) / kWarp, mine = lane * stride;
    const bool begins = mine < size && table[first + mine].tensor.first_block <= block;
    const int last = kWarp - 1 - __clz(__ballot_sync(kAllLanes, begins));
    first += last * stride;
    size = min(stride, size - last * stride);
  }
  return first;
}

template <class T, int W>
__device__ __forceinline__ void step_block(const AdamStepArgs& args, const TableEntry& entry,
                                           int64_t start, double lr, Accumulate<T> grad_scale) {
  using A = Accumulate<T>;
  const AdamTensor& tensor = entry.tensor;
  T* const param = static_cast<T*>(tensor.param) + start;
  T* const grad = static_cast<T*>(tensor.grad) + start;
  T* const exp_avg = static_cast<T*>(tensor.exp_avg) + start;
  T* const exp_avg_sq = static_cast<T*>(tensor.exp_avg_sq) + start;
  const bool amsgrad = tensor.max_exp_avg_sq != nullptr;
  T* const largest = amsgrad ? static_cast<T*>(tensor.max_exp_avg_sq) + start : nullptr;
  const bool scaled = grad_scale != 1;
  const bool keeps_more = args.beta1 > 0.5;  // of m than of g: as torch.lerp, exact for beta1 = 0
  const A sign = args.maximize ? -1 : 1;
  const bool l2 = !args.decoupled && args.weight_decay != 0;
  const A decay = static_cast<A>(args.weight_decay);
  const A shrink = static_cast<A>(args.decoupled ? 1 - lr * args.weight_decay : 1);
  const A beta1 = static_cast<A>(args.beta1), one_minus_beta1 = static_cast<A>(1 - args.beta1);
  const A beta2 = static_cast<A>(args.beta2), one_minus_beta2 = static_cast<A>(1 - args.beta2);
  const A step_size = static_cast<A>(entry.step_size), eps = static_cast<A>(args.eps);
  const A root_scale = static_cast<A>(entry.root_scale);

  const RowVectors<W> vectors(min(kAdamBlock, tensor.size - start), 0);
#pragma unroll 2
  for (int i = threadIdx.x; i < vectors.count(); i += kThreads) {
    const auto loaded_p = vectors.load(param, i, 0), loaded_g = vectors.load(grad, i, 0);
    const auto loaded_m = vectors.load(exp_avg, i, 0), loaded_v = vectors.load(exp_avg_sq, i, 0);
    A p[W], g[W], m[W], v[W], most[W];
    loaded_p.unpack(p);
    loaded_g.unpack(g);
    loaded_m.unpack(m);
    loaded_v.unpack(v);
    if (amsgrad) vectors.load(largest, i, 0).unpack(most);
#pragma unroll
    for (int j = 0; j < W; ++j) {
      if (scaled) g[j] /= grad_scale;
      const A gradient = l2 ? sign * g[j] + decay * p[j] : sign * g[j];
      m[j] = keeps_more ? m[j] + one_minus_beta1 * (gradient - m[j])
                        : gradient - (gradient - m[j]) * beta1;
      v[j] = one_minus_beta2 * gradient * gradient + beta2 * v[j];
      A second = v[j];
      if (amsgrad) {
        const bool stays = most[j] > second || most[j] != most[j];  // so does a NaN
        second = most[j] = stays ? most[j] : second;
      }
      p[j] = p[j] * shrink - step_size * m[j] / (sqrt(second) * root_scale + eps);
    }
    const auto store = [&](T* data, const A(&values)[W]) {
      Vector<T, W> packed;
      packed.pack(values);
      vectors.store(data, i, packed);
    };
    store(param, p);
    store(exp_avg, m);
    store(exp_avg_sq, v);
    if (amsgrad) store(largest, most);
    if (scaled) store(grad, g);
  }
}

template <int W, class T>
__device__ __forceinline__ bool is_aligned(const AdamTensor& tensor) {
  return shift_of<W>(static_cast<const T*>(tensor.param)) == 0 &&
         shift_of<W>(static_cast<const T*>(tensor.grad)) == 0 &&
         shift_of<W>(static_cast<const T*>(tensor.exp_avg)) == 0 &&
         shift_of<W>(static_cast<const T*>(tensor.exp_avg_sq)) == 0 &&
         shift_of<W>(static_cast<const T*>(tensor.max_exp_avg_sq)) == 0;
}

template <class T>
__device__ __forceinline__ void step_typed(const AdamStepArgs& args, const TableEntry& entry,
                                           const AdamDeviceScalars& scalars) {
  const int64_t start = (blockIdx.x - entry.tensor.first_block) * kAdamBlock;
  const double lr = scalars.lr != nullptr ? read_scalar(scalars.lr, scalars.lr_dtype) : args.lr;
  const auto grad_scale = static_cast<Accumulate<T>>(
      scalars.grad_scale != nullptr ? *scalars.grad_scale : args.grad_scale);
  if (is_aligned<kVectorWidth<T>, T>(entry.tensor)) {
    step_block<T, kVectorWidth<T>>(args, entry, start, lr, grad_scale);
  } else {
    step_block<T, 1>(args, entry, start, lr, grad_scale);
  }
}

__global__ void __launch_bounds__(kThreads)
    adam_step_blocks(const TableEntry* table, int64_t count, AdamStepArgs args,
                     AdamDeviceScalars scalars) {
  if (is_skipped(scalars)) return;
  const TableEntry entry = table[find_tensor(table, count, blockIdx.x)];
  switch (entry.tensor.dtype) {
    case DType::kFloat32:
      return step_typed<float>(args, entry, scalars);
    case DType::kFloat64:
      return step_typed<double>(args, entry, scalars);
    case DType::kBFloat16:
      return step_typed<__nv_bfloat16>(args, entry, scalars);
    case DType::kFloat16:
      return step_typed<__half>(args, entry, scalars);
  }
}

template <int kCount>
Status prepare(const AdamStepArgs& args, const AdamDeviceScalars& scalars, int64_t first,
               int64_t count, TableEntry* table, const CudaTarget& target) {
  TablePart<kCount> part{};
  std::copy_n(args.tensors + first, count, part.tensors);
  const int threads = static_cast<int>((count + kWarp - 1) / kWarp * kWarp);
  return launch(adam_prepare<kCount>, {1, threads}, target, part, static_cast<int>(count),
                table + first, args, scalars);
}

}  // namespace

size_t adam_scratch_cuda(int64_t count) { return count * sizeof(TableEntry); }

Status adam_step_cuda(const AdamStepArgs& args, const AdamDeviceScalars& scalars, void* scratch,
                      const CudaTarget& target) {
  if (args.count == 0) return {};
  TableEntry* const table = static_cast<TableEntry*>(scratch);
  for (int64_t first = 0; first < args.count; first += kLargePart) {
    const int64_t count = std::min<int64_t>(kLargePart, args.count - first);
    const Status status = count <= kSmallPart
                              ? prepare<kSmallPart>(args, scalars, first, count, table, target)
                              : prepare<kLargePart>(args, scalars, first, count, table, target);
    if (!status.ok()) return status;
  }
  const AdamTensor& last = args.tensors[args.count - 1];
  const LaunchShape shape{last.first_block + adam_blocks(last.size), kThreads};
  if (shape.blocks == 0) return {};  // all tensors are empty: only their steps count
  return launch(adam_step_blocks, shape, target, table, args.count, args, scalars);
}

}  // namespace fastdl
