// SPDX-License-Identifier: Apache-2.0
// The arithmetic that every backend shares, written once: 8- and 16-bit float conversions, correctly rounded fp32
// primitives that no compiler may contract, and the activations' stated polynomials. docs/numerics.md explains it.
// Must not go here: anything that knows tensors, shapes or threads.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define EVERGEMM_HOST_DEVICE __host__ __device__ __forceinline__
#else
// Always inlined: files compiled for different instruction sets include this, and a copy that the linker keeps from one of
// them must not be called on a processor without it.
#define EVERGEMM_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace evergemm::numerics {

// ---- fp32 primitives: one rounding each, never fused ------------------------------------------------------------------
// Host translation units are compiled with -ffp-contract=off; device code says __f*_rn, which nvcc does not contract.

EVERGEMM_HOST_DEVICE float bits_to_float(std::uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
#endif
}
EVERGEMM_HOST_DEVICE std::uint32_t float_to_bits(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
#endif
}
EVERGEMM_HOST_DEVICE float fma32(float x, float y, float z) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(x, y, z);
#else
  return __builtin_fmaf(x, y, z);
#endif
}
EVERGEMM_HOST_DEVICE float mul32(float x, float y) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(x, y);
#else
  return x * y;
#endif
}
EVERGEMM_HOST_DEVICE float add32(float x, float y) {
#if defined(__CUDA_ARCH__)
  return __fadd_rn(x, y);
#else
  return x + y;
#endif
}
EVERGEMM_HOST_DEVICE float div32(float x, float y) {
#if defined(__CUDA_ARCH__)
  return __fdiv_rn(x, y);
#else
  return x / y;
#endif
}
EVERGEMM_HOST_DEVICE float sqrt32(float x) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(x);
#else
  return __builtin_sqrtf(x);
#endif
}
EVERGEMM_HOST_DEVICE bool is_nan(float x) { return (float_to_bits(x) & 0x7fffffffu) > 0x7f800000u; }
EVERGEMM_HOST_DEVICE float abs32(float x) { return bits_to_float(float_to_bits(x) & 0x7fffffffu); }

// The one NaN that quantizers store as a scale, so that their results compare by bits.
EVERGEMM_HOST_DEVICE float canonical_nan() { return bits_to_float(0x7fc00000u); }
// The larger magnitude; NaN where either is NaN.
EVERGEMM_HOST_DEVICE float larger_magnitude(float absmax, float x) {
  const float magnitude = abs32(x);
  return is_nan(magnitude) || magnitude > absmax ? magnitude : absmax;  // a NaN absmax compares false and stays
}

// Round to the nearest integer, ties to even, for |x| < 2^22; larger magnitudes are integers or saturate at the caller.
EVERGEMM_HOST_DEVICE float round_even(float x) {
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it leaves no fraction bits
  return abs32(x) < 4194304.0f ? add32(add32(x, magic), -magic) : x;
}

// ---- 16-bit floats ----------------------------------------------------------------------------------------------------

EVERGEMM_HOST_DEVICE float bfloat16_to_float(std::uint16_t bits) { return bits_to_float(std::uint32_t{bits} << 16); }
EVERGEMM_HOST_DEVICE std::uint16_t float_to_bfloat16(float value) {
  const std::uint32_t bits = float_to_bits(value);
  if (is_nan(value)) return 0x7fc0;
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >>
                                    16);  // nearest, ties to even; carries into inf
}
EVERGEMM_HOST_DEVICE float float16_to_float(std::uint16_t bits) {
  const std::uint32_t sign = std::uint32_t{bits & 0x8000u} << 16;
  const std::uint32_t magnitude = bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return bits_to_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  if (magnitude >= 0x400u) return bits_to_float(sign | ((magnitude << 13) + (112u << 23)));
  // subnormal: an integer times 2^-24, exact in fp32
  return bits_to_float(sign | float_to_bits(mul32(static_cast<float>(magnitude), 5.9604644775390625e-08f)));
}
EVERGEMM_HOST_DEVICE std::uint16_t float_to_float16(float value) {
  const std::uint32_t bits = float_to_bits(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);  // >= 65520 rounds to inf
  if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 aligns the result's last bit with 2^-24
    const float aligned = add32(bits_to_float(magnitude), 0.5f);
    return static_cast<std::uint16_t>(sign | (float_to_bits(aligned) - 0x3f000000u));
  }
  const std::uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<std::uint16_t>(sign | ((rounded - (112u << 23)) >> 13));
}

