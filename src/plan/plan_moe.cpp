// SPDX-License-Identifier: Apache-2.0
// Mixture-of-experts problem + facts -> plan. On the CPU a row is an instruction set (cpu_moe.h); the rows per expert,
// which choose the dense kernel, are known where the plan runs. Knows no kernel and makes no device call.
#include <cstddef>
#include <limits>

#include "evergemm/moe_layer.h"
#include "evergemm/plan.h"
#include "plan/cpu_moe.h"
#include "plan/validate_rules.h"

namespace evergemm {

namespace {

using plan_tables::cpu_grouped_workspace;
using plan_tables::whole_lines;

const char* operator_of(const MoeRouteProblem&) { return "moe_route"; }
const char* operator_of(const MoeGatherQuantizeProblem&) { return "moe_gather_quantize"; }
const char* operator_of(const MoeCombineProblem&) { return "moe_combine"; }
const char* operator_of(const FusedMoeProblem&) { return "fused_moe"; }
const char* operator_of(const GroupedGemmProblem& problem) {
  switch (problem.form) {
    case GroupedForm::ragged:
      return "grouped_scaled_mm";
    case GroupedForm::masked:
      return "grouped_scaled_mm_masked";
    case GroupedForm::dropin:
      break;
  }
  return "cutlass_moe_mm";
}
const char* operator_of(const MoeDataProblem& problem) {
  switch (problem.kind) {
    case MoeDataKind::route:
      return "get_cutlass_moe_mm_data";
    case MoeDataKind::sizes_from_offsets:
      return "get_cutlass_moe_mm_problem_sizes_from_expert_offsets";
    case MoeDataKind::batched:
      break;
  }
  return "get_cutlass_batched_moe_mm_data";
}

template <class Problem>
Status cpu_plan(const Problem& problem, const DeviceFacts& facts, Plan& out) {
  out = Plan();
  out.architecture = facts.architecture;
  if (facts.architecture != Architecture::cpu)
    return validation::violation(operator_of(problem), "an architecture with kernels for mixture of experts (the cpu)",
                                 name(facts.architecture),
                                 "move the tensors to the cpu: no GPU has these kernels in this library yet");
  out.row = plan_tables::cpu_moe_row(facts.instruction_set);
  out.name = plan_tables::kCpuMoeRows[static_cast<std::size_t>(out.row)].name;
  out.why = "the processor's instruction set";
  return Status();
}

void set_accumulation(DType dtype, Plan& out) {
  // fp8 in the reference's order: fast accumulation and promoted are the same here.
  out.accumulation = dtype == DType::int8 ? Accumulation::exact_int32 : Accumulation::promoted;
}

// Where the problem has no element to write, nothing is launched.
Status nothing_to_write(bool empty, Plan& out) {
  if (!empty) return Status();
  out.row = -1;
  out.name = "empty";
  out.why = "the result is empty";
  out.workspace_bytes = 0;
  return Status();
}

}  // namespace

Status plan(const MoeRouteProblem& problem, const DeviceFacts& facts, Plan& out) {
  return cpu_plan(problem, facts, out);
}

Status plan(const MoeDataProblem& problem, const DeviceFacts& facts, Plan& out) {
  return cpu_plan(problem, facts, out);
}

Status plan(const GroupedGemmProblem& problem, const DeviceFacts& facts, Plan& out) {
  Status status = cpu_plan(problem, facts, out);
  if (!status.ok()) return status;
  set_accumulation(problem.input_dtype, out);
  out.workspace_bytes = cpu_grouped_workspace(problem.experts);
  return nothing_to_write(problem.rows == 0 || problem.n == 0, out);
}

namespace {

// Bytes of rows x columns elements. A broadcast view can ask for more than int64 holds: no machine has an eighth of that
// either, and the allocation fails with the allocator's own words.
std::int64_t area(std::int64_t rows, std::int64_t columns, std::int64_t element_bytes) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max() / 8;
  std::int64_t bytes = 0;
  const bool counted = !__builtin_mul_overflow(rows, columns, &bytes) &&
                       !__builtin_mul_overflow(bytes, element_bytes, &bytes) && bytes < kMost;
  return counted ? bytes : kMost;
}

}  // namespace

Status plan(const MoeGatherQuantizeProblem& problem, const DeviceFacts& facts, Plan& out) {
  Status status = cpu_plan(problem, facts, out);
  if (!status.ok()) return status;
  // Each token quantized once and then gathered, or the weighted rows of x.
  if (problem.row_weights != nullptr)
    out.workspace_bytes = whole_lines(area(problem.rows, problem.columns, size_in_bytes(problem.x_dtype)));
  else
    out.workspace_bytes =
        whole_lines(area(problem.tokens, problem.columns, 1)) + whole_lines(area(problem.tokens, problem.groups(), 4));
  return Status();
}

Status plan(const MoeCombineProblem& problem, const DeviceFacts& facts, Plan& out) {
  Status status = cpu_plan(problem, facts, out);
  return status.ok() ? nothing_to_write(problem.tokens == 0 || problem.columns == 0, out) : status;
}

Status plan(const FusedMoeProblem& problem, const DeviceFacts& facts, Plan& out) {
  Status status = cpu_plan(problem, facts, out);
  if (!status.ok()) return status;
  set_accumulation(problem.weight_dtype, out);
  FusedMoeLayout layout;
  if (!fused_moe_layout(problem, layout))
    return validation::violation("fused_moe", "a workspace of less than 2^63 bytes", "a larger one",
                                 "split the tokens");
  out.workspace_bytes = layout.bytes + cpu_grouped_workspace(problem.route.experts);
  return nothing_to_write(problem.route.tokens == 0 || problem.hidden() == 0, out);
}

}  // namespace evergemm
