// SPDX-License-Identifier: Apache-2.0
// The emulated device as the planner sees it, the answer that its results are compared with, and where the draws of a test begin.
// Must not go here: the machine itself (machine.h).
#pragma once
#include <cstdlib>

#include "evergemm/plan.h"
#include "evergemm/run.h"
#include "machine.h"
#include "red_zones.h"

namespace evergemm::emulator {

inline DeviceFacts facts() {
  DeviceFacts facts;
  facts.architecture = Architecture::sm90a;
  facts.cores = kMultiprocessors;
  facts.shared_memory_bytes = kSharedMemory;
  return facts;
}

// Solved by the CPU backend, which has the reference's bits (cpu_gemm_test, moe_grouped_test) in less time.
template <class Problem>
Status solve_on_cpu(Problem problem) {
  problem.device = Device{DeviceType::cpu, -1};
  Plan plan;
  const Status status = evergemm::plan(problem, cpu_facts(), plan);
  if (!status.ok()) return status;
  proof::GuardedBuffer workspace(static_cast<std::size_t>(plan.workspace_bytes));
  RunContext context;
  context.workspace = workspace.as<void>();
  return run(plan, problem, context);
}

// Added to what each test draws from: EVERGEMM_EMULATED_SEED=1, 2, ... are other sizes, operands and orders of the same tests.
inline int first_draw() {
  const char* seed = std::getenv("EVERGEMM_EMULATED_SEED");
  return seed == nullptr ? 0 : 1000 * std::atoi(seed);
}

}  // namespace evergemm::emulator
