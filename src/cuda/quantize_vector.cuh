// SPDX-License-Identifier: Apache-2.0
// Eight neighbouring values to eight bytes with one scale, and largest magnitudes of vectors as they lie in memory: the inner
// loops of the vector quantizers, in as few instructions as give the bits of numerics.h. Must not go here: loops over rows.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/quantize_values.cuh"

namespace evergemm::cuda {

// Largest magnitude of values that are fp32 already, as bits: NaN above infinity.
template <int kCount>
static __device__ __forceinline__ std::uint32_t largest_bits(const float (&values)[kCount], std::uint32_t so_far) {
  float largest = __uint_as_float(so_far);
#pragma unroll
  for (int i = 0; i < kCount; ++i) largest = larger_or_nan(largest, fabsf(values[i]));
  return __float_as_uint(largest);
}

// Largest magnitude of vectors, two 16-bit codes at a time: without their signs codes are ordered as the values are.
template <class Element>
class LargestMagnitude {
 public:
  __device__ __forceinline__ void add(const Vector<Element>& vector) {
#pragma unroll
    for (const uint4& piece : vector.pieces) {
      add_word(piece.x);
      add_word(piece.y);
      add_word(piece.z);
      add_word(piece.w);
    }
  }
  // As the bits of an fp32 magnitude; any NaN as one above infinity.
  __device__ __forceinline__ std::uint32_t bits() const {
    if constexpr (sizeof(typename Element::Bits) == 4) {
      return word_;
    } else {
      const std::uint32_t code = max(word_ & 0xffffu, word_ >> 16);
      return __float_as_uint(Element::widen(static_cast<typename Element::Bits>(code)));
    }
  }

 private:
  __device__ __forceinline__ void add_word(std::uint32_t word) {
    if constexpr (sizeof(typename Element::Bits) == 4)
      word_ = max(word_, word & 0x7fffffffu);
    else
      word_ = __vmaxu2(word_, word & 0x7fff7fffu);
  }
  std::uint32_t word_ = 0;
};

// Least and largest of zero and the values of vectors; both NaN where a value is.
template <class Element>
class Range {
 public:
  __device__ __forceinline__ void add(const Vector<Element>& vector) {
#pragma unroll
    for (const uint4& piece : vector.pieces) {
      add_word(piece.x);
      add_word(piece.y);
      add_word(piece.z);
      add_word(piece.w);
    }
  }
  __device__ __forceinline__ float low() const { return least(low_); }
  __device__ __forceinline__ float high() const { return largest(high_); }

 private:
  static __device__ __forceinline__ float least(std::uint32_t word) {
    if constexpr (sizeof(typename Element::Bits) == 4) {
      return __uint_as_float(word);
    } else {
      float x, y;
      Element::widen_pair(word, x, y);
      return smaller_or_nan(x, y);
    }
  }
  static __device__ __forceinline__ float largest(std::uint32_t word) {
    if constexpr (sizeof(typename Element::Bits) == 4) {
      return __uint_as_float(word);
    } else {
      float x, y;
      Element::widen_pair(word, x, y);
      return larger_or_nan(x, y);
    }
  }
  __device__ __forceinline__ void add_word(std::uint32_t word) {
    low_ = Element::smaller_pair(low_, word);
    high_ = Element::larger_pair(high_, word);
  }
  std::uint32_t low_ = 0, high_ = 0;
};

// ---- values to bytes --------------------------------------------------------------------------------------------------
// Two ways, both with the bits of a correct division and in fewer instructions. `Bracket` serves every value and meets
// quotients at a boundary of rounding by a detour. 16-bit values meet such quotients often, as their ratios are those of small
// integers; for them `nearly_divided` needs none.

// Where a scale is positive and in [2^-60, 2^60]: two factors whose products with a value enclose the correctly rounded
// quotient. Rounding to eight bits keeps order, so where both products give the same byte the quotient gives it too; where
// they do not (about once in 2^16 values) it is formed. low and high are 2^-21 below and above a reciprocal, whose error is
// below 2^-23; theirs and those of the products are 2^-24 each. A power of two divides without error, and they are equal.
struct Bracket {
  float scale, reciprocal, low, high;
  bool ordinary;  // whether the scale is in that range; else there are no such factors

