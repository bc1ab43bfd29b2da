// The dense convolutions of the CPU against plain loops in double, each algorithm on its own, with
// packed weights and workspaces of exactly the bytes that the plan asks for; and the choice of one.
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "buffer.h"
#include "check.h"
#include "conv/conv.h"
#include "instruction_sets.h"
#include "tests.h"

namespace fastdl::testing {
namespace {

// The kernels of one instruction set.
struct Kernels {
  CpuIsa isa;
  void (*pack)(const ConvPackArgs&);
  void (*forward)(const ConvForwardArgs&, const ConvPlan&);
  void (*backward_input)(const ConvBackwardInputArgs&, const ConvPlan&);
  void (*backward_weight)(const ConvBackwardWeightArgs&, const ConvPlan&);
};

template <CpuIsa isa>
Kernels kernels_of() {
  return {isa, conv_pack_weight<isa>, conv_forward<isa>, conv_backward_input<isa>,
          conv_backward_weight<isa>};
}

// Element (image, channel, y, x) of the input or, with `output`, of the output.
int64_t offset_of(const ConvShape& s, bool output, int64_t n, int64_t c, int64_t y, int64_t x) {
  const int64_t channels = output ? s.out_channels : s.in_channels;
  const int64_t h = output ? s.h.output : s.h.input, w = output ? s.w.output : s.w.input;
  return s.channels_last ? ((n * h + y) * w + x) * channels + c
                         : ((n * channels + c) * h + y) * w + x;
}

// Calls f(input, weight, output) with the offsets of each product of the convolution.
template <class F>
void for_products(const ConvShape& s, const ConvWeightStrides& strides, F&& f) {
  const int64_t in = s.in_channels / s.groups, out = s.out_channels / s.groups;
  for (int64_t n = 0; n < s.n; ++n) {
    for (int64_t o = 0; o < s.out_channels; ++o) {
      for (int64_t y = 0; y < s.h.output; ++y) {
        for (int64_t x = 0; x < s.w.output; ++x) {
          for (int64_t i = 0; i < s.h.kernel; ++i) {
            for (int64_t j = 0; j < s.w.kernel; ++j) {
              const int64_t row = y * s.h.stride - s.h.padding + i * s.h.dilation;
              const int64_t col = x * s.w.stride - s.w.padding + j * s.w.dilation;
              if (row < 0 || row >= s.h.input || col < 0 || col >= s.w.input) continue;
              for (int64_t c = 0; c < in; ++c) {
                f(offset_of(s, false, n, o / out * in + c, row, col),
                  o * strides.out + c * strides.in + i * strides.h + j * strides.w,
                  offset_of(s, true, n, o, y, x));
              }
            }
          }
        }
      }
    }
  }
}

int64_t output_size(const ConvAxis& axis) {
  return (axis.input + 2 * axis.padding - axis.dilation * (axis.kernel - 1) - 1) / axis.stride + 1;
}

struct Case {
  int64_t n, in, out, groups;
  ConvAxis h, w;  // without their outputs
};

void test_case(const Kernels& kernels, ConvAlgorithm algorithm, const Case& c, bool channels_last,
               DType dtype) {
  ConvShape s{c.n, c.in, c.out, c.groups, c.h, c.w, channels_last};
  s.h.output = output_size(s.h);
  s.w.output = output_size(s.w);
  const int64_t in = s.in_channels / s.groups, taps = s.h.kernel * s.w.kernel;
  const ConvWeightStrides strides = channels_last
                                        ? ConvWeightStrides{in * taps, 1, in * s.w.kernel, in}
                                        : ConvWeightStrides{in * taps, taps, s.w.kernel, 1};
  const std::string what = std::string(cpu_isa_name(kernels.isa)) + " conv " + dtype_name(dtype) +
                           (channels_last ? " channels_last " : " ") +
                           std::to_string(static_cast<int>(algorithm)) + ": " +
                           std::to_string(s.n) + "x" + std::to_string(s.in_channels) + "x" +
                           std::to_string(s.h.input) + "x" + std::to_string(s.w.input) + " to " +
                           std::to_string(s.out_channels) + " in " + std::to_string(s.groups) +
                           " by " + std::to_string(s.h.kernel) + "x" + std::to_string(s.w.kernel) +
                           "/" + std::to_string(s.h.stride);
  const int64_t inputs = s.n * s.in_channels * s.h.input * s.w.input;
  const int64_t outputs = s.n * s.out_channels * s.h.output * s.w.output;
  const int64_t weights = s.out_channels * in * taps;
  const Buffer input = Buffer::random(dtype, inputs, 1), weight = Buffer::random(dtype, weights, 2);
  const Buffer grad = Buffer::random(dtype, outputs, 3),
               bias = Buffer::random(dtype, s.out_channels, 4);
  const Buffer residual = Buffer::random(dtype, outputs, 5);
  std::vector<double> output(outputs), grad_input(inputs), grad_weight(weights);
  for_products(s, strides, [&](int64_t i, int64_t w, int64_t o) {
    output[o] += input.get(i) * weight.get(w);
    grad_input[i] += grad.get(o) * weight.get(w);
    grad_weight[w] += grad.get(o) * input.get(i);
  });
  std::vector<double> finished(outputs);
  for (int64_t n = 0; n < s.n; ++n) {
    for (int64_t o = 0; o < s.out_channels; ++o) {
      for (int64_t y = 0; y < s.h.output; ++y) {
        for (int64_t x = 0; x < s.w.output; ++x) {
          const int64_t i = offset_of(s, true, n, o, y, x);
          finished[i] = std::fmax(0, output[i] + bias.get(o) + residual.get(i));
        }
      }
    }
  }
  // Rounding of sums of this length in float32, and Winograd's own.
  const double scale =
      4 + std::sqrt(static_cast<double>(in * taps + s.n * s.h.output * s.w.output));

  const auto run = [&](ConvDirection direction, auto&& call) {
    const ConvPlan plan = plan_conv_algorithm(s, direction, algorithm, 1, kernels.isa);
    check(plan.algorithm == algorithm, what + " is planned");
    Buffer packed(DType::kFloat32, static_cast<int64_t>(plan.packed_weight_bytes / 4));
    Buffer workspace(DType::kFloat32, static_cast<int64_t>(plan.workspace_bytes / 4));
    if (direction != ConvDirection::kBackwardWeight) {
      kernels.pack({weight.data(), strides, packed.data(), s, direction, algorithm, dtype});
    }
    call(plan, packed.data(), workspace.data());
  };
  const bool forward_only = algorithm == ConvAlgorithm::kPointwise && s.h.stride > 1;
  run(ConvDirection::kForward, [&](const ConvPlan& plan, void* packed, void* workspace) {
    Buffer got(dtype, outputs), fused(dtype, outputs);
    kernels.forward(
        {input.data(), packed, nullptr, nullptr, got.data(), workspace, s, dtype, false}, plan);
    check_close(got, output, dtype, what + " forward", scale);
    kernels.forward({input.data(), packed, bias.data(), residual.data(), fused.data(), workspace, s,
                     dtype, true},
                    plan);
    check_close(fused, finished, dtype, what + " fused", scale);
  });
  if (forward_only) return;
  run(ConvDirection::kBackwardInput, [&](const ConvPlan& plan, void* packed, void* workspace) {
    Buffer got(dtype, inputs);
    kernels.backward_input({grad.data(), packed, got.data(), workspace, s, dtype}, plan);
    check_close(got, grad_input, dtype, what + " grad_input", scale);
  });
  if (algorithm == ConvAlgorithm::kPointwise) return;  // has no kernel for the weight
  run(ConvDirection::kBackwardWeight, [&](const ConvPlan& plan, void*, void* workspace) {
    Buffer got(dtype, weights);
    kernels.backward_weight(
        {input.data(), grad.data(), got.data(), strides, nullptr, workspace, s, dtype}, plan);
    check_close(got, grad_weight, dtype, what + " grad_weight", scale);
  });
}

// ConvAxis without its output
ConvAxis axis(int64_t input, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  return {input, 0, kernel, stride, padding, dilation};
}

void test_kernels(const Kernels& kernels) {
  const std::vector<Case> direct = {
      {1, 1, 1, 1, axis(1, 1, 1, 0, 1), axis(1, 1, 1, 0, 1)},
      {2, 3, 7, 1, axis(9, 3, 1, 1, 1), axis(10, 3, 1, 1, 1)},
      {1, 3, 17, 1, axis(15, 7, 2, 3, 1), axis(13, 7, 2, 3, 1)},
      {2, 16, 24, 1, axis(6, 1, 2, 0, 1), axis(5, 1, 3, 0, 1)},
      {1, 5, 33, 1, axis(8, 3, 2, 2, 2), axis(9, 2, 1, 0, 3)},
      {3, 18, 34, 2, axis(7, 3, 2, 1, 1), axis(7, 3, 2, 1, 1)},
      {1, 2, 3, 1, axis(1, 1, 1, 0, 1), axis(210, 3, 1, 1, 1)},
      {1, 300, 9, 1, axis(3, 1, 1, 0, 1), axis(4, 1, 1, 0, 1)},
      {2, 40, 20, 1, axis(4, 3, 1, 0, 1), axis(5, 3, 1, 0, 1)},
      {1, 4, 6, 2, axis(5, 2, 3, 3, 1), axis(4, 5, 4, 2, 1)},
  };
  const std::vector<Case> pointwise = {
      {1, 1, 1, 1, axis(1, 1, 1, 0, 1), axis(1, 1, 1, 0, 1)},
      {3, 17, 35, 1, axis(7, 1, 1, 0, 1), axis(7, 1, 1, 0, 1)},
      {2, 300, 10, 1, axis(5, 1, 1, 0, 1), axis(11, 1, 1, 0, 1)},
      {1, 6, 270, 2, axis(9, 1, 1, 0, 1), axis(13, 1, 1, 0, 1)},
      {2, 5, 19, 1, axis(6, 1, 2, 0, 1), axis(7, 1, 2, 0, 1)},
  };
  const std::vector<Case> winograd = {
      {1, 1, 1, 1, axis(3, 3, 1, 0, 1), axis(3, 3, 1, 0, 1)},
      {2, 3, 17, 1, axis(9, 3, 1, 1, 1), axis(10, 3, 1, 1, 1)},
      {3, 18, 34, 2, axis(4, 3, 1, 1, 1), axis(5, 3, 1, 1, 1)},
      {1, 16, 8, 1, axis(6, 3, 1, 2, 1), axis(75, 3, 1, 0, 1)},
      {1, 152, 150, 1, axis(5, 3, 1, 1, 1), axis(5, 3, 1, 1, 1)},  // a shared weight
  };
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    for (const bool channels_last : {false, true}) {
      for (const Case& c : direct)
        test_case(kernels, ConvAlgorithm::kDirect, c, channels_last, dtype);
      for (const Case& c : winograd) {
        test_case(kernels, ConvAlgorithm::kWinograd, c, channels_last, dtype);
      }
    }
    for (const Case& c : pointwise) test_case(kernels, ConvAlgorithm::kPointwise, c, false, dtype);
  }
}

ConvShape square(int64_t n, int64_t in, int64_t out, int64_t size, int64_t kernel, int64_t stride,
                 bool channels_last) {
  ConvAxis one = axis(size, kernel, stride, kernel / 2, 1);
  one.output = output_size(one);
  return {n, in, out, 1, one, one, channels_last};
}

void test_choice() {
  const auto choice = [](const ConvShape& s, ConvDirection direction, bool winograd = true,
                         DType dtype = DType::kFloat32, CpuIsa isa = CpuIsa::kAvx2) {
    return choose_conv_algorithm(s, direction, dtype, winograd, isa);
  };
  constexpr auto kForward = ConvDirection::kForward, kInput = ConvDirection::kBackwardInput,
                 kWeight = ConvDirection::kBackwardWeight;
  const ConvShape conv3 = square(8, 64, 64, 56, 3, 1, false);
  for (const auto direction : {kForward, kInput, kWeight}) {
    check(choice(conv3, direction) == ConvAlgorithm::kWinograd, "3x3 goes through Winograd");
    check(choice(conv3, direction, false) != ConvAlgorithm::kWinograd, "unless it is not allowed");
    check(choice(conv3, direction, true, DType::kFloat64) == ConvAlgorithm::kNative,
          "float64 is native's");
    check(
        choice(conv3, direction, true, DType::kBFloat16, CpuIsa::kAvx512) == ConvAlgorithm::kNative,
        "AVX-512 has native kernels for bfloat16");
    check(
        choice(conv3, direction, true, DType::kFloat32, CpuIsa::kDefault) == ConvAlgorithm::kNative,
        "without AVX2 native computes");
    check(choice(square(8, 256, 64, 56, 1, 1, false), direction, false, DType::kFloat16) !=
              ConvAlgorithm::kNative,
          "float16 is ours on AVX2");
  }
  check(choice(square(1, 512, 512, 7, 3, 1, false), kForward) != ConvAlgorithm::kWinograd,
        "four tiles do not pay for a weight of 512 x 512 channels");
  check(choice(square(8, 256, 64, 56, 1, 1, false), kForward) == ConvAlgorithm::kPointwise,
        "1x1 of planes");
  check(choice(square(8, 256, 64, 56, 1, 1, true), kForward) == ConvAlgorithm::kNative,
        "1x1 of channels_last is native's");
  check(choice(square(8, 128, 128, 56, 3, 2, false), kInput) == ConvAlgorithm::kDirect,
        "strided gradients are direct");
  check(choice(square(8, 64, 64, 56, 5, 1, false), kForward) == ConvAlgorithm::kNative,
        "5x5 is native's");
  const ConvPlan huge = plan_conv_algorithm(square(64, 4096, 4096, 64, 3, 1, false), kWeight,
                                            ConvAlgorithm::kWinograd, 1, CpuIsa::kAvx2);
  check(huge.algorithm == ConvAlgorithm::kNative, "a workspace above the bound is native's");
}

}  // namespace

void test_conv() {
  for_each_instruction_set([]<CpuIsa isa> { test_kernels(kernels_of<isa>()); });
  test_choice();
}

}  // namespace fastdl::testing
