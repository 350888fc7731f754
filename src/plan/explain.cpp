// SPDX-License-Identifier: Apache-2.0
// A plan printed as JSON: what runs, which rule chose it, why other rows cannot, what it costs at least.
#include <cstdio>
#include <string>

#include "evergemm/plan.h"
#include "plan/roofline.h"
#include "plan/table.h"

namespace evergemm {

namespace {

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + "\"";
}
std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.6g", value);
  return text;
}
const char* boolean(bool value) { return value ? "true" : "false"; }
std::string threshold(std::int64_t value) { return value == plan_tables::any ? "null" : std::to_string(value); }

}  // namespace

std::string explain(const GemmProblem& problem, const DeviceFacts& facts) {
  std::string json = "{";
  auto field = [&json](const char* key, const std::string& value) {
    if (json.size() > 1) json += ", ";
    json += quoted(key) + ": " + value;
  };
  field("operator", quoted(problem.has_azp ? "scaled_mm_azp" : "scaled_mm"));
  field("m", std::to_string(problem.m));
  field("n", std::to_string(problem.n));
  field("k", std::to_string(problem.k));
  field("dtype", quoted(name(problem.input_dtype)));
  field("out_dtype", quoted(name(problem.output_dtype)));
  field("scale_a", quoted(name(problem.scale_a.mode)));
  field("scale_b", quoted(name(problem.scale_b.mode)));
  field("architecture", quoted(name(facts.architecture)));
  if (facts.architecture == Architecture::cpu) field("instruction_set", quoted(name(facts.instruction_set)));
  field("cores", std::to_string(facts.cores));
  field("built", boolean(is_built(facts.architecture)));

  Plan chosen;
  const Status status = plan(problem, facts, chosen);
  if (!status.ok()) {
    field("error", quoted(status.text()));
    return json + "}";
  }
  field("row", quoted(chosen.name));
  field("row_index", std::to_string(chosen.row));
  field("rule", std::to_string(chosen.rule));
  field("why", quoted(chosen.why));
  const plan_tables::ArchitectureTable* table = plan_tables::table_of(facts.architecture);
  if (chosen.rule >= 0 && table != nullptr) {
    const plan_tables::Rule& rule = table->rules(problem, facts)[static_cast<std::size_t>(chosen.rule)];
    field("rule_matches", "{\"m_at_most\": " + threshold(rule.m) + ", \"n_at_most\": " + threshold(rule.n) +
                              ", \"k_at_most\": " + threshold(rule.k) +
                              ", \"row\": " + quoted(table->row_name(rule.row)) + "}");
  }
  field("accumulation", quoted(name(chosen.accumulation)));
  if (chosen.row >= 0 && table != nullptr && table->arithmetic != nullptr)
    field("arithmetic", quoted(table->arithmetic(problem, facts, chosen.row)));
  field("deterministic", boolean(problem.deterministic));
  field("swap_ab", boolean(chosen.swap_ab));
  field("split_k", std::to_string(chosen.split_k));
  field("workspace_bytes", std::to_string(chosen.workspace_bytes));
  std::string rejected, possible;
  for (std::int32_t row = 0; table != nullptr && row < table->rows; ++row) {
    if (row == chosen.row) continue;
    const std::string reason = table->why_not(problem, facts, row);
    std::string& list = reason.empty() ? possible : rejected;
    if (!list.empty()) list += ", ";
    list += reason.empty() ? quoted(table->row_name(row))
                           : "{\"row\": " + quoted(table->row_name(row)) + ", \"why\": " + quoted(reason) + "}";
  }
  field("possible", "[" + possible + "]");  // rows that could run it too, but that no earlier rule names
  field("rejected", "[" + rejected + "]");
  const Roofline least = roofline(problem, facts);
  field("roofline", "{\"operations\": " + number(least.operations) + ", \"bytes\": " + number(least.bytes) +
                        ", \"microseconds\": " + (least.microseconds > 0 ? number(least.microseconds) : "null") +
                        ", \"bound\": " + quoted(least.bound) + ", \"source\": " + quoted(least.source) + "}");
  return json + "}";
}

}  // namespace evergemm
