// SPDX-License-Identifier: Apache-2.0
// Device arithmetic that the quantizing kernels share: elements of x, activations, scales, and one value to eight bits with
// the results of numerics.h by faster instructions. Must not go here: loops over tensors, launches.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "evergemm/numerics.h"
#include "evergemm/problem.h"

namespace evergemm::cuda {

// How a warp reduces and how many columns of x a thread loads at a time in the vector kernels.
inline constexpr int kWarp = 32, kVector = 8;

// The larger, or the smaller; NaN where either is.
static __device__ __forceinline__ float larger_or_nan(float x, float y) {
#if __CUDA_ARCH__ >= 800
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(x), "f"(y));
  return result;
#else
  return numerics::is_nan(x) || x > y ? x : y;
#endif
}
static __device__ __forceinline__ float smaller_or_nan(float x, float y) {
#if __CUDA_ARCH__ >= 800
  float result;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(x), "f"(y));
  return result;
#else
  return numerics::is_nan(x) || x < y ? x : y;
#endif
}

// The largest of a warp's values in every lane.
static __device__ __forceinline__ std::uint32_t warp_maximum(std::uint32_t value) {
#if __CUDA_ARCH__ >= 800
  return __reduce_max_sync(~0u, value);
#else
  for (int distance = kWarp / 2; distance > 0; distance /= 2) value = max(value, __shfl_xor_sync(~0u, value, distance));
  return value;
#endif
}

// The tree of halves over a warp's values, in every lane.
static __device__ __forceinline__ float sum_of_lanes(float value) {
#pragma unroll
  for (int half = kWarp / 2; half > 0; half /= 2) value = numerics::add32(value, __shfl_xor_sync(~0u, value, half));
  return value;
}

// The tree of halves over a run of squares (numerics.h), in every lane: lane l has columns 8 l to 8 l + 7. While halves are further
// apart than a lane's columns, two lanes share their columns out, so that each adds half as many as before.
static __device__ __forceinline__ float sum_of_run(const float (&squares)[8]) {
  static_assert(numerics::kSquareRun == 8 * kWarp);
  const auto shared_out = [](float low, float high, int distance) {
    const bool upper = (threadIdx.x & static_cast<unsigned>(distance)) != 0;
    return numerics::add32(upper ? high : low, __shfl_xor_sync(~0u, upper ? low : high, distance));
  };
  float four[4], two[2];
#pragma unroll
  for (int e = 0; e < 4; ++e) four[e] = shared_out(squares[e], squares[e + 4], 16);
#pragma unroll
  for (int e = 0; e < 2; ++e) two[e] = shared_out(four[e], four[e + 2], 8);
  float sum = shared_out(two[0], two[1], 4);
#pragma unroll
  for (const int distance : {2, 1, 16, 8, 4}) sum = numerics::add32(sum, __shfl_xor_sync(~0u, sum, distance));
  return sum;
}

// For GPUs without instructions for two 16-bit values at a time.
template <class Element, class Choose>
static __device__ __forceinline__ std::uint32_t by_halves(std::uint32_t x, std::uint32_t y, Choose choose) {
  const auto half = [&](int shift) {
    return std::uint32_t{Element::narrow(choose(Element::widen(static_cast<typename Element::Bits>(x >> shift)),
                                                Element::widen(static_cast<typename Element::Bits>(y >> shift))))}
           << shift;
  };
  return half(0) | half(16);
}

