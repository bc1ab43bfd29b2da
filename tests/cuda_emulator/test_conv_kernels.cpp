// The CUDA kernels of convolution against plain loops in double, each tile of the table. The values
// are small multiples of 1/8, so that every sum is exact and only the result is rounded.
#include <array>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "../native/tests.h"
#include "buffer.h"
#include "conv/conv_cuda_plan.h"
#include "emulator.h"

namespace fastdl::testing {
namespace {

CudaTarget target() {
  const emulator::Device device = emulator::device();
  return {nullptr, device.multiprocessors, device.capability};
}

void expect(Status status, const std::string& what) {
  const size_t reports = emulator::take_reports().size();
  check(status.ok() && reports == 0, what + ": launch error " + std::to_string(status.cuda_error) +
                                         ", " + std::to_string(reports) + " reports");
}

Buffer values(DType dtype, int64_t count, uint32_t seed, int64_t skip = 0) {
  Buffer buffer(dtype, count, skip);
  std::mt19937 generator(seed);
  for (int64_t i = 0; i < count; ++i) buffer.set(i, static_cast<int>(generator() % 31) / 8.0 - 2);
  return buffer;
}

int64_t input_count(const ConvShape& s) { return s.n * s.in_channels * s.h.input * s.w.input; }
int64_t output_count(const ConvShape& s) { return s.n * s.out_channels * s.h.output * s.w.output; }
int64_t weight_count(const ConvShape& s) {
  return s.out_channels * (s.in_channels / s.groups) * s.h.kernel * s.w.kernel;
}

// Where [image, channel, y, x] lies
int64_t place(const ConvShape& s, int64_t channels, int64_t height, int64_t width, int64_t image,
              int64_t c, int64_t y, int64_t x) {
  return s.channels_last ? ((image * height + y) * width + x) * channels + c
                         : ((image * channels + c) * height + y) * width + x;
}

// Calls f(input, weight, output) for every product of the convolution; the weight is packed.
template <class F>
void for_each_product(const ConvShape& s, F&& f) {
  const int64_t in = s.in_channels / s.groups, out = s.out_channels / s.groups;
  for (int64_t image = 0; image < s.n; ++image) {
    for (int64_t o = 0; o < s.out_channels; ++o) {
      for (int64_t i = 0; i < s.h.output * s.w.output; ++i) {
        const int64_t row = i / s.w.output, col = i % s.w.output;
        const int64_t to = place(s, s.out_channels, s.h.output, s.w.output, image, o, row, col);
        for (int64_t tap = 0; tap < s.h.kernel * s.w.kernel; ++tap) {
          const int64_t y = row * s.h.stride - s.h.padding + tap / s.w.kernel * s.h.dilation;
          const int64_t x = col * s.w.stride - s.w.padding + tap % s.w.kernel * s.w.dilation;
          if (y < 0 || y >= s.h.input || x < 0 || x >= s.w.input) continue;
          for (int64_t c = 0; c < in; ++c) {
            f(place(s, s.in_channels, s.h.input, s.w.input, image, o / out * in + c, y, x),
              (o * s.h.kernel * s.w.kernel + tap) * in + c, to);
          }
        }
      }
    }
  }
}

std::string describe(const char* what, const ConvShape& s, DType dtype, const ConvCudaPlan& plan) {
  std::string text = std::string("conv ") + what + " " + dtype_name(dtype) +
                     (s.channels_last ? " channels_last" : "") +
                     (plan.math == ConvMath::kTf32 ? " tf32" : "") + " tile " +
                     std::to_string(plan.tile) + " splits " + std::to_string(plan.splits) + " [" +
                     std::to_string(s.n) + ", " + std::to_string(s.in_channels) + " to " +
                     std::to_string(s.out_channels) + "] groups " + std::to_string(s.groups);
  for (const ConvAxis& axis : {s.h, s.w}) {
    text += " " + std::to_string(axis.input) + " by " + std::to_string(axis.kernel) + "/" +
            std::to_string(axis.stride) + "/" + std::to_string(axis.dilation);
  }
  return text;
}

// All directions, with the plan for each or with one tile; `skip` elements before each tensor.
void check_conv(ConvShape s, DType dtype, ConvMath math, int tile, int splits, int64_t skip = 0) {
  const auto plan_for = [&](ConvDirection direction) {
    ConvCudaPlan plan =
        plan_conv_cuda(s, direction, dtype, math, target().multiprocessors, target().capability);
    if (tile >= 0) {
      plan.tile = tile;
      plan.splits = direction == ConvDirection::kBackwardWeight ? splits : 1;
    }
    return plan;
  };
  ConvCudaPlan plan = plan_for(ConvDirection::kBackwardWeight);
  if (plan.kernel == ConvCudaKernel::kNative) return;
  s.channels_last = plan.channels_last;
  const int64_t inputs = input_count(s), outputs = output_count(s), weights = weight_count(s);
  Buffer x = values(dtype, inputs, 1, skip);
  if (s.groups > 1) x.set(0, NAN);  // stays in its group
  const Buffer dy = values(dtype, outputs, 2, skip);
  const Buffer weight = values(dtype, weights, 3, skip), residual = values(dtype, outputs, 4, skip);
  const Buffer bias = values(dtype, s.out_channels, 5, skip);
  std::vector<double> y(outputs, 0), dx(inputs, 0), dw(weights, 0), db(s.out_channels, 0);
  for_each_product(s, [&](int64_t from, int64_t tap, int64_t to) {
    y[to] += x.get(from) * weight.get(tap);
    dx[from] += dy.get(to) * weight.get(tap);
    dw[tap] += dy.get(to) * x.get(from);
  });
  std::vector<double> activated(outputs);
  for (int64_t i = 0; i < outputs; ++i) {
    const int64_t o =
        s.channels_last ? i % s.out_channels : i / (s.h.output * s.w.output) % s.out_channels;
    const double sum = y[i] + bias.get(o) + residual.get(i);
    activated[i] = sum < 0 ? 0 : sum;
    db[o] += dy.get(i);
  }

  Buffer out(dtype, outputs, skip), fused(dtype, outputs, skip), dx_out(dtype, inputs, skip);
  plan = plan_for(ConvDirection::kForward);
  std::string what = describe("forward", s, dtype, plan);
  if (plan.kernel != ConvCudaKernel::kNative) {
    ConvForwardArgs args{x.data(), weight.data(), nullptr, nullptr, out.data(), nullptr,
                         s,        dtype,         false};
    expect(conv_forward_cuda(args, plan, target()), what);
    check_close(out, y, dtype, what);
    args.bias = bias.data();
    args.residual = residual.data();
    args.output = fused.data();
    args.relu = true;
    expect(conv_forward_cuda(args, plan, target()), what);
    check_close(fused, activated, dtype, what + " fused");
  }

  plan = plan_for(ConvDirection::kBackwardInput);
  what = describe("backward input", s, dtype, plan);
  if (plan.kernel != ConvCudaKernel::kNative) {
    expect(conv_backward_input_cuda({dy.data(), weight.data(), dx_out.data(), nullptr, s, dtype},
                                    plan, target()),
           what);
    check_close(dx_out, dx, dtype, what);
  }

  // The gradient is written in the order of an ordinary weight.
  plan = plan_for(ConvDirection::kBackwardWeight);
  what = describe("backward weight", s, dtype, plan);
  const int64_t in = s.in_channels / s.groups, taps = s.h.kernel * s.w.kernel;
  Buffer dw_out(dtype, weights, skip), db_out(dtype, s.out_channels, skip);
  Buffer workspace(DType::kFloat32, plan.workspace_bytes / 4 +
                                        (tile >= 0 ? splits * weights * plan.merged_groups : 0));
  expect(conv_backward_weight_cuda({x.data(),
                                    dy.data(),
                                    dw_out.data(),
                                    {in * taps, taps, s.w.kernel, 1},
                                    db_out.data(),
                                    workspace.data(),
                                    s,
                                    dtype},
                                   plan, target()),
         what);
  std::vector<double> ordinary(weights);
  for (int64_t i = 0; i < weights; ++i) {
    ordinary[(i / (taps * in) * in + i % in) * taps + i / in % taps] = dw[i];
  }
  check_close(dw_out, ordinary, dtype, what);
  check_close(db_out, db, dtype, what + " bias");
}

ConvAxis axis(int64_t input, int64_t kernel, int64_t stride = 1, int64_t padding = 0,
              int64_t dilation = 1, int64_t behind = -1) {
  if (behind < 0) behind = padding;
  const int64_t output = (input + padding + behind - dilation * (kernel - 1) - 1) / stride + 1;
  return {input, output, kernel, stride, padding, dilation};
}

void check_every_tile(const ConvShape& shape, int splits) {
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16, DType::kFloat32}) {
    for (const ConvMath math : {ConvMath::kIeee, ConvMath::kTf32}) {
      if (dtype != DType::kFloat32 && math == ConvMath::kTf32) continue;
      for (int tile = 0; tile < static_cast<int>(std::size(kConvTiles)); ++tile) {
        if (has_tile(tile, dtype, math)) check_conv(shape, dtype, math, tile, splits);
      }
    }
  }
}

}  // namespace

