// SPDX-License-Identifier: Apache-2.0
// The first two steps of the layer in one launch, for few tokens: a block a token finds where its choices go by looking at all
// of them, and quantizes the token straight to there; one more block writes the offsets. Same results as moe_route.cu and
// moe_rows.cu. Must not go here: many tokens, a dynamic scale of all tokens.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "cuda/moe_kernels.h"
#include "cuda/moe_route.cuh"
#include "cuda/moe_rows.cuh"
#include "cuda/quantize_kernels.h"

namespace evergemm::cuda {
namespace {

constexpr int kMostChoices = 512, kMostTopK = 32, kMostExperts = 1024;
constexpr int kLeastThreads = 256;

// expert_offsets from the experts of all choices.
__device__ __forceinline__ void write_offsets(const MoeRouteProblem& p, const int* expert, unsigned choices,
                                              std::uint32_t* counts) {
  __shared__ unsigned scratch[1][kWarp];
  const auto experts = static_cast<int>(p.experts), threads = static_cast<int>(blockDim.x);
  for (unsigned i = threadIdx.x; i < choices; i += blockDim.x)
    if (expert[i] >= 0) atomicAdd(&counts[expert[i]], 1u);
  __syncthreads();
  const int each = (experts + threads - 1) / threads, begin = static_cast<int>(threadIdx.x) * each,
            end = min(begin + each, experts);
  unsigned sum[1] = {}, total[1];
  for (int e = begin; e < end; ++e) sum[0] += counts[e];
  scan_block(sum, total, scratch);
  for (int e = begin; e < end; ++e) {
    p.expert_offsets[e] = static_cast<std::int32_t>(sum[0]);
    sum[0] += counts[e];
  }
  if (threadIdx.x == 0) p.expert_offsets[experts] = static_cast<std::int32_t>(total[0]);
}

template <class Element, bool kInt8>
__global__ void __launch_bounds__(kMostRowThreads)
    route_and_quantize(const __grid_constant__ MoeRouteProblem p, const __grid_constant__ RoutedRows r,
                       const Divisor by_top_k, const int lanes, std::uint32_t* const cleared) {
  __shared__ int expert[kMostChoices];
  __shared__ std::uint32_t counts[kMostExperts];
  __shared__ int slot[kMostTopK];
  __shared__ std::uint32_t scratch[kMostRowThreads / kWarp];
  const auto choices = static_cast<unsigned>(p.tokens * p.top_k), top_k = static_cast<unsigned>(p.top_k);
  const unsigned token = blockIdx.x;
  const bool has_token = token < p.tokens;
  if (!has_token)
    for (int e = static_cast<int>(threadIdx.x); e < kMostExperts; e += static_cast<int>(blockDim.x)) counts[e] = 0;
  wait_for_previous_kernel();
  allow_next_kernel();  // product 1, which counts the choices by itself and waits for the tokens
  RowInputs<Element, false, 1> inputs;
  if (has_token) inputs.load(r.quantize, token);
  for (unsigned i = threadIdx.x; i < choices; i += blockDim.x) expert[i] = expert_of(p, by_top_k, i);
  __syncthreads();
  if (!has_token) {
    if (threadIdx.x < kClearedWords) cleared[threadIdx.x] = 0;
    write_offsets(p, expert, choices, counts);
    return;
  }
  const unsigned lane = threadIdx.x % kWarp;
  for (unsigned choice = threadIdx.x / kWarp; choice < top_k; choice += blockDim.x / kWarp) {
    const unsigned here = token * top_k + choice;
    const auto mine = static_cast<unsigned>(expert[here]);  // none, -1, is larger than every expert
    unsigned before = 0;
#pragma unroll 1
    for (unsigned i = lane; i < choices; i += kWarp) {
      const auto other = static_cast<unsigned>(expert[i]);
      before += other < mine || (other == mine && i < here) ? 1u : 0u;
    }
#pragma unroll
    for (int distance = kWarp / 2; distance > 0; distance /= 2) before += __shfl_xor_sync(~0u, before, distance);
    if (lane == 0) slot[choice] = p.slot[here] = expert[here] >= 0 ? static_cast<int>(before) : -1;
  }
  __syncthreads();
  float values[1][kVector];
  inputs.widen(r, token, values);
  const float one_scale = lanes == kOneScale ? *static_cast<const float*>(r.quantize.scale) : 1.0f;
  const RowBytes<1> bytes = quantize_row<kInt8, sizeof(typename Element::Bits) == 2>(values, lanes, one_scale, scratch);
#pragma unroll 1
  for (unsigned choice = 0; choice < top_k; ++choice)
    if (slot[choice] >= 0) store_row(r.quantize, bytes, lanes, slot[choice]);
}

template <class Element>
const void* kernel_of(const QuantizeProblem& p) {
  return p.q_dtype == DType::int8 ? reinterpret_cast<const void*>(&route_and_quantize<Element, true>)
                                  : reinterpret_cast<const void*>(&route_and_quantize<Element, false>);
}

}  // namespace

bool few_tokens(const MoeRouteProblem& problem, const RoutedRows& rows) {
  const QuantizeProblem& p = rows.quantize;
  return problem.tokens <= kMostChoices && problem.choices() <= kMostChoices && problem.top_k <= kMostTopK &&
         problem.experts <= kMostExperts && p.scheme != QuantizeScheme::per_tensor && rows_have_vectors(p) &&
         p.columns <= kMostRowThreads * kVector;
}

cudaError_t launch_few_tokens(const MoeRouteProblem& problem, const RoutedRows& rows, std::uint32_t* cleared,
                              cudaStream_t stream) {
  const QuantizeProblem& p = rows.quantize;
  MoeRouteProblem route = problem;
  RoutedRows argument = rows;
  Divisor by_top_k = Divisor::of(std::max<std::int64_t>(problem.top_k, 1));
  int lanes = lanes_of_scale(p);
  void* arguments[] = {&route, &argument, &by_top_k, &lanes, &cleared};
  const std::int64_t threads = (p.columns / kVector + kWarp - 1) / kWarp * kWarp;
  const void* kernel = p.x_dtype == DType::bfloat16  ? kernel_of<Bfloat16>(p)
                       : p.x_dtype == DType::float16 ? kernel_of<Float16>(p)
                                                     : kernel_of<Float32>(p);
  return launch_overlapping(kernel, static_cast<unsigned>(problem.tokens + 1),
                            static_cast<unsigned>(std::max<std::int64_t>(threads, kLeastThreads)), 0, stream,
                            arguments);
}

}  // namespace evergemm::cuda
