// SPDX-License-Identifier: Apache-2.0
// fp8 GEMM with AVX-512 F, BW, DQ and VL: codes become fp32 by arithmetic on dwords.
// Compiled with -mavx512f -mavx512bw -mavx512dq -mavx512vl, this file only: everything that is not a kernel listed in
// gemm_kernels.h stays in the unnamed namespace, and no library template may be used here.
#include "cpu/gemm_avx512_fp8.h"
#include "cpu/gemm_kernels.h"

namespace evergemm::cpu {
namespace {

struct ComputedCodes {
  // 16 codes, each in the low byte of a dword whose other bytes may hold anything -> fp32, exact. Normal codes are
  // (magnitude << 20) + (120 << 23); exponent field 0 is magnitude * 2^-9, looked up.
  [[gnu::always_inline]] static __m512 convert(__m512i code) {
    const __m512i largest = _mm512_set1_epi32(0x7f << 20);
    const __m512i magnitude = _mm512_and_si512(_mm512_slli_epi32(code, 20), largest);
    const __m512 normal = _mm512_castsi512_ps(_mm512_add_epi32(magnitude, _mm512_set1_epi32(120 << 23)));
    const __mmask16 subnormal = _mm512_testn_epi32_mask(code, _mm512_set1_epi32(0x78));
    const __m512 multiples =
        _mm512_setr_ps(0x0p-9f, 0x1p-9f, 0x2p-9f, 0x3p-9f, 0x4p-9f, 0x5p-9f, 0x6p-9f, 0x7p-9f, 0, 0, 0, 0, 0, 0, 0, 0);
    const __m512 finite = _mm512_mask_permutexvar_ps(normal, subnormal, code, multiples);
    const __mmask16 nan = _mm512_cmpeq_epi32_mask(magnitude, largest);
    const __m512i value = _mm512_mask_mov_epi32(_mm512_castps_si512(finite), nan, _mm512_set1_epi32(0x7fc00000));
    // value | (code << 24 & 0x80000000)
    return _mm512_castsi512_ps(
        _mm512_ternarylogic_epi32(value, _mm512_slli_epi32(code, 24), _mm512_set1_epi32(INT32_MIN), 0xf8));
  }
  [[gnu::always_inline]] static void of_quads(__m512i codes, __m512 (&values)[4]) {
    values[0] = convert(codes);
    values[1] = convert(_mm512_srli_epi32(codes, 8));
    values[2] = convert(_mm512_srli_epi32(codes, 16));
    values[3] = convert(_mm512_srli_epi32(codes, 24));
  }
  [[gnu::always_inline]] static void in_order(__m512i codes, __m512 (&values)[4]) {
    values[0] = convert(_mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32(codes, 0)));
    values[1] = convert(_mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32(codes, 1)));
    values[2] = convert(_mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32(codes, 2)));
    values[3] = convert(_mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32(codes, 3)));
  }
};

using Panel = PanelGemm<ComputedCodes>;

}  // namespace

void gemm_fp8_avx512_panel(const GemmProblem& problem, const RunContext& context) {
  for_each_block(problem, context, Panel::splitting(1 << 18), Panel::run_block);
}

}  // namespace evergemm::cpu
