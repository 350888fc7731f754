// SPDX-License-Identifier: Apache-2.0
// sm90_grouped_simple: the plain kernel behind the grouped tensor-core rows. Any shape, any stride, any alignment; loads a byte at a
// time and multiplies in int32 or fp32, in the order of the reference: sums of 128 of k, ascending, added to the total.
// Must not go here: anything that makes it fast at the price of a case that it cannot run.
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "cuda/sm90/expert_problem.cuh"
#include "cuda/sm90/instances.h"
#include "evergemm/moe_index.h"
#include "evergemm/numerics.h"
#include "evergemm/problem.h"

namespace evergemm::sm90 {
namespace {

constexpr int kDepth = 32;     // of k, staged at a time; divides a scale block
constexpr int kPerThread = 4;  // outputs a thread has along each side

__device__ __forceinline__ float operand(const std::uint8_t* at, float) {
  return numerics::float8_e4m3fn_to_float(*at);
}
__device__ __forceinline__ std::int32_t operand(const std::uint8_t* at, std::int32_t) {
  return static_cast<std::int8_t>(*at);
}
__device__ __forceinline__ float multiply_add(float a, float b, float sum) { return numerics::fma32(a, b, sum); }
__device__ __forceinline__ std::int32_t multiply_add(std::int32_t a, std::int32_t b, std::int32_t sum) {
  return a * b + sum;
}

__device__ __forceinline__ float load_bias(const GemmProblem& p, std::int64_t column) {
  const std::int64_t at = column * p.bias_stride;
  if (p.output_dtype == DType::float32) return static_cast<const float*>(p.bias)[at];
  const std::uint16_t bits = static_cast<const std::uint16_t*>(p.bias)[at];
  return p.output_dtype == DType::float16 ? numerics::float16_to_float(bits) : numerics::bfloat16_to_float(bits);
}

__device__ __forceinline__ void store(const GemmProblem& p, std::int64_t row, std::int64_t column, float value) {
  const std::int64_t at = row * p.out_stride + column;
  if (p.output_dtype == DType::float32)
    static_cast<float*>(p.out)[at] = value;
  else
    static_cast<std::uint16_t*>(p.out)[at] =
        p.output_dtype == DType::float16 ? numerics::float_to_float16(value) : numerics::float_to_bfloat16(value);
}

template <class Number>  // float or int32: of operands in shared memory and of a block's sum
__device__ __forceinline__ void compute_tile(const GemmProblem& p, std::int64_t first_row, std::int64_t first_column,
                                             Number (&a_tile)[kDepth][kSimpleTile + 1],
                                             Number (&b_tile)[kDepth][kSimpleTile + 1]) {
  constexpr bool kFloat = std::is_same_v<Number, float>;
  const std::uint8_t* a = static_cast<const std::uint8_t*>(p.a);
  const std::uint8_t* b = static_cast<const std::uint8_t*>(p.b);
  const int row0 = threadIdx.x / 16 * kPerThread, column0 = threadIdx.x % 16 * kPerThread;
  Number block_sum[kPerThread][kPerThread] = {};
  float total[kPerThread][kPerThread] = {};  // fp8 only

  for (std::int64_t k0 = 0; k0 < p.k; k0 += kDepth) {
    __syncthreads();
    for (int i = threadIdx.x; i < kSimpleTile * kDepth; i += kSimpleThreads) {
      const int depth = i % kDepth, line = i / kDepth;
      const bool inside = k0 + depth < p.k;
      a_tile[depth][line] = inside && first_row + line < p.m
                                ? operand(a + (first_row + line) * p.a_stride + k0 + depth, Number())
                                : Number(0);
      b_tile[depth][line] = inside && first_column + line < p.n
                                ? operand(b + (first_column + line) * p.b_stride + k0 + depth, Number())
                                : Number(0);
    }
    __syncthreads();
    const int depths = p.k - k0 < kDepth ? static_cast<int>(p.k - k0) : kDepth;
    for (int depth = 0; depth < depths; ++depth) {
      Number column_values[kPerThread];
#pragma unroll
      for (int j = 0; j < kPerThread; ++j) column_values[j] = b_tile[depth][column0 + j];
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) {
        const Number row_value = a_tile[depth][row0 + i];
#pragma unroll
        for (int j = 0; j < kPerThread; ++j)
          block_sum[i][j] = multiply_add(row_value, column_values[j], block_sum[i][j]);
      }
    }
    if constexpr (kFloat) {
      if ((k0 + kDepth) % kScaleBlock != 0 && k0 + kDepth < p.k) continue;
      const std::int64_t block = k0 / kScaleBlock;
#pragma unroll
      for (int i = 0; i < kPerThread; ++i)
#pragma unroll
        for (int j = 0; j < kPerThread; ++j) {
          const std::int64_t row = first_row + row0 + i, column = first_column + column0 + j;
          if (p.scale_a.mode == ScaleMode::BlockWise1x128) {
            if (row < p.m && column < p.n) {
              const float scale = numerics::mul32(
                  p.scale_a.data[row * p.scale_a.outer_stride + block * p.scale_a.k_stride],
                  p.scale_b.data[column / kScaleBlock * p.scale_b.outer_stride + block * p.scale_b.k_stride]);
              total[i][j] = numerics::fma32(scale, block_sum[i][j], total[i][j]);
            }
          } else {
            total[i][j] = numerics::add32(total[i][j], block_sum[i][j]);
          }
          block_sum[i][j] = 0;
        }
    }
  }

#pragma unroll
  for (int i = 0; i < kPerThread; ++i)
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
      const std::int64_t row = first_row + row0 + i, column = first_column + column0 + j;
      if (row >= p.m || column >= p.n) continue;
      float sum;
      if constexpr (kFloat) {
        sum = total[i][j];
      } else {
        std::uint32_t exact = static_cast<std::uint32_t>(block_sum[i][j]);
        if (p.has_azp)
          exact -= static_cast<std::uint32_t>(p.azp ? p.azp[row * p.azp_stride] : 1) *
                   static_cast<std::uint32_t>(p.azp_adj[column * p.azp_adj_stride]);
        sum = __int2float_rn(static_cast<std::int32_t>(exact));
      }
      const bool adds = p.bias != nullptr || p.has_azp;
      const float bias = p.bias ? load_bias(p, column) : 0.0f;
      if (p.scale_a.mode == ScaleMode::BlockWise1x128) {
        store(p, row, column, adds ? numerics::add32(sum, bias) : sum);
      } else {
        const float weighted = numerics::mul32(p.scale_b.data[column * p.scale_b.outer_stride], sum);
        const float scale_a = p.scale_a.data[row * p.scale_a.outer_stride];
        store(p, row, column, adds ? numerics::fma32(scale_a, weighted, bias) : numerics::mul32(scale_a, weighted));
      }
    }
}

}  // namespace
}  // namespace evergemm::sm90

