// SPDX-License-Identifier: Apache-2.0
// Hopper's rows and rules for grouped products (one product an expert, whose rows only the device knows). Data, and the
// planner's questions about it: cmake/KernelInstances.cmake compiles one kernel a tile, src/cuda/sm90/launch_grouped.cpp
// launches it by index. docs/tuning_log.md has the measurements behind the rules.
// Must not go here: CUDA, kernels.
#pragma once
#include <array>
#include <cstdint>
#include <string>

#include "evergemm/plan.h"
#include "plan/rules.h"
#include "plan/tile_config.h"

namespace evergemm::plan_tables {

// clang-format off
// int8 and fast fp8, where one tensor-core sum runs over all of k, have the same rows.
constexpr auto grouped_one_sum_tiles(Mainloop mainloop) {
  return std::array{
      // Swapped tiles multiply as many tokens as their expert has, in steps of 16 up to n; clusters stand side by side along the
      // features and share the tokens.
      //                               m    n    k  stages cluster split schedule       swap_ab grouped
      TileConfig{mainloop,  64,  64, 128, 12, 1, 1, 1, Schedule::basic, true, true},
      TileConfig{mainloop, 128,  64, 128,  8, 1, 1, 1, Schedule::cooperative, true, true},
      TileConfig{mainloop, 128, 128, 128,  6, 1, 1, 1, Schedule::cooperative, true, true},
      TileConfig{mainloop, 128, 192, 128,  5, 2, 1, 1, Schedule::cooperative, true, true},
      TileConfig{mainloop, 128, 256, 128,  4, 2, 1, 1, Schedule::cooperative, true, true},
      TileConfig{mainloop, 256, 128, 128,  4, 2, 1, 1, Schedule::cooperative, true, true},
      TileConfig{mainloop,  64, 256, 128,  4, 2, 1, 1, Schedule::pingpong, true, true},
      TileConfig{mainloop, 128, 128, 128,  6, 1, 1, 1, Schedule::pingpong, true, true},
      TileConfig{mainloop, 128, 128, 128,  6, 2, 1, 1, Schedule::pingpong, true, true},
      TileConfig{mainloop, 128, 160, 128,  5, 2, 1, 1, Schedule::pingpong, true, true},
      TileConfig{mainloop, 128, 128, 128,  6, 1, 2, 1, Schedule::cooperative, true, true},
      TileConfig{mainloop, 128, 128, 128,  6, 2, 2, 1, Schedule::cooperative, true, true},
      TileConfig{mainloop, 128, 160, 128,  5, 2, 2, 1, Schedule::cooperative, true, true},
  };
}
inline constexpr std::array kSm90GroupedPromotedTiles = {
    TileConfig{Mainloop::fp8_promoted,  64,  64, 128, 12, 1, 1, 1, Schedule::basic, true, true},
    TileConfig{Mainloop::fp8_promoted, 128,  64, 128,  8, 1, 1, 1, Schedule::cooperative, true, true},
    TileConfig{Mainloop::fp8_promoted,  64, 128, 128,  7, 1, 1, 1, Schedule::pingpong, false, true},
    TileConfig{Mainloop::fp8_promoted, 128, 128, 128,  6, 1, 2, 1, Schedule::cooperative, false, true},
    TileConfig{Mainloop::fp8_promoted, 256, 128, 128,  4, 1, 2, 1, Schedule::cooperative, false, true},
    TileConfig{Mainloop::fp8_promoted, 128, 160, 128,  4, 1, 1, 1, Schedule::cooperative, false, true},
};
// clang-format on
inline constexpr auto kSm90GroupedTiles =
    joined(grouped_one_sum_tiles(Mainloop::int8), grouped_one_sum_tiles(Mainloop::fp8_fast), kSm90GroupedPromotedTiles);
inline constexpr auto kSm90GroupedRows = static_cast<std::int32_t>(kSm90GroupedTiles.size());

// The row of a tile by what it is; -1 where there is none.
constexpr std::int32_t grouped_row_of(Mainloop mainloop, std::int32_t m, std::int32_t n, bool swap_ab,
                                      Schedule schedule = Schedule::cooperative) {
  for (std::size_t i = 0; i < kSm90GroupedTiles.size(); ++i) {
    const TileConfig& tile = kSm90GroupedTiles[i];
    if (tile.mainloop == mainloop && tile.m == m && tile.n == n && tile.swap_ab == swap_ab && tile.schedule == schedule)
      return static_cast<std::int32_t>(i);
  }
  return -1;
}

// Matches where rows per expert (all rows over all experts, or a masked expert's capacity) and k are at most these.
struct GroupedRule {
  std::int64_t rows_per_expert, k;
  std::int32_t row;
  const char* why;
};
constexpr auto grouped_one_sum_rules(Mainloop mainloop) {
  return std::array{
      GroupedRule{160, 2048, grouped_row_of(mainloop, 128, 64, true),
                  "short sums: small tiles keep more experts' weights under way"},
      GroupedRule{32, any, grouped_row_of(mainloop, 128, 64, true),
                  "few tokens an expert: weights stream once, 128 features a tile"},
      GroupedRule{96, any, grouped_row_of(mainloop, 128, 128, true),
                  "an expert's tokens in one tile, or in even shares of up to 128, which read the weights twice"},
      GroupedRule{160, any, grouped_row_of(mainloop, 128, 160, true, Schedule::pingpong),
                  "an expert's tokens in one tile mostly, in pairs that share them"},
      GroupedRule{320, any, grouped_row_of(mainloop, 128, 128, true, Schedule::pingpong),
                  "even shares of up to 128; one warpgroup stores its tile while the other multiplies"},
      GroupedRule{any, 2048, grouped_row_of(mainloop, 128, 128, true, Schedule::pingpong),
                  "short sums: one warpgroup stores its tile while the other multiplies"},
      GroupedRule{640, any, grouped_row_of(mainloop, 128, 256, true),
                  "an expert's tokens in two or three even shares of up to 256, read for two tiles at a time"},
      GroupedRule{any, any, grouped_row_of(mainloop, 128, 160, true, Schedule::pingpong),
                  "many tokens an expert: even shares of up to 160, in pairs that share them"},
  };
}
inline constexpr auto kSm90GroupedInt8Rules = grouped_one_sum_rules(Mainloop::int8);
inline constexpr auto kSm90GroupedFp8Rules = grouped_one_sum_rules(Mainloop::fp8_fast);
inline constexpr std::array kSm90GroupedPromotedRules = {
    GroupedRule{48, any, grouped_row_of(Mainloop::fp8_promoted, 64, 128, false, Schedule::pingpong),
                "one warpgroup adds its sums or stores while the other multiplies"},
    GroupedRule{320, 2048, grouped_row_of(Mainloop::fp8_promoted, 64, 128, false, Schedule::pingpong),
                "the same: short sums, stored often"},
    GroupedRule{96, any, grouped_row_of(Mainloop::fp8_promoted, 128, 128, false),
                "a pair of tiles shares the tokens, and a share without rows is passed over"},
    GroupedRule{192, 4096, grouped_row_of(Mainloop::fp8_promoted, 64, 128, false, Schedule::pingpong),
                "small tiles waste little of an expert's last one"},
    GroupedRule{320, 4096, grouped_row_of(Mainloop::fp8_promoted, 128, 160, false),
                "two or three tiles an expert: wide ones read the tokens less often"},
    GroupedRule{any, 1024, grouped_row_of(Mainloop::fp8_promoted, 128, 128, false),
                "short sums: smaller tiles are stored while others multiply"},
    GroupedRule{any, any, grouped_row_of(Mainloop::fp8_promoted, 256, 128, false),
                "many tokens an expert, or long sums: weights are read once for 256"},
};
template <std::size_t N>
constexpr bool well_formed(const std::array<GroupedRule, N>& rules) {
  for (std::size_t i = 0; i < N; ++i) {
    const GroupedRule& rule = rules[i];
    if (rule.rows_per_expert <= 0 || rule.k <= 0 || rule.row < 0) return false;
    for (std::size_t j = 0; j < i; ++j)  // an earlier rule that takes all that this one would
      if (rules[j].rows_per_expert >= rule.rows_per_expert && rules[j].k >= rule.k) return false;
  }
  return rules[N - 1].rows_per_expert == any && rules[N - 1].k == any;
}
static_assert(well_formed(kSm90GroupedInt8Rules) && well_formed(kSm90GroupedFp8Rules) &&
              well_formed(kSm90GroupedPromotedRules));

// Chooses a row by k and the rows per expert on average, which is all that the host knows of them; plan.row is -1 where that
// row cannot run the problem, or there is nothing to write.
Status plan_grouped_sm90(const GroupedGemmProblem& problem, const DeviceFacts& facts, Plan& plan);
// Forces a row (tests, tuning); an error where that row cannot run the problem.
Status plan_grouped_row_sm90(const GroupedGemmProblem& problem, const DeviceFacts& facts, std::int32_t row, Plan& plan);
// Why `row` cannot run this problem here, or an empty string where it can.
std::string grouped_why_not_sm90(const GroupedGemmProblem& problem, const DeviceFacts& facts, std::int32_t row);
const char* grouped_row_name_sm90(std::int32_t row);

}  // namespace evergemm::plan_tables
