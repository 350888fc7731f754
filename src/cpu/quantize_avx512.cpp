// SPDX-License-Identifier: Apache-2.0
// Quantizers for processors with AVX-512 F, BW, DQ and VL (x86-64-v4). The only code here is what the compiler's own
// vectors do not say: conversions, narrowing, parts of a vector (by mask registers).
#if defined(__x86_64__)
#if !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // g++ 12's intrinsics start from a variable assigned to itself
#endif
#include <immintrin.h>
#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif

#include "cpu/quantize_rows.h"

namespace evergemm::cpu {
namespace {

struct Avx512 {
  static constexpr int kLanes = 16;
  typedef float Float __attribute__((vector_size(64)));
  typedef std::int32_t Int __attribute__((vector_size(64)));
  typedef std::int16_t Short __attribute__((vector_size(64)));

  static Int as_int(__m512i value) { return reinterpret_cast<Int>(value); }
  static __m512i as_m512i(Int value) { return reinterpret_cast<__m512i>(value); }
  static __mmask16 first(std::int64_t count) { return static_cast<__mmask16>((1u << count) - 1); }

  static Int load32(const void* p) { return as_int(_mm512_loadu_si512(p)); }
  static Int load32(const void* p, std::int64_t count) { return as_int(_mm512_maskz_loadu_epi32(first(count), p)); }
  static Int load16(const void* p) {
    return as_int(_mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p))));
  }
  static Int load16(const void* p, std::int64_t count) {
    return as_int(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(count), p)));
  }
  static Float load_float16(const void* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
  }
  static Float load_float16(const void* p, std::int64_t count) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(count), p));
  }

  static void store32(void* p, Int value, Whole) { _mm512_storeu_si512(p, as_m512i(value)); }
  static void store32(void* p, Int value, std::int64_t count) {
    _mm512_mask_storeu_epi32(p, first(count), as_m512i(value));
  }
  static void store16(void* p, Int value, Whole) {
    _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtepi32_epi16(as_m512i(value)));
  }
  static void store16(void* p, Int value, std::int64_t count) {
    _mm256_mask_storeu_epi16(p, first(count), _mm512_cvtepi32_epi16(as_m512i(value)));
  }
  static void store8(void* p, Int value, Whole) {
    _mm_storeu_si128(static_cast<__m128i*>(p), _mm512_cvtepi32_epi8(as_m512i(value)));
  }
  static void store8(void* p, Int value, std::int64_t count) {
    _mm_mask_storeu_epi8(p, first(count), _mm512_cvtepi32_epi8(as_m512i(value)));
  }

  static Float fma(Float x, Float y, Float z) { return _mm512_fmadd_ps(x, y, z); }
  static Float least(Float x, Float y) { return _mm512_min_ps(x, y); }
  static Float most(Float x, Float y) { return _mm512_max_ps(x, y); }
  static Int least(Int x, Int y) { return as_int(_mm512_min_epi32(as_m512i(x), as_m512i(y))); }
  static Int most(Int x, Int y) { return as_int(_mm512_max_epi32(as_m512i(x), as_m512i(y))); }
  static Short most(Short x, Short y) {
    return reinterpret_cast<Short>(_mm512_max_epi16(reinterpret_cast<__m512i>(x), reinterpret_cast<__m512i>(y)));
  }
  static std::int32_t largest(Short value) {  // of values >= 0
    const __m512i v = reinterpret_cast<__m512i>(value);
    const __m256i quarter = _mm256_max_epi16(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
    const __m128i half = _mm_max_epi16(_mm256_castsi256_si128(quarter), _mm256_extracti128_si256(quarter, 1));
    const __m128i inverted = _mm_xor_si128(half, _mm_set1_epi16(-1));  // minpos finds the smallest unsigned
    return 0xffff ^ (_mm_cvtsi128_si32(_mm_minpos_epu16(inverted)) & 0xffff);
  }
  static std::int32_t largest(Int value) { return _mm512_reduce_max_epi32(as_m512i(value)); }
};

}  // namespace

constinit const QuantizeKernel kQuantizeAvx512 = kernel_of<Avx512>();

}  // namespace evergemm::cpu
#endif
