// SPDX-License-Identifier: Apache-2.0
// The weighted sum over a token's choices, in ascending order with fp32 fma and one rounding: a thread owns its columns, so
// that nothing is shared and every run gives the same bits. Must not go here: anything else.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "cuda/device.h"
#include "cuda/fresh_index.cuh"
#include "cuda/moe_kernels.h"
#include "cuda/quantize_kernels.h"
#include "cuda/quantize_values.cuh"
#include "cuda/quantize_vector.cuh"

namespace evergemm::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kAhead = 8;                      // choices whose loads are in flight together
constexpr int kWarpColumns = kWarp * kVector;  // of a token
constexpr std::int64_t kMostBlocks = 1 << 20, kEnoughBlocks = 4 * 132;

// The row of a choice, or -1. Both pass by the L1: before the wait for the previous kernel it may hold older values.
__device__ __forceinline__ std::int64_t row_of(const MoeCombineProblem& p, std::int64_t token, std::int64_t choice) {
  const std::int64_t row =
      ReadThroughL2()(p.slot, p.slots_are_int64, token * p.slot_token_stride + choice * p.slot_choice_stride);
  return row >= 0 && row < p.rows ? row : -1;
}
__device__ __forceinline__ float weight_of(const MoeCombineProblem& p, std::int64_t token, std::int64_t choice) {
  return p.weights == nullptr ? 1.0f
                              : __ldcg(p.weights + token * p.weights_token_stride + choice * p.weights_choice_stride);
}

template <class Out>
__device__ __noinline__ void store_with_nans(typename Out::Bits* to, float4 first, float4 second) {
  const float values[kVector] = {first.x, first.y, first.z, first.w, second.x, second.y, second.z, second.w};
  for (int e = 0; e < kVector; ++e) to[e] = Out::narrow(values[e]);
}

template <class Out>
__device__ __forceinline__ void store_sums(void* out, std::int64_t at, const float (&sums)[kVector]) {
  auto* const to = static_cast<typename Out::Bits*>(out) + at;
  if constexpr (sizeof(typename Out::Bits) == 4) {
    reinterpret_cast<float4*>(to)[0] = make_float4(sums[0], sums[1], sums[2], sums[3]);
    reinterpret_cast<float4*>(to)[1] = make_float4(sums[4], sums[5], sums[6], sums[7]);
  } else if (largest_bits(sums, 0) > 0x7f800000u) {  // rare; instructions for pairs make another NaN than numerics.h
    store_with_nans<Out>(to, make_float4(sums[0], sums[1], sums[2], sums[3]),
                         make_float4(sums[4], sums[5], sums[6], sums[7]));
  } else {
    *reinterpret_cast<uint4*>(to) = make_uint4(Out::narrow_pair(sums[0], sums[1]), Out::narrow_pair(sums[2], sums[3]),
                                               Out::narrow_pair(sums[4], sums[5]), Out::narrow_pair(sums[6], sums[7]));
  }
}

