// SPDX-License-Identifier: Apache-2.0
// What a launch hands to a portable kernel: the problem and how its tiles are walked, passed by value.
// Must not go here: tile sizes (plan/portable.h), anything that only the host needs.
#pragma once
#include <cstdint>

#include "evergemm/problem.h"

namespace evergemm::portable {

struct Parameters {
  GemmProblem problem;
  std::int32_t tiles_rows, tiles_columns;
};

// Row tiles that are walked together, so that the blocks at work share operands in L2.
inline constexpr std::int32_t kRasterGroup = 8;

}  // namespace evergemm::portable
