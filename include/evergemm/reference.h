// SPDX-License-Identifier: Apache-2.0
// The executable specification: obvious loops, one thread, any machine. Every other kernel is judged by it:
// bit for bit in int8, in the quantizers and on every CPU; within the proven bound for fp8 on tensor cores.
#pragma once
#include "evergemm/moe.h"
#include "evergemm/problem.h"

namespace evergemm::reference {

void gemm(const GemmProblem& problem);
void quantize(const QuantizeProblem& problem);
void permute(const PermuteProblem& problem);

void moe_route(const MoeRouteProblem& problem);
void grouped_gemm(const GroupedGemmProblem& problem);
void moe_gather_quantize(const MoeGatherQuantizeProblem& problem);
void moe_combine(const MoeCombineProblem& problem);
void fused_moe(const FusedMoeProblem& problem);
void moe_data(const MoeDataProblem& problem);

}  // namespace evergemm::reference
