// SPDX-License-Identifier: Apache-2.0
// Grouped products on the portable family: what their workspace holds, and the planner's questions about them.
// Must not go here: CUDA, rows (portable.h).
#pragma once
#include <algorithm>
#include <cstdint>
#include <string>

#include "evergemm/moe_index.h"
#include "evergemm/plan.h"
#include "plan/portable.h"

namespace evergemm::plan_tables {

// Byte offsets: what each expert owns, how many row tiles there are, which they are (8 bytes each).
struct GroupedWorkspace {
  std::int64_t at_count = 0, at_tiles = 0, bytes = 0;
  std::int64_t row_tile_limit = 0;
};

// False where it would need 2^62 bytes or more, or tiles that int32 does not count.
inline bool grouped_workspace(const GroupedGemmProblem& problem, std::int32_t tile_m, GroupedWorkspace& workspace) {
  constexpr std::int64_t kLine = 256, kMost = std::int64_t{1} << 31;
  if (problem.experts >= kMost) return false;
  const std::int64_t whole = problem.rows / tile_m;
  // Experts own different rows: each has at most one tile that is not whole.
  if (problem.form != GroupedForm::masked)
    workspace.row_tile_limit = whole + std::min(problem.experts, problem.rows);
  else if (__builtin_mul_overflow(whole + 1, problem.experts, &workspace.row_tile_limit))
    return false;
  if (workspace.row_tile_limit >= kMost) return false;
  const std::int64_t shares = problem.experts * static_cast<std::int64_t>(sizeof(ExpertShare));
  workspace.at_count = (shares + kLine - 1) / kLine * kLine;
  workspace.at_tiles = workspace.at_count + kLine;
  workspace.bytes = workspace.at_tiles + workspace.row_tile_limit * 8;
  return true;
}

// Chooses a row by the rows per expert on average. Any GPU architecture.
Status plan_grouped_portable(const GroupedGemmProblem& problem, const DeviceFacts& facts, Plan& plan);
// Forces a row (an index of portable_rows_of); an error where it cannot run the problem.
Status plan_grouped_row_portable(const GroupedGemmProblem& problem, const DeviceFacts& facts, std::int32_t row,
                                 Plan& plan);
// Why `row` cannot run the problem, or an empty string.
std::string grouped_why_not_portable(const GroupedGemmProblem& problem, const DeviceFacts& facts, std::int32_t row);

}  // namespace evergemm::plan_tables
