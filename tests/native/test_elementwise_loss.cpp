// The elementwise losses against plain loops in double.
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "buffer.h"
#include "check.h"
#include "elementwise_loss/elementwise_loss.h"
#include "tests.h"

namespace fastdl::testing {
namespace {

constexpr double kThreshold = 0.75;

struct Point {
  double x, t, weight, pos_weight;
};

double log_sigmoid(double x) { return std::fmin(x, 0) - std::log1p(std::exp(-std::abs(x))); }

double value(LossKind kind, const Point& p) {
  const double d = p.x - p.t, distance = std::abs(d);
  const double smooth =
      distance < kThreshold ? d * d / (2 * kThreshold) : distance - kThreshold / 2;
  switch (kind) {
    case LossKind::kMse:
      return d * d;
    case LossKind::kL1:
      return distance;
    case LossKind::kSmoothL1:
      return std::isnan(d) ? d : smooth;
    case LossKind::kHuber:
      return std::isnan(d) ? d : kThreshold * smooth;
    case LossKind::kBinaryCrossEntropy:
      break;
  }
  return -p.weight * (p.pos_weight * p.t * log_sigmoid(p.x) + (1 - p.t) * log_sigmoid(-p.x));
}

double slope(LossKind kind, const Point& p) {
  const double d = p.x - p.t, sign = (d > 0) - (d < 0);
  const double smooth = std::abs(d) >= kThreshold ? sign : d / kThreshold;
  switch (kind) {
    case LossKind::kMse:
      return 2 * d;
    case LossKind::kL1:
      return sign;
    case LossKind::kSmoothL1:
      return smooth;
    case LossKind::kHuber:
      return kThreshold * smooth;
    case LossKind::kBinaryCrossEntropy:
      break;
  }
  const double sigmoid = 1 / (1 + std::exp(-p.x));
  return p.weight * ((p.pos_weight * p.t + 1 - p.t) * sigmoid - p.pos_weight * p.t);
}

double target_slope(LossKind kind, const Point& p) {
  if (kind != LossKind::kBinaryCrossEntropy) return -slope(kind, p);
  return p.weight * (log_sigmoid(-p.x) - p.pos_weight * log_sigmoid(p.x));
}

struct Case {
  int64_t size, weight_period, pos_weight_period;  // a period of 0 is no such weight
  LossKind kind;
  DType dtype;
  int64_t skip;
  bool special;
};

void check_case(const Case& c, LossReduction reduction, bool same_grad, int wanted) {
  constexpr const char* kinds[] = {"mse", "l1", "smooth_l1", "huber", "binary_cross_entropy"};
  constexpr const char* reductions[] = {"none", "mean", "sum"};
  const std::string what = std::string(kinds[static_cast<int>(c.kind)]) + " " +
                           reductions[static_cast<int>(reduction)] + " of " +
                           std::to_string(c.size) + " " + dtype_name(c.dtype) + " ";
  const bool reduces = reduction != LossReduction::kNone;
  Buffer x = Buffer::random(c.dtype, c.size, 1, c.skip);
  Buffer t = Buffer::random(c.dtype, c.size, 2, c.skip);
  if (c.special) {
    for (int64_t i = 0; i < c.size; i += 3) x.set(i, i % 2 == 0 ? NAN : 100);
    for (int64_t i = 1; i < c.size; i += 5) t.set(i, x.get(i));
  }
  const Buffer w = Buffer::random(c.dtype, c.weight_period, 3);
  const Buffer p = Buffer::random(c.dtype, c.pos_weight_period, 4);
  const Buffer grads = Buffer::random(c.dtype, same_grad ? 1 : c.size, 5, same_grad ? 0 : c.skip);
  std::vector<double> values(c.size), to_input(c.size), to_target(c.size);
  double sum = 0, magnitude = 0;
  for (int64_t i = 0; i < c.size; ++i) {
    const Point point{x.get(i), t.get(i), c.weight_period ? w.get(i % c.weight_period) : 1,
                      c.pos_weight_period ? p.get(i % c.pos_weight_period) : 1};
    values[i] = value(c.kind, point);
    sum += values[i];
    magnitude += std::abs(values[i]);
    const double scale = grads.get(same_grad ? 0 : i) /
                         (reduction == LossReduction::kMean ? static_cast<double>(c.size) : 1);
    to_input[i] = scale * slope(c.kind, point);
    to_target[i] = scale * target_slope(c.kind, point);
  }
  if (reduction == LossReduction::kMean) sum /= static_cast<double>(c.size);
  if (reduction == LossReduction::kMean) magnitude /= static_cast<double>(c.size);
  const ElementwiseLossTerms terms{x.data(),
                                   t.data(),
                                   c.weight_period ? w.data() : nullptr,
                                   c.pos_weight_period ? p.data() : nullptr,
                                   c.size,
                                   c.weight_period ? c.weight_period : c.size,
                                   c.pos_weight_period ? c.pos_weight_period : c.size,
                                   kThreshold,
                                   c.kind,
                                   reduction,
                                   c.dtype};
  for_each_backend([&](const Backend& backend) {
    Buffer output(c.dtype, reduces ? 1 : c.size, reduces ? 0 : c.skip);
    backend.elementwise_loss_forward({terms, output.data()});
    if (reduces) {
      check(close(output.get(0), sum, tolerance_of(c.dtype) * std::fmax(1, magnitude)),
            what + backend.name + ": got " + std::to_string(output.get(0)) + ", expected " +
                std::to_string(sum));
    } else {
      check_close(output, values, c.dtype, what + backend.name);
    }
    Buffer grad_input(c.dtype, wanted & 1 ? c.size : 0, c.skip);
    Buffer grad_target(c.dtype, wanted & 2 ? c.size : 0, c.skip);
    backend.elementwise_loss_backward({terms, grads.data(), same_grad,
                                       wanted & 1 ? grad_input.data() : nullptr,
                                       wanted & 2 ? grad_target.data() : nullptr});
    if (wanted & 1) check_close(grad_input, to_input, c.dtype, what + "dx " + backend.name);
    if (wanted & 2) check_close(grad_target, to_target, c.dtype, what + "dt " + backend.name);
  });
}

}  // namespace

void test_elementwise_loss() {
  constexpr LossReduction none = LossReduction::kNone;
  constexpr LossReduction reductions[] = {none, LossReduction::kMean, LossReduction::kSum};
  constexpr LossKind kinds[] = {LossKind::kMse, LossKind::kL1, LossKind::kSmoothL1,
                                LossKind::kHuber, LossKind::kBinaryCrossEntropy};
  int turn = 0;  // through reductions and wanted gradients
  for (const LossKind kind : kinds) {
    const bool weighted = kind == LossKind::kBinaryCrossEntropy;
    for (const DType dtype : kDTypes) {
      for (const int64_t size : {1, 2, 7, 8, 9, 31, 33, 67, 1009}) {
        const LossReduction reduction = reductions[++turn % 3];
        const bool same = reduction != none || turn % 2 == 0;
        check_case({size, 0, 0, kind, dtype, turn % 4, false}, reduction, same, 1 + turn % 3);
        check_case({size, 0, 0, kind, dtype, 1, true}, none, false, 3);
        if (weighted) {
          check_case({size, 3, 0, kind, dtype, 0, false}, reduction, same, 3);
          check_case({size, size, 5, kind, dtype, 1, false}, none, false, 3);
        }
      }
      // Several blocks, and more than one batch of a thread
      check_case({20'011, 0, 0, kind, dtype, 3, false}, reductions[1], true, 1);
      if (weighted) check_case({20'011, 9001, 70, kind, dtype, 0, false}, reductions[2], true, 2);
    }
  }
  check_case({200'003, 0, 0, LossKind::kMse, DType::kFloat32, 1, false}, reductions[1], true, 1);
  if (!streams_past_the_cache()) return;
  check_case({1'500'007, 0, 0, LossKind::kL1, DType::kFloat32, 3, false}, none, true, 3);
  check_case({1'500'007, 40'001, 0, LossKind::kBinaryCrossEntropy, DType::kFloat32, 3, false}, none,
             true, 3);
}

}  // namespace fastdl::testing
