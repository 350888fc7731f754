// SPDX-License-Identifier: Apache-2.0
// Which family of GPU kernels multiplies the rows of all experts: Hopper's own, or the portable one. Must not go here: rows.
#pragma once
#include "plan/portable_grouped.h"
#include "plan/sm90_grouped.h"

namespace evergemm::plan_tables {

// facts: of a GPU.
inline Status plan_grouped(const GroupedGemmProblem& problem, const DeviceFacts& facts, Plan& plan) {
  return facts.architecture == Architecture::sm90a ? plan_grouped_sm90(problem, facts, plan)
                                                   : plan_grouped_portable(problem, facts, plan);
}

}  // namespace evergemm::plan_tables
