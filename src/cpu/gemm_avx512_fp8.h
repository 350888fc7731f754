// SPDX-License-Identifier: Apache-2.0
// fp8 GEMM with AVX-512, written once for the two ways to turn fp8 codes into fp32: gemm_avx512.cpp computes them,
// gemm_avx512_vbmi.cpp looks them up. Included by those two files only, each compiled for its instruction set; all of
// it stays in the unnamed namespace, so that each has its own copy.
//
// Codes is the conversion:
//   static void of_quads(__m512i codes, __m512 (&values)[4]);   // values[j] = byte j of each dword
//   static void in_order(__m512i codes, __m512 (&values)[4]);   // values[j] = bytes 16 j .. 16 j + 15
#pragma once
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc 12's intrinsics start from a variable assigned to itself
#include <immintrin.h>
#pragma GCC diagnostic pop

#include "cpu/gemm_block.h"

namespace evergemm::cpu {
namespace {

std::int64_t smaller(std::int64_t x, std::int64_t y) { return x < y ? x : y; }

__mmask16 first_lanes(std::int64_t count) {
  return count >= 16 ? __mmask16{0xffff} : static_cast<__mmask16>((1u << count) - 1u);
}
__mmask64 first_bytes(std::int64_t count) { return count >= 64 ? ~__mmask64{0} : (__mmask64{1} << count) - 1u; }

// ---- epilogue
// ---------------------------------------------------------------------------------------------------------

// Nearest even; a NaN becomes 0x7fc0, as numerics.h has it. (vcvtneps2bf16 would flush subnormals.)
__m256i to_bfloat16(__m512 value) {
  const __m512i bits = _mm512_castps_si512(value);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded =
      _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc0)));
}

