// SPDX-License-Identifier: Apache-2.0
// Launches of the portable rows: parameters, function attributes set once per device.
#include "cuda/portable/launch.h"

#include <cstddef>
#include <string>

#include "cuda/portable/instances.h"
#include "cuda/portable/parameters.h"

namespace evergemm::portable {
namespace {

using plan_tables::kPortableArchitectures;
using plan_tables::kPortableRows;
using plan_tables::MemoryClass;
using plan_tables::PortableTile;

std::string describe(const GemmProblem& problem) {
  return "m " + std::to_string(problem.m) + ", n " + std::to_string(problem.n) + ", k " + std::to_string(problem.k) +
         ", " + name(problem.input_dtype) + " to " + name(problem.output_dtype) + ", strides " +
         std::to_string(problem.a_stride) + ", " + std::to_string(problem.b_stride) + ", " +
         std::to_string(problem.out_stride) + ", scales " + name(problem.scale_a.mode) + " x " +
         name(problem.scale_b.mode);
}

// Overlapping a kernel with the one before it is for code that waits for that one: compiled for compute capability 9.0 or
// more, whatever the device is (older PTX may have been translated for it).
constexpr int kWaitsSince = 90;

cudaError_t prepare(const void* kernel, const PortableTile& tile, bool& overlaps) {
  cudaFuncAttributes attributes{};
  const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
  if (error != cudaSuccess) return error;
  overlaps = attributes.ptxVersion >= kWaitsSince;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, plan_tables::shared_memory_of(tile));
}

MemoryClass memory_class_of(Architecture architecture) {
  for (const plan_tables::PortableArchitecture& entry : kPortableArchitectures)
    if (entry.architecture == architecture) return entry.memory;
  return MemoryClass::small;
}

}  // namespace

Status launch(const char* name, const PortableTile& tile, Row& row, const GemmProblem& problem, cudaStream_t stream,
              bool overlap) {
  Row::Prepared& prepared = row.devices[static_cast<std::size_t>(problem.device.index)];
  std::call_once(prepared.once, [&] { prepared.error = prepare(row.kernel_of(), tile, prepared.overlaps); });
  if (prepared.error != cudaSuccess) return cuda::cuda_failure(name, describe(problem), prepared.error);

  Parameters p{};
  p.problem = problem;
  p.tiles_rows = static_cast<std::int32_t>((problem.m - 1) / tile.m + 1);  // why_not() has checked the ranges
  p.tiles_columns = static_cast<std::int32_t>((problem.n - 1) / tile.n + 1);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(p.tiles_rows * p.tiles_columns));
  config.blockDim = dim3(static_cast<unsigned>(plan_tables::threads_of(tile)));
  config.dynamicSmemBytes = static_cast<std::size_t>(plan_tables::shared_memory_of(tile));
  config.stream = stream;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = overlap && prepared.overlaps ? 1 : 0;
  void* arguments[] = {&p};
  const cudaError_t error = cudaLaunchKernelExC(&config, row.kernel_of(), arguments);
  return error == cudaSuccess ? Status() : cuda::cuda_failure(name, describe(problem), error);
}

Status launch(const Plan& plan, std::int32_t row, const GemmProblem& problem, cudaStream_t stream, bool overlap) {
  static std::array<std::array<Row, kPortableRows>, 3> rows;
  const MemoryClass memory = memory_class_of(plan.architecture);
  const std::size_t class_index = static_cast<std::size_t>(memory), row_index = static_cast<std::size_t>(row);
  Row& entry = rows[class_index][row_index];
  entry.kernel_of = kKernels[class_index][row_index];
  return launch(plan.name, plan_tables::portable_rows_of(memory)[row_index], entry, problem, stream, overlap);
}

}  // namespace evergemm::portable
