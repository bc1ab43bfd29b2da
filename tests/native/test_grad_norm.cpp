// Clipping by the total norm against plain loops in double.
#include <cmath>
#include <string>
#include <vector>

#include "backends.h"
#include "buffer.h"
#include "check.h"
#include "optimizer/grad_norm.h"
#include "tests.h"

namespace fastdl::testing {
namespace {

// Gradients of these sizes, each in all dtypes, and their table.
struct Gradients {
  std::vector<Buffer> buffers;
  std::vector<DType> dtypes;
  std::vector<GradTensor> table;

  Gradients(const std::vector<int64_t>& sizes, int64_t skip) {
    int64_t blocks = 0;
    for (const int64_t size : sizes) {
      for (const DType dtype : kDTypes) {
        buffers.push_back(Buffer::random(dtype, size, buffers.size() + 1, skip));
        dtypes.push_back(dtype);
      }
    }
    for (size_t i = 0; i < buffers.size(); ++i) {
      table.push_back({buffers[i].data(), buffers[i].count(), blocks, dtypes[i]});
      blocks += tensor_blocks(buffers[i].count());
    }
  }
};

void check_clip(const std::vector<int64_t>& sizes, double part, double grad_scale, int64_t skip) {
  for_each_backend([&](const Backend& backend) {
    Gradients gradients(sizes, skip);
    double total = 0;
    std::vector<std::vector<double>> before;
    for (const Buffer& buffer : gradients.buffers) {
      before.push_back(buffer.values());
      for (const double value : before.back()) total += value * value;
    }
    const double norm = std::sqrt(total) / grad_scale, max_norm = part * norm;
    const double expected = std::min(1.0, max_norm / (norm + 1e-6));
    const auto count = static_cast<int64_t>(gradients.table.size());
    Buffer found(DType::kFloat64, 1), coefficient(DType::kFloat64, 1);
    const std::string what = "clip " + backend.name + " " + std::to_string(sizes[0]) + " ";
    std::vector<double> bits;
    for (int run = 0; run < 2; ++run) {
      backend.grad_norm({gradients.table.data(), count, nullptr, max_norm, grad_scale,
                         static_cast<double*>(found.data()),
                         static_cast<double*>(coefficient.data())});
      bits.push_back(found.get(0));
      check_close(found, {norm}, DType::kFloat64, what + "norm");
      check_close(coefficient, {expected}, DType::kFloat64, what + "coefficient");
    }
    check(bits[0] == bits[1], what + "has the same bits again");
    backend.scale_grads(gradients.table.data(), count,
                        static_cast<const double*>(coefficient.data()));
    for (size_t i = 0; i < gradients.buffers.size(); ++i) {
      for (double& value : before[i]) value *= expected;
      check_close(gradients.buffers[i], before[i], gradients.dtypes[i], what + "gradient");
    }
  });
}

}  // namespace

void test_grad_norm() {
  for (const double part : {0.5, 2.0}) {
    check_clip({1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 129, 1009}, part, 1, 1);
    check_clip({kTensorBlock - 1, kTensorBlock, kTensorBlock + 1, 2 * kTensorBlock + 3}, part, 8,
               0);
  }
  check_clip({20011}, 0.1, 4, 3);
  check_clip(std::vector<int64_t>(300, 1), 0.1, 1, 0);  // more than one launch takes
  for_each_backend([](const Backend& backend) {
    Buffer found(DType::kFloat64, 1), coefficient(DType::kFloat64, 1);
    backend.grad_norm({nullptr, 0, nullptr, 1, 1, static_cast<double*>(found.data()),
                       static_cast<double*>(coefficient.data())});
    check(found.get(0) == 0 && coefficient.get(0) == 1, "norm of nothing " + backend.name);
  });
}

}  // namespace fastdl::testing
