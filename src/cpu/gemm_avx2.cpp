// SPDX-License-Identifier: Apache-2.0
// int8 and fp8 GEMM with AVX2, FMA and F16C: `panel` repacks b for blocks of rows, `dot` streams b once for few rows of
// a. Compiled with -mavx2 -mfma -mf16c, this file only: everything that is not a kernel listed in gemm_kernels.h stays
// in the unnamed namespace, and no library template may be used here.
//
// int8 is widened to int16 for vpmaddwd, whose pair sums are exact (at most 2 * 2^14); vpmaddubsw would saturate.
#include <immintrin.h>

#include "cpu/gemm_block.h"
#include "cpu/gemm_kernels.h"

namespace evergemm::cpu {
namespace {

std::int64_t smaller(std::int64_t x, std::int64_t y) { return x < y ? x : y; }

// ---- epilogue: shared by all kernels of this file ----

// Nearest even; a NaN becomes 0x7fc0, as numerics.h has it. 8 bfloat16 in the low halves of 8 dwords.
__m256i to_bfloat16(__m256 value) {
  const __m256i bits = _mm256_castps_si256(value);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded =
      _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd), 16);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), nan);
}

// Stores the first `count` (at most 8) values.
void store(const GemmProblem& problem, std::int64_t row, std::int64_t column, __m256 value, std::int64_t count) {
  const std::int64_t at = row * problem.out_stride + column;
  if (problem.output_dtype == DType::float32) {
    float* out = static_cast<float*>(problem.out) + at;
    if (count >= 8) {
      _mm256_storeu_ps(out, value);
    } else {
      alignas(32) float values[8];
      _mm256_store_ps(values, value);
      for (std::int64_t j = 0; j < count; ++j) out[j] = values[j];
    }
    return;
  }
  __m128i halves;
  if (problem.output_dtype == DType::float16) {
    halves = _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  } else {
    const __m256i wide = to_bfloat16(value);
    halves = _mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
  }
  std::uint16_t* out = static_cast<std::uint16_t*>(problem.out) + at;
  if (count >= 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), halves);
  } else {
    alignas(16) std::uint16_t values[8];
    _mm_store_si128(reinterpret_cast<__m128i*>(values), halves);
    for (std::int64_t j = 0; j < count; ++j) out[j] = values[j];
  }
}

// out = scale_a * (scale_b * sum) + bias; a zero point without bias adds +0. j: the column's place in values.
void store_scaled(const GemmProblem& problem, const ColumnValues& values, std::int64_t row, std::int64_t column,
                  std::int64_t j, __m256 sum, std::int64_t count) {
  const __m256 scale_a = _mm256_set1_ps(problem.scale_a.data[row * problem.scale_a.outer_stride]);
  const __m256 t = _mm256_mul_ps(_mm256_load_ps(values.scale_b + j), sum);
  const bool adds_bias = problem.bias != nullptr || problem.has_azp;
  store(problem, row, column,
        adds_bias ? _mm256_fmadd_ps(scale_a, t, _mm256_load_ps(values.bias + j)) : _mm256_mul_ps(scale_a, t), count);
}

// One row: sums are int32 for columns [column_begin, column_end), whose values start at values_offset.
void finish_int8_row(const GemmProblem& problem, const ColumnValues& values, std::int64_t values_offset,
                     std::int64_t row, std::int64_t column_begin, std::int64_t column_end, const std::int32_t* sums) {
  const __m256i azp = _mm256_set1_epi32(problem.azp == nullptr ? 1 : problem.azp[row * problem.azp_stride]);
  for (std::int64_t column = column_begin; column < column_end; column += 8) {
    const std::int64_t j = values_offset + (column - column_begin);
    __m256i sum = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(sums + (column - column_begin)));
    if (problem.has_azp) {
      const __m256i adjustment = _mm256_load_si256(reinterpret_cast<const __m256i*>(values.azp_adj + j));
      sum = _mm256_sub_epi32(sum, _mm256_mullo_epi32(azp, adjustment));
    }
    store_scaled(problem, values, row, column, j, _mm256_cvtepi32_ps(sum), column_end - column);
  }
}

