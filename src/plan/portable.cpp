// SPDX-License-Identifier: Apache-2.0
// The portable family as the planner sees it: reads the rows and costs of portable.h for each architecture, and stands behind
// Hopper's own rows for what those cannot run. Must not go here: costs (portable.h), kernels (src/cuda).
#include "plan/portable.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "plan/gpu_family.h"
#include "plan/sm90.h"
#include "plan/table.h"

namespace evergemm::plan_tables {
namespace {

template <std::size_t... kIndices>
constexpr auto make_names(const std::array<PortableTile, kPortableRows>& rows, std::index_sequence<kIndices...>) {
  return std::array{name_of(rows[kIndices])...};
}
constexpr auto kIndices = std::make_index_sequence<kPortableRows>();
constexpr auto kTuringNames = make_names(kPortableTuringRows, kIndices);
constexpr auto kSmallNames = make_names(kPortableSmallRows, kIndices);
constexpr auto kLargeNames = make_names(kPortableLargeRows, kIndices);

template <const std::array<RowName, kPortableRows>& kNames>
const char* portable_row_name(std::int32_t row) {
  return kNames[static_cast<std::size_t>(row)].text.data();
}

const PortableTile& tile_of(const DeviceFacts& facts, std::int32_t row) {
  return portable_rows_of(entry_of(facts.architecture).memory)[static_cast<std::size_t>(row)];
}

// One rule a cost: the row that was chosen for a problem, as the planner walks it.
template <std::size_t N>
constexpr std::array<Rule, N> rules_of(const std::array<PortableCost, N>& costs) {
  std::array<Rule, N> rules{};
  for (std::size_t i = 0; i < N; ++i) rules[i] = Rule{any, any, any, costs[i].row, kPortableLeastTime};
  return rules;
}
constexpr auto kInt8Rules = rules_of(kPortableInt8Costs);
constexpr auto kFp8Rules = rules_of(kPortableFp8Costs);
constexpr auto kPromotedRules = rules_of(kPortablePromotedCosts);
constexpr auto kFp16Rules = rules_of(kPortableFp16Costs);
constexpr auto kFp16PromotedRules = rules_of(kPortableFp16PromotedCosts);

// Nanoseconds with k in `parts`; infinite where tiles cannot be counted. As floats: a broadcast operand may be larger than
// int64 counts.
double predict(const PortableCost& cost, const GemmProblem& problem, const DeviceFacts& facts, std::int64_t parts) {
  const PortableTile& tile = tile_of(facts, cost.row);
  const double cores = std::max(1, facts.cores);
  const double rows = static_cast<double>((problem.m - 1) / tile.m + 1);
  const double columns = static_cast<double>((problem.n - 1) / tile.n + 1);
  if (rows * columns > std::numeric_limits<std::int32_t>::max()) return std::numeric_limits<double>::infinity();
  const double share = std::ceil(rows * columns * static_cast<double>(parts) / cores);
  const double rounds = std::ceil(share / cost.resident);
  const double blocks = static_cast<double>(blocks_of(problem.k));
  const double moving = 128.0 * (static_cast<double>(problem.m) + static_cast<double>(problem.n)) /
                        (cores * static_cast<double>(kPortableBytesPerNanosecond));
  const double multiplying = std::max(
      std::ceil(blocks / static_cast<double>(parts)) * std::max(rounds * cost.alone_ns, share * cost.shared_ns),
      blocks * moving);
  if (parts == 1) return multiplying;
  const double bytes = 2.0 * static_cast<double>(parts) * rows * columns * tile.m * tile.n * 4;
  return multiplying + kPortableSumNs + bytes / (cores * static_cast<double>(kPortablePartBytesPerNanosecond));
}

// Into how many parts k is split: fp8's sums depend on it, so a caller who asks for one order gets one part.
std::int32_t best_parts(const PortableCost& cost, const GemmProblem& problem, const DeviceFacts& facts) {
  if (!may_split(tile_of(facts, cost.row))) return 1;
  if (asks_for_one_order(problem)) return 1;
  const std::int64_t most =
      std::min<std::int64_t>(kPortableMostParts, blocks_of(problem.k) / kPortableLeastBlocksOfPart);
  std::int64_t best = 1;
  double least = predict(cost, problem, facts, 1);
  for (std::int64_t parts = 2; parts <= most; ++parts) {
    const double time = predict(cost, problem, facts, parts);
    if (time >= least) continue;
    least = time;
    best = parts;
  }
  return static_cast<std::int32_t>(best);
}

// The costs of a problem's rows, and the rules made of them: rule i is of the row that cost i is of.
struct Choice {
  std::span<const PortableCost> costs;
  std::span<const Rule> rules;
};
Choice choice_of(const GemmProblem& problem, const DeviceFacts& facts) {
  const bool own = entry_of(facts.architecture).multiplies_fp8;
  switch (mainloop_of(problem)) {
    case Mainloop::int8:
      return {kPortableInt8Costs, kInt8Rules};
    case Mainloop::fp8_fast:
      return own ? Choice{kPortableFp8Costs, kFp8Rules} : Choice{kPortableFp16Costs, kFp16Rules};
    case Mainloop::fp8_promoted:
      break;
  }
  return own ? Choice{kPortablePromotedCosts, kPromotedRules} : Choice{kPortableFp16PromotedCosts, kFp16PromotedRules};
}

// One rule: the row of the least time.
std::span<const Rule> portable_rules(const GemmProblem& problem, const DeviceFacts& facts) {
  const auto [costs, rules] = choice_of(problem, facts);
  std::size_t best = 0;
  double least = std::numeric_limits<double>::infinity();
  for (std::size_t i = 0; i < costs.size(); ++i) {
    const double time = predict(costs[i], problem, facts, best_parts(costs[i], problem, facts));
    if (time >= least) continue;
    least = time;
    best = i;
  }
  return rules.subspan(best, 1);
}

// Tiles are counted in int32: more of them would not fit a memory.
constexpr std::int64_t kTileLimit = std::numeric_limits<std::int32_t>::max();

std::string portable_why_not(const GemmProblem& problem, const DeviceFacts& facts, std::int32_t row) {
  const PortableTile& tile = tile_of(facts, row);
  const Mainloop wanted = mainloop_of(problem);
  if (tile.mainloop != wanted)
    return std::string("multiplies ") + text_of(tile.mainloop) + ", the problem is " + text_of(wanted);
  const std::int64_t rows = (problem.m - 1) / tile.m + 1, columns = (problem.n - 1) / tile.n + 1;
  if (problem.m > 0 && problem.n > 0) {
    if (rows > kTileLimit / columns) return "counts tiles in int32";
    if (!counts_in_32_bits(tile, problem.n, problem.k)) return "counts tiles along n and stages of k in 32 bits";
  }
  const std::int32_t shared_memory = shared_memory_of(tile);
  if (shared_memory > facts.shared_memory_bytes)
    return "needs " + std::to_string(shared_memory) + " bytes of shared memory a block, the device has " +
           std::to_string(facts.shared_memory_bytes);
  return std::string();
}

// The row of the least time runs everything that can be counted; nothing runs more.
std::int32_t portable_fallback(const GemmProblem&, const DeviceFacts&) { return -1; }

// `row`: of the portable rows.
void finish_row(const GemmProblem& problem, const DeviceFacts& facts, std::int32_t row, Plan& plan) {
  plan.accumulation = accumulation_of(mainloop_of(problem));
  for (const PortableCost& cost : choice_of(problem, facts).costs) {
    if (cost.row != row) continue;
    plan.split_k = static_cast<std::int32_t>(parts_of(problem.k, best_parts(cost, problem, facts)));
    plan.workspace_bytes =
        plan.split_k == 1 ? 0 : plan.split_k * part_bytes_of(tile_of(facts, row), problem.m, problem.n);
  }
}
void portable_finish(const GemmProblem& problem, const DeviceFacts& facts, Plan& plan) {
  finish_row(problem, facts, plan.row, plan);
}

const char* portable_arithmetic(const GemmProblem& problem, const DeviceFacts& facts, std::int32_t) {
  if (problem.input_dtype == DType::int8)
    return facts.architecture == Architecture::sm75 ? "int8 tensor core, m8n8k16" : "int8 tensor core, m16n8k32";
  if (entry_of(facts.architecture).multiplies_fp8) return "fp8 tensor core, m16n8k32, sums in fp32";
  return facts.architecture == Architecture::sm75 ? "fp8 operands converted to fp16 on the fly: fp16 tensor core, "
                                                    "m16n8k8, exact products, sums in fp32; fp8 "
                                                    "saves memory and bandwidth here, not multiplications"
                                                  : "fp8 operands converted to fp16 on the fly: fp16 tensor core, "
                                                    "m16n8k16, exact products, sums in fp32; fp8 "
                                                    "saves memory and bandwidth here, not multiplications";
}

// ---- sm_90a: Hopper's own rows first, the portable ones behind them ----------------------------------------------------------

std::span<const Rule> hopper_rules(const GemmProblem& problem, const DeviceFacts& facts) {
  return kSm90Table.rules(problem, facts);
}
const char* hopper_row_name(std::int32_t row) {
  return row < kSm90Rows ? kSm90Table.row_name(row) : portable_row_name<kLargeNames>(row - kSm90Rows);
}
std::string hopper_why_not(const GemmProblem& problem, const DeviceFacts& facts, std::int32_t row) {
  return row < kSm90Rows ? kSm90Table.why_not(problem, facts, row) : portable_why_not(problem, facts, row - kSm90Rows);
}
std::int32_t hopper_fallback(const GemmProblem& problem, const DeviceFacts& facts) {
  const std::int32_t row = portable_rules(problem, facts).front().row;
  return portable_why_not(problem, facts, row).empty() ? kSm90Rows + row : -1;
}
void hopper_finish(const GemmProblem& problem, const DeviceFacts& facts, Plan& plan) {
  if (plan.row < kSm90Rows)
    kSm90Table.finish(problem, facts, plan);
  else
    finish_row(problem, facts, plan.row - kSm90Rows, plan);
}
const char* hopper_arithmetic(const GemmProblem& problem, const DeviceFacts& facts, std::int32_t row) {
  if (row >= kSm90Rows) return portable_arithmetic(problem, facts, row - kSm90Rows);
  return problem.input_dtype == DType::int8 ? "int8 tensor core, wgmma" : "fp8 tensor core, wgmma";
}

constexpr std::int32_t kRows = static_cast<std::int32_t>(kPortableRows);

}  // namespace

const ArchitectureTable kPortableTuringTable = {kRows,
                                                portable_row_name<kTuringNames>,
                                                portable_rules,
                                                portable_why_not,
                                                portable_fallback,
                                                portable_finish,
                                                portable_arithmetic};
const ArchitectureTable kPortableSmallTable = {kRows,
                                               portable_row_name<kSmallNames>,
                                               portable_rules,
                                               portable_why_not,
                                               portable_fallback,
                                               portable_finish,
                                               portable_arithmetic};
const ArchitectureTable kPortableLargeTable = {kRows,
                                               portable_row_name<kLargeNames>,
                                               portable_rules,
                                               portable_why_not,
                                               portable_fallback,
                                               portable_finish,
                                               portable_arithmetic};
const ArchitectureTable kSm90aTable = {kSm90Rows + kRows, hopper_row_name, hopper_rules,     hopper_why_not,
                                       hopper_fallback,   hopper_finish,   hopper_arithmetic};

}  // namespace evergemm::plan_tables
