// SPDX-License-Identifier: Apache-2.0
// The planner: first match wins, rows that cannot run are refused by name, facts can be made up, explain() tells the plan.
// Mirrors src/plan/{plan,explain,table}.cpp. Which shape gets which row is a golden list of its own (tests/golden_plans.tsv).
#include "evergemm/plan.h"

#include <gtest/gtest.h>

#include <array>
#include <string>

#include "plan/portable.h"
#include "plan/rules.h"
#include "plan/sm90.h"
#include "plan/tile_geometry.h"

namespace evergemm {
namespace {

using plan_tables::any;
using plan_tables::Rule;

GemmProblem problem_of(DType dtype, std::int64_t m, std::int64_t n, std::int64_t k) {
  GemmProblem problem;
  problem.m = m;
  problem.n = n;
  problem.k = k;
  problem.input_dtype = dtype;
  problem.a_stride = problem.b_stride = k;
  problem.out_stride = n;
  return problem;
}

DeviceFacts facts_of(const char* text) {
  DeviceFacts facts;
  EXPECT_TRUE(facts_named(text, facts)) << text;
  return facts;
}

constexpr std::array kGoodRules = {Rule{16, any, any, 0, ""}, Rule{any, 2112, any, 1, ""}, Rule{any, any, any, 2, ""}};
constexpr std::array kOpenEnd = {Rule{16, any, any, 0, ""}};
constexpr std::array kHiddenRule = {Rule{any, any, any, 0, ""}, Rule{16, any, any, 1, ""}};
constexpr std::array kCrookedThreshold = {Rule{any, any, 4069, 0, ""}, Rule{any, any, any, 1, ""}};
static_assert(plan_tables::well_formed(kGoodRules));
static_assert(!plan_tables::well_formed(kOpenEnd));
static_assert(!plan_tables::well_formed(kHiddenRule));
static_assert(!plan_tables::well_formed(kCrookedThreshold));

TEST(Plan, EachInstructionSetGetsItsOwnRow) {
  struct Case {
    const char* facts;
    DType dtype;
    std::int64_t m;
    const char* prefix;
  };
  for (const Case& c :
       {Case{"cpu-portable", DType::int8, 64, "cpu_int8_portable"}, Case{"cpu-avx2", DType::int8, 64, "cpu_int8_avx2"},
        Case{"cpu-avx512", DType::int8, 64, "cpu_int8_avx2"},
        Case{"cpu-avx512_vnni", DType::int8, 64, "cpu_int8_avx512vnni"},
        Case{"cpu-avx512_vnni", DType::int8, 1, "cpu_int8_avx512vnni"},
        Case{"cpu-portable", DType::float8_e4m3fn, 64, "cpu_fp8_portable"},
        Case{"cpu-avx2", DType::float8_e4m3fn, 64, "cpu_fp8_avx2"},
        Case{"cpu-avx512", DType::float8_e4m3fn, 64, "cpu_fp8_avx512"},
        Case{"cpu-avx512_vnni", DType::float8_e4m3fn, 1, "cpu_fp8_avx512"}}) {
    Plan chosen;
    ASSERT_TRUE(plan(problem_of(c.dtype, c.m, 512, 512), facts_of(c.facts), chosen).ok());
    EXPECT_EQ(std::string(chosen.name).rfind(c.prefix, 0), 0u) << c.facts << " got " << chosen.name;
    EXPECT_GE(chosen.rule, 0);
    EXPECT_NE(std::string(chosen.why), "");
  }
}

TEST(Plan, AnEmptyResultNeedsNoRow) {
  for (const auto& [m, n] : {std::pair{0, 5}, std::pair{5, 0}, std::pair{0, 0}}) {
    Plan chosen;
    ASSERT_TRUE(plan(problem_of(DType::int8, m, n, 7), facts_of("cpu"), chosen).ok());
    EXPECT_EQ(chosen.row, -1);
    EXPECT_STREQ(chosen.name, "empty");
    EXPECT_EQ(chosen.workspace_bytes, 0);
  }
}

// Every GPU runs every problem, with no GPU there to ask: any dtype, scale mode, alignment and size has a row.
TEST(Plan, EveryGpuArchitectureRunsEverything) {
  for (const char* architecture :
       {"sm75", "sm80", "sm86", "sm89", "sm90a", "sm100", "sm103", "sm110", "sm120", "sm121"})
    for (const DType dtype : {DType::int8, DType::float8_e4m3fn})
      for (const bool blocks : {false, true})
        for (const bool fast : {false, true})
          for (const std::int64_t stride : {4096, 4097})
            for (const std::int64_t m : {1, 16, 17, 33, 100, 300, 700, 5000, 2000000000})
              for (const std::int64_t k : {0, 5, 4096}) {
                if (blocks && dtype == DType::int8) continue;
                const DeviceFacts facts = facts_of(architecture);
                GemmProblem problem = problem_of(dtype, m, 5120, k);
                problem.fast_accumulation = fast;
                problem.a_stride = problem.b_stride = stride;
                if (blocks) {
                  problem.scale_a.mode = ScaleMode::BlockWise1x128;
                  problem.scale_b.mode = ScaleMode::BlockWise128x128;
                }
                Plan chosen;
                ASSERT_TRUE(plan(problem, facts, chosen).ok()) << architecture << " m " << m << " k " << k;
                ASSERT_GE(chosen.row, 0);
                EXPECT_EQ(why_not(problem, facts, chosen.row), "") << architecture << " " << chosen.name;
                EXPECT_STREQ(chosen.name, row_name(facts.architecture, chosen.row));
                const bool portable = std::string(chosen.name).rfind("portable_", 0) == 0;
                if (facts.architecture != Architecture::sm90a || stride % 16 != 0 || k == 0)
                  EXPECT_TRUE(portable) << architecture << " " << chosen.name;
                else
                  EXPECT_FALSE(portable) << architecture << " " << chosen.name;
                EXPECT_EQ(chosen.accumulation, dtype == DType::int8 ? Accumulation::exact_int32
                                               : blocks || !fast    ? Accumulation::promoted
                                                                    : Accumulation::fast);
              }
}

TEST(Plan, AResultThatFitsNoMemoryIsAnErrorThatNamesTheFix) {
  Plan chosen;
  EXPECT_EQ(
      plan(problem_of(DType::int8, std::int64_t{1} << 40, std::int64_t{1} << 40, 16), facts_of("sm80"), chosen).text(),
      "scaled_mm: expected a result whose tiles sm80 can count; got m 1099511627776 and n 1099511627776; fix: split "
      "the product.");
}

// Tiles grow with the share of a multiprocessor: a card with fewer of them takes larger ones earlier.
TEST(Plan, TilesSuitTheNumberOfMultiprocessors) {
  const auto row = [](const char* architecture, std::int64_t m) {
    Plan chosen;
    EXPECT_TRUE(plan(problem_of(DType::int8, m, 4096, 4096), facts_of(architecture), chosen).ok());
    return std::string(chosen.name);
  };
  EXPECT_EQ(row("sm80", 1), "portable_int8_16x64x128_s8");
  EXPECT_EQ(row("sm80", 16), "portable_int8_16x64x128_s8");
  EXPECT_EQ(row("sm75", 16), "portable_int8_16x64x128_s2");
  EXPECT_EQ(row("sm89", 8192), "portable_int8_128x128x64_s3");
  EXPECT_EQ(row("sm100", 8192), "portable_int8_128x128x64_s4");
  EXPECT_EQ(row("sm120", 256), "portable_int8_64x64x128_s3");
  EXPECT_EQ(row("sm75", 256), "portable_int8_128x128x64_s2");
}

// A tile of 128 x 64 that is half empty takes longer than one of 32 x 64 (7168x8192, m 64: 32.2 us and 26.3 on an H100).
TEST(Plan, FewTokensDoNotTakeATallPortableTile) {
  for (const char* architecture : {"sm75", "sm80", "sm86", "sm89", "sm100", "sm120"})
    for (const DType dtype : {DType::int8, DType::float8_e4m3fn})
      for (const std::int64_t m : {33, 48, 64})
        for (const std::int64_t n : {2112, 4096, 6144, 7168}) {
          Plan chosen;
          ASSERT_TRUE(plan(problem_of(dtype, m, n, 8192), facts_of(architecture), chosen).ok());
          EXPECT_EQ(std::string(chosen.name).find("_128x64x"), std::string::npos)
              << architecture << " m " << m << " n " << n;
        }
}

// int8 sums are exact in any order.
TEST(Plan, OneOrderCostsInt8Nothing) {
  for (const char* architecture : {"sm75", "sm80", "sm90a", "sm120"})
    for (const std::int64_t m : {1, 64, 128, 129, 144, 256, 1024})
      for (const std::int64_t n : {1280, 2112, 6144}) {
        GemmProblem problem = problem_of(DType::int8, m, n, 8192);
        Plan any_order, one_order;
        ASSERT_TRUE(plan(problem, facts_of(architecture), any_order).ok());
        problem.deterministic = true;
        ASSERT_TRUE(plan(problem, facts_of(architecture), one_order).ok());
        EXPECT_STREQ(one_order.name, any_order.name) << architecture << " m " << m << " n " << n;
      }
}

// Few tiles of a long k are split among idle multiprocessors; a caller who asks for one order of fp8's sums gets it.
TEST(Plan, PortableRowsSplitALongKWhereTilesAreFew) {
  int split = 0;
  for (const char* architecture : {"sm75", "sm80", "sm86", "sm89", "sm100", "sm120"})
    for (const DType dtype : {DType::int8, DType::float8_e4m3fn})
      for (const bool deterministic : {false, true})
        for (const std::int64_t m : {1, 16, 64, 256, 1024, 8192})
          for (const std::int64_t n : {40, 1280, 2112, 57344})
            for (const std::int64_t k : {0, 100, 1000, 7168, 8201}) {
              GemmProblem problem = problem_of(dtype, m, n, k);
              problem.deterministic = deterministic;
              Plan chosen;
              ASSERT_TRUE(plan(problem, facts_of(architecture), chosen).ok());
              const bool one_order = deterministic && dtype != DType::int8;
              ASSERT_GE(chosen.split_k, 1);
              if (one_order || k < 1000) {
                EXPECT_EQ(chosen.split_k, 1);
              }
              if (chosen.split_k == 1) {
                EXPECT_EQ(chosen.workspace_bytes, 0);
                continue;
              }
              ++split;
              EXPECT_EQ(chosen.workspace_bytes % (4 * chosen.split_k), 0);
              EXPECT_GE(chosen.workspace_bytes, m * n * 4 * chosen.split_k);
              EXPECT_GE(k / chosen.split_k, 256) << "parts too short to fill a row's stages";
            }
  EXPECT_GT(split, 0);
}

TEST(Plan, PartsOfKCoverItAndNoneIsEmpty) {
  for (const std::int64_t k : {0, 1, 128, 129, 1000, 7168, 8201})
    for (std::int64_t wanted = 1; wanted <= plan_tables::kPortableMostParts; ++wanted) {
      const std::int64_t parts = plan_tables::parts_of(k, wanted), blocks = plan_tables::blocks_of_part(k, parts);
      EXPECT_LE(parts, wanted) << k;
      EXPECT_GE(parts * blocks, plan_tables::blocks_of(k)) << k << " in " << wanted;
      EXPECT_LT((parts - 1) * blocks, plan_tables::blocks_of(k)) << k << " in " << wanted;
    }
}

TEST(Plan, PortableRowsRefuseWhatTheyCannotCount) {
  constexpr std::int64_t kTile = 64;  // columns of the smallest tile that is chosen, and of k in a stage at the least
  for (const char* architecture : {"sm75", "sm80", "sm89", "sm90a", "sm120"}) {
    SCOPED_TRACE(architecture);
    Plan chosen;
    const auto refused = [&](std::int64_t m, std::int64_t n, std::int64_t k) {
      return plan(problem_of(DType::float8_e4m3fn, m, n, k), facts_of(architecture), chosen).text();
    };
    EXPECT_EQ(refused(1, (kTile << 28), 1), "");
    EXPECT_NE(refused(1, std::int64_t{1} << 40, 1), "");
    EXPECT_NE(refused(1, 64, std::int64_t{1} << 39), "");
    EXPECT_EQ(refused(0, std::int64_t{1} << 40, 1), "");  // nothing to count
  }
  const plan_tables::PortableTile& tile = plan_tables::portable_rows_of(plan_tables::MemoryClass::large)[0];
  EXPECT_TRUE(plan_tables::counts_in_32_bits(tile, tile.n * ((std::int64_t{1} << 29) - 1) - 1, 1));
  EXPECT_FALSE(plan_tables::counts_in_32_bits(tile, tile.n * ((std::int64_t{1} << 29) - 1), 1));
  EXPECT_FALSE(plan_tables::counts_in_32_bits(tile, 1, tile.k * ((std::int64_t{1} << 31) - 1)));
}

TEST(Plan, HoppersRowsSplitNoFp8SumOfACallerWhoAsksForOneOrder) {
  const DeviceFacts facts = facts_of("sm90a");
  for (const bool fast : {false, true})
    for (const std::int64_t m : {1, 16, 32, 64, 160}) {
      if (fast && m > 64) continue;  // only block scales have a row that splits k for so many
      GemmProblem problem = problem_of(DType::float8_e4m3fn, m, 1280, 7168);
      problem.fast_accumulation = fast;
      Plan split, whole;
      ASSERT_TRUE(plan(problem, facts, split).ok());
      EXPECT_GT(split.split_k, 1) << split.name;
      problem.deterministic = true;
      ASSERT_TRUE(plan(problem, facts, whole).ok());
      EXPECT_EQ(whole.split_k, 1) << whole.name;
      EXPECT_EQ(std::string(whole.name).rfind("sm90_", 0), 0u) << whole.name;
      EXPECT_EQ(why_not(problem, facts, split.row),
                "splits k, which changes fp8 sums; deterministic asks for one order");
    }
}

// Three CTAs cannot share two blocks of k; such products went to the portable rows.
TEST(Plan, AShortKStaysWithHoppersOwnRows) {
  for (const DType dtype : {DType::int8, DType::float8_e4m3fn})
    for (const bool fast : {false, true})
      for (const std::int64_t m : {1, 16, 32, 64, 128, 160, 256})
        for (const std::int64_t n : {64, 1280, 2112, 4096})
          for (const std::int64_t k : {16, 128, 144, 256, 272, 384}) {
            GemmProblem problem = problem_of(dtype, m, n, k);
            problem.fast_accumulation = fast;
            Plan chosen;
            ASSERT_TRUE(plan(problem, facts_of("sm90a"), chosen).ok());
            EXPECT_EQ(std::string(chosen.name).rfind("sm90_", 0), 0u)
                << chosen.name << ' ' << m << ' ' << n << ' ' << k;
          }
}

// Slices of whole swizzle atoms, which a cluster's CTAs fetch for each other, may overlap but leave nothing out.
TEST(Plan, SlicesOfATileCoverIt) {
  using namespace plan_tables;
  const auto covered = [](std::int32_t members, std::int32_t slice, std::int32_t side) {
    std::int32_t end = 0;
    for (std::int32_t member = 0; member < members; ++member) {
      const std::int32_t begin = slice_begin(member, slice, side);
      if (begin % kSwizzleRows != 0 || begin > end || begin + slice <= end) return -1;  // a gap, or nothing of its own
      end = begin + slice;
    }
    return end;
  };
  for (const TileConfig& tile : kSm90Tiles) {
    const Geometry g = geometry(tile);
    EXPECT_EQ(covered(tile.cluster_m, g.columns_slice, tile.n), tile.n) << name_of(tile).view();
    EXPECT_EQ(covered(tile.cluster_n, g.rows_slice, tile.m), tile.m) << name_of(tile).view();
  }
  const auto fours = [](std::int32_t n, std::int32_t cluster_m, std::int32_t cluster_n) {
    return TileConfig{Mainloop::fp8_fast, 128, n, 128, 4, cluster_m, cluster_n, 1, Schedule::cooperative, false};
  };
  EXPECT_EQ(geometry(fours(144, 4, 1)).columns_slice, 40);
  EXPECT_TRUE(valid(fours(144, 4, 1)));
  EXPECT_FALSE(valid(fours(80, 8, 1)));  // 16 from 0, 16, 32, 48, 64, and three with nothing left
  EXPECT_FALSE(valid(fours(144, 4, 2)));
}

TEST(Plan, ExplainSaysHowAnArchitectureMultipliesFp8) {
  for (const char* architecture : {"sm75", "sm80", "sm86", "sm90a", "sm100", "sm103", "sm110"}) {
    GemmProblem problem = problem_of(DType::float8_e4m3fn, 64, 512, 512);
    problem.a_stride = 513;  // beyond what Hopper's own rows take
    EXPECT_NE(explain(problem, facts_of(architecture)).find("converted to fp16 on the fly"), std::string::npos)
        << architecture;
  }
  for (const char* architecture : {"sm89", "sm120", "sm121"})
    EXPECT_NE(explain(problem_of(DType::float8_e4m3fn, 64, 512, 512), facts_of(architecture)).find("\"fp8 tensor core"),
              std::string::npos)
        << architecture;
}

TEST(Plan, EveryRowIsForcedOrRefusedWithAReason) {
  const DeviceFacts facts = facts_of("cpu-avx2");
  const std::int32_t rows = row_count(Architecture::cpu);
  ASSERT_GT(rows, 0);
  int forced = 0, refused = 0;
  for (std::int32_t row = 0; row < rows; ++row) {
    const GemmProblem problem = problem_of(DType::int8, 33, 17, 65);
    Plan chosen;
    const Status status = plan_row(problem, facts, row, chosen);
    EXPECT_EQ(status.ok(), why_not(problem, facts, row).empty());
    if (status.ok()) {
      ++forced;
      EXPECT_EQ(chosen.row, row);
      EXPECT_STREQ(chosen.name, row_name(Architecture::cpu, row));
    } else {
      ++refused;
      EXPECT_NE(status.text().find(why_not(problem, facts, row)), std::string::npos);
    }
  }
  EXPECT_GT(forced, 0);
  EXPECT_GT(refused, 0);
  Plan chosen;
  EXPECT_EQ(plan_row(problem_of(DType::int8, 1, 1, 1), facts, rows, chosen).text(),
            "scaled_mm: expected row in [0, " + std::to_string(rows) + ") of cpu; got " + std::to_string(rows) +
                "; fix: choose a row that evergemm.explain() lists.");
}

TEST(Plan, FactsHaveNames) {
  DeviceFacts facts;
  for (const char* text : {"", "cpu-", "cpu-neon", "sm90", "sm42"}) EXPECT_FALSE(facts_named(text, facts)) << text;
  for (const char* text :
       {"cpu", "sm75", "sm80", "sm86", "sm89", "sm90a", "sm100", "sm103", "sm110", "sm120", "sm121"}) {
    ASSERT_TRUE(facts_named(text, facts)) << text;
    EXPECT_STREQ(name(facts.architecture), text);
    EXPECT_GT(facts.cores, 0);
  }
  EXPECT_EQ(facts_of("sm90a").shared_memory_bytes, 232448);
}

TEST(Plan, ExplainTellsThePlanAndWhatWasRejected) {
  const GemmProblem problem = problem_of(DType::int8, 32, 384, 1536);
  const std::string text = explain(problem, facts_of("cpu-avx2"));
  Plan chosen;
  ASSERT_TRUE(plan(problem, facts_of("cpu-avx2"), chosen).ok());
  EXPECT_NE(text.find("\"row\": \"" + std::string(chosen.name) + "\""), std::string::npos) << text;
  EXPECT_NE(text.find(chosen.why), std::string::npos);
  EXPECT_NE(text.find("\"rejected\": [{"), std::string::npos);
  EXPECT_NE(text.find("avx512"), std::string::npos);                               // rejected: this processor has avx2
  EXPECT_NE(text.find("\"operations\": 3.77487e+07"), std::string::npos) << text;  // 2 * 32 * 384 * 1536
  EXPECT_NE(explain(problem, facts_of("sm75")).find("\"arithmetic\": \"int8 tensor core, m8n8k16\""),
            std::string::npos);
}

TEST(Plan, TheCpuIsAlwaysBuilt) {
  EXPECT_TRUE(is_built(Architecture::cpu));
  EXPECT_FALSE(is_built(Architecture::sm75));
}

}  // namespace
}  // namespace evergemm
