// Dropout on CPU, y = x (keep ? 1 / (1 - p) : 0): NaN and infinities are not hidden, as in torch.
// The mask is made chunk by chunk in L1 scratch and thrown away: the backward makes it again from
// the seed. Threads take whole tiles of it. Memory: x read once, y written once, past the cache
// when both are larger. Floor: these bytes / copy bandwidth. On AVX2 the generator's
// multiplications and shifts come near to that floor: 2.2 instructions an element.

#include <algorithm>

#include "common/dispatch.h"
#include "common/dropout_mask_cpu.h"
#include "common/loops_cpu.h"
#include "common/parallel.h"
#include "dropout/dropout.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace {

constexpr int64_t kChunk = 4 * kDropoutTile;  // elements whose mask stays in L1: 2 KiB
constexpr int64_t kGrainChunks = 8;           // worth waking a thread for
constexpr int64_t kAheadBytes = 4096;         // what is fetched while a vector is computed

// A function of its own, so that all of these stay in registers.
template <class T>
void apply_keep(const T* x, T* y, int64_t size, const uint16_t* keep, Accumulate<T> scale,
                int64_t ahead, bool streaming) {
  for_single_vectors<T>(size, [=](int64_t i, auto count) {
    prefetch(x + i + ahead);
    const Vec<T> factor = scale_of_kept<T>(keep + i, Vec<T>(scale));
    write_vector(y + i, load_vector(x + i, count, 0) * factor, count, streaming);
  });
}

template <class T>
void run(const DropoutArgs& args) {
  constexpr int64_t bytes = sizeof(T);
  const DropoutRule rule = make_dropout_rule(args.p, args.seed);
  const T* const input = static_cast<const T*>(args.input);
  T* const output = static_cast<T*>(args.output);
  const auto scale = static_cast<Accumulate<T>>(1 / (1 - args.p));
  // In place, a line is in the cache already when it is written.
  const bool streaming = input != output && worth_streaming(2 * bytes * args.count) &&
                         reinterpret_cast<uintptr_t>(output) % (kWidth<T> * bytes) == 0;
  const int64_t ahead = streaming ? kAheadBytes / bytes : 0;
  const int64_t chunks = (args.count + kChunk - 1) / kChunk;
  parallel_for(0, chunks, kGrainChunks, [&](int64_t begin, int64_t end) {
    alignas(64) uint16_t keep[kChunk];
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t first = chunk * kChunk, size = std::min(kChunk, args.count - first);
      fill_keep(rule, first, size, keep);
      apply_keep(input + first, output + first, size, keep, scale, ahead, streaming);
    }
    finish_writes();
  });
}

}  // namespace
}  // namespace CPU_CAPABILITY

template <>
void dropout<kBuildIsa>(const DropoutArgs& args) {
  dispatch_dtype<CpuTypes>(args.dtype, [&]<class T> { run<T>(args); });
}

}  // namespace fastdl
