// SPDX-License-Identifier: Apache-2.0
// Rows to kernels: the table of launchable kernels, and run() for a CUDA device.
#include "cuda/registry.h"

#include <cuda_runtime.h>

#include <array>
#include <string>
#include <utility>

#include "cuda/device.h"
#include "cuda/portable/launch.h"
#include "cuda/quantize.h"
#if defined(EVERGEMM_WITH_SM90)
#include "cuda/sm90/instances.h"
#include "cuda/sm90/launch.h"
#endif
#include "plan/sm90.h"

namespace evergemm {
namespace {

#if defined(EVERGEMM_WITH_SM90)
using KernelOf = const void* (*)();

template <int... kTiles>
constexpr auto make_kernels(std::integer_sequence<int, kTiles...>) {
  return std::array<KernelOf, sizeof...(kTiles)>{&sm90::kernel_of<kTiles>...};
}
constexpr auto kKernels =
    make_kernels(std::make_integer_sequence<int, static_cast<int>(plan_tables::kSm90Tiles.size())>());
#endif

Status launch_row(const Plan& plan, const GemmProblem& problem, const RunContext& context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const std::int32_t hopper_rows = plan.architecture == Architecture::sm90a ? plan_tables::kSm90Rows : 0;
#if defined(EVERGEMM_WITH_SM90)
  if (plan.row < hopper_rows)
    return sm90::launch(plan, problem, kKernels[static_cast<std::size_t>(plan.row)](), stream, context.overlap);
#endif
  return portable::launch(plan, plan.row - hopper_rows, problem, context.workspace, stream, context.overlap);
}

template <class Problem, class Launch>
Status run_on_device(const Plan& plan, const Problem& problem, Launch launch) {
  const cuda::DeviceGuard guard(problem.device.index);
  if (guard.error() != cudaSuccess)
    return cuda::cuda_failure(plan.name, "device " + std::to_string(problem.device.index), guard.error());
  const Status status = cuda::check_plan(plan, problem.device);
  return status.ok() ? launch() : status;
}

}  // namespace

Status run_cuda(const Plan& plan, const GemmProblem& problem, const RunContext& context) {
  if (plan.row < 0) return Status();  // an empty result
  return run_on_device(plan, problem, [&] { return launch_row(plan, problem, context); });
}

Status run_cuda(const Plan& plan, const QuantizeProblem& problem, const RunContext& context) {
  return run_on_device(plan, problem,
                       [&] { return cuda::quantize(problem, static_cast<cudaStream_t>(context.stream)); });
}

Status run_cuda(const Plan& plan, const PermuteProblem& problem, const RunContext& context) {
  return run_on_device(plan, problem,
                       [&] { return cuda::permute(problem, static_cast<cudaStream_t>(context.stream)); });
}

Status cuda_facts(std::int32_t device, DeviceFacts& facts) { return cuda::device_facts(device, facts); }

}  // namespace evergemm
