// SPDX-License-Identifier: Apache-2.0
// The reference GEMM, the specification of every kernel, against judges that share no code with it: int8 bit for bit,
// fp8 bit for bit against an emulated sequence of fmas and inside its proven bound, exact data against the exact
// result.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "bound_checker.h"
#include "cases.h"
#include "evergemm/reference.h"
#include "gemm_operands.h"

namespace {

using namespace evergemm;
using namespace evergemm::proof;

constexpr DType kOutputs[] = {DType::bfloat16, DType::float16, DType::float32};

// Every element exactly as the emulator of sequential fp32 fmas says.
std::string emulation_difference(const GemmProblem& problem) {
  const DecodedOperands operands = decode_operands(problem);
  for (std::int64_t i = 0; i < problem.m; ++i)
    for (std::int64_t j = 0; j < problem.n; ++j) {
      const double expected = emulate_element(problem, operands, kCpuModel, i, j), stored = stored_at(problem, i, j);
      if (!(stored == expected && std::signbit(stored) == std::signbit(expected)))
        return "element " + at(i, j) + " is " + std::to_string(stored) + ", emulated " + std::to_string(expected);
    }
  return "";
}

// Runs the reference and judges everything that can be judged about it.
void run_and_judge(const GemmSetup& setup) {
  SCOPED_TRACE(setup.text());
  GemmOperands operands(setup);
  GemmProblem& problem = operands.problem();
  reference::gemm(problem);
  ASSERT_EQ(operands.damage(), "");
  if (setup.input == DType::int8) {
    ASSERT_EQ(check_int8(problem).failure, "");
    return;
  }
  ASSERT_EQ(emulation_difference(problem), "");
  const Verdict verdict = check_bound(problem, kCpuModel);
  ASSERT_EQ(verdict.failure, "");
  ASSERT_EQ(verdict.elements, setup.m * setup.n);
  if (setup.data == Data::exact) {
    const DecodedOperands decoded = decode_operands(problem);
    for (std::int64_t i = 0; i < setup.m; ++i)
      for (std::int64_t j = 0; j < setup.n; ++j)
        ASSERT_EQ(stored_at(problem, i, j),
                  round_to(setup.output, bound_of_element(problem, decoded, kCpuModel, i, j).exact))
            << at(i, j);
  }
}

std::vector<GemmCase> quick_cases() {
  std::vector<GemmCase> cases;
  for (const GemmCase& c : gemm_cases())
    if (!c.slow) cases.push_back(c);
  return cases;
}

// A setup of one case: what is not the point of the case varies with `variant`, so that the suite meets every mixture.
GemmSetup setup_of(const GemmCase& c, DType input, std::uint64_t variant) {
  GemmSetup setup;
  setup.m = c.m;
  setup.n = c.n;
  setup.k = c.k;
  setup.input = input;
  setup.output = kOutputs[variant % 3];
  setup.bias = variant % 2 == 1;
  setup.data = kAllData[variant % 8];
  setup.a_padding = static_cast<std::int64_t>(variant % 4) * 3;
  setup.b_padding = static_cast<std::int64_t>(variant % 5);
  setup.out_padding = static_cast<std::int64_t>(variant % 3) * 5;
  setup.vector_stride = 1 + static_cast<std::int64_t>(variant % 2);
  setup.transposed_scales = variant % 4 >= 2;
  setup.byte_offset = variant % 7;
  setup.seed = variant + 1;
  return setup;
}

class EveryCase : public ::testing::TestWithParam<GemmCase> {};
INSTANTIATE_TEST_SUITE_P(Cases, EveryCase, ::testing::ValuesIn(quick_cases()),
                         [](const auto& info) { return info.param.id; });

bool large(const GemmCase& c) { return c.m * c.n * c.k > 2'000'000; }

TEST_P(EveryCase, Int8) {
  const std::uint64_t variants = large(GetParam()) ? 2 : 8;
  for (std::uint64_t variant = 0; variant < variants; ++variant) {
    GemmSetup setup = setup_of(GetParam(), DType::int8, variant + GetParam().id.size());
    setup.scale_a = variant % 3 == 0 ? ScaleMode::TensorWise : ScaleMode::RowWise;
    setup.scale_b = variant % 4 == 1 ? ScaleMode::TensorWise : ScaleMode::RowWise;
    run_and_judge(setup);
  }
}

TEST_P(EveryCase, Int8WithZeroPoints) {
  const std::uint64_t variants = large(GetParam()) ? 1 : 4;
  for (std::uint64_t variant = 0; variant < variants; ++variant) {
    GemmSetup setup = setup_of(GetParam(), DType::int8, variant + 3 * GetParam().id.size());
    setup.zero_point = variant % 2 == 0 ? ZeroPoint::per_row : ZeroPoint::folded;
    run_and_judge(setup);
  }
}

TEST_P(EveryCase, Float8RowWiseAndTensorWise) {
  const std::uint64_t variants = large(GetParam()) ? 1 : 8;
  for (std::uint64_t variant = 0; variant < variants; ++variant) {
    GemmSetup setup = setup_of(GetParam(), DType::float8_e4m3fn, variant + GetParam().id.size());
    setup.scale_a = variant % 3 == 1 ? ScaleMode::TensorWise : ScaleMode::RowWise;
    setup.scale_b = variant % 4 == 2 ? ScaleMode::TensorWise : ScaleMode::RowWise;
    run_and_judge(setup);
  }
}

TEST_P(EveryCase, Float8Blocks) {
  const std::uint64_t variants = large(GetParam()) ? 1 : 8;
  for (std::uint64_t variant = 0; variant < variants; ++variant) {
    GemmSetup setup = setup_of(GetParam(), DType::float8_e4m3fn, variant + 5 * GetParam().id.size());
    setup.scale_a = ScaleMode::BlockWise1x128;
    setup.scale_b = ScaleMode::BlockWise128x128;
    run_and_judge(setup);
  }
}

// ---- single facts of docs/numerics.md, each by hand
// -------------------------------------------------------------------

// A 1 x 1 problem on the stack.
struct OneElement {
  std::vector<std::int8_t> a, b;
  float scale_a = 1, scale_b = 1, bias = 0, out = 77;
  std::int32_t azp = 0, azp_adj = 0;
  bool has_bias = false, has_azp = false, has_row_azp = false;
  DType input = DType::int8;

