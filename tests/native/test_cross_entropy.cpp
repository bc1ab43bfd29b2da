// cross_entropy, nll_loss and their sums against plain loops in double.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "buffer.h"
#include "check.h"
#include "cross_entropy/cross_entropy.h"
#include "tests.h"

namespace fastdl::testing {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr int64_t kIgnored = -100;

enum class TargetKind { kIndices, kSmoothed, kProbabilities };

struct Case {
  int64_t outer, classes, inner;
  DType dtype;
  TargetKind kind = TargetKind::kIndices;
  bool has_weight = false;
  int64_t skip = 0;
  bool special = false;

  int64_t rows() const { return outer * inner; }
  int64_t count() const { return rows() * classes; }
  double label_smoothing() const { return kind == TargetKind::kIndices ? 0 : 0.25; }
  int64_t at(int64_t row, int64_t j) const {
    return (row / inner * classes + j) * inner + row % inner;
  }
  std::string describe(const std::string& backend, const char* what) const {
    constexpr const char* kinds[] = {"indices", "smoothed", "probabilities"};
    return std::string("cross_entropy ") + what + " " + backend + " [" + std::to_string(outer) +
           ", " + std::to_string(classes) + ", " + std::to_string(inner) + "] " +
           dtype_name(dtype) + " " + kinds[static_cast<int>(kind)];
  }
};

// Indices and weights in memory that kernels may touch to the byte
template <class T>
struct Numbers {
  explicit Numbers(int64_t count) : data(static_cast<T*>(allocate_bytes(count * sizeof(T)))) {}
  Numbers(const Numbers&) = delete;
  ~Numbers() { release_bytes(data); }
  T* data;
};

struct Expected {
  std::vector<double> losses, grad;
  double total = 0, divisor = 0;

