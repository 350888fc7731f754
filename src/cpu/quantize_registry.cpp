// SPDX-License-Identifier: Apache-2.0
// Row of plan/cpu_quantize.h -> quantizer, and its passes spread over threads: by rows, so that no result depends on
// how many there are. Must not go here: arithmetic on elements, choices (the plan has made them), checks (the validator
// has).
#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstring>
#include <string>
#include <string_view>

#include "cpu/quantize_kernel.h"
#include "cpu/registry.h"
#include "evergemm/reference.h"
#include "plan/cpu_quantize.h"

namespace evergemm::cpu {
namespace {

struct Entry {
  const char* row;  // must be the row's name in plan/cpu_quantize.h, at the same index
  const QuantizeKernel* kernel;
};

// No plan names a row that needs instructions which this build has no kernel for: cpu_facts() lacks them too. The first
// row is the specification itself.
constexpr std::array kEntries = {
    Entry{"cpu_quantize_reference", nullptr},
    Entry{"cpu_quantize_portable", &kQuantizePortable},
#if defined(__x86_64__)
    Entry{"cpu_quantize_avx2", &kQuantizeAvx2},
    Entry{"cpu_quantize_avx512", &kQuantizeAvx512},
#else
    Entry{"cpu_quantize_avx2", nullptr},
    Entry{"cpu_quantize_avx512", nullptr},
#endif
};

constexpr bool matches_rows() {
  if (kEntries.size() != plan_tables::kCpuQuantizeRows.size()) return false;
  for (std::size_t i = 0; i < kEntries.size(); ++i)
    if (std::string_view(kEntries[i].row) != plan_tables::kCpuQuantizeRows[i].name) return false;
  return true;
}
static_assert(matches_rows(), "kEntries and plan_tables::kCpuQuantizeRows name the same rows in the same order");

// A thread is worth its start from about so many elements; pieces of that size also stay in its cache.
constexpr std::int64_t kElementsForAThread = 32768;

// body(begin, end) over [0, count) units of elements_each elements.
template <class Body>
void spread(const RunContext& context, std::int64_t count, std::int64_t elements_each, const Body& body) {
  const std::int64_t grain = std::max<std::int64_t>(1, kElementsForAThread / std::max<std::int64_t>(1, elements_each));
  if (context.parallel_for == nullptr || context.threads < 2 || count <= grain) return body(0, count);
  context.parallel_for(
      0, count, grain,
      [](void* argument, std::int64_t begin, std::int64_t end) { (*static_cast<const Body*>(argument))(begin, end); },
      const_cast<Body*>(&body));
}

void quantize_per_tensor(const QuantizeKernel& kernel, const QuantizeProblem& problem, const RunContext& context) {
  std::atomic<std::uint32_t> most = 0;  // the largest of integers: the order of the threads does not matter
  spread(context, problem.rows, problem.columns, [&](std::int64_t begin, std::int64_t end) {
    const std::uint32_t found = kernel.magnitude(problem, begin, end);
    std::uint32_t known = most.load();
    while (known < found && !most.compare_exchange_weak(known, found)) {
    }
  });
  const float scale = kernel.scale_from(problem, most.load());
  *static_cast<float*>(problem.scale) = scale;
  spread(context, problem.rows, problem.columns,
         [&](std::int64_t begin, std::int64_t end) { kernel.with_scale(problem, scale, begin, end); });
}

// What dropin_group_packed clears beyond the rows that are quantized.
void clear_padding(const QuantizeProblem& problem) {
  const std::int64_t groups = problem.columns / problem.group_columns;
  const std::int64_t words = (groups + 3) / 4;
  auto* scale = static_cast<std::uint32_t*>(problem.scale);
  for (std::int64_t word = 0; word + 1 < words; ++word)
    for (std::int64_t row = problem.rows; row < problem.packed_columns_stride; ++row)
      scale[word * problem.packed_columns_stride + row] = 0;
  for (std::int64_t row = problem.rows; row < problem.q_rows; ++row)
    std::memset(static_cast<unsigned char*>(problem.q) + row * problem.q_stride, 0,
                static_cast<std::size_t>(problem.columns));
}

}  // namespace

Status run_cpu(const Plan& plan, const QuantizeProblem& problem, const RunContext& context) {
  if (plan.row < 0) return Status();
  if (plan.row == 0) {
    reference::quantize(problem);
    return Status();
  }
  const auto row = static_cast<std::size_t>(plan.row);
  if (row >= kEntries.size() || kEntries[row].kernel == nullptr)
    return Status("quantize: expected a plan for this processor; got row " + std::to_string(plan.row) + " (" +
                  plan.name + "), which this build has no kernel for; fix: plan with cpu_facts().");
  const QuantizeKernel& kernel = *kEntries[row].kernel;
  if (problem.scheme == QuantizeScheme::per_tensor) {
    quantize_per_tensor(kernel, problem, context);
    return Status();
  }
  const std::int64_t unit_rows =
      problem.scheme == QuantizeScheme::per_block ? std::min(problem.group_rows, problem.rows) : 1;
  const std::int64_t units = unit_rows < 2 ? problem.rows : (problem.rows - 1) / unit_rows + 1;
  spread(context, units, unit_rows * problem.columns,
         [&](std::int64_t begin, std::int64_t end) { kernel.units(problem, begin, end); });
  if (problem.scheme == QuantizeScheme::dropin_group_packed) clear_padding(problem);
  return Status();
}

}  // namespace evergemm::cpu
