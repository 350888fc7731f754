// SPDX-License-Identifier: Apache-2.0
// The judges judged: bound_checker.h must accept what each model of accumulation stores and refuse outputs that lost a
// part of k, took a neighbour's scale or lost a patch; red_zones.h must notice each kind of stray write; cases.h must
// refuse what it does not understand.
#include "bound_checker.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "cases.h"
#include "evergemm/reference.h"
#include "gemm_operands.h"
#include "red_zones.h"

namespace {

using namespace evergemm;
using namespace evergemm::proof;

// A double that is exactly representable, stored in the problem's output type.
void store(const GemmProblem& problem, std::int64_t i, std::int64_t j, double value) {
  const auto single = static_cast<float>(value);
  std::uint32_t bits;
  std::memcpy(&bits, &single, sizeof bits);
  char* target = static_cast<char*>(problem.out) + (i * problem.out_stride + j) * size_in_bytes(problem.output_dtype);
  if (problem.output_dtype == DType::float32) {
    std::memcpy(target, &bits, 4);
  } else if (problem.output_dtype == DType::bfloat16) {
    const auto half = static_cast<std::uint16_t>(bits >> 16);
    std::memcpy(target, &half, 2);
  } else {
    for (int code = 0; code < 65536; ++code)
      if (decode_16(static_cast<std::uint16_t>(code), 10, 15) == value) {
        const auto half = static_cast<std::uint16_t>(code);
        std::memcpy(target, &half, 2);
        return;
      }
  }
}

// What hardware of `model` would store, computed from `computed` and written to `problem`'s out.
void emulate(const GemmProblem& problem, const GemmProblem& computed, const AccumulationModel& model) {
  const DecodedOperands operands = decode_operands(computed);
  for (std::int64_t i = 0; i < problem.m; ++i)
    for (std::int64_t j = 0; j < problem.n; ++j) store(problem, i, j, emulate_element(computed, operands, model, i, j));
}

struct ModelCase {
  const char* id;
  AccumulationModel model;
  ScaleMode scale_a, scale_b;
};
void PrintTo(const ModelCase& c, std::ostream* stream) { *stream << c.id; }
const ModelCase kModels[] = {
    {"cpu_row", kCpuModel, ScaleMode::RowWise, ScaleMode::RowWise},
    {"cpu_block", kCpuModel, ScaleMode::BlockWise1x128, ScaleMode::BlockWise128x128},
    {"hopper_fast_row", kHopperFastModel, ScaleMode::RowWise, ScaleMode::RowWise},
    {"hopper_promoted_row", kHopperPromotedModel, ScaleMode::RowWise, ScaleMode::RowWise},
    {"hopper_block", kHopperPromotedModel, ScaleMode::BlockWise1x128, ScaleMode::BlockWise128x128},
};

class EveryModel : public ::testing::TestWithParam<ModelCase> {
 protected:
  GemmSetup setup(std::int64_t m, std::int64_t n, std::int64_t k, Data data) const {
    GemmSetup s;
    s.m = m;
    s.n = n;
    s.k = k;
    s.input = DType::float8_e4m3fn;
    s.scale_a = GetParam().scale_a;
    s.scale_b = GetParam().scale_b;
    s.data = data;
    return s;
  }
};
INSTANTIATE_TEST_SUITE_P(Models, EveryModel, ::testing::ValuesIn(kModels),
                         [](const auto& info) { return info.param.id; });

TEST_P(EveryModel, AcceptsItsOwnArithmetic) {
  std::uint64_t seed = 100;
  for (const Data data : kAllData)
    for (const DType output : {DType::bfloat16, DType::float32}) {
      GemmSetup s = setup(65, 70, 600, data);
      s.output = output;
      s.bias = seed % 2 == 0;
      s.out_padding = 3;
      s.seed = seed++;
      SCOPED_TRACE(s.text());
      GemmOperands operands(s);
      emulate(operands.problem(), operands.problem(), GetParam().model);
      const Verdict verdict = check_fp8(operands.problem(), GetParam().model);
      EXPECT_EQ(verdict.failure, "");
      EXPECT_EQ(verdict.elements, 65 * 70);
      EXPECT_EQ(verdict.tiles, 4);
      EXPECT_LE(verdict.worst_rms_ratio, 1.0 + 1e-9);
    }
}

// Cutting errs towards zero, so on positive data errors add up: they must use a good part of the bound (one that
// nothing comes near would prove nothing), and no mode may pass for a more exact one.
TEST(HopperModel, TheBoundIsNearWhatTheHardwareLoses) {
  GemmSetup s;
  s.m = s.n = 16;
  s.k = 7168;
  s.input = DType::float8_e4m3fn;
  s.output = DType::float32;
  s.data = Data::positive;
  GemmOperands operands(s);
  emulate(operands.problem(), operands.problem(), kHopperFastModel);
  const Verdict fast = check_bound(operands.problem(), kHopperFastModel);
  EXPECT_EQ(fast.failure, "");
  EXPECT_GT(fast.worst_share, 0.05);
  EXPECT_FALSE(check_bound(operands.problem(), kHopperPromotedModel).ok()) << "fast must not pass for promoted";
  emulate(operands.problem(), operands.problem(), kHopperPromotedModel);
  EXPECT_EQ(check_fp8(operands.problem(), kHopperPromotedModel).failure, "");
  EXPECT_FALSE(check_fp8(operands.problem(), kCpuModel).ok()) << "promoted must not pass for fp32 fma";
}

TEST_P(EveryModel, RefusesLostParts) {
  for (const auto& [k, lost] : {std::pair{7168, 1}, std::pair{4096, 32}, std::pair{4096, 128}, std::pair{2027, 1}}) {
    GemmOperands operands(setup(32, 64, k, Data::normal));
    GemmProblem shorter = operands.problem();
    shorter.k -= lost;  // the last k-block shrinks; block scales keep their strides
    emulate(operands.problem(), shorter, GetParam().model);
    const Verdict verdict = check_rms(operands.problem(), GetParam().model);  // the bound alone lets small losses pass
    EXPECT_FALSE(verdict.ok()) << "k = " << k << ", lost " << lost;
  }
}

TEST_P(EveryModel, RefusesANeighboursScale) {
  for (const bool of_a : {true, false}) {
    GemmOperands operands(setup(64, 256, 512, Data::normal));
    GemmProblem wrong = operands.problem();
    Scale& scale = of_a ? wrong.scale_a : wrong.scale_b;
    const std::int64_t values = of_a ? 64 : wrong.blockwise() ? 2 : 256;
    std::vector<float> shifted(scale.data, scale.data + (values - 1) * scale.outer_stride + 3 * scale.k_stride + 1);
    // row or column (or column block) 1 takes what belongs to 0
    for (std::int64_t block = 0; block < 4; ++block)
      shifted[scale.outer_stride + block * scale.k_stride] = scale.data[block * scale.k_stride];
    scale.data = shifted.data();
    emulate(operands.problem(), wrong, GetParam().model);
    EXPECT_FALSE(check_fp8(operands.problem(), GetParam().model).ok()) << (of_a ? "scale_a" : "scale_b");
  }
}

TEST_P(EveryModel, RefusesAZeroedPatch) {
  GemmOperands operands(setup(96, 130, 4096, Data::normal));
  emulate(operands.problem(), operands.problem(), GetParam().model);
  ASSERT_EQ(check_fp8(operands.problem(), GetParam().model).failure, "");
  for (std::int64_t i = 70; i < 78; ++i)
    for (std::int64_t j = 121; j < 129; ++j) store(operands.problem(), i, j, 0);
  const Verdict verdict = check_fp8(operands.problem(), GetParam().model);
  EXPECT_FALSE(verdict.ok());
  EXPECT_FALSE(check_rms(operands.problem(), GetParam().model).ok());
}

TEST_P(EveryModel, RefusesPoisonAndInfinity) {
  GemmOperands operands(setup(16, 16, 128, Data::normal));
  EXPECT_EQ(check_fp8(operands.problem(), GetParam().model).failures, 16 * 16);  // nothing written: NaN
  emulate(operands.problem(), operands.problem(), GetParam().model);
  store(operands.problem(), 3, 4, std::numeric_limits<double>::infinity());
  EXPECT_EQ(check_bound(operands.problem(), GetParam().model).failures, 1);
}

TEST(Bound, RefusesOneUnitTooFar) {
  GemmSetup s;
  s.m = s.n = 8;
  s.k = 256;
  s.input = DType::float8_e4m3fn;
  s.data = Data::exact;
  s.output = DType::float32;
  GemmOperands operands(s);
  reference::gemm(operands.problem());
  ASSERT_EQ(check_bound(operands.problem(), kCpuModel).failure, "");
  const double value = stored_at(operands.problem(), 2, 5);
  store(operands.problem(), 2, 5, value + std::fabs(value) * 0x1p-20);
  const Verdict verdict = check_bound(operands.problem(), kCpuModel);
  EXPECT_EQ(verdict.failures, 1);
  EXPECT_NE(verdict.failure.find("[2, 5]"), std::string::npos) << verdict.failure;
}

TEST(Bound, ProvesNothingWhereFp32MayOverflow) {
  GemmSetup s;
  s.m = s.n = 2;
  s.k = 64;
  s.input = DType::float8_e4m3fn;
  s.data = Data::positive;
  GemmOperands operands(s);
  const float huge = 1e36f, tiny = 1e-36f;
  GemmProblem problem = operands.problem();
  problem.scale_a = {ScaleMode::TensorWise, &tiny, 0, 0};
  problem.scale_b = {ScaleMode::TensorWise, &huge, 0, 0};
  reference::gemm(problem);
  EXPECT_FALSE(check_bound(problem, kCpuModel).ok());
}

TEST(RoundTo, AgreesWithTheFormats) {
  EXPECT_EQ(round_to(DType::bfloat16, 1 + 0x1p-8), 1);
  EXPECT_EQ(round_to(DType::bfloat16, 1 + 3 * 0x1p-8), 1 + 0x1p-6);
  EXPECT_EQ(round_to(DType::bfloat16, 1 + 0x1p-8 + 0x1p-40), 1 + 0x1p-7);
  EXPECT_EQ(round_to(DType::float16, 65519.99), 65504);
  EXPECT_TRUE(std::isinf(round_to(DType::float16, 65520)));
  EXPECT_EQ(round_to(DType::float16, 0x1p-25), 0);
  EXPECT_EQ(round_to(DType::float16, 0x1.8p-25), 0x1p-24);
  EXPECT_EQ(round_to(DType::float32, 1 + 0x1p-24), 1);
  EXPECT_TRUE(std::isinf(round_to(DType::float32, 0x1.ffffffp127)));
  for (int code = 0; code < 65536; ++code) {
    for (const auto& [type, mantissa, bias] :
         {std::tuple{DType::bfloat16, 7, 127}, std::tuple{DType::float16, 10, 15}}) {
      const double value = decode_16(static_cast<std::uint16_t>(code), mantissa, bias);
      if (std::isnan(value)) continue;
      ASSERT_EQ(round_to(type, value), value) << code;
    }
  }
}

TEST(Int8Judge, RefusesOneWrongBit) {
  GemmSetup s;
  s.m = 9;
  s.n = 10;
  s.k = 77;
  s.zero_point = ZeroPoint::per_row;
  GemmOperands operands(s);
  reference::gemm(operands.problem());
  ASSERT_EQ(check_int8(operands.problem()).failure, "");
  auto* out = static_cast<std::uint16_t*>(operands.problem().out);
  out[4 * 10 + 7] ^= 1;
  const Verdict verdict = check_int8(operands.problem());
  EXPECT_EQ(verdict.failures, 1);
  EXPECT_NE(verdict.failure.find("[4, 7]"), std::string::npos) << verdict.failure;
}

TEST(SameBits, TellsSignsOfZeroAndAcceptsAnyNan) {
  float x[] = {0.0f, std::numeric_limits<float>::quiet_NaN()};
  float y[] = {0.0f, -std::numeric_limits<float>::quiet_NaN()};
  GemmProblem problem;
  problem.m = 1;
  problem.n = 2;
  problem.output_dtype = DType::float32;
  problem.out = x;
  problem.out_stride = 2;
  EXPECT_TRUE(check_same(problem, y, 2).ok());
  y[0] = -0.0f;
  EXPECT_EQ(check_same(problem, y, 2).failures, 1);
}

TEST(Window, IsTheSameProblemInSmall) {
  for (const bool blocks : {false, true}) {
    GemmSetup s;
    s.m = 20;
    s.n = 300;
    s.k = 130;
    s.input = DType::float8_e4m3fn;
    s.bias = true;
    s.vector_stride = 2;
    s.scale_a = blocks ? ScaleMode::BlockWise1x128 : ScaleMode::RowWise;
    s.scale_b = blocks ? ScaleMode::BlockWise128x128 : ScaleMode::RowWise;
    GemmOperands operands(s);
    reference::gemm(operands.problem());
    const GemmProblem part = window(operands.problem(), 7, 12, 128, 290);
    const Verdict verdict = check_bound(part, kCpuModel);
    EXPECT_EQ(verdict.failure, "");
    EXPECT_EQ(verdict.elements, 5 * 162);
    GemmProblem shifted = window(operands.problem(), 8, 13, 128, 290);
    shifted.out = part.out;
    EXPECT_FALSE(check_bound(shifted, kCpuModel).ok());
  }
}

// ---- memory
// -----------------------------------------------------------------------------------------------------------

#if !defined(__SANITIZE_ADDRESS__)  // which would stop these writes itself
TEST(GuardedBuffer, NoticesWritesOutside) {
  for (const std::ptrdiff_t where :
       {std::ptrdiff_t{-4096}, std::ptrdiff_t{-1}, std::ptrdiff_t{100}, std::ptrdiff_t{4195}}) {
    for (const int value : {0, 0xFF}) {
      GuardedBuffer buffer(100, 3);
      EXPECT_EQ(buffer.damage(), "");
      buffer.as<unsigned char>()[where] = static_cast<unsigned char>(value);
      EXPECT_NE(buffer.damage(), "") << where;
    }
  }
}
#endif

TEST(GuardedBuffer, NoticesChangedInputs) {
  GuardedBuffer buffer(1000);
  buffer.seal();
  EXPECT_EQ(buffer.damage(), "");
  buffer.as()[999] ^= 1;
  EXPECT_NE(buffer.damage(), "");
  buffer.seal();
  EXPECT_EQ(buffer.damage(), "");
}

TEST(GuardedBuffer, NoticesWritesBetweenRows) {
  GuardedBuffer buffer(3 * 10 - 4);  // 3 rows of 6 bytes, 10 apart
  std::memset(buffer.as() + 10, 0, 6);
  EXPECT_EQ(buffer.gap_damage(3, 6, 10), "");
  buffer.as()[16] = 0;
  EXPECT_NE(buffer.gap_damage(3, 6, 10), "");
}

TEST(GuardedBuffer, KeepsItsOffset) {
  for (const std::size_t offset : {0, 1, 16, 63}) {
    GuardedBuffer buffer(10, offset);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer.as()) % kBodyAlignment, offset);
    EXPECT_EQ(buffer.as()[9], kPoison);
  }
}