  __device__ __forceinline__ explicit Bracket(float of_scale) : scale(of_scale) {
    constexpr float kLow = 8.673617379884035e-19f, kHigh = 1.152921504606847e18f;  // 2^-60, 2^60
    ordinary = scale >= kLow && scale <= kHigh;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(scale));
    // One step from within a unit of the last place: what is left is far below the margin.
    reciprocal = __fmaf_rn(__fmaf_rn(-scale, reciprocal, 1.0f), reciprocal, reciprocal);
    const float margin = (__float_as_uint(scale) & 0x7fffffu) == 0 ? 0.0f : 4.76837158203125e-07f;  // 2^-21
    low = __fmaf_rn(-margin, reciprocal, reciprocal);
    high = __fmaf_rn(margin, reciprocal, reciprocal);
  }
};

// value / scale to within the last bit, for a value of a 16-bit type whose quotient does not overflow, and an ordinary scale whose
// mantissa is not all ones. It gives the byte of the correct quotient:
// q = v r is within 2^-22 of v / s, and after the step within 2^-44, or 2^-20 of a last bit. So the correct fp32 quotient is another
// number only where v / s is as near to the middle m of two neighbours, and its byte is another one only where one of these is a
// boundary t between two bytes, a number of 5 bits (fp8) or up to 9 (int8): p of them. Then v - s t = s (m - t), which is s times
// half the last bit of t but for 2^-19 of it. Measured in the last bits of s and t, s = S of 24 bits and t = T of p bits, it is an
// integer N = S 2^(p-25), but for as much; so S = N 2^(25-p) + d with |d| < 32, and v = S T + N = N T 2^(25-p) + d T + N. The first
// term is a multiple of 2^16, and so is v, of whose 23 + p bits or more 11 at most are not zeros. Hence d T + N is 0, since it is
// smaller than 2^16; and as N <= 2^(p-1) <= T, that is N = T and d = -1: a mantissa of all ones. (Below a t that is a power of two
// the neighbour is half as far, N <= 2^(p-2), and there is no such case; with -N alike.)
static __device__ __forceinline__ float nearly_divided(float value, const Bracket& bracket) {
  const float quotient = __fmul_rn(value, bracket.reciprocal);
  return __fmaf_rn(-__fmaf_rn(bracket.scale, quotient, -value), bracket.reciprocal,
                   quotient);  // keeps the sign of a zero
}
static __device__ __forceinline__ bool divides_nearly(const Bracket& bracket) {
  return bracket.ordinary && (~__float_as_uint(bracket.scale) & 0x7fffffu) != 0;
}

static __device__ __forceinline__ uint2 float8_words(const float (&quotients)[kVector]) {
  std::uint32_t pairs[kVector / 2];
#pragma unroll
  for (int i = 0; i < kVector / 2; ++i) pairs[i] = round_float8_pair(quotients[2 * i], quotients[2 * i + 1]);
  return make_uint2(__byte_perm(pairs[0], pairs[1], 0x5410), __byte_perm(pairs[2], pairs[3], 0x5410));
}

// 1.5 * 2^23: a number below 2^22 that is added to it leaves its nearest integer, ties to even, in the last bits.
inline constexpr float kRounder = 12582912.0f;
inline constexpr std::uint32_t kRounderBits = 0x4b400000u;

// The last bytes of four words as one.
static __device__ __forceinline__ std::uint32_t last_bytes(const std::uint32_t (&words)[4]) {
  return __byte_perm(__byte_perm(words[0], words[1], 0x0040), __byte_perm(words[2], words[3], 0x0040), 0x5410);
}

// Out of line: rare, and its instructions would crowd those of the common way.
static __device__ __noinline__ uint2 divided_words(float4 first, float4 second, float scale, bool to_int8) {
  const float values[kVector] = {first.x, first.y, first.z, first.w, second.x, second.y, second.z, second.w};
  float quotients[kVector];
  Divider(scale).divide(values, quotients, true);
  std::uint32_t words[2];
#pragma unroll
  for (int w = 0; w < 2; ++w) {
    const float* four = &quotients[w * 4];
    words[w] =
        to_int8 ? round_int8(four[0]) | round_int8(four[1]) << 8 | round_int8(four[2]) << 16 | round_int8(four[3]) << 24
                : round_float8_pair(four[0], four[1]) | round_float8_pair(four[2], four[3]) << 16;
  }
  return make_uint2(words[0], words[1]);
}
static __device__ __forceinline__ uint2 divided(const float (&v)[kVector], float scale, bool to_int8) {
  return divided_words(make_float4(v[0], v[1], v[2], v[3]), make_float4(v[4], v[5], v[6], v[7]), scale, to_int8);
}

