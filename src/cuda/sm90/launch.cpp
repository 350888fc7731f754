// SPDX-License-Identifier: Apache-2.0
// Launches of the Hopper rows: kernel parameters, which operand gets which tensor map, function attributes set once per device.
#include "cuda/sm90/launch.h"

#include <algorithm>
#include <array>
#include <mutex>
#include <string>

#include "cuda/device.h"
#include "cuda/sm90/instances.h"
#include "cuda/sm90/parameters.h"
#include "cuda/sm90/tensor_map.h"
#include "plan/sm90.h"
#include "plan/tile_geometry.h"

namespace evergemm::sm90 {
namespace {

using plan_tables::Geometry;
using plan_tables::kSm90Rows;
using plan_tables::kSm90Tiles;
using plan_tables::Mainloop;
using plan_tables::TileConfig;

std::string describe(const GemmProblem& problem) {
  return "m " + std::to_string(problem.m) + ", n " + std::to_string(problem.n) + ", k " + std::to_string(problem.k) +
         ", " + name(problem.input_dtype) + " to " + name(problem.output_dtype) + ", strides " +
         std::to_string(problem.a_stride) + ", " + std::to_string(problem.b_stride) + ", " +
         std::to_string(problem.out_stride) + ", scales " + name(problem.scale_a.mode) + " x " +
         name(problem.scale_b.mode);
}

// ---- function attributes, once per device ------------------------------------------------------------------------------

struct Prepared {
  std::once_flag once;
  cudaError_t error = cudaSuccess;
  std::int32_t resident_clusters = 0;  // how many clusters of this row the device holds at a time
};

cudaError_t prepare(const void* kernel, const TileConfig& tile, std::int32_t multiprocessors, std::int32_t& resident) {
  const Geometry geometry = plan_tables::geometry(tile);
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, geometry.total_bytes);
  if (error != cudaSuccess) return error;
  resident = multiprocessors / geometry.cluster_size;
  if (geometry.cluster_size == 1) return cudaSuccess;
  // Clusters stand inside one GPC, and GPCs differ in size: ask.
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(resident * geometry.cluster_size));
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
  // Small tiles fit a multiprocessor more than once; a split k wants that, for its tiles are few.
  resident = tile.split_k > 1 ? clusters : std::min(clusters, resident);
  return error == cudaSuccess && resident < 1 ? cudaErrorInvalidConfiguration : error;
}

cudaError_t prepared_row(const void* kernel, std::int32_t row, std::int32_t device, std::int32_t& resident) {
  static std::array<std::array<Prepared, kSm90Rows>, cuda::kMaxDevices> cache;
  Prepared& entry = cache[static_cast<std::size_t>(device)][static_cast<std::size_t>(row)];
  std::call_once(entry.once, [&entry, kernel, row, device] {
    DeviceFacts facts;
    if (!cuda::device_facts(device, facts).ok()) {
      entry.error = cudaErrorInvalidDevice;
      return;
    }
    entry.error = prepare(kernel, kSm90Tiles[static_cast<std::size_t>(row)], facts.cores, entry.resident_clusters);
  });
  resident = entry.resident_clusters;
  return entry.error;
}

// ---- the launches -------------------------------------------------------------------------------------------------------

OutputKind output_kind(DType type) {
  return type == DType::float32   ? OutputKind::float32
         : type == DType::float16 ? OutputKind::float16
                                  : OutputKind::bfloat16;
}

// An operand in slices of a tile's side, and in what is left of slices behind the last whole one: short_rows, in whole atoms of
// the swizzle (of slices that overlap, two may be cut: the longer). in_corners: a short box is wanted where nothing is left, too
// (gemm.cuh, produce_operands).
bool encode_operand(const Matrix& operand, std::int32_t side, std::int32_t slice, bool in_corners, CUtensorMap& map,
                    CUtensorMap& short_map, std::int32_t& short_rows) {
  constexpr std::int32_t kAtom = plan_tables::kSwizzleRows;
  const auto in_last_tile = static_cast<std::int32_t>(operand.outer % side);
  short_rows = 0;
  for (std::int32_t begin = 0, member = 0; begin < in_last_tile;
       begin = plan_tables::slice_begin(++member, slice, side)) {
    const std::int32_t left = in_last_tile - begin;
    if (left <= slice - kAtom) short_rows = std::max(short_rows, (left + kAtom - 1) / kAtom * kAtom);
    if (begin == side - slice) break;
  }
  if (short_rows == 0 && in_corners) short_rows = kAtom;
  if (short_rows > 0 && !encode(operand, plan_tables::kSwizzleBytes, short_rows, CU_TENSOR_MAP_SWIZZLE_128B, short_map))
    return false;
  if (operand.outer <= slice - kAtom) {  // no slice is whole: one map does
    map = short_map;
    return true;
  }
  return encode(operand, plan_tables::kSwizzleBytes, slice, CU_TENSOR_MAP_SWIZZLE_128B, map);
}

