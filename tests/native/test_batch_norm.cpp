// batch_norm, alone and with a residual and ReLU, against plain loops in double.
#include <cmath>
#include <string>
#include <vector>

#include "batch_norm/batch_norm.h"
#include "buffer.h"
#include "check.h"
#include "tests.h"

namespace fastdl::testing {
namespace {

constexpr double kEps = 1e-3, kMomentum = 0.3;

struct Case {
  BatchNormShape shape;
  DType dtype, weight_dtype;
  bool training, relu, has_residual, affine;
  int64_t skip = 0;

  std::string describe(const std::string& backend, const char* what) const {
    return std::string("batch_norm ") + what + " " + backend + " [" + std::to_string(shape.batch) +
           ", " + std::to_string(shape.channels) + ", " + std::to_string(shape.spatial) + "] " +
           (shape.channels_last ? "channels last " : "") + dtype_name(dtype) +
           (training ? " training" : "") + (relu ? " relu" : "") +
           (has_residual ? " residual" : "");
  }
  int64_t channel(int64_t i) const {
    return shape.channels_last ? i % shape.channels : i / shape.spatial % shape.channels;
  }
};

// All results in double, from the formulas in batch_norm_*_cpu.cpp.
struct Expected {
  std::vector<double> output, mean, rstd, running_mean, running_var, grad_input, grad_residual,
      grad_weight, grad_bias;