// bounded: the scale is that of values which include these, so that no quotient passes 448 by more than rounding.
// kSixteenBits: the values are those of a 16-bit type.
template <bool kSixteenBits>
static __device__ __forceinline__ uint2 to_float8(const float (&values)[kVector], const Bracket& bracket,
                                                  bool bounded) {
  if constexpr (kSixteenBits) {
    if (bounded && divides_nearly(bracket)) {
      float quotients[kVector];
#pragma unroll
      for (int i = 0; i < kVector; ++i) quotients[i] = nearly_divided(values[i], bracket);
      return float8_words(quotients);
    }
  }
  float lower[kVector], upper[kVector];
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    lower[i] = __fmul_rn(values[i], bracket.low);
    upper[i] = __fmul_rn(values[i], bracket.high);
  }
  const uint2 low = float8_words(lower), high = float8_words(upper);
  if (bracket.ordinary && low.x == high.x && low.y == high.y) return low;
  return divided(values, bracket.scale, false);
}

// As to_float8: no quotient passes 127 by more than rounding.
template <bool kSixteenBits>
static __device__ __forceinline__ uint2 to_int8(const float (&values)[kVector], const Bracket& bracket, bool bounded) {
  if constexpr (kSixteenBits) {
    if (bounded && divides_nearly(bracket)) {
      std::uint32_t words[kVector];
#pragma unroll
      for (int i = 0; i < kVector; ++i)
        words[i] = __float_as_uint(__fadd_rn(nearly_divided(values[i], bracket), kRounder));
      return make_uint2(last_bytes({words[0], words[1], words[2], words[3]}),
                        last_bytes({words[4], words[5], words[6], words[7]}));
    }
  } else if (bracket.ordinary && bounded) {
    std::uint32_t words[kVector], differing = 0;
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      words[i] = __float_as_uint(__fmaf_rn(values[i], bracket.low, kRounder));
      differing |= words[i] ^ __float_as_uint(__fmaf_rn(values[i], bracket.high, kRounder));
    }
    if (differing == 0)
      return make_uint2(last_bytes({words[0], words[1], words[2], words[3]}),
                        last_bytes({words[4], words[5], words[6], words[7]}));
  }
  return divided(values, bracket.scale, true);
}

static __device__ __noinline__ uint2 divided_asymmetric_words(float4 first, float4 second, float scale,
                                                              std::int32_t azp) {
  const float values[kVector] = {first.x, first.y, first.z, first.w, second.x, second.y, second.z, second.w};
  std::uint32_t words[kVector];
#pragma unroll
  for (int i = 0; i < kVector; ++i)
    words[i] = static_cast<std::uint8_t>(numerics::quantize_int8_asymmetric(values[i], scale, azp));
  return make_uint2(last_bytes({words[0], words[1], words[2], words[3]}),
                    last_bytes({words[4], words[5], words[6], words[7]}));
}

// sat(rn(value / scale) + azp); scale and azp are those of values which include these: no quotient passes 256.
static __device__ __forceinline__ uint2 to_asymmetric_int8(const float (&values)[kVector], const Bracket& bracket,
                                                           std::int32_t azp) {
  if (bracket.ordinary) {
    std::uint32_t differing = 0;
    std::int32_t shifted[kVector];
    const std::uint32_t shift = static_cast<std::uint32_t>(azp) - kRounderBits;
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const std::uint32_t rounded = __float_as_uint(__fmaf_rn(values[i], bracket.low, kRounder));
      differing |= rounded ^ __float_as_uint(__fmaf_rn(values[i], bracket.high, kRounder));
      shifted[i] = static_cast<std::int32_t>(rounded + shift);
    }
    if (differing == 0) {
      std::uint32_t words[2];
#pragma unroll
      for (int w = 0; w < 2; ++w)
        asm("{ .reg .b32 upper;\n"
            "cvt.pack.sat.s8.s32.b32 upper, %4, %3, 0;\n"
            "cvt.pack.sat.s8.s32.b32 %0, %2, %1, upper; }"
            : "=r"(words[w])
            : "r"(shifted[w * 4]), "r"(shifted[w * 4 + 1]), "r"(shifted[w * 4 + 2]), "r"(shifted[w * 4 + 3]));
      return make_uint2(words[0], words[1]);
    }
  }
  return divided_asymmetric_words(make_float4(values[0], values[1], values[2], values[3]),
                                  make_float4(values[4], values[5], values[6], values[7]), bracket.scale, azp);
}

