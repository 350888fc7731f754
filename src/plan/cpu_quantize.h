// SPDX-License-Identifier: Apache-2.0
// The CPU's quantizer rows. Data only: one kernel serves every scheme, so a row is an instruction set and the choice is
// the processor's. src/cpu/quantize_registry.cpp maps a row to its kernel by index.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>

#include "evergemm/plan.h"

namespace evergemm::plan_tables {

struct CpuQuantizeRow {
  const char* name;
  InstructionSet instruction_set;  // what the processor must have
};

// Row 0 is the specification's loops: only forced, never chosen.
inline constexpr std::array kCpuQuantizeRows = {
    CpuQuantizeRow{"cpu_quantize_reference", InstructionSet::portable},
    CpuQuantizeRow{"cpu_quantize_portable", InstructionSet::portable},
    CpuQuantizeRow{"cpu_quantize_avx2", InstructionSet::avx2},
    CpuQuantizeRow{"cpu_quantize_avx512", InstructionSet::avx512},
};

// The last row that a processor with `set` can run: the table goes from the least to the most demanding instruction
// set.
constexpr std::int32_t cpu_quantize_row(InstructionSet set) {
  std::int32_t row = 0;
  for (std::size_t i = 0; i < kCpuQuantizeRows.size(); ++i)
    if (kCpuQuantizeRows[i].instruction_set <= set) row = static_cast<std::int32_t>(i);
  return row;
}
static_assert(cpu_quantize_row(InstructionSet::portable) == 1 && cpu_quantize_row(InstructionSet::avx2) == 2 &&
              cpu_quantize_row(InstructionSet::avx512) == 3 && cpu_quantize_row(InstructionSet::avx512_vnni) == 3);

}  // namespace evergemm::plan_tables
