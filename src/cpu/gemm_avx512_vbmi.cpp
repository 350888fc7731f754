// SPDX-License-Identifier: Apache-2.0
// fp8 GEMM with AVX-512 VBMI: the 128 magnitudes of codes are looked up in registers, as bfloat16, which holds them all.
// Compiled with -mavx512vbmi on top of gemm_avx512.cpp's flags, this file only: everything that is not a kernel listed in
// gemm_kernels.h stays in the unnamed namespace, and no library template may be used here.
#include "cpu/gemm_avx512_fp8.h"
#include "cpu/gemm_kernels.h"

namespace evergemm::cpu {
namespace {

struct alignas(64) Tables {
  std::uint8_t low[128], high[128];               // the bytes of each magnitude's bfloat16
  std::uint8_t of_quads[4][64], in_order[4][64];  // which byte of (low, high) goes to bytes 2 and 3 of each dword
};

constexpr Tables make_tables() {
  Tables tables{};
  for (int magnitude = 0; magnitude < 128; ++magnitude) {
    int bits = (magnitude << 4) + (120 << 7);
    if (magnitude == 0) bits = 0;
    if (magnitude == 0x7f) bits = 0x7fc0;
    if (magnitude > 0 && magnitude < 8) {  // magnitude * 2^-9
      const int exponent = magnitude >= 4 ? 2 : magnitude >= 2 ? 1 : 0;
      bits = ((127 - 9 + exponent) << 7) + ((magnitude << (7 - exponent)) & 0x7f);
    }
    tables.low[magnitude] = static_cast<std::uint8_t>(bits & 0xff);
    tables.high[magnitude] = static_cast<std::uint8_t>(bits >> 8);
  }
  for (int v = 0; v < 4; ++v) {
    for (int lane = 0; lane < 16; ++lane) {
      tables.of_quads[v][4 * lane + 2] = static_cast<std::uint8_t>(4 * lane + v);
      tables.of_quads[v][4 * lane + 3] = static_cast<std::uint8_t>(64 + 4 * lane + v);
      tables.in_order[v][4 * lane + 2] = static_cast<std::uint8_t>(16 * v + lane);
      tables.in_order[v][4 * lane + 3] = static_cast<std::uint8_t>(64 + 16 * v + lane);
    }
  }
  return tables;
}
constexpr Tables kTables = make_tables();

struct LookedUpCodes {
  [[gnu::always_inline]] static void convert(__m512i codes, const std::uint8_t (&places)[4][64], __m512 (&values)[4]) {
    const __m512i low =
        _mm512_permutex2var_epi8(_mm512_load_si512(kTables.low), codes, _mm512_load_si512(kTables.low + 64));
    const __m512i magnitude_high =
        _mm512_permutex2var_epi8(_mm512_load_si512(kTables.high), codes, _mm512_load_si512(kTables.high + 64));
    // high = magnitude_high | (codes & 0x80)
    const __m512i high = _mm512_ternarylogic_epi32(magnitude_high, codes, _mm512_set1_epi8(-128), 0xf8);
    constexpr __mmask64 kUpperHalves = 0xccccccccccccccccu;
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      values[v] =
          _mm512_castsi512_ps(_mm512_maskz_permutex2var_epi8(kUpperHalves, low, _mm512_load_si512(places[v]), high));
    }
  }
  [[gnu::always_inline]] static void of_quads(__m512i codes, __m512 (&values)[4]) {
    convert(codes, kTables.of_quads, values);
  }
  [[gnu::always_inline]] static void in_order(__m512i codes, __m512 (&values)[4]) {
    convert(codes, kTables.in_order, values);
  }
};

using Panel = PanelGemm<LookedUpCodes>;
using Dot = DotGemm<LookedUpCodes>;

}  // namespace

void gemm_fp8_avx512_vbmi_panel(const GemmProblem& problem, const RunContext& context) {
  for_each_block(problem, context, Panel::splitting(1 << 18), Panel::run_block);
}

void gemm_fp8_avx512_vbmi_dot(const GemmProblem& problem, const RunContext& context) {
  for_each_block(problem, context, Dot::splitting(1 << 16), Dot::run_block);
}

}  // namespace evergemm::cpu