// Storage of x's three types; bits in, fp32 out.
struct Bfloat16 {
  using Bits = std::uint16_t;
  static __device__ __forceinline__ float widen(Bits bits) { return __uint_as_float(std::uint32_t{bits} << 16); }
  static __device__ __forceinline__ Bits narrow(float value) { return numerics::float_to_bfloat16(value); }
  static __device__ __forceinline__ void widen_pair(std::uint32_t word, float& low, float& high) {
    low = __uint_as_float(word << 16);
    high = __uint_as_float(word & 0xffff0000u);
  }
  // Two values at a time; NaN where either is.
  static __device__ __forceinline__ std::uint32_t smaller_pair(std::uint32_t x, std::uint32_t y) {
#if __CUDA_ARCH__ >= 800
    std::uint32_t result;
    asm("min.NaN.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(x), "r"(y));
    return result;
#else
    return by_halves<Bfloat16>(x, y, smaller_or_nan);
#endif
  }
  static __device__ __forceinline__ std::uint32_t larger_pair(std::uint32_t x, std::uint32_t y) {
#if __CUDA_ARCH__ >= 800
    std::uint32_t result;
    asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(x), "r"(y));
    return result;
#else
    return by_halves<Bfloat16>(x, y, larger_or_nan);
#endif
  }
  // Rounded to nearest even; NaN becomes kNewNan in either half.
  static constexpr std::uint32_t kNewNan = 0x7fffu, kCanonicalNan = 0x7fc0u;
  static __device__ __forceinline__ std::uint32_t narrow_pair(float low, float high) {
#if __CUDA_ARCH__ >= 800
    std::uint32_t word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
#else
    return std::uint32_t{narrow(low)} | std::uint32_t{narrow(high)} << 16;
#endif
  }
};
struct Float16 {
  using Bits = std::uint16_t;
  static __device__ __forceinline__ float widen(Bits bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
  }
  static __device__ __forceinline__ Bits narrow(float value) { return numerics::float_to_float16(value); }
  static __device__ __forceinline__ void widen_pair(std::uint32_t word, float& low, float& high) {
    low = widen(static_cast<Bits>(word));
    high = widen(static_cast<Bits>(word >> 16));
  }
  static __device__ __forceinline__ std::uint32_t smaller_pair(std::uint32_t x, std::uint32_t y) {
#if __CUDA_ARCH__ >= 800
    std::uint32_t result;
    asm("min.NaN.f16x2 %0, %1, %2;" : "=r"(result) : "r"(x), "r"(y));
    return result;
#else
    return by_halves<Float16>(x, y, smaller_or_nan);
#endif
  }
  static __device__ __forceinline__ std::uint32_t larger_pair(std::uint32_t x, std::uint32_t y) {
#if __CUDA_ARCH__ >= 800
    std::uint32_t result;
    asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(result) : "r"(x), "r"(y));
    return result;
#else
    return by_halves<Float16>(x, y, larger_or_nan);
#endif
  }
  static constexpr std::uint32_t kNewNan = 0x7fffu, kCanonicalNan = 0x7e00u;
  static __device__ __forceinline__ std::uint32_t narrow_pair(float low, float high) {
#if __CUDA_ARCH__ >= 800
    std::uint32_t word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
#else
    return std::uint32_t{narrow(low)} | std::uint32_t{narrow(high)} << 16;
#endif
  }
};
struct Float32 {
  using Bits = float;
  static __device__ __forceinline__ float widen(Bits value) { return value; }
  static __device__ __forceinline__ Bits narrow(float value) { return value; }
  // One value a word.
  static __device__ __forceinline__ std::uint32_t smaller_pair(std::uint32_t x, std::uint32_t y) {
    return __float_as_uint(smaller_or_nan(__uint_as_float(x), __uint_as_float(y)));
  }
  static __device__ __forceinline__ std::uint32_t larger_pair(std::uint32_t x, std::uint32_t y) {
    return __float_as_uint(larger_or_nan(__uint_as_float(x), __uint_as_float(y)));
  }
};

// kVector elements as they lie in memory.
template <class Element>
struct alignas(16) Vector {
  uint4 pieces[kVector * sizeof(typename Element::Bits) / 16];

  static __device__ __forceinline__ Vector load(const void* base, std::int64_t at) {
    return *reinterpret_cast<const Vector*>(static_cast<const typename Element::Bits*>(base) + at);
  }
  __device__ __forceinline__ void widen(float (&values)[kVector]) const {
    if constexpr (sizeof(typename Element::Bits) == 4) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        values[i * 4] = __uint_as_float(pieces[i].x);
        values[i * 4 + 1] = __uint_as_float(pieces[i].y);
        values[i * 4 + 2] = __uint_as_float(pieces[i].z);
        values[i * 4 + 3] = __uint_as_float(pieces[i].w);
      }
    } else {
      Element::widen_pair(pieces[0].x, values[0], values[1]);
      Element::widen_pair(pieces[0].y, values[2], values[3]);
      Element::widen_pair(pieces[0].z, values[4], values[5]);
      Element::widen_pair(pieces[0].w, values[6], values[7]);
    }
  }
};

static __device__ __forceinline__ float activated(Activation activation, float x) {
  if (activation == Activation::silu) return numerics::silu(x);
  if (activation == Activation::gelu) return numerics::gelu(x);
  return numerics::relu_squared(x);
}

// x / scale, correctly rounded, as five multiply-adds where the scale is positive and in [2^-60, 2^60]. With the rounded
// reciprocal r, q1 = q0 + r (x - s q0) is within one unit of the quotient, and a second such step rounds it correctly
// (Markstein's theorem); the steps lose the sign of a zero, which is x's. Below |x| = 2^-100 a remainder may underflow; both
// quotients are then below 2^-40 and every format here rounds them to the same signed zero.
class Divider {
 public:
  __device__ __forceinline__ explicit Divider(float scale) : scale_(scale) {
    constexpr float kLow = 8.673617379884035e-19f, kHigh = 1.152921504606847e18f;  // 2^-60, 2^60
    multiplies_ = scale >= kLow && scale <= kHigh;
    reciprocal_ = multiplies_ ? __frcp_rn(scale) : 0.0f;
  }
  // False: the scale is NaN, infinite, zero, negative or extreme.
  __device__ __forceinline__ bool multiplies() const { return multiplies_; }
  // quotients[i] = values[i] / scale. large: |quotient| may pass 1e30, where the steps could meet an infinity; the plain product
  // stands there, which saturates as the quotient does.
  template <int kCount>
  __device__ __forceinline__ void divide(const float (&values)[kCount], float (&quotients)[kCount], bool large) const {
    if (multiplies_) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const float q0 = __fmul_rn(values[i], reciprocal_);
        const float q1 = __fmaf_rn(-__fmaf_rn(scale_, q0, -values[i]), reciprocal_, q0);
        quotients[i] = __fmaf_rn(-__fmaf_rn(scale_, q1, -values[i]), reciprocal_, q1);
      }
      if (large) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          const float q0 = __fmul_rn(values[i], reciprocal_);
          if (!(fabsf(q0) < 1e30f)) quotients[i] = q0;
        }
      }
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) quotients[i] = true_quotient(values[i], scale_);
    }
  }
  __device__ __forceinline__ float operator()(float value) const {
    const float values[1] = {value};
    float quotients[1];
    divide(values, quotients, true);
    return quotients[0];
  }

 private:
  // Out of line: it is rare, and inlined once a value it would crowd the instruction cache.
  static __device__ __noinline__ float true_quotient(float x, float scale) { return numerics::div32(x, scale); }

  float scale_, reciprocal_;
  bool multiplies_;
};

