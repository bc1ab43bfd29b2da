// Sizes of windows as torch's functions take them.
#pragma once

#include <cstdint>
#include <vector>

namespace fastdl {

// An int for all dimensions, or a tuple or list of ints, from Python; None is an empty list, and
// kNoSize in a list.
struct Sizes {
  static constexpr int64_t kNoSize = INT64_MIN;
  std::vector<int64_t> values;
  bool is_int = false;
};

// One number a dimension; false where these are not sizes as torch takes them.
inline bool expand(const Sizes& sizes, int64_t dims, int64_t least, std::vector<int64_t>& result) {
  constexpr int64_t largest = int64_t{1} << 31;  // so that no sum overflows
  const auto given = static_cast<int64_t>(sizes.values.size());
  if (given != 1 && given != dims) return false;
  for (int64_t d = 0; d < dims; ++d) {
    result.push_back(sizes.values[given == 1 ? 0 : d]);
    if (result.back() < least || result.back() > largest) return false;
  }
  return true;
}

}  // namespace fastdl
