// The activation functions and dropout against plain loops in double.
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "activation/activation.h"
#include "buffer.h"
#include "check.h"
#include "common/dropout_mask.h"
#include "dropout/dropout.h"
#include "tests.h"

namespace fastdl::testing {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

double normal_cdf(double x) { return 0.5 * std::erfc(-x * std::sqrt(0.5)); }
double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double twice_inner(double x) { return 1.5957691216057308 * (x + 0.044715 * x * x * x); }

double forward(double x, double parameter, ActivationKind kind) {
  switch (kind) {
    case ActivationKind::kRelu:
      return x < 0 ? 0 : x;
    case ActivationKind::kSigmoid:
      return sigmoid(x);
    case ActivationKind::kTanh:
      return std::tanh(x);
    case ActivationKind::kGelu:
      return x * normal_cdf(x);
    case ActivationKind::kGeluTanh:
      return x * sigmoid(twice_inner(x));
    case ActivationKind::kSilu:
      return x * sigmoid(x);
    case ActivationKind::kLeakyRelu:
      return x > 0 ? x : parameter * x;
    case ActivationKind::kElu:
      return x > 0 ? x : parameter * std::expm1(x);
  }
  return NAN;
}

// Of the output or the input, whichever the backward gets
double slope(double saved, double parameter, ActivationKind kind) {
  const double s = sigmoid(saved), t = sigmoid(twice_inner(saved));
  switch (kind) {
    case ActivationKind::kRelu:
      return saved <= 0 ? 0 : 1;
    case ActivationKind::kSigmoid:
      return saved * (1 - saved);
    case ActivationKind::kTanh:
      return 1 - saved * saved;
    case ActivationKind::kGelu:
      return normal_cdf(saved) + saved * std::exp(-saved * saved / 2) * 0.3989422804014327;
    case ActivationKind::kGeluTanh:
      return t + saved * t * (1 - t) * 1.5957691216057308 * (1 + 3 * 0.044715 * saved * saved);
    case ActivationKind::kSilu:
      return s * (1 + saved * (1 - s));
    case ActivationKind::kLeakyRelu:
      return saved > 0 ? 1 : parameter;
    case ActivationKind::kElu:
      return saved > 0 ? 1 : parameter * std::exp(saved);
  }
  return NAN;
}

void check_activation(ActivationKind kind, DType dtype, int64_t count, int64_t skip, bool special) {
  constexpr double parameter = 0.25;
  Buffer input = Buffer::random(dtype, count, 1, skip);
  const Buffer grad = Buffer::random(dtype, count, 2, skip);
  for (int64_t i = 0; i < count; ++i) input.set(i, 3 * input.get(i));
  if (special) {
    constexpr double values[] = {kInf, -kInf, NAN, 0, -0.0, 200, -200};
    for (int64_t i = 0; i < count; i += 3) input.set(i, values[i / 3 % 7]);
  }
  const std::string what = "activation " + std::to_string(static_cast<int>(kind)) + " " +
                           dtype_name(dtype) + " " + std::to_string(count) + " ";
  for_each_backend([&](const Backend& backend) {
    Buffer output(dtype, count, skip), grad_input(dtype, count, skip);
    backend.activation_forward({input.data(), output.data(), count, parameter, dtype, kind});
    std::vector<double> expected(count), expected_grad(count);
    for (int64_t i = 0; i < count; ++i) expected[i] = forward(input.get(i), parameter, kind);
    check_close(output, expected, dtype, what + "forward " + backend.name);
    const Buffer& saved = needs_output(kind) ? output : input;
    for (int64_t i = 0; i < count; ++i) {
      expected_grad[i] = slope(saved.get(i), parameter, kind) * grad.get(i);
      // -inf times a density of 0; where a selected branch has no product, no NaN comes up.
      if (std::isnan(saved.get(i)) && kind == ActivationKind::kRelu) expected_grad[i] = grad.get(i);
    }
    backend.activation_backward(
        {grad.data(), saved.data(), grad_input.data(), count, parameter, dtype, kind});
    check_close(grad_input, expected_grad, dtype, what + "backward " + backend.name);
    // In place
    Buffer copy(dtype, count, skip);
    for (int64_t i = 0; i < count; ++i) copy.set(i, input.get(i));
    backend.activation_forward({copy.data(), copy.data(), count, parameter, dtype, kind});
    check_close(copy, output.values(), dtype, what + "in place " + backend.name);
  });
}

struct Words {
  uint32_t word[4];
};

Words philox(uint64_t counter, uint32_t stream, uint64_t seed) {
  Words c{{static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), stream, 0}};
  uint32_t keys[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t first = uint64_t{c.word[0]} * kPhiloxMultipliers[0];
    const uint64_t second = uint64_t{c.word[2]} * kPhiloxMultipliers[1];
    c = {{static_cast<uint32_t>(second >> 32) ^ c.word[1] ^ keys[0], static_cast<uint32_t>(second),
          static_cast<uint32_t>(first >> 32) ^ c.word[3] ^ keys[1], static_cast<uint32_t>(first)}};
    for (int k = 0; k < 2; ++k) keys[k] += kPhiloxKeySteps[k];
  }
  return c;
}

}  // namespace

