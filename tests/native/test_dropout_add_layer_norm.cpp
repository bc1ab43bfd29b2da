// dropout_add_layer_norm against plain loops in double.
#include <cmath>
#include <string>
#include <vector>

#include "buffer.h"
#include "check.h"
#include "layer_norm/dropout_add_layer_norm.h"
#include "tests.h"

namespace fastdl::testing {
namespace {

constexpr double kEps = 1e-5;

struct Parts {
  std::vector<double> normalised, rstd;
};

Parts normalise(const std::vector<double>& sum, int64_t rows, int64_t cols) {
  Parts parts{sum, std::vector<double>(rows)};
  for (int64_t row = 0; row < rows; ++row) {
    double* const values = parts.normalised.data() + row * cols;
    double mean = 0, variance = 0;
    for (int64_t j = 0; j < cols; ++j) mean += values[j] / cols;
    for (int64_t j = 0; j < cols; ++j) variance += std::pow(values[j] - mean, 2) / cols;
    parts.rstd[row] = 1 / std::sqrt(variance + kEps);
    for (int64_t j = 0; j < cols; ++j) values[j] = (values[j] - mean) * parts.rstd[row];
  }
  return parts;
}

struct Options {
  double p = 0.2;
  bool parameters = true, grad_sum = true;
  int64_t skip = 0;  // elements before the rows: the CPU's alone may have any
};

void check_case(int64_t rows, int64_t cols, DType dtype, DType weight_dtype,
                const Options& options) {
  constexpr uint64_t seed = 99;
  const int64_t count = rows * cols, skip = streams_past_the_cache() ? options.skip : 0;
  const auto random = [&](uint32_t number) { return Buffer::random(dtype, count, number, skip); };
  const Buffer input = random(1), residual = random(2), grad = random(3), grad_sum = random(4);
  const Buffer weight = Buffer::random(weight_dtype, cols, 5);
  const Buffer bias = Buffer::random(weight_dtype, cols, 6);
  const auto factor = [&](int64_t i) {
    const bool kept = options.p == 0 || dropout_keeps(options.p, seed, i);
    return kept ? 1 / (1 - options.p) : 0;
  };
  const std::string what = "dropout_add_layer_norm [" + std::to_string(rows) + ", " +
                           std::to_string(cols) + "] " + dtype_name(dtype) + " ";
  for_each_backend([&](const Backend& backend) {
    const auto check_all = [&](const Buffer& got, const std::vector<double>& expected, DType type,
                               const char* name, double scale) {
      check_close(got, expected, type, what + name + " " + backend.name, scale);
    };
    Buffer output(dtype, count, skip), sum(dtype, count, skip);
    Buffer mean(statistics_dtype(dtype), rows), rstd(statistics_dtype(dtype), rows);
    const void* const w = options.parameters ? weight.data() : nullptr;
    const void* const b = options.parameters ? bias.data() : nullptr;
    backend.dropout_add_norm_forward({input.data(), residual.data(), w, b, output.data(),
                                      sum.data(), mean.data(), rstd.data(), rows, cols, options.p,
                                      seed, kEps, dtype, weight_dtype});
    std::vector<double> expected(count), g(count), dx(count), ds(count), dw(cols), db(cols);
    for (int64_t i = 0; i < count; ++i) expected[i] = input.get(i) * factor(i) + residual.get(i);
    check_all(sum, expected, dtype, "sum", 1);
    const Parts parts = normalise(sum.values(), rows, cols);
    const auto weight_of = [&](int64_t j) { return options.parameters ? weight.get(j) : 1; };
    for (int64_t i = 0; i < count; ++i) {
      expected[i] =
          parts.normalised[i] * weight_of(i % cols) + (options.parameters ? bias.get(i % cols) : 0);
    }
    check_all(output, expected, dtype, "output", 4);

    for (int64_t row = 0; row < rows; ++row) {
      double centre = 0, projection = 0;
      for (int64_t i = row * cols; i < (row + 1) * cols; ++i) {
        const double dy = grad.get(i), weighted = dy * weight_of(i % cols);
        centre += weighted / cols;
        projection += weighted * parts.normalised[i] / cols;
        dw[i % cols] += dy * parts.normalised[i];
        db[i % cols] += dy;
      }
      for (int64_t i = row * cols; i < (row + 1) * cols; ++i) {
        ds[i] = parts.rstd[row] *
                (grad.get(i) * weight_of(i % cols) - centre - parts.normalised[i] * projection);
        if (options.grad_sum) ds[i] += grad_sum.get(i);
        dx[i] = ds[i] * factor(i);
      }
    }
    Buffer grad_input(dtype, count, skip), grad_residual(dtype, count, skip);
    Buffer grad_weight(weight_dtype, cols), grad_bias(weight_dtype, cols);
    backend.dropout_add_norm_backward(
        {grad.data(), options.grad_sum ? grad_sum.data() : nullptr, sum.data(), w, mean.data(),
         rstd.data(), grad_input.data(), grad_residual.data(), grad_weight.data(), grad_bias.data(),
         nullptr, 0, rows, cols, options.p, seed, dtype, weight_dtype});
    check_all(grad_residual, ds, dtype, "grad_residual", 10);
    check_all(grad_input, dx, dtype, "grad_input", 10);
    check_all(grad_weight, dw, weight_dtype, "grad_weight", std::sqrt(rows) * 4);
    check_all(grad_bias, db, weight_dtype, "grad_bias", std::sqrt(rows) * 4);
  });
}

}  // namespace

void test_dropout_add_layer_norm() {
  for (const DType dtype : kDTypes) {
    const bool mixed = dtype_bytes(dtype) == 2;
    for (const int64_t cols : {3, 4, 7, 8, 17, 64, 67, 131, 515}) {
      check_case(5, cols, dtype, dtype, {});
      check_case(3, cols, dtype, mixed ? DType::kFloat32 : dtype, {.p = 0.5, .skip = 1});
    }
    check_case(2, 9001, dtype, dtype, {.parameters = false, .grad_sum = false});
    check_case(67, 20, dtype, dtype, {.p = 0, .grad_sum = false});
  }
  if (streams_past_the_cache())
    check_case(601, 1001, DType::kFloat32, DType::kFloat32, {.skip = 3});
}

}  // namespace fastdl::testing