// ---- what both panel kernels have in common ----

constexpr std::int64_t kTileRows = 6;  // 6 x 2 accumulators, 2 vectors of b, a broadcast: 15 of 16 registers
constexpr std::int64_t kPanelColumns = 16;
constexpr std::int64_t kPanels = kBlockColumns / kPanelColumns;
constexpr std::int64_t kMaxRows = 32 * kTileRows;  // of a block: sums of 192 x 128 are 96 KiB

// dwords [8][8] -> [8][8] transposed
[[gnu::always_inline]] inline void transpose(__m256i (&row)[8]) {
  __m256i pair[8], quad[8];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    pair[2 * j] = _mm256_unpacklo_epi32(row[2 * j], row[2 * j + 1]);
    pair[2 * j + 1] = _mm256_unpackhi_epi32(row[2 * j], row[2 * j + 1]);
  }
#pragma GCC unroll 2
  for (int j = 0; j < 2; ++j) {
    quad[4 * j + 0] = _mm256_unpacklo_epi64(pair[4 * j], pair[4 * j + 2]);
    quad[4 * j + 1] = _mm256_unpackhi_epi64(pair[4 * j], pair[4 * j + 2]);
    quad[4 * j + 2] = _mm256_unpacklo_epi64(pair[4 * j + 1], pair[4 * j + 3]);
    quad[4 * j + 3] = _mm256_unpackhi_epi64(pair[4 * j + 1], pair[4 * j + 3]);
  }
#pragma GCC unroll 4
  for (int q = 0; q < 4; ++q) {
    row[q] = _mm256_permute2x128_si256(quad[q], quad[4 + q], 0x20);
    row[4 + q] = _mm256_permute2x128_si256(quad[q], quad[4 + q], 0x31);
  }
}

// 16 bytes, or the first `count` of them and zeros: nothing behind the last is read.
__m128i load_bytes(const void* from, std::int64_t count) {
  if (count >= 16) return _mm_loadu_si128(static_cast<const __m128i*>(from));
  alignas(16) unsigned char bytes[16] = {};
  for (std::int64_t l = 0; l < count; ++l) bytes[l] = static_cast<const unsigned char*>(from)[l];
  return _mm_load_si128(reinterpret_cast<const __m128i*>(bytes));
}

// ---- int8 panel ----

constexpr std::int64_t kInt8Depth = 512;  // of k packed at a time: 8 panels are 128 KiB of int16

// packed[pair][column][2]: 2 consecutive k of one column in a dword, 8 columns in a vector.
struct Int8Buffers {
  alignas(64) std::int16_t packed[kPanels][kInt8Depth / 2][kPanelColumns][2];
  alignas(64) std::int16_t a[kTileRows][kInt8Depth + 32];
  alignas(64) std::int32_t sums[kMaxRows][kBlockColumns];
};

void pack_int8_panel(const GemmProblem& problem, std::int64_t column, std::int64_t column_end, std::int64_t k_begin,
                     std::int64_t depth, std::int16_t* packed) {
  const std::int8_t* b = static_cast<const std::int8_t*>(problem.b) + k_begin;
  for (std::int64_t l = 0; l < depth; l += 16) {
    for (std::int64_t half = 0; half < kPanelColumns; half += 8) {
      __m256i row[8];
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) {
        const std::int64_t n = column + half + j;
        row[j] = n < column_end ? _mm256_cvtepi8_epi16(load_bytes(b + n * problem.b_stride + l, depth - l))
                                : _mm256_setzero_si256();
      }
      transpose(row);
#pragma GCC unroll 8
      for (int p = 0; p < 8; ++p) {
        _mm256_store_si256(reinterpret_cast<__m256i*>(packed + ((l / 2 + p) * kPanelColumns + half) * 2), row[p]);
      }
    }
  }
}

