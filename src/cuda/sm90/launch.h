// SPDX-License-Identifier: Apache-2.0
// From a GemmProblem and a row of plan/sm90.h to a kernel on a stream. Must not go here: choosing the row.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "evergemm/error.h"
#include "evergemm/plan.h"
#include "evergemm/problem.h"

namespace evergemm::sm90 {

// The problem's device is current. `kernel` is the row's: kernel_of<row>().
// overlap: the kernel may start while the one before it in the stream ends.
Status launch(const Plan& plan, const GemmProblem& problem, const void* kernel, cudaStream_t stream, bool overlap);

}  // namespace evergemm::sm90
