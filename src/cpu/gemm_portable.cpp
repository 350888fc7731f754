// SPDX-License-Identifier: Apache-2.0
// int8 and fp8 GEMM for any processor: plain loops over small blocks, shaped so that a compiler can use the vectors
// that every processor of its target has. Must not go here: intrinsics.
#include <algorithm>

#include "cpu/gemm_block.h"
#include "cpu/gemm_kernels.h"
#include "evergemm/numerics.h"

namespace evergemm::cpu {
namespace {

constexpr std::int64_t kMaxRows = 64;  // of a block: sums of 64 x 128 are 32 KiB
constexpr std::int64_t kDepth = 128;   // of k at a time: a scale block
constexpr std::int64_t kPanelColumns = 8;
constexpr std::int64_t kTileRows = 4;

// out = value rounded once to the output type.
void store(const GemmProblem& problem, std::int64_t row, std::int64_t column, float value) {
  const std::int64_t at = row * problem.out_stride + column;
  if (problem.output_dtype == DType::float32) {
    static_cast<float*>(problem.out)[at] = value;
  } else if (problem.output_dtype == DType::float16) {
    static_cast<std::uint16_t*>(problem.out)[at] = numerics::float_to_float16(value);
  } else {
    static_cast<std::uint16_t*>(problem.out)[at] = numerics::float_to_bfloat16(value);
  }
}

// out = scale_a * (scale_b * sum) + bias; a zero point without bias adds +0.
void store_scaled(const GemmProblem& problem, const ColumnValues& values, std::int64_t row, std::int64_t column,
                  std::int64_t j, float sum) {
  const float scale_a = problem.scale_a.data[row * problem.scale_a.outer_stride];
  const float t = numerics::mul32(values.scale_b[j], sum);
  const bool adds_bias = problem.bias != nullptr || problem.has_azp;
  store(problem, row, column, adds_bias ? numerics::fma32(scale_a, t, values.bias[j]) : numerics::mul32(scale_a, t));
}

// ---- int8 ----

struct Int8Buffers {
  alignas(64) std::int16_t b[kBlockColumns][kDepth];  // widened; zero beyond k
  alignas(64) std::int16_t a[kDepth];
  alignas(64) std::uint32_t sums[kMaxRows][kBlockColumns];  // modulo 2^32
};

void widen(const std::int8_t* from, std::int64_t depth, std::int16_t* to) {
  for (std::int64_t l = 0; l < depth; ++l) to[l] = from[l];
  for (std::int64_t l = depth; l < kDepth; ++l) to[l] = 0;
}

// sums[4] += one row of a times four columns of b, kDepth of k: 128 products of 2^14 stay far below 2^31.
void add_dots(const std::int16_t* a, const std::int16_t (*b)[kDepth], std::uint32_t* sums) {
  std::int32_t sum0 = 0, sum1 = 0, sum2 = 0, sum3 = 0;
  for (std::int64_t l = 0; l < kDepth; ++l) {
    sum0 += std::int32_t{a[l]} * b[0][l];
    sum1 += std::int32_t{a[l]} * b[1][l];
    sum2 += std::int32_t{a[l]} * b[2][l];
    sum3 += std::int32_t{a[l]} * b[3][l];
  }
  sums[0] += static_cast<std::uint32_t>(sum0);
  sums[1] += static_cast<std::uint32_t>(sum1);
  sums[2] += static_cast<std::uint32_t>(sum2);
  sums[3] += static_cast<std::uint32_t>(sum3);
}

void int8_block(const GemmProblem& problem, const Block& block) {
  Int8Buffers buffers;
  ColumnValues values;
  load_columns(problem, block.column_begin, block.column_end, values);
  const std::int64_t rows = block.row_end - block.row_begin, columns = block.column_end - block.column_begin;
  const std::int64_t padded_columns = (columns + kPanelColumns - 1) / kPanelColumns * kPanelColumns;
  for (std::int64_t i = 0; i < rows; ++i) std::fill_n(buffers.sums[i], padded_columns, 0u);
  for (std::int64_t k_begin = 0; k_begin < problem.k; k_begin += kDepth) {
    const std::int64_t depth = std::min(kDepth, problem.k - k_begin);
    for (std::int64_t j = 0; j < columns; ++j) {
      widen(static_cast<const std::int8_t*>(problem.b) + (block.column_begin + j) * problem.b_stride + k_begin, depth,
            buffers.b[j]);
    }
    for (std::int64_t j = columns; j < padded_columns; ++j) std::fill_n(buffers.b[j], kDepth, std::int16_t{0});
    for (std::int64_t i = 0; i < rows; ++i) {
      widen(static_cast<const std::int8_t*>(problem.a) + (block.row_begin + i) * problem.a_stride + k_begin, depth,
            buffers.a);
      for (std::int64_t j = 0; j < columns; j += 4) add_dots(buffers.a, &buffers.b[j], &buffers.sums[i][j]);
    }
  }
  for (std::int64_t i = 0; i < rows; ++i) {
    const std::int64_t row = block.row_begin + i;
    const std::uint32_t azp =
        problem.azp == nullptr ? 1u : static_cast<std::uint32_t>(problem.azp[row * problem.azp_stride]);
    for (std::int64_t j = 0; j < columns; ++j) {
      std::uint32_t sum = buffers.sums[i][j];
      if (problem.has_azp) sum -= azp * static_cast<std::uint32_t>(values.azp_adj[j]);
      store_scaled(problem, values, row, block.column_begin + j, j, static_cast<float>(static_cast<std::int32_t>(sum)));
    }
  }
}

// ---- fp8 ----

struct Fp8Buffers {
  alignas(64) float b[kDepth][kBlockColumns];
  alignas(64) float a[kTileRows][kDepth];
  alignas(64) float sums[kMaxRows][kBlockColumns];
};

// tile[4][8] = sum over k, ascending, in fp32. A product of two fp8 values has 8 significant bits, so it is exact, and
// a multiplication and an addition round as one fma would: no processor is asked for an fma that it may not have.
void multiply_tile(const float (*a)[kDepth], const float (*b)[kBlockColumns], std::int64_t depth,
                   float (*tile)[kPanelColumns]) {
  float sum[kTileRows][kPanelColumns] = {};
  for (std::int64_t l = 0; l < depth; ++l) {
    for (std::int64_t i = 0; i < kTileRows; ++i) {
      for (std::int64_t j = 0; j < kPanelColumns; ++j) {
        sum[i][j] = numerics::add32(sum[i][j], numerics::mul32(a[i][l], b[l][j]));
      }
    }
  }
  for (std::int64_t i = 0; i < kTileRows; ++i) std::copy_n(sum[i], kPanelColumns, tile[i]);
}

void fp8_block(const GemmProblem& problem, const Block& block) {
  Fp8Buffers buffers;
  ColumnValues values;
  load_columns(problem, block.column_begin, block.column_end, values);
  const bool blockwise = problem.blockwise();
  const std::int64_t rows = block.row_end - block.row_begin, columns = block.column_end - block.column_begin;
  const std::int64_t padded_columns = (columns + kPanelColumns - 1) / kPanelColumns * kPanelColumns;
  for (std::int64_t i = 0; i < rows; ++i) std::fill_n(buffers.sums[i], padded_columns, 0.0f);
  for (std::int64_t k_begin = 0; k_begin < problem.k; k_begin += kDepth) {
    const std::int64_t depth = std::min(kDepth, problem.k - k_begin);
    for (std::int64_t j = 0; j < columns; ++j) {
      const std::uint8_t* b =
          static_cast<const std::uint8_t*>(problem.b) + (block.column_begin + j) * problem.b_stride + k_begin;
      for (std::int64_t l = 0; l < depth; ++l) buffers.b[l][j] = numerics::float8_e4m3fn_to_float(b[l]);
    }
    for (std::int64_t l = 0; l < depth; ++l) std::fill(buffers.b[l] + columns, buffers.b[l] + padded_columns, 0.0f);
    const std::int64_t k_block = k_begin / kScaleBlock;
    const float scale_b = blockwise
                              ? problem.scale_b.data[block.column_begin / kScaleBlock * problem.scale_b.outer_stride +
                                                     k_block * problem.scale_b.k_stride]
                              : 0.0f;
    for (std::int64_t first = 0; first < rows; first += kTileRows) {
      const std::int64_t tile_rows = std::min(kTileRows, rows - first);
      for (std::int64_t i = 0; i < tile_rows; ++i) {
        const std::uint8_t* a =
            static_cast<const std::uint8_t*>(problem.a) + (block.row_begin + first + i) * problem.a_stride + k_begin;
        for (std::int64_t l = 0; l < depth; ++l) buffers.a[i][l] = numerics::float8_e4m3fn_to_float(a[l]);
      }
      for (std::int64_t i = tile_rows; i < kTileRows; ++i) std::fill_n(buffers.a[i], depth, 0.0f);
      for (std::int64_t j = 0; j < columns; j += kPanelColumns) {
        float tile[kTileRows][kPanelColumns];
        multiply_tile(buffers.a, reinterpret_cast<const float (*)[kBlockColumns]>(&buffers.b[0][j]), depth, tile);
        for (std::int64_t i = 0; i < tile_rows; ++i) {
          float* sums = &buffers.sums[first + i][j];
          if (blockwise) {
            const float scale_a = problem.scale_a.data[(block.row_begin + first + i) * problem.scale_a.outer_stride +
                                                       k_block * problem.scale_a.k_stride];
            const float scale = numerics::mul32(scale_a, scale_b);
            for (std::int64_t c = 0; c < kPanelColumns; ++c) sums[c] = numerics::fma32(scale, tile[i][c], sums[c]);
          } else {
            for (std::int64_t c = 0; c < kPanelColumns; ++c) sums[c] = numerics::add32(sums[c], tile[i][c]);
          }
        }
      }
    }
  }
  for (std::int64_t i = 0; i < rows; ++i) {
    const std::int64_t row = block.row_begin + i;
    for (std::int64_t j = 0; j < columns; ++j) {
      const float sum = buffers.sums[i][j];
      if (blockwise) {
        store(problem, row, block.column_begin + j,
              problem.bias == nullptr ? sum : numerics::add32(sum, values.bias[j]));
      } else {
        store_scaled(problem, values, row, block.column_begin + j, j, sum);
      }
    }
  }
}

constexpr Splitting kSplitting = {kPanelColumns, kBlockColumns / kPanelColumns, kTileRows, kMaxRows, 1 << 16};

}  // namespace

void gemm_int8_portable_panel(const GemmProblem& problem, const RunContext& context) {
  for_each_block(problem, context, kSplitting, int8_block);
}

void gemm_fp8_portable_panel(const GemmProblem& problem, const RunContext& context) {
  for_each_block(problem, context, kSplitting, fp8_block);
}

}  // namespace evergemm::cpu