void test_conv_kernels() {
  emulator::set_device({4, 90});
  check_every_tile({1, 24, 16, 1, axis(9, 3, 2, 1), axis(10, 3, 1, 2), true}, 2);
  check_conv({2, 16, 16, 16, axis(9, 3, 1, 1), axis(10, 5, 2, 1), true}, DType::kBFloat16,
             ConvMath::kIeee, -1, 0);
  emulator::set_device({3, 80});
  // More pixels than the largest tile has rows, and more channels than most have columns
  check_every_tile({2, 16, 40, 1, axis(13, 3, 1, 1), axis(11, 3, 1, 1), true}, 3);
  check_every_tile({1, 72, 136, 1, axis(5, 1), axis(7, 1), true}, 1);
  check_every_tile({3, 32, 48, 2, axis(7, 3, 2, 1), axis(6, 2, 2, 1), true}, 2);
  const std::vector<std::pair<ConvAxis, ConvAxis>> windows = {
      {axis(9, 1, 2), axis(8, 1, 3)},               // inputs that no tap meets
      {axis(9, 3, 2, 1, 2), axis(11, 3, 3, 2, 2)},  // dilation and stride with a divisor
      {axis(10, 2, 4, 1, 2), axis(12, 3, 4, 0, 3)},
      {axis(7, 5, 1, 2), axis(8, 4, 1, 1, 1, 2)},  // more padding behind
      {{1, 1, 1, 1, 0, 1}, axis(40, 7, 2, 3)},     // one dimension
      {axis(4, 4), axis(4, 4)},                    // one output
      {axis(3, 3, 5, 2), axis(2, 2, 7, 1)},        // strides beyond the input
      {axis(8, 4, 4), axis(8, 4, 4)},              // patches
      {axis(2, 2, 1, 3), axis(3, 3, 1, 4)},        // windows in the padding alone
  };
  for (const auto& [h, w] : windows) {
    for (const auto& [in, out, groups] : std::vector<std::array<int64_t, 3>>{
             {8, 16, 1}, {24, 8, 1}, {16, 48, 2}, {3, 8, 1}, {5, 7, 1}, {1, 2, 1}, {12, 4, 1}}) {
      const ConvShape shape{2, in, out, groups, h, w, true};
      check_conv(shape, DType::kBFloat16, ConvMath::kIeee, -1, 0);
      check_conv(shape, DType::kFloat32, ConvMath::kIeee, -1, 0);
      check_conv(shape, DType::kFloat32, ConvMath::kTf32, -1, 0);
    }
  }
  for (const auto& [h, w] : windows) {
    for (const bool channels_last : {false, true}) {
      for (const int64_t channels : {1, 7, 24, 72}) {
        const ConvShape shape{2, channels, channels, channels, h, w, channels_last};
        check_conv(shape, DType::kBFloat16, ConvMath::kIeee, -1, 0);
        check_conv(shape, DType::kFloat32, ConvMath::kTf32, -1, 0);
      }
    }
  }
  // More weights than a block keeps of all its channels
  check_conv({1, 128, 128, 128, axis(14, 13, 1, 6), axis(15, 13, 1, 6), true}, DType::kBFloat16,
             ConvMath::kIeee, -1, 0);
  for (const bool channels_last : {false, true}) {
    for (const int64_t kernel : {3, 5, 7}) {  // more rows than a thread has, several parts
      for (const int64_t stride : {1, 2}) {
        const ConvAxis h = axis(37, kernel, stride, kernel / 2), w = axis(41, kernel, stride, 1);
        check_conv({2, 16, 16, 16, h, w, channels_last}, DType::kFloat16, ConvMath::kIeee, -1, 0);
        check_conv({1, 6, 6, 6, h, w, channels_last}, DType::kFloat32, ConvMath::kIeee, -1, 0);
        check_conv({1, 8, 8, 8, h, w, channels_last}, DType::kBFloat16, ConvMath::kIeee, -1, 0, 1);
      }
    }
  }
  for (const auto& [in, out, groups] : std::vector<std::array<int64_t, 3>>{{64, 64, 16},
                                                                           {48, 96, 6},
                                                                           {16, 32, 16},
                                                                           {32, 16, 4},
                                                                           {24, 24, 3},
                                                                           {80, 80, 20},
                                                                           {48, 96, 3}}) {
    const ConvShape shape{2, in, out, groups, axis(6, 3, 2, 1), axis(7, 3, 1, 1), true};
    check_conv(shape, DType::kFloat16, ConvMath::kIeee, -1, 0);
    check_conv(shape, DType::kFloat32, ConvMath::kIeee, -1, 0);
  }
  const ConvShape stem{2, 3, 64, 1, axis(20, 7, 2, 3), axis(23, 7, 2, 3), true};
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16, DType::kFloat32}) {
    for (const ConvMath math : {ConvMath::kIeee, ConvMath::kTf32}) {
      check_conv(stem, dtype, math, -1, 0);
      // Tensors that do not begin at a multiple of 16 bytes
      check_conv({2, 16, 24, 1, axis(5, 3, 1, 1), axis(6, 3, 2, 1), true}, dtype, math, -1, 0, 3);
    }
  }
}

}  // namespace fastdl::testing
