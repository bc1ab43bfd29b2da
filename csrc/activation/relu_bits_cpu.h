// ReLU of 16-bit numbers on their bits, as integers: to widen and round them again would take
// longer than the memory (32x64x112x112 bfloat16: 0.84x native).
#pragma once

#include <limits>

#include "common/vector_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {

// Below it lie the numbers from -0 to -inf, the former first; from it on NaNs and what is not
// negative.
template <class T>
inline constexpr int16_t kPastMinusInfinity =
    std::is_same_v<T, c10::BFloat16> ? int16_t(0xff81 - 0x10000) : int16_t(0xfc01 - 0x10000);

template <class T>
void relu_bits(const T* input, T* output, int64_t count) {
  const int16_t* const x = reinterpret_cast<const int16_t*>(input);
  int16_t* const y = reinterpret_cast<int16_t*>(output);
  constexpr int16_t minus_zero = std::numeric_limits<int16_t>::min();
#pragma GCC ivdep  // the output may be the input
  for (int64_t i = 0; i < count; ++i) {
    const int16_t value = x[i];
    const bool negative = (value > minus_zero) & (value < kPastMinusInfinity<T>);
    y[i] = negative ? int16_t{0} : value;
  }
}

template <class T>
void relu_backward_bits(const T* output, const T* grad_output, T* grad_input, int64_t count) {
  const int16_t* const y = reinterpret_cast<const int16_t*>(output);
  const int16_t* const dy = reinterpret_cast<const int16_t*>(grad_output);
  int16_t* const dx = reinterpret_cast<int16_t*>(grad_input);
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    const int16_t value = y[i], grad = dy[i];
    const bool not_positive = (value == 0) | (value < kPastMinusInfinity<T>);
    dx[i] = not_positive ? int16_t{0} : grad;
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace fastdl
