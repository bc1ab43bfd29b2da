// The total norm of gradients, and their scaling by it, on CPU.
//   norm = sqrt(sum of all g^2) / grad_scale;  g *= min(1, max_norm / (norm + 1e-6))
// Both passes run over blocks of kTensorBlock elements of all tensors. Squares are added in double:
// none overflows or vanishes in it that float32 can hold. Each block leaves its sum, and these are
// added in order, so that the norm has the same bits for any number of threads.
// Memory: the norm reads every gradient once, 4 bytes an element in float32, and the scaling reads
// and writes it once, 8 bytes; not at all for a coefficient of 1.
// Pascanu, Mikolov & Bengio, arXiv:1211.5063.
#include <algorithm>
#include <cmath>

#include "common/dispatch.h"
#include "common/loops_cpu.h"
#include "common/vector_cpu.h"
#include "optimizer/grad_norm.h"
#include "optimizer/tensor_blocks_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace {

// The two halves of a vector of floats.
inline void widen_to_double(Vec<float> value, Vec<double>& low, Vec<double>& high) {
#if defined(CPU_CAPABILITY_AVX512)
  low = _mm512_cvtps_pd(_mm512_castps512_ps256(value));
  high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(value, 1));
#elif defined(CPU_CAPABILITY_AVX2)
  low = _mm256_cvtps_pd(_mm256_castps256_ps128(value));
  high = _mm256_cvtps_pd(_mm256_extractf128_ps(value, 1));
#else
  constexpr int half = Vec<double>::size();
  alignas(64) float values[2 * half];
  alignas(64) double wide[2 * half];
  value.store(values);
  for (int i = 0; i < 2 * half; ++i) wide[i] = values[i];
  low = Vec<double>::loadu(wide);
  high = Vec<double>::loadu(wide + half);
#endif
}

template <class T>
double sum_of_squares(const T* data, int64_t size) {
  using D = Vec<double>;
  D sums[2 * kLanes];
  for (D& sum : sums) sum = D(0.0);
  for_vectors<T>(size, [&](int64_t i, auto count, int lane) {
    const Vec<T> value = load_vector(data + i, count, 0);
    if constexpr (std::is_same_v<T, double>) {
      sums[lane] = at::vec::fmadd(value, value, sums[lane]);
    } else {
      D low, high;
      widen_to_double(value, low, high);
      sums[lane] = at::vec::fmadd(low, low, sums[lane]);
      sums[kLanes + lane] = at::vec::fmadd(high, high, sums[kLanes + lane]);
    }
  });
  for (int n = kLanes; n > 0; n /= 2) {
    for (int i = 0; i < n; ++i) sums[i] = sums[i] + sums[n + i];
  }
  return reduce_sum(sums[0]);
}

template <class T>
void scale_block(T* data, int64_t size, double coefficient) {
  using A = Accumulate<T>;
  const Vec<T> factor(static_cast<A>(coefficient));
  for_vectors<T>(size, [&](int64_t i, auto count, int) {
    store_vector(data + i, load_vector(data + i, count, A(0)) * factor, count);
  });
}

}  // namespace
}  // namespace CPU_CAPABILITY

template <>
void grad_norm<kBuildIsa>(const GradNormArgs& args) {
  double total = 0;
  if (args.count > 0) {
    for_tensor_blocks(
        args.tensors, args.count, [&](const GradTensor& grad, int64_t start, int64_t block) {
          dispatch_dtype<CpuTypes>(grad.dtype, [&]<class T> {
            args.block_sums[block] = sum_of_squares(static_cast<const T*>(grad.data) + start,
                                                    std::min(kTensorBlock, grad.size - start));
          });
        });
    const GradTensor& last = args.tensors[args.count - 1];
    const int64_t blocks = last.first_block + tensor_blocks(last.size);
    for (int64_t block = 0; block < blocks; ++block) total += args.block_sums[block];
  }
  const double norm = std::sqrt(total) / args.grad_scale;
  const double coefficient = args.max_norm / (norm + 1e-6);
  *args.total_norm = norm;
  *args.coefficient = coefficient > 1 ? 1 : coefficient;
}

template <>
void scale_grads<kBuildIsa>(const GradTensor* tensors, int64_t count, double coefficient) {
  if (count == 0 || coefficient == 1) return;
  for_tensor_blocks(tensors, count, [&](const GradTensor& grad, int64_t start, int64_t) {
    dispatch_dtype<CpuTypes>(grad.dtype, [&]<class T> {
      scale_block(static_cast<T*>(grad.data) + start, std::min(kTensorBlock, grad.size - start),
                  coefficient);
    });
  });
}

}  // namespace fastdl
