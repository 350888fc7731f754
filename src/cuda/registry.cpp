// SPDX-License-Identifier: Apache-2.0
// Rows to kernels: the table of launchable kernels, and run() for a CUDA device.
#include "cuda/registry.h"

#include <cuda_runtime.h>

#include <array>
#include <string>
#include <utility>

#include "cuda/device.h"
#include "cuda/quantize.h"
#include "cuda/sm90/instances.h"
#include "cuda/sm90/launch.h"
#include "plan/sm90.h"

namespace evergemm {
namespace {

using KernelOf = const void* (*)();

template <int... kTiles>
constexpr auto make_kernels(std::integer_sequence<int, kTiles...>) {
  return std::array<KernelOf, sizeof...(kTiles) + 1>{&sm90::simple_kernel, &sm90::kernel_of<kTiles>...};
}
constexpr auto kKernels =
    make_kernels(std::make_integer_sequence<int, static_cast<int>(plan_tables::kSm90Tiles.size())>());

// Checks what a caller of another architecture could get wrong: the kernels of this binary are sm_90a machine code.
Status check_architecture(const Plan& plan, const Device& device) {
  DeviceFacts facts;
  const Status status = cuda::device_facts(device.index, facts);
  if (!status.ok()) return status;
  if (facts.architecture != Architecture::sm90a)
    return Status(std::string(plan.name) + ": expected a device of architecture sm90a; got " +
                  name(facts.architecture) + " (device " + std::to_string(device.index) +
                  "); fix: use CPU tensors, or a device of that architecture.");
  return Status();
}

template <class Problem, class Launch>
Status run_on_device(const Plan& plan, const Problem& problem, Launch launch) {
  const cuda::DeviceGuard guard(problem.device.index);
  if (guard.error() != cudaSuccess)
    return cuda::cuda_failure(plan.name, "device " + std::to_string(problem.device.index), guard.error());
  const Status status = check_architecture(plan, problem.device);
  return status.ok() ? launch() : status;
}

}  // namespace

Status run_cuda(const Plan& plan, const GemmProblem& problem, const RunContext& context) {
  if (plan.row < 0) return Status();  // an empty result
  return run_on_device(plan, problem, [&] {
    return sm90::launch(plan, problem, kKernels[static_cast<std::size_t>(plan.row)](),
                        static_cast<cudaStream_t>(context.stream), context.overlap);
  });
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