namespace evergemm::sm90 {
namespace {

__device__ void clear_rows(const GroupedGemmProblem& p, std::int64_t expert, std::int64_t begin, std::int64_t end) {
  for (std::int64_t row = begin + blockIdx.x; row < end; row += gridDim.x)
    for (std::int64_t column = threadIdx.x; column < p.n; column += kSimpleThreads) {
      const std::int64_t at = expert * p.out_expert_stride + row * p.out_stride + column;
      if (p.output_dtype == DType::float32)
        static_cast<float*>(p.out)[at] = 0;
      else
        static_cast<std::uint16_t*>(p.out)[at] = 0;
    }
}

}  // namespace
}  // namespace evergemm::sm90

// Every block walks all experts, in order, and takes its tiles of those of all.
extern "C" __global__ void __launch_bounds__(evergemm::sm90::kSimpleThreads)
    sm90_grouped_simple(const __grid_constant__ evergemm::GroupedGemmProblem p) {
  using namespace evergemm;
  using sm90::kSimpleTile;
  __shared__ std::uint32_t a_words[sm90::kDepth][kSimpleTile + 1], b_words[sm90::kDepth][kSimpleTile + 1];
  asm volatile("griddepcontrol.wait;" ::: "memory");
  const std::int64_t tile_columns = (p.n + kSimpleTile - 1) / kSimpleTile;
  std::int64_t owned_end = 0, tiles_before = 0, cleared = 0;
  for (std::int64_t expert = 0; expert < p.experts; ++expert) {
    const ExpertShare share = next_share(p, expert, owned_end);
    if (p.clear_unowned && p.form == GroupedForm::masked)
      sm90::clear_rows(p, expert, share.rows, p.rows);
    else if (p.clear_unowned)
      sm90::clear_rows(p, 0, cleared, share.first_row);
    cleared = share.first_row + share.rows;
    const GemmProblem dense = sm90::expert_problem(p, expert, share);
    const std::int64_t tiles = (share.rows + kSimpleTile - 1) / kSimpleTile * tile_columns;
    const std::int64_t skipped = (blockIdx.x + gridDim.x - tiles_before % gridDim.x) % gridDim.x;
    for (std::int64_t tile = skipped; tile < tiles; tile += gridDim.x) {
      const std::int64_t row = tile / tile_columns * kSimpleTile, column = tile % tile_columns * kSimpleTile;
      if (p.input_dtype == DType::int8)
        sm90::compute_tile(dense, row, column,
                           reinterpret_cast<std::int32_t (&)[sm90::kDepth][kSimpleTile + 1]>(a_words),
                           reinterpret_cast<std::int32_t (&)[sm90::kDepth][kSimpleTile + 1]>(b_words));
      else
        sm90::compute_tile(dense, row, column, reinterpret_cast<float (&)[sm90::kDepth][kSimpleTile + 1]>(a_words),
                           reinterpret_cast<float (&)[sm90::kDepth][kSimpleTile + 1]>(b_words));
    }
    tiles_before += tiles;
  }
  if (p.clear_unowned && p.form != GroupedForm::masked) sm90::clear_rows(p, 0, cleared, p.rows);
}

namespace evergemm::sm90 {
const void* grouped_simple_kernel() { return reinterpret_cast<const void*>(&sm90_grouped_simple); }
}  // namespace evergemm::sm90