// sums[Rows][16] = (is_first ? 0 : sums) + a tile * packed panel
template <int Rows>
void multiply_int8_tile(const Int8Buffers& buffers, const std::int16_t* packed, std::int64_t pairs, bool is_first,
                        std::int32_t* sums) {
  __m256i sum[Rows][2];
#pragma GCC unroll 6
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      sum[i][v] = is_first ? _mm256_setzero_si256()
                           : _mm256_load_si256(reinterpret_cast<const __m256i*>(sums + i * kBlockColumns + 8 * v));
    }
  }
  for (std::int64_t pair = 0; pair < pairs; ++pair) {
    const __m256i b0 = _mm256_load_si256(reinterpret_cast<const __m256i*>(packed));
    const __m256i b1 = _mm256_load_si256(reinterpret_cast<const __m256i*>(packed + 16));
#pragma GCC unroll 6
    for (int i = 0; i < Rows; ++i) {
      std::int32_t two;
      __builtin_memcpy(&two, &buffers.a[i][2 * pair], 4);
      const __m256i a2 = _mm256_set1_epi32(two);
      sum[i][0] = _mm256_add_epi32(sum[i][0], _mm256_madd_epi16(a2, b0));
      sum[i][1] = _mm256_add_epi32(sum[i][1], _mm256_madd_epi16(a2, b1));
    }
    packed += kPanelColumns * 2;
  }
#pragma GCC unroll 6
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      _mm256_store_si256(reinterpret_cast<__m256i*>(sums + i * kBlockColumns + 8 * v), sum[i][v]);
    }
  }
}

using Int8Tile = void (*)(const Int8Buffers&, const std::int16_t*, std::int64_t, bool, std::int32_t*);
constexpr Int8Tile kInt8Tiles[kTileRows] = {multiply_int8_tile<1>, multiply_int8_tile<2>, multiply_int8_tile<3>,
                                            multiply_int8_tile<4>, multiply_int8_tile<5>, multiply_int8_tile<6>};

void int8_panel_block(const GemmProblem& problem, const Block& block) {
  Int8Buffers buffers;
  ColumnValues values;
  load_columns(problem, block.column_begin, block.column_end, values);
  for (std::int64_t k_begin = 0; k_begin == 0 || k_begin < problem.k; k_begin += kInt8Depth) {
    const std::int64_t depth = smaller(kInt8Depth, problem.k - k_begin);
    for (std::int64_t column = block.column_begin; column < block.column_end; column += kPanelColumns) {
      pack_int8_panel(problem, column, block.column_end, k_begin, depth,
                      &buffers.packed[(column - block.column_begin) / kPanelColumns][0][0][0]);
    }
    for (std::int64_t row = block.row_begin; row < block.row_end; row += kTileRows) {
      const std::int64_t rows = smaller(kTileRows, block.row_end - row);
      for (std::int64_t i = 0; i < rows; ++i) {
        const std::int8_t* a = static_cast<const std::int8_t*>(problem.a) + (row + i) * problem.a_stride + k_begin;
        for (std::int64_t l = 0; l < depth; l += 16) {
          _mm256_store_si256(reinterpret_cast<__m256i*>(&buffers.a[i][l]),
                             _mm256_cvtepi8_epi16(load_bytes(a + l, depth - l)));
        }
      }
      std::int32_t (*sums)[kBlockColumns] = &buffers.sums[row - block.row_begin];
      for (std::int64_t column = block.column_begin; column < block.column_end; column += kPanelColumns) {
        const std::int64_t j = column - block.column_begin;
        kInt8Tiles[rows - 1](buffers, &buffers.packed[j / kPanelColumns][0][0][0], (depth + 1) / 2, k_begin == 0,
                             &sums[0][j]);
      }
      if (k_begin + kInt8Depth >= problem.k) {
        for (std::int64_t i = 0; i < rows; ++i) {
          finish_int8_row(problem, values, 0, row + i, block.column_begin, block.column_end, sums[i]);
        }
      }
    }
  }
}

