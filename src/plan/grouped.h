// SPDX-License-Identifier: Apache-2.0
// Which family of GPU kernels multiplies the rows of all experts: Hopper's own, or the portable one. Must not go here: rows.
#pragma once
#include "plan/portable_grouped.h"
#include "plan/sm90_grouped.h"

namespace evergemm::plan_tables {

// The first of the portable family's rows: behind Hopper's own where those are.
constexpr std::int32_t first_portable_grouped_row(Architecture architecture) {
  return architecture == Architecture::sm90a ? kSm90GroupedRows : 0;
}

// facts: of a GPU. On Hopper the portable family takes what the copy engine cannot address.
inline Status plan_grouped(const GroupedGemmProblem& problem, const DeviceFacts& facts, Plan& plan) {
  if (facts.architecture == Architecture::sm90a) {
    const Status status = plan_grouped_sm90(problem, facts, plan);
    if (!status.ok() || plan.row >= 0) return status;
  }
  const Status status = plan_grouped_portable(problem, facts, plan);
  plan.row += first_portable_grouped_row(facts.architecture);
  return status;
}

}  // namespace evergemm::plan_tables
