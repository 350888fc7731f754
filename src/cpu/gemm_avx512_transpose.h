// SPDX-License-Identifier: Apache-2.0
// Moves between rows and vectors that the AVX-512 GEMM files share: masks of ragged ends, the 16 x 16 transposition
// behind packing, and sixteen sums of lanes at once. Each file that includes it, compiled for its own instruction set,
// has its own copy in its unnamed namespace. Must not go here: what is multiplied.
#pragma once
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc 12's intrinsics start from a variable assigned to itself
#include <immintrin.h>
#pragma GCC diagnostic pop

#include <cstdint>

namespace evergemm::cpu {
namespace {

inline std::int64_t smaller(std::int64_t x, std::int64_t y) { return x < y ? x : y; }

inline __mmask16 first_lanes(std::int64_t count) {
  return count >= 16 ? __mmask16{0xffff} : static_cast<__mmask16>((1u << count) - 1u);
}
inline __mmask32 first_words(std::int64_t count) { return count >= 32 ? ~__mmask32{0} : (__mmask32{1} << count) - 1u; }
inline __mmask64 first_bytes(std::int64_t count) { return count >= 64 ? ~__mmask64{0} : (__mmask64{1} << count) - 1u; }

// 64 bytes each of 16 rows of b -> dwords[quad][row]: vector q holds bytes 4 q .. 4 q + 3 of every row. Where fewer rows
// or bytes are left, nothing else is read and zeros take their place.
inline void load_transposed(const void* b, std::int64_t b_stride, std::int64_t rows, std::int64_t bytes,
                            __m512i (&dwords)[16]) {
  const char* from = static_cast<const char*>(b);
  __m512i row[16], pair[16];
  if (rows >= 16 && bytes >= 64) {
    const std::int64_t b_stride3 =
        3 * b_stride;  // four bases and two strides stay in registers, sixteen addresses do not
#pragma GCC unroll 4
    for (int j = 0; j < 16; j += 4) {
      const char* four = from + j * b_stride;
      row[j] = _mm512_loadu_si512(four);
      row[j + 1] = _mm512_loadu_si512(four + b_stride);
      row[j + 2] = _mm512_loadu_si512(four + 2 * b_stride);
      row[j + 3] = _mm512_loadu_si512(four + b_stride3);
    }
  } else {
    const __mmask64 mask = first_bytes(bytes);
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) {
      row[j] = j < rows ? _mm512_maskz_loadu_epi8(mask, from + j * b_stride) : _mm512_setzero_si512();
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) {
    pair[2 * j] = _mm512_unpacklo_epi32(row[2 * j], row[2 * j + 1]);
    pair[2 * j + 1] = _mm512_unpackhi_epi32(row[2 * j], row[2 * j + 1]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {  // row[4 j + q]: in each 128-bit lane, dword q of rows 4 j .. 4 j + 3
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
    dwords[q] = _mm512_shuffle_i32x4(low01, low23, 0x88);
    dwords[4 + q] = _mm512_shuffle_i32x4(low01, low23, 0xdd);
    dwords[8 + q] = _mm512_shuffle_i32x4(high01, high23, 0x88);
    dwords[12 + q] = _mm512_shuffle_i32x4(high01, high23, 0xdd);
  }
}

// Asks for the lines of 16 rows that load_transposed() wants kAhead bytes of k later. Rows much further on would be
// another stream each, and the processor follows only so many; measured, 256 was best or equal from L3 and from memory.
inline void prefetch_rows(const void* b, std::int64_t b_stride) {
  constexpr std::int64_t kAhead = 256;
  const char* from = static_cast<const char*>(b) + kAhead;
  const std::int64_t b_stride3 = 3 * b_stride;
#pragma GCC unroll 4
  for (int j = 0; j < 16; j += 4) {
    const char* four = from + j * b_stride;
    _mm_prefetch(four, _MM_HINT_T1);
    _mm_prefetch(four + b_stride, _MM_HINT_T1);
    _mm_prefetch(four + 2 * b_stride, _MM_HINT_T1);
    _mm_prefetch(four + b_stride3, _MM_HINT_T1);
  }
}

// Lane j of the result = sum of the lanes of sums[j], modulo 2^32.
inline __m512i add_lanes(const __m512i (&sums)[16]) {
  __m512i pair[8], quad[4];
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) {
    pair[j] = _mm512_add_epi32(_mm512_unpacklo_epi32(sums[2 * j], sums[2 * j + 1]),
                               _mm512_unpackhi_epi32(sums[2 * j], sums[2 * j + 1]));
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {  // each 128-bit lane: a quarter of sums 4 j .. 4 j + 3
    quad[j] = _mm512_add_epi32(_mm512_unpacklo_epi64(pair[2 * j], pair[2 * j + 1]),
                               _mm512_unpackhi_epi64(pair[2 * j], pair[2 * j + 1]));
  }
  const __m512i low =
      _mm512_add_epi32(_mm512_shuffle_i32x4(quad[0], quad[1], 0x88), _mm512_shuffle_i32x4(quad[0], quad[1], 0xdd));
  const __m512i high =
      _mm512_add_epi32(_mm512_shuffle_i32x4(quad[2], quad[3], 0x88), _mm512_shuffle_i32x4(quad[2], quad[3], 0xdd));
  return _mm512_add_epi32(_mm512_shuffle_i32x4(low, high, 0x88), _mm512_shuffle_i32x4(low, high, 0xdd));
}

}  // namespace
}  // namespace evergemm::cpu
