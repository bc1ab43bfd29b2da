// Pooling against plain loops in double: values and offsets of maxima exactly.
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "buffer.h"
#include "check.h"
#include "pool/pool.h"
#include "tests.h"

namespace fastdl::testing {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

// First element and number of taps of a window, without regard to the edges unless adaptive.
struct Taps {
  int64_t start, count, step;
};

Taps taps_of(const PoolAxis& axis, int64_t i) {
  if (axis.kernel > 0) return {i * axis.stride - axis.padding, axis.kernel, axis.dilation};
  const int64_t start = i * axis.input / axis.output;
  return {start, ((i + 1) * axis.input + axis.output - 1) / axis.output - start, 1};
}

// Calls f(output, input, offset) for each element of each window, in the order of rows.
template <class F>
void for_each_tap(const PoolShape& shape, F&& f) {
  const PoolAxis &h = shape.h, &w = shape.w;
  const int64_t row_taps = longest_window(w);
  for (int64_t o = 0; o < shape.outer; ++o) {
    for (int64_t row = 0; row < h.output; ++row) {
      for (int64_t col = 0; col < w.output; ++col) {
        const Taps down = taps_of(h, row), right = taps_of(w, col);
        for (int64_t i = 0; i < down.count; ++i) {
          for (int64_t j = 0; j < right.count; ++j) {
            const int64_t y = down.start + i * down.step, x = right.start + j * right.step;
            if (y < 0 || y >= h.input || x < 0 || x >= w.input) continue;
            const int64_t to = ((o * h.output + row) * w.output + col) * shape.inner;
            const int64_t from = ((o * h.input + y) * w.input + x) * shape.inner;
            for (int64_t c = 0; c < shape.inner; ++c) f(to + c, from + c, i * row_taps + j);
          }
        }
      }
    }
  }
}

int64_t input_count(const PoolShape& s) { return s.outer * s.h.input * s.w.input * s.inner; }
int64_t output_count(const PoolShape& s) { return s.outer * s.h.output * s.w.output * s.inner; }

std::string describe(const std::string& backend, const char* what, const PoolShape& shape,
                     DType dtype) {
  std::string text = backend + " " + what + " " + dtype_name(dtype) + " [" +
                     std::to_string(shape.outer) + ", " + std::to_string(shape.inner) + "]";
  for (const PoolAxis& axis : {shape.h, shape.w}) {
    text += " " + std::to_string(axis.input) + " to " + std::to_string(axis.output) + " by " +
            std::to_string(axis.kernel) + "/" + std::to_string(axis.stride);
  }
  return text;
}

// Integers of either size, exactly as many as a kernel may touch.
class Integers {
 public:
  Integers(int64_t count, int64_t bytes)
      : bytes_(bytes), memory_(static_cast<char*>(allocate_bytes(count * bytes))) {}
  Integers(const Integers&) = delete;
  ~Integers() { release_bytes(memory_); }
  void* data() { return memory_; }
  int64_t get(int64_t i) const {
    int64_t value = 0;  // little-endian
    std::memcpy(&value, memory_ + i * bytes_, bytes_);
    return value;
  }

