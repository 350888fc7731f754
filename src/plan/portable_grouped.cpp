// SPDX-License-Identifier: Apache-2.0
// Grouped products on the portable family as the planner sees them. Must not go here: thresholds (portable.h), kernels.
#include "plan/portable_grouped.h"

#include <cstddef>
#include <span>
#include <utility>

#include "plan/gpu_family.h"

namespace evergemm::plan_tables {
namespace {

template <std::size_t... kIndices>
constexpr auto make_names(const std::array<PortableTile, kPortableRows>& rows, std::index_sequence<kIndices...>) {
  return std::array{grouped_name_of(rows[kIndices])...};
}
constexpr auto kIndices = std::make_index_sequence<kPortableRows>();
constexpr std::array kNames = {make_names(kPortableTuringRows, kIndices), make_names(kPortableSmallRows, kIndices),
                               make_names(kPortableLargeRows, kIndices)};

const PortableTile& tile_of(const DeviceFacts& facts, std::int32_t row) {
  return portable_rows_of(entry_of(facts.architecture).memory)[static_cast<std::size_t>(row)];
}

std::span<const Rule> rules_of(const GroupedGemmProblem& problem) {
  switch (mainloop_of(problem)) {
    case Mainloop::int8:
      return kPortableGroupedInt8Rules;
    case Mainloop::fp8_fast:
      return kPortableGroupedFp8Rules;
    case Mainloop::fp8_promoted:
      return kPortableGroupedPromotedRules;
  }
  return {};
}

}  // namespace

std::string grouped_why_not_portable(const GroupedGemmProblem& problem, const DeviceFacts& facts, std::int32_t row) {
  if (row < 0 || row >= static_cast<std::int32_t>(kPortableRows)) return "no such row";
  const PortableTile& tile = tile_of(facts, row);
  if (!has_grouped(tile)) return "is not compiled for grouped products";
  if (tile.mainloop != mainloop_of(problem)) return "multiplies another type, or sums it in another way";
  if (problem.rows > 0 && problem.n > 0 && !counts_in_32_bits(tile, problem.n, problem.k))
    return "counts tiles along n and stages of k in 32 bits";
  GroupedWorkspace workspace;
  if (!grouped_workspace(problem, tile.m, workspace)) return "counts experts and tiles in int32";
  return std::string();
}

Status plan_grouped_row_portable(const GroupedGemmProblem& problem, const DeviceFacts& facts, std::int32_t row,
                                 Plan& plan) {
  plan = Plan();
  plan.architecture = facts.architecture;
  const std::string reason = grouped_why_not_portable(problem, facts, row);
  if (!reason.empty())
    return Status(std::string(operator_of(problem.form)) + ": expected a problem that row " + std::to_string(row) +
                  " can run; got one that it cannot: " + reason + "; fix: leave the choice to the operator.");
  const std::size_t memory = static_cast<std::size_t>(entry_of(facts.architecture).memory),
                    index = static_cast<std::size_t>(row);
  GroupedWorkspace workspace;
  static_cast<void>(grouped_workspace(problem, tile_of(facts, row).m, workspace));
  plan.row = row;
  plan.name = kNames[memory][index].text.data();
  plan.why = "forced";
  plan.accumulation = accumulation_of(mainloop_of(problem));
  plan.workspace_bytes = workspace.bytes;
  return Status();
}

Status plan_grouped_portable(const GroupedGemmProblem& problem, const DeviceFacts& facts, Plan& plan) {
  // Room for rows says little of how many there are: masked products get tiles that suit a few and many.
  constexpr std::int64_t kUnknown = 128;
  const std::int64_t average = problem.form == GroupedForm::masked
                                   ? std::min(problem.rows, kUnknown)
                                   : problem.rows / std::max<std::int64_t>(problem.experts, 1);
  const std::span<const Rule> rules = rules_of(problem);
  for (std::size_t i = 0; i < rules.size(); ++i) {
    if (average > rules[i].m) continue;
    const Status status = plan_grouped_row_portable(problem, facts, rules[i].row, plan);
    plan.rule = static_cast<std::int32_t>(i);
    plan.why = rules[i].why;
    return status;
  }
  return Status();
}

}  // namespace evergemm::plan_tables
