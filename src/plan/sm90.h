// SPDX-License-Identifier: Apache-2.0
// Hopper's rows and rules. Data only: cmake/KernelInstances.cmake compiles one kernel a row, src/cuda/registry.cpp maps a row
// to it by index, plan/sm90.cpp reads the rules. docs/tuning_log.md has the measurements behind them.
// Must not go here: CUDA, decisions.
#pragma once
#include <array>

#include "plan/rules.h"
#include "plan/tile_config.h"

namespace evergemm::plan_tables {

// Tile i of kSm90Tiles is row i; what these cannot run has rows of the portable family (portable.h) behind them.

// clang-format off
// int8 and fast fp8, where one tensor-core sum runs over all of k, have the same rows.
constexpr auto one_sum_tiles(Mainloop mainloop) {
  return std::array{
      // swap_ab, few tokens: weights fill wgmma's 64 rows, tokens stand on its n side. Clusters share operand tiles, because what
      // one multiprocessor can draw from L2 limits everything between decode and the largest products.
      //                            m    n    k  stages cluster split schedule        swap_ab
      TileConfig{mainloop,  64,  16, 128, 10, 1, 1, 1, Schedule::basic, true},
      TileConfig{mainloop,  64,  32, 128,  8, 1, 1, 1, Schedule::basic, true},
      TileConfig{mainloop,  64,  64, 128, 12, 1, 1, 1, Schedule::basic, true},
      TileConfig{mainloop,  64,  64, 128,  6, 1, 1, 2, Schedule::basic, true},
      TileConfig{mainloop,  64,  16, 128,  8, 1, 1, 3, Schedule::basic, true},
      TileConfig{mainloop,  64,  32, 128,  7, 1, 1, 3, Schedule::basic, true},
      TileConfig{mainloop,  64,  64, 128,  6, 1, 1, 3, Schedule::basic, true},
      TileConfig{mainloop, 128,  64, 128,  8, 1, 1, 1, Schedule::cooperative, true},
      TileConfig{mainloop,  64, 128, 128,  8, 1, 2, 1, Schedule::basic, true},
      TileConfig{mainloop, 128,  80, 128,  8, 1, 2, 1, Schedule::cooperative, true},
      TileConfig{mainloop, 128,  96, 128,  7, 1, 2, 1, Schedule::cooperative, true},
      TileConfig{mainloop, 128, 112, 128,  6, 1, 1, 1, Schedule::cooperative, true},
      TileConfig{mainloop, 128, 128, 128,  6, 1, 1, 1, Schedule::pingpong, true},
      TileConfig{mainloop, 128, 128, 128,  6, 1, 2, 1, Schedule::cooperative, true},
      TileConfig{mainloop, 128, 160, 128,  5, 2, 1, 1, Schedule::cooperative, true},
      TileConfig{mainloop, 128, 160, 128,  5, 2, 1, 1, Schedule::pingpong, true},
      TileConfig{mainloop, 128, 192, 128,  4, 1, 2, 1, Schedule::cooperative, true},
      TileConfig{mainloop, 192,  96, 128,  6, 1, 2, 1, Schedule::basic, true},
      TileConfig{mainloop, 192, 128, 128,  4, 1, 2, 1, Schedule::pingpong, true},
      TileConfig{mainloop,  64, 128, 128,  8, 1, 1, 1, Schedule::pingpong, false},
      TileConfig{mainloop, 128,  96, 128,  7, 2, 1, 1, Schedule::cooperative, false},
      TileConfig{mainloop, 128, 112, 128,  6, 2, 1, 1, Schedule::cooperative, false},
      TileConfig{mainloop, 128, 144, 128,  5, 4, 1, 1, Schedule::cooperative, false},
      TileConfig{mainloop, 128, 160, 128,  5, 2, 1, 1, Schedule::cooperative, false},
      TileConfig{mainloop, 128, 176, 128,  5, 2, 1, 1, Schedule::pingpong, false},
      TileConfig{mainloop, 128, 192, 128,  4, 2, 1, 1, Schedule::cooperative, false},
      TileConfig{mainloop, 128, 224, 128,  4, 2, 1, 1, Schedule::cooperative, false},
      TileConfig{mainloop, 128, 256, 128,  4, 2, 1, 1, Schedule::cooperative, false},
      TileConfig{mainloop, 256, 112, 128,  4, 1, 2, 1, Schedule::cooperative, false},
      TileConfig{mainloop, 256, 128, 128,  4, 1, 2, 1, Schedule::cooperative, false},
  };
}
inline constexpr std::array kSm90PromotedTiles = {
    TileConfig{Mainloop::fp8_promoted,  64,  16, 128, 10, 1, 1, 1, Schedule::basic, true},
    TileConfig{Mainloop::fp8_promoted,  64,  32, 128,  8, 1, 1, 1, Schedule::basic, true},
    TileConfig{Mainloop::fp8_promoted,  64,  16, 128,  8, 1, 1, 2, Schedule::basic, true},
    TileConfig{Mainloop::fp8_promoted,  64,  32, 128,  7, 1, 1, 2, Schedule::basic, true},
    TileConfig{Mainloop::fp8_promoted,  64,  64, 128,  6, 1, 1, 2, Schedule::basic, true},
    TileConfig{Mainloop::fp8_promoted,  64,  16, 128,  8, 1, 1, 3, Schedule::basic, true},
    TileConfig{Mainloop::fp8_promoted,  64,  32, 128,  7, 1, 1, 3, Schedule::basic, true},
    TileConfig{Mainloop::fp8_promoted,  64,  64, 128,  6, 1, 1, 3, Schedule::basic, true},
    TileConfig{Mainloop::fp8_promoted,  64,  64, 128, 12, 1, 1, 1, Schedule::basic, false},
    TileConfig{Mainloop::fp8_promoted,  64,  96, 128,  9, 1, 1, 1, Schedule::basic, false},
    TileConfig{Mainloop::fp8_promoted,  64, 128, 128,  8, 1, 1, 1, Schedule::basic, false},
    TileConfig{Mainloop::fp8_promoted,  64, 128, 128,  7, 1, 1, 1, Schedule::pingpong, false},
    TileConfig{Mainloop::fp8_promoted, 128,  64, 128,  8, 2, 1, 1, Schedule::cooperative, false},
    TileConfig{Mainloop::fp8_promoted, 128,  96, 128,  7, 2, 1, 1, Schedule::cooperative, false},
    TileConfig{Mainloop::fp8_promoted, 128, 128, 128,  6, 1, 1, 1, Schedule::cooperative, false},
    TileConfig{Mainloop::fp8_promoted, 128, 144, 128,  5, 1, 1, 1, Schedule::cooperative, false},
    TileConfig{Mainloop::fp8_promoted, 128, 160, 128,  5, 2, 1, 1, Schedule::cooperative, false},
    TileConfig{Mainloop::fp8_promoted, 128, 192, 128,  4, 1, 1, 1, Schedule::cooperative, false},
    TileConfig{Mainloop::fp8_promoted, 256, 128, 128,  3, 1, 2, 1, Schedule::cooperative, false},
};
// clang-format on
inline constexpr auto kSm90Tiles =
    joined(one_sum_tiles(Mainloop::int8), one_sum_tiles(Mainloop::fp8_fast), kSm90PromotedTiles);

inline constexpr std::int32_t kSm90Rows = static_cast<std::int32_t>(kSm90Tiles.size());

// Two rows that differ only in their number of stages would share a name.
template <std::size_t N>
constexpr bool names_differ(const std::array<TileConfig, N>& tiles) {
  for (std::size_t later = 0; later < N; ++later)
    for (std::size_t earlier = 0; earlier < later; ++earlier) {
      TileConfig other = tiles[earlier];
      other.stages = tiles[later].stages;
      if (other == tiles[later]) return false;
    }
  return true;
}
static_assert(names_differ(kSm90Tiles));

// The row of a tile by what it is, so that a rule survives any change of the table; -1 (which well_formed rules never hold)
// where there is none.
constexpr std::int32_t row_of(Mainloop mainloop, std::int32_t m, std::int32_t n, std::int32_t cluster_m,
                              std::int32_t cluster_n, std::int32_t split_k, Schedule schedule, bool swap_ab) {
  for (std::size_t i = 0; i < kSm90Tiles.size(); ++i) {
    const TileConfig& tile = kSm90Tiles[i];
    if (tile == TileConfig{mainloop, m, n, tile.k, tile.stages, cluster_m, cluster_n, split_k, schedule, swap_ab})
      return static_cast<std::int32_t>(i);
  }
  return -1;
}

constexpr std::int32_t swapped(Mainloop mainloop, std::int32_t m, std::int32_t n, std::int32_t split_k = 1,
                               std::int32_t cluster_n = 1) {
  return row_of(mainloop, m, n, 1, cluster_n, split_k, m == 64 ? Schedule::basic : Schedule::cooperative, true);
}
constexpr std::int32_t basic(Mainloop mainloop, std::int32_t m, std::int32_t n) {
  return row_of(mainloop, m, n, 1, 1, 1, Schedule::basic, false);
}
constexpr std::int32_t cooperative(Mainloop mainloop, std::int32_t m, std::int32_t n, std::int32_t cluster_m,
                                   std::int32_t cluster_n) {
  return row_of(mainloop, m, n, cluster_m, cluster_n, 1, Schedule::cooperative, false);
}
constexpr std::int32_t pingpong(Mainloop mainloop, std::int32_t m, std::int32_t n, std::int32_t cluster_m,
                                std::int32_t cluster_n) {
  return row_of(mainloop, m, n, cluster_m, cluster_n, 1, Schedule::pingpong, false);
}

// ---- up to 128 tokens: rules ---------------------------------------------------------------------------------------------
// Weights stream from memory once, and what matters is how many CTAs draw on it: 132 multiprocessors, 64 features a tile.

inline constexpr std::int64_t kFewTokens = 128;
inline constexpr const char* kSplit3 = "up to 44 tiles of 64 features: three CTAs a tile fill 132 multiprocessors";
inline constexpr const char* kSplit2 = "up to 66 tiles of 64 features: two CTAs a tile fill 132 multiprocessors";
inline constexpr const char* kStream = "weights stream through 64-row tiles once, for all tokens of a tile's n side";

// Where one tensor-core sum runs over all of k: int8 and fast fp8 have the same costs.
constexpr auto one_sum_rules(Mainloop mainloop) {
  return std::array{
      Rule{16, 2816, any, swapped(mainloop, 64, 16, 3), kSplit3},
      Rule{16, any, any, swapped(mainloop, 64, 16), kStream},
      Rule{32, 2816, any, swapped(mainloop, 64, 32, 3), kSplit3},
      Rule{32, any, any, swapped(mainloop, 64, 32), kStream},
      Rule{64, 2816, any, swapped(mainloop, 64, 64, 3), kSplit3},
      Rule{64, any, any, swapped(mainloop, 64, 64), kStream},
      Rule{any, 1408, any, swapped(mainloop, 64, 64, 2),
           "44 tiles of 64 features x 64 tokens at most: two CTAs a tile"},
      Rule{any, 4224, any, swapped(mainloop, 64, 64), "up to 132 tiles of 64 features x 64 tokens: one wave"},
      Rule{any, any, any, swapped(mainloop, 128, 64), "128 features a tile read the tokens half as often from L2"},
  };
}
inline constexpr auto kSm90Int8Rules = one_sum_rules(Mainloop::int8);
inline constexpr auto kSm90Fp8Rules = one_sum_rules(Mainloop::fp8_fast);
inline constexpr std::array kSm90PromotedRules = {
    Rule{16, 2816, any, swapped(Mainloop::fp8_promoted, 64, 16, 3), kSplit3},
    Rule{16, 4224, any, swapped(Mainloop::fp8_promoted, 64, 16, 2), kSplit2},
    Rule{16, any, any, swapped(Mainloop::fp8_promoted, 64, 16), kStream},
    Rule{32, 2816, any, swapped(Mainloop::fp8_promoted, 64, 32, 3), kSplit3},
    Rule{32, 4224, any, swapped(Mainloop::fp8_promoted, 64, 32, 2), kSplit2},
    Rule{32, any, any, swapped(Mainloop::fp8_promoted, 64, 32), kStream},
    Rule{64, 2816, any, swapped(Mainloop::fp8_promoted, 64, 64, 3), kSplit3},
    Rule{64, 4224, any, swapped(Mainloop::fp8_promoted, 64, 64, 2), kSplit2},
    Rule{64, any, any, basic(Mainloop::fp8_promoted, 64, 64),
         "weights stream through tiles of 64 features once, for all tokens"},
    Rule{any, 2816, any, swapped(Mainloop::fp8_promoted, 64, 64, 2),
         "88 tiles of 64 features x 64 tokens at most: two CTAs a tile"},
    Rule{any, 4224, any, basic(Mainloop::fp8_promoted, 64, 64), "up to 132 tiles of 64 tokens x 64 features: one wave"},
    Rule{any, 6336, any, basic(Mainloop::fp8_promoted, 64, 96), "up to 132 tiles of 64 tokens x 96 features: one wave"},
    Rule{any, any, any, basic(Mainloop::fp8_promoted, 64, 128),
         "128 features a tile read the tokens half as often from L2"},
};

template <std::size_t N>
constexpr bool rows_exist(const std::array<Rule, N>& rules) {
  for (const Rule& rule : rules)
    if (rule.row < 0 || rule.row >= kSm90Rows) return false;
  return true;
}
static_assert(well_formed(kSm90Int8Rules) && well_formed(kSm90Fp8Rules) && well_formed(kSm90PromotedRules));
static_assert(rows_exist(kSm90Int8Rules) && rows_exist(kSm90Fp8Rules) && rows_exist(kSm90PromotedRules));

// ---- more tokens: measured costs -------------------------------------------------------------------------------------------
// Here time goes in whole waves of tiles, which no threshold on m, n and k can follow. A row's time is
//   max(waves * (blocks of 128 of k * block_ns + tile_ns), bytes / kSm90BytesPerNanosecond)
// with waves = tiles / (clusters that the device holds at a time), rounded up. The row with the least time runs; a tie goes to
// the least multiplying time. Costs are fits to a sweep (docs/tuning_log.md); a row that never won is not listed.
struct TileCost {
  std::int32_t row;
  std::int64_t most_tokens;  // the fit's reach: with more, small tiles lose anyway and were not timed
  std::int32_t block_ns, tile_ns;
};
inline constexpr std::int64_t kMiddleTokens = 768, kManyTokens = 2048;  // of rows that won up to 512 and up to 1024
inline constexpr std::int64_t kSm90BytesPerNanosecond = 2800;
// Tenths of block_ns that a block takes where there is one wave: ping-pong then leaves one warpgroup idle.
constexpr std::int64_t tenths_in_one_wave(const TileConfig& tile) {
  return tile.schedule == Schedule::pingpong && tile.m >= 128 ? 12 : 10;
}
inline constexpr const char* kLeastTime =
    "least predicted time of whole waves of its tiles, from costs measured for each row";

// Where one tensor-core sum runs over all of k: int8 and fast fp8 have the same costs.
constexpr auto one_sum_costs(Mainloop mainloop) {
  return std::array{
      TileCost{swapped(mainloop, 64, 64, 2), kMiddleTokens, 112, 1250},
      TileCost{swapped(mainloop, 64, 64), kMiddleTokens, 159, 750},
      TileCost{swapped(mainloop, 64, 128, 1, 2), kMiddleTokens, 184, 1250},
      TileCost{swapped(mainloop, 128, 64), kMiddleTokens, 184, 1250},
      TileCost{pingpong(mainloop, 64, 128, 1, 1), kMiddleTokens, 205, 500},
      TileCost{swapped(mainloop, 128, 80, 1, 2), kManyTokens, 230, 1500},
      TileCost{swapped(mainloop, 128, 96, 1, 2), kManyTokens, 270, 1250},
      TileCost{swapped(mainloop, 128, 112), kManyTokens, 284, 2000},
      TileCost{row_of(mainloop, 128, 128, 1, 1, 1, Schedule::pingpong, true), any, 316, 1500},
      TileCost{swapped(mainloop, 128, 128, 1, 2), any, 334, 1750},
      TileCost{row_of(mainloop, 192, 96, 1, 2, 1, Schedule::basic, true), kManyTokens, 375, 3500},
      TileCost{row_of(mainloop, 128, 160, 2, 1, 1, Schedule::pingpong, true), any, 392, 2250},
      TileCost{row_of(mainloop, 128, 160, 2, 1, 1, Schedule::cooperative, true), kManyTokens, 428, 2500},
      TileCost{swapped(mainloop, 128, 192, 1, 2), kManyTokens, 489, 2750},
      TileCost{row_of(mainloop, 192, 128, 1, 2, 1, Schedule::pingpong, true), any, 497, 2000},
      TileCost{cooperative(mainloop, 128, 96, 2, 1), any, 268, 1250},
      TileCost{cooperative(mainloop, 128, 112, 2, 1), any, 291, 1750},
      TileCost{cooperative(mainloop, 128, 144, 4, 1), any, 367, 2250},
      TileCost{cooperative(mainloop, 128, 160, 2, 1), any, 398, 2750},
      TileCost{pingpong(mainloop, 128, 176, 2, 1), any, 450, 1500},
      TileCost{cooperative(mainloop, 128, 192, 2, 1), any, 489, 3000},
      TileCost{cooperative(mainloop, 256, 112, 1, 2), any, 547, 3500},
      TileCost{cooperative(mainloop, 128, 224, 2, 1), any, 570, 3500},
      TileCost{cooperative(mainloop, 128, 256, 2, 1), any, 652, 3500},
      TileCost{cooperative(mainloop, 256, 128, 1, 2), any, 652, 3750},
  };
}
inline constexpr auto kSm90Int8Costs = one_sum_costs(Mainloop::int8);
inline constexpr auto kSm90Fp8Costs = one_sum_costs(Mainloop::fp8_fast);
inline constexpr std::array kSm90PromotedCosts = {
    TileCost{swapped(Mainloop::fp8_promoted, 64, 64, 2), kMiddleTokens, 127, 1500},
    TileCost{basic(Mainloop::fp8_promoted, 64, 64), kMiddleTokens, 203, 500},
    TileCost{basic(Mainloop::fp8_promoted, 64, 96), kMiddleTokens, 238, 750},
    TileCost{basic(Mainloop::fp8_promoted, 64, 128), kMiddleTokens, 240, 1000},
    TileCost{pingpong(Mainloop::fp8_promoted, 64, 128, 1, 1), kMiddleTokens, 248, 750},
    TileCost{cooperative(Mainloop::fp8_promoted, 128, 64, 2, 1), kMiddleTokens, 260, 750},
    TileCost{cooperative(Mainloop::fp8_promoted, 128, 96, 2, 1), any, 337, 1500},
    TileCost{cooperative(Mainloop::fp8_promoted, 128, 128, 1, 1), any, 387, 2250},
    TileCost{cooperative(Mainloop::fp8_promoted, 128, 144, 1, 1), any, 468, 3000},
    TileCost{cooperative(Mainloop::fp8_promoted, 128, 160, 2, 1), any, 534, 2500},
    TileCost{cooperative(Mainloop::fp8_promoted, 128, 192, 1, 1), any, 567, 4000},
    TileCost{cooperative(Mainloop::fp8_promoted, 256, 128, 1, 2), any, 683, 4500},
};
constexpr bool splits_k(std::int32_t row) { return row >= 0 && kSm90Tiles[static_cast<std::size_t>(row)].split_k > 1; }
template <std::size_t N>
constexpr bool rows_exist(const std::array<TileCost, N>& costs) {
  for (const TileCost& cost : costs)
    if (cost.row < 0 || cost.row >= kSm90Rows) return false;
  return costs[N - 1].most_tokens == any && !splits_k(costs[N - 1].row);  // some row is always left
}
static_assert(rows_exist(kSm90Int8Costs) && rows_exist(kSm90Fp8Costs) && rows_exist(kSm90PromotedCosts));

// Rules without the rows that split k: one accumulation order for all m (deterministic = true), or too short a k.
template <std::size_t N>
constexpr std::size_t count_unsplit(const std::array<Rule, N>& rules) {
  std::size_t count = 0;
  for (const Rule& rule : rules) count += splits_k(rule.row) ? 0 : 1;
  return count;
}
template <std::size_t kCount, std::size_t N>
constexpr std::array<Rule, kCount> unsplit(const std::array<Rule, N>& rules) {
  std::array<Rule, kCount> kept{};
  std::size_t count = 0;
  for (const Rule& rule : rules)
    if (!splits_k(rule.row)) kept[count++] = rule;
  return kept;
}
inline constexpr auto kSm90Int8UnsplitRules = unsplit<count_unsplit(kSm90Int8Rules)>(kSm90Int8Rules);
inline constexpr auto kSm90Fp8UnsplitRules = unsplit<count_unsplit(kSm90Fp8Rules)>(kSm90Fp8Rules);
inline constexpr auto kSm90PromotedUnsplitRules = unsplit<count_unsplit(kSm90PromotedRules)>(kSm90PromotedRules);
static_assert(well_formed(kSm90Int8UnsplitRules) && well_formed(kSm90Fp8UnsplitRules) &&
              well_formed(kSm90PromotedUnsplitRules));
// Into how many parts a row splits k at most; each needs a block of 128 of it.
inline constexpr std::int64_t kMostParts = [] {
  std::int64_t most = 1;
  for (const TileConfig& tile : kSm90Tiles) most = tile.split_k > most ? tile.split_k : most;
  return most;
}();

}  // namespace evergemm::plan_tables
