// SPDX-License-Identifier: Apache-2.0
// int8 GEMM with AVX-512 VNNI: `panel` repacks b for blocks of rows, `dot` streams b once for few rows of a.
// Compiled with -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni, this file only: everything that is not a
// kernel listed in gemm_kernels.h stays in the unnamed namespace, and no library template may be used here.
//
// vpdpbusd multiplies unsigned by signed bytes. b is the unsigned operand: b + 128, that is b ^ 0x80, so that
//   sum_k (b + 128) * a = sum_k a * b + 128 * sum_k a
// and the last term is a value per row of a, taken off where sums start (panel) or end (dot). All sums are modulo 2^32.
#include "cpu/gemm_avx512_output.h"
#include "cpu/gemm_avx512_transpose.h"
#include "cpu/gemm_block.h"
#include "cpu/gemm_kernels.h"

namespace evergemm::cpu {
namespace {

// out = scale_a * (scale_b * (sums - azp * azp_adj)) + bias for one row; sums(j) are int32 of columns column + j ..
// column + j + 15, whose values stand from values_offset on.
template <class Sums>
void finish_row(const GemmProblem& problem, const ColumnValues& values, std::int64_t values_offset, std::int64_t row,
                std::int64_t column, std::int64_t count, Sums sums) {
  const __m512 scale_a = _mm512_set1_ps(problem.scale_a.data[row * problem.scale_a.outer_stride]);
  const float* scale_b = values.scale_b + values_offset;
  const float* bias = values.bias + values_offset;
  if (problem.has_azp) {  // without bias +0 is added
    const __m512i azp = _mm512_set1_epi32(problem.azp == nullptr ? 1 : problem.azp[row * problem.azp_stride]);
    const std::int32_t* azp_adj = values.azp_adj + values_offset;
    store_row(problem, row, column, count, [&](std::int64_t j) {
      const __m512i sum = _mm512_sub_epi32(sums(j), _mm512_mullo_epi32(azp, _mm512_load_si512(azp_adj + j)));
      const __m512 t = _mm512_mul_ps(_mm512_load_ps(scale_b + j), _mm512_cvtepi32_ps(sum));
      return _mm512_fmadd_ps(scale_a, t, _mm512_load_ps(bias + j));
    });
  } else if (problem.bias != nullptr) {
    store_row(problem, row, column, count, [&](std::int64_t j) {
      const __m512 t = _mm512_mul_ps(_mm512_load_ps(scale_b + j), _mm512_cvtepi32_ps(sums(j)));
      return _mm512_fmadd_ps(scale_a, t, _mm512_load_ps(bias + j));
    });
  } else {
    store_row(problem, row, column, count, [&](std::int64_t j) {
      const __m512 t = _mm512_mul_ps(_mm512_load_ps(scale_b + j), _mm512_cvtepi32_ps(sums(j)));
      return _mm512_mul_ps(scale_a, t);
    });
  }
}

// ---- panel ----

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

// Packs depth of k of up to 32 columns; bytes become unsigned. What is packed beyond the last column or k meets zeros of
// a or sums that are not stored.
void pack_panel(const std::int8_t* b, std::int64_t b_stride, std::int64_t columns, std::int64_t depth,
                std::uint8_t* packed) {
  const __m512i flip = _mm512_set1_epi8(-128);
  for (std::int64_t half = 0; half < kPanelColumns; half += 16) {
    const std::int8_t* from = b + half * b_stride;
    for (std::int64_t l = 0; l < depth; l += 64) {
      prefetch_rows(from + l, b_stride);
      __m512i quads[16];
      load_transposed(from + l, b_stride, columns - half, depth - l, quads);
      std::uint8_t* to = packed + l * kPanelColumns + half * 4;
#pragma GCC unroll 16
      for (int q = 0; q < 16; ++q) _mm512_store_si512(to + q * (kPanelColumns * 4), _mm512_xor_si512(quads[q], flip));
    }
  }
}

// Copies rows of a into the tile, zero up to a multiple of 64, gives 128 * sum_k a of each row, and asks for the same k of
// the next rows.
void load_rows(const std::int8_t* a, std::int64_t a_stride, std::int64_t rows, std::int64_t rows_left,
               std::int64_t depth, PanelBuffers& buffers, std::int32_t* offsets) {
  const __m512i weight = _mm512_set1_epi8(-128);  // unsigned 128
  __m512i sums[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) sums[i] = _mm512_setzero_si512();
  for (std::int64_t i = 0; i < rows; ++i) {
    const std::int8_t* next = a + smaller(i + rows, rows_left - 1) * a_stride;
    __m512i sum = _mm512_setzero_si512();
    std::int64_t l = 0;
    for (; l + 64 <= depth; l += 64) {
      const __m512i bytes = _mm512_loadu_si512(a + i * a_stride + l);
      _mm_prefetch(next + l, _MM_HINT_T1);
      _mm512_store_si512(&buffers.a[i][l], bytes);
      sum = _mm512_dpbusd_epi32(sum, weight, bytes);
    }
    if (l < depth) {
      const __m512i bytes = _mm512_maskz_loadu_epi8(first_bytes(depth - l), a + i * a_stride + l);
      _mm512_store_si512(&buffers.a[i][l], bytes);
      sum = _mm512_dpbusd_epi32(sum, weight, bytes);
    }
    sums[i] = sum;
  }
  _mm512_store_si512(offsets, add_lanes(sums));
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
  const std::int64_t columns = block.column_end - block.column_begin;
  const bool one_pass = problem.k <= kDepth;  // then each tile's sums are finished at once and all share the first rows
  for (std::int64_t k_begin = 0; k_begin == 0 || k_begin < problem.k; k_begin += kDepth) {
    const std::int64_t depth = smaller(kDepth, problem.k - k_begin);
    const bool is_last = k_begin + kDepth >= problem.k;
    const std::int8_t* b = static_cast<const std::int8_t*>(problem.b) + block.column_begin * problem.b_stride + k_begin;
    for (std::int64_t j = 0; j < columns; j += kPanelColumns) {
      pack_panel(b + j * problem.b_stride, problem.b_stride, columns - j, depth,
                 &buffers.packed[j / kPanelColumns][0][0][0]);
    }
    for (std::int64_t row = block.row_begin; row < block.row_end;) {
      // as equal as possible: 32 rows are 11 + 11 + 10, not 14 + 14 + 4
      const std::int64_t left = block.row_end - row;
      const std::int64_t tiles = (left + kTileRows - 1) / kTileRows;
      const std::int64_t rows = (left + tiles - 1) / tiles;
      alignas(64) std::int32_t offsets[16];
      load_rows(static_cast<const std::int8_t*>(problem.a) + row * problem.a_stride + k_begin, problem.a_stride, rows,
                left, depth, buffers, offsets);
      std::int32_t (*sums)[kBlockColumns] = &buffers.sums[one_pass ? 0 : row - block.row_begin];
      for (std::int64_t j = 0; j < columns; j += kPanelColumns) {
        kTileKernels[rows - 1](&buffers.a[0][0], &buffers.packed[j / kPanelColumns][0][0][0], (depth + 3) / 4, offsets,
                               k_begin == 0, &sums[0][j], kBlockColumns);
      }
      if (is_last) {
        for (std::int64_t i = 0; i < rows; ++i) {
          finish_row(problem, values, 0, row + i, block.column_begin, columns,
                     [&](std::int64_t j) { return _mm512_load_si512(&sums[i][j]); });
        }
      }
      row += rows;
    }
  }
}

// ---- dot ----

constexpr std::int64_t kDotTileRows = 6;        // 6 x 4 sums, 6 vectors of a, one of b and a constant: 32 registers
constexpr std::int64_t kDotColumns = 16;        // of one vector of results
constexpr std::int64_t kDotRows = 48;           // of a block, a multiple of 16
constexpr std::int64_t kDotDepth = 4096;        // of k at a time: a tile's 6 rows of a are 24 KiB, half of a 48 KiB L1
constexpr std::int64_t kFewRows = 3;            // up to here b is read one column after the other,
constexpr std::int64_t kFewRowsAhead = 8192;    // and asked for this many bytes ahead
constexpr std::int64_t kCachedBytes = 2 << 20;  // a b that is larger is worth prefetching: no L2 holds it

// Sums by lane: sums[i][j] of row i and column j are 16 partial sums, which the epilogue adds.
struct DotBuffers {
  alignas(64) __m512i sums[kDotRows][kDotColumns];
  alignas(64) std::int32_t offsets[kDotRows];
};

// What a tile asks memory for while it multiplies: `lines` cache lines (0, 1, 2 or 4) a step of 64 k, from `next` on.
struct Prefetch {
  const std::int8_t* next;
  int lines;
};

// sums[Rows][Columns] += (b + 128) * a for rows of a and columns of b where they lie. Interleave: how many steps of k have
// sums of their own, so that few rows do not wait for the multiplier.
template <int Rows, int Columns, int Interleave>
inline void dot_tile(const std::int8_t* a, std::int64_t a_stride, const std::int8_t* b, std::int64_t b_stride,
                     std::int64_t k, bool is_first, Prefetch& prefetch, __m512i* sums) {
  __m512i sum[Interleave][Rows][Columns];
#pragma GCC unroll 4
  for (int u = 0; u < Interleave; ++u) {
#pragma GCC unroll 6
    for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < Columns; ++j) {
        sum[u][i][j] = u > 0 || is_first ? _mm512_setzero_si512() : sums[i * kDotColumns + j];
      }
    }
  }
  const __m512i flip = _mm512_set1_epi8(-128);
  const int lines = prefetch.lines;
  const std::int8_t* next = prefetch.next;
  std::int64_t l = 0;
  for (; l + 64 * Interleave <= k; l += 64 * Interleave) {
#pragma GCC unroll 4
    for (int u = 0; u < Interleave; ++u) {
      __m512i a_bytes[Rows];
#pragma GCC unroll 6
      for (int i = 0; i < Rows; ++i) a_bytes[i] = _mm512_loadu_si512(a + i * a_stride + l + 64 * u);
#pragma GCC unroll 4
      for (int j = 0; j < Columns; ++j) {
        const __m512i b_bytes = _mm512_xor_si512(_mm512_loadu_si512(b + j * b_stride + l + 64 * u), flip);
#pragma GCC unroll 6
        for (int i = 0; i < Rows; ++i) sum[u][i][j] = _mm512_dpbusd_epi32(sum[u][i][j], b_bytes, a_bytes[i]);
      }
    }
    if (lines > 0) {
#pragma GCC unroll 4
      for (int u = 0; u < Interleave; ++u) {
        _mm_prefetch(next, _MM_HINT_T0);
        if (lines > 1) _mm_prefetch(next + 64, _MM_HINT_T0);
        if (lines > 2) {
          _mm_prefetch(next + 128, _MM_HINT_T0);
          _mm_prefetch(next + 192, _MM_HINT_T0);
        }
        next += 64 * lines;
      }
    }
  }
  prefetch.next = next;
  if constexpr (Interleave > 1) {
    for (; l + 64 <= k; l += 64) {
      for (int j = 0; j < Columns; ++j) {
        const __m512i b_bytes = _mm512_xor_si512(_mm512_loadu_si512(b + j * b_stride + l), flip);
#pragma GCC unroll 6
        for (int i = 0; i < Rows; ++i) {
          sum[0][i][j] = _mm512_dpbusd_epi32(sum[0][i][j], b_bytes, _mm512_loadu_si512(a + i * a_stride + l));
        }
      }
    }
  }
  if (l < k) {
    const __mmask64 bytes = first_bytes(k - l);
#pragma GCC unroll 4
    for (int j = 0; j < Columns; ++j) {
      const __m512i b_bytes = _mm512_xor_si512(_mm512_maskz_loadu_epi8(bytes, b + j * b_stride + l), flip);
#pragma GCC unroll 6
      for (int i = 0; i < Rows; ++i) {
        sum[0][i][j] = _mm512_dpbusd_epi32(sum[0][i][j], b_bytes, _mm512_maskz_loadu_epi8(bytes, a + i * a_stride + l));
      }
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < Columns; ++j) {
#pragma GCC unroll 4
      for (int u = 1; u < Interleave; ++u) sum[0][i][j] = _mm512_add_epi32(sum[0][i][j], sum[u][i][j]);
      sums[i * kDotColumns + j] = sum[0][i][j];
    }
  }
}

