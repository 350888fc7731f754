// SPDX-License-Identifier: Apache-2.0
// The weighted sum over a token's choices, in ascending order with fp32 fma and one rounding: a thread owns its columns, so
// that nothing is shared and every run gives the same bits. Must not go here: anything else.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "cuda/moe_kernels.h"
#include "cuda/quantize_kernels.h"
#include "cuda/quantize_values.cuh"
#include "evergemm/moe_index.h"

namespace evergemm::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kAhead = 8;  // choices whose loads are in flight together
constexpr std::int64_t kMostBlocks = 1 << 20;

// The row of a choice, or -1.
__device__ __forceinline__ std::int64_t row_of(const MoeCombineProblem& p, std::int64_t token, std::int64_t choice) {
  const std::int64_t row =
      read_index(p.slot, p.slots_are_int64, token * p.slot_token_stride + choice * p.slot_choice_stride);
  return row >= 0 && row < p.rows ? row : -1;
}
__device__ __forceinline__ float weight_of(const MoeCombineProblem& p, std::int64_t token, std::int64_t choice) {
  return p.weights == nullptr ? 1.0f : p.weights[token * p.weights_token_stride + choice * p.weights_choice_stride];
}

__device__ __forceinline__ std::uint16_t narrowed(DType type, float value) {
  return type == DType::float16 ? numerics::float_to_float16(value) : numerics::float_to_bfloat16(value);
}

// A thread owns kVector columns of a token.
template <class Element>
__global__ void __launch_bounds__(kThreads)
    combine_vectors(const __grid_constant__ MoeCombineProblem p, const unsigned in_token) {
  wait_for_previous_kernel();
  const std::int64_t total = p.tokens * in_token;
  for (std::int64_t i = blockIdx.x * std::int64_t{kThreads} + threadIdx.x; i < total;
       i += std::int64_t{gridDim.x} * kThreads) {
    const std::int64_t token = i / in_token, column = i % in_token * kVector;
    float sums[kVector] = {};
    for (std::int64_t first = 0; first < p.top_k; first += kAhead) {
      std::int64_t row[kAhead];
      float weight[kAhead];
      Vector<Element> y[kAhead];
#pragma unroll
      for (int c = 0; c < kAhead; ++c) {
        row[c] = first + c < p.top_k ? row_of(p, token, first + c) : -1;
        weight[c] = first + c < p.top_k ? weight_of(p, token, first + c) : 0.0f;
      }
#pragma unroll
      for (int c = 0; c < kAhead; ++c)
        if (row[c] >= 0) y[c] = Vector<Element>::load(p.y, row[c] * p.y_stride + column);
#pragma unroll
      for (int c = 0; c < kAhead; ++c) {
        if (row[c] < 0) continue;
        float values[kVector];
        y[c].widen(values);
#pragma unroll
        for (int e = 0; e < kVector; ++e) sums[e] = numerics::fma32(weight[c], values[e], sums[e]);
      }
    }
    const std::int64_t at = token * p.columns + column;
    if (p.output_dtype == DType::float32) {
      auto* out = reinterpret_cast<float4*>(static_cast<float*>(p.out) + at);
      out[0] = make_float4(sums[0], sums[1], sums[2], sums[3]);
      out[1] = make_float4(sums[4], sums[5], sums[6], sums[7]);
    } else {
      std::uint32_t words[kVector / 2];
#pragma unroll
      for (int w = 0; w < kVector / 2; ++w)
        words[w] = narrowed(p.output_dtype, sums[2 * w]) | std::uint32_t{narrowed(p.output_dtype, sums[2 * w + 1])}
                                                               << 16;
      *reinterpret_cast<uint4*>(static_cast<std::uint16_t*>(p.out) + at) =
          make_uint4(words[0], words[1], words[2], words[3]);
    }
  }
  allow_next_kernel();
}

// A thread owns a column of a token; any alignment.
template <class Element>
__global__ void __launch_bounds__(kThreads) combine_elements(const __grid_constant__ MoeCombineProblem p) {
  wait_for_previous_kernel();
  const std::int64_t total = p.tokens * p.columns;
  for (std::int64_t i = blockIdx.x * std::int64_t{kThreads} + threadIdx.x; i < total;
       i += std::int64_t{gridDim.x} * kThreads) {
    const std::int64_t token = i / p.columns, column = i % p.columns;
    float sum = 0.0f;
    for (std::int64_t choice = 0; choice < p.top_k; ++choice) {
      const std::int64_t row = row_of(p, token, choice);
      if (row < 0) continue;
      const auto* y = static_cast<const typename Element::Bits*>(p.y) + row * p.y_stride;
      sum = numerics::fma32(weight_of(p, token, choice), Element::widen(y[column]), sum);
    }
    if (p.output_dtype == DType::float32)
      static_cast<float*>(p.out)[i] = sum;
    else
      static_cast<std::uint16_t*>(p.out)[i] = narrowed(p.output_dtype, sum);
  }
  allow_next_kernel();
}

template <class Element>
cudaError_t launch(const MoeCombineProblem& problem, cudaStream_t stream) {
  MoeCombineProblem p = problem;
  const std::int64_t element = size_in_bytes(p.y_dtype);
  const bool by_vectors = p.columns % kVector == 0 && reinterpret_cast<std::uintptr_t>(p.y) % 16 == 0 &&
                          p.y_stride * element % 16 == 0 && reinterpret_cast<std::uintptr_t>(p.out) % 16 == 0 &&
                          p.columns <= (std::int64_t{1} << 31);
  auto in_token = static_cast<unsigned>(by_vectors ? p.columns / kVector : 0);
  const std::int64_t items = by_vectors ? p.tokens * in_token : p.tokens * p.columns;
  // Few: narrow blocks, so that every multiprocessor takes part.
  const std::int64_t blocks = std::min((items + kThreads - 1) / kThreads, kMostBlocks);
  void* arguments[] = {&p, &in_token};
  return launch_overlapping(by_vectors ? reinterpret_cast<const void*>(&combine_vectors<Element>)
                                       : reinterpret_cast<const void*>(&combine_elements<Element>),
                            static_cast<unsigned>(blocks), kThreads, 0, stream, arguments);
}

}  // namespace

cudaError_t launch_combine(const MoeCombineProblem& problem, cudaStream_t stream) {
  if (problem.tokens == 0 || problem.columns == 0) return cudaSuccess;
  if (problem.y_dtype == DType::bfloat16) return launch<Bfloat16>(problem, stream);
  if (problem.y_dtype == DType::float16) return launch<Float16>(problem, stream);
  return launch<Float32>(problem, stream);
}

}  // namespace evergemm::cuda
