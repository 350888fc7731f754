// SPDX-License-Identifier: Apache-2.0
// What a launch hands to a portable kernel: the problem and how its tiles are walked, passed by value.
// Must not go here: tile sizes (plan/portable.h), anything that only the host needs.
#pragma once
#include <cstdint>

#include "evergemm/moe.h"
#include "evergemm/moe_index.h"
#include "evergemm/problem.h"

namespace evergemm::portable {

struct Parameters {
  GemmProblem problem;
  std::int32_t tiles_rows, tiles_columns;
  std::int32_t parts;           // of k, each a block of the grid's second dimension
  std::int32_t blocks_of_part;  // of 128 of k
  void* partial;                // sums of the parts, where there are several
};

// Tiles of rows that one expert owns, found on the device: nobody else knows how many rows an expert has.
struct RowTile {
  std::int32_t expert, tile;  // the tile'th of that expert
};
struct Schedule {
  ExpertShare* shares;  // [experts]
  RowTile* row_tiles;   // [*row_tile_count] of at most row_tile_limit
  std::int64_t* row_tile_count;
  std::int64_t row_tile_limit;
  std::int32_t tile_m;
};
struct GroupedParameters {
  GroupedGemmProblem problem;
  Schedule schedule;
  std::int32_t tiles_columns;
};

// Row tiles that are walked together, so that the blocks at work share operands in L2.
inline constexpr std::int32_t kRasterGroup = 8;

}  // namespace evergemm::portable
