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
  bool needs_vbmi = false;
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
    CpuRow{"cpu_fp8_avx512_panel", DType::float8_e4m3fn, InstructionSet::avx512, CpuKernel::panel},
    CpuRow{"cpu_fp8_avx512vbmi_dot", DType::float8_e4m3fn, InstructionSet::avx512, CpuKernel::dot, true},
    CpuRow{"cpu_fp8_avx512vbmi_panel", DType::float8_e4m3fn, InstructionSet::avx512, CpuKernel::panel, true},
};

inline constexpr std::int32_t kCpuReferenceRow = 0;

// The measurements behind the thresholds are in docs/tuning_log.md.
inline constexpr std::array kCpuInt8PortableRules = {Rule{any, any, any, 1, "the only portable int8 kernel"}};
inline constexpr std::array kCpuInt8Avx2Rules = {
    Rule{8, any, any, 2, "few rows: repacking b would cost more than it saves"},
    Rule{any, any, any, 3, "b repacked once serves every row of a"},
};
inline constexpr std::array kCpuInt8Avx512VnniRules = {
    Rule{8, any, any, 4, "few rows: repacking b would cost more than it saves"},
    Rule{16, any, 512, 5, "k is short: adding up the lanes of a dot product would cost more than repacking b"},
    Rule{16, any, any, 4, "k is long enough for dot products, which need no repacking"},
    Rule{32, any, 1024, 5, "k is short: adding up the lanes of a dot product would cost more than repacking b"},
    Rule{32, any, any, 4, "k is long enough for dot products, which need no repacking"},
    Rule{any, any, any, 5, "b repacked once serves every row of a"},
};
inline constexpr std::array kCpuFp8PortableRules = {Rule{any, any, any, 6, "the only portable fp8 kernel"}};
inline constexpr std::array kCpuFp8Avx2Rules = {Rule{any, any, any, 7, "the only avx2 fp8 kernel"}};
inline constexpr std::array kCpuFp8Avx512Rules = {
    Rule{any, any, any, 8, "the only fp8 kernel for avx512 without vbmi"}};
inline constexpr std::array kCpuFp8Avx512VbmiRules = {
    Rule{16, any, any, 9, "few rows: b converted in pieces that stay in L1, and read once"},
    Rule{any, any, any, 10, "b converted once serves every row of a"},
};
static_assert(well_formed(kCpuInt8PortableRules) && well_formed(kCpuInt8Avx2Rules) &&
              well_formed(kCpuInt8Avx512VnniRules) && well_formed(kCpuFp8PortableRules) &&
              well_formed(kCpuFp8Avx2Rules) && well_formed(kCpuFp8Avx512Rules) && well_formed(kCpuFp8Avx512VbmiRules));

}  // namespace evergemm::plan_tables
