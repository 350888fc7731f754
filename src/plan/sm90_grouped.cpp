// SPDX-License-Identifier: Apache-2.0
// Grouped products on Hopper as the planner sees them: reads the rows and rules of sm90_grouped.h, and says which rows a
// problem's layout rules out. Must not go here: thresholds (sm90_grouped.h), kernels (src/cuda).
#include "plan/sm90_grouped.h"

#include <cstddef>
#include <limits>
#include <span>
#include <utility>

#include "plan/gpu_family.h"
#include "plan/tile_geometry.h"
#include "plan/validate_rules.h"

namespace evergemm::plan_tables {
namespace {

const TileConfig& tile_of(std::int32_t row) { return kSm90GroupedTiles[static_cast<std::size_t>(row)]; }

template <std::size_t... kIndices>
constexpr auto make_names(std::index_sequence<kIndices...>) {
  return std::array{name_of(kSm90GroupedTiles[kIndices])...};
}
constexpr auto kNames = make_names(std::make_index_sequence<kSm90GroupedTiles.size()>());

std::string number(std::int64_t value) { return std::to_string(value); }

// Coordinates are int32, and a tile may start below an edge and end above it.
constexpr std::int64_t kExtentLimit = std::numeric_limits<std::int32_t>::max() - 4096;
constexpr std::int64_t kCopyAlignment = 16, kCopyPitchLimit = std::int64_t{1} << 40;

// Why the copy engine cannot read `planes` matrices of `lines` rows of k bytes.
std::string operand_obstacle(const char* operand, const void* data, std::int64_t lines, std::int64_t stride,
                             std::int64_t planes, std::int64_t plane_stride, std::int64_t k) {
  const std::string what = operand;
  if (reinterpret_cast<std::uintptr_t>(data) % kCopyAlignment != 0)
    return "needs " + what + " at a multiple of 16 bytes";
  if (lines > 1 && (stride % kCopyAlignment != 0 || stride < k || stride >= kCopyPitchLimit))
    return "needs rows of " + what + " a multiple of 16 bytes apart, between k and 2^40, they are " + number(stride);
  if (planes > 1 && (plane_stride % kCopyAlignment != 0 || plane_stride <= 0 || plane_stride >= kCopyPitchLimit))
    return "needs experts of " + what + " a multiple of 16 bytes apart, up to 2^40, they are " + number(plane_stride);
  return std::string();
}

// The most tiles that any routing can make; -1 where they cannot be counted in int32.
std::int64_t most_tiles(const GroupedGemmProblem& problem, const TileConfig& tile) {
  const std::int64_t tokens = geometry(tile).tokens;
  const std::int64_t features = (tile.swap_ab ? tile.m * tile.cluster_m : tile.n * tile.cluster_n);
  const std::int64_t across = (problem.n + features - 1) / features;
  const std::int64_t full = (problem.rows + tokens - 1) / tokens;
  const std::int64_t along = problem.form == GroupedForm::masked ? full * problem.experts : full + problem.experts;
  return along > kExtentLimit / across ? -1 : along * across;
}

void finish(Plan& plan) {
  const TileConfig& tile = tile_of(plan.row);
  plan.name = grouped_row_name_sm90(plan.row);
  plan.accumulation = accumulation_of(tile.mainloop);
  plan.swap_ab = tile.swap_ab;
  plan.split_k = 1;
  plan.workspace_bytes = 0;
}

std::span<const GroupedRule> rules_of(Mainloop mainloop) {
  switch (mainloop) {
    case Mainloop::int8:
      return kSm90GroupedInt8Rules;
    case Mainloop::fp8_fast:
      return kSm90GroupedFp8Rules;
    case Mainloop::fp8_promoted:
      break;
  }
  return kSm90GroupedPromotedRules;
}

}  // namespace

const char* grouped_row_name_sm90(std::int32_t row) {
  if (row < 0 || row >= kSm90GroupedRows) return "unknown";
  return kNames[static_cast<std::size_t>(row)].text.data();
}

std::string grouped_why_not_sm90(const GroupedGemmProblem& problem, const DeviceFacts& facts, std::int32_t row) {
  if (row < 0 || row >= kSm90GroupedRows) return "no such row";
  const TileConfig& tile = tile_of(row);
  const Mainloop wanted = mainloop_of(problem);
  if (tile.mainloop != wanted)
    return std::string("multiplies ") + text_of(tile.mainloop) + ", the problem is " + text_of(wanted);
  if (problem.k == 0) return "has nothing to multiply: k is 0";
  if (problem.experts == 0) return "has nothing to multiply: there is no expert";
  if (problem.experts > kMostExperts) return "holds at most " + number(kMostExperts) + " experts";
  if (problem.rows > kExtentLimit || problem.n > kExtentLimit || problem.k > kExtentLimit)
    return "counts in int32: rows, n and k at most " + number(kExtentLimit);
  if (most_tiles(problem, tile) < 0) return "counts tiles in int32";
  const std::int64_t planes = problem.form == GroupedForm::masked ? problem.experts : 1;
  std::string obstacle =
      operand_obstacle("a", problem.a, problem.rows, problem.a_stride, planes, problem.a_expert_stride, problem.k);
  if (obstacle.empty())
    obstacle = operand_obstacle("b", problem.b, problem.n, problem.b_stride, problem.experts, problem.b_expert_stride,
                                problem.k);
  if (!obstacle.empty()) return obstacle;
  const std::int32_t shared_memory = geometry(tile).total_bytes;
  if (shared_memory > facts.shared_memory_bytes)
    return "needs " + number(shared_memory) + " bytes of shared memory a block, the device has " +
           number(facts.shared_memory_bytes);
  return std::string();
}

Status plan_grouped_row_sm90(const GroupedGemmProblem& problem, const DeviceFacts& facts, std::int32_t row,
                             Plan& plan) {
  plan = Plan();
  plan.architecture = facts.architecture;
  if (problem.rows == 0 || problem.n == 0) {
    plan.why = "the result is empty";
    return Status();
  }
  const std::string reason = grouped_why_not_sm90(problem, facts, row);
  if (!reason.empty())
    return validation::violation(operator_of(problem.form),
                                 std::string("a problem that row ") + grouped_row_name_sm90(row) + " can run", reason,
                                 "choose another row");
  plan.row = row;
  plan.why = "forced";
  finish(plan);
  return Status();
}

Status plan_grouped_sm90(const GroupedGemmProblem& problem, const DeviceFacts& facts, Plan& plan) {
  plan = Plan();
  plan.architecture = facts.architecture;
  if (problem.rows == 0 || problem.n == 0) {
    plan.why = "the result is empty";
    return Status();
  }
  const std::int64_t experts = problem.experts > 0 ? problem.experts : 1;
  const std::int64_t rows = problem.form == GroupedForm::masked ? problem.rows : (problem.rows - 1) / experts + 1;
  const std::span<const GroupedRule> rules = rules_of(mainloop_of(problem));
  for (std::size_t i = 0; i < rules.size(); ++i) {
    if (rows > rules[i].rows_per_expert || problem.k > rules[i].k) continue;
    plan.row = rules[i].row;
    plan.rule = static_cast<std::int32_t>(i);
    plan.why = rules[i].why;
    break;
  }
  if (grouped_why_not_sm90(problem, facts, plan.row).empty()) {
    finish(plan);
  } else {
    plan.row = -1;
    plan.why = "the row that the rule names cannot run this problem";
  }
  return Status();
}

}  // namespace evergemm::plan_tables
