// SPDX-License-Identifier: Apache-2.0
// A row on its way to eight bits in the registers of a few warps: loads, values, scales, bytes, stores. Included by the kernels
// that move rows (moe_rows.cu, moe_few_tokens.cu). Short in instructions: a step of a decoded token takes no longer than its
// code takes to arrive. Must not go here: which row, where to, launches.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/moe_kernels.h"
#include "cuda/quantize_values.cuh"
#include "cuda/quantize_vector.cuh"

namespace evergemm::cuda {

template <class Element>
__device__ __forceinline__ float rounded(float value) {
  return Element::widen(Element::narrow(value));
}

// blockDim.x threads have a row, kVectors vectors each. Those past the row's end compute with its last vector and store
// nothing, so that nothing branches between the loads and all of them are in flight together.
template <class Element, bool kActivation, int kVectors>
struct RowInputs {
  Vector<Element> first[kVectors], up[kActivation ? kVectors : 1];

  __device__ __forceinline__ void load(const QuantizeProblem& p, std::int64_t source) {
    const auto* x = static_cast<const typename Element::Bits*>(p.x) + source * p.x_stride;
    const int last = static_cast<int>(p.columns / kVector) - 1;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int at = min(static_cast<int>(threadIdx.x + i * blockDim.x), last) * kVector;
      first[i] = Vector<Element>::load(x, at);
      if constexpr (kActivation)
        if (p.gated) up[i] = Vector<Element>::load(x, p.columns + at);
    }
  }

  __device__ __forceinline__ void widen(const RoutedRows& r, std::int64_t row,
                                        float (&values)[kVectors][kVector]) const {
    if constexpr (kActivation) {
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        activate(r.quantize.activation, first[i], values[i]);
        if (!r.quantize.gated) continue;
        float factor[kVector];
        up[i].widen(factor);
#pragma unroll
        for (int e = 0; e < kVector; ++e) values[i][e] = numerics::mul32(values[i][e], factor[e]);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kVectors; ++i) first[i].widen(values[i]);
      if (r.row_weights == nullptr) return;
      const float weight = rounded<Element>(r.row_weights[row * r.row_weights_stride]);
#pragma unroll
      for (int i = 0; i < kVectors; ++i)
#pragma unroll
        for (int e = 0; e < kVector; ++e) values[i][e] = rounded<Element>(numerics::mul32(values[i][e], weight));
    }
  }
};

// What a thread has of a finished row.
template <int kVectors>
struct RowBytes {
  uint2 words[kVectors];
  float scales[kVectors];
};

// How many lanes share a scale within a row; or one of these.
inline constexpr int kWholeRow = 0, kOneScale = -1,
                     kOneBoundedScale = -2;  // bounded: it is that of values which include these

// one_scale: of kOneScale and kOneBoundedScale. scratch: a word a warp of the block. kSixteenBits: the values are those of a 16-bit type.
template <bool kInt8, bool kSixteenBits, int kVectors>
__device__ __forceinline__ RowBytes<kVectors> quantize_row(const float (&values)[kVectors][kVector], int lanes,
                                                           float one_scale, std::uint32_t* scratch) {
  constexpr float kMost = kInt8 ? 127.0f : numerics::kFloat8E4m3fnMax;
  RowBytes<kVectors> row;
  if (lanes > 0) {
    std::uint32_t maxima[kVectors];
#pragma unroll
    for (int i = 0; i < kVectors; ++i) maxima[i] = largest_bits(values[i], 0);
#pragma unroll 1
    for (int distance = lanes / 2; distance > 0; distance /= 2)
#pragma unroll
      for (int i = 0; i < kVectors; ++i) maxima[i] = max(maxima[i], __shfl_xor_sync(~0u, maxima[i], distance));
#pragma unroll
    for (int i = 0; i < kVectors; ++i) row.scales[i] = numerics::scale_of(__uint_as_float(maxima[i]), kMost);
  } else {
    if (lanes == kWholeRow) {
      std::uint32_t largest = 0;
#pragma unroll
      for (int i = 0; i < kVectors; ++i) largest = largest_bits(values[i], largest);
      largest = warp_maximum(largest);
      if (blockDim.x > kWarp) {
        const unsigned row_warps = blockDim.x / kWarp, lane = threadIdx.x % kWarp;
        std::uint32_t* const of_warps = scratch + threadIdx.y * row_warps;
        if (lane == 0) of_warps[threadIdx.x / kWarp] = largest;
        __syncthreads();
        largest = warp_maximum(lane < row_warps ? of_warps[lane] : 0u);
      }
      one_scale = numerics::scale_of(__uint_as_float(largest), kMost);
    }
#pragma unroll
    for (int i = 0; i < kVectors; ++i) row.scales[i] = one_scale;
  }
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const Bracket bracket(row.scales[i]);
    row.words[i] = kInt8 ? to_int8<kSixteenBits>(values[i], bracket, lanes != kOneScale)
                         : to_float8<kSixteenBits>(values[i], bracket, lanes != kOneScale);
  }
  return row;
}

template <int kVectors>
__device__ __forceinline__ void store_row(const QuantizeProblem& p, const RowBytes<kVectors>& row, int lanes,
                                          std::int64_t to) {
  auto* const q = static_cast<std::uint8_t*>(p.q) + to * p.q_stride;
  float* const scale = static_cast<float*>(p.scale) + to * p.scale_row_stride;
  const int columns = static_cast<int>(p.columns);
  if (lanes == kWholeRow && threadIdx.x == 0) *scale = row.scales[0];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int vector = static_cast<int>(threadIdx.x + i * blockDim.x);
    if (vector * kVector >= columns) continue;
    *reinterpret_cast<uint2*>(q + vector * kVector) = row.words[i];
    if (lanes > 0 && (vector & (lanes - 1)) == 0)
      scale[(vector >> (__ffs(lanes) - 1)) * p.scale_group_stride] = row.scales[i];
  }
}

}  // namespace evergemm::cuda