// ---- 8-bit floats -----------------------------------------------------------------------------------------------------

inline constexpr float kFloat8E4m3fnMax = 448.0f;

// e4m3fn: bias 7, no infinity, 0x7f and 0xff are NaN.
EVERGEMM_HOST_DEVICE float float8_e4m3fn_to_float(std::uint8_t bits) {
  const std::uint32_t sign = std::uint32_t{bits & 0x80u} << 24;
  const std::uint32_t magnitude = bits & 0x7fu;
  if (magnitude == 0x7fu) return bits_to_float(sign | 0x7fc00000u);
  if (magnitude >= 8u) return bits_to_float(sign | ((magnitude << 20) + (120u << 23)));
  return bits_to_float(sign | float_to_bits(mul32(static_cast<float>(magnitude), 0.001953125f)));  // times 2^-9
}
// Saturates at +-448 (also for infinities), rounds to nearest even, keeps NaN.
EVERGEMM_HOST_DEVICE std::uint8_t float_to_float8_e4m3fn(float value) {
  const std::uint32_t bits = float_to_bits(value);
  const std::uint32_t sign = (bits >> 24) & 0x80u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<std::uint8_t>(sign | 0x7fu);
  if (magnitude >= 0x43e00000u) return static_cast<std::uint8_t>(sign | 0x7eu);  // >= 448
  if (magnitude < 0x3c800000u) {  // below 2^-6: adding 2^14 aligns the result's last bit with 2^-9
    const float aligned = add32(bits_to_float(magnitude), 16384.0f);
    return static_cast<std::uint8_t>(sign | (float_to_bits(aligned) - 0x46800000u));
  }
  const std::uint32_t rounded = magnitude + 0x7ffffu + ((magnitude >> 20) & 1u);
  return static_cast<std::uint8_t>(sign | ((rounded - (120u << 23)) >> 20));
}
// e5m2: bias 15, has infinities. Only converted from (tests, checkpoints).
EVERGEMM_HOST_DEVICE float float8_e5m2_to_float(std::uint8_t bits) {
  return float16_to_float(static_cast<std::uint16_t>(bits << 8));
}
// e8m0 ("UE8M0"): a power of two, 2^(bits - 127); 0xff is NaN.
EVERGEMM_HOST_DEVICE float float8_e8m0fnu_to_float(std::uint8_t bits) {
  if (bits == 0xffu) return bits_to_float(0x7fc00000u);
  return bits == 0 ? bits_to_float(0x00400000u) : bits_to_float(std::uint32_t{bits} << 23);
}
// The smallest power of two that is not below a positive normal value, as its exponent byte.
EVERGEMM_HOST_DEVICE std::uint32_t ceil_exponent(float value) {
  const std::uint32_t bits = float_to_bits(value);
  const std::uint32_t exponent = (bits >> 23) & 0xffu;
  return exponent + ((bits & 0x7fffffu) != 0 ? 1u : 0u);
}

// ---- quantization of one value ----------------------------------------------------------------------------------------