// ---- int8 dot ----

constexpr std::int64_t kDotRows = 2;     // of a at a time
constexpr std::int64_t kDotColumns = 8;  // of one vector of results

std::int32_t sum_of_lanes(__m256i sum) {
  __m128i half = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
  half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
  half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1));
  return _mm_cvtsi128_si32(half);
}

// sums[Rows][Columns] = sum_k a * b for rows of a and columns of b where they lie
template <int Rows, int Columns>
void dot_tile(const std::int8_t* a, std::int64_t a_stride, const std::int8_t* b, std::int64_t b_stride, std::int64_t k,
              std::int32_t* sums) {
  __m256i sum[Rows][Columns];
#pragma GCC unroll 2
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < Columns; ++j) sum[i][j] = _mm256_setzero_si256();
  }
  for (std::int64_t l = 0; l < k; l += 16) {
    __m256i a_words[Rows];
#pragma GCC unroll 2
    for (int i = 0; i < Rows; ++i) a_words[i] = _mm256_cvtepi8_epi16(load_bytes(a + i * a_stride + l, k - l));
#pragma GCC unroll 4
    for (int j = 0; j < Columns; ++j) {
      const __m256i b_words = _mm256_cvtepi8_epi16(load_bytes(b + j * b_stride + l, k - l));
#pragma GCC unroll 2
      for (int i = 0; i < Rows; ++i) sum[i][j] = _mm256_add_epi32(sum[i][j], _mm256_madd_epi16(a_words[i], b_words));
    }
  }
#pragma GCC unroll 2
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < Columns; ++j) sums[i * kDotColumns + j] = sum_of_lanes(sum[i][j]);
  }
}

template <int Rows>
void dot_columns(const std::int8_t* a, std::int64_t a_stride, const std::int8_t* b, std::int64_t b_stride,
                 std::int64_t k, std::int64_t columns, std::int32_t* sums) {
  std::int64_t j = 0;
  for (; j + 4 <= columns; j += 4) dot_tile<Rows, 4>(a, a_stride, b + j * b_stride, b_stride, k, sums + j);
  for (; j < columns; ++j) dot_tile<Rows, 1>(a, a_stride, b + j * b_stride, b_stride, k, sums + j);
}

void int8_dot_block(const GemmProblem& problem, const Block& block) {
  ColumnValues values;
  load_columns(problem, block.column_begin, block.column_end, values);
  for (std::int64_t row = block.row_begin; row < block.row_end; row += kDotRows) {
    const std::int64_t rows = smaller(kDotRows, block.row_end - row);
    const std::int8_t* a = static_cast<const std::int8_t*>(problem.a) + row * problem.a_stride;
    for (std::int64_t column = block.column_begin; column < block.column_end; column += kDotColumns) {
      const std::int8_t* b = static_cast<const std::int8_t*>(problem.b) + column * problem.b_stride;
      const std::int64_t columns = smaller(kDotColumns, block.column_end - column);
      alignas(32) std::int32_t sums[kDotRows][kDotColumns] = {};
      if (rows == 1) {
        dot_columns<1>(a, problem.a_stride, b, problem.b_stride, problem.k, columns, sums[0]);
      } else {
        dot_columns<2>(a, problem.a_stride, b, problem.b_stride, problem.k, columns, sums[0]);
      }
      for (std::int64_t i = 0; i < rows; ++i) {
        finish_int8_row(problem, values, column - block.column_begin, row + i, column, column + columns, sums[i]);
      }
    }
  }
}

// ---- fp8 panel ----

constexpr std::int64_t kFp8Depth = 256;  // of k packed at a time, two scale blocks: 8 panels are 128 KiB of fp32
static_assert(kFp8Depth % kScaleBlock == 0);

struct Fp8Buffers {
  alignas(64) float packed[kPanels][kFp8Depth][kPanelColumns];
  alignas(64) float a[kTileRows][kFp8Depth + 16];
  alignas(64) float sums[kMaxRows][kBlockColumns];
};

