// SPDX-License-Identifier: Apache-2.0
// What every architecture gives the planner: its rows, its rules, and why a row cannot run a problem.
// One ArchitectureTable each, in cpu.cpp, sm90.cpp, portable.cpp; plan.cpp knows nothing else of an architecture.
#pragma once
#include <cstdint>
#include <span>
#include <string>

#include "evergemm/plan.h"
#include "plan/rules.h"

namespace evergemm::plan_tables {

struct ArchitectureTable {
  std::int32_t rows;  // GEMM rows
  const char* (*row_name)(std::int32_t row);
  // The rules for this kind of problem on this device; empty where the architecture has no kernel for it.
  std::span<const Rule> (*rules)(const GemmProblem& problem, const DeviceFacts& facts);
  // An empty string, or why `row` cannot run `problem` on `facts` ("needs avx512_vnni, this processor has avx2").
  std::string (*why_not)(const GemmProblem& problem, const DeviceFacts& facts, std::int32_t row);
  // The row that can run anything the architecture runs, where the chosen one cannot (unaligned rows, ...); -1: none.
  std::int32_t (*fallback)(const GemmProblem& problem, const DeviceFacts& facts);
  // Fills accumulation, swap_ab, split_k and workspace_bytes of a plan whose row is set.
  void (*finish)(const GemmProblem& problem, const DeviceFacts& facts, Plan& plan);
  // Which instructions a row multiplies with, where an architecture has to say something about it; null: nothing to say.
  const char* (*arithmetic)(const GemmProblem& problem, const DeviceFacts& facts, std::int32_t row) = nullptr;
};

// Null where this library has no rows for an architecture.
const ArchitectureTable* table_of(Architecture architecture);

extern const ArchitectureTable kCpuTable;             // cpu.cpp
extern const ArchitectureTable kSm90Table;            // sm90.cpp: Hopper's own rows
extern const ArchitectureTable kSm90aTable;           // portable.cpp: those, and the portable rows behind them
extern const ArchitectureTable kPortableTuringTable;  // portable.cpp, one for each memory class
extern const ArchitectureTable kPortableSmallTable;
extern const ArchitectureTable kPortableLargeTable;

}  // namespace evergemm::plan_tables
