// SPDX-License-Identifier: Apache-2.0
// A row on its way to eight bits in the registers of a few warps: loads, values, scale, stores. Included by the kernels that
// move rows (moe_rows.cu, moe_few_tokens.cu). Must not go here: which row, where to, launches.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/moe_kernels.h"
#include "cuda/quantize_values.cuh"

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

  static __device__ __forceinline__ int vector(int i) { return static_cast<int>(threadIdx.x + i * blockDim.x); }

  __device__ __forceinline__ void load(const QuantizeProblem& p, std::int64_t source) {
    const auto* x = static_cast<const typename Element::Bits*>(p.x) + source * p.x_stride;
    const int last = static_cast<int>(p.columns / kVector) - 1;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) first[i] = Vector<Element>::load(x, min(vector(i), last) * kVector);
    if constexpr (kActivation) {
      if (!p.gated) return;
#pragma unroll
      for (int i = 0; i < kVectors; ++i) up[i] = Vector<Element>::load(x, p.columns + min(vector(i), last) * kVector);
    }
  }

  __device__ __forceinline__ void widen(const RoutedRows& r, std::int64_t row,
                                        float (&values)[kVectors][kVector]) const {
    const QuantizeProblem& p = r.quantize;
    if constexpr (kActivation) {
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        first[i].widen(values[i]);
#pragma unroll
        for (int e = 0; e < kVector; ++e) values[i][e] = activated(p.activation, values[i][e]);
        if (!p.gated) continue;
        float factor[kVector];
        up[i].widen(factor);
#pragma unroll
        for (int e = 0; e < kVector; ++e) values[i][e] = numerics::mul32(values[i][e], factor[e]);
      }
    } else {
      const float weight =
          r.row_weights == nullptr ? 1.0f : rounded<Element>(r.row_weights[row * r.row_weights_stride]);
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        first[i].widen(values[i]);
        if (r.row_weights == nullptr) continue;
#pragma unroll
        for (int e = 0; e < kVector; ++e) values[i][e] = rounded<Element>(numerics::mul32(values[i][e], weight));
      }
    }
  }
};

// Scales, rounds and stores a row. one_scale: of the schemes that have one. lanes: that share a scale block within a row, or 0
// where the block is the whole row. stores: false for threads that only take part. exists: false for a row of zeros.
// scratch: a word a warp of the block. destinations(body) calls body(row of q) for each place that the row goes to.
template <int kVectors, class Destinations>
__device__ __forceinline__ void write_row(const RoutedRows& r, const float (&values)[kVectors][kVector], int lanes,
                                          float one_scale, bool stores, bool exists, std::uint32_t* scratch,
                                          const Destinations& destinations) {
  const QuantizeProblem& p = r.quantize;
  const bool given = p.scheme == QuantizeScheme::with_given_scale, of_tensor = p.scheme == QuantizeScheme::per_tensor;
  const bool of_row = !given && !of_tensor && lanes == 0;
  if (of_row) {
    std::uint32_t absmax = 0;
#pragma unroll
    for (int i = 0; i < kVectors; ++i)
#pragma unroll
      for (int e = 0; e < kVector; ++e) absmax = max(absmax, magnitude_bits(values[i][e]));
    absmax = warp_maximum(absmax);
    if (blockDim.x > kWarp) {
      const unsigned row_warps = blockDim.x / kWarp, lane = threadIdx.x % kWarp;
      std::uint32_t* const of_warps = scratch + threadIdx.y * row_warps;
      if (lane == 0) of_warps[threadIdx.x / kWarp] = absmax;
      __syncthreads();
      absmax = warp_maximum(lane < row_warps ? of_warps[lane] : 0u);
    }
    one_scale = scale_of_block(p, absmax);
    if (stores && threadIdx.x == 0) destinations([&](std::int64_t to) { store_scale(p, to, 0, one_scale); });
  }
  const int vectors = static_cast<int>(p.columns / kVector);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int vector = static_cast<int>(threadIdx.x + i * blockDim.x);
    const bool stores_vector = stores && vector < vectors;
    float scale = one_scale;
    if (!given && !of_tensor && !of_row) {
      std::uint32_t absmax = 0;
#pragma unroll
      for (int e = 0; e < kVector; ++e) absmax = max(absmax, magnitude_bits(values[i][e]));
      for (int distance = lanes / 2; distance > 0; distance /= 2)
        absmax = max(absmax, __shfl_xor_sync(~0u, absmax, distance));
      scale = scale_of_block(p, absmax);
      const int group_shift = __ffs(lanes) - 1;
      if (stores_vector && vector % lanes == 0)
        destinations([&](std::int64_t to) { store_scale(p, to, vector >> group_shift, scale); });
    }
    float quotients[kVector];
    Divider(scale).divide(values[i], quotients, given);
    std::uint32_t words[2] = {0u, 0u};
    if (exists) {  // whatever the one scale is (NaN too), a row that nothing is gathered for is 0
#pragma unroll
      for (int w = 0; w < 2; ++w) {
        const float* four = &quotients[w * 4];
        words[w] =
            p.q_dtype == DType::int8
                ? round_int8(four[0]) | round_int8(four[1]) << 8 | round_int8(four[2]) << 16 | round_int8(four[3]) << 24
                : round_float8_pair(four[0], four[1]) | round_float8_pair(four[2], four[3]) << 16;
      }
    }
    if (stores_vector)
      destinations([&](std::int64_t to) {
        *reinterpret_cast<uint2*>(static_cast<std::uint8_t*>(p.q) + to * p.q_stride + vector * kVector) =
            make_uint2(words[0], words[1]);
      });
  }
}

}  // namespace evergemm::cuda
