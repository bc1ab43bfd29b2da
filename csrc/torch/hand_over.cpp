#include "torch/hand_over.h"

#include <c10/util/Exception.h>

#include <map>
#include <mutex>
#include <utility>

namespace fastdl {
namespace {

std::mutex counts_mutex;
std::map<std::pair<std::string, std::string>, int64_t> counts;
thread_local bool strict_here = false;

}  // namespace

void hand_over(const std::string& op, const std::string& reason) {
  TORCH_CHECK(!strict_here, "fastdl.strict(): ", op,
              " would be computed by native torch: ", reason);
  const std::lock_guard<std::mutex> lock(counts_mutex);
  ++counts[{op, reason}];
}

std::vector<std::tuple<std::string, std::string, int64_t>> hand_overs() {
  const std::lock_guard<std::mutex> lock(counts_mutex);
  std::vector<std::tuple<std::string, std::string, int64_t>> all;
  for (const auto& [key, count] : counts) all.emplace_back(key.first, key.second, count);
  return all;
}

void reset_hand_overs() {
  const std::lock_guard<std::mutex> lock(counts_mutex);
  counts.clear();
}

bool set_strict(bool strict) { return std::exchange(strict_here, strict); }

}  // namespace fastdl
