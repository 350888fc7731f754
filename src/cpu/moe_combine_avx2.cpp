// SPDX-License-Identifier: Apache-2.0
// moe_combine with AVX2 and FMA; compiled with -mavx2 -mfma, this file only. The loops are in moe_combine.h. Must not
// go here: choices.
#include "cpu/moe_combine.h"

namespace evergemm::cpu {

void moe_combine_avx2(const MoeCombineProblem& problem, std::int64_t begin, std::int64_t end) {
  combine_tokens(problem, begin, end);
}

}  // namespace evergemm::cpu
