// group_norm against plain loops in double.
#include <cmath>
#include <string>
#include <vector>

#include "buffer.h"
#include "check.h"
#include "group_norm/group_norm.h"
#include "tests.h"

namespace fastdl::testing {
namespace {

constexpr double kEps = 1e-3;

struct Case {
  GroupNormShape shape;
  DType dtype, weight_dtype;
  bool affine;
  int64_t skip = 0;

  std::string describe(const std::string& backend, const char* what) const {
    return std::string("group_norm ") + what + " " + backend + " [" + std::to_string(shape.batch) +
           ", " + std::to_string(shape.channels) + ", " + std::to_string(shape.spatial) + "] in " +
           std::to_string(shape.groups) + (shape.channels_last ? " channels last " : " ") +
           dtype_name(dtype);
  }
  int64_t channel(int64_t i) const {
    return shape.channels_last ? i % shape.channels : i / shape.spatial % shape.channels;
  }
  int64_t group(int64_t i) const {
    const int64_t sample = i / (shape.channels * shape.spatial);
    return sample * shape.groups + channel(i) / shape.channels_of_group();
  }
};

// All results in double, from the formulas in group_norm_*_cpu.cpp.
struct Expected {
  std::vector<double> output, mean, rstd, grad_input, grad_weight, grad_bias;

