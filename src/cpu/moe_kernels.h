// SPDX-License-Identifier: Apache-2.0
// moe_combine by instruction set, for moe.cpp. Must not go here: which one runs.
#pragma once
#include <cstdint>

#include "evergemm/moe.h"

namespace evergemm::cpu {

// Tokens [begin, end).
void moe_combine_portable(const MoeCombineProblem& problem, std::int64_t begin, std::int64_t end);
void moe_combine_avx2(const MoeCombineProblem& problem, std::int64_t begin, std::int64_t end);

}  // namespace evergemm::cpu
