// SPDX-License-Identifier: Apache-2.0
// One expert's product as a dense problem, on the device: what problem_of() of moe_index.h is for hosts.
// Must not go here: reading of offsets and counts (moe_index.h).
#pragma once
#include "evergemm/moe_index.h"

namespace evergemm::sm90 {

__device__ __forceinline__ GemmProblem expert_problem(const GroupedGemmProblem& problem, std::int64_t expert,
                                                      const ExpertShare& share) {
  GemmProblem dense;
  dense.m = share.rows;
  dense.n = problem.n;
  dense.k = problem.k;
  dense.input_dtype = problem.input_dtype;
  dense.output_dtype = problem.output_dtype;
  dense.a = static_cast<const char*>(problem.a) + share.a_begin;
  dense.a_stride = share.a_stride;
  dense.b = static_cast<const char*>(problem.b) + share.b_begin;
  dense.b_stride = share.b_stride;
  dense.out = static_cast<char*>(problem.out) + share.out_begin * (problem.output_dtype == DType::float32 ? 4 : 2);
  dense.out_stride = share.out_stride;
  dense.scale_a = problem.scale_a;
  dense.scale_a.data += expert * problem.scale_a_expert_stride + share.first_row * problem.scale_a.outer_stride;
  dense.scale_b = problem.scale_b;
  dense.scale_b.data += expert * problem.scale_b_expert_stride;
  return dense;
}

}  // namespace evergemm::sm90
