// softmax, log_softmax and softmin against plain loops in double.
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "buffer.h"
#include "check.h"
#include "softmax/softmax.h"
#include "tests.h"

namespace fastdl::testing {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

struct Shape {
  int64_t outer, size, inner;
  int64_t count() const { return outer * size * inner; }
};

// Calls f(offset, stride) for each row or column along `size`.
template <class F>
void for_each_line(const Shape& shape, F&& f) {
  for (int64_t o = 0; o < shape.outer; ++o) {
    for (int64_t i = 0; i < shape.inner; ++i) f(o * shape.size * shape.inner + i, shape.inner);
  }
}

std::vector<double> forward(const std::vector<double>& x, const Shape& shape, SoftmaxKind kind) {
  std::vector<double> y(x.size());
  const double sign = kind == SoftmaxKind::kSoftmin ? -1 : 1;
  for_each_line(shape, [&](int64_t offset, int64_t stride) {
    double largest = -kInf, sum = 0;
    for (int64_t k = 0; k < shape.size; ++k) {
      largest = std::fmax(largest, sign * x[offset + k * stride]);
    }
    for (int64_t k = 0; k < shape.size; ++k)
      sum += std::exp(sign * x[offset + k * stride] - largest);
    for (int64_t k = 0; k < shape.size; ++k) {
      const double shifted = sign * x[offset + k * stride] - largest;
      y[offset + k * stride] =
          kind == SoftmaxKind::kLogSoftmax ? shifted - std::log(sum) : std::exp(shifted) / sum;
    }
  });
  return y;
}

std::vector<double> backward(const std::vector<double>& grad, const std::vector<double>& y,
                             const Shape& shape, SoftmaxKind kind) {
  std::vector<double> result(y.size());
  const bool logarithm = kind == SoftmaxKind::kLogSoftmax;
  for_each_line(shape, [&](int64_t offset, int64_t stride) {
    double sum = 0;
    for (int64_t k = 0; k < shape.size; ++k) {
      const int64_t at = offset + k * stride;
      sum += logarithm ? grad[at] : grad[at] * y[at];
    }
    for (int64_t k = 0; k < shape.size; ++k) {
      const int64_t at = offset + k * stride;
      result[at] = logarithm ? grad[at] - std::exp(y[at]) * sum : y[at] * (grad[at] - sum);
      if (kind == SoftmaxKind::kSoftmin) result[at] = -result[at];
    }
  });
  return result;
}

std::string describe(const std::string& backend, const char* what, const Shape& shape, DType in,
                     DType out, SoftmaxKind kind) {
  constexpr const char* kinds[] = {"softmax", "log_softmax", "softmin"};
  return std::string(kinds[static_cast<int>(kind)]) + " " + what + " " + backend + " [" +
         std::to_string(shape.outer) + ", " + std::to_string(shape.size) + ", " +
         std::to_string(shape.inner) + "] " + dtype_name(in) + " to " + dtype_name(out);
}

void check_case(const Shape& shape, DType in, DType out, SoftmaxKind kind, int64_t skip,
                bool special) {
  Buffer input = Buffer::random(in, shape.count(), 1, skip);
  if (special) {
    for (int64_t i = 0; i < shape.count(); i += 5) input.set(i, i % 3 == 0 ? -kInf : kInf);
    for (int64_t i = 0; i < shape.count(); i += 7) input.set(i, NAN);
    for (int64_t i = 0; i < std::min<int64_t>(shape.size * shape.inner, 999); ++i) {
      input.set(i, kind == SoftmaxKind::kSoftmin ? kInf : -kInf);  // all masked
    }
  }
  const Buffer grad = Buffer::random(out, shape.count(), 2, skip);
  const std::vector<double> expected = forward(input.values(), shape, kind);
  for_each_backend([&](const Backend& backend) {
    Buffer output(out, shape.count(), skip), grad_input(in, shape.count(), skip);
    backend.softmax_forward(
        {input.data(), output.data(), shape.outer, shape.size, shape.inner, in, out, kind});
    check_close(output, expected, out, describe(backend.name, "forward", shape, in, out, kind));
    const auto expected_grad = backward(grad.values(), output.values(), shape, kind);
    backend.softmax_backward({grad.data(), output.data(), grad_input.data(), shape.outer,
                              shape.size, shape.inner, in, out, kind});
    const double scale = kind == SoftmaxKind::kLogSoftmax ? std::sqrt(shape.size) : 1;
    check_close(grad_input, expected_grad, in,
                describe(backend.name, "backward", shape, in, out, kind), scale);
  });
}

}  // namespace

void test_softmax() {
  std::vector<Shape> shapes;
  for (const int64_t n : {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 67, 129, 1009}) {
    shapes.push_back({3, n, 1});
    shapes.push_back({2, 5, n});
    if (n < 100) shapes.push_back({1, n, 19});
  }
  constexpr SoftmaxKind kinds[] = {SoftmaxKind::kSoftmax, SoftmaxKind::kLogSoftmax,
                                   SoftmaxKind::kSoftmin};
  for (const SoftmaxKind kind : kinds) {
    for (const DType dtype : kDTypes) {
      for (const Shape& shape : shapes) {
        check_case(shape, dtype, dtype, kind, 0, false);
        check_case(shape, dtype, dtype, kind, 1, true);
        if (dtype_bytes(dtype) == 2) check_case(shape, dtype, DType::kFloat32, kind, 1, false);
      }
      // More than one chunk of scratch memory, for a row and for each width of column block.
      check_case({1, 262147, 1}, dtype, dtype, kind, 1, false);
      check_case({1, 2051, 67}, dtype, dtype, kind, 1, false);
      check_case({1, 16387, 3}, dtype, dtype, kind, 0, false);
      // A block, several blocks and the halves of blocks for a row; long aligned columns.
      for (const int64_t n : {2049, 4096, 6150, 20011, 50257})
        check_case({2, n, 1}, dtype, dtype, kind, 3, false);
      check_case({2, 300, 64}, dtype, dtype, kind, 0, false);
      check_case({1, 4096, 16}, dtype, dtype, kind, 0, false);
      check_case({1, 9001, 8}, dtype, dtype, kind, 0, false);
      if (dtype_bytes(dtype) == 2)
        check_case({2, 20011, 1}, dtype, DType::kFloat32, kind, 4, false);
    }
    if (!streams_past_the_cache()) continue;
    // Results larger than the cache are streamed: rows at every alignment, columns when aligned.
    check_case({5, 420001, 1}, DType::kFloat32, DType::kFloat32, kind, 3, false);
    check_case({2, 17, 64000}, DType::kFloat32, DType::kFloat32, kind, 0, false);
    check_case({2, 17, 64001}, DType::kFloat32, DType::kFloat32, kind, 1, false);
    check_case({3, 360007, 1}, DType::kFloat64, DType::kFloat64, kind, 1, false);
  }
}

}  // namespace fastdl::testing