// sat(rn(x / scale)); NaN gives 0.
EVERGEMM_HOST_DEVICE std::int8_t quantize_int8(float x, float scale) {
  const float quotient = round_even(div32(x, scale));
  if (is_nan(quotient)) return 0;
  return static_cast<std::int8_t>(quotient >= 127.0f ? 127 : quotient <= -128.0f ? -128 : static_cast<int>(quotient));
}
// sat(rn(x / scale) + azp); NaN gives 0.
EVERGEMM_HOST_DEVICE std::int8_t quantize_int8_asymmetric(float x, float scale, std::int32_t azp) {
  const float quotient = round_even(div32(x, scale));
  if (is_nan(quotient)) return 0;
  const float limited = quotient > 1024.0f ? 1024.0f : quotient < -1024.0f ? -1024.0f : quotient;
  const int shifted = static_cast<int>(limited) + azp;
  return static_cast<std::int8_t>(shifted > 127 ? 127 : shifted < -128 ? -128 : shifted);
}
// A NaN quotient gives 0x7f, whatever the operands' signs: processors disagree on the sign of a NaN result.
EVERGEMM_HOST_DEVICE std::uint8_t quantize_float8(float x, float scale) {
  const float quotient = div32(x, scale);
  return is_nan(quotient) ? 0x7fu : float_to_float8_e4m3fn(quotient);
}

inline constexpr float kFloatMax = 3.402823466e+38f;
inline constexpr float kFloatMinNormal = 1.1754943508222875e-38f;  // 2^-126

// scale = absmax / q_max: 1 for absmax 0, never below 2^-126, absmax limited to the largest finite float; NaN stays NaN.
EVERGEMM_HOST_DEVICE float scale_of(float absmax, float q_max) {
  if (is_nan(absmax)) return canonical_nan();
  if (absmax == 0.0f) return 1.0f;
  const float scale = div32(absmax > kFloatMax ? kFloatMax : absmax, q_max);
  return scale < kFloatMinNormal ? kFloatMinNormal : scale;
}
// Asymmetric int8, lo = min(0, row), hi = max(0, row), either NaN where the row has one: scale = (hi - lo) / 255 under the
// rules of scale_of, which also limits the range of a row with an infinity.
EVERGEMM_HOST_DEVICE float asymmetric_scale(float lo, float hi) { return scale_of(add32(hi, -lo), 255.0f); }
// azp = rn(-128 - lo / scale), in [-128, 127] (also for infinite lo); 0 where the scale is NaN.
EVERGEMM_HOST_DEVICE std::int32_t asymmetric_zero_point(float lo, float scale) {
  const float azp = round_even(add32(-128.0f, -div32(lo, scale)));
  if (is_nan(azp)) return 0;
  return azp > 127.0f ? 127 : azp < -128.0f ? -128 : static_cast<std::int32_t>(azp);
}
// The next power of two at or above a scale (quantizers' power_of_two_scales).
EVERGEMM_HOST_DEVICE float power_of_two_at_least(float scale) {
  if (is_nan(scale)) return scale;
  const std::uint32_t exponent = ceil_exponent(scale);
  return exponent >= 255u ? bits_to_float(254u << 23) : bits_to_float(exponent << 23);
}

// ---- activations ------------------------------------------------------------------------------------------------------

