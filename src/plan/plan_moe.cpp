// SPDX-License-Identifier: Apache-2.0
// Mixture-of-experts problem + facts -> plan. On the CPU a row is an instruction set (cpu_moe.h); the rows per expert,
// which choose the dense kernel, are known where the plan runs. On GPUs routing, gathering and combining have one row each,
// the same on every architecture, and products have those of their architecture (grouped.h). Knows no kernel and
// makes no device call.
#include <cstddef>
#include <limits>

#include "evergemm/moe_layer.h"
#include "evergemm/plan.h"
#include "plan/cpu_moe.h"
#include "plan/grouped.h"
#include "plan/validate_rules.h"

namespace evergemm {

namespace {

using plan_tables::cpu_grouped_workspace;
using plan_tables::whole_lines;

void cpu_plan(const DeviceFacts& facts, Plan& out) {
  out.row = plan_tables::cpu_moe_row(facts.instruction_set);
  out.name = plan_tables::kCpuMoeRows[static_cast<std::size_t>(out.row)].name;
  out.why = "the processor's instruction set";
}

// What every GPU runs with the same kernels.
Plan only_row(const DeviceFacts& facts, const char* gpu_row) {
  Plan out;
  out.architecture = facts.architecture;
  if (facts.architecture == Architecture::cpu) {
    cpu_plan(facts, out);
  } else {
    out.row = 0;
    out.name = gpu_row;
    out.why = "the only kernel";
  }
  return out;
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

Status plan(const MoeRouteProblem&, const DeviceFacts& facts, Plan& out) {
  out = only_row(facts, "cuda_moe_route");
  return Status();
}

Status plan(const MoeDataProblem&, const DeviceFacts& facts, Plan& out) {
  out = only_row(facts, "cuda_moe_data");
  return Status();
}

Status plan(const GroupedGemmProblem& problem, const DeviceFacts& facts, Plan& out) {
  out = Plan();
  out.architecture = facts.architecture;
  if (facts.architecture == Architecture::cpu) {
    cpu_plan(facts, out);
    set_accumulation(problem.input_dtype, out);
    out.workspace_bytes = cpu_grouped_workspace(problem.experts);
  } else if (problem.rows > 0 && problem.n > 0) {
    return plan_tables::plan_grouped(problem, facts, out);
  }
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
  out = only_row(facts, "cuda_moe_gather_quantize");
  const bool on_cpu = facts.architecture == Architecture::cpu;
  if (problem.row_weights != nullptr) {  // the weighted rows of x
    if (on_cpu) out.workspace_bytes = whole_lines(area(problem.rows, problem.columns, size_in_bytes(problem.x_dtype)));
    return Status();
  }
  // Each token quantized once and then gathered. A GPU does that where there are many copies; otherwise it quantizes a token
  // for each row that asks for it, in one launch.
  constexpr std::int64_t kManyElements = std::int64_t{8} << 20;
  const bool many_copies =
      problem.rows / 2 >= problem.tokens && area(problem.rows, problem.columns, 1) >= kManyElements;
  if (on_cpu || many_copies)
    out.workspace_bytes =
        whole_lines(area(problem.tokens, problem.columns, 1)) + whole_lines(area(problem.tokens, problem.groups(), 4));
  return Status();
}

Status plan(const MoeCombineProblem& problem, const DeviceFacts& facts, Plan& out) {
  out = only_row(facts, "cuda_moe_combine");
  return nothing_to_write(problem.tokens == 0 || problem.columns == 0, out);
}

Status plan(const FusedMoeProblem& problem, const DeviceFacts& facts, Plan& out) {
  out = only_row(facts, "cuda_moe_layer");
  out.why = "the steps of the layer, each with its own row";
  FusedMoeLayout layout;
  const bool on_cpu = facts.architecture == Architecture::cpu;
  if (!fused_moe_layout(problem, on_cpu ? TokensGo::through_the_workspace : TokensGo::straight_to_rows, layout))
    return validation::violation("fused_moe", "a workspace of less than 2^63 bytes", "a larger one",
                                 "split the tokens");
  if (on_cpu) {
    cpu_plan(facts, out);
    set_accumulation(problem.weight_dtype, out);
    out.workspace_bytes = layout.bytes + cpu_grouped_workspace(problem.route.experts);
    return nothing_to_write(problem.route.tokens == 0 || problem.hidden() == 0, out);
  }
  if (problem.route.tokens == 0 || problem.hidden() == 0) return nothing_to_write(true, out);
  // Addresses in a workspace that is not there yet, as aligned as it will be.
  void* const stand_in = reinterpret_cast<void*>(std::uintptr_t{256});
  const FusedMoeSteps steps = fused_moe_steps(problem, layout, stand_in);
  out.workspace_bytes = layout.bytes;
  for (const GroupedGemmProblem* product : {&steps.product1, &steps.product2}) {
    Plan of_product;
    const Status status = plan(*product, facts, of_product);
    if (!status.ok()) return status;
    out.accumulation = of_product.accumulation;
    out.workspace_bytes += whole_lines(of_product.workspace_bytes);
  }
  return Status();
}

}  // namespace evergemm
