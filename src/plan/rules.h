// SPDX-License-Identifier: Apache-2.0
// The shape of a selection table: rules name rows, first match wins. Data only; plan.cpp walks it.
// A table is checked where it stands: static_assert(well_formed(kTable)).
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>

namespace evergemm::plan_tables {

inline constexpr std::int64_t any = std::numeric_limits<std::int64_t>::max();

// Matches where m <= this m, n <= this n and k <= this k.
struct Rule {
  std::int64_t m, n, k;
  std::int32_t row;  // index into the architecture's table of rows
  const char* why;
};

// The last rule takes everything.
template <std::size_t N>
constexpr bool total(const std::array<Rule, N>& rules) {
  return N > 0 && rules[N - 1].m == any && rules[N - 1].n == any && rules[N - 1].k == any;
}

// No rule is hidden behind an earlier one that matches all it matches.
template <std::size_t N>
constexpr bool reachable(const std::array<Rule, N>& rules) {
  for (std::size_t later = 0; later < N; ++later)
    for (std::size_t earlier = 0; earlier < later; ++earlier)
      if (rules[earlier].m >= rules[later].m && rules[earlier].n >= rules[later].n &&
          rules[earlier].k >= rules[later].k)
        return false;
  return true;
}

// Thresholds are small counts, multiples of 16, or `any`: 4069 for 4096 does not compile.
template <std::size_t N>
constexpr bool round_thresholds(const std::array<Rule, N>& rules) {
  for (const Rule& rule : rules)
    for (std::int64_t threshold : {rule.m, rule.n, rule.k})
      if (threshold != any && (threshold < 1 || (threshold > 8 && threshold % 16 != 0))) return false;
  return true;
}

template <std::size_t N>
constexpr bool well_formed(const std::array<Rule, N>& rules) {
  return total(rules) && reachable(rules) && round_thresholds(rules);
}

}  // namespace evergemm::plan_tables
