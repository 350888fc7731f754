// SPDX-License-Identifier: Apache-2.0
// Copies quantized tokens to the rows that ask for them. Must not go here: arithmetic.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "cuda/moe_kernels.h"
#include "cuda/quantize_kernels.h"
#include "cuda/quantize_values.cuh"
#include "evergemm/moe_index.h"

namespace evergemm::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp, kAhead = 4;
constexpr std::int64_t kMostBlocks = 132 * 16;

// A warp a row. Unit: 16 bytes, or one where rows are not whole vectors.
template <class Unit>
__global__ void __launch_bounds__(kThreads) gather_rows(const __grid_constant__ GatheredRows g) {
  wait_for_previous_kernel();
  const unsigned lane = threadIdx.x % kWarp;
  const std::int64_t units = g.columns / static_cast<std::int64_t>(sizeof(Unit));
  if (g.one_scale != nullptr && blockIdx.x == 0 && threadIdx.x == 0) *g.scale = *g.one_scale;
  for (std::int64_t row = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp; row < g.rows;
       row += std::int64_t{gridDim.x} * kWarps) {
    const std::int64_t source = read_index(g.source_row, row);
    const bool exists = source >= 0 && source < g.tokens;
    const std::int64_t token = exists ? source : 0;
    const Unit* from = reinterpret_cast<const Unit*>(static_cast<const char*>(g.token_q) + token * g.columns);
    Unit* to = reinterpret_cast<Unit*>(static_cast<char*>(g.q) + row * g.columns);
    for (std::int64_t begin = lane; begin < units; begin += kWarp * kAhead) {
      Unit values[kAhead] = {};
#pragma unroll
      for (int i = 0; i < kAhead; ++i)
        if (exists && begin + i * kWarp < units) values[i] = from[begin + i * kWarp];
#pragma unroll
      for (int i = 0; i < kAhead; ++i)
        if (begin + i * kWarp < units) to[begin + i * kWarp] = values[i];
    }
    for (std::int64_t group = lane; group < g.groups; group += kWarp)
      g.scale[row * g.groups + group] = exists ? g.token_scale[token * g.groups + group] : 1.0f;
  }
  allow_next_kernel();
}

}  // namespace

cudaError_t launch_gather(const GatheredRows& rows, cudaStream_t stream) {
  if (rows.rows == 0 && rows.one_scale == nullptr) return cudaSuccess;
  GatheredRows argument = rows;
  void* arguments[] = {&argument};
  const bool vectors = rows.columns % 16 == 0 && reinterpret_cast<std::uintptr_t>(rows.q) % 16 == 0;
  const std::int64_t blocks = std::clamp<std::int64_t>((rows.rows + kWarps - 1) / kWarps, 1, kMostBlocks);
  return launch_overlapping(vectors ? reinterpret_cast<const void*>(&gather_rows<uint4>)
                                    : reinterpret_cast<const void*>(&gather_rows<std::uint8_t>),
                            static_cast<unsigned>(blocks), kThreads, 0, stream, arguments);
}

}  // namespace evergemm::cuda
