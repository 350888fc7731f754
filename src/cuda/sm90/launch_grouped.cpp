// SPDX-License-Identifier: Apache-2.0
// Launches of the grouped Hopper rows: tensor maps over all experts, kernel parameters, function attributes set once per
// device. Nothing is read from the device here: offsets and counts stay where they are.
#include "cuda/sm90/launch_grouped.h"

#include <algorithm>
#include <array>
#include <mutex>
#include <string>
#include <utility>

#include "cuda/device.h"
#include "cuda/sm90/instances.h"
#include "cuda/sm90/parameters.h"
#include "cuda/sm90/tensor_map.h"
#include "plan/sm90_grouped.h"
#include "plan/tile_geometry.h"

namespace evergemm::sm90 {
namespace {

using plan_tables::Geometry;
using plan_tables::kSm90GroupedRows;
using plan_tables::kSm90GroupedTiles;
using plan_tables::TileConfig;

using KernelOf = const void* (*)();
template <int... kTiles>
constexpr auto make_kernels(std::integer_sequence<int, kTiles...>) {
  return std::array<KernelOf, sizeof...(kTiles)>{&grouped_kernel_of<kTiles>...};
}
constexpr auto kKernels = make_kernels(std::make_integer_sequence<int, static_cast<int>(kSm90GroupedTiles.size())>());

std::string describe(const GroupedGemmProblem& problem) {
  return "experts " + std::to_string(problem.experts) + ", rows " + std::to_string(problem.rows) + ", n " +
         std::to_string(problem.n) + ", k " + std::to_string(problem.k) + ", " + name(problem.input_dtype) + " to " +
         name(problem.output_dtype) + ", scales " + name(problem.scale_a.mode) + " x " + name(problem.scale_b.mode);
}

struct Prepared {
  std::once_flag once;
  cudaError_t error = cudaSuccess;
  std::int32_t resident_clusters = 0;  // how many clusters of this row the device holds at a time
};

cudaError_t prepare(const void* kernel, const TileConfig& tile, std::int32_t multiprocessors, std::int32_t& resident) {
  const Geometry geometry = plan_tables::geometry(tile);
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, geometry.total_bytes);
  if (error != cudaSuccess) return error;
  if (geometry.cluster_size == 1) {
    int blocks = 0;
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, geometry.threads,
                                                          static_cast<std::size_t>(geometry.total_bytes));
    resident = multiprocessors * std::max(blocks, 1);
    return error;
  }
  // Clusters stand inside one GPC, and GPCs differ in size: ask.
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(multiprocessors / geometry.cluster_size * geometry.cluster_size));
  config.blockDim = dim3(static_cast<unsigned>(geometry.threads));
  config.dynamicSmemBytes = static_cast<std::size_t>(geometry.total_bytes);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(geometry.cluster_size);
  attribute.val.clusterDim.y = 1;
  attribute.val.clusterDim.z = 1;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = 0;
  error = cudaOccupancyMaxActiveClusters(&clusters, kernel, &config);
  resident = clusters;
  return error == cudaSuccess && resident < 1 ? cudaErrorInvalidConfiguration : error;
}

cudaError_t prepared_row(const void* kernel, std::int32_t row, std::int32_t device, std::int32_t& resident) {
  static std::array<std::array<Prepared, kSm90GroupedRows>, cuda::kMaxDevices> cache;
  Prepared& entry = cache[static_cast<std::size_t>(device)][static_cast<std::size_t>(row)];
  std::call_once(entry.once, [&entry, kernel, row, device] {
    DeviceFacts facts;
    if (!cuda::device_facts(device, facts).ok()) {
      entry.error = cudaErrorInvalidDevice;
      return;
    }
    entry.error =
        prepare(kernel, kSm90GroupedTiles[static_cast<std::size_t>(row)], facts.cores, entry.resident_clusters);
  });
  resident = entry.resident_clusters;
  return entry.error;
}

Status launched(const Plan& plan, const GroupedGemmProblem& problem, cudaError_t error) {
  return error == cudaSuccess ? Status() : cuda::cuda_failure(plan.name, describe(problem), error);
}