// Drop-in schemes to int8, cut toward zero: 16-bit values without NaN under their own scale, where q_min is not above -q_max and
// q_max not above 127: what passes a limit by rounding is cut to it.
static __device__ __forceinline__ uint2 to_cut_int8(const float (&values)[kVector], const Bracket& bracket) {
  std::uint32_t words[kVector];
#pragma unroll
  for (int i = 0; i < kVector; ++i)
    words[i] = static_cast<std::uint32_t>(__float2int_rz(nearly_divided(values[i], bracket)));
  return make_uint2(last_bytes({words[0], words[1], words[2], words[3]}),
                    last_bytes({words[4], words[5], words[6], words[7]}));
}

// Drop-in schemes: clamped between q_min and q_max, NaN to q_min, int8 cut toward zero.
static __device__ __noinline__ uint2 dropin_words(float4 first, float4 second, float scale, float q_min, float q_max,
                                                  bool to_int8) {
  const float values[kVector] = {first.x, first.y, first.z, first.w, second.x, second.y, second.z, second.w};
  const Divider divider(scale);
  float quotients[kVector];
  divider.divide(values, quotients, false);
  // An ordinary scale means that no value is infinite; fmaxf and fminf then clamp as numerics::dropin_clamp does.
  const bool ordinary = divider.multiplies() && q_min < 0.0f && q_max > 0.0f;
  std::uint32_t words[2] = {};
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    float v = quotients[i];
    if (ordinary) {
      v = fminf(fmaxf(v, q_min), q_max);
    } else {
      v = fabsf(values[i]) > numerics::kFloatMax ? values[i] : v;
      const float low = v > q_min ? v : q_min;
      v = low < q_max ? low : q_max;
    }
    const std::uint32_t byte = to_int8 ? round_int8(truncf(v)) : round_float8_pair(v, 0.0f) & 0xffu;
    words[i / 4] |= byte << (i % 4 * 8);
  }
  return make_uint2(words[0], words[1]);
}

// ---- silu of 16-bit values ----------------------------------------------------------------------------------------------

// numerics::silu where |x| < 80: the same steps without what only larger x need (limits, a scaling in two factors), and on
// Hopper a division that is shorter than a correct one for any operands. That it is correct for these is shown by trying all
// values of both types there (quantize_test).
static __device__ __forceinline__ float silu_of_sixteen_bits(float x) {
  const float shifted = __fmaf_rn(x, -1.44269504088896341f, kRounder);
  const float n = __fadd_rn(shifted, -kRounder);
  float r = __fmaf_rn(n, -0.693359375f, -x);
  r = __fmaf_rn(n, 2.12194440e-4f, r);
  float p = 1.9875691500e-4f;
  p = __fmaf_rn(p, r, 1.3981999507e-3f);
  p = __fmaf_rn(p, r, 8.3334519073e-3f);
  p = __fmaf_rn(p, r, 4.1665795894e-2f);
  p = __fmaf_rn(p, r, 1.6666665459e-1f);
  p = __fmaf_rn(p, r, 5.0000001201e-1f);
  const float y = __fadd_rn(__fmaf_rn(__fmul_rn(r, r), p, r), 1.0f);
  const float power = __uint_as_float(__float_as_uint(y) + (__float_as_uint(shifted) << 23));  // e^-x
  const float divisor = __fadd_rn(1.0f, power);
#if __CUDA_ARCH__ == 900
  float reciprocal;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(divisor));
  const float quotient = __fmul_rn(x, reciprocal);
  return __fmaf_rn(-__fmaf_rn(divisor, quotient, -x), reciprocal, quotient);  // in this form -0 stays -0
#else
  return __fdiv_rn(x, divisor);
#endif
}

static __device__ __noinline__ float activated_out_of_line(Activation activation, float x) {
  return activated(activation, x);
}

// values = activation(gate) of a whole vector.
template <class Element>
static __device__ __forceinline__ void activate(Activation activation, const Vector<Element>& gate,
                                                float (&values)[kVector]) {
  gate.widen(values);
  if constexpr (sizeof(typename Element::Bits) == 2) {
    LargestMagnitude<Element> largest;
    largest.add(gate);
    if (activation == Activation::silu && largest.bits() < __float_as_uint(80.0f)) {
#pragma unroll
      for (float& value : values) value = silu_of_sixteen_bits(value);
      return;
    }
  }
#pragma unroll
  for (float& value : values) value = activated_out_of_line(activation, value);
}

}  // namespace evergemm::cuda