  Expected(const Case& c, const std::vector<double>& x, const int64_t* target,
           const std::vector<double>& probabilities, const std::vector<double>& weight)
      : losses(c.rows()), grad(c.count()) {
    const bool soft = c.kind == TargetKind::kProbabilities;
    for (int64_t row = 0; row < c.rows(); ++row) {
      if (soft) {
        divisor += 1;
      } else if (target[row] != kIgnored) {
        divisor += weight[target[row]];
      }
    }
    for (int64_t row = 0; row < c.rows(); ++row) {
      double largest = -kInf, sum = 0, all = 0;
      for (int64_t j = 0; j < c.classes; ++j) largest = std::fmax(largest, x[c.at(row, j)]);
      for (int64_t j = 0; j < c.classes; ++j) sum += std::exp(x[c.at(row, j)] - largest);
      const bool ignored = !soft && target[row] == kIgnored;
      std::vector<double> q(c.classes);
      for (int64_t j = 0; j < c.classes; ++j) {
        q[j] = c.label_smoothing() / static_cast<double>(c.classes);
        if (soft) q[j] += (1 - c.label_smoothing()) * probabilities[c.at(row, j)];
        if (!soft && target[row] == j) q[j] += 1 - c.label_smoothing();
        q[j] *= weight[j];
        all += q[j];
        // A class that is no target has no part in the loss, be its logit infinite.
        if (ignored || q[j] == 0) continue;
        losses[row] -= q[j] * (x[c.at(row, j)] - largest - std::log(sum));
      }
      for (int64_t j = 0; j < c.classes; ++j) {
        const double softmax = std::exp(x[c.at(row, j)] - largest) / sum;
        grad[c.at(row, j)] = ignored ? 0 * softmax : (softmax * all - q[j]) / divisor;
      }
      total += losses[row];
    }
  }
};

void check_case(const Case& c) {
  const bool soft = c.kind == TargetKind::kProbabilities;
  const DType statistics_type = statistics_dtype(c.dtype);
  Buffer input = Buffer::random(c.dtype, c.count(), 1, c.skip);
  const Numbers<int64_t> target(c.rows());
  for (int64_t row = 0; row < c.rows(); ++row) {
    target.data[row] = row % 5 == 3 ? kIgnored : (row * 7 + c.classes - 1) % c.classes;
  }
  if (c.special && c.classes > 2) {  // a NaN, an infinity, and an impossible class a row
    for (int64_t row = 0; row < c.rows(); row += 2) input.set(c.at(row, (row + 1) % 3), -kInf);
    input.set(c.at(c.rows() - 1, 1), NAN);
    for (int64_t row = 0; row < c.rows(); row += 2) target.data[row] = (row + 2) % 3;
  }
  Buffer probabilities = Buffer::random(c.dtype, c.count(), 2, c.skip);
  for (int64_t i = 0; i < c.count(); ++i) probabilities.set(i, std::abs(probabilities.get(i)));
  Buffer weight = Buffer::filled(statistics_type, c.classes, 1);
  for (int64_t j = 0; c.has_weight && j < c.classes; ++j) weight.set(j, 0.5 + (j % 4) / 4.0);
  const Expected expected(c, input.values(), target.data, probabilities.values(), weight.values());
  const DType loss_type = c.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  const double terms = soft ? static_cast<double>(c.classes) : 8;

  CrossEntropyArgs args;
  args.input = input.data();
  args.target = soft ? nullptr : target.data;
  args.probabilities = soft ? probabilities.data() : nullptr;
  args.weight = c.has_weight ? weight.data() : nullptr;
  args.outer = c.outer;
  args.classes = c.classes;
  args.inner = c.inner;
  args.ignore_index = kIgnored;
  args.label_smoothing = c.label_smoothing();
  args.dtype = c.dtype;

  for_each_backend([&](const Backend& backend) {
    const Numbers<double> divisor(1);
    *divisor.data = static_cast<double>(c.rows());
    if (!soft) {
      backend.target_weight({target.data, c.has_weight ? weight.data() : nullptr, c.rows(),
                             c.classes, kIgnored, statistics_type, divisor.data});
    }
    check(close(*divisor.data, expected.divisor, 1e-12), c.describe(backend.name, "divisor"));
    // The loss alone, with statistics for the backward, and with the gradient.
    Buffer losses(loss_type, c.rows()), again(loss_type, c.rows()), third(loss_type, c.rows());
    Buffer statistics(statistics_type, 3 * c.rows());
    Buffer grad(c.dtype, c.count(), c.skip), late(c.dtype, c.count(), c.skip);
    CrossEntropyArgs call = args;
    call.losses = losses.data();
    backend.cross_entropy_forward(call);
    check_close(losses, expected.losses, loss_type, c.describe(backend.name, "loss"), terms);
    call.losses = again.data();
    call.statistics = statistics.data();
    backend.cross_entropy_forward(call);
    check_close(again, losses.values(), loss_type, c.describe(backend.name, "loss again"));
    call.losses = third.data();
    call.statistics = nullptr;
    call.divisor = divisor.data;
    call.grad_input = grad.data();
    backend.cross_entropy_forward(call);
    check_close(third, losses.values(), loss_type, c.describe(backend.name, "loss and gradient"));
    check_close(grad, expected.grad, c.dtype, c.describe(backend.name, "gradient"), 4);
    call.losses = nullptr;
    call.statistics = statistics.data();
    call.grad_input = late.data();
    backend.cross_entropy_backward(call);
    check_close(late, expected.grad, c.dtype, c.describe(backend.name, "backward"), 4);

    const Numbers<double> total(1);
    backend.loss_sum(
        {losses.data(), divisor.data, total.data, c.rows(), loss_type, DType::kFloat64});
    check(close(*total.data, expected.total / expected.divisor, 1e-4 * terms),
          c.describe(backend.name, "mean"));
    if (c.inner == 1 && !soft) {  // the gradient over the logits, of gradients of the rows
      Buffer logits(c.dtype, c.count(), c.skip), grads(statistics_type, c.rows());
      for (int64_t i = 0; i < c.count(); ++i) logits.set(i, input.get(i));
      for (int64_t row = 0; row < c.rows(); ++row) grads.set(row, row % 3 + 0.5);
      std::vector<double> wanted = expected.grad;
      for (int64_t i = 0; i < c.count(); ++i) wanted[i] *= i / c.classes % 3 + 0.5;
      call = args;
      call.input = call.grad_input = logits.data();
      call.grad_output = grads.data();
      call.grad_output_of_rows = true;
      call.divisor = divisor.data;
      backend.cross_entropy_forward(call);
      check_close(logits, wanted, c.dtype, c.describe(backend.name, "in place"), 8);
    }
  });
}

void check_nll_loss(const Case& c) {
  const DType statistics_type = statistics_dtype(c.dtype);
  const Buffer input = Buffer::random(c.dtype, c.count(), 1);
  const Numbers<int64_t> target(c.rows());
  std::vector<double> losses(c.rows()), grad(c.count());
  for (int64_t row = 0; row < c.rows(); ++row) {
    target.data[row] = row % 5 == 3 ? kIgnored : (row * 7 + c.classes - 1) % c.classes;
    if (target.data[row] == kIgnored) continue;
    losses[row] = -input.get(c.at(row, target.data[row]));
    grad[c.at(row, target.data[row])] = -2;
  }
  const Buffer factor = Buffer::filled(statistics_type, 1, 2);
  NllLossArgs args;
  args.target = target.data;
  args.outer = c.outer;
  args.classes = c.classes;
  args.inner = c.inner;
  args.outer_stride = c.classes * c.inner;
  args.class_stride = c.inner;
  args.inner_stride = 1;
  args.dtype = c.dtype;
  for_each_backend([&](const Backend& backend) {
    Buffer got(statistics_type, c.rows());
    Buffer got_grad = Buffer::filled(c.dtype, c.count(), 0);
    NllLossArgs call = args;
    call.input = input.data();
    call.losses = got.data();
    backend.nll_loss_forward(call);
    check_close(got, losses, statistics_type, c.describe(backend.name, "nll_loss"));
    call = args;
    call.grad_output = factor.data();
    call.grad_input = got_grad.data();
    backend.nll_loss_backward(call);
    check_close(got_grad, grad, c.dtype, c.describe(backend.name, "nll_loss backward"));
  });
}

}  // namespace

