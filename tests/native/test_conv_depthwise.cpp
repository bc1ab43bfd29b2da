// Depthwise and narrow grouped convolution against plain loops in double, all three directions.
#include <algorithm>
#include <string>
#include <vector>

#include "buffer.h"
#include "check.h"
#include "common/parallel.h"
#include "conv/conv.h"
#include "conv/conv_depthwise_plan.h"
#include "instruction_sets.h"
#include "tests.h"

namespace fastdl::testing {
namespace {

constexpr ConvDirection kForward = ConvDirection::kForward;
constexpr ConvDirection kBackwardInput = ConvDirection::kBackwardInput;
constexpr ConvDirection kBackwardWeight = ConvDirection::kBackwardWeight;

struct Case {
  ConvShape shape;
  DType dtype;
  ConvWeightStrides strides;

  int64_t in_group() const { return shape.in_channels / shape.groups; }
  int64_t out_group() const { return shape.out_channels / shape.groups; }
  int64_t inputs() const { return shape.n * shape.in_channels * shape.h.input * shape.w.input; }
  int64_t outputs() const { return shape.n * shape.out_channels * shape.h.output * shape.w.output; }
  int64_t weights() const {
    return shape.out_channels * in_group() * shape.h.kernel * shape.w.kernel;
  }
  int64_t weight_at(int64_t o, int64_t c, int64_t i, int64_t j) const {
    return o * strides.out + c * strides.in + i * strides.h + j * strides.w;
  }
  int64_t at(int64_t n, int64_t c, int64_t y, int64_t x, int64_t channels, int64_t h,
             int64_t w) const {
    return shape.channels_last ? ((n * h + y) * w + x) * channels + c
                               : ((n * channels + c) * h + y) * w + x;
  }
};

// Calls f(output, input, weight) for each product.
template <class F>
void for_each_product(const Case& c, F&& f) {
  const ConvShape& s = c.shape;
  const ConvAxis &h = s.h, &w = s.w;
  for (int64_t n = 0; n < s.n; ++n) {
    for (int64_t o = 0; o < s.out_channels; ++o) {
      for (int64_t pixel = 0; pixel < h.output * w.output; ++pixel) {
        const int64_t row = pixel / w.output, col = pixel % w.output;
        const int64_t to = c.at(n, o, row, col, s.out_channels, h.output, w.output);
        for (int64_t tap = 0; tap < h.kernel * w.kernel; ++tap) {
          const int64_t i = tap / w.kernel, j = tap % w.kernel;
          const int64_t y = row * h.stride - h.padding + i * h.dilation;
          const int64_t x = col * w.stride - w.padding + j * w.dilation;
          if (y < 0 || y >= h.input || x < 0 || x >= w.input) continue;
          for (int64_t k = 0; k < c.in_group(); ++k) {
            const int64_t channel = o / c.out_group() * c.in_group() + k;
            f(to, c.at(n, channel, y, x, s.in_channels, h.input, w.input), c.weight_at(o, k, i, j));
          }
        }
      }
    }
  }
}

template <CpuIsa isa>
void check_case(const Case& c, const std::string& what) {
  const ConvShape& s = c.shape;
  const Buffer x = Buffer::random(c.dtype, c.inputs(), 1);
  const Buffer weight = Buffer::random(c.dtype, c.weights(), 2);
  const Buffer dy = Buffer::random(c.dtype, c.outputs(), 3);
  const Buffer bias = Buffer::random(c.dtype, s.out_channels, 4);
  const Buffer residual = Buffer::random(c.dtype, c.outputs(), 5);
  std::vector<double> y(c.outputs(), 0), dx(c.inputs(), 0), dw(c.weights(), 0),
      db(s.out_channels, 0), fused(c.outputs());
  for_each_product(c, [&](int64_t to, int64_t from, int64_t at) {
    y[to] += x.get(from) * weight.get(at);
    dx[from] += dy.get(to) * weight.get(at);
    dw[at] += dy.get(to) * x.get(from);
  });
  const int64_t plane = s.h.output * s.w.output;
  for (int64_t i = 0; i < c.outputs(); ++i) {
    const int64_t channel = s.channels_last ? i % s.out_channels : i / plane % s.out_channels;
    fused[i] = std::max(0.0, y[i] + bias.get(channel) + residual.get(i));
    db[channel] += dy.get(i);
  }
  const auto plan_of = [&](ConvDirection direction) {
    return plan_conv_algorithm(s, direction, ConvAlgorithm::kDepthwise, num_threads(), isa);
  };
  const auto pack = [&](ConvDirection direction, Buffer& packed) {
    conv_pack_weight<isa>({weight.data(), c.strides, packed.data(), s, direction,
                           ConvAlgorithm::kDepthwise, c.dtype});
  };
  const auto floats = [](size_t bytes) {
    return Buffer(DType::kFloat32, static_cast<int64_t>(bytes / sizeof(float)));
  };
  Buffer output(c.dtype, c.outputs()), finished(c.dtype, c.outputs()), grad(c.dtype, c.inputs()),
      grad_weight(c.dtype, c.weights()), grad_bias(c.dtype, s.out_channels);
  {
    const ConvPlan plan = plan_of(kForward);
    Buffer packed = floats(plan.packed_weight_bytes);
    pack(kForward, packed);
    conv_forward<isa>(
        {x.data(), packed.data(), nullptr, nullptr, output.data(), nullptr, s, c.dtype, false},
        plan);
    check_close(output, y, c.dtype, what + " forward", 8);
    conv_forward<isa>({x.data(), packed.data(), bias.data(), residual.data(), finished.data(),
                       nullptr, s, c.dtype, true},
                      plan);
    check_close(finished, fused, c.dtype, what + " forward with an epilogue", 8);
  }
  {
    const ConvPlan plan = plan_of(kBackwardInput);
    Buffer packed = floats(plan.packed_weight_bytes);
    pack(kBackwardInput, packed);
    conv_backward_input<isa>({dy.data(), packed.data(), grad.data(), nullptr, s, c.dtype}, plan);
    check_close(grad, dx, c.dtype, what + " backward input", 8);
  }
  const ConvPlan plan = plan_of(kBackwardWeight);
  Buffer workspace = floats(plan.workspace_bytes);
  conv_backward_weight<isa>({x.data(), dy.data(), grad_weight.data(), c.strides, grad_bias.data(),
                             workspace.data(), s, c.dtype},
                            plan);
  check_close(grad_weight, dw, c.dtype, what + " backward weight", 16);
  check_close(grad_bias, db, c.dtype, what + " backward bias", 16);
}

ConvAxis axis(int64_t input, int64_t kernel, int64_t stride = 1, int64_t padding = 0,
              int64_t dilation = 1) {
  const int64_t output = (input + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
  return {input, output, kernel, stride, padding, dilation};
}

// Channels, groups, and the weight in either layout.
void check_shape(int64_t n, int64_t groups, int64_t in_group, int64_t out_group, const ConvAxis& h,
                 const ConvAxis& w, bool channels_last, DType dtype) {
  Case c{{n, groups * in_group, groups * out_group, groups, h, w, channels_last}, dtype, {}};
  const int64_t taps = h.kernel * w.kernel;
  c.strides = channels_last ? ConvWeightStrides{taps * in_group, 1, w.kernel * in_group, in_group}
                            : ConvWeightStrides{taps * in_group, taps, w.kernel, 1};
  const std::string what = "depthwise " + std::string(dtype_name(dtype)) +
                           (channels_last ? " channels_last " : " ") + std::to_string(groups) +
                           " x " + std::to_string(in_group) + " to " + std::to_string(out_group) +
                           ", " + std::to_string(h.input) + " x " + std::to_string(w.input) +
                           " by " + std::to_string(h.kernel) + " x " + std::to_string(w.kernel);
  for_each_instruction_set([&]<CpuIsa isa> { check_case<isa>(c, what + " " + cpu_isa_name(isa)); });
}

}  // namespace

void test_conv_depthwise() {
  const std::vector<std::pair<ConvAxis, ConvAxis>> windows = {
      {axis(7, 3, 1, 1), axis(9, 3, 1, 1)},
      {axis(8, 3, 2, 1), axis(17, 3, 2, 1)},
      {axis(6, 5, 1, 2), axis(15, 5, 2, 2)},
      {axis(7, 7, 1, 3), axis(8, 7, 1, 3)},
      {axis(9, 3, 1, 2, 2), axis(11, 3, 1, 2, 2)},
      {axis(10, 4, 3, 0), axis(13, 2, 3, 1)},
      {axis(1, 1), axis(37, 4, 1, 3)},
      {axis(3, 1, 4, 0), axis(2, 1, 4, 0)},  // inputs that nothing reads, fewer than the stride
      {axis(4, 9, 1, 6), axis(12, 9, 1, 6)},
  };
  const std::vector<std::vector<int64_t>> groups = {{17, 1, 1}, {32, 1, 1}, {8, 1, 2},
                                                    {5, 3, 3},  {4, 4, 4},  {9, 2, 2},
                                                    {3, 8, 8},  {2, 16, 8}, {8, 2, 1}};
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    for (const auto& [h, w] : windows) {
      for (const auto& group : groups) {
        if (dtype != DType::kFloat32 && group[0] % 2 == 0) continue;
        for (const bool channels_last : {false, true}) {
          check_shape(channels_last ? 1 : 2, group[0], group[1], group[2], h, w, channels_last,
                      dtype);
        }
      }
    }
  }
  // Several bands of rows, and blocks of 8 pixels.
  for (const bool channels_last : {false, true}) {
    check_shape(1, 16, 1, 1, axis(90, 3, 1, 1), axis(72, 3, 1, 1), channels_last, DType::kFloat32);
    check_shape(1, 17, 1, 1, axis(150, 3, 2, 1), axis(50, 3, 2, 1), channels_last,
                DType::kBFloat16);
  }
  const ConvAxis plain = axis(28, 3, 1, 1);
  const auto shape_of = [&](int64_t groups, int64_t in, int64_t out) {
    return ConvShape{4, groups * in, groups * out, groups, plain, plain, true};
  };
  const auto chosen = [&](int64_t groups, int64_t in, int64_t out, DType dtype) {
    return choose_conv_algorithm(shape_of(groups, in, out), kForward, dtype, true, CpuIsa::kAvx2) ==
           ConvAlgorithm::kDepthwise;
  };
  check(chosen(32, 1, 1, DType::kFloat32) && chosen(32, 1, 24, DType::kFloat32) &&
            chosen(32, 8, 8, DType::kFloat32),
        "depthwise and narrow groups take the depthwise kernels");
  check(!chosen(1, 8, 8, DType::kFloat32) && !chosen(32, 16, 16, DType::kFloat32),
        "one group and wide ones do not");
  check(!chosen(3, 1, 1, DType::kFloat32) && chosen(3, 1, 1, DType::kBFloat16),
        "nor do few channels, unless native has no vectors for them");
}

}  // namespace fastdl::testing