// Rows of a times up to 16 columns of b, `Columns` at a time.
template <int Rows, int Columns, int Interleave>
void dot_columns(const std::int8_t* a, std::int64_t a_stride, const std::int8_t* b, std::int64_t b_stride,
                 std::int64_t columns, std::int64_t k, bool is_first, Prefetch& prefetch, __m512i* sums) {
  std::int64_t j = 0;
  for (; j + Columns <= columns; j += Columns) {
    dot_tile<Rows, Columns, Interleave>(a, a_stride, b + j * b_stride, b_stride, k, is_first, prefetch, sums + j);
  }
  if constexpr (Columns > 1) {
    for (; j < columns; ++j) {
      dot_tile<Rows, 1, 1>(a, a_stride, b + j * b_stride, b_stride, k, is_first, prefetch, sums + j);
    }
  }
}

using DotKernel = void (*)(const std::int8_t*, std::int64_t, const std::int8_t*, std::int64_t, std::int64_t,
                           std::int64_t, bool, Prefetch&, __m512i*);
// Rows 1 to 6 of a tile. Where b comes from memory, up to three rows read one column after the other, in the order in which
// it lies there: that is as fast as memory is read at all. Otherwise four columns share what is loaded of a.
constexpr DotKernel kStreamedDot[kDotTileRows] = {dot_columns<1, 1, 4>, dot_columns<2, 1, 4>, dot_columns<3, 1, 2>,
                                                  dot_columns<4, 4, 1>, dot_columns<5, 4, 1>, dot_columns<6, 4, 1>};