// False where the driver refuses a map.
bool fill_maps(const GroupedGemmProblem& problem, const TileConfig& tile, const Geometry& geometry,
               GroupedParameters& p) {
  const std::int64_t planes = problem.form == GroupedForm::masked ? problem.experts : 1;
  const Matrix a{problem.a, CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, problem.k, problem.rows, problem.a_stride,
                 planes,    problem.a_expert_stride};
  const Matrix b{problem.b,       CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, problem.k, problem.n, problem.b_stride,
                 problem.experts, problem.b_expert_stride};
  if (!encode(a, plan_tables::kSwizzleBytes, geometry.token_box, CU_TENSOR_MAP_SWIZZLE_128B,
              tile.swap_ab ? p.columns_map : p.rows_map) ||
      !encode(b, plan_tables::kSwizzleBytes, tile.swap_ab ? geometry.rows_slice : tile.n, CU_TENSOR_MAP_SWIZZLE_128B,
              tile.swap_ab ? p.rows_map : p.columns_map))
    return false;

  p.store_by_tma = 0;
  if (p.output == OutputKind::float32) {
    p.vector_store = reinterpret_cast<std::uintptr_t>(problem.out) % 8 == 0 && problem.out_stride % 2 == 0 &&
                     problem.out_expert_stride % 2 == 0;
  } else {
    const Matrix out{problem.out, CU_TENSOR_MAP_DATA_TYPE_UINT16, 2, problem.n, problem.rows, problem.out_stride,
                     planes,      problem.out_expert_stride};
    p.vector_store = reinterpret_cast<std::uintptr_t>(problem.out) % 16 == 0 && problem.out_stride % 8 == 0 &&
                     problem.out_expert_stride % 8 == 0;
    p.store_by_tma =
        encode(out, geometry.output_box_inner, geometry.output_box_outer,
               geometry.output_box_inner == 64 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B, p.output_map);
  }

  p.scales_by_tma = 0;
  if (p.block_scales && (problem.scale_a.outer_stride == 1 || problem.rows == 1)) {
    const Matrix scales{problem.scale_a.data,
                        CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
                        4,
                        problem.rows,
                        (problem.k + kScaleBlock - 1) / kScaleBlock,
                        problem.scale_a.k_stride,
                        planes,
                        problem.scale_a_expert_stride};
    p.scales_by_tma = encode(scales, geometry.scale_box, 1, CU_TENSOR_MAP_SWIZZLE_NONE, p.scale_map);
  }
  return true;
}

}  // namespace

Status launch_grouped(const Plan& plan, const GroupedGemmProblem& problem, void*, cudaStream_t stream, bool overlap,
                      const EarlyOperands& early) {
  const TileConfig& tile = kSm90GroupedTiles[static_cast<std::size_t>(plan.row)];
  const Geometry geometry = plan_tables::geometry(tile);
  const void* kernel = kKernels[static_cast<std::size_t>(plan.row)]();
  std::int32_t resident = 0;
  const cudaError_t error = prepared_row(kernel, plan.row, problem.device.index, resident);
  if (error != cudaSuccess) return launched(plan, problem, error);

  GroupedParameters p{};
  p.problem = problem;
  p.m = static_cast<std::int32_t>(problem.rows);  // grouped_why_not_sm90() has checked the ranges
  p.n = static_cast<std::int32_t>(problem.n);
  p.k_blocks = static_cast<std::int32_t>((problem.k + tile.k - 1) / tile.k);
  const std::int64_t features = tile.swap_ab ? tile.m * tile.cluster_m : tile.n * tile.cluster_n;
  p.tiles_features = static_cast<std::int32_t>((problem.n + features - 1) / features);
  p.raster_group = 8;
  p.scale_a = problem.scale_a.data;
  p.scale_a_stride = problem.scale_a.outer_stride;
  p.scale_a_k_stride = problem.scale_a.k_stride;
  p.scale_b = problem.scale_b.data;
  p.scale_b_stride = problem.scale_b.outer_stride;
  p.scale_b_k_stride = problem.scale_b.k_stride;
  p.out = problem.out;
  p.out_stride = problem.out_stride;
  p.output = problem.output_dtype == DType::float32   ? OutputKind::float32
             : problem.output_dtype == DType::float16 ? OutputKind::float16
                                                      : OutputKind::bfloat16;
  p.block_scales = problem.blockwise();
  p.early = early.weights;
  if (early.choices != nullptr) p.choices = *early.choices;
  if (!fill_maps(problem, tile, geometry, p))
    return Status(std::string(plan.name) + ": expected the driver to take tensor maps for " + describe(problem) +
                  "; got a refusal; fix: check that the driver is at least 580; if it is, please report this line.");

  // No more CTAs than the most tiles that a routing could make: one row an expert, or rows that fill tiles.
  const std::int64_t full = (problem.rows - 1) / geometry.tokens + 1;
  const std::int64_t most =
      problem.form == GroupedForm::masked ? full * problem.experts : std::min(problem.rows, full + problem.experts);
  cudaLaunchConfig_t config{};
  const std::int64_t clusters = std::clamp<std::int64_t>(most * p.tiles_features, 1, resident);
  config.gridDim = dim3(static_cast<unsigned>(clusters * geometry.cluster_size));
  config.blockDim = dim3(static_cast<unsigned>(geometry.threads));
  config.dynamicSmemBytes = static_cast<std::size_t>(geometry.total_bytes);
  config.stream = stream;
  cudaLaunchAttribute attributes[2] = {};
  unsigned count = 0;
  if (overlap) {  // every role waits for the previous kernel's end before it reads (but for what is early) or writes
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (geometry.cluster_size > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = static_cast<unsigned>(geometry.cluster_size);
    attributes[count].val.clusterDim.y = 1;
    attributes[count++].val.clusterDim.z = 1;
  }
  config.attrs = attributes;
  config.numAttrs = count;
  void* arguments[] = {&p};
  return launched(plan, problem, cudaLaunchKernelExC(&config, kernel, arguments));
}

}  // namespace evergemm::sm90