  float run() {
    GemmProblem problem;
    problem.m = problem.n = 1;
    problem.k = static_cast<std::int64_t>(a.size());
    problem.input_dtype = input;
    problem.output_dtype = DType::float32;
    problem.a = a.data();
    problem.b = b.data();
    problem.a_stride = problem.b_stride = problem.k;
    problem.out = &out;
    problem.out_stride = 1;
    problem.scale_a.data = &scale_a;
    problem.scale_b.data = &scale_b;
    problem.bias = has_bias ? &bias : nullptr;
    problem.has_azp = has_azp;
    problem.azp_adj = has_azp ? &azp_adj : nullptr;
    problem.azp = has_row_azp ? &azp : nullptr;
    reference::gemm(problem);
    return out;
  }
};

TEST(Int8, ExtremesAtTheLargestK) {
  OneElement one;
  one.a.assign(131071, -128);
  one.b.assign(131071, -128);
  EXPECT_EQ(one.run(), 2147467264.0f);  // 131071 * 16384 = 2147467264 < 2^31
  one.b.assign(131071, 127);
  EXPECT_EQ(one.run(), -2130690176.0f);  // -131071 * 16256 = -2130690176, rounded to fp32
}

TEST(Int8, ZeroPointsWrapModulo2To32) {
  OneElement one;
  one.a = {3};
  one.b = {2};
  one.has_azp = one.has_row_azp = true;
  one.azp = 65536;
  one.azp_adj = 65536;  // 2^32
  EXPECT_EQ(one.run(), 6.0f);
  one.azp = std::numeric_limits<std::int32_t>::min();
  one.azp_adj = 1;
  EXPECT_EQ(one.run(), -2147483642.0f);  // 6 + 2^31 wraps
  one.has_row_azp = false;               // folded: the adjustment is subtracted as it is
  one.azp_adj = 4;
  EXPECT_EQ(one.run(), 2.0f);
}

TEST(Int8, ScaleOfBComesFirstThenOneFma) {
  OneElement one;
  one.a = {1};
  one.b = {1};
  one.scale_a = 0x1p100f;
  one.scale_b = 0x1p-140f;  // t = 2^-140 is subnormal but exact
  EXPECT_EQ(one.run(), 0x1p-40f);
  one.a = one.b = {127};
  one.scale_a = 0x1p-100f;
  one.scale_b = 0x1p120f;  // t overflows, although the whole product would not
  EXPECT_EQ(one.run(), std::numeric_limits<float>::infinity());
  one.a = one.b = {1};
  // one rounding of scale_a * t + bias: (1 + 2^-12)^2 - (1 + 2^-11) = 2^-24, which a rounded product would lose
  one.scale_a = one.scale_b = 1 + 0x1p-12f;
  one.bias = -(1 + 0x1p-11f);
  one.has_bias = true;
  EXPECT_EQ(one.run(), 0x1p-24f);
}

TEST(Int8, ZeroKeepsItsSignWithoutBiasOnly) {
  OneElement one;
  one.a = {0};
  one.b = {5};
  one.scale_b = -1;
  EXPECT_TRUE(std::signbit(one.run()));  // -1 * 0
  one.has_azp = true;                    // adds +0
  EXPECT_FALSE(std::signbit(one.run()));
}

TEST(Float8, SumsStartAtPlusZero) {
  OneElement one;
  one.input = DType::float8_e4m3fn;
  one.a = {static_cast<std::int8_t>(0x80)};  // -0
  one.b = {0x38};                            // 1
  EXPECT_FALSE(std::signbit(one.run()));
  EXPECT_EQ(one.out, 0.0f);
}

TEST(Float8, KAscendsInsideBlocksOf128) {
  // 2^17 + 2^-18 * (128 times) : added one by one each is lost; a second block starts anew and keeps its sum.
  OneElement one;
  one.input = DType::float8_e4m3fn;
  one.a.assign(256, 0x01);  // 2^-9
  one.b.assign(256, 0x01);
  one.a[0] = one.b[0] = 0x7e;  // 448 * 448 = 200704, whose ulp is 2^-6
  EXPECT_EQ(one.run(), 200704.0f);
  EXPECT_EQ(one.out, static_cast<float>(200704.0 + 128 * 0x1p-18));
  one.a.assign(256, 0x38);  // 1
  one.b.assign(256, 0x18);  // 2^-4
  one.a[0] = one.b[0] = 0x7e;
  EXPECT_EQ(one.run(), 200704.0f + 127 * 0x1p-4f + 8.0f);
}

TEST(Float8, NanReachesItsRowOnly) {
  for (const ScaleMode mode : {ScaleMode::RowWise, ScaleMode::BlockWise1x128}) {
    GemmSetup setup;
    setup.m = 5;
    setup.n = 9;
    setup.k = 200;
    setup.input = DType::float8_e4m3fn;
    setup.scale_a = mode;
    setup.scale_b = mode == ScaleMode::RowWise ? mode : ScaleMode::BlockWise128x128;
    GemmOperands operands(setup);
    GemmProblem& problem = operands.problem();
    std::vector<std::uint8_t> a(static_cast<const std::uint8_t*>(problem.a),
                                static_cast<const std::uint8_t*>(problem.a) + setup.m * setup.k);
    a[2 * 200 + 150] = 0x7f;
    problem.a = a.data();
    reference::gemm(problem);
    EXPECT_EQ(check_bound(problem, kCpuModel).failure, "");
    for (std::int64_t i = 0; i < setup.m; ++i)
      for (std::int64_t j = 0; j < setup.n; ++j) EXPECT_EQ(std::isnan(stored_at(problem, i, j)), i == 2) << at(i, j);
  }
}

TEST(Properties, AScaleOf2To3ScalesTheOutputExactly) {
  GemmSetup setup;
  setup.m = 17;
  setup.n = 20;
  setup.k = 300;
  setup.input = DType::float8_e4m3fn;
  setup.output = DType::float32;
  GemmOperands first(setup), second(setup);
  std::vector<float> scales(static_cast<std::size_t>(setup.m));
  for (std::int64_t i = 0; i < setup.m; ++i) scales[i] = 8 * second.problem().scale_a.data[i];
  second.problem().scale_a.data = scales.data();
  reference::gemm(first.problem());
  reference::gemm(second.problem());
  for (std::int64_t i = 0; i < setup.m; ++i)
    for (std::int64_t j = 0; j < setup.n; ++j)
      ASSERT_EQ(stored_at(second.problem(), i, j), 8 * stored_at(first.problem(), i, j));
}

TEST(Outputs, Float16OverflowsToInfinity) {
  std::uint16_t out = 0;
  OneElement one;
  one.a.assign(8, 127);
  one.b.assign(8, 127);
  one.scale_a = 1;
  GemmProblem problem;
  problem.m = problem.n = 1;
  problem.k = 8;
  problem.output_dtype = DType::float16;
  problem.a = one.a.data();
  problem.b = one.b.data();
  problem.a_stride = problem.b_stride = 8;
  problem.out = &out;
  problem.out_stride = 1;
  problem.scale_a.data = &one.scale_a;
  problem.scale_b.data = &one.scale_b;
  reference::gemm(problem);
  EXPECT_EQ(out, 0x7c00);
  one.scale_a = -1;
  reference::gemm(problem);
  EXPECT_EQ(out, 0xfc00);
}

TEST(PermuteCols, EveryIndexAndNothingOutside) {
  constexpr std::int64_t kRows = 3, kColumns = 7;
  GuardedBuffer a(kRows * kColumns * 2), out(kRows * kColumns * 2), perm(kColumns * 2 * 4);
  for (int i = 0; i < kRows * kColumns; ++i) a.as<std::uint16_t>()[i] = static_cast<std::uint16_t>(1000 + i);
  constexpr std::int32_t kPerm[kColumns] = {6, 0, -1, 7, 3, 3, std::numeric_limits<std::int32_t>::min()};
  for (int j = 0; j < kColumns; ++j) perm.as<std::int32_t>()[2 * j] = kPerm[j];
  a.seal();
  perm.seal();
  PermuteProblem problem;
  problem.rows = kRows;
  problem.columns = kColumns;
  problem.a = a.as<std::uint16_t>();
  problem.perm = perm.as<std::int32_t>();
  problem.perm_stride = 2;
  problem.out = out.as<std::uint16_t>();
  reference::permute(problem);
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kColumns; ++j) {
      const bool inside = kPerm[j] >= 0 && kPerm[j] < kColumns;
      EXPECT_EQ(out.as<std::uint16_t>()[i * kColumns + j], inside ? 1000 + i * kColumns + kPerm[j] : 0);
    }
  EXPECT_EQ(a.damage() + perm.damage() + out.damage(), "");
}

}  // namespace