using PageEdgeBufferDeathTest = ::testing::Test;
TEST(PageEdgeBufferDeathTest, DiesAtTheFirstByteOutside) {
  for (const std::size_t bytes : {1, 4096, 5000}) {
    PageEdgeBuffer at_end(bytes), at_start(bytes, PageEdgeBuffer::Edge::start);
    volatile unsigned char* end = at_end.as();
    volatile unsigned char* start = at_start.as();
    EXPECT_EQ(end[bytes - 1] + start[0], 2 * kPoison);
    EXPECT_DEATH(static_cast<void>(end[bytes]), "");
    EXPECT_DEATH(static_cast<void>(start[-1]), "");
  }
}

// ---- cases
// ------------------------------------------------------------------------------------------------------------

TEST(CaseFile, HasCasesWithUniqueNames) {
  std::vector<std::string> names;
  for (const GemmCase& c : gemm_cases()) names.push_back("gemm " + c.id);
  for (const QuantizeCase& c : quantize_cases()) names.push_back("quantize " + c.id);
  EXPECT_GT(names.size(), 100u);
  std::sort(names.begin(), names.end());
  EXPECT_EQ(std::adjacent_find(names.begin(), names.end()), names.end());
}

TEST(CaseFile, RefusesWhatItDoesNotUnderstand) {
  const auto read = [](const std::string& text) {
    const std::string path = ::testing::TempDir() + "evergemm_cases_" +
                             std::to_string(::testing::UnitTest::GetInstance()->random_seed()) + ".json";
    std::ofstream(path) << text;
    const auto cases = CaseFile(path).gemm();
    return cases.size();
  };
  const std::string good = R"({"gemm": [{"id": "x", "m": 1, "n": 2, "k": 3, "slow": false, "reason": "r"}]})";
  EXPECT_EQ(read(good), 1u);
  const auto with = [&](const std::string& what, const std::string& by) {
    std::string text = good;
    return text.replace(text.find(what), what.size(), by);
  };
  for (const std::string& bad : {with("1", "-1"), with("1", "1.5"), with("false", "no"), with("\"r\"", "\"a\\n\""),
                                 with("\"k\"", "\"m\""), with("\"k\"", "\"depth\""), with(", \"reason\": \"r\"", ""),
                                 with("}]}", "}]"), good + "x", with("gemm", "other"), std::string()})
    EXPECT_ANY_THROW(read(bad)) << bad;
  EXPECT_ANY_THROW(CaseFile("/nonexistent.json"));
}

}  // namespace
