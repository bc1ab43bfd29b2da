// Calls that no fastdl kernel covers are handed over to native torch. This counts them.
#pragma once

#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

namespace fastdl {

// Records that `op` goes to native torch for `reason`; under strict() raises instead.
void hand_over(const std::string& op, const std::string& reason);

// (op, reason, count) of all hand-overs of the process since the last reset.
std::vector<std::tuple<std::string, std::string, int64_t>> hand_overs();
void reset_hand_overs();

// Sets whether this thread's hand-overs are errors; returns what it was.
bool set_strict(bool strict);

}  // namespace fastdl
