// SPDX-License-Identifier: Apache-2.0
// Hopper as the planner sees it: reads the rows and rules of sm90.h, and says which rows a problem's layout rules out.
// Must not go here: thresholds (sm90.h), kernels (src/cuda).
#include "plan/sm90.h"
#include "plan/gpu_family.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "plan/table.h"
#include "plan/tile_geometry.h"

namespace evergemm::plan_tables {
namespace {

const TileConfig& tile_of(std::int32_t row) { return kSm90Tiles[static_cast<std::size_t>(row)]; }

template <std::size_t... kIndices>
constexpr auto make_names(std::index_sequence<kIndices...>) {
  return std::array{name_of(kSm90Tiles[kIndices])...};
}
constexpr auto kNames = make_names(std::make_index_sequence<kSm90Tiles.size()>());

const char* sm90_row_name(std::int32_t row) { return kNames[static_cast<std::size_t>(row)].text.data(); }

// Coordinates are int32, and a tile may start below an edge and end above it.
constexpr std::int64_t kExtentLimit = std::numeric_limits<std::int32_t>::max() - 4096;

// ---- more than kFewTokens tokens: the row whose measured costs promise the least time ----------------------------------------

// Clusters of a size that the device holds at a time. More than two CTAs do not divide the multiprocessors of every GPC; which
// of them a GPC has differs from one H100 to the next, and these are the fewest that were seen, of 44 and of 33.
std::int64_t resident_clusters(const TileConfig& tile, const DeviceFacts& facts) {
  const std::int64_t size = std::int64_t{tile.cluster_m} * tile.cluster_n * tile.split_k;
  const std::int64_t clusters = facts.cores / size;
  return std::max<std::int64_t>(1, size < 3 ? clusters : size == 3 ? clusters * 39 / 44 : clusters * 30 / 33);
}

struct Prediction {
  std::int64_t nanoseconds, multiplying;  // of the call; of its tensor cores alone
  friend bool operator<(const Prediction& x, const Prediction& y) {
    return x.nanoseconds != y.nanoseconds ? x.nanoseconds < y.nanoseconds : x.multiplying < y.multiplying;
  }
};

// Extents fit 31 bits here; costs keep every product far below 2^63.
Prediction predict(const TileCost& cost, const GemmProblem& problem, const DeviceFacts& facts) {
  const TileConfig& tile = tile_of(cost.row);
  const std::int64_t rows = tile.swap_ab ? problem.n : problem.m, columns = tile.swap_ab ? problem.m : problem.n;
  const std::int64_t tile_rows = std::int64_t{tile.m} * tile.cluster_m,
                     tile_columns = std::int64_t{tile.n} * tile.cluster_n;
  const std::int64_t tiles = ((rows + tile_rows - 1) / tile_rows) * ((columns + tile_columns - 1) / tile_columns);
  const std::int64_t resident = resident_clusters(tile, facts);
  const std::int64_t waves = std::min(kExtentLimit, (tiles + resident - 1) / resident);
  const std::int64_t blocks = std::min((problem.k + kScaleBlock - 1) / kScaleBlock, std::int64_t{1} << 20);
  Prediction prediction;
  const std::int64_t block_ns = waves == 1 ? (cost.block_ns * tenths_in_one_wave(tile) + 5) / 10 : cost.block_ns;
  prediction.multiplying = waves * (blocks * block_ns + cost.tile_ns);
  const double bytes = static_cast<double>(problem.n) * static_cast<double>(problem.k) +
                       static_cast<double>(problem.m) * static_cast<double>(problem.k) +
                       static_cast<double>(problem.m) * static_cast<double>(problem.n) * 2.0;
  const auto moving = static_cast<std::int64_t>(std::min(bytes / static_cast<double>(kSm90BytesPerNanosecond), 1e18));
  prediction.nanoseconds = std::max(prediction.multiplying, moving);
  return prediction;
}

template <std::size_t N>
constexpr std::array<Rule, N> rules_of(const std::array<TileCost, N>& costs) {
  std::array<Rule, N> rules{};
  for (std::size_t i = 0; i < N; ++i) rules[i] = Rule{any, any, any, costs[i].row, kLeastTime};
  return rules;
}
constexpr auto kInt8CostRules = rules_of(kSm90Int8Costs);
constexpr auto kFp8CostRules = rules_of(kSm90Fp8Costs);
constexpr auto kPromotedCostRules = rules_of(kSm90PromotedCosts);

// Whether a row that splits k can run: all of its parts have some, and sums may come in its order.
bool may_split(const GemmProblem& problem) {
  return !asks_for_one_order(problem) && problem.k > (kMostParts - 1) * kScaleBlock;
}
std::span<const Rule> either(bool first, std::span<const Rule> one, std::span<const Rule> other) {
  return first ? one : other;
}

std::span<const Rule> least_time(std::span<const TileCost> costs, std::span<const Rule> rules,
                                 const GemmProblem& problem, const DeviceFacts& facts) {
  std::size_t best = costs.size() - 1;
  Prediction least = predict(costs[best], problem, facts);
  for (std::size_t i = 0; i + 1 < costs.size(); ++i) {
    if (problem.m > costs[i].most_tokens || (!may_split(problem) && splits_k(costs[i].row))) continue;
    const Prediction prediction = predict(costs[i], problem, facts);
    if (!(prediction < least)) continue;
    least = prediction;
    best = i;
  }
  return rules.subspan(best, 1);
}

std::span<const Rule> sm90_rules(const GemmProblem& problem, const DeviceFacts& facts) {
  const Mainloop mainloop = mainloop_of(problem);
  const bool countable = problem.m <= kExtentLimit && problem.n <= kExtentLimit && problem.k <= kExtentLimit;
  if (problem.m > kFewTokens && countable) {
    if (mainloop == Mainloop::int8) return least_time(kSm90Int8Costs, kInt8CostRules, problem, facts);
    if (mainloop == Mainloop::fp8_fast) return least_time(kSm90Fp8Costs, kFp8CostRules, problem, facts);
    return least_time(kSm90PromotedCosts, kPromotedCostRules, problem, facts);
  }
  switch (mainloop) {
    case Mainloop::int8:
      return either(may_split(problem), kSm90Int8Rules, kSm90Int8UnsplitRules);
    case Mainloop::fp8_fast:
      return either(may_split(problem), kSm90Fp8Rules, kSm90Fp8UnsplitRules);
    case Mainloop::fp8_promoted:
      return either(may_split(problem), kSm90PromotedRules, kSm90PromotedUnsplitRules);
  }
  return {};
}

// Bytes that the copy engine wants bases and pitches to be multiples of, and the pitch that it cannot exceed.
constexpr std::int64_t kCopyAlignment = 16, kCopyPitchLimit = std::int64_t{1} << 40;

std::string number(std::int64_t value) { return std::to_string(value); }

// Why the copy engine cannot read an operand of `lines` rows of k bytes each.
std::string operand_obstacle(const char* operand, const void* data, std::int64_t lines, std::int64_t stride,
                             std::int64_t k) {
  const auto misaligned = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(data) % kCopyAlignment);
  if (misaligned != 0)
    return std::string("needs ") + operand + " at a multiple of 16 bytes, it is " + number(misaligned) + " past one";
  if (lines <= 1) return std::string();  // one row has no pitch
  if (stride % kCopyAlignment != 0)
    return std::string("needs rows of ") + operand + " a multiple of 16 bytes apart, they are " + number(stride);
  if (stride < k || stride >= kCopyPitchLimit)
    return std::string("needs rows of ") + operand + " between k and 2^40 bytes apart, they are " + number(stride);
  return std::string();
}

std::string sm90_why_not(const GemmProblem& problem, const DeviceFacts& facts, std::int32_t row) {
  const TileConfig& tile = tile_of(row);
  const Mainloop wanted = mainloop_of(problem);
  if (tile.mainloop != wanted)
    return std::string("multiplies ") + text_of(tile.mainloop) + ", the problem is " + text_of(wanted);
  if (tile.split_k > 1 && asks_for_one_order(problem))
    return "splits k, which changes fp8 sums; deterministic asks for one order";
  if (problem.k == 0) return "has nothing to multiply: k is 0";
  if (problem.m > kExtentLimit || problem.n > kExtentLimit || problem.k > kExtentLimit)
    return "counts in int32: m, n and k at most " + number(kExtentLimit);
  std::string obstacle = operand_obstacle("a", problem.a, problem.m, problem.a_stride, problem.k);
  if (obstacle.empty()) obstacle = operand_obstacle("b", problem.b, problem.n, problem.b_stride, problem.k);
  if (!obstacle.empty()) return obstacle;
  const std::int64_t blocks = (problem.k + tile.k - 1) / tile.k;
  if (blocks < tile.split_k)
    return "splits k among " + number(tile.split_k) + " CTAs, there are " + number(blocks) + " blocks of it";
  const std::int64_t rows = tile.swap_ab ? problem.n : problem.m, columns = tile.swap_ab ? problem.m : problem.n;
  const std::int64_t tile_rows = std::int64_t{tile.m} * tile.cluster_m,
                     tile_columns = std::int64_t{tile.n} * tile.cluster_n;
  // below 2^62, since extents fit 31 bits
  if (((rows + tile_rows - 1) / tile_rows) * ((columns + tile_columns - 1) / tile_columns) > kExtentLimit)
    return "counts tiles in int32";
  const std::int32_t shared_memory = geometry(tile).total_bytes;
  if (shared_memory > facts.shared_memory_bytes)
    return "needs " + number(shared_memory) + " bytes of shared memory a block, the device has " +
           number(facts.shared_memory_bytes);
  return std::string();
}

std::int32_t sm90_fallback(const GemmProblem&, const DeviceFacts&) { return -1; }  // portable.cpp has one

void sm90_finish(const GemmProblem&, const DeviceFacts&, Plan& plan) {
  plan.accumulation = accumulation_of(tile_of(plan.row).mainloop);
  plan.swap_ab = tile_of(plan.row).swap_ab;
  plan.split_k = tile_of(plan.row).split_k;
  plan.workspace_bytes = 0;  // partial sums of a split k pass through the shared memory of a cluster
}

}  // namespace

const ArchitectureTable kSm90Table = {kSm90Rows, sm90_row_name, sm90_rules, sm90_why_not, sm90_fallback, sm90_finish};

}  // namespace evergemm::plan_tables
