// SPDX-License-Identifier: Apache-2.0
// permute_cols on the CPU: out[i, j] = a[i, perm[j]], 0 where perm[j] is no column. Called by run().
// Must not go here: a check of perm beforehand; its values are data, judged one by one.
#include <algorithm>

#include "cpu/registry.h"

namespace evergemm::cpu {
namespace {

// Rows handled together: perm is read and judged once for all of them.
constexpr std::int64_t kRowsTogether = 4;
constexpr std::int64_t kElementsForAThread = 32768;

template <std::int64_t kRows>
void permute_rows(const PermuteProblem& problem, std::int64_t row) {
  const std::int64_t columns = problem.columns;
  const std::uint16_t* a = problem.a + row * columns;
  std::uint16_t* out = problem.out + row * columns;
  for (std::int64_t j = 0; j < columns; ++j) {
    const std::int64_t source = problem.perm[j * problem.perm_stride];
    const bool is_column = source >= 0 && source < columns;
    for (std::int64_t i = 0; i < kRows; ++i)
      out[i * columns + j] = is_column ? a[i * columns + source] : std::uint16_t{0};
  }
}

void permute_range(void* context, std::int64_t begin, std::int64_t end) {
  const auto& problem = *static_cast<const PermuteProblem*>(context);
  std::int64_t row = begin;
  for (; row + kRowsTogether <= end; row += kRowsTogether) permute_rows<kRowsTogether>(problem, row);
  for (; row < end; ++row) permute_rows<1>(problem, row);
}

}  // namespace

Status run_cpu(const Plan&, const PermuteProblem& problem, const RunContext& context) {
  if (problem.rows == 0 || problem.columns == 0) return Status();
  const std::int64_t grain =
      std::max<std::int64_t>(kRowsTogether, kElementsForAThread / problem.columns / kRowsTogether * kRowsTogether);
  void* argument = const_cast<PermuteProblem*>(&problem);
  if (context.parallel_for == nullptr || context.threads < 2 || problem.rows <= grain)
    permute_range(argument, 0, problem.rows);
  else
    context.parallel_for(0, problem.rows, grain, permute_range, argument);
  return Status();
}

}  // namespace evergemm::cpu