// 16 codes -> fp32, exact. Sign and magnitude, moved up to the fields of a float16, are the value times 2^-8, subnormals
// included, and vcvtph2ps does not care whether the thread flushes subnormals; only NaN has to be put in.
[[gnu::always_inline]] inline void float8_to_float(__m128i codes, __m256& low, __m256& high) {
  const __m256i wide = _mm256_cvtepu8_epi16(codes);
  const __m256i largest = _mm256_set1_epi16(0x7f);
  const __m256i fields = _mm256_and_si256(_mm256_srai_epi16(_mm256_slli_epi16(wide, 8), 1),
                                          _mm256_set1_epi16(static_cast<std::int16_t>(0xbf80)));
  const __m256i is_nan = _mm256_cmpeq_epi16(_mm256_and_si256(wide, largest), largest);
  const __m256i half = _mm256_or_si256(fields, _mm256_and_si256(is_nan, _mm256_set1_epi16(0x7e00)));
  const __m256 scale = _mm256_set1_ps(256.0f);
  low = _mm256_mul_ps(_mm256_cvtph_ps(_mm256_castsi256_si128(half)), scale);
  high = _mm256_mul_ps(_mm256_cvtph_ps(_mm256_extracti128_si256(half, 1)), scale);
}

void pack_fp8_panel(const GemmProblem& problem, std::int64_t column, std::int64_t column_end, std::int64_t k_begin,
                    std::int64_t depth, float* packed) {
  const std::uint8_t* b = static_cast<const std::uint8_t*>(problem.b) + k_begin;
  for (std::int64_t l = 0; l < depth; l += 16) {
    for (std::int64_t half = 0; half < kPanelColumns; half += 8) {
      __m256i low[8], high[8];
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) {
        const std::int64_t n = column + half + j;
        __m256 first, second;
        float8_to_float(n < column_end ? load_bytes(b + n * problem.b_stride + l, depth - l) : _mm_setzero_si128(),
                        first, second);
        low[j] = _mm256_castps_si256(first);
        high[j] = _mm256_castps_si256(second);
      }
      transpose(low);
      transpose(high);
#pragma GCC unroll 8
      for (int q = 0; q < 8; ++q) {
        _mm256_store_si256(reinterpret_cast<__m256i*>(packed + (l + q) * kPanelColumns + half), low[q]);
        _mm256_store_si256(reinterpret_cast<__m256i*>(packed + (l + 8 + q) * kPanelColumns + half), high[q]);
      }
    }
  }
}

// One scale block of k, ascending: tile = sum a * b from 0, then sums = fma(scale, tile, sums), or sums + tile where
// scales are null.
template <int Rows>
void multiply_fp8_tile(const float* a, const float* packed, std::int64_t depth, const float* scales, float* sums) {
  __m256 sum[Rows][2];
#pragma GCC unroll 6
  for (int i = 0; i < Rows; ++i) sum[i][0] = sum[i][1] = _mm256_setzero_ps();
  for (std::int64_t l = 0; l < depth; ++l) {
    const __m256 b0 = _mm256_load_ps(packed + l * kPanelColumns);
    const __m256 b1 = _mm256_load_ps(packed + l * kPanelColumns + 8);
#pragma GCC unroll 6
    for (int i = 0; i < Rows; ++i) {
      const __m256 a1 = _mm256_set1_ps(a[i * (kFp8Depth + 16) + l]);
      sum[i][0] = _mm256_fmadd_ps(a1, b0, sum[i][0]);
      sum[i][1] = _mm256_fmadd_ps(a1, b1, sum[i][1]);
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      float* to = sums + i * kBlockColumns + 8 * v;
      const __m256 old = _mm256_load_ps(to);
      _mm256_store_ps(to, scales == nullptr ? _mm256_add_ps(old, sum[i][v])
                                            : _mm256_fmadd_ps(_mm256_set1_ps(scales[i]), sum[i][v], old));
    }
  }
}

