// SPDX-License-Identifier: Apache-2.0
// fp8 GEMM with AVX-512, written once for the two ways to turn fp8 codes into fp32: gemm_avx512.cpp computes them,
// gemm_avx512_vbmi.cpp looks them up. Included by those two files only, each compiled for its instruction set; all of
// it stays in the unnamed namespace, so that each has its own copy.
//
// Codes is the conversion:
//   static void of_quads(__m512i codes, __m512 (&values)[4]);   // values[j] = byte j of each dword
//   static void in_order(__m512i codes, __m512 (&values)[4]);   // values[j] = bytes 16 j .. 16 j + 15
#pragma once
#include "cpu/gemm_avx512_output.h"
#include "cpu/gemm_avx512_transpose.h"
#include "cpu/gemm_block.h"

namespace evergemm::cpu {
namespace {

// One row of a block: out = scale_a * (scale_b * sums) + bias, or sums + bias where the sums are scaled by block already.
inline void finish_row(const GemmProblem& problem, const ColumnValues& values, std::int64_t row, std::int64_t column,
                       std::int64_t count, const float* sums) {
  const bool has_bias = problem.bias != nullptr;
  if (problem.scale_a.mode == ScaleMode::BlockWise1x128) {
    store_row(problem, row, column, count, [&](std::int64_t j) {
      const __m512 sum = _mm512_load_ps(sums + j);
      return has_bias ? _mm512_add_ps(sum, _mm512_load_ps(values.bias + j)) : sum;
    });
    return;
  }
  const __m512 scale_a = _mm512_set1_ps(problem.scale_a.data[row * problem.scale_a.outer_stride]);
  store_row(problem, row, column, count, [&](std::int64_t j) {
    const __m512 t = _mm512_mul_ps(_mm512_load_ps(values.scale_b + j), _mm512_load_ps(sums + j));
    return has_bias ? _mm512_fmadd_ps(scale_a, t, _mm512_load_ps(values.bias + j)) : _mm512_mul_ps(scale_a, t);
  });
}

// depth of k of up to 16 columns -> fp32 [depth up to a multiple of 64][16], rows of the result `pitch` apart; zeros
// beyond the last column and k.
template <class Codes>
inline void pack_columns(const std::uint8_t* b, std::int64_t b_stride, std::int64_t columns, std::int64_t depth,
                         float* packed, std::int64_t pitch) {
  for (std::int64_t l = 0; l < depth; l += 64) {
    prefetch_rows(b + l, b_stride);
    __m512i quads[16];
    load_transposed(b + l, b_stride, columns, depth - l, quads);
#pragma GCC unroll 16
    for (int q = 0; q < 16; ++q) {
      __m512 values[4];
      Codes::of_quads(quads[q], values);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) _mm512_store_ps(packed + (l + 4 * q + v) * pitch, values[v]);
    }
  }
}

// ---- multiplication ----

// One kernel for blocks of rows (2 vectors of columns a panel, up to 14 rows a tile: 28 sums) and one for few rows
// (4 vectors, up to 6 rows: at one row, 4 sums that do not wait for each other).
template <class Codes, int Vectors, int Panels, int MaxTileRows, int Depth, int MaxBlockRows>
struct Fp8Gemm {
  static constexpr std::int64_t kPanelColumns = 16 * Vectors;
  static constexpr std::int64_t kColumns = kPanelColumns * Panels;  // of a block
  static constexpr std::int64_t kTileRows = MaxTileRows;
  static constexpr std::int64_t kDepth = Depth;           // of k packed at a time, whole scale blocks
  static constexpr std::int64_t kRowPitch = Depth + 64;   // floats; not a power of two: rows spread over cache sets
  static constexpr std::int64_t kMaxRows = MaxBlockRows;  // of a block
  static_assert(kDepth % kScaleBlock == 0 && kScaleBlock % 64 == 0);

  static constexpr Splitting splitting(std::int64_t products_per_piece) {
    return Splitting{kPanelColumns, Panels, kTileRows, kMaxRows, products_per_piece};
  }

  struct Buffers {
    alignas(64) float packed[Panels][kDepth][kPanelColumns];
    alignas(64) float a[kTileRows][kRowPitch];
    alignas(64) float sums[kMaxRows][kColumns];
  };

  // One scale block of k, ascending: tile = sum a * b from 0; then sums = fma(scale, tile, sums), or sums + tile where
  // scales are null.
  template <int Rows>
  static void multiply_tile(const float* a, const float* packed, std::int64_t depth, const float* scales, float* sums) {
    __m512 sum[Rows][Vectors];
#pragma GCC unroll 14
    for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sum[i][v] = _mm512_setzero_ps();
    }
    for (std::int64_t l = 0; l < depth; ++l) {
      __m512 b[Vectors];
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) b[v] = _mm512_load_ps(packed + 16 * v);
#pragma GCC unroll 14
      for (int i = 0; i < Rows; ++i) {
        const __m512 a1 = _mm512_set1_ps(a[i * kRowPitch]);
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) sum[i][v] = _mm512_fmadd_ps(a1, b[v], sum[i][v]);
      }
      packed += kPanelColumns;
      ++a;
    }
