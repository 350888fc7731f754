// SPDX-License-Identifier: Apache-2.0
// permute_cols on a CUDA device: the launch of permute.cu, for problems with rows and columns.
#pragma once
#include <cuda_runtime.h>

#include "evergemm/problem.h"

namespace evergemm::cuda {

cudaError_t launch_permute(const PermuteProblem& problem, cudaStream_t stream);

}  // namespace evergemm::cuda
