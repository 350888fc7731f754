// SPDX-License-Identifier: Apache-2.0
// permute_cols: out[i, j] = a[i, perm[j]]. A value of perm outside [0, columns) writes 0: it is data from outside.
// Must not go here: anything else.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "cuda/permute.h"
#include "cuda/quantize_kernels.h"
#include "cuda/quantize_values.cuh"

namespace evergemm::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = 8;  // that a thread writes with one look at perm
constexpr std::int64_t kMostBlocks = 132 * 16;

__global__ void __launch_bounds__(kThreads) permute_columns(const __grid_constant__ PermuteProblem p) {
  wait_for_previous_kernel();
  const std::int64_t column_blocks = (p.columns + kThreads - 1) / kThreads, row_blocks = (p.rows + kRows - 1) / kRows;
  for (std::int64_t block = blockIdx.x; block < column_blocks * row_blocks; block += gridDim.x) {
    const std::int64_t column = block % column_blocks * kThreads + threadIdx.x,
                       first_row = block / column_blocks * kRows;
    if (column >= p.columns) continue;
    const std::int64_t source = p.perm[column * p.perm_stride];
    const bool inside = source >= 0 && source < p.columns;
#pragma unroll
    for (int i = 0; i < kRows; ++i)
      if (first_row + i < p.rows)
        p.out[(first_row + i) * p.columns + column] =
            inside ? p.a[(first_row + i) * p.columns + source] : std::uint16_t{0};
  }
  allow_next_kernel();
}

}  // namespace

cudaError_t launch_permute(const PermuteProblem& problem, cudaStream_t stream) {
  PermuteProblem p = problem;
  const std::int64_t column_blocks = (p.columns + kThreads - 1) / kThreads, row_blocks = (p.rows + kRows - 1) / kRows;
  const std::int64_t blocks = row_blocks > kMostBlocks / column_blocks ? kMostBlocks : row_blocks * column_blocks;
  void* arguments[] = {&p};
  return launch_overlapping(reinterpret_cast<const void*>(&permute_columns),
                            static_cast<unsigned>(std::max<std::int64_t>(blocks, 1)), kThreads, 0, stream, arguments);
}

}  // namespace evergemm::cuda
