// SPDX-License-Identifier: Apache-2.0
// int8 GEMM with AVX-512 VNNI: `panel` repacks b for blocks of rows, `dot` streams b once for few rows of a.
// Compiled with -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni, this file only: everything that is not a
// kernel listed in gemm_kernels.h stays in the unnamed namespace, and no library template may be used here.
//
// vpdpbusd multiplies unsigned by signed bytes. b is the unsigned operand: b + 128, that is b ^ 0x80, so that
//   sum_k (b + 128) * a = sum_k a * b + 128 * sum_k a
// and the last term is a value per row of a, taken off where sums start (panel) or end (dot). All sums are modulo 2^32.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc 12's intrinsics start from a variable assigned to itself
#include <immintrin.h>
#pragma GCC diagnostic pop

#include "cpu/gemm_block.h"
#include "cpu/gemm_kernels.h"

namespace evergemm::cpu {
namespace {

// ---- epilogue: shared by both kernels
// ---------------------------------------------------------------------------------

__mmask16 first_lanes(std::int64_t count) {
  return count >= 16 ? __mmask16{0xffff} : static_cast<__mmask16>((1u << count) - 1u);
}
__mmask64 first_bytes(std::int64_t count) { return count >= 64 ? ~__mmask64{0} : (__mmask64{1} << count) - 1u; }

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

// out = scale_a * (scale_b * (sums - azp * azp_adj)) + bias for one row; sums are int32 for columns
// [column_begin, column_end), values start at values_offset.
void finish_row(const GemmProblem& problem, const ColumnValues& values, std::int64_t values_offset, std::int64_t row,
                std::int64_t column_begin, std::int64_t column_end, const std::int32_t* sums) {
  const __m512 scale_a = _mm512_set1_ps(problem.scale_a.data[row * problem.scale_a.outer_stride]);
  const __m512i azp = _mm512_set1_epi32(problem.azp == nullptr ? 1 : problem.azp[row * problem.azp_stride]);
  const bool adds_bias = problem.bias != nullptr || problem.has_azp;
  for (std::int64_t column = column_begin; column < column_end; column += 16) {
    const std::int64_t j = values_offset + (column - column_begin);
    __m512i sum = _mm512_loadu_si512(sums + (column - column_begin));
    if (problem.has_azp) {
      sum = _mm512_sub_epi32(sum, _mm512_mullo_epi32(azp, _mm512_load_si512(values.azp_adj + j)));
    }
    const __m512 t = _mm512_mul_ps(_mm512_load_ps(values.scale_b + j), _mm512_cvtepi32_ps(sum));
    const __m512 result =
        adds_bias ? _mm512_fmadd_ps(scale_a, t, _mm512_load_ps(values.bias + j)) : _mm512_mul_ps(scale_a, t);
    store(problem, row, column, result, first_lanes(column_end - column));
  }
}

std::int64_t smaller(std::int64_t x, std::int64_t y) { return x < y ? x : y; }

// ---- panel
// ------------------------------------------------------------------------------------------------------------

constexpr std::int64_t kTileRows = 14;  // 14 x 2 accumulators, 2 vectors of b and a broadcast: 31 of 32 registers
constexpr std::int64_t kPanelColumns = 32;
constexpr std::int64_t kPanels = kBlockColumns / kPanelColumns;
constexpr std::int64_t kDepth = 1024;            // of k packed at a time: 4 panels are 128 KiB, an eighth of a 1 MiB L2
constexpr std::int64_t kRowPitch = kDepth + 64;  // not a power of two: rows of the a tile spread over cache sets
constexpr std::int64_t kMaxRows = 18 * kTileRows;  // of a block whose sums wait for more of k: 126 KiB of int32

// packed[quad][column][4]: 4 consecutive k of one column in a dword, 16 columns in a vector, two vectors a panel.
struct PanelBuffers {
  alignas(64) std::uint8_t packed[kPanels][kDepth / 4][kPanelColumns][4];
  alignas(64) std::int8_t a[kTileRows][kRowPitch];
  alignas(64) std::int32_t sums[kMaxRows][kBlockColumns];
};

// 16 rows of b, 64 of k: bytes become unsigned, and dwords are transposed so that a vector holds 16 columns of one
// quad. columns < 16 and depth < 64 leave the rest of b unread; what is packed there meets zeros of a or unstored
// columns.
void pack_columns(const std::int8_t* b, std::int64_t b_stride, std::int64_t columns, std::int64_t depth,
                  std::uint8_t* packed) {
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
  for (int j = 0; j < 4; ++j) {  // row[4 j + q]: in each 128-bit lane, quad q (mod 4) of columns 4 j .. 4 j + 3
    row[4 * j + 0] = _mm512_unpacklo_epi64(pair[4 * j], pair[4 * j + 2]);
    row[4 * j + 1] = _mm512_unpackhi_epi64(pair[4 * j], pair[4 * j + 2]);
    row[4 * j + 2] = _mm512_unpacklo_epi64(pair[4 * j + 1], pair[4 * j + 3]);
    row[4 * j + 3] = _mm512_unpackhi_epi64(pair[4 * j + 1], pair[4 * j + 3]);
  }
  const __m512i flip = _mm512_set1_epi8(-128);
#pragma GCC unroll 4
  for (int q = 0; q < 4; ++q) {  // lane l of row[4 j + q] is quad 4 l + q: gather lane l of the four j
    const __m512i low01 = _mm512_shuffle_i32x4(row[q], row[4 + q], 0x44);
    const __m512i high01 = _mm512_shuffle_i32x4(row[q], row[4 + q], 0xee);
    const __m512i low23 = _mm512_shuffle_i32x4(row[8 + q], row[12 + q], 0x44);
    const __m512i high23 = _mm512_shuffle_i32x4(row[8 + q], row[12 + q], 0xee);
    const __m512i quads[4] = {_mm512_shuffle_i32x4(low01, low23, 0x88), _mm512_shuffle_i32x4(low01, low23, 0xdd),
                              _mm512_shuffle_i32x4(high01, high23, 0x88), _mm512_shuffle_i32x4(high01, high23, 0xdd)};
#pragma GCC unroll 4
    for (int l = 0; l < 4; ++l) {
      if (4 * (4 * l + q) < depth) {
        _mm512_store_si512(packed + (4 * l + q) * (kPanelColumns * 4), _mm512_xor_si512(quads[l], flip));
      }
    }
  }
}

void pack_panel(const GemmProblem& problem, std::int64_t column, std::int64_t column_end, std::int64_t k_begin,
                std::int64_t depth, std::uint8_t* packed) {
  const std::int8_t* b = static_cast<const std::int8_t*>(problem.b) + k_begin;
  for (std::int64_t l = 0; l < depth; l += 64) {
    for (std::int64_t half = 0; half < kPanelColumns; half += 16) {
      const std::int64_t columns = column_end - (column + half);
      pack_columns(b + (column + half) * problem.b_stride + l, problem.b_stride, columns, depth - l,
                   packed + l * kPanelColumns + half * 4);
    }
  }
}

// Copies rows of a into the tile, zero up to a multiple of 64, and gives 128 * sum_k a of each row.
void load_rows(const GemmProblem& problem, std::int64_t row, std::int64_t rows, std::int64_t k_begin,
               std::int64_t depth, PanelBuffers& buffers, std::int32_t* offsets) {
  const __m512i weight = _mm512_set1_epi8(-128);  // unsigned 128
  for (std::int64_t i = 0; i < rows; ++i) {
    const std::int8_t* a = static_cast<const std::int8_t*>(problem.a) + (row + i) * problem.a_stride + k_begin;
    __m512i sum = _mm512_setzero_si512();
    for (std::int64_t l = 0; l < depth; l += 64) {
      const __m512i bytes = _mm512_maskz_loadu_epi8(first_bytes(depth - l), a + l);
      _mm512_store_si512(&buffers.a[i][l], bytes);
      sum = _mm512_dpbusd_epi32(sum, weight, bytes);
    }
    offsets[i] = _mm512_reduce_add_epi32(sum);
  }
}

// sums[Rows][32] = (is_first ? 0 : sums) - offsets + a tile * packed panel
template <int Rows>
void multiply_tile(const std::int8_t* a, const std::uint8_t* packed, std::int64_t quads, const std::int32_t* offsets,
                   bool is_first, std::int32_t* sums, std::int64_t sums_pitch) {
  __m512i sum[Rows][2];
#pragma GCC unroll 14
  for (int i = 0; i < Rows; ++i) {
    const __m512i offset = _mm512_set1_epi32(offsets[i]);
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      const __m512i start = is_first ? _mm512_setzero_si512() : _mm512_load_si512(sums + i * sums_pitch + 16 * v);
      sum[i][v] = _mm512_sub_epi32(start, offset);
    }
  }
  for (std::int64_t quad = 0; quad < quads; ++quad) {
    const __m512i b0 = _mm512_load_si512(packed);
    const __m512i b1 = _mm512_load_si512(packed + 64);
#pragma GCC unroll 14
    for (int i = 0; i < Rows; ++i) {
      std::int32_t four;
      __builtin_memcpy(&four, a + i * kRowPitch, 4);
      const __m512i a4 = _mm512_set1_epi32(four);
      sum[i][0] = _mm512_dpbusd_epi32(sum[i][0], b0, a4);
      sum[i][1] = _mm512_dpbusd_epi32(sum[i][1], b1, a4);
    }
    packed += kPanelColumns * 4;
    a += 4;
  }
#pragma GCC unroll 14
  for (int i = 0; i < Rows; ++i) {
    _mm512_store_si512(sums + i * sums_pitch, sum[i][0]);
    _mm512_store_si512(sums + i * sums_pitch + 16, sum[i][1]);
  }
}

using TileKernel = void (*)(const std::int8_t*, const std::uint8_t*, std::int64_t, const std::int32_t*, bool,
                            std::int32_t*, std::int64_t);
constexpr TileKernel kTileKernels[kTileRows] = {
    multiply_tile<1>,  multiply_tile<2>,  multiply_tile<3>,  multiply_tile<4>, multiply_tile<5>,
    multiply_tile<6>,  multiply_tile<7>,  multiply_tile<8>,  multiply_tile<9>, multiply_tile<10>,
    multiply_tile<11>, multiply_tile<12>, multiply_tile<13>, multiply_tile<14>};

void panel_block(const GemmProblem& problem, const Block& block) {
  PanelBuffers buffers;
  ColumnValues values;
  load_columns(problem, block.column_begin, block.column_end, values);
  const bool one_pass = problem.k <= kDepth;  // then each tile's sums are finished at once and all share the first rows
  for (std::int64_t k_begin = 0; k_begin == 0 || k_begin < problem.k; k_begin += kDepth) {
    const std::int64_t depth = smaller(kDepth, problem.k - k_begin);
    const bool is_last = k_begin + kDepth >= problem.k;
    for (std::int64_t column = block.column_begin; column < block.column_end; column += kPanelColumns) {
      pack_panel(problem, column, block.column_end, k_begin, depth,
                 &buffers.packed[(column - block.column_begin) / kPanelColumns][0][0][0]);
    }
    for (std::int64_t row = block.row_begin; row < block.row_end;) {
      // as equal as possible: 32 rows are 11 + 11 + 10, not 14 + 14 + 4
      const std::int64_t left = block.row_end - row;
      const std::int64_t tiles = (left + kTileRows - 1) / kTileRows;
      const std::int64_t rows = (left + tiles - 1) / tiles;
      std::int32_t offsets[kTileRows];
      load_rows(problem, row, rows, k_begin, depth, buffers, offsets);
      std::int32_t (*sums)[kBlockColumns] = &buffers.sums[one_pass ? 0 : row - block.row_begin];
      for (std::int64_t column = block.column_begin; column < block.column_end; column += kPanelColumns) {
        const std::int64_t j = column - block.column_begin;
        kTileKernels[rows - 1](&buffers.a[0][0], &buffers.packed[j / kPanelColumns][0][0][0], (depth + 3) / 4, offsets,
                               k_begin == 0, &sums[0][j], kBlockColumns);
      }
      if (is_last) {
        for (std::int64_t i = 0; i < rows; ++i) {
          finish_row(problem, values, 0, row + i, block.column_begin, block.column_end, sums[i]);
        }
      }
      row += rows;
    }
  }
}

// ---- dot
// --------------------------------------------------------------------------------------------------------------

constexpr std::int64_t kDotRows = 4;      // of a at a time
constexpr std::int64_t kDotColumns = 16;  // of one vector of results

// sums[Rows][Columns] = sum_k (b + 128) * a for rows of a and columns of b where they lie
template <int Rows, int Columns>
void dot_tile(const std::int8_t* a, std::int64_t a_stride, const std::int8_t* b, std::int64_t b_stride, std::int64_t k,
              std::int32_t* sums) {
  __m512i sum[Rows][Columns];
#pragma GCC unroll 4
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < Columns; ++j) sum[i][j] = _mm512_setzero_si512();
  }
  const __m512i flip = _mm512_set1_epi8(-128);
  std::int64_t l = 0;
  for (; l + 64 <= k; l += 64) {
    __m512i a_bytes[Rows];
#pragma GCC unroll 4
    for (int i = 0; i < Rows; ++i) a_bytes[i] = _mm512_loadu_si512(a + i * a_stride + l);
#pragma GCC unroll 4
    for (int j = 0; j < Columns; ++j) {
      const __m512i b_bytes = _mm512_xor_si512(_mm512_loadu_si512(b + j * b_stride + l), flip);
#pragma GCC unroll 4
      for (int i = 0; i < Rows; ++i) sum[i][j] = _mm512_dpbusd_epi32(sum[i][j], b_bytes, a_bytes[i]);
    }
  }
  if (l < k) {
    const __mmask64 bytes = first_bytes(k - l);
#pragma GCC unroll 4
    for (int j = 0; j < Columns; ++j) {
      const __m512i b_bytes = _mm512_xor_si512(_mm512_maskz_loadu_epi8(bytes, b + j * b_stride + l), flip);
#pragma GCC unroll 4
      for (int i = 0; i < Rows; ++i) {
        sum[i][j] = _mm512_dpbusd_epi32(sum[i][j], b_bytes, _mm512_maskz_loadu_epi8(bytes, a + i * a_stride + l));
      }
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < Columns; ++j) sums[i * kDotColumns + j] = _mm512_reduce_add_epi32(sum[i][j]);
  }
}

