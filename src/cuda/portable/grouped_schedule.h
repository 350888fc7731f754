// SPDX-License-Identifier: Apache-2.0
// The two small kernels before a portable grouped product. Must not go here: sizes of workspaces (plan/portable_grouped.h).
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/portable/parameters.h"

namespace evergemm::portable {

// Lists the row tiles of every expert. overlap: may start while the kernel before it ends.
cudaError_t launch_schedule(const GroupedGemmProblem& problem, const Schedule& schedule, cudaStream_t stream,
                            bool overlap);
// Zeros in the rows that no expert owns; the schedule has run.
cudaError_t launch_clear(const GroupedGemmProblem& problem, const Schedule& schedule, std::int32_t multiprocessors,
                         cudaStream_t stream, bool overlap);

}  // namespace evergemm::portable
