// SPDX-License-Identifier: Apache-2.0
// From a GroupedGemmProblem and a row of plan/sm90_grouped.h to one kernel on a stream. Must not go here: choosing the row.
#pragma once
#include <cuda_runtime.h>

#include "evergemm/error.h"
#include "evergemm/moe.h"
#include "evergemm/plan.h"

namespace evergemm::sm90 {

// The problem's device is current; problem.rows and problem.n are not 0. Offsets, counts, sizes and pitches are read on the
// device by the rules of moe_index.h. `workspace` has plan.workspace_bytes.
// overlap: the kernel may start while the one before it in the stream ends; it waits for that end before it reads.
Status launch_grouped(const Plan& plan, const GroupedGemmProblem& problem, void* workspace, cudaStream_t stream,
                      bool overlap);

}  // namespace evergemm::sm90
