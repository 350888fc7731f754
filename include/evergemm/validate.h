// SPDX-License-Identifier: Apache-2.0
// The one validator: tensors as they were given -> a Problem that kernels may trust, or one sentence that says what was
// expected, what came, and what to do. Every rule is checked in signature order; the first that fails is reported.
// Public: a C++ program builds its problems with it as the torch operators do.
#pragma once
#include "evergemm/error.h"
#include "evergemm/linear.h"
#include "evergemm/moe.h"
#include "evergemm/problem.h"

namespace evergemm {

// Where `arguments.out` (or q, scale, azp) is not given, the problem's output pointers stay null and its strides are those
// of a fresh contiguous result: the caller allocates and fills them in.
Status validate(const ScaledMmArguments& arguments, GemmProblem& problem);
Status validate(const QuantizeArguments& arguments, QuantizeProblem& problem);
Status validate(const PermuteArguments& arguments, PermuteProblem& problem);
Status validate(const LinearArguments& arguments, LinearProblem& problem);
Status validate(const MoeRouteArguments& arguments, MoeRouteProblem& problem);
Status validate(const GroupedMmArguments& arguments, GroupedGemmProblem& problem);
Status validate(const MoeGatherQuantizeArguments& arguments, MoeGatherQuantizeProblem& problem);
Status validate(const MoeCombineArguments& arguments, MoeCombineProblem& problem);
Status validate(const FusedMoeArguments& arguments, FusedMoeProblem& problem);
Status validate(const MoeDataArguments& arguments, MoeDataProblem& problem);

}  // namespace evergemm
