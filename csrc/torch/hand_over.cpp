#include "torch/hand_over.h"

#include <ATen/ThreadLocalPythonObjects.h>
#include <c10/util/Exception.h>

#include <map>
#include <mutex>

namespace fastdl {
namespace {

using ThreadLocals = at::impl::ThreadLocalPythonObjects;

std::mutex counts_mutex;
std::map<std::pair<std::string, std::string>, int64_t> counts;

// Set while this thread is strict. Kept with what autograd hands to the threads that run its
// backward on a GPU, for they then work for this one.
constexpr const char* kStrict = "fastdl.strict";

}  // namespace

void hand_over(const std::string& op, const std::string& reason) {
  TORCH_CHECK(!ThreadLocals::contains(kStrict), "fastdl.strict(): ", op,
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

bool set_strict(bool strict) {
  const bool before = ThreadLocals::contains(kStrict);
  if (strict && !before) ThreadLocals::set(kStrict, nullptr);
  if (!strict && before) ThreadLocals::erase(kStrict);
  return before;
}

}  // namespace fastdl