bool dropout_keeps(double p, uint64_t seed, int64_t i) {
  const DropoutRule rule = make_dropout_rule(p, seed);
  const Words words = philox(i / kDropoutTile * kDropoutTileBlocks + i / 4 % 32, 0, seed);
  const int64_t half = i / 128 % 2, e = i % 4;
  const uint32_t bits = words.word[2 * half + e / 2] >> (16 * (e % 2)) & 0xffff;
  if (bits != rule.leading) return bits > rule.leading;
  return philox(i, 1, seed).word[0] >= rule.trailing;
}

void test_activation() {
  for (int k = 0; k < kActivationKinds; ++k) {
    const auto kind = static_cast<ActivationKind>(k);
    for (const DType dtype : kDTypes) {
      for (const int64_t count : {1, 3, 7, 8, 17, 64, 133, 1031}) {
        check_activation(kind, dtype, count, 0, false);
        check_activation(kind, dtype, count, 1, true);
      }
    }
    check_activation(kind, DType::kFloat32, 9001, 0, false);  // several blocks or tasks
    if (streams_past_the_cache() && kind == ActivationKind::kRelu) {
      check_activation(kind, DType::kFloat32, 3000001, 3, false);
    }
  }
}

void test_dropout() {
  const auto check_case = [](DType dtype, int64_t count, double p, uint64_t seed, int64_t skip) {
    const Buffer input = Buffer::random(dtype, count, 3, skip);
    std::vector<double> expected(count);
    for (int64_t i = 0; i < count; ++i) {
      expected[i] = dropout_keeps(p, seed, i) ? input.get(i) / (1 - p) : 0;
    }
    for_each_backend([&](const Backend& backend) {
      Buffer output(dtype, count, skip);
      backend.dropout({input.data(), output.data(), count, p, seed, dtype});
      check_close(
          output, expected, dtype,
          "dropout " + backend.name + " " + dtype_name(dtype) + " " + std::to_string(count));
    });
  };
  for (const DType dtype : kDTypes) {
    for (const int64_t count : {1, 4, 31, 127, 129, 256, 389, 1024, 5003}) {
      check_case(dtype, count, 0.1, 12345, 0);
      check_case(dtype, count, 0.7, 0xfedcba9876543210, 1);
    }
  }
  check_case(DType::kFloat32, 200001, 0x1p-3 + 0x1p-17, 5, 0);  // some need their further bits
  if (streams_past_the_cache()) check_case(DType::kFloat32, 1100003, 0.25, 7, 2);
}

}  // namespace fastdl::testing
