// SPDX-License-Identifier: Apache-2.0
// Quantizers and permute_cols on a CUDA device. The problem's device is current; results are bit for bit the reference's.
#pragma once
#include <cuda_runtime.h>

#include "evergemm/error.h"
#include "evergemm/problem.h"

namespace evergemm::cuda {

Status quantize(const QuantizeProblem& problem, cudaStream_t stream);
Status permute(const PermuteProblem& problem, cudaStream_t stream);

}  // namespace evergemm::cuda