// False where the driver refuses a map.
bool fill_maps(const GemmProblem& problem, const TileConfig& tile, const Geometry& geometry, Parameters& p) {
  const Matrix a{problem.a, CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, problem.k, problem.m, problem.a_stride};
  const Matrix b{problem.b, CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, problem.k, problem.n, problem.b_stride};
  if (!encode_operand(tile.swap_ab ? b : a, tile.m, geometry.rows_slice, tile.cluster_m > 1 && tile.cluster_n > 1,
                      p.rows_map, p.short_rows_map, p.short_rows) ||
      !encode_operand(tile.swap_ab ? a : b, tile.n, geometry.columns_slice, false, p.columns_map, p.short_columns_map,
                      p.short_columns))
    return false;

  p.store_by_tma = 0;
  if (p.output == OutputKind::float32) {
    p.vector_store = reinterpret_cast<std::uintptr_t>(problem.out) % 8 == 0 && problem.out_stride % 2 == 0;
  } else {
    const Matrix out{problem.out, CU_TENSOR_MAP_DATA_TYPE_UINT16, 2, problem.n, problem.m, problem.out_stride};
    p.vector_store = reinterpret_cast<std::uintptr_t>(problem.out) % 16 == 0 && problem.out_stride % 8 == 0;
    p.store_by_tma =
        encode(out, geometry.output_box_inner, geometry.output_box_outer,
               geometry.output_box_inner == 64 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B, p.output_map);
  }

  p.scales_by_tma = 0;
  if (p.block_scales && (problem.scale_a.outer_stride == 1 || problem.m == 1)) {
    const Matrix scales{problem.scale_a.data,
                        CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
                        4,
                        problem.m,
                        (problem.k + kScaleBlock - 1) / kScaleBlock,
                        problem.scale_a.k_stride};
    p.scales_by_tma = encode(scales, geometry.tokens, 1, CU_TENSOR_MAP_SWIZZLE_NONE, p.scale_map);
  }
  return true;
}

}  // namespace

Status launch(const Plan& plan, const GemmProblem& problem, const void* kernel, cudaStream_t stream, bool overlap) {
  const TileConfig& tile = kSm90Tiles[static_cast<std::size_t>(plan.row)];
  const Geometry geometry = plan_tables::geometry(tile);
  std::int32_t resident = 0;
  cudaError_t error = prepared_row(kernel, plan.row, problem.device.index, resident);
  if (error != cudaSuccess) return cuda::cuda_failure(plan.name, describe(problem), error);

  Parameters p{};
  p.m = static_cast<std::int32_t>(problem.m);  // why_not() has checked the ranges
  p.n = static_cast<std::int32_t>(problem.n);
  p.k_blocks = static_cast<std::int32_t>((problem.k + tile.k - 1) / tile.k);
  const std::int64_t rows = tile.swap_ab ? problem.n : problem.m, columns = tile.swap_ab ? problem.m : problem.n;
  const std::int64_t tile_rows = std::int64_t{tile.m} * tile.cluster_m,
                     tile_columns = std::int64_t{tile.n} * tile.cluster_n;
  p.tiles_rows = static_cast<std::int32_t>((rows + tile_rows - 1) / tile_rows);
  p.tiles_columns = static_cast<std::int32_t>((columns + tile_columns - 1) / tile_columns);
  p.raster_group = 8;
  p.raster_along_rows = tile.swap_ab ? 0 : 1;  // panels run along the tokens either way
  p.scale_a = problem.scale_a.data;
  p.scale_a_stride = problem.scale_a.outer_stride;
  p.scale_a_k_stride = problem.scale_a.k_stride;
  p.scale_b = problem.scale_b.data;
  p.scale_b_stride = problem.scale_b.outer_stride;
  p.scale_b_k_stride = problem.scale_b.k_stride;
  p.bias = problem.bias;
  p.bias_stride = problem.bias_stride;
  p.azp_adj = problem.has_azp ? problem.azp_adj : nullptr;
  p.azp_adj_stride = problem.azp_adj_stride;
  p.azp = problem.azp;
  p.azp_stride = problem.azp_stride;
  p.out = problem.out;
  p.out_stride = problem.out_stride;
  p.output = output_kind(problem.output_dtype);
  p.block_scales = problem.blockwise();
  // Worth it where a next kernel's CTA fits beside this one's on a multiprocessor; else its CTAs come too late to gain by it.
  p.prefetch_weights = overlap && geometry.total_bytes <= plan_tables::kSm90SharedMemory / 2;
  // Few tokens: every column of tiles reads them again, weights hardly. No cluster: nothing is shared (gemm.cuh).
  p.stream_weights = problem.m <= 256 || geometry.cluster_size == 1;
  if (!fill_maps(problem, tile, geometry, p))
    return Status(std::string(plan.name) + ": expected the driver to take tensor maps for " + describe(problem) +
                  "; got a refusal; fix: check that the driver is at least 580; if it is, please report this line.");

  cudaLaunchConfig_t config{};
  const std::int32_t tiles = p.tiles_rows * p.tiles_columns;
  config.gridDim = dim3(static_cast<unsigned>(std::min(tiles, resident) * geometry.cluster_size));
  config.blockDim = dim3(static_cast<unsigned>(geometry.threads));
  config.dynamicSmemBytes = static_cast<std::size_t>(geometry.total_bytes);
  config.stream = stream;
  cudaLaunchAttribute attributes[2] = {};
  unsigned count = 0;
  if (overlap) {  // every role waits for the previous kernel's end before it reads or writes
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
  error = cudaLaunchKernelExC(&config, kernel, arguments);
  return error == cudaSuccess ? Status() : cuda::cuda_failure(plan.name, describe(problem), error);
}

}  // namespace evergemm::sm90