  Expected(const Case& c, const std::vector<double>& x, const std::vector<double>& residual,
           const std::vector<double>& grad, const std::vector<double>& weight,
           const std::vector<double>& bias, const std::vector<double>& old_mean,
           const std::vector<double>& old_var)
      : output(x.size()),
        mean(c.shape.channels),
        rstd(c.shape.channels),
        running_mean(old_mean),
        running_var(old_var),
        grad_input(x.size()),
        grad_residual(x.size()),
        grad_weight(c.shape.channels),
        grad_bias(c.shape.channels) {
    const int64_t size = static_cast<int64_t>(x.size());
    const double count = static_cast<double>(c.shape.batch * c.shape.spatial);
    std::vector<double> squares(c.shape.channels), weighted(c.shape.channels);
    for (int64_t i = 0; i < size; ++i) mean[c.channel(i)] += x[i] / count;
    for (int64_t i = 0; i < size; ++i)
      squares[c.channel(i)] += std::pow(x[i] - mean[c.channel(i)], 2);
    for (int64_t k = 0; k < c.shape.channels; ++k) {
      if (c.training) {
        running_mean[k] = kMomentum * mean[k] + (1 - kMomentum) * old_mean[k];
        running_var[k] = kMomentum * squares[k] / (count - 1) + (1 - kMomentum) * old_var[k];
        rstd[k] = 1 / std::sqrt(squares[k] / count + kEps);
      } else {
        mean[k] = old_mean[k];
        rstd[k] = 1 / std::sqrt(old_var[k] + kEps);
      }
    }
    for (int64_t i = 0; i < size; ++i) {
      const int64_t k = c.channel(i);
      const double normalised = (x[i] - mean[k]) * rstd[k];
      output[i] = normalised * weight[k] + bias[k] + (c.has_residual ? residual[i] : 0);
      if (c.relu) output[i] = std::fmax(output[i], 0);
      grad_residual[i] = c.relu && output[i] <= 0 ? 0 : grad[i];
      grad_bias[k] += grad_residual[i];
      grad_weight[k] += grad_residual[i] * normalised;
    }
    for (int64_t i = 0; i < size; ++i) {
      const int64_t k = c.channel(i);
      const double centred = c.training ? grad_bias[k] / count : 0;
      const double projected = c.training ? (x[i] - mean[k]) * rstd[k] * grad_weight[k] / count : 0;
      grad_input[i] = weight[k] * rstd[k] * (grad_residual[i] - centred - projected);
    }
  }
};

void check_case(const Case& c) {
  const int64_t size = c.shape.elements(), channels = c.shape.channels;
  Buffer input = Buffer::random(c.dtype, size, 1, c.skip);
  // Channels whose variance is not close to zero, which would magnify rounding errors.
  for (int64_t i = 0; i < size; ++i) {
    const int64_t within = c.shape.channels_last
                               ? i / channels
                               : i % c.shape.spatial + i / (channels * c.shape.spatial);
    input.set(i, input.get(i) / 4 + (within % 2 == 0 ? 1.5 : -0.5));
  }
  const Buffer residual = Buffer::random(c.dtype, size, 2, c.skip);
  const Buffer grad = Buffer::random(c.dtype, size, 3, c.skip);
  const Buffer weight = c.affine ? Buffer::random(c.weight_dtype, channels, 4)
                                 : Buffer::filled(c.weight_dtype, channels, 1);
  const Buffer bias = c.affine ? Buffer::random(c.weight_dtype, channels, 5)
                               : Buffer::filled(c.weight_dtype, channels, 0);
  Buffer old_var = Buffer::random(c.weight_dtype, channels, 7);
  for (int64_t i = 0; i < channels; ++i) old_var.set(i, std::abs(old_var.get(i)) + 0.5);
  const Buffer old_mean = Buffer::random(c.weight_dtype, channels, 6);
  const Expected expected(c, input.values(), residual.values(), grad.values(), weight.values(),
                          bias.values(), old_mean.values(), old_var.values());
  const DType statistics = statistics_dtype(c.dtype);
  const double sums = 4 * std::sqrt(static_cast<double>(size / channels));

  for_each_backend([&](const Backend& backend) {
    Buffer output(c.dtype, size, c.skip), mean(statistics, channels), rstd(statistics, channels);
    Buffer running_mean(c.weight_dtype, channels), running_var(c.weight_dtype, channels);
    for (int64_t i = 0; i < channels; ++i) {
      running_mean.set(i, old_mean.get(i));
      running_var.set(i, old_var.get(i));
    }
    backend.batch_norm_forward(
        {input.data(), c.has_residual ? residual.data() : nullptr,
         c.affine ? weight.data() : nullptr, c.affine ? bias.data() : nullptr, running_mean.data(),
         running_var.data(), output.data(), mean.data(), rstd.data(), c.shape, kMomentum, kEps,
         c.dtype, c.weight_dtype, c.training, c.relu});
    check_close(output, expected.output, c.dtype, c.describe(backend.name, "output"), 2);
    check_close(mean, expected.mean, statistics, c.describe(backend.name, "mean"));
    check_close(rstd, expected.rstd, statistics, c.describe(backend.name, "rstd"));
    check_close(running_mean, expected.running_mean, c.weight_dtype,
                c.describe(backend.name, "running_mean"));
    check_close(running_var, expected.running_var, c.weight_dtype,
                c.describe(backend.name, "running_var"));

    // All gradients; some of them: those not wanted must not be touched.
    for (const int wanted : {15, 1, 2, 12}) {
      Buffer grad_input(c.dtype, size, c.skip), grad_residual(c.dtype, size, c.skip),
          grad_weight(c.weight_dtype, channels), grad_bias(c.weight_dtype, channels);
      backend.batch_norm_backward(
          {grad.data(), input.data(), c.relu && c.has_residual ? output.data() : nullptr,
           c.affine ? weight.data() : nullptr, c.affine ? bias.data() : nullptr, mean.data(),
           rstd.data(), wanted & 1 ? grad_input.data() : nullptr,
           wanted & 2 ? grad_residual.data() : nullptr, wanted & 4 ? grad_weight.data() : nullptr,
           wanted & 8 ? grad_bias.data() : nullptr, c.shape, c.dtype, c.weight_dtype, c.training,
           c.relu});
      if (wanted & 1) {
        check_close(grad_input, expected.grad_input, c.dtype,
                    c.describe(backend.name, "grad_input"), 4);
      }
      if (wanted & 2) {
        check_close(grad_residual, expected.grad_residual, c.dtype,
                    c.describe(backend.name, "grad_residual"));
      }
      if (wanted & 4) {
        check_close(grad_weight, expected.grad_weight, c.weight_dtype,
                    c.describe(backend.name, "grad_weight"), sums);
      }
      if (wanted & 8) {
        check_close(grad_bias, expected.grad_bias, c.weight_dtype,
                    c.describe(backend.name, "grad_bias"), sums);
      }
    }
  });
}

// Means whose squares are beyond float must not meet the statistics of no elements.
void check_equal_huge_values() {
  constexpr int64_t kChannels = 3;
  for (const bool last : {false, true}) {
    const BatchNormShape shape{2, kChannels, 100, last};
    const Buffer input = Buffer::filled(DType::kFloat32, shape.elements(), 0x1p100);
    for_each_backend([&](const Backend& backend) {
      Buffer output(DType::kFloat32, shape.elements());
      Buffer mean(DType::kFloat32, kChannels), rstd(DType::kFloat32, kChannels);
      backend.batch_norm_forward({input.data(), nullptr, nullptr, nullptr, nullptr, nullptr,
                                  output.data(), mean.data(), rstd.data(), shape, kMomentum, kEps,
                                  DType::kFloat32, DType::kFloat32, true, false});
      check_close(output, std::vector<double>(shape.elements()), DType::kFloat32,
                  "batch_norm of equal huge values " + backend.name);
    });
  }
}

}  // namespace

void test_batch_norm() {
  for (const DType dtype : kDTypes) {
    for (const bool last : {false, true}) {
      for (const bool training : {false, true}) {
        check_case({{3, 5, 49, last}, dtype, dtype, training, true, true, true, 1});
        check_case({{4, 8, 64, last}, dtype, dtype, training, true, false, true});
        check_case({{2, 3, 2100, last}, dtype, dtype, training, false, false, true});
      }
      check_case({{9, 70, 1, last}, dtype, dtype, true, false, true, false});
      check_case({{64, 1, 2, last}, dtype, dtype, true, true, false, false});
      if (dtype_bytes(dtype) == 2) {
        check_case({{4, 16, 16, last}, dtype, DType::kFloat32, true, true, true, true});
      }
    }
    check_case({{5, 600, 3, true}, dtype, dtype, true, true, false, true});
  }
  check_equal_huge_values();
  // Channels in parts: a GPU's have 1024 vectors or more
  check_case({{1, 2, 40000, false}, DType::kFloat32, DType::kFloat32, true, true, true, true});
  check_case({{3, 1, 10001, true}, DType::kFloat32, DType::kFloat32, true, true, true, true});
  if (!streams_past_the_cache()) return;
  // The CPU's have 128 Ki elements or more: of a plane, of whole planes, of many channels (which
  // are taken one after another), and channels last
  check_case({{1, 2, 280000, false}, DType::kFloat32, DType::kFloat32, true, true, true, true});
  check_case({{3, 1, 93335, false}, DType::kFloat32, DType::kFloat32, true, true, true, true});
  check_case({{2, 4, 140000, false}, DType::kFloat32, DType::kFloat32, true, true, false, true});
  check_case({{3, 1, 100002, true}, DType::kFloat32, DType::kFloat32, true, true, true, true});
  // Results larger than the cache are streamed.
  check_case({{9, 31, 4099, false}, DType::kFloat32, DType::kFloat32, true, true, true, true, 3});
  check_case({{9, 32, 4099, true}, DType::kFloat32, DType::kFloat32, true, true, true, true});
}

}  // namespace fastdl::testing
