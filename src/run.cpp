// SPDX-License-Identifier: Apache-2.0
// plan + problem -> the backend that has the row. The last hop before device code; decides nothing.
#include "evergemm/run.h"

#include "cpu/registry.h"
#if defined(EVERGEMM_WITH_CUDA)
#include "cuda/registry.h"
#endif

namespace evergemm {

namespace {

template <class Problem>
Status dispatch(const Plan& plan, const Problem& problem, const RunContext& context) {
  if (plan.row < 0) return Status();  // an empty result: nothing to launch
  if (plan.architecture == Architecture::cpu) return cpu::run_cpu(plan, problem, context);
#if defined(EVERGEMM_WITH_CUDA)
  return run_cuda(plan, problem, context);
#else
  return Status(
      std::string("evergemm: expected a library with kernels for ") + name(plan.architecture) +
      "; got one built for the cpu only; fix: install a build with CUDA kernels (EVERGEMM_ARCHS=all), or move the "
      "tensors to the cpu.");
#endif
}

}  // namespace

Status run(const Plan& plan, const GemmProblem& problem, const RunContext& context) {
  return dispatch(plan, problem, context);
}
Status run(const Plan& plan, const QuantizeProblem& problem, const RunContext& context) {
  return dispatch(plan, problem, context);
}
Status run(const Plan& plan, const PermuteProblem& problem, const RunContext& context) {
  return dispatch(plan, problem, context);
}
Status run(const Plan& plan, const LinearProblem& problem, const RunContext& context) {
  if (plan.row < 0) return Status();
  LinearProblem placed = problem;
  RunContext of_product = context;
  of_product.workspace = static_cast<char*>(context.workspace) + place(placed, context.workspace);
  Plan of_quantizer = plan;
  of_quantizer.row = plan.quantizer_row;
  const Status status = dispatch(of_quantizer, placed.quantize, context);
  return status.ok() ? dispatch(plan, placed.product, of_product) : status;
}
Status run(const Plan& plan, const MoeRouteProblem& problem, const RunContext& context) {
  return dispatch(plan, problem, context);
}
Status run(const Plan& plan, const GroupedGemmProblem& problem, const RunContext& context) {
  return dispatch(plan, problem, context);
}
Status run(const Plan& plan, const MoeGatherQuantizeProblem& problem, const RunContext& context) {
  return dispatch(plan, problem, context);
}
Status run(const Plan& plan, const MoeCombineProblem& problem, const RunContext& context) {
  return dispatch(plan, problem, context);
}
Status run(const Plan& plan, const FusedMoeProblem& problem, const RunContext& context) {
  return dispatch(plan, problem, context);
}
Status run(const Plan& plan, const MoeDataProblem& problem, const RunContext& context) {
  return dispatch(plan, problem, context);
}

}  // namespace evergemm
