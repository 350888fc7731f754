// SPDX-License-Identifier: Apache-2.0
// Quantizers for processors with AVX2, FMA and F16C (x86-64-v3). The only code here is what the compiler's own vectors
// do not say: conversions, narrowing, parts of a vector.
#if defined(__x86_64__)
#include <immintrin.h>

#include "cpu/quantize_rows.h"

namespace evergemm::cpu {
namespace {

struct Avx2 {
  static constexpr int kLanes = 8;
  typedef float Float __attribute__((vector_size(32)));
  typedef std::int32_t Int __attribute__((vector_size(32)));
  typedef std::int16_t Short __attribute__((vector_size(32)));

  static Int as_int(__m256i value) { return reinterpret_cast<Int>(value); }
  static __m256i as_m256i(Int value) { return reinterpret_cast<__m256i>(value); }

  // The first `count` 16-bit elements, zeros behind them.
  static __m128i words(const void* p, std::int64_t count) {
    __m128i value = _mm_setzero_si128();
    __builtin_memcpy(&value, p, static_cast<std::size_t>(count) * 2);
    return value;
  }
  static __m256i first(std::int64_t count) {  // lanes below count: all ones
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }

  static Int load32(const void* p) { return as_int(_mm256_loadu_si256(static_cast<const __m256i*>(p))); }
  static Int load32(const void* p, std::int64_t count) {
    return as_int(_mm256_maskload_epi32(static_cast<const int*>(p), first(count)));
  }
  static Int load16(const void* p) {
    return as_int(_mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))));
  }
  static Int load16(const void* p, std::int64_t count) { return as_int(_mm256_cvtepu16_epi32(words(p, count))); }
  static Float load_float16(const void* p) { return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p))); }
  static Float load_float16(const void* p, std::int64_t count) { return _mm256_cvtph_ps(words(p, count)); }

  static void store32(void* p, Int value, Whole) { _mm256_storeu_si256(static_cast<__m256i*>(p), as_m256i(value)); }
  static void store32(void* p, Int value, std::int64_t count) {
    _mm256_maskstore_epi32(static_cast<int*>(p), first(count), as_m256i(value));
  }
  static __m128i low_words(Int value) {
    const __m256i packed = _mm256_packus_epi32(as_m256i(value), as_m256i(value));  // each half twice
    return _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
  }
  static void store16(void* p, Int value, Whole) { _mm_storeu_si128(static_cast<__m128i*>(p), low_words(value)); }
  static void store16(void* p, Int value, std::int64_t count) {
    const __m128i packed = low_words(value);
    __builtin_memcpy(p, &packed, static_cast<std::size_t>(count) * 2);
  }
  static std::int64_t low_bytes(Int value) {
    const __m256i gather = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                            0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m256i bytes = _mm256_shuffle_epi8(as_m256i(value), gather);
    return _mm_cvtsi128_si64(_mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1)));
  }
  static void store8(void* p, Int value, Whole) {
    const std::int64_t bytes = low_bytes(value);
    __builtin_memcpy(p, &bytes, sizeof bytes);
  }
  static void store8(void* p, Int value, std::int64_t count) {
    const std::int64_t bytes = low_bytes(value);
    __builtin_memcpy(p, &bytes, static_cast<std::size_t>(count));
  }

  static Float fma(Float x, Float y, Float z) { return _mm256_fmadd_ps(x, y, z); }
  static Float least(Float x, Float y) { return _mm256_min_ps(x, y); }
  static Float most(Float x, Float y) { return _mm256_max_ps(x, y); }
  static Int least(Int x, Int y) { return as_int(_mm256_min_epi32(as_m256i(x), as_m256i(y))); }
  static Int most(Int x, Int y) { return as_int(_mm256_max_epi32(as_m256i(x), as_m256i(y))); }
  static Short most(Short x, Short y) {
    return reinterpret_cast<Short>(_mm256_max_epi16(reinterpret_cast<__m256i>(x), reinterpret_cast<__m256i>(y)));
  }
  static std::int32_t largest(Short value) {  // of values >= 0
    const __m256i v = reinterpret_cast<__m256i>(value);
    const __m128i half = _mm_max_epi16(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    const __m128i inverted = _mm_xor_si128(half, _mm_set1_epi16(-1));  // minpos finds the smallest unsigned
    return 0xffff ^ (_mm_cvtsi128_si32(_mm_minpos_epu16(inverted)) & 0xffff);
  }
  static std::int32_t largest(Int value) {
    __m128i most = _mm_max_epi32(_mm256_castsi256_si128(as_m256i(value)), _mm256_extracti128_si256(as_m256i(value), 1));
    most = _mm_max_epi32(most, _mm_shuffle_epi32(most, 0x4e));
    most = _mm_max_epi32(most, _mm_shuffle_epi32(most, 0xb1));
    return _mm_cvtsi128_si32(most);
  }
};

}  // namespace

constinit const QuantizeKernel kQuantizeAvx2 = kernel_of<Avx2>();

}  // namespace evergemm::cpu
#endif