  Expected(const Case& c, const std::vector<double>& x, const std::vector<double>& grad,
           const std::vector<double>& weight, const std::vector<double>& bias)
      : output(x.size()),
        mean(c.shape.batch * c.shape.groups),
        rstd(mean.size()),
        grad_input(x.size()),
        grad_weight(c.shape.channels),
        grad_bias(c.shape.channels) {
    const int64_t size = static_cast<int64_t>(x.size());
    const double count = static_cast<double>(c.shape.channels_of_group() * c.shape.spatial);
    std::vector<double> squares(mean.size()), sum(mean.size()), projection(mean.size());
    for (int64_t i = 0; i < size; ++i) mean[c.group(i)] += x[i] / count;
    for (int64_t i = 0; i < size; ++i) squares[c.group(i)] += std::pow(x[i] - mean[c.group(i)], 2);
    for (size_t g = 0; g < rstd.size(); ++g) rstd[g] = 1 / std::sqrt(squares[g] / count + kEps);
    for (int64_t i = 0; i < size; ++i) {
      const int64_t k = c.channel(i), g = c.group(i);
      const double normalised = (x[i] - mean[g]) * rstd[g];
      output[i] = normalised * weight[k] + bias[k];
      grad_bias[k] += grad[i];
      grad_weight[k] += grad[i] * normalised;
      sum[g] += grad[i] * weight[k] / count;
      projection[g] += grad[i] * weight[k] * normalised / count;
    }
    for (int64_t i = 0; i < size; ++i) {
      const int64_t g = c.group(i);
      grad_input[i] = rstd[g] * (grad[i] * weight[c.channel(i)] - sum[g] -
                                 (x[i] - mean[g]) * rstd[g] * projection[g]);
    }
  }
};

void check_case(const Case& c) {
  const int64_t size = c.shape.elements(), channels = c.shape.channels;
  const int64_t groups = c.shape.batch * c.shape.groups;
  Buffer input = Buffer::random(c.dtype, size, 1, c.skip);
  // Groups whose variance is not close to zero, which would magnify rounding errors.
  for (int64_t i = 0; i < size; ++i) {
    input.set(i, input.get(i) / 4 + ((i + c.channel(i)) % 2 == 0 ? 1.5 : -0.5));
  }
  const Buffer grad = Buffer::random(c.dtype, size, 2, c.skip);
  const Buffer weight = c.affine ? Buffer::random(c.weight_dtype, channels, 3)
                                 : Buffer::filled(c.weight_dtype, channels, 1);
  const Buffer bias = c.affine ? Buffer::random(c.weight_dtype, channels, 4)
                               : Buffer::filled(c.weight_dtype, channels, 0);
  const Expected expected(c, input.values(), grad.values(), weight.values(), bias.values());
  const DType statistics = statistics_dtype(c.dtype);
  const double sums = 4 * std::sqrt(static_cast<double>(size / channels));

  for_each_backend([&](const Backend& backend) {
    Buffer output(c.dtype, size, c.skip), mean(statistics, groups), rstd(statistics, groups);
    backend.group_norm_forward({input.data(), c.affine ? weight.data() : nullptr,
                                c.affine ? bias.data() : nullptr, output.data(), mean.data(),
                                rstd.data(), c.shape, kEps, c.dtype, c.weight_dtype});
    check_close(output, expected.output, c.dtype, c.describe(backend.name, "output"), 2);
    check_close(mean, expected.mean, statistics, c.describe(backend.name, "mean"));
    check_close(rstd, expected.rstd, statistics, c.describe(backend.name, "rstd"));

    // All gradients; some of them: those not wanted must not be touched.
    for (const int wanted : {7, 1, 6}) {
      Buffer grad_input(c.dtype, size, c.skip), grad_weight(c.weight_dtype, channels),
          grad_bias(c.weight_dtype, channels);
      backend.group_norm_backward(
          {grad.data(), input.data(), c.affine ? weight.data() : nullptr, mean.data(), rstd.data(),
           wanted & 1 ? grad_input.data() : nullptr, wanted & 2 ? grad_weight.data() : nullptr,
           wanted & 4 ? grad_bias.data() : nullptr, c.shape, c.dtype, c.weight_dtype});
      if (wanted & 1) {
        check_close(grad_input, expected.grad_input, c.dtype,
                    c.describe(backend.name, "grad_input"), 4);
      }
      if (wanted & 2) {
        check_close(grad_weight, expected.grad_weight, c.weight_dtype,
                    c.describe(backend.name, "grad_weight"), sums);
      }
      if (wanted & 4) {
        check_close(grad_bias, expected.grad_bias, c.weight_dtype,
                    c.describe(backend.name, "grad_bias"), sums);
      }
    }
  });
}

}  // namespace

void test_group_norm() {
  // On a GPU channels-last tensors are made contiguous first.
  const int layouts = streams_past_the_cache() ? 2 : 1;
  for (const DType dtype : kDTypes) {
    for (const bool last : {false, true}) {
      if (last && layouts == 1) continue;
      check_case({{3, 6, 49, 3, last}, dtype, dtype, true, 1});
      check_case({{2, 8, 64, 2, last}, dtype, dtype, true});
      check_case({{2, 4, 2100, 1, last}, dtype, dtype, true});
      check_case({{3, 4, 9, 4, last}, dtype, dtype, false});
      check_case({{5, 72, 1, 6, last}, dtype, dtype, true});
      if (dtype_bytes(dtype) == 2) {
        check_case({{2, 16, 16, 4, last}, dtype, DType::kFloat32, true});
      }
    }
  }
  // Groups in parts: a GPU's have 1024 vectors or more
  check_case({{1, 4, 10000, 1, false}, DType::kFloat32, DType::kFloat32, true});
  if (layouts == 1) return;
  // The CPU's have 128 Ki elements or more: of one group, of as many as are taken one after
  // another, and channels last
  check_case({{1, 4, 70000, 1, false}, DType::kFloat32, DType::kFloat32, true});
  check_case({{2, 4, 140000, 2, false}, DType::kFloat32, DType::kFloat32, true});
  check_case({{1, 4, 70001, 2, true}, DType::kFloat32, DType::kFloat32, true});
  check_case({{4, 2, 140000, 1, true}, DType::kFloat32, DType::kFloat32, true});
  check_case({{2, 600, 9, 5, true}, DType::kFloat32, DType::kFloat32, true});
  // Results larger than the cache are streamed.
  check_case({{9, 32, 4099, 8, false}, DType::kFloat32, DType::kFloat32, true, 3});
  check_case({{9, 32, 4099, 8, true}, DType::kFloat32, DType::kFloat32, true});
}

}  // namespace fastdl::testing
