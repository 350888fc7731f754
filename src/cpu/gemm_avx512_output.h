// SPDX-License-Identifier: Apache-2.0
// The end of every AVX-512 GEMM: fp32 values are rounded once to the output type and stored. Each file that includes it,
// compiled for its own instruction set, has its own copy in its unnamed namespace. Must not go here: scales, biases.
#pragma once
#include "cpu/gemm_avx512_transpose.h"
#include "evergemm/problem.h"

namespace evergemm::cpu {
namespace {

// Rounds to nearest even into the high half of each dword; a NaN becomes 0x7fc0, as numerics.h has it. (vcvtneps2bf16
// would flush subnormals.)
inline __m512i to_bfloat16_in_high_half(__m512 value) {
  const __m512i bits = _mm512_castps_si512(value);
  const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
  const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
  const __m512i even_rounded = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
  const __m512i rounded = _mm512_mask_add_epi32(even_rounded, odd, bits, _mm512_set1_epi32(0x8000));
  return _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc00000));
}

// Stores columns [column, column + count) of one row; values(j) gives columns column + j .. column + j + 15 in fp32, is
// asked for multiples of 16, and may return anything beyond count.
template <class Values>
inline void store_row(const GemmProblem& problem, std::int64_t row, std::int64_t column, std::int64_t count,
                      Values values) {
  const std::int64_t at = row * problem.out_stride + column;
  if (problem.output_dtype == DType::float32) {
    float* out = static_cast<float*>(problem.out) + at;
    std::int64_t j = 0;
    for (; j + 16 <= count; j += 16) _mm512_storeu_ps(out + j, values(j));
    if (j < count) _mm512_mask_storeu_ps(out + j, first_lanes(count - j), values(j));
    return;
  }
  std::uint16_t* out = static_cast<std::uint16_t*>(problem.out) + at;
  std::int64_t j = 0;
  if (problem.output_dtype == DType::float16) {
    constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    for (; j + 16 <= count; j += 16) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + j), _mm512_cvtps_ph(values(j), kNearest));
    }
    if (j < count) _mm256_mask_storeu_epi16(out + j, first_lanes(count - j), _mm512_cvtps_ph(values(j), kNearest));
    return;
  }
  alignas(64) static constexpr std::uint16_t kHighHalves[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21,
                                                                23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43,
                                                                45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  const __m512i high_halves = _mm512_load_si512(kHighHalves);
  for (; j + 16 < count; j += 32) {
    const __m512i both = _mm512_permutex2var_epi16(to_bfloat16_in_high_half(values(j)), high_halves,
                                                   to_bfloat16_in_high_half(values(j + 16)));
    if (j + 32 <= count) {
      _mm512_storeu_si512(out + j, both);
    } else {
      _mm512_mask_storeu_epi16(out + j, first_words(count - j), both);
    }
  }
  if (j < count) {
    const __m512i one = _mm512_srli_epi32(to_bfloat16_in_high_half(values(j)), 16);
    _mm256_mask_storeu_epi16(out + j, first_lanes(count - j), _mm512_cvtepi32_epi16(one));
  }
}

}  // namespace
}  // namespace evergemm::cpu
