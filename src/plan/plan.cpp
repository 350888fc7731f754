// SPDX-License-Identifier: Apache-2.0
// problem + facts -> plan: walks the architecture's rules, first match wins. Knows no kernel and makes no device call.
#include "evergemm/plan.h"

#include "plan/cpu_quantize.h"
#include "plan/table.h"
#include "plan/validate_rules.h"

namespace evergemm {

namespace {

using plan_tables::ArchitectureTable;
using plan_tables::Rule;
using plan_tables::table_of;
using validation::violation;

const char* operator_of(const GemmProblem& problem) { return problem.has_azp ? "scaled_mm_azp" : "scaled_mm"; }

// Every architecture runs every problem whose result fits a memory.
Status no_kernel(const GemmProblem& problem, const DeviceFacts& facts) {
  return violation(operator_of(problem), std::string("a result whose tiles ") + name(facts.architecture) + " can count",
                   "m " + std::to_string(problem.m) + " and n " + std::to_string(problem.n), "split the product");
}

}  // namespace

Status plan(const GemmProblem& problem, const DeviceFacts& facts, Plan& out) {
  out = Plan();
  out.architecture = facts.architecture;
  if (problem.m == 0 || problem.n == 0) {
    out.why = "the result is empty";
    return Status();
  }
  const ArchitectureTable* table = table_of(facts.architecture);
  if (table == nullptr) return no_kernel(problem, facts);
  const std::span<const Rule> rules = table->rules(problem, facts);
  for (std::size_t i = 0; i < rules.size(); ++i) {
    const Rule& rule = rules[i];
    if (problem.m > rule.m || problem.n > rule.n || problem.k > rule.k) continue;
    out.row = rule.row;
    out.rule = static_cast<std::int32_t>(i);
    out.why = rule.why;
    if (!table->why_not(problem, facts, out.row).empty()) {
      out.row = table->fallback(problem, facts);
      out.why = "the row that the rule names cannot run this problem (see rejected)";
    }
    break;
  }
  if (out.row < 0) return no_kernel(problem, facts);
  out.name = table->row_name(out.row);
  table->finish(problem, facts, out);
  return Status();
}

std::string why_not(const GemmProblem& problem, const DeviceFacts& facts, std::int32_t row) {
  const ArchitectureTable* table = table_of(facts.architecture);
  if (table == nullptr || row < 0 || row >= table->rows) return "no such row";
  return table->why_not(problem, facts, row);
}

Status plan_row(const GemmProblem& problem, const DeviceFacts& facts, std::int32_t row, Plan& out) {
  out = Plan();
  out.architecture = facts.architecture;
  const std::int32_t rows = row_count(facts.architecture);
  if (row < 0 || row >= rows)
    return violation(operator_of(problem), "row in [0, " + std::to_string(rows) + ") of " + name(facts.architecture),
                     std::to_string(row), "choose a row that evergemm.explain() lists");
  if (problem.m == 0 || problem.n == 0) return Status();
  const ArchitectureTable* table = table_of(facts.architecture);
  const std::string reason = table->why_not(problem, facts, row);
  if (!reason.empty())
    return violation(operator_of(problem), "a problem that row " + std::string(table->row_name(row)) + " can run",
                     reason, "choose another row, or leave the choice to scaled_mm");
  out.row = row;
  out.name = table->row_name(row);
  out.why = "forced";
  table->finish(problem, facts, out);
  return Status();
}

Status plan(const QuantizeProblem&, const DeviceFacts& facts, Plan& out) {
  out = Plan();
  out.architecture = facts.architecture;
  if (facts.architecture == Architecture::cpu) {
    out.row = plan_tables::cpu_quantize_row(facts.instruction_set);
    out.name = plan_tables::kCpuQuantizeRows[static_cast<std::size_t>(out.row)].name;
  } else {
    out.row = 0;
    out.name = "cuda_quantize";
  }
  out.why = "one kernel for every scheme";
  return Status();
}

Status plan(const PermuteProblem&, const DeviceFacts& facts, Plan& out) {
  out = Plan();
  out.architecture = facts.architecture;
  out.row = 0;
  out.name = facts.architecture == Architecture::cpu ? "cpu_permute" : "cuda_permute";
  out.why = "the only kernel";
  return Status();
}

// The quantizer, then the product, whose addresses do not matter yet: a workspace is aligned as well as any.
Status plan(const LinearProblem& problem, const DeviceFacts& facts, Plan& out) {
  LinearProblem placed = problem;
  const std::int64_t bytes = place(placed, nullptr);
  Plan quantizer;
  Status status = plan(placed.quantize, facts, quantizer);
  if (!status.ok()) return status;
  status = plan(placed.product, facts, out);
  out.quantizer_row = quantizer.row;
  out.workspace_bytes += bytes;
  return status;
}

std::int32_t row_count(Architecture architecture) {
  const ArchitectureTable* table = table_of(architecture);
  return table == nullptr ? 0 : table->rows;
}

const char* row_name(Architecture architecture, std::int32_t row) {
  const ArchitectureTable* table = table_of(architecture);
  return table == nullptr || row < 0 || row >= table->rows ? "unknown" : table->row_name(row);
}

}  // namespace evergemm