// A warp has kWarpColumns columns of a token, a lane kVector of them. Lane c reads slot and weight of choice c for all.
template <class Element, class Out>
__global__ void __launch_bounds__(kThreads)
    combine_vectors(const __grid_constant__ MoeCombineProblem p, const bool early_slots) {
  const int lane = static_cast<int>(threadIdx.x);
  std::int64_t my_row = -1;  // of choice `lane` of the block's first token
  float my_weight = 0.0f;
  const auto read_choice = [&](std::int64_t token, std::int64_t choice) {
    my_row = choice < p.top_k ? row_of(p, token, choice) : -1;
    my_weight = choice < p.top_k ? weight_of(p, token, choice) : 0.0f;
  };
  if (early_slots) read_choice(blockIdx.x, lane);
  wait_for_previous_kernel();
  const std::int64_t column = (std::int64_t{blockIdx.y} * blockDim.y + threadIdx.y) * kWarpColumns + lane * kVector;
  const bool active = column < p.columns;
  for (std::int64_t token = blockIdx.x; token < p.tokens; token += gridDim.x) {
    float sums[kVector] = {};
    for (std::int64_t first = 0; first < p.top_k; first += kWarp) {
      if (!early_slots || token != blockIdx.x || first != 0) read_choice(token, first + lane);
#pragma unroll 1
      for (int c = 0; c < kWarp && first + c < p.top_k; c += kAhead) {
        Vector<Element> y[kAhead];
        float weight[kAhead];
        bool used[kAhead];
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
          const std::int64_t row = __shfl_sync(~0u, my_row, c + i);
          weight[i] = __shfl_sync(~0u, my_weight, c + i);
          used[i] = row >= 0 && active;
          if (used[i]) y[i] = Vector<Element>::load(p.y, row * p.y_stride + column);
        }
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
          if (!used[i]) continue;
          float values[kVector];
          y[i].widen(values);
#pragma unroll
          for (int e = 0; e < kVector; ++e) sums[e] = numerics::fma32(weight[i], values[e], sums[e]);
        }
      }
    }
    if (active) store_sums<Out>(p.out, token * p.columns + column, sums);
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
    else if (p.output_dtype == DType::float16)
      static_cast<std::uint16_t*>(p.out)[i] = Float16::narrow(sum);
    else
      static_cast<std::uint16_t*>(p.out)[i] = Bfloat16::narrow(sum);
  }
  allow_next_kernel();
}

template <class Element>
const void* kernel_of(DType out) {
  if (out == DType::bfloat16) return reinterpret_cast<const void*>(&combine_vectors<Element, Bfloat16>);
  if (out == DType::float16) return reinterpret_cast<const void*>(&combine_vectors<Element, Float16>);
  return reinterpret_cast<const void*>(&combine_vectors<Element, Float32>);
}

template <class Element>
cudaError_t launch(const MoeCombineProblem& problem, bool early_slots, cudaStream_t stream) {
  MoeCombineProblem p = problem;
  void* arguments[] = {&p, &early_slots};
  const std::int64_t chunks = (p.columns + kWarpColumns - 1) / kWarpColumns;
  constexpr std::int64_t kMostChunks = 65535;
  const bool by_vectors = p.columns % kVector == 0 && reinterpret_cast<std::uintptr_t>(p.y) % 16 == 0 &&
                          p.y_stride * size_in_bytes(p.y_dtype) % 16 == 0 &&
                          reinterpret_cast<std::uintptr_t>(p.out) % 16 == 0 && chunks <= kMostChunks;
  if (!by_vectors) {
    const std::int64_t blocks = std::min((p.tokens * p.columns + kThreads - 1) / kThreads, kMostBlocks);
    return launch_overlapping(reinterpret_cast<const void*>(&combine_elements<Element>), static_cast<unsigned>(blocks),
                              kThreads, 0, stream, arguments);
  }
  // Blocks of so few warps that every multiprocessor takes part, but of no fewer: starting blocks takes time, too.
  const std::int64_t warps =
      std::clamp<std::int64_t>(p.tokens * chunks / kEnoughBlocks, 1, std::min<std::int64_t>(chunks, kThreads / kWarp));
  cudaLaunchConfig_t config{};
  config.gridDim =
      dim3(static_cast<unsigned>(std::min(p.tokens, kMostBlocks)), static_cast<unsigned>((chunks + warps - 1) / warps));
  config.blockDim = dim3(kWarp, static_cast<unsigned>(warps));
  config.stream = stream;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = may_overlap() ? 1 : 0;
  return cudaLaunchKernelExC(&config, kernel_of<Element>(p.output_dtype), arguments);
}

}  // namespace

cudaError_t launch_combine(const MoeCombineProblem& problem, bool early_slots, cudaStream_t stream) {
  if (problem.tokens == 0 || problem.columns == 0) return cudaSuccess;
  if (problem.y_dtype == DType::bfloat16) return launch<Bfloat16>(problem, early_slots, stream);
  if (problem.y_dtype == DType::float16) return launch<Float16>(problem, early_slots, stream);
  return launch<Float32>(problem, early_slots, stream);
}

}  // namespace evergemm::cuda
