// SPDX-License-Identifier: Apache-2.0
// How a plan is carried out. run() trusts that problem and plan came from validate() and plan(): it checks nothing twice.
#pragma once
#include <cstdint>

#include "evergemm/error.h"
#include "evergemm/linear.h"
#include "evergemm/moe.h"
#include "evergemm/plan.h"
#include "evergemm/problem.h"

namespace evergemm {

// Splits [begin, end) into pieces of about `grain` and calls body(context, piece_begin, piece_end), possibly at the same
// time from several threads; returns when all pieces are done. Null: the calling thread does everything.
using ParallelForBody = void (*)(void* context, std::int64_t begin, std::int64_t end);
using ParallelFor = void (*)(std::int64_t begin, std::int64_t end, std::int64_t grain, ParallelForBody body,
                             void* context);

struct RunContext {
  ParallelFor parallel_for = nullptr;  // CPU only
  std::int32_t threads = 1;            // how many threads parallel_for uses at most
  void* workspace = nullptr;           // plan.workspace_bytes bytes, 256-byte aligned, on the problem's device
  void* stream = nullptr;              // cudaStream_t; CUDA only
  bool overlap =
      true;  // CUDA only: may start while the kernel before it ends (every kernel here waits before it reads)
};

Status run(const Plan& plan, const GemmProblem& problem, const RunContext& context);
Status run(const Plan& plan, const QuantizeProblem& problem, const RunContext& context);
Status run(const Plan& plan, const PermuteProblem& problem, const RunContext& context);
Status run(const Plan& plan, const LinearProblem& problem, const RunContext& context);
Status run(const Plan& plan, const MoeRouteProblem& problem, const RunContext& context);
Status run(const Plan& plan, const GroupedGemmProblem& problem, const RunContext& context);
Status run(const Plan& plan, const MoeGatherQuantizeProblem& problem, const RunContext& context);
Status run(const Plan& plan, const MoeCombineProblem& problem, const RunContext& context);
Status run(const Plan& plan, const FusedMoeProblem& problem, const RunContext& context);
Status run(const Plan& plan, const MoeDataProblem& problem, const RunContext& context);

// A ParallelFor for programs without a thread pool of their own: std::thread for each call, as many as the machine has.
void parallel_for_threads(std::int64_t begin, std::int64_t end, std::int64_t grain, ParallelForBody body,
                          void* context);

}  // namespace evergemm