using Fp8Tile = void (*)(const float*, const float*, std::int64_t, const float*, float*);
constexpr Fp8Tile kFp8Tiles[kTileRows] = {multiply_fp8_tile<1>, multiply_fp8_tile<2>, multiply_fp8_tile<3>,
                                          multiply_fp8_tile<4>, multiply_fp8_tile<5>, multiply_fp8_tile<6>};

void fp8_panel_block(const GemmProblem& problem, const Block& block) {
  Fp8Buffers buffers;
  ColumnValues values;
  load_columns(problem, block.column_begin, block.column_end, values);
  const bool blockwise = problem.scale_a.mode == ScaleMode::BlockWise1x128;
  for (std::int64_t i = 0; i < block.row_end - block.row_begin; ++i) {
    for (std::int64_t j = 0; j < kBlockColumns; j += 8) _mm256_store_ps(&buffers.sums[i][j], _mm256_setzero_ps());
  }
  for (std::int64_t k_begin = 0; k_begin < problem.k; k_begin += kFp8Depth) {
    const std::int64_t depth = smaller(kFp8Depth, problem.k - k_begin);
    for (std::int64_t column = block.column_begin; column < block.column_end; column += kPanelColumns) {
      pack_fp8_panel(problem, column, block.column_end, k_begin, depth,
                     &buffers.packed[(column - block.column_begin) / kPanelColumns][0][0]);
    }
    for (std::int64_t row = block.row_begin; row < block.row_end; row += kTileRows) {
      const std::int64_t rows = smaller(kTileRows, block.row_end - row);
      for (std::int64_t i = 0; i < rows; ++i) {
        const std::uint8_t* a = static_cast<const std::uint8_t*>(problem.a) + (row + i) * problem.a_stride + k_begin;
        for (std::int64_t l = 0; l < depth; l += 16) {
          __m256 low, high;
          float8_to_float(load_bytes(a + l, depth - l), low, high);
          _mm256_store_ps(&buffers.a[i][l], low);
          _mm256_store_ps(&buffers.a[i][l + 8], high);
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
        for (std::int64_t column = block.column_begin; column < block.column_end; column += kPanelColumns) {
          const std::int64_t j = column - block.column_begin;
          kFp8Tiles[rows - 1](&buffers.a[0][l], &buffers.packed[j / kPanelColumns][l][0],
                              smaller(kScaleBlock, depth - l), blockwise ? scales : nullptr,
                              &buffers.sums[row - block.row_begin][j]);
        }
      }
    }
  }
  for (std::int64_t row = block.row_begin; row < block.row_end; ++row) {
    for (std::int64_t column = block.column_begin; column < block.column_end; column += 8) {
      const std::int64_t j = column - block.column_begin;
      const __m256 sum = _mm256_load_ps(&buffers.sums[row - block.row_begin][j]);
      if (!blockwise) {
        store_scaled(problem, values, row, column, j, sum, block.column_end - column);
      } else {
        store(problem, row, column, problem.bias == nullptr ? sum : _mm256_add_ps(sum, _mm256_load_ps(values.bias + j)),
              block.column_end - column);
      }
    }
  }
}

}  // namespace

void gemm_int8_avx2_dot(const GemmProblem& problem, const RunContext& context) {
  for_each_block(problem, context,
                 Splitting{kDotColumns, kBlockColumns / kDotColumns, kDotRows, std::int64_t{1} << 20, 1 << 16},
                 int8_dot_block);
}

void gemm_int8_avx2_panel(const GemmProblem& problem, const RunContext& context) {
  for_each_block(problem, context, Splitting{kPanelColumns, kPanels, kTileRows, kMaxRows, 1 << 17}, int8_panel_block);
}

void gemm_fp8_avx2_panel(const GemmProblem& problem, const RunContext& context) {
  for_each_block(problem, context, Splitting{kPanelColumns, kPanels, kTileRows, kMaxRows, 1 << 17}, fp8_panel_block);
}

}  // namespace evergemm::cpu
