// The steps of the optimizers on CUDA: formulas and order of operations as on the CPU
// (optimizer_formulas.h, optimizer_cpu.cpp).
// All tensors of a step are updated by one launch, in blocks of kTensorBlock elements that find
// their tensor in a table in global memory. The table travels there as the parameter of a first
// launch (320 tensors each, as many launches as needed). That launch also counts the steps and
// finds their corrections in double, once a tensor. lr, grad_scale, found_inf and clip may stay on
// the GPU. Memory: every array is read and written once, bytes an element as on the CPU, as 16-byte
// vectors where all of a tensor's arrays are aligned. Floor: these bytes / copy bandwidth.
#include <cmath>

#include "common/vector_io.cuh"
#include "optimizer/optimizer_formulas.h"
#include "optimizer/tensor_blocks.cuh"

namespace fastdl {
namespace {

constexpr int kThreads = 256;
constexpr int kSmallPart = 32, kLargePart = 320;

struct TableEntry {
  StepTensor tensor;
  StepRates rates;
};

__device__ __forceinline__ double read_scalar(const void* data, DType dtype) {
  return dtype == DType::kFloat64 ? *static_cast<const double*>(data)
                                  : *static_cast<const float*>(data);
}

__device__ __forceinline__ bool is_skipped(const StepDeviceScalars& scalars) {
  return scalars.found_inf != nullptr && *scalars.found_inf != 0;
}

// One thread a tensor: counts its step and writes its entry of the table.
template <class Algorithm, int kCount>
__global__ void __launch_bounds__(kLargePart)
    optimizer_prepare(const __grid_constant__ TablePart<StepTensor, kCount> part, int count,
                      TableEntry* table, StepArgs args, Algorithm algorithm,
                      StepDeviceScalars scalars) {
  const int i = threadIdx.x;
  if (i >= count || is_skipped(scalars)) return;
  TableEntry entry{part.entries[i], {}};
  StepTensor& tensor = entry.tensor;
  if (tensor.step != nullptr) {
    const double step = read_scalar(tensor.step, tensor.step_dtype) + 1;
    if (tensor.step_dtype == DType::kFloat64) {
      *static_cast<double*>(tensor.step) = step;
    } else {
      *static_cast<float*>(tensor.step) = static_cast<float>(step);
    }
    tensor.corrections = algorithm.corrections(step);
  }
  const double lr = scalars.lr != nullptr ? read_scalar(scalars.lr, scalars.lr_dtype) : args.lr;
  entry.rates = {lr, lr / tensor.corrections.rate, tensor.corrections.root};
  table[i] = entry;
}

template <class T, int W, class Algorithm>
__device__ __forceinline__ void step_block(const StepArgs& args, const Algorithm& algorithm,
                                           const TableEntry& entry, int64_t start,
                                           Accumulate<T> grad_scale, Accumulate<T> factor) {
  using A = Accumulate<T>;
  constexpr int count_of_states = Algorithm::kStates;
  const StepTensor& tensor = entry.tensor;
  T* const param = static_cast<T*>(tensor.param) + start;
  T* const grad = static_cast<T*>(tensor.grad) + start;
  const bool scaled = grad_scale != 1, l2 = args.weight_decay != 0;
  const A decay = static_cast<A>(args.weight_decay);
  const Update<Algorithm, A, A> update(algorithm, entry.rates, tensor);

  const RowVectors<W> vectors(min(kTensorBlock, tensor.size - start), 0);
#pragma unroll 2
  for (int i = threadIdx.x; i < vectors.count(); i += kThreads) {
    const auto loaded_p = vectors.load(param, i, 0), loaded_g = vectors.load(grad, i, 0);
    A p[W], g[W], states[count_of_states][W];
#pragma unroll
    for (int k = 0; k < count_of_states; ++k) {
      if (tensor.states[k] == nullptr) continue;
      vectors.load(static_cast<T*>(tensor.states[k]) + start, i, 0).unpack(states[k]);
    }
    loaded_p.unpack(p);
    loaded_g.unpack(g);
#pragma unroll
    for (int j = 0; j < W; ++j) {
      if (scaled) g[j] /= grad_scale;
      const A gradient = l2 ? factor * g[j] + decay * p[j] : factor * g[j];
      A values[count_of_states];
#pragma unroll
      for (int k = 0; k < count_of_states; ++k) values[k] = states[k][j];
      update(p[j], gradient, values);
#pragma unroll
      for (int k = 0; k < count_of_states; ++k) states[k][j] = values[k];
    }
    const auto store = [&](void* data, const A(&values)[W]) {
      Vector<T, W> packed;
      packed.pack(values);
      vectors.store(static_cast<T*>(data), i, packed);
    };
    store(param, p);
#pragma unroll
    for (int k = 0; k < count_of_states; ++k) {
      if (tensor.states[k] != nullptr) store(static_cast<T*>(tensor.states[k]) + start, states[k]);
    }
    if (scaled) store(grad, g);
  }
}

template <int W, class T>
__device__ __forceinline__ bool is_aligned(const StepTensor& tensor) {
  int shifts = shift_of<W>(static_cast<const T*>(tensor.param)) |
               shift_of<W>(static_cast<const T*>(tensor.grad));
  for (const void* state : tensor.states) shifts |= shift_of<W>(static_cast<const T*>(state));
  return shifts == 0;
}

template <class T, class Algorithm>
__device__ __forceinline__ void step_typed(const StepArgs& args, const Algorithm& algorithm,
                                           const TableEntry& entry,
                                           const StepDeviceScalars& scalars) {
  using A = Accumulate<T>;
  const int64_t start = (blockIdx.x - entry.tensor.first_block) * kTensorBlock;
  const auto grad_scale =
      static_cast<A>(scalars.grad_scale != nullptr ? *scalars.grad_scale : args.grad_scale);
  const auto clip = static_cast<A>(scalars.clip != nullptr ? *scalars.clip : args.clip);
  const A factor = args.maximize ? -clip : clip;
  if (is_aligned<kVectorWidth<T>, T>(entry.tensor)) {
    step_block<T, kVectorWidth<T>>(args, algorithm, entry, start, grad_scale, factor);
  } else {
    step_block<T, 1>(args, algorithm, entry, start, grad_scale, factor);
  }
}

template <class Algorithm>
__global__ void __launch_bounds__(kThreads)
    optimizer_step_blocks(const TableEntry* table, int64_t count, StepArgs args,
                          Algorithm algorithm, StepDeviceScalars scalars) {
  if (is_skipped(scalars)) return;
  const TableEntry entry =
      table[find_tensor(count, blockIdx.x, [&](int64_t i) { return table[i].tensor.first_block; })];
  switch (entry.tensor.dtype) {
    case DType::kFloat32:
      return step_typed<float>(args, algorithm, entry, scalars);
    case DType::kFloat64:
      return step_typed<double>(args, algorithm, entry, scalars);
    case DType::kBFloat16:
      return step_typed<__nv_bfloat16>(args, algorithm, entry, scalars);
    case DType::kFloat16:
      return step_typed<__half>(args, algorithm, entry, scalars);
  }
}

template <int kCount, class Algorithm>
Status prepare(const StepArgs& args, const Algorithm& algorithm, const StepDeviceScalars& scalars,
               int64_t first, int64_t count, TableEntry* table, const CudaTarget& target) {
  const int threads = static_cast<int>((count + kWarp - 1) / kWarp * kWarp);
  return launch(optimizer_prepare<Algorithm, kCount>, {1, threads}, target,
                table_part<StepTensor, kCount>(args.tensors, first, count), static_cast<int>(count),
                table + first, args, algorithm, scalars);
}

}  // namespace

size_t step_scratch_cuda(int64_t count) { return count * sizeof(TableEntry); }

template <class Algorithm>
Status optimizer_step_cuda(const StepArgs& args, const Algorithm& algorithm,
                           const StepDeviceScalars& scalars, void* scratch,
                           const CudaTarget& target) {
  if (args.count == 0) return {};
  TableEntry* const table = static_cast<TableEntry*>(scratch);
  for (int64_t first = 0; first < args.count; first += kLargePart) {
    const int64_t count = std::min<int64_t>(kLargePart, args.count - first);
    const auto part =
        count <= kSmallPart ? prepare<kSmallPart, Algorithm> : prepare<kLargePart, Algorithm>;
    const Status status = part(args, algorithm, scalars, first, count, table, target);
    if (!status.ok()) return status;
  }
  const LaunchShape shape{table_blocks(args.tensors, args.count), kThreads};
  if (shape.blocks == 0) return {};  // all tensors are empty: only their steps count
  return launch(optimizer_step_blocks<Algorithm>, shape, target, table, args.count, args, algorithm,
                scalars);
}

template Status optimizer_step_cuda(const StepArgs&, const Adam&, const StepDeviceScalars&, void*,
                                    const CudaTarget&);
template Status optimizer_step_cuda(const StepArgs&, const Sgd&, const StepDeviceScalars&, void*,
                                    const CudaTarget&);
template Status optimizer_step_cuda(const StepArgs&, const Adagrad&, const StepDeviceScalars&,
                                    void*, const CudaTarget&);
template Status optimizer_step_cuda(const StepArgs&, const RmsProp&, const StepDeviceScalars&,
                                    void*, const CudaTarget&);

}  // namespace fastdl
