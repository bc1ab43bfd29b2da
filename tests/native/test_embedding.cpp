// embedding against plain loops.
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "buffer.h"
#include "check.h"
#include "embedding/embedding.h"
#include "tests.h"

namespace fastdl::testing {
namespace {

// Memory of exactly the indices' size
class Indices {
 public:
  Indices(const std::vector<int64_t>& values, bool is_int64)
      : bytes_(allocate_bytes(values.size() * (is_int64 ? 8 : 4))) {
    for (size_t i = 0; i < values.size(); ++i) {
      const int32_t narrow = static_cast<int32_t>(values[i]);
      char* const at = static_cast<char*>(bytes_) + i * (is_int64 ? 8 : 4);
      std::memcpy(at, is_int64 ? static_cast<const void*>(&values[i]) : &narrow, is_int64 ? 8 : 4);
    }
  }
  Indices(const Indices&) = delete;
  ~Indices() { release_bytes(bytes_); }
  const void* data() const { return bytes_; }

 private:
  void* bytes_;
};

struct Case {
  int64_t vocabulary, dim, count;
  int64_t padding_idx;
  double power;  // of a uniform number: 1 for uniform indices, more for many small ones
  int64_t skip;
};

void check_case(const Case& c, DType dtype, bool is_int64) {
  const std::string what = "embedding [" + std::to_string(c.vocabulary) + ", " +
                           std::to_string(c.dim) + "] of " + std::to_string(c.count) + " " +
                           dtype_name(dtype) + " ";
  std::mt19937 generator(7);
  std::uniform_real_distribution<double> uniform;
  std::vector<int64_t> rows(c.count);
  for (int64_t& row : rows) {
    row = static_cast<int64_t>(std::pow(uniform(generator), c.power) * c.vocabulary);
  }
  const Indices indices(rows, is_int64);
  const EmbeddingIndices list{indices.data(), c.count, c.vocabulary, is_int64};
  const int64_t apart = c.dim + c.skip;  // rows of the weight lie apart
  const int64_t bytes = static_cast<int64_t>(dtype_bytes(dtype));
  const Buffer weight = Buffer::random(dtype, (c.vocabulary - 1) * apart + c.dim, 1, c.skip);
  const Buffer grad = Buffer::random(dtype, c.count * c.dim, 2, c.skip);
  std::vector<double> looked_up(c.count * c.dim), sums(c.vocabulary * c.dim);
  for (int64_t i = 0; i < c.count; ++i) {
    for (int64_t j = 0; j < c.dim; ++j) {
      looked_up[i * c.dim + j] = weight.get(rows[i] * apart + j);
      if (rows[i] != c.padding_idx) sums[rows[i] * c.dim + j] += grad.get(i * c.dim + j);
    }
  }
  for_each_backend([&](const Backend& backend) {
    Buffer output(dtype, c.count * c.dim, c.skip);
    Buffer grad_weight(dtype, c.vocabulary * c.dim, c.skip);
    backend.embedding_forward({list, weight.data(), output.data(), c.dim * bytes, apart * bytes});
    check_close(output, looked_up, dtype, what + backend.name);
    backend.embedding_backward(
        {list, grad.data(), grad_weight.data(), c.dim, c.padding_idx, dtype});
    check_close(grad_weight, sums, dtype, what + "backward " + backend.name,
                1 + std::sqrt(c.count));
  });
}

}  // namespace

void test_embedding() {
  for (const DType dtype : kDTypes) {
    for (const int64_t dim : {1, 2, 3, 4, 7, 8, 16, 31, 33, 64, 67, 129, 600}) {
      check_case({11, dim, 40, -1, 1, dim % 3}, dtype, true);
      check_case({7, dim, 13, 2, 2, 0}, dtype, dim % 2 == 0);
    }
    check_case({1, 5, 1, -1, 1, 0}, dtype, true);
    check_case({5, 8, 0, -1, 1, 0}, dtype, true);
    check_case({3, 8, 50, 0, 9, 0}, dtype, false);       // nearly all are padding
    check_case({300, 36, 1500, -1, 6, 0}, dtype, true);  // long lists, two digits
  }
  check_case({70'000, 4, 700, 69'999, 1, 0}, DType::kFloat32, true);  // three digits
  check_case({5, 520, 9000, -1, 1, 0}, DType::kBFloat16, false);
  if (!streams_past_the_cache()) return;
  check_case({9001, 255, 500, -1, 4, 1}, DType::kFloat32, true);
  check_case({301, 256, 9000, -1, 4, 0}, DType::kFloat32, true);
}

}  // namespace fastdl::testing
