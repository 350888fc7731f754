// SPDX-License-Identifier: Apache-2.0
// Grouped products on Hopper as the planner sees them: reads the rows and rules of sm90_grouped.h, and says which rows a
// problem's layout rules out. Must not go here: thresholds (sm90_grouped.h), kernels (src/cuda).
#include "plan/sm90_grouped.h"

namespace evergemm::plan_tables {

Status plan_grouped_sm90(const GroupedGemmProblem& problem, const DeviceFacts& facts, Plan& plan) {
  plan = Plan();
  plan.architecture = facts.architecture;
  plan.row = 0;
  plan.name = kSm90GroupedSimpleName;
  plan.why = "the only row";
  plan.accumulation = problem.input_dtype == DType::int8 ? Accumulation::exact_int32 : Accumulation::promoted;
  return Status();
}

}  // namespace evergemm::plan_tables
