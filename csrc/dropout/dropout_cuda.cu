// Dropout on CUDA, forward and backward: y = x (keep ? 1 / (1 - p) : 0), the mask from the seed.
// A warp takes kTiles tiles of the mask (see common/dropout_mask.h), 256 elements each: of a tile a
// lane has the two halves of one block of random numbers, four neighbouring elements each, so that
// the lanes' loads are contiguous. The elements past the last whole group of four, and all of a
// tensor that does not begin at a vector, are taken one by one. Memory: x read once, y written
// once; nothing is kept of the mask. Floor: 2 tensors / copy bandwidth. The generator takes about
// 10 instructions an element, half of what 16-bit elements leave time for.
#include "common/dispatch.h"
#include "common/dropout_mask.cuh"
#include "common/launch.cuh"
#include "common/reduce.cuh"
#include "common/vector_io.cuh"
#include "dropout/dropout.h"

namespace fastdl {
namespace {

constexpr int kThreads = 256;
constexpr int kTiles = 2;  // of a warp
constexpr int kFour = 4;   // neighbours in a block of random numbers
constexpr int64_t kHalf = kDropoutTile / 2;

// Four elements as one or two vectors
template <class T>
struct Four {
  static constexpr int W = kVectorWidth<T> < kFour ? kVectorWidth<T> : kFour;
  static constexpr int kParts = kFour / W;
  Vector<T, W> parts[kParts];

  __device__ __forceinline__ void load(const T* data, int64_t count, bool aligned) {
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      if (aligned && count >= kFour) {
        parts[p] = load_vector<W>(data + p * W);
        continue;
      }
      parts[p].fill(0);
#pragma unroll
      for (int i = 0; i < W; ++i) {
        if (p * W + i < count) parts[p].load_element(i, data + p * W + i);
      }
    }
  }
  __device__ __forceinline__ void store(T* data, int64_t count, bool aligned) const {
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      if (aligned && count >= kFour) {
        store_vector<W>(data + p * W, parts[p]);
        continue;
      }
#pragma unroll
      for (int i = 0; i < W; ++i) {
        if (p * W + i < count) parts[p].store_element(i, data + p * W + i);
      }
    }
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    dropout_tiles_per_warp(DropoutArgs args, DropoutRule rule, Accumulate<T> scale, bool aligned) {
  using A = Accumulate<T>;
  using Elements = Four<T>;
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  const int64_t first = warp * (kTiles * kDropoutTile) + kFour * (threadIdx.x % kWarp);
  Elements x[2 * kTiles];
#pragma unroll
  for (int k = 0; k < 2 * kTiles; ++k) {
    const int64_t at = first + k * kHalf;
    if (at < args.count)
      x[k].load(static_cast<const T*>(args.input) + at, args.count - at, aligned);
  }
#pragma unroll
  for (int k = 0; k < 2 * kTiles; ++k) {
    const int64_t at = first + k * kHalf;
    if (at >= args.count) return;
    // The compiler sees that both halves of a tile come from the same block.
    const uint64_t bits = bits_of_four(rule, at);
#pragma unroll
    for (int p = 0; p < Elements::kParts; ++p) {
      A values[Elements::W];
      x[k].parts[p].unpack(values);
#pragma unroll
      for (int i = 0; i < Elements::W; ++i) {
        const int e = p * Elements::W + i;
        const auto own = static_cast<uint32_t>(bits >> (16 * e)) & 0xffff;
        values[i] *= is_kept(rule, own, at + e) ? scale : A(0);
      }
      x[k].parts[p].pack(values);
    }
    x[k].store(static_cast<T*>(args.output) + at, args.count - at, aligned);
  }
}

}  // namespace

Status dropout_cuda(const DropoutArgs& args, const CudaTarget& target) {
  if (args.count == 0) return {};
  constexpr int64_t of_block = int64_t{kThreads / kWarp} * kTiles * kDropoutTile;
  const LaunchShape shape{.blocks = (args.count + of_block - 1) / of_block, .threads = kThreads};
  const DropoutRule rule = make_dropout_rule(args.p, args.seed);
  Status status;
  dispatch_dtype<CudaTypes>(args.dtype, [&]<class T> {
    constexpr int W = Four<T>::W;
    const bool aligned = shift_of<W>(static_cast<const T*>(args.input)) == 0 &&
                         shift_of<W>(static_cast<const T*>(args.output)) == 0;
    const auto scale = static_cast<Accumulate<T>>(1 / (1 - args.p));
    status = launch(dropout_tiles_per_warp<T>, shape, target, args, rule, scale, aligned);
  });
  return status;
}

}  // namespace fastdl
