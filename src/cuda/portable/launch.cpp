// SPDX-License-Identifier: Apache-2.0
// Launches of the portable rows: parameters, function attributes set once per device.
#include "cuda/portable/launch.h"

#include <algorithm>
#include <cstddef>
#include <string>

#include "cuda/portable/grouped_schedule.h"
#include "cuda/portable/instances.h"
#include "cuda/portable/parameters.h"
#include "plan/portable_grouped.h"

namespace evergemm::portable {
namespace {

using plan_tables::kPortableRows;
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

cudaError_t prepare(const void* kernel, const PortableTile& tile, std::int32_t device, Row::Prepared& prepared) {
  cudaFuncAttributes attributes{};
  cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
  if (error != cudaSuccess) return error;
  prepared.overlaps = attributes.ptxVersion >= kWaitsSince;
  const int shared_memory = plan_tables::shared_memory_of(tile);
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_memory);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&prepared.multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  int each = 0;
  error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, plan_tables::threads_of(tile),
                                                        static_cast<std::size_t>(shared_memory));
  prepared.resident = each * prepared.multiprocessors;
  return error == cudaSuccess && each < 1 ? cudaErrorInvalidConfiguration : error;
}

Row::Prepared& prepared_row(const PortableTile& tile, Row& row, const Device& device) {
  Row::Prepared& prepared = row.devices[static_cast<std::size_t>(device.index)];
  std::call_once(prepared.once, [&] { prepared.error = prepare(row.kernel_of(), tile, device.index, prepared); });
  return prepared;
}

// Enqueues `blocks` x `parts` blocks of a kernel of that tile with one argument.
cudaError_t launch_blocks(const void* kernel, const PortableTile& tile, std::int32_t shared_memory, std::int64_t blocks,
                          std::int32_t parts, void* argument, cudaStream_t stream, bool overlap) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(parts));
  config.blockDim = dim3(static_cast<unsigned>(plan_tables::threads_of(tile)));
  config.dynamicSmemBytes = static_cast<std::size_t>(shared_memory);
  config.stream = stream;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = overlap ? 1 : 0;
  void* arguments[] = {argument};
  return cudaLaunchKernelExC(&config, kernel, arguments);
}

std::string describe(const GroupedGemmProblem& problem) {
  return std::to_string(problem.experts) + " experts, " + std::to_string(problem.rows) + " rows, n " +
         std::to_string(problem.n) + ", k " + std::to_string(problem.k) + ", " + name(problem.input_dtype) + " to " +
         name(problem.output_dtype) + ", form " + std::to_string(static_cast<int>(problem.form));
}

std::size_t memory_class_of(Architecture architecture) {
  return static_cast<std::size_t>(plan_tables::entry_of(architecture).memory);
}
const PortableTile& tile_of(std::size_t memory, std::size_t row) {
  return plan_tables::portable_rows_of(static_cast<plan_tables::MemoryClass>(memory))[row];
}

}  // namespace

Status launch(const char* name, const PortableTile& tile, Row& row, const GemmProblem& problem, std::int32_t parts,
              void* workspace, cudaStream_t stream, bool overlap) {
  const Row::Prepared& prepared = prepared_row(tile, row, problem.device);
  if (prepared.error != cudaSuccess) return cuda::cuda_failure(name, describe(problem), prepared.error);
  Parameters p{};
  p.problem = problem;
  p.tiles_rows = static_cast<std::int32_t>((problem.m - 1) / tile.m + 1);  // why_not() has checked the ranges
  p.tiles_columns = static_cast<std::int32_t>((problem.n - 1) / tile.n + 1);
  p.parts = parts;
  p.blocks_of_part = static_cast<std::int32_t>(plan_tables::blocks_of_part(problem.k, parts));
  p.partial = workspace;
  const std::int64_t tiles = std::int64_t{p.tiles_rows} * p.tiles_columns;
  // Where multiprocessors have more than a block each, the next kernel's first blocks would only stand in the way of these.
  const bool one_wave = tiles * parts <= prepared.multiprocessors;
  cudaError_t error = launch_blocks(row.kernel_of(), tile, plan_tables::shared_memory_of(tile), tiles, parts, &p,
                                    stream, overlap && prepared.overlaps && one_wave);
  if (error == cudaSuccess && parts > 1)
    error = launch_blocks(row.sum_kernel_of(), tile, 0, tiles, 1, &p, stream, prepared.overlaps);
  return error == cudaSuccess ? Status() : cuda::cuda_failure(name, describe(problem), error);
}

