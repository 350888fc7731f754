// SPDX-License-Identifier: Apache-2.0
// The GEMM kernels of this folder by name. registry.cpp calls them; each stands in the file of its instruction set and
// trusts that its row fits the problem and the processor. Must not go here: which one runs (plan/cpu.h).
#pragma once
#include "evergemm/problem.h"
#include "evergemm/run.h"

namespace evergemm::cpu {

using GemmKernel = void (*)(const GemmProblem& problem, const RunContext& context);

void gemm_int8_portable_panel(const GemmProblem& problem, const RunContext& context);
void gemm_int8_avx2_dot(const GemmProblem& problem, const RunContext& context);
void gemm_int8_avx2_panel(const GemmProblem& problem, const RunContext& context);
void gemm_int8_avx512_vnni_dot(const GemmProblem& problem, const RunContext& context);
void gemm_int8_avx512_vnni_panel(const GemmProblem& problem, const RunContext& context);
void gemm_fp8_portable_panel(const GemmProblem& problem, const RunContext& context);
void gemm_fp8_avx2_panel(const GemmProblem& problem, const RunContext& context);
void gemm_fp8_avx512_panel(const GemmProblem& problem, const RunContext& context);
void gemm_fp8_avx512_vbmi_dot(const GemmProblem& problem, const RunContext& context);
void gemm_fp8_avx512_vbmi_panel(const GemmProblem& problem, const RunContext& context);

}  // namespace evergemm::cpu