#pragma GCC unroll 14
    for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) {
        float* to = sums + i * kColumns + 16 * v;
        const __m512 old = _mm512_load_ps(to);
        _mm512_store_ps(to, scales == nullptr ? _mm512_add_ps(old, sum[i][v])
                                              : _mm512_fmadd_ps(_mm512_set1_ps(scales[i]), sum[i][v], old));
      }
    }
  }

  // The tile kernel for a number of rows, found by counting down.
  template <int Rows>
  static void multiply_rows(std::int64_t rows, const float* a, const float* packed, std::int64_t depth,
                            const float* scales, float* sums) {
    if constexpr (Rows > 1) {
      if (rows < Rows) return multiply_rows<Rows - 1>(rows, a, packed, depth, scales, sums);
    }
    multiply_tile<Rows>(a, packed, depth, scales, sums);
  }

  static void run_block(const GemmProblem& problem, const Block& block) {
    Buffers buffers;
    ColumnValues values;
    load_columns(problem, block.column_begin, block.column_end, values);
    const bool blockwise = problem.scale_a.mode == ScaleMode::BlockWise1x128;
    const std::int64_t columns = block.column_end - block.column_begin;
    for (std::int64_t i = 0; i < block.row_end - block.row_begin; ++i) {
      for (std::int64_t j = 0; j < kColumns; j += 16) _mm512_store_ps(&buffers.sums[i][j], _mm512_setzero_ps());
    }
    for (std::int64_t k_begin = 0; k_begin < problem.k; k_begin += kDepth) {
      const std::int64_t depth = smaller(kDepth, problem.k - k_begin);
      const std::uint8_t* b =
          static_cast<const std::uint8_t*>(problem.b) + block.column_begin * problem.b_stride + k_begin;
      for (std::int64_t j = 0; j < (columns + kPanelColumns - 1) / kPanelColumns * kPanelColumns; j += 16) {
        pack_columns<Codes>(b + j * problem.b_stride, problem.b_stride, columns - j, depth,
                            &buffers.packed[j / kPanelColumns][0][j % kPanelColumns], kPanelColumns);
      }
      for (std::int64_t row = block.row_begin; row < block.row_end;) {
        // as equal as possible: 32 rows are 11 + 11 + 10, not 14 + 14 + 4
        const std::int64_t left = block.row_end - row;
        const std::int64_t tiles = (left + kTileRows - 1) / kTileRows;
        const std::int64_t rows = (left + tiles - 1) / tiles;
        for (std::int64_t i = 0; i < rows; ++i) {
          const std::uint8_t* a = static_cast<const std::uint8_t*>(problem.a) + (row + i) * problem.a_stride + k_begin;
          for (std::int64_t l = 0; l < depth; l += 64) {
            __m512 converted[4];
            Codes::in_order(_mm512_maskz_loadu_epi8(first_bytes(depth - l), a + l), converted);
#pragma GCC unroll 4
            for (int v = 0; v < 4; ++v) _mm512_store_ps(&buffers.a[i][l + 16 * v], converted[v]);
          }
        }
        for (std::int64_t l = 0; l < depth; l += kScaleBlock) {
          float scales[kTileRows];
          if (blockwise) {
            const std::int64_t k_block = (k_begin + l) / kScaleBlock;
            const float scale_b = problem.scale_b.data[block.column_begin / kScaleBlock * problem.scale_b.outer_stride +
                                                       k_block * problem.scale_b.k_stride];
            for (std::int64_t i = 0; i < rows; ++i) {
              scales[i] =
                  problem.scale_a.data[(row + i) * problem.scale_a.outer_stride + k_block * problem.scale_a.k_stride] *
                  scale_b;
            }
          }
          for (std::int64_t j = 0; j < columns; j += kPanelColumns) {
            multiply_rows<MaxTileRows>(rows, &buffers.a[0][l], &buffers.packed[j / kPanelColumns][l][0],
                                       smaller(kScaleBlock, depth - l), blockwise ? scales : nullptr,
                                       &buffers.sums[row - block.row_begin][j]);
          }
        }
        row += rows;
      }
    }
    for (std::int64_t row = block.row_begin; row < block.row_end; ++row) {
      finish_row(problem, values, row, block.column_begin, columns, buffers.sums[row - block.row_begin]);
    }
  }
};

// 128 KiB of packed b and 126 KiB of sums: a quarter of a 1 MiB L2.
template <class Codes>
using PanelGemm = Fp8Gemm<Codes, 2, 4, 14, 256, 18 * 14>;
// 32 KiB of packed b, one scale block deep: it stays in a 48 KiB L1.
template <class Codes>
using DotGemm = Fp8Gemm<Codes, 4, 1, 6, 128, 24>;

}  // namespace
}  // namespace evergemm::cpu
