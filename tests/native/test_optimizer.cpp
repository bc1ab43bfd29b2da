// The steps of the optimizers against plain loops in double.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "backends.h"
#include "buffer.h"
#include "check.h"
#include "optimizer/optimizer.h"
#include "tests.h"

namespace fastdl::testing {
namespace {

// Options of one case; `states` says which of an algorithm's states it has.
struct Options {
  double weight_decay = 0, grad_scale = 1, clip = 1;
  bool maximize = false;
  std::vector<bool> states;
};

constexpr double kLr = 0.02;

// The buffers of one parameter.
struct Parameter {
  DType dtype;
  Buffer param, grad;
  std::vector<Buffer> states;
  double step;

  Parameter(DType dtype, int64_t size, uint32_t seed, int64_t skip, size_t state_count)
      : dtype(dtype),
        param(Buffer::random(dtype, size, seed, skip)),
        grad(Buffer::random(dtype, size, seed + 1, skip)),
        step(seed) {
    for (size_t k = 0; k < state_count; ++k) {
      states.push_back(Buffer::random(dtype, size, seed + 2 + k, skip));
      for (int64_t i = 0; i < size; ++i) {  // no second moment is negative
        states[k].set(i, std::abs(states[k].get(i)) + 0.1);
      }
    }
  }
};

// What the formula gives for one element: p and the states, from the gradient.
void expected_update(const Adam& adam, double step, double& p, double g, std::vector<double>& s,
                     const Options& options) {
  p -= kLr * adam.decoupled_weight_decay * p;
  s[0] = adam.beta1 * s[0] + (1 - adam.beta1) * g;
  s[1] = adam.beta2 * s[1] + (1 - adam.beta2) * g * g;
  if (options.states[2]) s[2] = std::max(s[2], s[1]);
  const double variance = s[options.states[2] ? 2 : 1] / (1 - std::pow(adam.beta2, step));
  p -= kLr * s[0] / (1 - std::pow(adam.beta1, step)) / (std::sqrt(variance) + adam.eps);
}

void expected_update(const Sgd& sgd, double, double& p, double g, std::vector<double>& s,
                     const Options& options) {
  if (options.states[0]) {
    s[0] = sgd.first ? g : sgd.momentum * s[0] + (1 - sgd.dampening) * g;
    g = sgd.nesterov ? g + sgd.momentum * s[0] : s[0];
  }
  p -= kLr * g;
}

void expected_update(const Adagrad& adagrad, double step, double& p, double g,
                     std::vector<double>& s, const Options&) {
  s[0] += g * g;
  p -= kLr / (1 + (step - 1) * adagrad.lr_decay) * g / (std::sqrt(s[0]) + adagrad.eps);
}

void expected_update(const RmsProp& rms, double, double& p, double g, std::vector<double>& s,
                     const Options& options) {
  s[0] = rms.alpha * s[0] + (1 - rms.alpha) * g * g;
  double variance = s[0];
  if (options.states[1]) {
    s[1] = rms.alpha * s[1] + (1 - rms.alpha) * g;
    variance -= s[1] * s[1];
  }
  double d = g / (std::sqrt(variance) + rms.eps);
  if (options.states[2]) d = s[2] = rms.momentum * s[2] + d;
  p -= kLr * d;
}

// Parameter, gradient and states of one tensor after the step.
template <class Algorithm>
std::vector<std::vector<double>> expected_step(const Algorithm& algorithm, const Parameter& before,
                                               const Options& options) {
  std::vector<std::vector<double>> all = {before.param.values(), before.grad.values()};
  for (const Buffer& state : before.states) all.push_back(state.values());
  for (size_t i = 0; i < all[0].size(); ++i) {
    all[1][i] /= options.grad_scale;
    const double g = all[1][i] * options.clip * (options.maximize ? -1 : 1);
    std::vector<double> states;
    for (size_t k = 2; k < all.size(); ++k) states.push_back(all[k][i]);
    expected_update(algorithm, before.step, all[0][i], g + options.weight_decay * all[0][i], states,
                    options);
    for (size_t k = 2; k < all.size(); ++k) all[k][i] = states[k - 2];
  }
  return all;
}

// RMSprop's centered variance must be positive: its average gradient is made small.
void keep_centered(const RmsProp&, Parameter& parameter) {
  for (int64_t i = 0; i < parameter.param.count(); ++i) {
    parameter.states[0].set(i, parameter.states[0].get(i) + 1);
    parameter.states[1].set(i, parameter.states[1].get(i) / 8);
  }
}
template <class Algorithm>
void keep_centered(const Algorithm&, Parameter&) {}

template <class Algorithm>
void check_step(const std::string& name, void (*Backend::*step)(StepArgs, Algorithm),
                const Algorithm& algorithm, const Options& options,
                const std::vector<int64_t>& sizes, int64_t skip) {
  for_each_backend([&](const Backend& backend) {
    std::vector<Parameter> parameters;
    uint32_t seed = 1;
    for (const int64_t size : sizes) {
      for (const DType dtype : kDTypes) {
        parameters.emplace_back(dtype, size, seed++, skip, options.states.size());
        keep_centered(algorithm, parameters.back());
      }
    }
    std::vector<std::vector<std::vector<double>>> expected;
    std::vector<StepTensor> table;
    int64_t blocks = 0;
    for (Parameter& parameter : parameters) {
      expected.push_back(expected_step(algorithm, parameter, options));
      StepTensor entry{};
      entry.param = parameter.param.data();
      entry.grad = parameter.grad.data();
      for (size_t k = 0; k < options.states.size(); ++k) {
        if (options.states[k]) entry.states[k] = parameter.states[k].data();
      }
      entry.size = parameter.param.count();
      entry.first_block = blocks;
      entry.corrections = algorithm.corrections(parameter.step);
      entry.dtype = parameter.dtype;
      table.push_back(entry);
      blocks += tensor_blocks(entry.size);
    }
    StepArgs args{table.data(), static_cast<int64_t>(table.size()), kLr, options.weight_decay};
    args.grad_scale = options.grad_scale;
    args.clip = options.clip;
    args.maximize = options.maximize;
    (backend.*step)(args, algorithm);
    for (size_t i = 0; i < parameters.size(); ++i) {
      const Parameter& after = parameters[i];
      const std::string what = name + " " + backend.name + " " + dtype_name(after.dtype) + " [" +
                               std::to_string(after.param.count()) + "] ";
      check_close(after.param, expected[i][0], after.dtype, what + "param");
      check_close(after.grad, expected[i][1], after.dtype, what + "grad");
      for (size_t k = 0; k < options.states.size(); ++k) {
        check_close(after.states[k], expected[i][2 + k], after.dtype,
                    what + "state " + std::to_string(k));
      }
    }
  });
}

template <class Algorithm>
void check_sizes(const std::string& name, void (*Backend::*step)(StepArgs, Algorithm),
                 const Algorithm& algorithm, const Options& options) {
  check_step(name, step, algorithm, options,
             {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 129, 1009}, 1);
  check_step(name, step, algorithm, options,
             {kTensorBlock - 1, kTensorBlock, kTensorBlock + 1, 5, 2 * kTensorBlock + 3, 1}, 0);
}

template <class Algorithm>
void check_no_tensors(void (*Backend::*step)(StepArgs, Algorithm), const Algorithm& algorithm) {
  for_each_backend([&](const Backend& backend) {
    (backend.*step)({nullptr, 0, kLr}, algorithm);
    check(true, "a step of no tensors " + backend.name);
  });
}

}  // namespace

void test_optimizer() {
  const Adam adam{0.9, 0.99, 1e-3}, adamw{0.9, 0.99, 1e-3, 0.1};
  const std::vector<bool> two{true, true, false}, all{true, true, true};
  check_sizes("adam", &Backend::adam_step, adam, {0.1, 1, 1, false, two});
  check_sizes("adam amsgrad", &Backend::adam_step, adam, {0, 8, 1, true, all});
  check_sizes("adamw", &Backend::adam_step, adamw, {0, 1, 1, false, two});
  check_sizes("adamw amsgrad", &Backend::adam_step, adamw, {0, 4, 0.5, true, all});
  check_step("adam", &Backend::adam_step, adam, {0, 1, 1, false, two}, {20011}, 1);
  check_step("adam", &Backend::adam_step, adam, {0, 1, 1, false, two}, {100003}, 0);

  check_sizes("sgd", &Backend::sgd_step, {0, 0, false, false}, {0.1, 1, 1, false, {false}});
  check_sizes("sgd momentum", &Backend::sgd_step, {0.9, 0.5, false, false},
              {0, 4, 0.25, true, {true}});
  check_sizes("sgd first", &Backend::sgd_step, {0.9, 0.5, true, true}, {0, 1, 1, false, {true}});
  check_sizes("sgd nesterov", &Backend::sgd_step, {0.9, 0, true, false},
              {0.1, 1, 1, false, {true}});

  check_sizes("adagrad", &Backend::adagrad_step, {0, 1e-3}, {0, 1, 1, false, {true}});
  check_sizes("adagrad lr_decay", &Backend::adagrad_step, {0.5, 1e-3}, {0.1, 4, 0.5, true, {true}});

  const RmsProp rms{0.9, 1e-3, 0.8};
  check_sizes("rmsprop", &Backend::rmsprop_step, rms, {0, 1, 1, false, {true, false, false}});
  check_sizes("rmsprop all", &Backend::rmsprop_step, rms, {0.1, 4, 0.5, true, all});
  check_sizes("rmsprop momentum", &Backend::rmsprop_step, rms,
              {0, 1, 1, false, {true, false, true}});

  check_no_tensors(&Backend::adam_step, adam);
  check_no_tensors(&Backend::rmsprop_step, rms);
}

}  // namespace fastdl::testing
