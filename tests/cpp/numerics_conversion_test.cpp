// SPDX-License-Identifier: Apache-2.0
// include/evergemm/numerics.h against slow, independent arithmetic in double: every code of the 8- and 16-bit formats
// in both directions, every rounding boundary, the quantization of one value, and the stated errors of the activations.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "bound_checker.h"
#include "evergemm/numerics.h"

namespace {

using namespace evergemm::numerics;
using evergemm::DType;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Equal as numbers, sign of zero included; any NaN equals any NaN.
::testing::AssertionResult same(double x, double y) {
  if (std::isnan(x) && std::isnan(y)) return ::testing::AssertionSuccess();
  if (x == y && std::signbit(x) == std::signbit(y)) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << x << " is not " << y;
}

// A double rounded once to e4m3fn, saturating: the definition, in other words than the library's.
double round_to_float8(double value) {
  if (std::isnan(value)) return value;
  if (std::fabs(value) >= 448) return std::copysign(448.0, value);
  if (value == 0) return value;
  const double quantum = std::ldexp(1.0, std::max(std::ilogb(value), -6) - 3);
  return std::copysign(std::fabs(std::nearbyint(value / quantum) * quantum), value);
}

// Floats that sit on, beside and between every pair of neighbours of a narrow format with `kept` bits below the sign of
// a float, plus every 2,053rd float there is.
template <class Visit>
std::int64_t visit_boundaries(int kept, Visit visit) {
  std::int64_t visited = 0;
  const int dropped = 31 - kept;
  const std::uint32_t half = 1u << (dropped - 1);
  for (std::uint64_t head = 0; head < (std::uint64_t{1} << (kept + 1)); ++head)
    for (const std::uint32_t tail : {0u, 1u, half - 1, half, half + 1, 2 * half - 1}) {
      visit(bits_to_float(static_cast<std::uint32_t>(head << dropped) | tail));
      ++visited;
    }
  for (std::uint64_t bits = 0; bits < (std::uint64_t{1} << 32); bits += 2053) {
    visit(bits_to_float(static_cast<std::uint32_t>(bits)));
    ++visited;
  }
  return visited;
}

// The midpoints of all neighbouring codes of a format, and the floats next to them: subnormal boundaries included.
template <class Decode, class Visit>
void visit_midpoints(int codes, Decode decode, Visit visit) {
  for (int code = 0; code + 1 < codes; ++code) {
    const double low = decode(code), high = decode(code + 1);
    if (!std::isfinite(low) || !std::isfinite(high)) continue;
    const auto middle = static_cast<float>((low + high) / 2);
    for (const float x :
         {std::nextafter(middle, 0.0f), middle, std::nextafter(middle, kInfinity), static_cast<float>(low)}) {
      visit(x);
      visit(-x);
    }
  }
}

TEST(Float8E4m3fn, EveryCodeDecodesAndReturns) {
  for (int code = 0; code < 256; ++code) {
    const float value = float8_e4m3fn_to_float(static_cast<std::uint8_t>(code));
    EXPECT_TRUE(same(value, evergemm::proof::decode_float8_e4m3fn(static_cast<std::uint8_t>(code)))) << code;
    EXPECT_EQ(float_to_float8_e4m3fn(value), code);
  }
  EXPECT_EQ(float8_e4m3fn_to_float(0x7e), 448.0f);
  EXPECT_EQ(float8_e4m3fn_to_float(0x01), 0x1p-9f);
}

TEST(Float8E4m3fn, EveryBoundaryRoundsToNearestEvenAndSaturates) {
  const auto judge = [](float x) {
    ASSERT_TRUE(same(float8_e4m3fn_to_float(float_to_float8_e4m3fn(x)), round_to_float8(x))) << std::hexfloat << x;
  };
  EXPECT_GT(visit_boundaries(11, judge), 2000000);
  visit_midpoints(
      0x7f, [](int code) { return evergemm::proof::decode_float8_e4m3fn(static_cast<std::uint8_t>(code)); }, judge);
  EXPECT_EQ(float_to_float8_e4m3fn(kInfinity), 0x7e);
  EXPECT_EQ(float_to_float8_e4m3fn(-kInfinity), 0xfe);
  EXPECT_EQ(float_to_float8_e4m3fn(464.0f), 0x7e);
  EXPECT_EQ(float_to_float8_e4m3fn(0x1p-10f), 0x00);  // a tie between 0 and the smallest subnormal
  EXPECT_EQ(float_to_float8_e4m3fn(-0.0f), 0x80);
}

TEST(Float8E5m2, EveryCodeDecodes) {
  for (int code = 0; code < 256; ++code)
    EXPECT_TRUE(same(float8_e5m2_to_float(static_cast<std::uint8_t>(code)),
                     evergemm::proof::decode_16(static_cast<std::uint16_t>(code << 8), 10, 15)))
        << code;
  EXPECT_EQ(float8_e5m2_to_float(0x7b), 57344.0f);
  EXPECT_EQ(float8_e5m2_to_float(0x7c), kInfinity);
  EXPECT_EQ(float8_e5m2_to_float(0x01), 0x1p-16f);
}

TEST(Float8E8m0, EveryCodeDecodesAndReturns) {
  for (int code = 0; code < 255; ++code) {
    const float value = float8_e8m0fnu_to_float(static_cast<std::uint8_t>(code));
    EXPECT_TRUE(same(value, std::ldexp(1.0, code - 127))) << code;
    if (code > 0) {  // 2^-127 is subnormal in fp32
      EXPECT_EQ(ceil_exponent(value), static_cast<std::uint32_t>(code));
      EXPECT_EQ(ceil_exponent(std::nextafter(value, kInfinity)), static_cast<std::uint32_t>(code + 1));
      EXPECT_EQ(ceil_exponent(std::nextafter(value, 0.0f)), static_cast<std::uint32_t>(code));
    }
  }
  EXPECT_TRUE(std::isnan(float8_e8m0fnu_to_float(255)));
}

TEST(Float16, EveryCodeDecodesAndReturns) {
  for (int code = 0; code < 65536; ++code) {
    const auto bits = static_cast<std::uint16_t>(code);
    const float value = float16_to_float(bits);
    ASSERT_TRUE(same(value, evergemm::proof::decode_16(bits, 10, 15))) << code;
    if (std::isnan(value))
      ASSERT_TRUE(std::isnan(float16_to_float(float_to_float16(value)))) << code;
    else
      ASSERT_EQ(float_to_float16(value), bits);
  }
}

TEST(Float16, EveryBoundaryRoundsToNearestEven) {
  const auto judge = [](float x) {
    ASSERT_TRUE(same(float16_to_float(float_to_float16(x)), evergemm::proof::round_to(DType::float16, x)))
        << std::hexfloat << x;
  };
  EXPECT_GT(visit_boundaries(18, judge), 5000000);
  visit_midpoints(
      0x7c01, [](int code) { return evergemm::proof::decode_16(static_cast<std::uint16_t>(code), 10, 15); }, judge);
  EXPECT_EQ(float_to_float16(65519.996f), 0x7bff);
  EXPECT_EQ(float_to_float16(65520.0f), 0x7c00);
  EXPECT_EQ(float_to_float16(-kInfinity), 0xfc00);
}

TEST(Bfloat16, EveryCodeDecodesAndReturns) {
  for (int code = 0; code < 65536; ++code) {
    const auto bits = static_cast<std::uint16_t>(code);
    const float value = bfloat16_to_float(bits);
    ASSERT_TRUE(same(value, evergemm::proof::decode_16(bits, 7, 127))) << code;
    if (std::isnan(value))
      ASSERT_TRUE(std::isnan(bfloat16_to_float(float_to_bfloat16(value)))) << code;
    else
      ASSERT_EQ(float_to_bfloat16(value), bits);
  }
}

TEST(Bfloat16, EveryBoundaryRoundsToNearestEven) {
  const auto judge = [](float x) {
    ASSERT_TRUE(same(bfloat16_to_float(float_to_bfloat16(x)), evergemm::proof::round_to(DType::bfloat16, x)))
        << std::hexfloat << x;
  };
  EXPECT_GT(visit_boundaries(15, judge), 2000000);
  visit_midpoints(
      0x7f81, [](int code) { return evergemm::proof::decode_16(static_cast<std::uint16_t>(code), 7, 127); }, judge);
  EXPECT_EQ(float_to_bfloat16(kFloatMax), 0x7f80);
  EXPECT_EQ(float_to_bfloat16(bits_to_float(0xffffffffu)), 0x7fc0);  // rounding must not carry a NaN into a number
}

TEST(Primitives, RoundEvenIsRoundToNearestEven) {
  for (std::uint64_t bits = 0; bits < (std::uint64_t{1} << 32); bits += 1021) {
    const float x = bits_to_float(static_cast<std::uint32_t>(bits));
    if (!(std::fabs(x) < 4194304.0f)) continue;
    ASSERT_EQ(round_even(x), std::nearbyint(x)) << x;
  }
  for (int i = -70000; i <= 70000; ++i)
    for (const float offset : {-0.5f, 0.0f, 0.5f}) {
      const float x = static_cast<float>(i) + offset;
      ASSERT_EQ(round_even(x), std::nearbyint(x)) << x;
    }
  EXPECT_TRUE(std::isnan(round_even(kNan)));
  EXPECT_EQ(round_even(-kInfinity), -kInfinity);
}

TEST(Primitives, LargerMagnitudeKeepsNan) {
  EXPECT_EQ(larger_magnitude(1, -3), 3);
  EXPECT_EQ(larger_magnitude(3, -1), 3);
  EXPECT_EQ(larger_magnitude(3, -kInfinity), kInfinity);
  EXPECT_TRUE(std::isnan(larger_magnitude(3, kNan)));
  EXPECT_TRUE(std::isnan(larger_magnitude(3, -kNan)));
  EXPECT_TRUE(std::isnan(larger_magnitude(kNan, 3)));
  EXPECT_TRUE(std::isnan(larger_magnitude(kNan, kInfinity)));
}

TEST(OneValue, QuotientsAreRoundedOnceAndSaturate) {
  std::mt19937 random(20260101);
  std::uniform_real_distribution<float> exponent(-30, 30), mantissa(-2, 2);
  for (int i = 0; i < 1000000; ++i) {
    const float x = std::ldexp(mantissa(random), static_cast<int>(exponent(random)));
    const float scale = std::ldexp(mantissa(random), static_cast<int>(exponent(random)));
    if (scale == 0) continue;
    // the quotient of two floats, rounded to double and then to float, equals the one rounded once (53 >= 2 * 24 + 2)
    const auto quotient = static_cast<double>(static_cast<float>(static_cast<double>(x) / static_cast<double>(scale)));
    const double nearest = std::nearbyint(quotient);
    ASSERT_EQ(quantize_int8(x, scale), std::fmin(127, std::fmax(-128, nearest))) << x << " " << scale;
    const int azp = static_cast<int>(i % 256) - 128;
    ASSERT_EQ(quantize_int8_asymmetric(x, scale, azp), std::fmin(127, std::fmax(-128, nearest + azp)))
        << x << " " << scale;
    ASSERT_TRUE(same(float8_e4m3fn_to_float(quantize_float8(x, scale)), round_to_float8(quotient)))
        << x << " " << scale;
  }
}

TEST(OneValue, NanAndInfinity) {
  EXPECT_EQ(quantize_int8(kNan, 1), 0);
  EXPECT_EQ(quantize_int8(1, kNan), 0);
  EXPECT_EQ(quantize_int8(kInfinity, 1), 127);
  EXPECT_EQ(quantize_int8(-kInfinity, 1), -128);
  EXPECT_EQ(quantize_int8_asymmetric(kNan, 1, 5), 0);
  EXPECT_EQ(quantize_int8_asymmetric(-kInfinity, 1, 127), -128);
  EXPECT_EQ(quantize_int8_asymmetric(kInfinity, 1, -128), 127);
  for (const float x : {kNan, -kNan}) {
    EXPECT_EQ(quantize_float8(x, 1), 0x7f);
    EXPECT_EQ(quantize_float8(1, x), 0x7f);
    EXPECT_EQ(quantize_float8(-1, x), 0x7f);
  }
  EXPECT_EQ(quantize_float8(0, 0), 0x7f);
  EXPECT_EQ(quantize_float8(kInfinity, 1), 0x7e);
  EXPECT_EQ(quantize_float8(-kInfinity, 1), 0xfe);
}

TEST(Scale, RulesOfAbsmax) {
  EXPECT_EQ(kFloatMax, std::numeric_limits<float>::max());
  EXPECT_EQ(kFloatMinNormal, std::numeric_limits<float>::min());
  EXPECT_EQ(scale_of(0, 127), 1);
  EXPECT_EQ(scale_of(254, 127), 2);
  EXPECT_EQ(scale_of(1, 448), 1.0f / 448.0f);
  EXPECT_EQ(scale_of(std::numeric_limits<float>::denorm_min(), 448), kFloatMinNormal);
  EXPECT_EQ(scale_of(kFloatMinNormal, 127), kFloatMinNormal);
  EXPECT_EQ(scale_of(kInfinity, 448), kFloatMax / 448.0f);
  EXPECT_EQ(scale_of(-1, 448), kFloatMinNormal);  // a negative upper bound
  for (const float nan : {kNan, -kNan, bits_to_float(0x7f800001u)})
    EXPECT_EQ(float_to_bits(scale_of(nan, 127)), 0x7fc00000u);
}

TEST(Scale, PowersOfTwoAreNotBelow) {
  for (std::uint32_t bits = 0x00800000u; bits < 0x7f000000u; bits += 8191) {
    const float scale = bits_to_float(bits), power = power_of_two_at_least(scale);
    ASSERT_EQ(float_to_bits(power) & 0x7fffffu, 0u);
    ASSERT_GE(power, scale);
    ASSERT_LT(power / 2, scale);
  }
  for (int e = -126; e < 128; ++e) EXPECT_EQ(power_of_two_at_least(std::ldexp(1.0f, e)), std::ldexp(1.0f, e));
  EXPECT_EQ(power_of_two_at_least(kFloatMax), 0x1p127f);
  EXPECT_TRUE(std::isnan(power_of_two_at_least(kNan)));
}

TEST(Scale, Asymmetric) {
  EXPECT_EQ(asymmetric_scale(0, 0), 1);
  EXPECT_EQ(asymmetric_zero_point(0, 1), -128);
  EXPECT_EQ(asymmetric_scale(-255, 0), 1);
  EXPECT_EQ(asymmetric_zero_point(-255, 1), 127);
  EXPECT_EQ(asymmetric_scale(-100, 155), 1);
  EXPECT_EQ(asymmetric_zero_point(-100, 1), -28);
  EXPECT_EQ(asymmetric_zero_point(-100.5f, 1), -28);  // -27.5: ties to even
  const float widest = asymmetric_scale(-kInfinity, kInfinity);
  EXPECT_EQ(widest, kFloatMax / 255.0f);
  EXPECT_EQ(asymmetric_zero_point(-kInfinity, widest), 127);
  EXPECT_EQ(float_to_bits(asymmetric_scale(kNan, 3)), 0x7fc00000u);
  EXPECT_EQ(float_to_bits(asymmetric_scale(-3, kNan)), 0x7fc00000u);
  EXPECT_EQ(asymmetric_zero_point(kNan, kNan), 0);
}

TEST(RmsNorm, EveryStepIsRounded) {
  std::mt19937 random(20260102);
  std::uniform_real_distribution<float> sum(0, 5000), eps(0, 1e-3f);
  for (int i = 0; i < 200000; ++i) {
    const float s = sum(random), e = eps(random);
    const std::int64_t columns = 1 + i % 9000;
    const auto mean = static_cast<float>(static_cast<double>(s) / static_cast<double>(columns));
    const auto shifted = static_cast<float>(static_cast<double>(mean) + static_cast<double>(e));
    const auto root = static_cast<float>(std::sqrt(static_cast<double>(shifted)));
    ASSERT_EQ(inverse_rms(s, columns, e), static_cast<float>(1.0 / static_cast<double>(root)));
  }
}

TEST(Activations, ExpStaysInsideItsStatedError) {
  double worst = 0, worst_subnormal = 0;
  for (std::uint64_t bits = 0; bits < (std::uint64_t{1} << 32); bits += 509) {
    const float x = bits_to_float(static_cast<std::uint32_t>(bits));
    if (!(x >= -104 && x <= 88.72f)) continue;
    const long double exact = std::exp(static_cast<long double>(x));
    const auto error = static_cast<double>(std::fabs(static_cast<long double>(exp32(x)) - exact));
    if (exact >= 0x1p-126L)
      worst = std::max(worst, error / static_cast<double>(exact));
    else
      worst_subnormal = std::max(worst_subnormal, error);
  }
  EXPECT_LT(worst, 0x1p-23);
  EXPECT_GT(worst, 0x1p-25) << "a bound that nothing comes near was not measured";
  EXPECT_LT(worst_subnormal, 0x1p-149);
  EXPECT_EQ(exp32(0), 1);
  EXPECT_EQ(exp32(kInfinity), kInfinity);
  EXPECT_EQ(exp32(88.73f), kInfinity);
  EXPECT_EQ(exp32(-kInfinity), 0);
  EXPECT_EQ(exp32(-105), 0);
  EXPECT_TRUE(std::isnan(exp32(kNan)));
}

TEST(Activations, SiluStaysInsideItsStatedError) {
  double worst = 0, worst_far = 0;
  for (std::uint64_t bits = 0; bits < (std::uint64_t{1} << 32); bits += 509) {
    const float x = bits_to_float(static_cast<std::uint32_t>(bits));
    if (!std::isfinite(x)) continue;
    const long double exact = x / (1 + std::exp(-static_cast<long double>(x)));
    const long double error = std::fabs(static_cast<long double>(silu(x)) - exact);
    if (x <= -88)
      worst_far = std::max(worst_far, static_cast<double>(error));
    else if (std::fabs(exact) >= 0x1p-126L)
      worst = std::max(worst, static_cast<double>(error / std::fabs(exact)));
  }
  EXPECT_LT(worst, 0x1p-22);
  EXPECT_GT(worst, 0x1p-24);
  EXPECT_LT(worst_far, 3e-37);
  EXPECT_EQ(silu(kInfinity), kInfinity);
  EXPECT_TRUE(std::isnan(silu(-kInfinity)));
  EXPECT_TRUE(std::isnan(silu(kNan)));
}

TEST(Activations, GeluStaysInsideItsStatedError) {
  double worst_positive = 0, worst_negative = 0;
  for (std::uint64_t bits = 0; bits < (std::uint64_t{1} << 32); bits += 509) {
    const float x = bits_to_float(static_cast<std::uint32_t>(bits));
    if (!std::isfinite(x) || std::fabs(x) < 0x1p-120f) continue;
    const long double exact = 0.5L * x * std::erfc(-static_cast<long double>(x) / std::sqrt(2.0L));
    const long double error = std::fabs(static_cast<long double>(gelu(x)) - exact);
    if (x > 0)
      worst_positive = std::max(worst_positive, static_cast<double>(error / exact));
    else
      worst_negative = std::max(worst_negative, static_cast<double>(error / -x));
  }
  EXPECT_LT(worst_positive, 0x1p-20);
  EXPECT_GT(worst_positive, 0x1p-22);
  EXPECT_LT(worst_negative, 0x1p-21);
  EXPECT_EQ(gelu(kInfinity), kInfinity);
  EXPECT_EQ(gelu(-kInfinity), 0);
  EXPECT_EQ(gelu(-1e30f), 0);
  EXPECT_EQ(gelu(0), 0);
  EXPECT_TRUE(std::isnan(gelu(kNan)));
}

TEST(Activations, ReluSquared) {
  EXPECT_EQ(relu_squared(3), 9);
  EXPECT_EQ(relu_squared(-3), 0);
  EXPECT_EQ(relu_squared(kInfinity), kInfinity);
  EXPECT_EQ(relu_squared(-kInfinity), 0);
  EXPECT_TRUE(std::isnan(relu_squared(kNan)));
}

TEST(DropinGroup, ScalesAndLimits) {
  EXPECT_EQ(dropin_group_scale(0, 1e-10f, 448), 1e-10f / 448);
  EXPECT_EQ(dropin_group_scale(896, 1e-10f, 448), 2);
  EXPECT_EQ(dropin_group_scale(kInfinity, 1e-10f, 448), kInfinity);
  EXPECT_EQ(dropin_group_exponent(2.0f), 128u);
  EXPECT_EQ(dropin_group_exponent(2.1f), 129u);
  EXPECT_EQ(dropin_group_exponent(0.0f), ceil_exponent(1e-10f));
  EXPECT_EQ(dropin_group_exponent(1e-12f), 94u);  // 2^-33 >= 1e-10
  EXPECT_EQ(dropin_group_exponent(kInfinity), 255u);
  EXPECT_EQ(dropin_clamp(3, 2, -448, 448), 1.5f);
  EXPECT_EQ(dropin_clamp(1000, 2, -448, 448), 448);
  EXPECT_EQ(dropin_clamp(-1000, 2, -448, 448), -448);
  EXPECT_EQ(dropin_clamp(kNan, 2, -448, 448), -448);
  EXPECT_EQ(dropin_clamp(kInfinity, kInfinity, -448, 448), 448);
  EXPECT_EQ(dropin_clamp(-kInfinity, kInfinity, -448, 448), -448);
  EXPECT_EQ(dropin_clamp(5, kInfinity, -448, 448), 0);
  EXPECT_EQ(dropin_int8(1.99f), 1);
  EXPECT_EQ(dropin_int8(-1.99f), -1);
  EXPECT_EQ(dropin_int8(127), 127);
  EXPECT_EQ(dropin_int8(-128), -128);
  EXPECT_EQ(dropin_int8(1e30f), 127);
  EXPECT_EQ(dropin_int8(-kInfinity), -128);
  EXPECT_EQ(dropin_int8(kNan), 0);
}

}  // namespace
