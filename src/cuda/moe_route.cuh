// SPDX-License-Identifier: Apache-2.0
// Integer device code that the routing kernels share (moe_route.cu, moe_few_tokens.cu): a division by top_k, the expert of a
// choice, sums over the threads of a block. Must not go here: kernels.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/quantize_values.cuh"
#include "evergemm/moe_index.h"

namespace evergemm::cuda {

// i / top_k for i < 2^31 as a multiplication: with 2^(shift - 31) >= top_k the rounded-up reciprocal is exact there.
struct Divisor {
  std::uint32_t multiplier;
  int shift;

  static Divisor of(std::int64_t divisor) {
    int bits = 0;
    while ((std::int64_t{1} << bits) < divisor) ++bits;
    return {static_cast<std::uint32_t>((std::uint64_t{1} << (31 + bits)) / static_cast<std::uint64_t>(divisor) + 1),
            31 + bits};
  }
  __device__ __forceinline__ unsigned quotient(unsigned i) const {
    return static_cast<unsigned>(std::uint64_t{i} * multiplier >> shift);
  }
};

static __device__ __forceinline__ int expert_of(const MoeRouteProblem& p, const Divisor& by_top_k, unsigned choice) {
  const unsigned token = by_top_k.quotient(choice);
  return static_cast<int>(local_expert(p, token, choice - token * static_cast<unsigned>(p.top_k)));
}

// values becomes the sum over the threads before this one, totals that over all.
template <int kValues>
__device__ __forceinline__ void scan_block(unsigned (&values)[kValues], unsigned (&totals)[kValues],
                                           unsigned (&scratch)[kValues][kWarp]) {
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  unsigned inclusive[kValues];
#pragma unroll
  for (int v = 0; v < kValues; ++v) {
    inclusive[v] = values[v];
#pragma unroll
    for (unsigned distance = 1; distance < kWarp; distance *= 2) {
      const unsigned other = __shfl_up_sync(~0u, inclusive[v], distance);
      if (lane >= distance) inclusive[v] += other;
    }
    if (lane == kWarp - 1) scratch[v][warp] = inclusive[v];
  }
  __syncthreads();
#pragma unroll
  for (int v = 0; v < kValues; ++v) {
    const unsigned of_warp = lane < warps ? scratch[v][lane] : 0u;
    unsigned before = of_warp;
#pragma unroll
    for (unsigned distance = 1; distance < kWarp; distance *= 2) {
      const unsigned other = __shfl_up_sync(~0u, before, distance);
      if (lane >= distance) before += other;
    }
    totals[v] = __shfl_sync(~0u, before, kWarp - 1);
    values[v] = inclusive[v] - values[v] + __shfl_sync(~0u, before - of_warp, static_cast<int>(warp));
  }
}

}  // namespace evergemm::cuda
