// SPDX-License-Identifier: Apache-2.0
// The planner for grouped products on Hopper: rows per expert choose the row, layouts that the copy engine cannot read go
// to the portable ones, refusals say why. Mirrors src/plan/sm90_grouped.{h,cpp}. No GPU is asked.
#include <gtest/gtest.h>

#include <set>
#include <string>

#include "evergemm/plan.h"
#include "plan/grouped.h"
#include "plan/tile_geometry.h"

namespace evergemm {
namespace {

using plan_tables::any;
using plan_tables::grouped_row_name_sm90;
using plan_tables::grouped_why_not_sm90;
using plan_tables::kSm90GroupedRows;
using plan_tables::kSm90GroupedTiles;
using plan_tables::plan_grouped_row_sm90;
using plan_tables::plan_grouped_sm90;

enum class Kind { int8, fast, promoted, blocks };
constexpr Kind kKinds[] = {Kind::int8, Kind::fast, Kind::promoted, Kind::blocks};

GroupedGemmProblem problem_of(Kind kind, std::int64_t experts, std::int64_t rows, std::int64_t n = 1536,
                              std::int64_t k = 2048, GroupedForm form = GroupedForm::ragged) {
  GroupedGemmProblem problem;
  problem.form = form;
  problem.experts = experts;
  problem.rows = rows;
  problem.n = n;
  problem.k = k;
  problem.input_dtype = kind == Kind::int8 ? DType::int8 : DType::float8_e4m3fn;
  problem.fast_accumulation = kind == Kind::fast;
  if (kind == Kind::blocks) problem.scale_a.mode = ScaleMode::BlockWise1x128;
  problem.a_stride = problem.b_stride = k;
  problem.b_expert_stride = n * k;
  problem.out_stride = n;
  if (form == GroupedForm::masked) {
    problem.a_expert_stride = rows * k;
    problem.out_expert_stride = rows * n;
  }
  return problem;
}

DeviceFacts hopper() { return nominal_facts(Architecture::sm90a); }

Plan planned(const GroupedGemmProblem& problem) {
  Plan plan;
  const Status status = plan_grouped_sm90(problem, hopper(), plan);
  EXPECT_TRUE(status.ok()) << status.text();
  return plan;
}

TEST(GroupedPlan, NamesAreDistinctAndTilesFit) {
  std::set<std::string> names;
  for (std::int32_t row = 0; row < kSm90GroupedRows; ++row) names.insert(grouped_row_name_sm90(row));
  EXPECT_EQ(names.size(), static_cast<std::size_t>(kSm90GroupedRows));
  EXPECT_STREQ(grouped_row_name_sm90(-1), "unknown");
  EXPECT_STREQ(grouped_row_name_sm90(kSm90GroupedRows), "unknown");
  for (const plan_tables::TileConfig& tile : kSm90GroupedTiles) {
    EXPECT_TRUE(tile.grouped && plan_tables::valid(tile)) << plan_tables::name_of(tile).view();
    EXPECT_LE(plan_tables::geometry(tile).total_bytes, hopper().shared_memory_bytes);
  }
}

// Its epilogue would store 64 columns of 48: an illegal instruction on an H100.
TEST(GroupedPlan, ATileNarrowerThanItsChunkOfTheOutputIsNotValid) {
  using plan_tables::Mainloop;
  using plan_tables::Schedule;
  using plan_tables::TileConfig;
  EXPECT_FALSE(plan_tables::valid(TileConfig{Mainloop::fp8_fast, 64, 48, 128, 8, 1, 2, 1, Schedule::basic, false}));
  EXPECT_TRUE(plan_tables::valid(TileConfig{Mainloop::fp8_fast, 64, 64, 128, 8, 1, 2, 1, Schedule::basic, false}));
}

// From the 96th feature on, 176 lie in three blocks of 128, and the third was scaled like the second.
TEST(GroupedPlan, ATileOverThreeWeightBlocksIsNotValid) {
  using plan_tables::Mainloop;
  using plan_tables::Schedule;
  using plan_tables::TileConfig;
  for (const auto& [n, valid] :
       {std::pair{144, true}, {160, true}, {176, false}, {192, true}, {208, false}, {224, false}})
    EXPECT_EQ(
        plan_tables::valid(TileConfig{Mainloop::fp8_promoted, 128, n, 128, 3, 1, 1, 1, Schedule::cooperative, false}),
        valid)
        << n;
}

TEST(GroupedPlan, EveryAverageHasATileOfItsOwnArithmetic) {
  for (const Kind kind : kKinds)
    for (const std::int64_t per_expert : {1, 16, 17, 64, 65, 128, 256, 1000, 40000}) {
      const Plan plan = planned(problem_of(kind, 8, 8 * per_expert));
      ASSERT_GE(plan.row, 0) << per_expert;
      EXPECT_NE(std::string(plan.why), "");
      EXPECT_GE(plan.rule, 0);
      EXPECT_EQ(plan.workspace_bytes, 0);
      EXPECT_EQ(plan.accumulation, kind == Kind::int8   ? Accumulation::exact_int32
                                   : kind == Kind::fast ? Accumulation::fast
                                                        : Accumulation::promoted);
      const std::string prefix = kind == Kind::int8   ? "sm90_int8_"
                                 : kind == Kind::fast ? "sm90_fp8_"
                                                      : "sm90_fp8promoted_";
      EXPECT_EQ(std::string(plan.name).find(prefix), 0u) << plan.name;
    }
}

TEST(GroupedPlan, RowsPerExpertChooseAndAverageRoundsUp) {
  for (const Kind kind : kKinds) {
    const Plan few = planned(problem_of(kind, 128, 64)), many = planned(problem_of(kind, 8, 8 * 1024));
    EXPECT_NE(few.row, many.row);
    EXPECT_EQ(few.swap_ab, kind < Kind::promoted);
    // the same average, whatever the number of experts
    EXPECT_EQ(planned(problem_of(kind, 4, 4 * 32)).row, planned(problem_of(kind, 256, 256 * 32)).row);
    // a masked expert's capacity counts, not the sum
    EXPECT_EQ(planned(problem_of(kind, 64, 1024, 1536, 2048, GroupedForm::masked)).row, many.row);
  }
}

TEST(GroupedPlan, EachRuleEndsAtItsRowsPerExpertAndK) {
  const auto rule = [](Kind kind, std::int64_t per_expert, std::int64_t k) {
    return planned(problem_of(kind, 8, 8 * per_expert, 1536, k)).rule;
  };
  struct Case {
    std::int64_t per_expert, k;
    std::int32_t one_sum, promoted;
  };
  for (const Case& c : {Case{160, 2048, 0, 1}, Case{161, 2048, 4, 1}, Case{32, 2064, 1, 0},  Case{33, 2064, 2, 0},
                        Case{48, 2064, 2, 0},  Case{49, 2048, 0, 1},  Case{49, 2064, 2, 2},  Case{96, 4096, 2, 2},
                        Case{96, 4112, 2, 2},  Case{97, 4112, 3, 6},  Case{97, 4096, 3, 3},  Case{160, 2064, 3, 3},
                        Case{161, 2064, 4, 3}, Case{192, 2064, 4, 3}, Case{193, 2064, 4, 4}, Case{320, 2048, 4, 1},
                        Case{320, 4096, 4, 4}, Case{320, 4112, 4, 6}, Case{321, 1024, 5, 5}, Case{321, 2048, 5, 6},
                        Case{321, 2064, 6, 6}, Case{640, 2064, 6, 6}, Case{641, 2048, 5, 6}, Case{641, 2064, 7, 6}}) {
    SCOPED_TRACE(std::to_string(c.per_expert) + " rows an expert, k " + std::to_string(c.k));
    EXPECT_EQ(rule(Kind::int8, c.per_expert, c.k), c.one_sum);
    EXPECT_EQ(rule(Kind::fast, c.per_expert, c.k), c.one_sum);
    EXPECT_EQ(rule(Kind::promoted, c.per_expert, c.k), c.promoted);
  }
}

TEST(GroupedPlan, WhatTheCopyEngineCannotReadGoesToThePortableRows) {
  const auto by_portable_rows = [](const GroupedGemmProblem& problem) {
    Plan whole;
    EXPECT_TRUE(plan_tables::plan_grouped(problem, hopper(), whole).ok());
    const bool portable = planned(problem).row == -1;
    EXPECT_EQ(whole.row >= kSm90GroupedRows, portable);
    EXPECT_EQ(std::string(whole.name).rfind("portable_", 0) == 0, portable) << whole.name;
    return portable;
  };
  for (const Kind kind : kKinds) {
    GroupedGemmProblem problem = problem_of(kind, 8, 64);
    EXPECT_FALSE(by_portable_rows(problem));
    problem.a_stride += 8;
    EXPECT_TRUE(by_portable_rows(problem));
    problem = problem_of(kind, 8, 64);
    problem.b_stride += 1;
    EXPECT_TRUE(by_portable_rows(problem));
    problem = problem_of(kind, 8, 64);
    problem.b_expert_stride += 4;
    EXPECT_TRUE(by_portable_rows(problem));
    problem = problem_of(kind, 8, 64);
    problem.b_stride = 0;  // a broadcast weight
    EXPECT_TRUE(by_portable_rows(problem));
    problem = problem_of(kind, 8, 64, 1536, 2048, GroupedForm::masked);
    problem.a_expert_stride += 8;
    EXPECT_TRUE(by_portable_rows(problem));
    problem = problem_of(kind, 8, 64);
    problem.a = reinterpret_cast<const void*>(8);
    EXPECT_TRUE(by_portable_rows(problem));
    EXPECT_TRUE(by_portable_rows(problem_of(kind, 8, 64, 1536, 0)));
    EXPECT_TRUE(by_portable_rows(problem_of(kind, 0, 64)));
    EXPECT_TRUE(by_portable_rows(problem_of(kind, 513, 64)));
    EXPECT_FALSE(by_portable_rows(problem_of(kind, 512, 64)));
    EXPECT_TRUE(by_portable_rows(problem_of(kind, 8, std::int64_t{1} << 31)));
  }
}

TEST(GroupedPlan, RefusalsNameTheReason) {
  const DeviceFacts facts = hopper();
  const std::int32_t int8_row = 0;
  const auto why = [&](const GroupedGemmProblem& problem) { return grouped_why_not_sm90(problem, facts, int8_row); };
  EXPECT_EQ(why(problem_of(Kind::int8, 8, 64)), "");
  EXPECT_NE(why(problem_of(Kind::fast, 8, 64)).find("multiplies int8"), std::string::npos);
  EXPECT_NE(why(problem_of(Kind::int8, 8, 64, 64, 0)).find("k is 0"), std::string::npos);
  EXPECT_NE(why(problem_of(Kind::int8, 513, 64)).find("512 experts"), std::string::npos);
  GroupedGemmProblem problem = problem_of(Kind::int8, 8, 64);
  problem.b_expert_stride += 1;
  EXPECT_NE(why(problem).find("experts of b"), std::string::npos);
  EXPECT_NE(grouped_why_not_sm90(problem, facts, kSm90GroupedRows), "");
  EXPECT_NE(grouped_why_not_sm90(problem, facts, -1), "");
  DeviceFacts small = facts;
  small.shared_memory_bytes = 100 << 10;
  EXPECT_NE(grouped_why_not_sm90(problem_of(Kind::int8, 8, 64), small, int8_row).find("shared memory"),
            std::string::npos);
  // tiles that int32 cannot count: every masked expert full
  EXPECT_NE(
      grouped_why_not_sm90(problem_of(Kind::int8, 512, 1 << 24, 1 << 20, 16, GroupedForm::masked), facts, int8_row)
          .find("counts tiles"),
      std::string::npos);
}

TEST(GroupedPlan, ForcedRows) {
  const DeviceFacts facts = hopper();
  Plan plan;
  EXPECT_TRUE(plan_grouped_row_sm90(problem_of(Kind::int8, 8, 64), facts, 0, plan).ok());
  EXPECT_STREQ(plan.name, grouped_row_name_sm90(0));
  EXPECT_EQ(plan.accumulation, Accumulation::exact_int32);
  const Status refused = plan_grouped_row_sm90(problem_of(Kind::fast, 8, 64), facts, 0, plan);
  EXPECT_NE(refused.text().find("grouped_scaled_mm: expected"), std::string::npos);
  GroupedGemmProblem empty = problem_of(Kind::int8, 8, 0);
  EXPECT_TRUE(plan_grouped_row_sm90(empty, facts, 0, plan).ok());
  EXPECT_EQ(plan.row, -1);
  EXPECT_TRUE(plan_grouped_sm90(empty, facts, plan).ok());
  EXPECT_EQ(plan.row, -1);
}

}  // namespace
}  // namespace evergemm
