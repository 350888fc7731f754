// SPDX-License-Identifier: Apache-2.0
// The portable family as the planner sees it: reads the rows and rules of portable.h for each architecture, and stands behind
// Hopper's own rows for what those cannot run. Must not go here: thresholds (portable.h), kernels (src/cuda).
#include "plan/portable.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

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

const PortableArchitecture& entry_of(Architecture architecture) {
  for (const PortableArchitecture& entry : kPortableArchitectures)
    if (entry.architecture == architecture) return entry;
  return kPortableArchitectures[0];
}
const PortableTile& tile_of(const DeviceFacts& facts, std::int32_t row) {
  return portable_rows_of(entry_of(facts.architecture).memory)[static_cast<std::size_t>(row)];
}

Mainloop mainloop_of(const GemmProblem& problem) {
  if (problem.input_dtype == DType::int8) return Mainloop::int8;
  return problem.blockwise() || !problem.fast_accumulation ? Mainloop::fp8_promoted : Mainloop::fp8_fast;
}

const char* text_of(Mainloop mainloop) {
  return mainloop == Mainloop::int8       ? "int8"
         : mainloop == Mainloop::fp8_fast ? "float8_e4m3fn, summed in the tensor core for all of k"
                                          : "float8_e4m3fn, promoted to fp32 every 128 of k";
}

std::span<const Rule> portable_rules(const GemmProblem& problem, const DeviceFacts&) {
  switch (mainloop_of(problem)) {
    case Mainloop::int8:
      return kPortableInt8Rules;
    case Mainloop::fp8_fast:
      return kPortableFp8Rules;
    case Mainloop::fp8_promoted:
      return kPortablePromotedRules;
  }
  return {};
}

// Tiles are counted in int32: more of them would not fit a memory.
constexpr std::int64_t kTileLimit = std::numeric_limits<std::int32_t>::max();

std::string portable_why_not(const GemmProblem& problem, const DeviceFacts& facts, std::int32_t row) {
  const PortableTile& tile = tile_of(facts, row);
  const Mainloop wanted = mainloop_of(problem);
  if (tile.mainloop != wanted)
    return std::string("multiplies ") + text_of(tile.mainloop) + ", the problem is " + text_of(wanted);
  const std::int64_t rows = (problem.m - 1) / tile.m + 1, columns = (problem.n - 1) / tile.n + 1;
  if (problem.m > 0 && problem.n > 0 && rows > kTileLimit / columns) return "counts tiles in int32";
  const std::int32_t shared_memory = shared_memory_of(tile);
  if (shared_memory > facts.shared_memory_bytes)
    return "needs " + std::to_string(shared_memory) + " bytes of shared memory a block, the device has " +
           std::to_string(facts.shared_memory_bytes);
  return std::string();
}

// The row that a rule names runs everything, but for a count of tiles: then the largest of them.
std::int32_t portable_fallback(const GemmProblem& problem, const DeviceFacts&) {
  return portable_rules(problem, DeviceFacts()).back().row;
}

void portable_finish(const GemmProblem& problem, const DeviceFacts&, Plan& plan) {
  plan.accumulation = problem.input_dtype == DType::int8           ? Accumulation::exact_int32
                      : mainloop_of(problem) == Mainloop::fp8_fast ? Accumulation::fast
                                                                   : Accumulation::promoted;
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
  for (const Rule& rule : portable_rules(problem, facts)) {
    if (problem.m > rule.m || problem.n > rule.n || problem.k > rule.k) continue;
    if (portable_why_not(problem, facts, rule.row).empty()) return kSm90Rows + rule.row;
    break;
  }
  return kSm90Rows + portable_fallback(problem, facts);
}
void hopper_finish(const GemmProblem& problem, const DeviceFacts& facts, Plan& plan) {
  if (plan.row < kSm90Rows)
    kSm90Table.finish(problem, facts, plan);
  else
    portable_finish(problem, facts, plan);
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
