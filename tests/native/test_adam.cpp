// The Adam and AdamW step against a plain loop in double.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "adam/adam.h"
#include "buffer.h"
#include "check.h"
#include "tests.h"

namespace fastdl::testing {
namespace {

struct Options {
  double weight_decay, grad_scale;
  bool maximize, decoupled, amsgrad;
};

// The buffers of one parameter, and what they hold in double.
struct Parameter {
  DType dtype;
  Buffer param, grad, exp_avg, exp_avg_sq, largest;
  double correction1, correction2;

  Parameter(DType dtype, int64_t size, uint32_t seed, int64_t skip)
      : dtype(dtype),
        param(Buffer::random(dtype, size, seed, skip)),
        grad(Buffer::random(dtype, size, seed + 1, skip)),
        exp_avg(Buffer::random(dtype, size, seed + 2, skip)),
        exp_avg_sq(Buffer::random(dtype, size, seed + 3, skip)),
        largest(Buffer::random(dtype, size, seed + 4, skip)),
        correction1(1 - std::pow(0.9, seed)),
        correction2(1 - std::pow(0.99, seed)) {
    for (Buffer* squares : {&exp_avg_sq, &largest}) {
      for (int64_t i = 0; i < size; ++i) squares->set(i, std::abs(squares->get(i)) + 0.1);
    }
  }

  AdamTensor entry(int64_t first_block, bool amsgrad) {
    return {param.data(),
            grad.data(),
            exp_avg.data(),
            exp_avg_sq.data(),
            amsgrad ? largest.data() : nullptr,
            param.count(),
            first_block,
            correction1,
            correction2,
            dtype};
  }
};

constexpr double kLr = 0.02, kBeta1 = 0.9, kBeta2 = 0.99, kEps = 1e-3;

// The five results of one parameter, in the order of Parameter's buffers.
std::vector<std::vector<double>> expected_step(const Parameter& before, const Options& options) {
  std::vector<std::vector<double>> all = {before.param.values(), before.grad.values(),
                                          before.exp_avg.values(), before.exp_avg_sq.values(),
                                          before.largest.values()};
  for (size_t i = 0; i < all[0].size(); ++i) {
    double &p = all[0][i], &grad = all[1][i], &m = all[2][i], &v = all[3][i], &largest = all[4][i];
    grad /= options.grad_scale;
    double g = options.maximize ? -grad : grad;
    if (options.decoupled) {
      p -= kLr * options.weight_decay * p;
    } else {
      g += options.weight_decay * p;
    }
    m = kBeta1 * m + (1 - kBeta1) * g;
    v = kBeta2 * v + (1 - kBeta2) * g * g;
    if (options.amsgrad) largest = std::max(largest, v);
    const double variance = (options.amsgrad ? largest : v) / before.correction2;
    p -= kLr * (m / before.correction1) / (std::sqrt(variance) + kEps);
  }
  return all;
}

std::vector<Parameter> make_parameters(const std::vector<int64_t>& sizes, int64_t skip) {
  std::vector<Parameter> parameters;
  uint32_t seed = 1;
  for (const int64_t size : sizes) {
    for (const DType dtype : kDTypes) parameters.emplace_back(dtype, size, seed++, skip);
  }
  return parameters;
}

void check_step(const std::vector<int64_t>& sizes, const Options& options, int64_t skip) {
  for_each_backend([&](const Backend& backend) {
    std::vector<Parameter> parameters = make_parameters(sizes, skip);
    std::vector<std::vector<std::vector<double>>> expected;
    std::vector<AdamTensor> table;
    int64_t blocks = 0;
    for (Parameter& parameter : parameters) {
      expected.push_back(expected_step(parameter, options));
      table.push_back(parameter.entry(blocks, options.amsgrad));
      blocks += adam_blocks(parameter.param.count());
    }
    backend.adam_step({table.data(), static_cast<int64_t>(table.size()), kLr, kBeta1, kBeta2,
                       options.weight_decay, kEps, options.grad_scale, options.maximize,
                       options.decoupled});
    for (size_t i = 0; i < parameters.size(); ++i) {
      const Parameter& after = parameters[i];
      const std::string what = "adam " + backend.name + " " + dtype_name(after.dtype) + " [" +
                               std::to_string(after.param.count()) + "] ";
      check_close(after.param, expected[i][0], after.dtype, what + "param");
      check_close(after.grad, expected[i][1], after.dtype, what + "grad");
      check_close(after.exp_avg, expected[i][2], after.dtype, what + "exp_avg");
      check_close(after.exp_avg_sq, expected[i][3], after.dtype, what + "exp_avg_sq");
      check_close(after.largest, expected[i][4], after.dtype, what + "max_exp_avg_sq");
    }
  });
}

}  // namespace

void test_adam() {
  const std::vector<Options> all = {{0, 1, false, false, false},  {0.1, 1, false, false, false},
                                    {0.1, 1, false, true, false}, {0, 1, true, false, true},
                                    {0, 8, false, false, false},  {0.1, 4, true, true, true}};
  for (const Options& options : all) {
    check_step({1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 129, 1009}, options, 1);
    check_step({kAdamBlock - 1, kAdamBlock, kAdamBlock + 1, 5, 4 * kAdamBlock + 3, 1}, options, 1);
    check_step({100003}, options, 0);
  }
  for_each_backend([](const Backend& backend) {
    backend.adam_step({nullptr, 0, kLr, kBeta1, kBeta2, 0, kEps, 1, false, false});
    check(true, "adam of no tensors " + backend.name);
  });
}

}  // namespace fastdl::testing
