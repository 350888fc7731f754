// SPDX-License-Identifier: Apache-2.0
// moe_combine for any processor. The loops are in moe_combine.h. Must not go here: choices.
#include "cpu/moe_combine.h"

namespace evergemm::cpu {

void moe_combine_portable(const MoeCombineProblem& problem, std::int64_t begin, std::int64_t end) {
  combine_tokens(problem, begin, end);
}

}  // namespace evergemm::cpu
