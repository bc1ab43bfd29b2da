// How rows are spread over a GPU: every plan covers its rows with what the GPU has.
#include <string>

#include "check.h"
#include "common/row_plan.h"
#include "tests.h"

namespace fastdl::testing {
namespace {

void check_plan(int64_t rows, int64_t count, int held, bool is_double, const CudaTarget& target) {
  const RowPlan plan = choose_row_plan(rows, count, held, is_double, target);
  const std::string what = "row plan of " + std::to_string(rows) + " rows of " +
                           std::to_string(count) + " vectors, capability " +
                           std::to_string(target.capability);
  check(plan.threads % 32 == 0 && plan.threads > 0, what + ": whole warps");
  switch (plan.kind) {
    case RowTeam::kWarp:
      check(plan.team <= 32 && (plan.team & (plan.team - 1)) == 0, what + ": lanes");
      check(plan.team * plan.vectors >= count, what + ": vectors of a row");
      check(plan.blocks * (plan.threads / plan.team) >= rows, what + ": rows");
      check((plan.blocks - 1) * (plan.threads / plan.team) < rows, what + ": no idle block");
      break;
    case RowTeam::kBlock:
    case RowTeam::kCluster:
      check(plan.threads <= max_row_threads(is_double), what + ": registers");
      check(int64_t{plan.threads} * plan.parts * plan.vectors >= count, what + ": vectors");
      check(plan.vectors == 4 || plan.vectors == held, what + ": a kernel of so many vectors");
      check(plan.blocks == rows * plan.parts, what + ": blocks");
      check((plan.kind == RowTeam::kCluster) == (plan.parts > 1), what + ": parts");
      check(plan.parts <= 8 && (plan.parts == 1 || target.capability >= 90), what + ": cluster");
      break;
    case RowTeam::kSplit:
      check(plan.parts >= 1 && plan.parts <= plan.threads, what + ": a thread for every part");
      check(plan.blocks == rows * plan.parts, what + ": blocks");
      check(count > int64_t{max_row_threads(is_double)} * held, what + ": only beyond a block");
      break;
  }
}

}  // namespace

void test_row_plan() {
  for (const int capability : {80, 86, 90, 120}) {
    const CudaTarget target{nullptr, 132, capability};
    for (const int64_t rows : {1, 7, 64, 132, 1000, 70000}) {
      for (int64_t count = 1; count < 200000; count += 1 + count / 7) {
        for (const int held : {4, 8}) {
          check_plan(rows, count, held, false, target);
          check_plan(rows, count, held, true, target);
        }
      }
    }
  }
}

}  // namespace fastdl::testing
