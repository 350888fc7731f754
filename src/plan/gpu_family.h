// SPDX-License-Identifier: Apache-2.0
// What both families of GPU kernels, Hopper's and the portable one, read from a problem alike, and the words they use for it.
// Must not go here: rows, limits, choices.
#pragma once
#include "evergemm/moe.h"
#include "evergemm/plan.h"
#include "evergemm/problem.h"
#include "plan/tile_config.h"

namespace evergemm::plan_tables {

// Problem: GemmProblem or GroupedGemmProblem.
template <class Problem>
Mainloop mainloop_of(const Problem& problem) {
  if (problem.input_dtype == DType::int8) return Mainloop::int8;
  return problem.blockwise() || !problem.fast_accumulation ? Mainloop::fp8_promoted : Mainloop::fp8_fast;
}

// Whether k must not be split: fp8's sums depend on it, int8's are exact.
inline bool asks_for_one_order(const GemmProblem& problem) {
  return problem.deterministic && problem.input_dtype != DType::int8;
}

inline Accumulation accumulation_of(Mainloop mainloop) {
  return mainloop == Mainloop::int8       ? Accumulation::exact_int32
         : mainloop == Mainloop::fp8_fast ? Accumulation::fast
                                          : Accumulation::promoted;
}

inline const char* text_of(Mainloop mainloop) {
  return mainloop == Mainloop::int8       ? "int8"
         : mainloop == Mainloop::fp8_fast ? "float8_e4m3fn, summed in the tensor core for all of k"
                                          : "float8_e4m3fn, promoted to fp32 every 128 of k";
}

inline const char* operator_of(GroupedForm form) {
  return form == GroupedForm::ragged   ? "grouped_scaled_mm"
         : form == GroupedForm::masked ? "grouped_scaled_mm_masked"
                                       : "cutlass_moe_mm";
}

}  // namespace evergemm::plan_tables
