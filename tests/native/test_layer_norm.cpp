// layer_norm and rms_norm against plain loops in double.
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "buffer.h"
#include "check.h"
#include "layer_norm/layer_norm.h"
#include "tests.h"

namespace fastdl::testing {
namespace {

constexpr double kEps = 1e-5;

struct Case {
  int64_t rows, cols;
  DType dtype, weight_dtype;
  NormKind kind;
  bool has_weight, has_bias;
  int64_t skip = 0;
  int64_t tasks = 1;
  double offset = 0;

  bool centred() const { return kind == NormKind::kLayerNorm; }
  std::string describe(const std::string& backend, const char* what) const {
    return std::string(centred() ? "layer_norm " : "rms_norm ") + what + " " + backend + " [" +
           std::to_string(rows) + ", " + std::to_string(cols) + "] " + dtype_name(dtype) +
           " with " + (has_weight ? "weight " : "") + (has_bias ? "bias " : "") +
           dtype_name(weight_dtype) + " offset " + std::to_string(offset);
  }
};

// All results in double, from the formulas in layer_norm_cpu.cpp.
struct Expected {
  std::vector<double> output, mean, rstd, grad_input, grad_weight, grad_bias;

  Expected(const Case& c, const std::vector<double>& x, const std::vector<double>& grad,
           const std::vector<double>& weight, const std::vector<double>& bias)
      : output(c.rows * c.cols),
        mean(c.rows, 0),
        rstd(c.rows),
        grad_input(c.rows * c.cols),
        grad_weight(c.cols, 0),
        grad_bias(c.cols, 0) {
    for (int64_t row = 0; row < c.rows; ++row) {
      const int64_t start = row * c.cols;
      double squares = 0, sum_g = 0, sum_gx = 0;
      if (c.centred()) {
        for (int64_t i = 0; i < c.cols; ++i)
          mean[row] += x[start + i] / static_cast<double>(c.cols);
      }
      for (int64_t i = 0; i < c.cols; ++i) squares += std::pow(x[start + i] - mean[row], 2);
      rstd[row] = 1 / std::sqrt(squares / static_cast<double>(c.cols) + kEps);
      for (int64_t i = 0; i < c.cols; ++i) {
        const double normalised = (x[start + i] - mean[row]) * rstd[row];
        output[start + i] = normalised * weight[i] + bias[i];
        sum_g += grad[start + i] * weight[i];
        sum_gx += grad[start + i] * weight[i] * normalised;
        grad_weight[i] += grad[start + i] * normalised;
        grad_bias[i] += grad[start + i];
      }
      for (int64_t i = 0; i < c.cols; ++i) {
        const double normalised = (x[start + i] - mean[row]) * rstd[row];
        const double centred = c.centred() ? sum_g / static_cast<double>(c.cols) : 0;
        grad_input[start + i] = rstd[row] * (grad[start + i] * weight[i] - centred -
                                             normalised * sum_gx / static_cast<double>(c.cols));
      }
    }
  }
};

void check_case(const Case& c) {
  Buffer input = Buffer::random(c.dtype, c.rows * c.cols, 1, c.skip);
  // Rows whose variance is not close to zero, which would magnify rounding errors.
  for (int64_t i = 0; i < input.count(); ++i) {
    input.set(i, input.get(i) / 4 + (i % c.cols % 2 == 0 ? 1 : -1) + c.offset);
  }
  const Buffer grad = Buffer::random(c.dtype, c.rows * c.cols, 2, c.skip);
  const Buffer weight = c.has_weight ? Buffer::random(c.weight_dtype, c.cols, 3, c.skip)
                                     : Buffer::filled(c.weight_dtype, c.cols, 1);
  const Buffer bias = c.has_bias ? Buffer::random(c.weight_dtype, c.cols, 4, c.skip)
                                 : Buffer::filled(c.weight_dtype, c.cols, 0);
  const Expected expected(c, input.values(), grad.values(), weight.values(), bias.values());
  const DType statistics = statistics_dtype(c.dtype);
  const double sums = std::sqrt(c.rows) * (c.cols < 3 ? 100 : 4);

  for_each_backend([&](const Backend& backend) {
    Buffer output(c.dtype, c.rows * c.cols, c.skip), mean(statistics, c.rows),
        rstd(statistics, c.rows);
    backend.norm_forward({input.data(), c.has_weight ? weight.data() : nullptr,
                          c.has_bias ? bias.data() : nullptr, output.data(),
                          c.centred() ? mean.data() : nullptr, rstd.data(), c.rows, c.cols, kEps,
                          c.dtype, c.weight_dtype, c.kind});
    check_close(output, expected.output, c.dtype, c.describe(backend.name, "output"), 2);
    if (c.centred()) check_close(mean, expected.mean, statistics, c.describe(backend.name, "mean"));
    check_close(rstd, expected.rstd, statistics, c.describe(backend.name, "rstd"));

    Buffer no_statistics(c.dtype, c.rows * c.cols, c.skip);
    backend.norm_forward({input.data(), c.has_weight ? weight.data() : nullptr,
                          c.has_bias ? bias.data() : nullptr, no_statistics.data(), nullptr,
                          nullptr, c.rows, c.cols, kEps, c.dtype, c.weight_dtype, c.kind});
    check(no_statistics.values() == output.values(),
          c.describe(backend.name, "without statistics"));

    // Every choice of wanted gradients (of large cases some); those not wanted must not be touched.
    const int step = c.rows * c.cols < 1000 ? 1 : 3;
    for (int wanted = 1; wanted < 8; wanted += step) {
      const bool want_weight = (wanted & 2) && c.has_weight, want_bias = (wanted & 4) && c.has_bias;
      Buffer grad_input(c.dtype, c.rows * c.cols, c.skip),
          grad_weight(c.weight_dtype, c.cols, c.skip), grad_bias(c.weight_dtype, c.cols, c.skip),
          partial(statistics, c.tasks * 2 * c.cols);
      backend.norm_backward({grad.data(), input.data(), c.has_weight ? weight.data() : nullptr,
                             c.centred() ? mean.data() : nullptr, rstd.data(),
                             wanted & 1 ? grad_input.data() : nullptr,
                             want_weight ? grad_weight.data() : nullptr,
                             want_bias ? grad_bias.data() : nullptr, partial.data(), c.tasks,
                             c.rows, c.cols, c.dtype, c.weight_dtype, c.kind});
      if (wanted & 1) {
        check_close(grad_input, expected.grad_input, c.dtype,
                    c.describe(backend.name, "grad_input"), c.cols < 3 ? 200 : 4);
      }
      if (want_weight) {
        check_close(grad_weight, expected.grad_weight, c.weight_dtype,
                    c.describe(backend.name, "grad_weight"), sums);
      }
      if (want_bias) {
        check_close(grad_bias, expected.grad_bias, c.weight_dtype,
                    c.describe(backend.name, "grad_bias"), sums);
      }
    }
  });
}

}  // namespace

void test_layer_norm() {
  for (const NormKind kind : {NormKind::kLayerNorm, NormKind::kRmsNorm}) {
    const bool bias = kind == NormKind::kLayerNorm;
    for (const DType dtype : kDTypes) {
      for (const int64_t n :
           {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 67, 129, 1009}) {
        check_case({7, n, dtype, dtype, kind, true, bias, 1, 3});
        check_case({3, n, dtype, dtype, kind, false, false});
        check_case({3, n, dtype, dtype, kind, true, false, 0, 1, 8});
        if (dtype_bytes(dtype) == 2)
          check_case({5, n, dtype, DType::kFloat32, kind, true, bias, 1, 2});
        if (bias) check_case({3, n, dtype, dtype, kind, false, true});
      }
      check_case({2, 8193, dtype, dtype, kind, true, bias, 1, 2});
      check_case({1009, 5, dtype, dtype, kind, true, bias, 1, 3});
      // Every way to share a row on a GPU: aligned rows of warps, blocks, clusters and parts.
      for (const int64_t n : {40, 264, 520, 1024, 1544, 4104, 16384}) {
        check_case({19, n, dtype, dtype, kind, true, bias});
      }
      check_case({3, 40000, dtype, dtype, kind, true, bias});
      check_case({2, 200000, dtype, dtype, kind, true, bias});
      if (dtype_bytes(dtype) == 2) {
        check_case({35, 768, dtype, DType::kFloat32, kind, true, bias});
        check_case({5, 6400, dtype, DType::kFloat32, kind, true, bias});
      }
    }
    if (!streams_past_the_cache()) continue;
    // Results larger than the cache are streamed, at every alignment of a row.
    check_case({2003, 1051, DType::kFloat32, DType::kFloat32, kind, true, bias, 3, 3});
    check_case({1003, 1049, DType::kFloat64, DType::kFloat64, kind, true, bias, 1, 2});
  }
}

}  // namespace fastdl::testing
