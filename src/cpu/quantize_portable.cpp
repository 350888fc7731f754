// SPDX-License-Identifier: Apache-2.0
// Quantizers for any processor: vectors of 16 bytes, which the compiler maps to what the target has, or to scalars.
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "cpu/quantize_rows.h"

namespace evergemm::cpu {
namespace {

struct Portable {
  static constexpr int kLanes = 4;
  typedef float Float __attribute__((vector_size(16)));
  typedef std::int32_t Int __attribute__((vector_size(16)));
  typedef std::int16_t Short __attribute__((vector_size(16)));
  typedef std::uint16_t Words __attribute__((vector_size(8)));

  static Int load32(const void* p) {
    Int value;
    __builtin_memcpy(&value, p, sizeof value);
    return value;
  }
  static Int load32(const void* p, std::int64_t count) {
    Int value = {};
    __builtin_memcpy(&value, p, static_cast<std::size_t>(count) * 4);
    return value;
  }
  static Int load16(const void* p) {
    Words words;
    __builtin_memcpy(&words, p, sizeof words);
    return __builtin_convertvector(words, Int);
  }
  static Int load16(const void* p, std::int64_t count) {
    Words words = {};
    __builtin_memcpy(&words, p, static_cast<std::size_t>(count) * 2);
    return __builtin_convertvector(words, Int);
  }
  // numerics.h's float16_to_float: a normal's exponent moves from bias 15 to 127; what is below 2^-14 is an integer
  // times 2^-24, exact in fp32.
  static Float from_float16(Int code) {
    const Int sign = (code & 0x8000) << 16;
    const Int magnitude = code & 0x7fff;
    const Int special = 0x7f800000 | (magnitude & 0x3ff) << 13;
    const Int normal = (magnitude << 13) + (112 << 23);
    const Float subnormal = __builtin_convertvector(magnitude, Float) * 5.9604644775390625e-08f;
    const Int finite = magnitude >= 0x400 ? normal : reinterpret_cast<Int>(subnormal);
    return reinterpret_cast<Float>(sign | (magnitude >= 0x7c00 ? special : finite));
  }
  static Float load_float16(const void* p) { return from_float16(load16(p)); }
  static Float load_float16(const void* p, std::int64_t count) { return from_float16(load16(p, count)); }

  static void store32(void* p, Int value, Whole) { __builtin_memcpy(p, &value, sizeof value); }
  static void store32(void* p, Int value, std::int64_t count) {
    __builtin_memcpy(p, &value, static_cast<std::size_t>(count) * 4);
  }
  static void store16(void* p, Int value, Whole) {
    const Words words = __builtin_convertvector(value, Words);
    __builtin_memcpy(p, &words, sizeof words);
  }
  static void store16(void* p, Int value, std::int64_t count) {
    const Words words = __builtin_convertvector(value, Words);
    __builtin_memcpy(p, &words, static_cast<std::size_t>(count) * 2);
  }
  static void store8(void* p, Int value, Whole) {
#if defined(__SSE2__)  // part of every x86-64; the compiler's own narrowing goes lane by lane
    const __m128i words = _mm_packs_epi32(reinterpret_cast<__m128i>(value & 255), _mm_setzero_si128());
    const int bytes = _mm_cvtsi128_si32(_mm_packus_epi16(words, words));
    __builtin_memcpy(p, &bytes, sizeof bytes);
#else
    store8(p, value, std::int64_t{kLanes});
#endif
  }
  static void store8(void* p, Int value, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) static_cast<std::uint8_t*>(p)[i] = static_cast<std::uint8_t>(value[i]);
  }

  static Float fma(Float x, Float y, Float z) {
    for (int i = 0; i < kLanes; ++i) x[i] = numerics::fma32(x[i], y[i], z[i]);
    return x;
  }
  template <class Vector>
  static Vector least(Vector x, Vector y) {
    return x < y ? x : y;
  }
  template <class Vector>
  static Vector most(Vector x, Vector y) {
    return x > y ? x : y;
  }
  static std::int32_t largest(Short value) {
    std::int16_t most = value[0];
    for (int i = 1; i < 2 * kLanes; ++i) most = value[i] > most ? value[i] : most;
    return most;
  }
  static std::int32_t largest(Int value) {
    std::int32_t most = value[0];
    for (int i = 1; i < kLanes; ++i) most = value[i] > most ? value[i] : most;
    return most;
  }
};

}  // namespace

constinit const QuantizeKernel kQuantizePortable = kernel_of<Portable>();

}  // namespace evergemm::cpu