void store(const GemmProblem& problem, std::int64_t row, std::int64_t column, __m512 value, __mmask16 lanes) {
  const std::int64_t at = row * problem.out_stride + column;
  switch (problem.output_dtype) {
    case DType::float32:
      _mm512_mask_storeu_ps(static_cast<float*>(problem.out) + at, lanes, value);
      break;
    case DType::float16:
      _mm256_mask_storeu_epi16(static_cast<std::uint16_t*>(problem.out) + at, lanes,
                               _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
      break;
    default:
      _mm256_mask_storeu_epi16(static_cast<std::uint16_t*>(problem.out) + at, lanes, to_bfloat16(value));
      break;
  }
}

// One row of a block: out = scale_a * (scale_b * sums) + bias, or sums + bias where the sums are scaled by block
// already.
void finish_row(const GemmProblem& problem, const ColumnValues& values, std::int64_t row, std::int64_t column_begin,
                std::int64_t column_end, const float* sums) {
  const bool blockwise = problem.scale_a.mode == ScaleMode::BlockWise1x128;
  const bool has_bias = problem.bias != nullptr;
  const __m512 scale_a = _mm512_set1_ps(blockwise ? 1.0f : problem.scale_a.data[row * problem.scale_a.outer_stride]);
  for (std::int64_t column = column_begin; column < column_end; column += 16) {
    const std::int64_t j = column - column_begin;
    __m512 result = _mm512_load_ps(sums + j);
    if (blockwise) {
      if (has_bias) result = _mm512_add_ps(result, _mm512_load_ps(values.bias + j));
    } else {
      const __m512 t = _mm512_mul_ps(_mm512_load_ps(values.scale_b + j), result);
      result = has_bias ? _mm512_fmadd_ps(scale_a, t, _mm512_load_ps(values.bias + j)) : _mm512_mul_ps(scale_a, t);
    }
    store(problem, row, column, result, first_lanes(column_end - column));
  }
}

// ---- packing
// ----------------------------------------------------------------------------------------------------------

// 16 rows of b, 64 of k -> fp32 [64][16 columns], rows of the result `pitch` apart. columns < 16 and depth < 64 leave
// the rest of b unread and pack zeros.
template <class Codes>
void pack_columns(const std::uint8_t* b, std::int64_t b_stride, std::int64_t columns, std::int64_t depth, float* packed,
                  std::int64_t pitch) {
  const __mmask64 bytes = first_bytes(depth);
  __m512i row[16];
#pragma GCC unroll 16
  for (int j = 0; j < 16; ++j) {
    row[j] = j < columns ? _mm512_maskz_loadu_epi8(bytes, b + j * b_stride) : _mm512_setzero_si512();
  }
  __m512i pair[16];
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) {
    pair[2 * j] = _mm512_unpacklo_epi32(row[2 * j], row[2 * j + 1]);
    pair[2 * j + 1] = _mm512_unpackhi_epi32(row[2 * j], row[2 * j + 1]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {  // row[4 j + q]: in each 128-bit lane, dword q of columns 4 j .. 4 j + 3
    row[4 * j + 0] = _mm512_unpacklo_epi64(pair[4 * j], pair[4 * j + 2]);
    row[4 * j + 1] = _mm512_unpackhi_epi64(pair[4 * j], pair[4 * j + 2]);
    row[4 * j + 2] = _mm512_unpacklo_epi64(pair[4 * j + 1], pair[4 * j + 3]);
    row[4 * j + 3] = _mm512_unpackhi_epi64(pair[4 * j + 1], pair[4 * j + 3]);
  }
#pragma GCC unroll 4
  for (int q = 0; q < 4; ++q) {  // lane l of row[4 j + q] is dword 4 l + q: gather lane l of the four j
    const __m512i low01 = _mm512_shuffle_i32x4(row[q], row[4 + q], 0x44);
    const __m512i high01 = _mm512_shuffle_i32x4(row[q], row[4 + q], 0xee);
    const __m512i low23 = _mm512_shuffle_i32x4(row[8 + q], row[12 + q], 0x44);
    const __m512i high23 = _mm512_shuffle_i32x4(row[8 + q], row[12 + q], 0xee);
    const __m512i quads[4] = {_mm512_shuffle_i32x4(low01, low23, 0x88), _mm512_shuffle_i32x4(low01, low23, 0xdd),
                              _mm512_shuffle_i32x4(high01, high23, 0x88), _mm512_shuffle_i32x4(high01, high23, 0xdd)};
#pragma GCC unroll 4
    for (int l = 0; l < 4; ++l) {
      const std::int64_t first = 4 * (4 * l + q);
      if (first < depth) {
        __m512 values[4];
        Codes::of_quads(quads[l], values);
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) _mm512_store_ps(packed + (first + v) * pitch, values[v]);
      }
    }
  }
}

// ---- multiplication
// ---------------------------------------------------------------------------------------------------

// One kernel for blocks of rows (2 vectors of columns a panel, up to 14 rows a tile: 28 sums) and one for few rows
// (4 vectors, up to 6 rows: at one row, 4 sums that do not wait for each other).
template <class Codes, int Vectors, int MaxTileRows, int Depth, int MaxBlockRows>
struct Fp8Gemm {
  static constexpr std::int64_t kPanelColumns = 16 * Vectors;
  static constexpr std::int64_t kPanels = kBlockColumns / kPanelColumns;
  static constexpr std::int64_t kTileRows = MaxTileRows;
  static constexpr std::int64_t kDepth = Depth;           // of k packed at a time, whole scale blocks
  static constexpr std::int64_t kRowPitch = Depth + 64;   // floats; not a power of two: rows spread over cache sets
  static constexpr std::int64_t kMaxRows = MaxBlockRows;  // of a block
  static_assert(kDepth % kScaleBlock == 0 && kScaleBlock % 64 == 0);

  struct Buffers {
    alignas(64) float packed[kPanels][kDepth][kPanelColumns];
    alignas(64) float a[kTileRows][kRowPitch];
    alignas(64) float sums[kMaxRows][kBlockColumns];
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
        float* to = sums + i * kBlockColumns + 16 * v;
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
      for (std::int64_t j = 0; j < kBlockColumns; j += 16) _mm512_store_ps(&buffers.sums[i][j], _mm512_setzero_ps());
    }
    for (std::int64_t k_begin = 0; k_begin < problem.k; k_begin += kDepth) {
      const std::int64_t depth = smaller(kDepth, problem.k - k_begin);
      const std::uint8_t* b =
          static_cast<const std::uint8_t*>(problem.b) + block.column_begin * problem.b_stride + k_begin;
      for (std::int64_t j = 0; j < (columns + kPanelColumns - 1) / kPanelColumns * kPanelColumns; j += 16) {
        for (std::int64_t l = 0; l < depth; l += 64) {
          pack_columns<Codes>(b + j * problem.b_stride + l, problem.b_stride, columns - j, depth - l,
                              &buffers.packed[j / kPanelColumns][l][j % kPanelColumns], kPanelColumns);
        }
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
      finish_row(problem, values, row, block.column_begin, block.column_end, buffers.sums[row - block.row_begin]);
    }
  }
};

// 128 KiB of packed b and 126 KiB of sums: a quarter of a 1 MiB L2.
template <class Codes>
using PanelGemm = Fp8Gemm<Codes, 2, 14, 256, 18 * 14>;
// 64 KiB of packed b, one scale block deep.
template <class Codes>
using DotGemm = Fp8Gemm<Codes, 4, 6, 128, 24>;

}  // namespace
}  // namespace evergemm::cpu
