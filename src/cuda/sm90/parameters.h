// SPDX-License-Identifier: Apache-2.0
// What a launch hands to a tensor-core kernel: everything that is a run-time value, in one struct passed by value (a grouped
// product: two of them, one inside the other).
// Must not go here: tile sizes (tile_geometry.h), anything that only the host needs.
#pragma once
#include <cuda.h>

#include <cstdint>

#include "evergemm/moe.h"

namespace evergemm::sm90 {

enum class OutputKind : std::int32_t { bfloat16 = 0, float16 = 1, float32 = 2 };

struct Parameters {
  CUtensorMap rows_map;     // operand on wgmma's M side, [rows, k], k contiguous: tokens, or weights where swapped
  CUtensorMap columns_map;  // operand on wgmma's N side, [columns, k]
  CUtensorMap short_rows_map, short_columns_map;  // the same with boxes of short_rows, short_columns: see there
  CUtensorMap output_map;                         // out [m, n]; read only where store_by_tma
  CUtensorMap scale_map;  // block scales of the tokens as [k / 128, m], m contiguous; read only where scales_by_tma

  // What is left of an operand behind its last whole slice comes in a box of its own (0: there is none; a slice that lacks less
  // than 8 rows comes whole, and in clusters of four rows always have a short box: produce_operands). Where a box reaches past the
  // edge, the copy engine writes zeros, at 3,000 to 3,800 rows of 128 bytes a microsecond on an H100, all multiprocessors together:
  // tiles that are mostly past the edge would hold up all others.
  std::int32_t short_rows, short_columns;
  std::int32_t m, n;
  std::int32_t k_blocks;                   // stages' worth of k, the last one perhaps padded with zeros
  std::int32_t tiles_rows, tiles_columns;  // in tiles of a whole cluster
  std::int32_t raster_group;               // tiles are walked in panels this wide ...
  std::int32_t raster_along_rows;          // ... along the rows, or along the columns

  const float* scale_a;  // [m] or one value; block scales: [m, k / 128]
  std::int64_t scale_a_stride, scale_a_k_stride;
  const float* scale_b;  // [n] or one value; block scales: [n / 128, k / 128]
  std::int64_t scale_b_stride, scale_b_k_stride;
  const void* bias;  // [n] of the output type, or null
  std::int64_t bias_stride;
  const std::int32_t* azp_adj;  // [n], or null: no zero points
  std::int64_t azp_adj_stride;
  const std::int32_t* azp;  // [m], or null: 1 for every token
  std::int64_t azp_stride;
  void* out;  // [m, n]
  std::int64_t out_stride;

  OutputKind output;
  std::int32_t block_scales;      // scale_a and scale_b are block scales, applied to each 128 of k
  std::int32_t scales_by_tma;     // block_scales: the copy engine can read scale_a's layout
  std::int32_t store_by_tma;      // 16-bit output whose pitch and base the copy engine takes
  std::int32_t vector_store;      // 16-byte (16-bit output) or 8-byte (fp32 output) stores are aligned
  std::int32_t prefetch_weights;  // while the kernel before this one ends, bring the first weights into L2
  std::int32_t stream_weights;    // weights are read evict_first
};

// A grouped product: the maps have a third dimension, of experts. rows_map or columns_map, whichever is the weights', is
// [experts, n, k]; tokens, output and token scales have a plane an expert where the form is masked, and one plane otherwise.
// m is the rows of a plane; tiles_rows and tiles_columns are counted on the device.
struct GroupedParameters : Parameters {
  GroupedGemmProblem problem;
  std::int32_t tiles_features;  // in tiles of a whole cluster
  // Before the kernel before this one has finished: what launch_grouped.h calls early. choices: its ids are null where the
  // offsets of `problem`, int32 without gaps, are there already.
  std::int32_t early;
  MoeRouteProblem choices;
};

}  // namespace evergemm::sm90