constexpr DotKernel kCachedDot[kDotTileRows] = {dot_columns<1, 4, 2>, dot_columns<2, 4, 1>, dot_columns<3, 4, 1>,
                                                dot_columns<4, 4, 1>, dot_columns<5, 4, 1>, dot_columns<6, 4, 1>};

// offsets[i] = 128 * sum_k a of row i; the sum of lanes is taken of vectors, whose overflow wraps.
void sum_rows(const std::int8_t* a, std::int64_t a_stride, std::int64_t rows, std::int64_t k, std::int32_t* offsets) {
  const __m512i weight = _mm512_set1_epi8(-128);  // unsigned 128
  for (std::int64_t first = 0; first < rows; first += 16) {
    __m512i sums[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) sums[i] = _mm512_setzero_si512();
    for (std::int64_t i = 0; i < smaller(16, rows - first); ++i) {
      const std::int8_t* row = a + (first + i) * a_stride;
      for (std::int64_t l = 0; l < k; l += 64) {
        sums[i] = _mm512_dpbusd_epi32(sums[i], weight, _mm512_maskz_loadu_epi8(first_bytes(k - l), row + l));
      }
    }
    _mm512_store_si512(offsets + first, add_lanes(sums));
  }
}

void dot_block(const GemmProblem& problem, const Block& block) {
  DotBuffers buffers;
  ColumnValues values;
  load_columns(problem, block.column_begin, block.column_end, values);
  const std::int64_t rows = block.row_end - block.row_begin;
  const std::int8_t* a = static_cast<const std::int8_t*>(problem.a) + block.row_begin * problem.a_stride;
  sum_rows(a, problem.a_stride, rows, problem.k, buffers.offsets);
  const std::int64_t tiles = (rows + kDotTileRows - 1) / kDotTileRows;
  // While 16 columns are multiplied, the next 16 are on their way: 4 lines a step and tile, shared by the row tiles.
  const bool streams = static_cast<double>(problem.n) * static_cast<double>(problem.k) > kCachedBytes;
  const DotKernel* kernels = streams ? kStreamedDot : kCachedDot;
  const int lines = !streams || rows == 1 ? 0 : rows <= kFewRows ? 1 : tiles == 1 ? 4 : tiles <= 3 ? 2 : 1;
  for (std::int64_t column = block.column_begin; column < block.column_end; column += kDotColumns) {
    const std::int8_t* b = static_cast<const std::int8_t*>(problem.b) + column * problem.b_stride;
    const std::int64_t columns = smaller(kDotColumns, block.column_end - column);
    Prefetch prefetch{b + (rows <= kFewRows ? kFewRowsAhead : kDotColumns * problem.b_stride), lines};
    for (std::int64_t l = 0; l == 0 || l < problem.k; l += kDotDepth) {
      const std::int64_t depth = smaller(kDotDepth, problem.k - l);
      for (std::int64_t i = 0; i < rows;) {
        // as equal as possible: 16 rows are 6 + 5 + 5, not 6 + 6 + 4
        const std::int64_t left = rows - i, left_tiles = (left + kDotTileRows - 1) / kDotTileRows;
        const std::int64_t tile_rows = (left + left_tiles - 1) / left_tiles;
        kernels[tile_rows - 1](a + i * problem.a_stride + l, problem.a_stride, b + l, problem.b_stride, columns, depth,
                               l == 0, prefetch, buffers.sums[i]);
        i += tile_rows;
      }
    }
    for (std::int64_t i = 0; i < rows; ++i) {
      const __m512i sum = _mm512_sub_epi32(add_lanes(buffers.sums[i]), _mm512_set1_epi32(buffers.offsets[i]));
      finish_row(problem, values, column - block.column_begin, block.row_begin + i, column, columns,
                 [&](std::int64_t) { return sum; });
    }
  }
}

}  // namespace

void gemm_int8_avx512_vnni_panel(const GemmProblem& problem, const RunContext& context) {
  // Without waiting sums a block may have any number of rows.
  const std::int64_t max_rows = problem.k <= kDepth ? std::int64_t{1} << 20 : kMaxRows;
  for_each_block(problem, context,
                 Splitting{kPanelColumns, kPanels, kTileRows, max_rows - max_rows % kTileRows, 1 << 19}, panel_block);
}

void gemm_int8_avx512_vnni_dot(const GemmProblem& problem, const RunContext& context) {
  for_each_block(problem, context, Splitting{kDotColumns, kBlockColumns / kDotColumns, 1, kDotRows, 1 << 17},
                 dot_block);
}

}  // namespace evergemm::cpu
