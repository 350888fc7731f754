// SPDX-License-Identifier: Apache-2.0
// The CPU's rows for mixture of experts. Data only: every operator of it has one kernel for each instruction set; a
// grouped product takes, for each expert, the dense row that the dense rules (cpu.h) name for its rows, and the
// quantizing parts the quantizer's row (cpu_quantize.h). src/cpu/moe.cpp reads a row's instruction set by index.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>

#include "evergemm/moe_index.h"
#include "evergemm/plan.h"

namespace evergemm::plan_tables {

struct CpuMoeRow {
  const char* name;
  InstructionSet instruction_set;
  bool reference;  // the specification's loops: only forced, never chosen
};

inline constexpr std::array kCpuMoeRows = {
    CpuMoeRow{"cpu_moe_reference", InstructionSet::portable, true},
    CpuMoeRow{"cpu_moe_portable", InstructionSet::portable, false},
    CpuMoeRow{"cpu_moe_avx2", InstructionSet::avx2, false},
    CpuMoeRow{"cpu_moe_avx512", InstructionSet::avx512, false},
    CpuMoeRow{"cpu_moe_avx512vnni", InstructionSet::avx512_vnni, false},
};

// The last row that a processor with `set` can run.
constexpr std::int32_t cpu_moe_row(InstructionSet set) {
  std::int32_t row = 0;
  for (std::size_t i = 0; i < kCpuMoeRows.size(); ++i)
    if (kCpuMoeRows[i].instruction_set <= set) row = static_cast<std::int32_t>(i);
  return row;
}
static_assert(cpu_moe_row(InstructionSet::portable) == 1 && cpu_moe_row(InstructionSet::avx2) == 2 &&
              cpu_moe_row(InstructionSet::avx512) == 3 && cpu_moe_row(InstructionSet::avx512_vnni) == 4);

// What a grouped product keeps of one expert in its workspace: where its share lies, and the first of its pieces of
// work.
struct CpuExpertWork {
  ExpertShare share;
  std::int64_t first_piece = 0;
  std::int64_t column_pieces = 0;
  std::int32_t row = -1;  // of cpu.h
};

constexpr std::int64_t whole_lines(std::int64_t bytes) { return (bytes + 255) / 256 * 256; }
constexpr std::int64_t cpu_grouped_workspace(std::int64_t experts) {
  return whole_lines(experts * static_cast<std::int64_t>(sizeof(CpuExpertWork)));
}

}  // namespace evergemm::plan_tables
