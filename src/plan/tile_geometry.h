// SPDX-License-Identifier: Apache-2.0
// What a TileConfig implies: threads, shared memory map, box sizes of the tensor maps. One constexpr function, read by the
// kernel at compile time, by planner and launcher at run time, so that they cannot disagree.
// Must not go here: CUDA calls, problem sizes.
#pragma once
#include <cstdint>
#include <numeric>

#include "evergemm/numerics.h"
#include "plan/tile_config.h"

namespace evergemm::plan_tables {

inline constexpr std::int32_t kSm90SharedMemory = 232448;  // bytes a block of compute capability 9.0 may ask for
inline constexpr std::int32_t kSlabRows = 64;              // rows of one wgmma
inline constexpr std::int32_t kSwizzleBytes = 128;         // bytes of k in one TMA box: the widest swizzle
inline constexpr std::int32_t kSwizzleRows = 8;            // rows after which its pattern repeats
inline constexpr std::int32_t kLeastStagingBuffers = 2;    // output chunks of a warpgroup under way at the same time
inline constexpr std::int32_t kMostExperts = 512;          // that a grouped tile's table of experts holds
inline constexpr std::int32_t kExpertBytes = 16;           // of an entry of that table
inline constexpr std::int32_t kTableHeaderBytes = 128;     // before its entries

struct Geometry {
  std::int32_t consumer_warpgroups, threads, slabs;  // slabs: m64 pieces of a warpgroup's share of a tile
  std::int32_t k_steps;                              // 128-byte steps of k in a stage
  std::int32_t cluster_size;
  std::int32_t rows_bytes, columns_bytes;  // of a stage: the operand on the M side, the operand on the N side
  std::int32_t tokens;                     // tokens in a tile
  std::int32_t rows_slice,
      columns_slice;       // of an operand's tile: what a CTA of a cluster fetches for all that share it (slice_begin)
  std::int32_t token_box;  // tokens of one copy: a grouped, swapped tile copies what it has
  std::int32_t scale_box, scale_copies;  // block scales of a stage: values of a copy, copies 128 tokens apart
  std::int32_t scale_bytes, scale_slot;
  std::int32_t chunk_columns, chunks, chunk_bytes;  // the epilogue stores 64 rows x chunk_columns at a time
  std::int32_t staging_buffers;                     // chunks of a warpgroup that have a place of their own
  std::int32_t vector_buffers,
      vector_bytes;            // a tile's column vectors: fp32 scale, int32 zero point (int8), 16-bit bias
  std::int32_t partial_bytes;  // split_k: the other CTAs' sums
  std::int32_t output_box_inner, output_box_outer;  // output map, elements
  // byte offsets in dynamic shared memory
  std::int32_t at_rows, at_columns, at_staging, at_scales, at_barriers, at_vectors, at_partials, at_table, total_bytes;
};

// Where a CTA's slice of an operand's tile begins. The last one ends with the tile, and overlaps the one before it where slices
// of whole swizzle atoms do not divide the tile: 144 columns come in fours as 40 from 0, 40, 80 and 104 on.
EVERGEMM_HOST_DEVICE constexpr std::int32_t slice_begin(std::int32_t member, std::int32_t slice, std::int32_t side) {
  return member * slice < side - slice ? member * slice : side - slice;
}

// Bytes of column vectors for one column.
constexpr std::int32_t vector_bytes_per_column(Mainloop mainloop) { return mainloop == Mainloop::int8 ? 10 : 6; }

constexpr Geometry geometry_with_chunk(const TileConfig& config, std::int32_t chunk_columns, bool whole_share = false) {
  const bool pingpong = config.schedule == Schedule::pingpong;
  Geometry g{};
  g.consumer_warpgroups = config.schedule == Schedule::basic ? 1 : 2;
  // The producer is a whole warpgroup where registers are moved between warpgroups, two warps otherwise.
  g.threads = g.consumer_warpgroups * 128 + (g.consumer_warpgroups > 1 ? 128 : 64);
  g.slabs = config.m / kSlabRows / (config.schedule == Schedule::cooperative ? 2 : 1);
  g.k_steps = config.k / kSwizzleBytes;
  g.cluster_size = config.cluster_m * config.cluster_n * config.split_k;
  g.rows_bytes = config.m * config.k;
  g.columns_bytes = config.n * config.k;
  g.tokens = config.swap_ab ? config.n : config.m;
  g.rows_slice = config.m / config.cluster_n;
  g.columns_slice =
      (config.n / kSwizzleRows + config.cluster_m - 1) / config.cluster_m * kSwizzleRows;  // whole atoms: may overlap
  g.token_box = !config.swap_ab ? g.rows_slice : g.tokens <= 64 ? 16 : 32;
  // The copy engine starts at multiples of 16 bytes, an expert's tokens anywhere: up to three values more.
  const std::int32_t before = config.grouped ? 4 : 0;
  g.scale_copies = config.grouped && g.tokens > 128 ? g.tokens / 128 : 1;
  g.scale_box = g.tokens / g.scale_copies + before;
  g.scale_bytes = config.mainloop == Mainloop::fp8_promoted ? g.scale_copies * g.scale_box * 4 : 0;
  g.scale_slot = config.mainloop == Mainloop::fp8_promoted ? ((g.tokens + before) * 4 + 127) / 128 * 128 : 0;
  g.chunk_columns = chunk_columns;
  g.chunks = (config.n + chunk_columns - 1) / chunk_columns;
  g.chunk_bytes = kSlabRows * chunk_columns * 2;
  g.staging_buffers = whole_share ? g.slabs * g.chunks : kLeastStagingBuffers;
  g.vector_buffers = pingpong ? 2 : 1;
  g.vector_bytes = config.n * vector_bytes_per_column(config.mainloop);
  g.partial_bytes = (config.split_k - 1) * config.m * config.n * 4;
  g.output_box_inner = config.swap_ab ? kSlabRows : chunk_columns;
  g.output_box_outer = config.swap_ab ? chunk_columns : 16;  // a warp's rows

  std::int32_t at = 0;
  const auto take = [&at](std::int32_t bytes) {
    const std::int32_t begin = at;
    at += (bytes + 15) / 16 * 16;
    return begin;
  };
  g.at_rows = take(config.stages * g.rows_bytes);
  g.at_columns = take(config.stages * g.columns_bytes);
  g.at_staging = take(g.consumer_warpgroups * g.staging_buffers * g.chunk_bytes);
  g.at_scales = take(config.stages * g.scale_slot);
  // pairs full, empty: stages, vectors, partial sums; and where block scales may be copied by plain loads, one a stage
  const bool scaled = config.mainloop == Mainloop::fp8_promoted;
  g.at_barriers = take((config.stages + g.vector_buffers + 1) * 16 + (scaled ? config.stages * 8 : 0));
  g.at_vectors = take(g.vector_buffers * g.vector_bytes);
  g.at_partials = take(g.partial_bytes);
  g.at_table = take(config.grouped ? kTableHeaderBytes + (kMostExperts + 1) * kExpertBytes : 0);
  g.total_bytes = at;
  return g;
}

// Promoted tiles, whose epilogue only rounds, stage a warpgroup's whole share where shared memory has room for that. Else
// chunks are 64 columns where that fits the tile's width and shared memory, else 32; where they do not divide the width,
// the last chunk overlaps the one before it and writes the same values again.
constexpr Geometry geometry(const TileConfig& config) {
  if (config.n <= 32) return geometry_with_chunk(config, config.n);
  const bool wide = config.n % 64 == 0 || config.n % 64 >= 48;
  if (config.mainloop == Mainloop::fp8_promoted && !config.swap_ab) {
    const Geometry whole = geometry_with_chunk(config, wide ? 64 : 32, true);
    if (whole.staging_buffers >= kLeastStagingBuffers && whole.total_bytes <= kSm90SharedMemory) return whole;
  }
  const Geometry g = geometry_with_chunk(config, 64);
  return wide && g.total_bytes <= kSm90SharedMemory ? g : geometry_with_chunk(config, 32);
}

constexpr bool valid(const TileConfig& config) {
  const Geometry g = geometry(config);
  const bool cooperative = config.schedule == Schedule::cooperative;
  if (g.total_bytes > kSm90SharedMemory || g.cluster_size > 8) return false;
  if (config.m % (cooperative ? 128 : 64) != 0 || config.n % 16 != 0 || config.n > 256) return false;
  if (config.k != 128 && config.k != 256) return false;
  // each CTA of a cluster fetches a slice of whole 8-row swizzle atoms; columns' slices may overlap where rows are not shared, too
  if (config.m % (kSwizzleRows * config.cluster_n) != 0 ||
      (config.n % (kSwizzleRows * config.cluster_m) != 0 && (config.cluster_n > 1 || config.grouped)))
    return false;
  // every slice holds columns that no other one does
  if ((config.cluster_m - 1) * g.columns_slice >= config.n) return false;
  if (g.chunk_columns > config.n || (!config.swap_ab && g.chunk_columns < 32)) return false;
  if (config.split_k > 1 && config.schedule == Schedule::pingpong) return false;
  // CTAs side by side along the tokens share an expert's rows; only swapped tiles can be made narrow for that
  if (config.grouped && (config.split_k > 1 || (!config.swap_ab && config.cluster_m > 1))) return false;
  // one block of k a stage, and one weight block a warpgroup's rows where weights are the rows
  if (config.mainloop == Mainloop::fp8_promoted && (config.k != 128 || (config.swap_ab && config.m > 128)))
    return false;
  // weights as columns: a tile lies in two weight blocks at most, wherever it begins
  if (config.mainloop == Mainloop::fp8_promoted && !config.swap_ab && config.n > 128 + std::gcd(config.n, 128))
    return false;
  return true;
}

}  // namespace evergemm::plan_tables
