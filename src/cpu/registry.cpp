// SPDX-License-Identifier: Apache-2.0
// Row of plan/cpu.h -> GEMM kernel. Must not go here: choices (the plan has made them), checks (the validator has).
#include "cpu/registry.h"

#include <array>
#include <cstddef>
#include <string_view>

#include "cpu/gemm_kernels.h"
#include "evergemm/reference.h"
#include "plan/cpu.h"

#if defined(__x86_64__)
#define EVERGEMM_X86(kernel) kernel
#else
#define EVERGEMM_X86(kernel) nullptr
#endif

namespace evergemm::cpu {
namespace {

void gemm_reference(const GemmProblem& problem, const RunContext&) { reference::gemm(problem); }

struct Entry {
  const char* row;  // must be the row's name in plan/cpu.h, at the same index
  GemmKernel kernel;
};

// A kernel that this build has no instructions for is null; no plan names its row, as cpu_facts() lacks them too.
constexpr std::array kEntries = {
    Entry{"cpu_reference", gemm_reference},
    Entry{"cpu_int8_portable_panel", gemm_int8_portable_panel},
    Entry{"cpu_int8_avx2_dot", EVERGEMM_X86(gemm_int8_avx2_dot)},
    Entry{"cpu_int8_avx2_panel", EVERGEMM_X86(gemm_int8_avx2_panel)},
    Entry{"cpu_int8_avx512vnni_dot", EVERGEMM_X86(gemm_int8_avx512_vnni_dot)},
    Entry{"cpu_int8_avx512vnni_panel", EVERGEMM_X86(gemm_int8_avx512_vnni_panel)},
    Entry{"cpu_fp8_portable_panel", gemm_fp8_portable_panel},
    Entry{"cpu_fp8_avx2_panel", EVERGEMM_X86(gemm_fp8_avx2_panel)},
    Entry{"cpu_fp8_avx512_panel", EVERGEMM_X86(gemm_fp8_avx512_panel)},
    Entry{"cpu_fp8_avx512vbmi_dot", EVERGEMM_X86(gemm_fp8_avx512_vbmi_dot)},
    Entry{"cpu_fp8_avx512vbmi_panel", EVERGEMM_X86(gemm_fp8_avx512_vbmi_panel)},
};

constexpr bool matches_rows() {
  if (kEntries.size() != plan_tables::kCpuRows.size()) return false;
  for (std::size_t i = 0; i < kEntries.size(); ++i) {
    if (std::string_view(kEntries[i].row) != plan_tables::kCpuRows[i].name) return false;
  }
  return true;
}
static_assert(matches_rows(), "kEntries and plan_tables::kCpuRows name the same rows in the same order");

}  // namespace

Status run_cpu(const Plan& plan, const GemmProblem& problem, const RunContext& context) {
  if (plan.row < 0) return Status();  // an empty result
  const std::size_t row = static_cast<std::size_t>(plan.row);
  if (row >= kEntries.size() || kEntries[row].kernel == nullptr) {
    return Status("scaled_mm: expected a plan for this processor; got row " + std::to_string(plan.row) + " (" +
                  plan.name + "), which this build has no kernel for; fix: plan with cpu_facts().");
  }
  kEntries[row].kernel(problem, context);
  return Status();
}

}  // namespace evergemm::cpu