// exp(x) = 2^n * (1 + r + r^2 * p(r)), n = round(x * log2 e), r = x - n * ln 2 in two steps; relative error below 2^-23
// (subnormal results: below 2^-149).
// Coefficients: the degree-5 minimax polynomial of the Cephes library's expf.
EVERGEMM_HOST_DEVICE float exp32(float x) {
  if (is_nan(x)) return x;
  const float limited = x > 89.0f ? 89.0f : x < -104.0f ? -104.0f : x;  // beyond: inf and 0 by the scaling below
  const float n = add32(fma32(limited, 1.44269504088896341f, 12582912.0f), -12582912.0f);
  float r = fma32(n, -0.693359375f, limited);
  r = fma32(n, 2.12194440e-4f, r);
  float p = 1.9875691500e-4f;
  p = fma32(p, r, 1.3981999507e-3f);
  p = fma32(p, r, 8.3334519073e-3f);
  p = fma32(p, r, 4.1665795894e-2f);
  p = fma32(p, r, 1.6666665459e-1f);
  p = fma32(p, r, 5.0000001201e-1f);
  const float y = add32(fma32(mul32(r, r), p, r), 1.0f);
  const int exponent = static_cast<int>(n);
  const int half = exponent >> 1;  // two factors, so that subnormal results round once and overflow reaches infinity
  const float first = bits_to_float(static_cast<std::uint32_t>(half + 127) << 23);
  const float second = bits_to_float(static_cast<std::uint32_t>(exponent - half + 127) << 23);
  return mul32(mul32(y, first), second);
}
// x / (1 + e^-x): relative error below 2^-22 for x > -88; below that the sum overflows and the result is -0, off by less
// than 3e-37. -inf gives NaN.
EVERGEMM_HOST_DEVICE float silu(float x) { return div32(x, add32(1.0f, exp32(-x))); }
// x * Phi(x) = x * erfc(-x / sqrt 2) / 2; erfc by Abramowitz and Stegun 7.1.26, the small side formed directly: 1 + erf would
// cancel there. Error below 2^-20 of the result for x > 0 and below 2^-21 |x| for x < 0. -inf gives 0.
EVERGEMM_HOST_DEVICE float gelu(float x) {
  const float y = mul32(abs32(x), 0.70710678118654752f);
  const float t = div32(1.0f, fma32(0.3275911f, y, 1.0f));
  float p = 1.061405429f;
  p = fma32(p, t, -1.453152027f);
  p = fma32(p, t, 1.421413741f);
  p = fma32(p, t, -0.284496736f);
  p = fma32(p, t, 0.254829592f);
  const float half_erfc = mul32(mul32(mul32(p, t), exp32(-mul32(y, y))), 0.5f);
  if (x > 0.0f) return mul32(x, add32(1.0f, -half_erfc));
  // x = -inf: erfc is 0, the product would be NaN; the limit is 0
  return half_erfc == 0.0f ? 0.0f : mul32(x, half_erfc);
}
EVERGEMM_HOST_DEVICE float relu_squared(float x) {
  if (is_nan(x)) return x;
  const float r = x > 0.0f ? x : 0.0f;
  return mul32(r, r);
}

// ---- rms_norm ---------------------------------------------------------------------------------------------------------

// Squares are summed in runs of 256 columns, zeros behind the row: a tree, square[j] += square[j + 128], 64, .. 1. Sums of runs r,
// r + 32, r + 64 .. are added in that order to partial[r]; the tree partial[r] += partial[r + 16], 8, .. 1 leaves the row's.
inline constexpr int kSquareRun = 256, kSquarePartials = 32;
// 1 / sqrt(sum / columns + eps), every step rounded.
EVERGEMM_HOST_DEVICE float inverse_rms(float sum_of_squares, std::int64_t columns, float eps) {
  const float mean = div32(sum_of_squares, static_cast<float>(columns));
  return div32(1.0f, sqrt32(add32(mean, eps)));
}

// ---- drop-in group quantizers (per_token_group_*): other rules for zero, NaN and inf -----------------------------------
// s = max(absmax, eps) / q_max with NaN ignored in absmax; v = clamp(x / s, q_min, q_max), NaN gives q_min. An infinite x
// makes s infinite: it becomes q_max or q_min itself, and finite values become 0.

EVERGEMM_HOST_DEVICE float dropin_group_scale(float absmax, float eps, float q_max) {
  return div32(absmax > eps ? absmax : eps, q_max);
}
EVERGEMM_HOST_DEVICE std::uint32_t dropin_group_exponent(float scale) {  // ue8m0
  return ceil_exponent(scale > 1e-10f ? scale : 1e-10f);
}
EVERGEMM_HOST_DEVICE float dropin_clamp(float x, float scale, float q_min, float q_max) {
  const float v = abs32(x) > kFloatMax ? x : div32(x, scale);
  const float low = v > q_min ? v : q_min;  // NaN compares false: q_min
  return low < q_max ? low : q_max;
}
// int8 of a clamped value: cut toward zero. Limits outside int8, which a caller may pass, saturate; NaN gives 0.
EVERGEMM_HOST_DEVICE std::int8_t dropin_int8(float clamped) {
  if (is_nan(clamped)) return 0;
  return static_cast<std::int8_t>(clamped >= 127.0f ? 127 : clamped <= -128.0f ? -128 : static_cast<int>(clamped));
}

}  // namespace evergemm::numerics
