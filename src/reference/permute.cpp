// SPDX-License-Identifier: Apache-2.0
// permute_cols as the obvious loop. Reached through run() as the reference row. Must not go here: speed.
#include <cstdint>

#include "evergemm/reference.h"

namespace evergemm::reference {

void permute(const PermuteProblem& problem) {
  for (std::int64_t i = 0; i < problem.rows; ++i)
    for (std::int64_t j = 0; j < problem.columns; ++j) {
      const std::int64_t source = problem.perm[j * problem.perm_stride];  // data from outside: any value
      const bool inside = source >= 0 && source < problem.columns;
      problem.out[i * problem.columns + j] = inside ? problem.a[i * problem.columns + source] : std::uint16_t{0};
    }
}

}  // namespace evergemm::reference
