// SPDX-License-Identifier: Apache-2.0
// The CUDA backend's front door: what the dispatcher (run()) and the bindings call.
// Must not go here: CUDA types; callers are compiled without the toolkit.
#pragma once
#include <cstdint>

#include "evergemm/error.h"
#include "evergemm/moe.h"
#include "evergemm/plan.h"
#include "evergemm/problem.h"
#include "evergemm/run.h"

namespace evergemm {

// Enqueue on context.stream of problem.device, which is made current meanwhile; nothing is allocated and nothing waits.
// Problem and plan are trusted.
Status run_cuda(const Plan& plan, const GemmProblem& problem, const RunContext& context);
Status run_cuda(const Plan& plan, const QuantizeProblem& problem, const RunContext& context);
Status run_cuda(const Plan& plan, const PermuteProblem& problem, const RunContext& context);
Status run_cuda(const Plan& plan, const MoeRouteProblem& problem, const RunContext& context);
Status run_cuda(const Plan& plan, const GroupedGemmProblem& problem, const RunContext& context);
Status run_cuda(const Plan& plan, const MoeGatherQuantizeProblem& problem, const RunContext& context);
Status run_cuda(const Plan& plan, const MoeCombineProblem& problem, const RunContext& context);
Status run_cuda(const Plan& plan, const FusedMoeProblem& problem, const RunContext& context);
Status run_cuda(const Plan& plan, const MoeDataProblem& problem, const RunContext& context);

// What the device can do; read once per device, thread-safe.
Status cuda_facts(std::int32_t device, DeviceFacts& facts);

}  // namespace evergemm
