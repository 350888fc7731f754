// SPDX-License-Identifier: Apache-2.0
// The CPU as the planner sees it: reads the rows and rules of cpu.h. Must not go here: thresholds (cpu.h), kernels
// (src/cpu).
#include "plan/cpu.h"

#include <cstddef>

#include "plan/table.h"

namespace evergemm::plan_tables {
namespace {

const CpuRow& row_of(std::int32_t row) { return kCpuRows[static_cast<std::size_t>(row)]; }

const char* cpu_row_name(std::int32_t row) { return row_of(row).name; }

std::span<const Rule> cpu_rules(const GemmProblem& problem, const DeviceFacts& facts) {
  if (problem.input_dtype == DType::int8) {
    if (facts.instruction_set >= InstructionSet::avx512_vnni) return kCpuInt8Avx512VnniRules;
    if (facts.instruction_set >= InstructionSet::avx2) return kCpuInt8Avx2Rules;
    return kCpuInt8PortableRules;
  }
  if (facts.instruction_set >= InstructionSet::avx512) {
    if (facts.avx512_vbmi) return kCpuFp8Avx512VbmiRules;
    return kCpuFp8Avx512Rules;
  }
  if (facts.instruction_set >= InstructionSet::avx2) return kCpuFp8Avx2Rules;
  return kCpuFp8PortableRules;
}

std::string cpu_why_not(const GemmProblem& problem, const DeviceFacts& facts, std::int32_t row) {
  const CpuRow& candidate = row_of(row);
  if (candidate.kernel != CpuKernel::reference && candidate.input_dtype != problem.input_dtype) {
    return std::string("multiplies ") + name(candidate.input_dtype) + ", the problem is " + name(problem.input_dtype);
  }
  if (candidate.instruction_set > facts.instruction_set) {
    return std::string("needs ") + name(candidate.instruction_set) + ", this processor has " +
           name(facts.instruction_set);
  }
  if (candidate.needs_vbmi && !facts.avx512_vbmi) return "needs avx512_vbmi, which this processor lacks";
  return std::string();
}

std::int32_t cpu_fallback(const GemmProblem&, const DeviceFacts&) { return kCpuReferenceRow; }

void cpu_finish(const GemmProblem& problem, const DeviceFacts&, Plan& plan) {
  // fp8 in the reference's order: fast accumulation and promoted are the same here.
  plan.accumulation = problem.input_dtype == DType::int8 ? Accumulation::exact_int32 : Accumulation::promoted;
}

}  // namespace

const ArchitectureTable kCpuTable = {
    static_cast<std::int32_t>(kCpuRows.size()), cpu_row_name, cpu_rules, cpu_why_not, cpu_fallback, cpu_finish};

}  // namespace evergemm::plan_tables
