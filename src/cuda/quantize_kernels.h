// SPDX-License-Identifier: Apache-2.0
// The quantizing kernels and what each can run; quantize.cpp chooses. Must not go here: choices.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "evergemm/problem.h"

namespace evergemm::cuda {

// quantize_rows.cu: a block of threads a row, 8 columns a thread and load, values kept in registers between the pass that
// finds the scale and the pass that uses it. from_the_end: rows in descending order, for what was just read in ascending order.
bool rows_kernel_runs(const QuantizeProblem& problem);
cudaError_t launch_rows_kernel(const QuantizeProblem& problem, cudaStream_t stream, bool from_the_end = false);

// quantize_blocks.cu: a block of threads a scale block of any size and layout; reads its values twice. Runs everything.
cudaError_t launch_blocks_kernel(const QuantizeProblem& problem, cudaStream_t stream);

// quantize_blocks.cu: a per-tensor scale of many elements in two launches: absmax over all, then the scale from it.
cudaError_t launch_tensor_scale(const QuantizeProblem& problem, cudaStream_t stream);

// quantize_blocks.cu: zeroes what dropin_group_packed owes besides its groups: all scale words, rows of q beyond the last.
cudaError_t launch_packed_zeros(const QuantizeProblem& problem, cudaStream_t stream);

// A launch with `arguments` that may start while the kernel before it ends (every kernel here waits for that end itself).
cudaError_t launch_overlapping(const void* kernel, dim3 blocks, unsigned threads, std::size_t shared_bytes,
                               cudaStream_t stream, void** arguments);

}  // namespace evergemm::cuda
