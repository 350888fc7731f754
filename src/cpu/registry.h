// SPDX-License-Identifier: Apache-2.0
// The CPU's end of run(): a plan's row -> its kernel. run.cpp is the only caller.
// Must not go here: choices (the plan has made them) and checks (the validator has).
#pragma once
#include "evergemm/error.h"
#include "evergemm/plan.h"
#include "evergemm/problem.h"
#include "evergemm/run.h"

namespace evergemm::cpu {

Status run_cpu(const Plan& plan, const GemmProblem& problem, const RunContext& context);
Status run_cpu(const Plan& plan, const QuantizeProblem& problem, const RunContext& context);
Status run_cpu(const Plan& plan, const PermuteProblem& problem, const RunContext& context);
Status run_cpu(const Plan& plan, const MoeRouteProblem& problem, const RunContext& context);
Status run_cpu(const Plan& plan, const GroupedGemmProblem& problem, const RunContext& context);
Status run_cpu(const Plan& plan, const MoeGatherQuantizeProblem& problem, const RunContext& context);
Status run_cpu(const Plan& plan, const MoeCombineProblem& problem, const RunContext& context);
Status run_cpu(const Plan& plan, const FusedMoeProblem& problem, const RunContext& context);
Status run_cpu(const Plan& plan, const MoeDataProblem& problem, const RunContext& context);

}  // namespace evergemm::cpu