void test_cross_entropy() {
  for (const DType dtype : kDTypes) {
    const bool main = dtype == DType::kFloat32 || dtype == DType::kBFloat16;
    for (const int64_t n : {1, 3, 4, 5, 8, 9, 16, 31, 33, 64, 67, 129, 1009}) {
      check_case({7, n, 1, dtype});
      check_case({7, n, 1, dtype, TargetKind::kIndices, true, 1, true});
      check_case({2, 5, n, dtype, TargetKind::kIndices, true});
      if (!main || n > 70) continue;
      check_case({7, n, 1, dtype, TargetKind::kSmoothed, true, 1});
      check_case({7, n, 1, dtype, TargetKind::kProbabilities, false, 1});
      check_case({2, 5, n, dtype, TargetKind::kProbabilities, true});
      check_case({2, 5, n, dtype, TargetKind::kSmoothed, false, 0, true});
    }
    check_case({67, 10, 1, dtype});
    check_case({2, 70, 64, dtype});
    check_case({1, 3001, 8, dtype, TargetKind::kSmoothed});
    // A block, several blocks and the halves of blocks for a row.
    for (const int64_t n : {4096, 20011, 50257}) check_case({2, n, 1, dtype, {}, false, 3});
    check_case({1, 50257, 1, dtype, TargetKind::kSmoothed, true, 1});
    check_nll_loss({7, 5, 1, dtype});
    check_nll_loss({3, 5, 33, dtype});
  }
  check_case({9001, 3, 1, DType::kFloat32});  // sums of more than one block
  if (!streams_past_the_cache()) return;
  // Rows and columns longer than the scratch memory; gradients larger than the cache.
  check_case({1, 530000, 1, DType::kFloat32, {}, false, 1});
  check_case({1, 17001, 37, DType::kFloat32});
  check_case({5, 420001, 1, DType::kFloat32, {}, false, 3});
  check_case({2, 17, 64000, DType::kFloat32});
}

}  // namespace fastdl::testing
