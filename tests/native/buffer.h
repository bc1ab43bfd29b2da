// Memory of exactly the size that a kernel may touch, so that the address sanitizer or the emulator
// sees every element read or written past either end, with numbers of any of the element types.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "backends.h"
#include "check.h"
#include "common/dtype.h"

namespace fastdl::testing {

inline constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat64, DType::kBFloat16,
                                    DType::kFloat16};

inline const char* dtype_name(DType dtype) {
  constexpr const char* names[] = {"float32", "float64", "bfloat16", "float16"};
  return names[static_cast<int>(dtype)];
}

inline size_t dtype_bytes(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

// What an element of this type may differ by from a result in double.
inline double tolerance_of(DType dtype) {
  constexpr double tolerances[] = {2e-5, 1e-12, 1.0 / 100, 1.0 / 800};
  return tolerances[static_cast<int>(dtype)];
}

inline DType statistics_dtype(DType dtype) {
  return dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
}

inline uint16_t bfloat16_bits(double value) {
  const float narrow = static_cast<float>(value);
  uint32_t bits;
  std::memcpy(&bits, &narrow, sizeof(bits));
  if (std::isnan(narrow)) return 0x7fc0;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);  // to nearest, ties even
}

inline double bfloat16_value(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline uint16_t float16_bits(double value) {
  const int sign = std::signbit(value) ? 0x8000 : 0;
  const double magnitude = std::abs(value);
  if (std::isnan(value)) return 0x7e00;
  if (magnitude >= 65520) return static_cast<uint16_t>(sign | 0x7c00);
  const int exponent = magnitude < 0x1p-14 ? -14 : std::ilogb(magnitude);
  const int mantissa = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));
  return static_cast<uint16_t>(sign | ((exponent + 14) * 1024 + mantissa));
}

inline double float16_value(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  double value =
      exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  if (exponent == 31) value = mantissa == 0 ? std::numeric_limits<double>::infinity() : NAN;
  return bits & 0x8000 ? -value : value;
}

class Buffer {
 public:
  // `skip` elements lie before the first one, which is then aligned to its own size alone.
  Buffer(DType dtype, int64_t count, int64_t skip = 0)
      : dtype_(dtype),
        count_(count),
        skip_(skip),
        bytes_(static_cast<char*>(allocate_bytes((count + skip) * dtype_bytes(dtype)))) {
    std::memset(bytes_.get(), 0xff, (count + skip) * dtype_bytes(dtype));  // NaN
  }

  static Buffer random(DType dtype, int64_t count, uint32_t seed, int64_t skip = 0) {
    Buffer buffer(dtype, count, skip);
    std::mt19937 generator(seed);
    std::normal_distribution<double> normal;
    for (int64_t i = 0; i < count; ++i) buffer.set(i, normal(generator));
    return buffer;
  }

  static Buffer filled(DType dtype, int64_t count, double value) {
    Buffer buffer(dtype, count);
    for (int64_t i = 0; i < count; ++i) buffer.set(i, value);
    return buffer;
  }

  void* data() { return bytes_.get() + skip_ * dtype_bytes(dtype_); }
  const void* data() const { return bytes_.get() + skip_ * dtype_bytes(dtype_); }
  int64_t count() const { return count_; }

  void set(int64_t i, double value) {
    switch (dtype_) {
      case DType::kFloat32:
        return put(i, static_cast<float>(value));
      case DType::kFloat64:
        return put(i, value);
      case DType::kBFloat16:
        return put(i, bfloat16_bits(value));
      case DType::kFloat16:
        return put(i, float16_bits(value));
    }
  }

  double get(int64_t i) const {
    switch (dtype_) {
      case DType::kFloat32:
        return at<float>(i);
      case DType::kFloat64:
        return at<double>(i);
      case DType::kBFloat16:
        return bfloat16_value(at<uint16_t>(i));
      case DType::kFloat16:
        return float16_value(at<uint16_t>(i));
    }
    return NAN;
  }

  std::vector<double> values() const {
    std::vector<double> all(count_);
    for (int64_t i = 0; i < count_; ++i) all[i] = get(i);
    return all;
  }

 private:
  template <class T>
  void put(int64_t i, T value) {
    std::memcpy(static_cast<char*>(data()) + i * sizeof(T), &value, sizeof(T));
  }
  template <class T>
  T at(int64_t i) const {
    T value;
    std::memcpy(&value, static_cast<const char*>(data()) + i * sizeof(T), sizeof(T));
    return value;
  }

  DType dtype_;
  int64_t count_, skip_;
  struct Release {
    void operator()(char* bytes) const { release_bytes(bytes); }
  };
  std::unique_ptr<char, Release> bytes_;
};

// One check for a whole buffer; names the first element that is off. `scale` widens the tolerance
// where results are sums of many terms.
inline void check_close(const Buffer& got, const std::vector<double>& expected, DType dtype,
                        const std::string& what, double scale = 1) {
  for (int64_t i = 0; i < got.count(); ++i) {
    if (close(got.get(i), expected[i], scale * tolerance_of(dtype))) continue;
    return check(false, what + " at " + std::to_string(i) + ": got " + std::to_string(got.get(i)) +
                            ", expected " + std::to_string(expected[i]));
  }
  check(true, what);
}

}  // namespace fastdl::testing