template <int Rows>
void dot_columns(const std::int8_t* a, std::int64_t a_stride, const std::int8_t* b, std::int64_t b_stride,
                 std::int64_t k, std::int64_t columns, std::int32_t* sums) {
  std::int64_t j = 0;
  for (; j + 4 <= columns; j += 4) dot_tile<Rows, 4>(a, a_stride, b + j * b_stride, b_stride, k, sums + j);
  for (; j < columns; ++j) dot_tile<Rows, 1>(a, a_stride, b + j * b_stride, b_stride, k, sums + j);
}

void dot_block(const GemmProblem& problem, const Block& block) {
  ColumnValues values;
  load_columns(problem, block.column_begin, block.column_end, values);
  const __m512i weight = _mm512_set1_epi8(-128);  // unsigned 128
  for (std::int64_t row = block.row_begin; row < block.row_end; row += kDotRows) {
    const std::int64_t rows = smaller(kDotRows, block.row_end - row);
    const std::int8_t* a = static_cast<const std::int8_t*>(problem.a) + row * problem.a_stride;
    std::int32_t offsets[kDotRows];
    for (std::int64_t i = 0; i < rows; ++i) {
      __m512i sum = _mm512_setzero_si512();
      for (std::int64_t l = 0; l < problem.k; l += 64) {
        const __m512i bytes = _mm512_maskz_loadu_epi8(first_bytes(problem.k - l), a + i * problem.a_stride + l);
        sum = _mm512_dpbusd_epi32(sum, weight, bytes);
      }
      offsets[i] = _mm512_reduce_add_epi32(sum);
    }
    for (std::int64_t column = block.column_begin; column < block.column_end; column += kDotColumns) {
      const std::int8_t* b = static_cast<const std::int8_t*>(problem.b) + column * problem.b_stride;
      const std::int64_t columns = smaller(kDotColumns, block.column_end - column);
      alignas(64) std::int32_t sums[kDotRows][kDotColumns] = {};
      switch (rows) {
        case 1:
          dot_columns<1>(a, problem.a_stride, b, problem.b_stride, problem.k, columns, sums[0]);
          break;
        case 2:
          dot_columns<2>(a, problem.a_stride, b, problem.b_stride, problem.k, columns, sums[0]);
          break;
        case 3:
          dot_columns<3>(a, problem.a_stride, b, problem.b_stride, problem.k, columns, sums[0]);
          break;
        default:
          dot_columns<4>(a, problem.a_stride, b, problem.b_stride, problem.k, columns, sums[0]);
          break;
      }
      for (std::int64_t i = 0; i < rows; ++i) {
        const __m512i sum = _mm512_sub_epi32(_mm512_load_si512(sums[i]), _mm512_set1_epi32(offsets[i]));
        _mm512_store_si512(sums[i], sum);
        finish_row(problem, values, column - block.column_begin, row + i, column, column + columns, sums[i]);
      }
    }
  }
}

}  // namespace

void gemm_int8_avx512_vnni_panel(const GemmProblem& problem, const RunContext& context) {
  // Without waiting sums a block may have any number of rows.
  const std::int64_t max_rows = problem.k <= kDepth ? std::int64_t{1} << 20 : kMaxRows;
  for_each_block(problem, context, Splitting{kPanelColumns, kTileRows, max_rows - max_rows % kTileRows, 1 << 19},
                 panel_block);
}

void gemm_int8_avx512_vnni_dot(const GemmProblem& problem, const RunContext& context) {
  for_each_block(problem, context, Splitting{kDotColumns, kDotRows, std::int64_t{1} << 20, 1 << 17}, dot_block);
}

}  // namespace evergemm::cpu
