// SPDX-License-Identifier: Apache-2.0
// Hopper's rows and rules for grouped products (one product an expert, rows per expert known on the device alone). Data, and
// the planner's questions about it: cmake/KernelInstances.cmake compiles one kernel a tile, src/cuda/sm90/launch_grouped.cpp
// launches it by index. docs/tuning_log.md has the measurements behind the rules.
// Must not go here: CUDA, kernels.
#pragma once
#include <cstdint>
#include <string>

#include "evergemm/plan.h"

namespace evergemm::plan_tables {

inline constexpr const char* kSm90GroupedSimpleName = "sm90_grouped_simple";

// Chooses a row by the rows per expert on average, which the host knows; `problem` has rows, experts and n.
Status plan_grouped_sm90(const GroupedGemmProblem& problem, const DeviceFacts& facts, Plan& plan);

}  // namespace evergemm::plan_tables
