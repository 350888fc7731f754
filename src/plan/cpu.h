// SPDX-License-Identifier: Apache-2.0
// The CPU's rows and rules. Data only: src/cpu/registry.cpp maps a row to its kernel by index, plan/cpu.cpp reads the
// rules.
#pragma once
#include <array>

#include "evergemm/plan.h"
#include "plan/rules.h"

namespace evergemm::plan_tables {

enum class CpuKernel : std::uint8_t {
  reference,  // the specification's loops
  dot,        // no packing, b streamed once: few rows of a
  panel,      // b repacked panel by panel, register-blocked over rows of a
};

struct CpuRow {
  const char* name;
  DType input_dtype;  // ignored by `reference`, which takes both
  InstructionSet instruction_set;
  CpuKernel kernel;
};

inline constexpr std::array kCpuRows = {
    CpuRow{"cpu_reference", DType::int8, InstructionSet::portable, CpuKernel::reference},
    CpuRow{"cpu_int8_portable_panel", DType::int8, InstructionSet::portable, CpuKernel::panel},
    CpuRow{"cpu_int8_avx2_dot", DType::int8, InstructionSet::avx2, CpuKernel::dot},
    CpuRow{"cpu_int8_avx2_panel", DType::int8, InstructionSet::avx2, CpuKernel::panel},
    CpuRow{"cpu_int8_avx512vnni_dot", DType::int8, InstructionSet::avx512_vnni, CpuKernel::dot},
    CpuRow{"cpu_int8_avx512vnni_panel", DType::int8, InstructionSet::avx512_vnni, CpuKernel::panel},
    CpuRow{"cpu_fp8_portable_panel", DType::float8_e4m3fn, InstructionSet::portable, CpuKernel::panel},
    CpuRow{"cpu_fp8_avx2_panel", DType::float8_e4m3fn, InstructionSet::avx2, CpuKernel::panel},
    CpuRow{"cpu_fp8_avx512_dot", DType::float8_e4m3fn, InstructionSet::avx512, CpuKernel::dot},
    CpuRow{"cpu_fp8_avx512_panel", DType::float8_e4m3fn, InstructionSet::avx512, CpuKernel::panel},
};

inline constexpr std::int32_t kCpuReferenceRow = 0;

inline constexpr std::array kCpuInt8PortableRules = {Rule{any, any, any, 1, "the only portable int8 kernel"}};
inline constexpr std::array kCpuInt8Avx2Rules = {
    Rule{4, any, any, 2, "few rows: repacking b would cost more than it saves"},
    Rule{any, any, any, 3, "b repacked once serves every row of a"},
};
inline constexpr std::array kCpuInt8Avx512VnniRules = {
    Rule{4, any, any, 4, "few rows: repacking b would cost more than it saves"},
    Rule{any, any, any, 5, "b repacked once serves every row of a"},
};
inline constexpr std::array kCpuFp8PortableRules = {Rule{any, any, any, 6, "the only portable fp8 kernel"}};
inline constexpr std::array kCpuFp8Avx2Rules = {Rule{any, any, any, 7, "the only avx2 fp8 kernel"}};
inline constexpr std::array kCpuFp8Avx512Rules = {
    Rule{4, any, any, 8, "few rows: converting b in registers beats storing a converted panel"},
    Rule{any, any, any, 9, "b converted once serves every row of a"},
};
static_assert(well_formed(kCpuInt8PortableRules) && well_formed(kCpuInt8Avx2Rules) &&
              well_formed(kCpuInt8Avx512VnniRules) && well_formed(kCpuFp8PortableRules) &&
              well_formed(kCpuFp8Avx2Rules) && well_formed(kCpuFp8Avx512Rules));

}  // namespace evergemm::plan_tables
