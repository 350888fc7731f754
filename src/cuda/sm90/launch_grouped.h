// SPDX-License-Identifier: Apache-2.0
// From a GroupedGemmProblem and a row of plan/sm90_grouped.h to one kernel on a stream. Must not go here: choosing the row.
#pragma once
#include <cuda_runtime.h>

#include "evergemm/error.h"
#include "evergemm/moe.h"
#include "evergemm/plan.h"

namespace evergemm::sm90 {

// What a kernel may read before the one before it in its stream has ended. Only a chain that knows both can say.
struct EarlyOperands {
  // Constant by then: weights, and expert_rows (ragged, int32 without gaps) unless `choices` is given.
  bool weights = false;
  // Rows of an expert are counted from these ids, constant by then, while another kernel writes expert_rows. Few: every CTA
  // reads them all.
  const MoeRouteProblem* choices = nullptr;
};

// The problem's device is current; problem.rows and problem.n are not 0. Offsets, counts, sizes and pitches are read on the
// device by the rules of moe_index.h. `workspace` has plan.workspace_bytes.
// overlap: the kernel may start while the one before it in the stream ends; it waits for that end before it reads.
Status launch_grouped(const Plan& plan, const GroupedGemmProblem& problem, void* workspace, cudaStream_t stream,
                      bool overlap, const EarlyOperands& early);

}  // namespace evergemm::sm90