// sat(rn(quotient)), NaN to 0: what numerics::quantize_int8 makes of a quotient.
static __device__ __forceinline__ std::uint32_t round_int8(float quotient) {
  std::int32_t value;
  asm("cvt.rni.sat.s8.f32 %0, %1;" : "=r"(value) : "f"(quotient));
  return static_cast<std::uint32_t>(value) & 0xffu;
}
// Two quotients to e4m3fn, saturating, NaN to 0x7f.
static __device__ __forceinline__ std::uint32_t round_float8_pair(float low, float high) {
#if __CUDA_ARCH__ >= 890
  std::uint16_t packed;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(packed) : "f"(high), "f"(low));
  return packed;
#else
  const auto one = [](float value) {
    return std::uint32_t{numerics::is_nan(value) ? std::uint8_t{0x7f} : numerics::float_to_float8_e4m3fn(value)};
  };
  return one(low) | one(high) << 8;
#endif
}

// absmax as bits: unsigned order puts NaN above infinity, which is larger_magnitude()'s order.
static __device__ __forceinline__ std::uint32_t magnitude_bits(float x) { return __float_as_uint(x) & 0x7fffffffu; }

static __device__ __forceinline__ bool is_dropin(const QuantizeProblem& p) {
  return p.scheme == QuantizeScheme::dropin_group || p.scheme == QuantizeScheme::dropin_group_packed;
}

// The scale of a block whose largest magnitude has these bits (drop-in schemes: NaN left out of it).
static __device__ __forceinline__ float scale_of_block(const QuantizeProblem& p, std::uint32_t absmax_bits) {
  float absmax = __uint_as_float(absmax_bits);
  if (is_dropin(p)) {
    const float scale = numerics::dropin_group_scale(absmax, p.eps, p.q_max);
    if (p.scheme != QuantizeScheme::dropin_group_packed && !p.power_of_two_scales) return scale;
    return __uint_as_float(numerics::dropin_group_exponent(scale) << 23);
  }
  if (p.scale_upper_bound != nullptr && absmax > *p.scale_upper_bound) absmax = *p.scale_upper_bound;
  const float scale = numerics::scale_of(absmax, p.q_dtype == DType::int8 ? 127.0f : numerics::kFloat8E4m3fnMax);
  return p.power_of_two_scales ? numerics::power_of_two_at_least(scale) : scale;
}

// Writes the scale of block (i, j); packed: its exponent's byte, of a word that was zeroed before.
static __device__ __forceinline__ void store_scale(const QuantizeProblem& p, std::int64_t i, std::int64_t j,
                                                   float scale) {
  if (p.scheme == QuantizeScheme::dropin_group_packed) {
    auto* word = static_cast<std::uint32_t*>(p.scale) + i * p.scale_row_stride + j / 4 * p.packed_columns_stride;
    reinterpret_cast<std::uint8_t*>(word)[j % 4] = static_cast<std::uint8_t>(__float_as_uint(scale) >> 23);
  } else {
    static_cast<float*>(p.scale)[i * p.scale_row_stride + j * p.scale_group_stride] = scale;
  }
}

// The quotient of a drop-in scheme's value on its way to eight bits: clamped, and for int8 cut toward zero.
static __device__ __forceinline__ float dropin_clamped(const QuantizeProblem& p, float x, float quotient) {
  const float v = fabsf(x) > numerics::kFloatMax ? x : quotient;
  const float low = v > p.q_min ? v : p.q_min;
  const float clamped = low < p.q_max ? low : p.q_max;
  return p.q_dtype == DType::int8 ? truncf(clamped) : clamped;
}

static __device__ __forceinline__ void store_quantized(const QuantizeProblem& p, std::int64_t at, float quotient) {
  if (p.q_dtype == DType::int8)
    static_cast<std::uint8_t*>(p.q)[at] = static_cast<std::uint8_t>(round_int8(quotient));
  else
    static_cast<std::uint8_t*>(p.q)[at] = static_cast<std::uint8_t>(round_float8_pair(quotient, 0.0f));
}

static __device__ __forceinline__ void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// Called by a thread after its last store.
static __device__ __forceinline__ void allow_next_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace evergemm::cuda