Status launch_grouped(const char* name, const PortableTile& tile, Row& row, const GroupedGemmProblem& problem,
                      void* workspace, cudaStream_t stream, bool overlap) {
  const Row::Prepared& prepared = prepared_row(tile, row, problem.device);
  if (prepared.error != cudaSuccess) return cuda::cuda_failure(name, describe(problem), prepared.error);
  plan_tables::GroupedWorkspace layout;
  if (problem.rows == 0 || problem.n == 0 || !plan_tables::grouped_workspace(problem, tile.m, layout)) return Status();
  static_assert(sizeof(RowTile) == 8);
  char* const base = static_cast<char*>(workspace);
  GroupedParameters p{};
  p.problem = problem;
  p.schedule.shares = reinterpret_cast<ExpertShare*>(base);
  p.schedule.row_tile_count = reinterpret_cast<std::int64_t*>(base + layout.at_count);
  p.schedule.row_tiles = reinterpret_cast<RowTile*>(base + layout.at_tiles);
  p.schedule.row_tile_limit = layout.row_tile_limit;
  p.schedule.tile_m = tile.m;
  p.tiles_columns = static_cast<std::int32_t>((problem.n - 1) / tile.n + 1);
  const bool overlaps = overlap && prepared.overlaps;
  cudaError_t error = launch_schedule(problem, p.schedule, stream, overlaps);
  if (error == cudaSuccess && problem.clear_unowned)
    error = launch_clear(problem, p.schedule, prepared.multiprocessors, stream, overlaps);
  if (error == cudaSuccess)
    error = launch_blocks(row.kernel_of(), tile, plan_tables::shared_memory_of(tile),
                          std::clamp<std::int64_t>(layout.row_tile_limit * p.tiles_columns, 1, prepared.resident), 1,
                          &p, stream, overlaps);
  return error == cudaSuccess ? Status() : cuda::cuda_failure(name, describe(problem), error);
}

namespace {

using RowTable = std::array<std::array<Row, kPortableRows>, 3>;

bool fill(RowTable& rows, const Kernels& kernels, const Kernels* sums) {
  for (std::size_t memory = 0; memory < rows.size(); ++memory)
    for (std::size_t row = 0; row < kPortableRows; ++row) {
      rows[memory][row].kernel_of = kernels[memory][row];
      if (sums != nullptr) rows[memory][row].sum_kernel_of = (*sums)[memory][row];
    }
  return true;
}

}  // namespace

Status launch(const Plan& plan, std::int32_t row, const GemmProblem& problem, void* workspace, cudaStream_t stream,
              bool overlap) {
  static RowTable rows;
  [[maybe_unused]] static const bool filled = fill(rows, kKernels, &kSumKernels);
  const std::size_t memory = memory_class_of(plan.architecture), index = static_cast<std::size_t>(row);
  return launch(plan.name, tile_of(memory, index), rows[memory][index], problem, plan.split_k, workspace, stream,
                overlap);
}

Status launch_grouped(const Plan& plan, std::int32_t row, const GroupedGemmProblem& problem, void* workspace,
                      cudaStream_t stream, bool overlap) {
  static RowTable rows;
  [[maybe_unused]] static const bool filled = fill(rows, kGroupedKernels, nullptr);
  const std::size_t memory = memory_class_of(plan.architecture), index = static_cast<std::size_t>(row);
  return launch_grouped(plan.name, tile_of(memory, index), rows[memory][index], problem, workspace, stream, overlap);
}

}  // namespace evergemm::portable