 private:
  int64_t bytes_;
  char* memory_;
};

void check_integers(const Integers& got, const std::vector<int64_t>& expected,
                    const std::string& what) {
  for (size_t i = 0; i < expected.size(); ++i) {
    if (got.get(i) == expected[i]) continue;
    return check(false, what + " at " + std::to_string(i) + ": got " + std::to_string(got.get(i)) +
                            ", expected " + std::to_string(expected[i]));
  }
  check(true, what);
}

void check_max(const PoolShape& shape, DType dtype, bool special) {
  const int64_t inputs = input_count(shape), outputs = output_count(shape);
  Buffer x = Buffer::random(dtype, inputs, 1);
  if (special) {
    constexpr double values[] = {1, NAN, -kInf, -kInf, 1, 0, kInf};
    for (int64_t i = 0; i < inputs; ++i) x.set(i, values[i * i % 7 * (i % 13) % 7]);
  }
  const Buffer dy = Buffer::random(dtype, outputs, 2);
  std::vector<double> best(outputs, -kInf), dx(inputs, 0);
  std::vector<int64_t> offset(outputs, -1), source(outputs), index(outputs);
  const int64_t plane = shape.h.input * shape.w.input * shape.inner;
  for_each_tap(shape, [&](int64_t to, int64_t from, int64_t tap) {
    const double value = x.get(from);
    if (offset[to] >= 0 && !(value > best[to] || std::isnan(value))) return;
    best[to] = value;
    offset[to] = tap;
    source[to] = from;
    index[to] = from % plane / shape.inner;
  });
  for (int64_t i = 0; i < outputs; ++i) dx[source[i]] += dy.get(i);
  for_each_backend([&](const Backend& backend) {
    Buffer alone(dtype, outputs), y(dtype, outputs), grad(dtype, inputs);
    Integers offsets(outputs, has_byte_offsets(shape) ? 1 : 4), indices(outputs, 8);
    backend.max_pool_forward({x.data(), alone.data(), nullptr, shape, dtype});
    check_close(alone, best, dtype, describe(backend.name, "max alone", shape, dtype), 0);
    backend.max_pool_forward({x.data(), y.data(), offsets.data(), shape, dtype});
    check_close(y, best, dtype, describe(backend.name, "max", shape, dtype), 0);
    check_integers(offsets, offset, describe(backend.name, "offsets", shape, dtype));
    backend.max_pool_indices({offsets.data(), static_cast<int64_t*>(indices.data()), shape});
    check_integers(indices, index, describe(backend.name, "indices", shape, dtype));
    backend.max_pool_backward({dy.data(), offsets.data(), grad.data(), shape, dtype});
    check_close(grad, dx, dtype, describe(backend.name, "max backward", shape, dtype), 4);
  });
}

double divisor_of(const AveragePoolArgs& args, const PoolAxis& axis, int64_t i) {
  const Taps taps = taps_of(axis, i);
  const int64_t reach = args.count_include_pad ? axis.padding : 0;
  int64_t count = 0;
  for (int64_t t = 0; t < taps.count; ++t) {
    const int64_t at = taps.start + t;
    count += at >= -reach && at < axis.input + reach;
  }
  return static_cast<double>(count);
}

void check_average(const PoolShape& shape, DType dtype, bool count_include_pad, int64_t divisor) {
  const int64_t inputs = input_count(shape), outputs = output_count(shape);
  const Buffer x = Buffer::random(dtype, inputs, 3), dy = Buffer::random(dtype, outputs, 4);
  AveragePoolArgs args{nullptr, nullptr, shape, count_include_pad, divisor, dtype};
  std::vector<double> y(outputs, 0), dx(inputs, 0), divisors(outputs);
  for (int64_t i = 0; i < outputs; ++i) {
    const int64_t col = i / shape.inner % shape.w.output;
    const int64_t row = i / shape.inner / shape.w.output % shape.h.output;
    divisors[i] = divisor != 0 ? static_cast<double>(divisor)
                               : divisor_of(args, shape.h, row) * divisor_of(args, shape.w, col);
  }
  for_each_tap(shape, [&](int64_t to, int64_t from, int64_t) {
    y[to] += x.get(from) / divisors[to];
    dx[from] += dy.get(to) / divisors[to];
  });
  for_each_backend([&](const Backend& backend) {
    Buffer output(dtype, outputs), grad(dtype, inputs);
    args.input = x.data();
    args.output = output.data();
    backend.average_pool_forward(args);
    check_close(output, y, dtype, describe(backend.name, "average", shape, dtype));
    args.input = dy.data();
    args.output = grad.data();
    backend.average_pool_backward(args);
    check_close(grad, dx, dtype, describe(backend.name, "average backward", shape, dtype), 4);
  });
}

PoolAxis sliding(int64_t input, int64_t kernel, int64_t stride, int64_t padding,
                 int64_t dilation = 1) {
  const int64_t output = (input + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
  return {input, output, kernel, stride, padding, dilation};
}

PoolAxis adaptive(int64_t input, int64_t output) { return {input, output, 0, 1, 0, 1}; }

}  // namespace

void test_pool() {
  const std::vector<std::pair<PoolAxis, PoolAxis>> windows = {
      {sliding(9, 3, 2, 1), sliding(21, 3, 2, 1)},
      {sliding(6, 2, 2, 0), sliding(19, 2, 2, 0)},
      {sliding(7, 3, 1, 1), sliding(17, 3, 1, 1)},
      {sliding(8, 3, 3, 1), sliding(13, 4, 3, 2)},
      {sliding(9, 3, 1, 1, 2), sliding(10, 2, 2, 1, 3)},
      {sliding(5, 1, 2, 0), sliding(33, 1, 3, 0)},
      {sliding(20, 17, 1, 0), sliding(18, 16, 1, 3)},
      {{1, 1, 1, 1, 0, 1}, sliding(150, 7, 2, 3)},
      {{1, 1, 1, 1, 0, 1}, sliding(90, 70, 4, 0)},
      {sliding(5, 5, 5, 0), sliding(7, 7, 7, 0)},
      {sliding(5, 1, 1, 0), sliding(7, 7, 7, 0)},
      {sliding(9, 7, 1, 3), sliding(11, 7, 1, 3)},  // many taps, some above the input
      {sliding(4, 7, 2, 3), sliding(11, 7, 1, 3)},
      {sliding(11, 2, 5, 1), sliding(13, 1, 3, 0)},  // gaps between windows
      {adaptive(7, 3), adaptive(11, 4)},
      {adaptive(3, 5), adaptive(4, 9)},
      {adaptive(40, 2), adaptive(41, 2)},
  };
  for (const DType dtype : kDTypes) {
    for (const auto& [h, w] : windows) {
      for (const auto& [outer, inner] :
           std::vector<std::pair<int64_t, int64_t>>{{3, 1}, {2, 3}, {1, 37}}) {
        const PoolShape shape{outer, inner, h, w};
        check_max(shape, dtype, false);
        check_max(shape, dtype, true);
        if (h.dilation != 1 || w.dilation != 1) continue;
        check_average(shape, dtype, outer == 3, 0);
        if (outer == 1) check_average(shape, dtype, false, -3);
      }
    }
  }
  if (streams_past_the_cache()) {
    check_max({40, 1, sliding(130, 3, 2, 1), sliding(530, 3, 2, 1)}, DType::kFloat32, false);
    check_max({2, 32, sliding(130, 2, 2, 0), sliding(260, 2, 2, 0)}, DType::kFloat32, false);
    check_average({40, 1, sliding(130, 2, 2, 0), sliding(528, 2, 2, 0)}, DType::kFloat32, true, 0);
  }
  // Several tasks, whose first and last rows may lie between windows.
  check_max({1, 1, sliding(2000, 2, 3, 0), sliding(60, 2, 3, 0)}, DType::kFloat32, false);
  check_max({1, 70, sliding(200, 1, 3, 0), sliding(9, 5, 1, 2)}, DType::kFloat32, false);
  // Whole planes.
  check_max({9, 1, sliding(130, 130, 1, 0), sliding(70, 70, 1, 0)}, DType::kFloat32, false);
  check_average({9, 1, sliding(130, 130, 1, 0), sliding(70, 70, 1, 0)}, DType::kBFloat16, true, 0);
  // More columns than a block of them.
  check_max({1, 1, sliding(3, 2, 1, 1), sliding(2060, 2, 1, 1)}, DType::kFloat32, true);
  check_average({1, 1, sliding(3, 2, 1, 1), sliding(4200, 3, 2, 1)}, DType::kFloat32, false, 0);
}

}  // namespace fastdl::testing
