// SPDX-License-Identifier: Apache-2.0
// The Hopper GEMM: one persistent, warp-specialised kernel for every TileConfig.
//
//   producer, warp 0          copies operand tiles into a ring of shared-memory stages (bulk tensor copies, multicast in a cluster)
//   producer, warp 1          brings a tile's column vectors, and block scales that the copy engine cannot read
//                             (grouped: whole warps find a tile in a table of the experts that each CTA makes for itself)
//   consumer warpgroups       wgmma out of the ring, scale, convert, store
//
// Rows and columns are those of the matrix instruction: P[rows, columns] has rows on wgmma's M side. Unswapped, rows are tokens
// and columns output features; swapped, the other way round, and the epilogue writes its tile transposed.
//
//   t   = rn32(scale_b * float(acc - azp * azp_adj))
//   out = rn_out(fma32(scale_a, t, bias))               without bias and zero points: rn_out(rn32(scale_a * t))
//   block scales: acc = sum over k-blocks of fma32(rn32(scale_a * scale_b), acc_block, acc), and out = rn_out(acc + bias)
//
// Every barrier pair is (full, empty): full completes when data has arrived, empty when its readers are done.
// A grouped row multiplies the rows of each expert by that expert's weights in one launch. Offsets, counts and sizes come from
// device memory and are read by the rules of moe_index.h, whatever they hold.
//
// Must not go here: choosing a configuration, launching, anything about problem shapes that the Parameters do not say.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "cuda/sm90/expert_problem.cuh"
#include "cuda/sm90/expert_table.cuh"
#include "cuda/sm90/parameters.h"
#include "cuda/sm90/ptx.cuh"
#include "evergemm/moe_index.h"
#include "evergemm/numerics.h"
#include "plan/tile_geometry.h"
#include "wgmma.cuh"

namespace evergemm::sm90 {

using plan_tables::Geometry;
using plan_tables::kSlabRows;
using plan_tables::kSwizzleBytes;
using plan_tables::Mainloop;
using plan_tables::Schedule;
using plan_tables::TileConfig;

// What promotion multiplies by where there are no block scales.
static __device__ const float kUnitScale = 1.0f;

template <TileConfig kConfig>
struct Gemm {
  static_assert(plan_tables::valid(kConfig), "tile configuration");
  static constexpr Geometry kGeometry = plan_tables::geometry(kConfig);
  static constexpr bool kFloat = kConfig.mainloop != Mainloop::int8;
  static constexpr bool kPromoted = kConfig.mainloop == Mainloop::fp8_promoted;
  static constexpr bool kPingpong = kConfig.schedule == Schedule::pingpong;
  static constexpr bool kSwap = kConfig.swap_ab;
  static constexpr bool kGrouped = kConfig.grouped;
  using Arguments = std::conditional_t<kGrouped, GroupedParameters, Parameters>;
  static constexpr int kStages = kConfig.stages;
  static constexpr int kConsumers = kGeometry.consumer_warpgroups;
  static constexpr int kSlabs = kGeometry.slabs;
  static constexpr int kColumns = kConfig.n;
  static constexpr int kClusterM = kConfig.cluster_m, kClusterN = kConfig.cluster_n, kSplit = kConfig.split_k;
  static constexpr bool kCluster = kGeometry.cluster_size > 1;
  static constexpr int kProducerThread = kConsumers * 128;
  static constexpr int kVectorBuffers = kGeometry.vector_buffers;
  static constexpr int kStagingBuffers = kGeometry.staging_buffers;
  static constexpr int kAccumulators = kColumns / 2;  // registers a slab
  using Accumulator = std::conditional_t<kFloat, float, std::int32_t>;

  // Registers a thread after the hand-over: 384 threads start with 168 each.
  static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
  // Named barriers: 0 is __syncthreads; one a warpgroup for its staging buffers; one a warpgroup for ping-pong turns.
  static constexpr int kStagingBarrier = 1, kTurnBarrier = 8;

  // ---- where things are --------------------------------------------------------------------------------------------

  struct Cta {
    std::uint32_t base;     // shared-memory address of the map in tile_geometry.h
    int rank;               // in the cluster
    int row, column, part;  // the CTA's place: rows, columns, share of k
    int first_tile, tile_stride, tiles;
    int k_begin, k_blocks;  // stages' worth of k that this CTA sums
    int entries;            // of the table of experts
  };
  struct Tile {
    int row, column;  // of the tile's first element
    // Set where kGrouped:
    int expert;     // whose weights these are
    int plane;      // of tokens and output
    int token_end;  // behind the tile's last token
    int width;      // swapped: columns that are multiplied, a multiple of 16
    bool once;      // no other tile has these weights
  };
  // A position in the ring; the parity of `phase` tells its rounds apart.
  struct Slot {
    int index = 0;
    std::uint32_t phase = 0;
    __device__ __forceinline__ void advance() {
      if (++index == kStages) {
        index = 0;
        phase ^= 1;
      }
    }
    __device__ __forceinline__ void advance(int count) {
      index += count;
      phase ^= static_cast<std::uint32_t>(index / kStages) & 1;
      index %= kStages;
    }
  };

  static __device__ __forceinline__ std::uint32_t full(const Cta& cta, int slot) {
    return cta.base + kGeometry.at_barriers + slot * 16;
  }
  static __device__ __forceinline__ std::uint32_t empty(const Cta& cta, int slot) { return full(cta, slot) + 8; }
  static __device__ __forceinline__ std::uint32_t vectors_full(const Cta& cta, int buffer) {
    return full(cta, kStages + buffer);
  }
  static __device__ __forceinline__ std::uint32_t partials_full(const Cta& cta) {
    return full(cta, kStages + kVectorBuffers);
  }
  // Completes when every reading thread is done with the scales of a slot; in use where plain loads brought them. (What the
  // copy engine brings is released with its slot, by one lane for its warp.)
  static __device__ __forceinline__ std::uint32_t scales_read(const Cta& cta, int slot) {
    return full(cta, kStages + kVectorBuffers + 1) + slot * 8;
  }
  // A tile's column vectors: scales, zero points (int8), biases of 16 bits.
  static __device__ __forceinline__ std::uint32_t vectors(const Cta& cta, int buffer) {
    return cta.base + kGeometry.at_vectors + buffer * kGeometry.vector_bytes;
  }
  static constexpr int kZeroPointsAt = kColumns * 4, kBiasesAt = kFloat ? kColumns * 4 : kColumns * 8;

  // Of a side's elements, the first that is not the problem's (a grouped tile's: its expert's).
  static __device__ __forceinline__ int token_limit(const Arguments& p, const Tile& tile) {
    return kGrouped ? tile.token_end : p.m;
  }
  static __device__ __forceinline__ int row_limit(const Arguments& p, const Tile& tile) {
    return kSwap ? p.n : token_limit(p, tile);
  }
  static __device__ __forceinline__ int column_limit(const Arguments& p, const Tile& tile) {
    return kSwap ? token_limit(p, tile) : p.n;
  }

  // Where a tile's expert begins in scales and output; a constant 0 where there is one product.
  static __device__ __forceinline__ const float* token_scales_of(const Arguments& p, const Tile& tile) {
    if constexpr (kGrouped) return p.scale_a + tile.expert * p.problem.scale_a_expert_stride;
    return p.scale_a;
  }
  static __device__ __forceinline__ const float* weight_scales_of(const Arguments& p, const Tile& tile) {
    if constexpr (kGrouped) return p.scale_b + tile.expert * p.problem.scale_b_expert_stride;
    return p.scale_b;
  }
  static __device__ __forceinline__ std::int64_t output_begin(const Arguments& p, const Tile& tile) {
    if constexpr (kGrouped) return tile.plane * p.problem.out_expert_stride;
    return 0;
  }

  // Tiles are walked in panels of raster_group along one side, so that the CTAs at work share operands in L2.
  struct Place {
    int x, y;  // along, across
  };
  static __device__ __forceinline__ Place place_at(int index, int along, int across, int raster_group) {
    const int panel = index / (raster_group * across);
    const int in_panel = index - panel * raster_group * across;
    const int width = min(raster_group, along - panel * raster_group);
    const int y = in_panel / width;
    return Place{panel * raster_group + in_panel - y * width, y};
  }

  // `entry` remembers where the tile before this one stood; a grouped row's is asked for by whole warps.
  static __device__ __forceinline__ Tile tile_at(const Arguments& p, const Cta& cta, int index, int& entry) {
    if constexpr (kGrouped) return grouped_tile_at(p, cta, index, entry);
    const int along = p.raster_along_rows ? p.tiles_rows : p.tiles_columns;
    const int across = p.raster_along_rows ? p.tiles_columns : p.tiles_rows;
    const auto [x, y] = place_at(index, along, across, p.raster_group);
    Tile tile;
    tile.row = ((p.raster_along_rows ? x : y) * kClusterM + cta.row) * kConfig.m;
    tile.column = ((p.raster_along_rows ? y : x) * kClusterN + cta.column) * kColumns;
    return tile;
  }

  // ---- grouped: tiles by the table of experts ------------------------------------------------------------------------

  using Table = ExpertTable<kConfig>;
  static constexpr int kTokens = kGeometry.tokens, kTokenCtas = Table::kTokenCtas;

  static __device__ __forceinline__ Tile grouped_tile_at(const Arguments& p, const Cta& cta, int index, int& entry) {
    const uint4 found = Table::find(cta.base, cta.entries, index, entry);
    const int first_row = static_cast<int>(found.z), rows = static_cast<int>(found.w);
    const int tiles = Table::token_tiles(rows), width = Table::token_width(rows, tiles);
    const auto [x, y] = place_at(index - static_cast<int>(found.x), tiles, p.tiles_features, p.raster_group);
    const int from = (x * kTokenCtas + (kTokenCtas > 1 ? cta.column : 0)) * width;  // the last CTA's share may be empty
    const int token = first_row + from;
    const int feature = kSwap ? (y * kClusterM + cta.row) * kConfig.m : (y * kClusterN + cta.column) * kColumns;
    Tile tile;
    tile.row = kSwap ? feature : token;
    tile.column = kSwap ? token : feature;
    tile.expert = static_cast<int>(found.y);
    tile.plane = p.problem.form == GroupedForm::masked ? tile.expert : 0;
    tile.token_end = first_row + min(from + width, rows);
    tile.width = max(tile.token_end - token + 15, 16) / 16 * 16;
    tile.once = tiles == 1;
    return tile;
  }

  // ---- the kernel --------------------------------------------------------------------------------------------------

  // Lane 0's value: through a shuffle the compiler knows that it is the same for a warp, and keeps it and what follows from it in
  // uniform registers.
  static __device__ __forceinline__ int uniform(int value) { return __shfl_sync(~0u, value, 0); }
  static __device__ __forceinline__ std::uint64_t uniform(std::uint64_t value) { return __shfl_sync(~0u, value, 0); }

  static __device__ __forceinline__ void run(const Arguments& p) {
    extern __shared__ __align__(1024) std::uint8_t shared_memory[];
    Cta cta;
    cta.base = ptx::shared_address(shared_memory);
    // Clusters are runs of consecutive blocks; from blockIdx, unlike from %cluster_ctarank, the compiler knows it is uniform.
    cta.rank = static_cast<int>(blockIdx.x) % kGeometry.cluster_size;
    cta.row = cta.rank % kClusterM;
    cta.column = cta.rank / kClusterM % kClusterN;
    cta.part = cta.rank / (kClusterM * kClusterN);
    cta.first_tile = blockIdx.x / kGeometry.cluster_size;
    cta.tile_stride = gridDim.x / kGeometry.cluster_size;
    cta.tiles = kGrouped ? 0 : p.tiles_rows * p.tiles_columns;  // grouped: see below
    cta.k_begin = kSplit > 1 ? cta.part * p.k_blocks / kSplit : 0;
    cta.k_blocks = kSplit > 1 ? (cta.part + 1) * p.k_blocks / kSplit - cta.k_begin : p.k_blocks;

    if (threadIdx.x == 0) initialize_barriers(p, cta);
    if (threadIdx.x == kProducerThread) {
      ptx::prefetch_map(&p.rows_map);
      ptx::prefetch_map(&p.columns_map);
      if (!kGrouped && p.short_rows > 0) ptx::prefetch_map(&p.short_rows_map);
      if (!kGrouped && p.short_columns > 0) ptx::prefetch_map(&p.short_columns_map);
    }
    if (kPromoted && !p.block_scales) fill_unit_scales(cta);
    if constexpr (kGrouped) {
      if (!p.early) ptx::wait_for_previous_kernel();
      Table::make(p, cta.base);
    }
    __syncthreads();
    if constexpr (kGrouped) {
      cta.tiles = static_cast<int>(ptx::load_shared_word(Table::header(cta.base, Table::kTiles)));
      cta.entries = static_cast<int>(ptx::load_shared_word(Table::header(cta.base, Table::kEntries)));
    }
    if constexpr (kCluster) ptx::cluster_meet();  // the barriers of all are there

    const int warpgroup = uniform(static_cast<int>(threadIdx.x / 128));
    if (warpgroup == kConsumers) {
      if constexpr (kConsumers > 1) ptx::give_registers<kProducerRegisters>();
      const int warp = uniform(static_cast<int>(threadIdx.x / 32));
      if (warp == kConsumers * 4) produce_operands(p, cta);
      if (warp == kConsumers * 4 + 1) produce_vectors(p, cta);
    } else {
      if constexpr (kConsumers > 1) ptx::take_registers<kConsumerRegisters>();
      consume(p, cta, warpgroup);
      if constexpr (kGrouped) finish_experts(p, cta);
    }
    // The barriers that partial sums wait for keep their receiver here long enough. Racecheck does not follow those, and warns of
    // stores into a block that may have left; where CTAs meet, it sees that none has.
    if constexpr (kSplit > 1) ptx::cluster_meet_unaligned();
  }

  static __device__ __forceinline__ void initialize_barriers(const Arguments& p, const Cta& cta) {
    constexpr int kTileWarps = (kPingpong ? 1 : kConsumers) * 4;  // consumer warps that read a tile
    const int copied_scales = kPromoted && p.block_scales && !p.scales_by_tma ? 32 : 0;
    for (int slot = 0; slot < kStages; ++slot) {
      ptx::barrier_initialize(full(cta, slot), 1 + copied_scales);
      ptx::barrier_initialize(empty(cta, slot), kTileWarps * (kClusterM + kClusterN - 1));
      if constexpr (kPromoted) ptx::barrier_initialize(scales_read(cta, slot), kTileWarps * 32);
    }
    for (int buffer = 0; buffer < kVectorBuffers; ++buffer) {
      ptx::barrier_initialize(vectors_full(cta, buffer), 32);
      ptx::barrier_initialize(vectors_full(cta, buffer) + 8, kTileWarps * 32);
    }
    if constexpr (kSplit > 1) {
      ptx::barrier_initialize(partials_full(cta), (kSplit - 1) * kConsumers * 128);
      ptx::barrier_initialize(partials_full(cta) + 8, kConsumers * 128);
    }
    ptx::barrier_initialization_fence();
  }

  // Promotion without block scales multiplies every partial sum by one.
  static __device__ __forceinline__ void fill_unit_scales(const Cta& cta) {
    for (int i = threadIdx.x; i < kStages * kGeometry.scale_slot / 4; i += kGeometry.threads)
      ptx::store_shared(cta.base + kGeometry.at_scales + i * 4, 1.0f);
  }

  static __device__ __forceinline__ Tile uniform(Tile tile) {
    tile.row = uniform(tile.row);
    tile.column = uniform(tile.column);
    if constexpr (kGrouped) {
      tile.expert = uniform(tile.expert);
      tile.plane = uniform(tile.plane);
      tile.token_end = uniform(tile.token_end);
      tile.width = uniform(tile.width);
    }
    return tile;
  }

  // ---- producer: operands ------------------------------------------------------------------------------------------

  static __device__ __forceinline__ void produce_operands(const Arguments& p, const Cta& cta) {
    // This CTA fetches a slice of each operand and hands it to its peers along the cluster.
    constexpr int kRowSlice = kGeometry.rows_slice, kColumnSlice = kGeometry.columns_slice;
    std::uint16_t rows_mask = 0, columns_mask = 0;
    for (int i = 0; i < kClusterN; ++i)
      rows_mask |= static_cast<std::uint16_t>(1 << (cta.row + i * kClusterM + cta.part * kClusterM * kClusterN));
    for (int i = 0; i < kClusterM; ++i)
      columns_mask |= static_cast<std::uint16_t>(1 << (i + cta.column * kClusterM + cta.part * kClusterM * kClusterN));

    // What a CTA reads for itself alone comes up to twice as fast with either policy as with evict_normal, tokens most of all
    // (docs/tuning_log.md).
    const std::uint64_t weights_policy =
        uniform(p.stream_weights ? ptx::policy_evict_first() : ptx::policy_evict_normal());
    const std::uint64_t tokens_policy = uniform(ptx::policy_evict_last());
    const std::uint64_t rows_policy = kSwap ? weights_policy : tokens_policy;
    const std::uint64_t columns_policy = kSwap ? tokens_policy : weights_policy;
    const bool load_scales = kPromoted && p.block_scales && p.scales_by_tma;

    // Before the previous kernel has finished, weights may go into L2 (nothing observes them there); reading waits.
    int entry = 0;
    if (!kGrouped && p.prefetch_weights && ptx::elect_one()) {
      const Tile tile = tile_at(p, cta, cta.first_tile, entry);
      const int ahead = min(kStages, cta.k_blocks);
      for (int block = cta.k_begin; block < cta.k_begin + ahead; ++block)
        for (int step = 0; step < kGeometry.k_steps; ++step) {
          const int k = (block * kGeometry.k_steps + step) * kSwizzleBytes;
          if constexpr (kSwap)
            ptx::prefetch_box(&p.rows_map, k, tile.row + cta.column * kRowSlice);
          else
            ptx::prefetch_box(&p.columns_map, k, tile.column + column_slice_begin(cta.row));
        }
    }
    int filled = 0;  // stages whose weights are on their way before there are tokens
    if constexpr (kGrouped) {
      int ahead = 0;
      for (int index = cta.first_tile; p.early && index < cta.tiles && filled < kStages; index += cta.tile_stride) {
        const Tile tile = tile_at(p, cta, index, ahead);
        for (int block = 0; block < cta.k_blocks && filled < kStages; ++block, ++filled)
          if (ptx::elect_one()) load_weights(p, cta, tile, block, filled, load_scales, rows_mask);
        __syncwarp();
      }
    }
    ptx::wait_for_previous_kernel();

    Slot slot;
    for (int index = cta.first_tile; index < cta.tiles; index += cta.tile_stride) {
      const Tile tile = uniform(tile_at(p, cta, index, entry));
      // Clusters reach past the edge where an odd number of tiles lies along them: there may be nothing at all.
      const int rows_there = row_limit(p, tile) - tile.row, columns_there = column_limit(p, tile) - tile.column;
      // In a cluster of four every CTA must wait for another one: a CTA that waited for nothing, or only for itself, could tell a peer
      // of two rounds before the CTA across, its peer's other peer, tells of one. Where a row of CTAs would leave one so, that many
      // of its slices come as short boxes of zeros.
      int least_slices = 0;
      if constexpr (kClusterM > 1 && kClusterN > 1) {
        const int columns_of_first = columns_there + cta.column * kColumns;
        if (rows_there <= 0 && columns_of_first <= (kClusterN - 1) * kColumns)
          least_slices = 1;  // the last CTA has neither rows nor columns
        else if (rows_there <= kRowSlice && columns_of_first <= kColumnSlice)
          least_slices = 2;  // all that there is of both is what the first CTA fetches
      }
      const bool scales_there = load_scales && (kSwap ? columns_there : rows_there) > 0;
      const int stage_bytes = (rows_of_slices<kRowSlice, kClusterN, kConfig.m>(rows_there, p.short_rows, least_slices) +
                               rows_of_slices<kColumnSlice, kClusterM, kColumns>(columns_there, p.short_columns)) *
                                  kGeometry.k_steps * kSwizzleBytes +
                              (scales_there ? kGeometry.scale_bytes : 0);
      // Of this CTA's slices. A slice is copied whole, in a short box, or not at all.
      const int columns_begin = column_slice_begin(cta.row);
      const int row_slice = rows_there - cta.column * kRowSlice, column_slice = columns_there - columns_begin;
      const CUtensorMap* rows_map = is_whole<kRowSlice>(row_slice) ? &p.rows_map : &p.short_rows_map;
      const CUtensorMap* columns_map = is_whole<kColumnSlice>(column_slice) ? &p.columns_map : &p.short_columns_map;
      const bool rows_come = row_slice > 0 || cta.column < least_slices, columns_come = column_slice > 0;
      const auto fill_slot = [&](int block, bool with_rows, bool with_columns) {
        ptx::barrier_wait(empty(cta, slot.index), slot.phase ^ 1);
        const int filling = slot.index;
        slot.advance();
        if (!ptx::elect_one()) return;
        const std::uint32_t arrived = full(cta, filling);
        const std::uint32_t rows = cta.base + kGeometry.at_rows + filling * kGeometry.rows_bytes;
        const std::uint32_t columns = cta.base + kGeometry.at_columns + filling * kGeometry.columns_bytes;
        ptx::barrier_arrive_expecting(arrived, stage_bytes);
#pragma unroll
        for (int step = 0; step < kGeometry.k_steps; ++step) {
          const int k = (block * kGeometry.k_steps + step) * kSwizzleBytes;
          if (with_rows)
            load_slice<(kClusterN > 1)>(rows + (step * kConfig.m + cta.column * kRowSlice) * kSwizzleBytes, rows_map, k,
                                        tile.row + cta.column * kRowSlice, arrived, rows_policy, rows_mask);
          if (with_columns)
            load_slice<(kClusterM > 1)>(columns + (step * kColumns + columns_begin) * kSwizzleBytes, columns_map, k,
                                        tile.column + columns_begin, arrived, columns_policy, columns_mask);
        }
        if (scales_there)
          ptx::load_box(cta.base + kGeometry.at_scales + filling * kGeometry.scale_slot, &p.scale_map,
                        kSwap ? tile.column : tile.row, block, arrived, tokens_policy);
      };
      const int end = cta.k_begin + cta.k_blocks;
      if constexpr (kGrouped) {
        for (int block = 0; block < end; ++block) {
          ptx::barrier_wait(empty(cta, slot.index), slot.phase ^ 1);
          if (ptx::elect_one()) {
            if (filled == 0) load_weights(p, cta, tile, block, slot.index, load_scales, rows_mask);
            load_tokens(p, cta, tile, block, slot.index, load_scales, kSwap ? columns_mask : rows_mask);
          }
          filled = max(filled - 1, 0);
          slot.advance();
        }
      } else if (rows_come && columns_come) {  // nothing but what a stage needs: small tiles wait for this warp
#pragma unroll 1
        for (int block = cta.k_begin; block < end; ++block) fill_slot(block, true, true);
      } else {
#pragma unroll 1
        for (int block = cta.k_begin; block < end; ++block) fill_slot(block, rows_come, columns_come);
      }
    }
    ptx::allow_next_kernel();  // its CTAs may take what room there is; they wait for this kernel's end before they read
    // Peers tell this CTA of each slot that they have read: it stays until the last of them has been heard. Nothing else comes
    // from them that its consumers have not waited for, so clusters that do not split k need not meet at their end.
    if constexpr (kCluster)
      for (int stage = 0; stage < kStages; ++stage) {
        ptx::barrier_wait(empty(cta, slot.index), slot.phase ^ 1);
        slot.advance();
      }
  }

  // Whether `there` rows of a slice come in a whole box.
  template <int kSlice>
  static __device__ __forceinline__ bool is_whole(int there) {
    return there > kSlice - plan_tables::kSwizzleRows;
  }
  static __device__ __forceinline__ int column_slice_begin(int member) {
    return plan_tables::slice_begin(member, kGeometry.columns_slice, kColumns);
  }
  // Rows that come of a side of kSide in kMembers slices, the first `least` of which come though nothing of them exists.
  template <int kSlice, int kMembers, int kSide>
  static __device__ __forceinline__ int rows_of_slices(int there, int short_rows, int least = 0) {
    int rows = 0;
#pragma unroll
    for (int member = 0; member < kMembers; ++member) {
      const int left = there - plan_tables::slice_begin(member, kSlice, kSide);
      rows += is_whole<kSlice>(left) ? kSlice : left > 0 || member < least ? short_rows : 0;
    }
    return rows;
  }
  template <bool kMulticast>
  static __device__ __forceinline__ void load_slice(std::uint32_t to, const CUtensorMap* map, int k, int row,
                                                    std::uint32_t arrived, std::uint64_t policy, std::uint16_t mask) {
    if constexpr (kMulticast)
      ptx::load_box_multicast(to, map, k, row, arrived, policy, mask);
    else
      ptx::load_box(to, map, k, row, arrived, policy);
  }

  // How many scales of other tokens stand before a tile's first in a slot: the copy engine starts at multiples of 16 bytes.
  static __device__ __forceinline__ int scale_shift(const Arguments& p, const Tile& tile) {
    return kGrouped && p.scales_by_tma ? (kSwap ? tile.column : tile.row) & 3 : 0;
  }

  // How many boxes of token_box a grouped tile's tokens come in.
  static __device__ __forceinline__ int token_boxes(const Tile& tile) {
    return kSwap ? (tile.width + kGeometry.token_box - 1) / kGeometry.token_box : kTokens / kGeometry.token_box;
  }

  // One stage of a grouped tile, first half: what it waits for, and weights, which are one box (a slice of it).
  static __device__ __forceinline__ void load_weights(const Arguments& p, const Cta& cta, const Tile& tile, int block,
                                                      int slot, bool load_scales, std::uint16_t rows_mask) {
    static_assert(!kGrouped || kGeometry.k_steps == 1);
    const std::uint64_t policy = tile.once ? ptx::policy_evict_first() : ptx::policy_evict_last();
    const std::uint32_t arrived = full(cta, slot);
    const std::uint32_t to = cta.base + (kSwap ? kGeometry.at_rows + slot * kGeometry.rows_bytes
                                               : kGeometry.at_columns + slot * kGeometry.columns_bytes);
    const CUtensorMap* map = kSwap ? &p.rows_map : &p.columns_map;
    const int k = block * kSwizzleBytes, feature = kSwap ? tile.row : tile.column;
    const bool there = !kMayMiss || feature < p.n;  // a pair of CTAs may reach past the edge
    ptx::barrier_arrive_expecting(arrived, (!there  ? 0
                                            : kSwap ? kGeometry.rows_bytes
                                                    : kGeometry.columns_bytes) +
                                               token_boxes(tile) * kGeometry.token_box * kSwizzleBytes +
                                               (load_scales ? kGeometry.scale_bytes : 0));
    if (!there) return;
    if constexpr (kTokenCtas > 1) {  // each CTA along the tokens fetches a slice of the weights for all of them
      constexpr int kSlice = kConfig.m / kTokenCtas;
      ptx::load_box_multicast(to + cta.column * kSlice * kSwizzleBytes, map, k, feature + cta.column * kSlice,
                              tile.expert, arrived, policy, rows_mask);
    } else {
      ptx::load_box(to, map, k, feature, tile.expert, arrived, policy);
    }
  }

  // Second half: tokens, swapped in as many boxes as the tile has tokens for, else the whole tile's, dealt out among the CTAs of
  // a cluster, whose tokens are the same; and their block scales.
  static __device__ __forceinline__ void load_tokens(const Arguments& p, const Cta& cta, const Tile& tile, int block,
                                                     int slot, bool load_scales, std::uint16_t mask) {
    constexpr int kBox = kGeometry.token_box, kMembers = kSwap ? kClusterM : kClusterN;
    const int member = kSwap ? cta.row : cta.column, boxes = token_boxes(tile);
    const std::uint64_t policy = ptx::policy_evict_last();
    const std::uint32_t arrived = full(cta, slot);
    const std::uint32_t tokens_to = cta.base + (kSwap ? kGeometry.at_columns + slot * kGeometry.columns_bytes
                                                      : kGeometry.at_rows + slot * kGeometry.rows_bytes);
    const CUtensorMap* map = kSwap ? &p.columns_map : &p.rows_map;
    const int k = block * kSwizzleBytes, token = kSwap ? tile.column : tile.row;
    for (int box = member; box < boxes; box += kMembers) {
      const std::uint32_t to = tokens_to + box * kBox * kSwizzleBytes;
      if constexpr (kMembers > 1)
        ptx::load_box_multicast(to, map, k, token + box * kBox, tile.plane, arrived, policy, mask);
      else
        ptx::load_box(to, map, k, token + box * kBox, tile.plane, arrived, policy);
    }
    if (load_scales)
#pragma unroll
      for (int copy = 0; copy < kGeometry.scale_copies; ++copy)
        ptx::load_box(cta.base + kGeometry.at_scales + slot * kGeometry.scale_slot + copy * 512, &p.scale_map,
                      token - scale_shift(p, tile) + copy * 128, block, tile.plane, arrived, policy);
  }

  // ---- producer: column vectors, and block scales that only plain loads can read --------------------------------------

  // Into L2, by a whole warp, a lane each line of 32 values.
  static __device__ __forceinline__ void prefetch_weight_scales(const Arguments& p, const Cta& cta, const Tile& tile) {
    const int lane = threadIdx.x % 32, feature = kSwap ? tile.row : tile.column;
    const float* scales = weight_scales_of(p, tile);
    if (kPromoted && p.block_scales) {
      const int end = min(feature + (kSwap ? kConfig.m : kColumns), p.n);  // not behind `feature` past the edge
      for (int at = feature / kScaleBlockElements; at * kScaleBlockElements < end; ++at) {
        const float* first = scales + at * p.scale_b_stride + cta.k_begin * p.scale_b_k_stride;
        if (p.scale_b_k_stride == 1) {
          const auto bytes = reinterpret_cast<std::uintptr_t>(first), behind = bytes + cta.k_blocks * sizeof(float);
          for (std::uintptr_t line = bytes / 128 * 128 + lane * 128; line < behind; line += 32 * 128)
            ptx::prefetch_line(reinterpret_cast<const void*>(line));
        } else {
          for (int block = lane; block < cta.k_blocks; block += 32)
            ptx::prefetch_line(first + block * p.scale_b_k_stride);
        }
      }
    } else if (lane * 32 < (kSwap ? kConfig.m : kColumns) && feature + lane * 32 < p.n) {
      ptx::prefetch_line(scales + (feature + lane * 32) * p.scale_b_stride);
    }
  }

  static __device__ __forceinline__ void produce_vectors(const Arguments& p, const Cta& cta) {
    const int lane = threadIdx.x % 32;
    const bool copy_scales = kPromoted && p.block_scales && !p.scales_by_tma;
    const bool leads = cta.part == 0;  // of a split k: the CTA that runs the epilogue
    // Scales of weights come from memory behind all the weights that are under way, so they are asked for with them.
    int scales_asked = cta.first_tile, scales_entry = 0;
    const int scales_ahead = (2 + (kStages - 1) / cta.k_blocks) * cta.tile_stride;
    const auto ask_for_scales = [&](int end) {
      for (; scales_asked < min(end, cta.tiles); scales_asked += cta.tile_stride)
        prefetch_weight_scales(p, cta, tile_at(p, cta, scales_asked, scales_entry));
    };
    if (!copy_scales && !leads) {
      ask_for_scales(cta.tiles);
      return;
    }
    if constexpr (kGrouped)
      if (p.early) ask_for_scales(cta.first_tile + scales_ahead);
    ptx::wait_for_previous_kernel();
    Slot slot;
    int done = 0, entry = 0;
    for (int index = cta.first_tile; index < cta.tiles; index += cta.tile_stride, ++done) {
      if constexpr (kGrouped || kPromoted) ask_for_scales(index + scales_ahead);
      const Tile tile = tile_at(p, cta, index, entry);
      const float* token_scales = token_scales_of(p, tile);
      if (copy_scales) {
        const int first_token = kSwap ? tile.column : tile.row;
        for (int block = cta.k_begin; block < cta.k_begin + cta.k_blocks; ++block) {
          ptx::barrier_wait(scales_read(cta, slot.index), slot.phase ^ 1);
          const std::uint32_t to = cta.base + kGeometry.at_scales + slot.index * kGeometry.scale_slot;
          for (int i = lane; i < kGeometry.tokens; i += 32) {
            const std::int64_t token = min(first_token + i, token_limit(p, tile) - 1);
            ptx::copy_async_4(to + i * 4, token_scales + token * p.scale_a_stride + block * p.scale_a_k_stride);
          }
          ptx::copy_async_arrive(full(cta, slot.index));
          slot.advance();
        }
      }
      if (!leads) continue;
      const int buffer = done % kVectorBuffers;
      const std::uint32_t to = vectors(cta, buffer);
      ptx::barrier_wait(vectors_full(cta, buffer) + 8, ((done / kVectorBuffers) & 1) ^ 1);
      const float* scale = kSwap ? token_scales : weight_scales_of(p, tile);
      const std::int64_t scale_stride = kSwap ? p.scale_a_stride : p.scale_b_stride;
#pragma unroll 2
      for (int i = lane; i < kColumns; i += 32) {
        const std::int64_t column = min(tile.column + i, column_limit(p, tile) - 1);  // past the edge: never stored
        ptx::store_shared(to + i * 4, kPromoted && p.block_scales ? 1.0f : __ldg(scale + column * scale_stride));
        if constexpr (!kFloat && !kGrouped)
          if (p.azp_adj) {
            const std::int32_t zero_point = !kSwap  ? __ldg(p.azp_adj + column * p.azp_adj_stride)
                                            : p.azp ? __ldg(p.azp + column * p.azp_stride)
                                                    : 1;
            ptx::store_shared(to + kZeroPointsAt + i * 4, zero_point);
          }
        if constexpr (!kSwap && !kGrouped)
          if (p.bias && p.output != OutputKind::float32)
            ptx::store_shared(to + kBiasesAt + i * 2,
                              __ldg(static_cast<const std::uint16_t*>(p.bias) + column * p.bias_stride));
      }
      ptx::barrier_arrive(vectors_full(cta, buffer));
    }
  }

  // ---- consumers ---------------------------------------------------------------------------------------------------

  // What a thread multiplies its rows with: rows r and r + 8 of each slab.
  struct RowVectors {
    float scale[kSlabs][2];
    float bias[kSlabs][2];               // swapped only: rows are output features
    std::int32_t zero_point[kSlabs][2];  // int8 only
  };

  static __device__ __forceinline__ float widen(const Arguments& p, std::uint16_t bits) {
    return p.output == OutputKind::float16 ? ptx::float16_to_float(bits) : __uint_as_float(std::uint32_t{bits} << 16);
  }
  static __device__ __forceinline__ float load_bias(const Arguments& p, std::int64_t feature) {
    if (p.output == OutputKind::float32) return __ldg(static_cast<const float*>(p.bias) + feature * p.bias_stride);
    return widen(p, __ldg(static_cast<const std::uint16_t*>(p.bias) + feature * p.bias_stride));
  }

  static __device__ __forceinline__ void load_row_vectors(const Arguments& p, const Tile& tile, int first_row,
                                                          RowVectors& vectors) {
    const int in_slab = (threadIdx.x / 32 % 4) * 16 + threadIdx.x % 32 / 4;
    const float* scale = kSwap ? weight_scales_of(p, tile) : token_scales_of(p, tile);
    const std::int64_t scale_stride = kSwap ? p.scale_b_stride : p.scale_a_stride;
#pragma unroll
    for (int slab = 0; slab < kSlabs; ++slab)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const std::int64_t row = min(first_row + slab * kSlabRows + in_slab + half * 8, row_limit(p, tile) - 1);
        vectors.scale[slab][half] = kPromoted && p.block_scales ? 1.0f : __ldg(scale + row * scale_stride);
        vectors.bias[slab][half] = !kGrouped && kSwap && p.bias ? load_bias(p, row) : 0.0f;
        vectors.zero_point[slab][half] = 0;
        if constexpr (!kFloat && !kGrouped)
          if (p.azp_adj)
            vectors.zero_point[slab][half] = kSwap   ? __ldg(p.azp_adj + row * p.azp_adj_stride)
                                             : p.azp ? __ldg(p.azp + row * p.azp_stride)
                                                     : 1;
      }
  }

  template <int kWidth = kColumns, int kCount>
  static __device__ __forceinline__ void pin(Accumulator (&values)[kCount][kAccumulators]) {
#pragma unroll
    for (int slab = 0; slab < kCount; ++slab)
#pragma unroll
      for (int i = 0; i < kWidth / 2; ++i) ptx::pin(values[slab][i]);
  }

  // What a consumer needs of the ring, computed once: a stage costs it a few additions.
  struct Ring {
    std::uint32_t full;           // barrier of slot 0
    std::uint32_t rows, columns;  // low halves of the operands' descriptors in slot 0
    std::uint32_t scales;         // this thread's first token scale in slot 0
    std::uint32_t empty;          // barrier of slot 0 in the CTA that this lane tells of a read slot
    bool tells;
    bool tells_scales;  // plain loads brought the slot's scales, and their copier waits for every reader

    // `row_offset`: of this warpgroup's first row in the tile.
    __device__ __forceinline__ Ring(const Arguments& p, const Cta& cta, int row_offset) {
      tells_scales = kPromoted && p.block_scales && !p.scales_by_tma;
      const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
      full = Gemm::full(cta, 0);
      rows = descriptor_low(cta.base + kGeometry.at_rows + row_offset * kSwizzleBytes);
      columns = descriptor_low(cta.base + kGeometry.at_columns);
      scales = cta.base + kGeometry.at_scales + (kSwap ? lane % 4 * 2 : row_offset + warp * 16 + lane / 4) * 4;
      // Every CTA that multicasts into this one hears of it, this one included: lane i tells CTA i of the cluster.
      tells = kCluster ? lane / (kClusterM * kClusterN) == cta.part &&
                             (lane % kClusterM == cta.row || lane / kClusterM % kClusterN == cta.column)
                       : lane == 0;
      empty = kCluster ? ptx::cluster_address(Gemm::empty(cta, 0), tells ? lane : cta.rank) : Gemm::empty(cta, 0);
    }

    // Descriptors of a K-major operand with 128-byte swizzle whose 8-row atoms lie 1024 bytes apart.
    static __device__ __forceinline__ std::uint32_t descriptor_low(std::uint32_t address) {
      return (address & 0x3ffff) >> 4 | 1u << 16;
    }
    static constexpr std::uint64_t kDescriptorHigh = std::uint64_t{64} << 32 | std::uint64_t{1} << 62;

    __device__ __forceinline__ void wait(const Slot& slot) const {
      ptx::barrier_wait(full + slot.index * 16, slot.phase);
    }

    __device__ __forceinline__ bool arrived(const Slot& slot) const {
      return ptx::barrier_passed(full + slot.index * 16, slot.phase);
    }

    __device__ __forceinline__ void release(int slot) const {
      if constexpr (kPromoted) {
        if (tells_scales) ptx::barrier_arrive(full + (kStages + kVectorBuffers + 1) * 16 + slot * 8);
        __syncwarp();  // the lane that tells speaks for all lanes' reads of the slot's scales
      }
      if (!tells) return;
      if constexpr (kCluster)
        ptx::barrier_arrive_cluster(empty + slot * 16);
      else
        ptx::barrier_arrive(empty + slot * 16);
    }

    // Puts the products of one stage in flight: sums += (or =, where starts_sum) rows * columns, for kCount slabs from
    // `first_slab` on, and the first kWidth columns.
    template <int kWidth = kColumns, int kCount>
    __device__ __forceinline__ void issue(int slot, int first_slab, Accumulator (&sums)[kCount][kAccumulators],
                                          bool starts_sum) const {
      // in units of 16 bytes, as descriptors count
      const std::uint32_t rows_now =
          rows + slot * (kGeometry.rows_bytes / 16) + first_slab * kSlabRows * (kSwizzleBytes / 16);
      const std::uint32_t columns_now = columns + slot * (kGeometry.columns_bytes / 16);
      Gemm::pin<kWidth>(sums);
      ptx::wgmma_fence();
#pragma unroll
      for (int step = 0; step < kGeometry.k_steps; ++step)
#pragma unroll
        for (int k = 0; k < 4; ++k)  // 32 bytes of k each
#pragma unroll
          for (int slab = 0; slab < kCount; ++slab)
            Wgmma<kFloat, kWidth>::multiply(
                reinterpret_cast<Accumulator(&)[kWidth / 2]>(sums[slab]),
                kDescriptorHigh | (rows_now + (step * kConfig.m * 8 + slab * kSlabRows * 8 + k * 2)),
                kDescriptorHigh | (columns_now + (step * kColumns * 8 + k * 2)), !starts_sum || step != 0 || k != 0);
      ptx::wgmma_commit();
    }
  };

  static __device__ __forceinline__ void consume(const Arguments& p, const Cta& cta, int warpgroup) {
    ptx::wait_for_previous_kernel();
    Slot slot;
    int done = 0, entry = 0;
    const int row_offset = kPingpong ? 0 : warpgroup * kSlabs * kSlabRows;  // of this warpgroup's share of a tile
    const Ring ring(p, cta, row_offset);
    for (int index = cta.first_tile; index < cta.tiles; index += cta.tile_stride, ++done) {
      if (kPingpong && done % 2 != warpgroup) {
        slot.advance(cta.k_blocks);
        continue;
      }
      const Tile tile = tile_at(p, cta, index, entry);
      const int first_row = tile.row + row_offset;
      // Ping-pong takes turns at the ring: a parity cannot tell a slot's use u from use u - 2, so a warpgroup looks only
      // after the other one has taken its whole share.
      if (kPingpong && done > 0) ptx::named_barrier_sync(kTurnBarrier + warpgroup, 256);
      const bool passes_turn = kPingpong && index + cta.tile_stride < cta.tiles;

      RowVectors row_vectors;  // requested before the main loop, used after it
      load_row_vectors(p, tile, first_row, row_vectors);
      Accumulator sums[kSlabs][kAccumulators];
      if (kMayMiss && (first_row >= row_limit(p, tile) || tile.column >= column_limit(p, tile)))
        pass_over(cta, ring, slot, warpgroup, passes_turn);
      else if constexpr (kPromoted)
        main_loop_promoted(p, cta, ring, slot, warpgroup, tile, row_offset, passes_turn, sums);
      else if constexpr (kGrouped && kSwap)
        main_loop_as_wide<1, kColumns / 16>(tile.width, cta, ring, slot, warpgroup, passes_turn, sums);
      else
        main_loop(cta, ring, slot, warpgroup, passes_turn, sums);

      bool stores = true;
      if constexpr (kSplit > 1) stores = gather_partial_sums(cta, done, sums);
      if (stores) store_tile(p, cta, tile, warpgroup, done, first_row, row_vectors, sums);
    }
    if constexpr (kSplit > 1)  // it stays, too, until it has heard that its last sums were taken
      if (cta.part > 0) ptx::barrier_wait(partials_full(cta) + 8, (done & 1) ^ 1);
    if (threadIdx.x % kStoringThreads == 0) ptx::store_wait_read<0>();
  }

  static __device__ __forceinline__ void pass_turn(int warpgroup, bool passes_turn) {
    if (passes_turn) ptx::named_barrier_arrive(kTurnBarrier + (warpgroup ^ 1), 256);
  }

  // Whether a warpgroup's share of a tile may have no rows or no columns: where several share it, or a cluster reaches past the edge.
  static constexpr bool kMayMiss = kCluster || kConfig.schedule == Schedule::cooperative;
  // Such a share.
  static __device__ __forceinline__ void pass_over(const Cta& cta, const Ring& ring, Slot& slot, int warpgroup,
                                                   bool passes_turn) {
    for (int block = 0; block < cta.k_blocks; ++block) {
      ring.wait(slot);
      __syncwarp();  // no wgmma brings the lanes together, and one tells for all of them
      ring.release(slot.index);
      slot.advance();
    }
    pass_turn(warpgroup, passes_turn);
  }

  // Multiplies `width` columns, between 16 * kFrom and 16 * kTo: one loop for each, as the instruction's text holds its size.
  template <int kFrom, int kTo>
  static __device__ __forceinline__ void main_loop_as_wide(int width, const Cta& cta, const Ring& ring, Slot& slot,
                                                           int warpgroup, bool passes_turn,
                                                           Accumulator (&sums)[kSlabs][kAccumulators]) {
    constexpr int kMiddle = (kFrom + kTo) / 2;
    if constexpr (kFrom == kTo)
      main_loop<kTo * 16>(cta, ring, slot, warpgroup, passes_turn, sums);
    else if (width <= kMiddle * 16)
      main_loop_as_wide<kFrom, kMiddle>(width, cta, ring, slot, warpgroup, passes_turn, sums);
    else
      main_loop_as_wide<kMiddle + 1, kTo>(width, cta, ring, slot, warpgroup, passes_turn, sums);
  }

  // The whole of k in one sum; the slot before the last one issued is free as soon as that one is in flight.
  template <int kWidth = kColumns>
  static __device__ __forceinline__ void main_loop(const Cta& cta, const Ring& ring, Slot& slot, int warpgroup,
                                                   bool passes_turn, Accumulator (&sums)[kSlabs][kAccumulators]) {
    // A split k starts from zeros: its loop count differs between CTAs, and the assembler serializes wgmma where a first
    // round without an old sum meets such a loop.
    constexpr bool kStartsFromZeros = kSplit > 1;
    // Narrow tiles wait for weights, not for the tensor cores: a slot that is free at once is one more on its way.
    constexpr bool kAtOnce = kGrouped && !kPingpong && kWidth <= 128;
    if constexpr (kStartsFromZeros) {
#pragma unroll
      for (int slab = 0; slab < kSlabs; ++slab)
#pragma unroll
        for (int i = 0; i < kAccumulators; ++i) sums[slab][i] = 0;
    }
    int previous = 0;
    for (int block = 0; block < cta.k_blocks; ++block) {
      ring.wait(slot);
      ring.template issue<kWidth>(slot.index, 0, sums, !kStartsFromZeros && block == 0);
      if constexpr (kAtOnce) {
        ptx::wgmma_wait<0>();
        ring.release(slot.index);
      } else {
        ptx::wgmma_wait<1>();
        if (block > 0) ring.release(previous);
      }
      previous = slot.index;
      slot.advance();
    }
    pass_turn(warpgroup, passes_turn);
    ptx::wgmma_wait<0>();
    pin<kWidth>(sums);
    if constexpr (!kAtOnce) ring.release(previous);
  }

  // ---- promotion: each 128 of k is summed by itself, then added to the fp32 sum with its scales -------------------------

  // Tokens' scales of a thread: of its rows, or of its columns where swapped.
  static constexpr int kTokenScales = kSwap ? kColumns / 4 : kSlabs * 2;

  static __device__ __forceinline__ void load_token_scales(std::uint32_t first, int slot,
                                                           float (&scales)[kTokenScales]) {
    const std::uint32_t from = first + slot * kGeometry.scale_slot;
    if constexpr (kSwap) {
#pragma unroll
      for (int j = 0; j < kColumns / 8; ++j) {
        if constexpr (kGrouped) {  // behind a shift, pairs are not aligned
          scales[j * 2] = ptx::load_shared_float(from + j * 32);
          scales[j * 2 + 1] = ptx::load_shared_float(from + j * 32 + 4);
        } else {
          const float2 pair = ptx::load_shared_float2(from + j * 32);
          scales[j * 2] = pair.x;
          scales[j * 2 + 1] = pair.y;
        }
      }
    } else {
#pragma unroll
      for (int slab = 0; slab < kSlabs; ++slab)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          scales[slab * 2 + half] = ptx::load_shared_float(from + (slab * kSlabRows + half * 8) * 4);
    }
  }

  // sums += scales * partial, for slab kSlab of the warpgroup's share. second_block: first column whose weights belong to the
  // tile's second weight block.
  template <int kSlab>
  static __device__ __forceinline__ void promote(float (&partial)[1][kAccumulators],
                                                 float (&sums)[kSlabs][kAccumulators],
                                                 const float (&token_scales)[kTokenScales], float weight0,
                                                 float weight1, int second_block) {
    constexpr bool kTwoBlocks = !kSwap && 128 % kColumns != 0;
    pin(partial);
    // Columns that share a weight block come in runs of kRun: their factors are chosen once a run.
    constexpr int kRun = !kTwoBlocks ? kColumns : kColumns % 64 == 0 ? 64 : kColumns % 32 == 0 ? 32 : 16;
    float of_block[2][2] = {};
    if constexpr (!kSwap) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        of_block[0][half] = __fmul_rn(token_scales[kSlab * 2 + half], weight0);
        if constexpr (kTwoBlocks) of_block[1][half] = __fmul_rn(token_scales[kSlab * 2 + half], weight1);
      }
    }
    float low = 0, high = 0;  // factors of registers 0, 1 and 2, 3; swapped: of 0, 2 and 1, 3
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j) {
      if constexpr (kSwap) {
        low = __fmul_rn(token_scales[j * 2], weight0);
        high = __fmul_rn(token_scales[j * 2 + 1], weight0);
      } else if (j * 8 % kRun == 0) {
        const bool second = kTwoBlocks && j * 8 >= second_block;
        low = second ? of_block[1][0] : of_block[0][0];
        high = second ? of_block[1][1] : of_block[0][1];
      }
      float* sum = &sums[kSlab][j * 4];
      const float* add = &partial[0][j * 4];
      sum[0] = __fmaf_rn(low, add[0], sum[0]);
      sum[1] = __fmaf_rn(kSwap ? high : low, add[1], sum[1]);
      sum[2] = __fmaf_rn(kSwap ? low : high, add[2], sum[2]);
      sum[3] = __fmaf_rn(high, add[3], sum[3]);
    }
  }

  // One slab: two sets of partial sums, so that one block's products run while the block before is promoted. Two slabs: one
  // set serves them in turn, and the other warpgroup keeps the tensor cores busy meanwhile; whether the next stage has come is
  // asked before the last promotion, so that the answer is there when it ends.
  static __device__ __forceinline__ void main_loop_promoted(const Arguments& p, const Cta& cta, const Ring& ring,
                                                            Slot& slot, int warpgroup, const Tile& tile, int row_offset,
                                                            bool passes_turn, float (&sums)[kSlabs][kAccumulators]) {
    static_assert(kSlabs <= 2);
    constexpr bool kTwoBlocks = !kSwap && 128 % kColumns != 0;
    constexpr bool kOverlapped = kSlabs == 1 && kAccumulators <= 64;
    const int last_weight_block = (p.n - 1) / kScaleBlockElements;
    const int weight_block =
        min((kSwap ? tile.row + row_offset : tile.column) / kScaleBlockElements, last_weight_block);
    const int next_weight_block = min(weight_block + 1, last_weight_block);
    const std::uint32_t scales_from = ring.scales + scale_shift(p, tile) * 4;
    const int second_block = (weight_block + 1) * kScaleBlockElements - tile.column;
    // One weight scale a block of k, walked by pointer; without block scales, always the same one.
    const std::int64_t k_stride = p.block_scales ? p.scale_b_k_stride : 0;
    const float* weight_scales = weight_scales_of(p, tile);
    const float* weights0 =
        p.block_scales ? weight_scales + weight_block * p.scale_b_stride + cta.k_begin * k_stride : &kUnitScale;
    const float* weights1 =
        p.block_scales ? weight_scales + next_weight_block * p.scale_b_stride + cta.k_begin * k_stride : &kUnitScale;
    const auto next_weight_scale = [k_stride](const float*& from) {
      from += k_stride;
      return ptx::load_global_float(from);
    };
#pragma unroll
    for (int slab = 0; slab < kSlabs; ++slab)
#pragma unroll
      for (int i = 0; i < kAccumulators; ++i) sums[slab][i] = 0.0f;

    float partial[1][kAccumulators];
    float token_scales[kTokenScales];
    float weight0 = ptx::load_global_float(weights0), weight1 = kTwoBlocks ? ptx::load_global_float(weights1) : 0.0f;
    const int blocks = cta.k_blocks;
    if constexpr (kOverlapped) {
      float partial_other[1][kAccumulators];
      // `current` is in flight; put the next block's products in flight too, then take `current`. No branch may stand
      // around a wgmma here, or the assembler serializes them all.
      const auto step = [&](float (&current)[1][kAccumulators], float (&next)[1][kAccumulators]) {
        const float current0 = weight0, current1 = weight1;
        const int taken = slot.index;
        slot.advance();
        load_token_scales(scales_from, taken, token_scales);
        ring.wait(slot);
        ring.issue(slot.index, 0, next, true);
        weight0 = next_weight_scale(weights0);
        if constexpr (kTwoBlocks) weight1 = next_weight_scale(weights1);
        ptx::wgmma_wait<1>();
        ring.release(taken);
        promote<0>(current, sums, token_scales, current0, current1, second_block);
      };
      const auto finish = [&](float (&current)[1][kAccumulators]) {
        load_token_scales(scales_from, slot.index, token_scales);
        ptx::wgmma_wait<0>();
        ring.release(slot.index);
        promote<0>(current, sums, token_scales, weight0, weight1, second_block);
        slot.advance();
      };
      ring.wait(slot);
      ring.issue(slot.index, 0, partial, true);
      int block = 0;
      for (; block + 2 < blocks; block += 2) {
        step(partial, partial_other);
        step(partial_other, partial);
      }
      if (block + 1 < blocks) {
        step(partial, partial_other);
        pass_turn(warpgroup, passes_turn);
        finish(partial_other);
      } else {
        pass_turn(warpgroup, passes_turn);
        finish(partial);
      }
    } else {
      std::uint32_t token_scales_at = scales_from;
      std::int64_t stride = k_stride;
      ptx::keep(token_scales_at);
      ptx::keep(stride);
      bool arrived = ring.arrived(slot);
#pragma unroll 1
      for (int left = blocks; left > 0; --left) {
        if (!arrived) ring.wait(slot);
        ring.issue(slot.index, 0, partial, true);
        if (kPingpong && left == 1) pass_turn(warpgroup, passes_turn);
        load_token_scales(token_scales_at, slot.index, token_scales);
        // behind the last block: the same scale again
        weights0 += left > 1 ? stride : 0;
        const float next0 = ptx::load_global_float(weights0);
        float next1 = 0.0f;
        if constexpr (kTwoBlocks) {
          weights1 += left > 1 ? stride : 0;
          next1 = ptx::load_global_float(weights1);
        }
        const int taken = slot.index;
        slot.advance();
        ptx::wgmma_wait<0>();
        if constexpr (kSlabs == 1) {
          ring.release(taken);
          arrived = ring.arrived(slot);
        }
        promote<0>(partial, sums, token_scales, weight0, weight1, second_block);
        if constexpr (kSlabs == 2) {
          ring.issue(taken, 1, partial, true);
          ptx::wgmma_wait<0>();
          ring.release(taken);
          arrived = ring.arrived(slot);
          promote<1>(partial, sums, token_scales, weight0, weight1, second_block);
        }
        weight0 = next0;
        weight1 = next1;
      }
    }
  }
  static constexpr int kScaleBlockElements = 128;

  // ---- split k: the first CTA of a group adds the others' sums in the order of their ranks --------------------------------

  // False where this CTA handed its sums over and has nothing to store.
  static __device__ __forceinline__ bool gather_partial_sums(const Cta& cta, int done,
                                                             Accumulator (&sums)[kSlabs][kAccumulators]) {
    constexpr int kThreads = kConsumers * 128, kSums = kSlabs * kAccumulators, kPartBytes = kSums * kThreads * 4;
    static_assert(kSums % 4 == 0 && kPartBytes * (kSplit - 1) == kGeometry.partial_bytes);
    const std::uint32_t received = partials_full(cta), taken = received + 8;
    if (cta.part > 0) {
      ptx::barrier_wait(taken, (done & 1) ^ 1);
      const std::uint32_t leader = cta.rank % (kClusterM * kClusterN);
      const std::uint32_t to = ptx::cluster_address(
          cta.base + kGeometry.at_partials + (cta.part - 1) * kPartBytes + threadIdx.x * 16, leader);
#pragma unroll
      for (int i = 0; i < kSums; i += 4) {
        std::uint32_t word[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const Accumulator value = sums[i / kAccumulators][i % kAccumulators + j];
          if constexpr (kFloat)
            word[j] = __float_as_uint(value);
          else
            word[j] = static_cast<std::uint32_t>(value);
        }
        ptx::store_cluster(to + i / 4 * kThreads * 16, make_uint4(word[0], word[1], word[2], word[3]));
      }
      ptx::barrier_arrive_release_cluster(ptx::cluster_address(received, leader));
      __syncwarp();  // lanes may have left the wait one by one, and wgmma wants them together
      return false;
    }
    ptx::barrier_wait_acquire_cluster(received, done & 1);
#pragma unroll 1
    for (int part = 0; part < kSplit - 1; ++part)
#pragma unroll
      for (int i = 0; i < kSums; i += 4) {
        const uint4 words = ptx::load_shared_16(cta.base + kGeometry.at_partials + part * kPartBytes +
                                                threadIdx.x * 16 + i / 4 * kThreads * 16);
        const std::uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          Accumulator& sum = sums[i / kAccumulators][i % kAccumulators + j];
          if constexpr (kFloat)
            sum = __fadd_rn(sum, __uint_as_float(word[j]));
          else
            sum += static_cast<std::int32_t>(word[j]);
        }
      }
    __syncwarp();
    // The loads above must have arrived, not only have been issued, before another CTA may write there again: without this,
    // sums of the next tile were seen in this one.
    __threadfence_block();
#pragma unroll
    for (int part = 1; part < kSplit; ++part) ptx::barrier_arrive_at(taken, cta.rank + part * kClusterM * kClusterN);
    __syncwarp();  // as above: stmatrix and wgmma follow
    return true;
  }

  // ---- epilogue ----------------------------------------------------------------------------------------------------------

  static constexpr int kChunk = kGeometry.chunk_columns;
  static constexpr int kGroups =
      kChunk / 8;  // a thread holds 4 values of each group of 8 columns, two rows x two columns

  static __device__ __forceinline__ void store_tile(const Arguments& p, const Cta& cta, const Tile& tile, int warpgroup,
                                                    int done, int first_row, const RowVectors& row_vectors,
                                                    Accumulator (&sums)[kSlabs][kAccumulators]) {
    const int buffer = done % kVectorBuffers;  // ping-pong: one a warpgroup, or parities could alias
    ptx::barrier_wait(vectors_full(cta, buffer), (done / kVectorBuffers) & 1);
    // The common case has code of its own, short and in one piece: what a multiprocessor fetches of an epilogue that has a
    // branch for every case takes longer than what it executes.
    const bool adds = !kGrouped && (p.bias != nullptr || (!kFloat && p.azp_adj != nullptr));
    // Grouped: what the copy engine may not store at an expert's end goes out in whole pieces of 16 bytes.
    const bool whole = !kGrouped || p.n % 8 == 0;
    const bool common = !adds && p.output != OutputKind::float32 && p.store_by_tma && whole;
    if (kStagesShare && common && p.block_scales) {
      if (p.output == OutputKind::float16)
        store_share<true>(p, cta, tile, warpgroup, first_row, sums);
      else
        store_share<false>(p, cta, tile, warpgroup, first_row, sums);
    } else if (common)
      store_chunks<true>(p, cta, tile, warpgroup, buffer, first_row, row_vectors, sums);
    else
      store_chunks<false>(p, cta, tile, warpgroup, buffer, first_row, row_vectors, sums);
    ptx::barrier_arrive(vectors_full(cta, buffer) + 8);
  }

  // Block scales leave an epilogue nothing but the rounding. Where a warpgroup's whole share has a place to stand, all of it is
  // written there first: one fence and one round of stores, which nobody waits for before the next tile's end.
  static constexpr bool kStagesShare = kPromoted && !kSwap && kStagingBuffers == kGeometry.slabs * kGeometry.chunks;
  template <bool kFloat16>
  static __device__ __forceinline__ void store_share(const Arguments& p, const Cta& cta, const Tile& tile,
                                                     int warpgroup, int first_row,
                                                     const Accumulator (&sums)[kSlabs][kAccumulators]) {
    constexpr int kLines = kGeometry.output_box_outer, kLineBytes = kGeometry.output_box_inner * 2;
    const int lane = threadIdx.x % 32, in_matrix = lane % 8, half = lane / 8 % 2, second = lane / 16;
    const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x / 32 % 4), 0);
    const std::uint32_t staging = cta.base + kGeometry.at_staging +
                                  warpgroup * kStagingBuffers * kGeometry.chunk_bytes + warp * kLines * kLineBytes;
    const auto column_of = [](int chunk) {
      return chunk * kChunk < kColumns - kChunk ? chunk * kChunk : kColumns - kChunk;
    };
    if (lane == 0) ptx::store_wait_read<0>();
    __syncwarp();
#pragma unroll
    for (int slab = 0; slab < kSlabs; ++slab)
#pragma unroll
      for (int chunk = 0; chunk < kGeometry.chunks; ++chunk)
#pragma unroll
        for (int group = 0; group < kGroups; group += 2) {
          std::uint32_t packed[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const Accumulator* pair = &sums[slab][(column_of(chunk) / 8 + group) * 4 + i * 2];
            packed[i] = kFloat16 ? ptx::pack_float16(pair[0], pair[1]) : ptx::pack_bfloat16(pair[0], pair[1]);
          }
          ptx::store_matrices<false>(staging + (slab * kGeometry.chunks + chunk) * kGeometry.chunk_bytes +
                                         staged(half * 8 + in_matrix, group + second),
                                     packed[0], packed[1], packed[2], packed[3]);
        }
    ptx::fence_for_copy_engine();
    __syncwarp();
#pragma unroll
    for (int slab = 0; slab < kSlabs; ++slab) {
      const int row = first_row + slab * kSlabRows + warp * kLines;
      if (row >= row_limit(p, tile)) break;
#pragma unroll
      for (int chunk = 0; chunk < kGeometry.chunks; ++chunk) {
        const std::uint32_t lines = staging + (slab * kGeometry.chunks + chunk) * kGeometry.chunk_bytes;
        const int column = tile.column + column_of(chunk);
        if (column >= p.n) break;
        if (kGrouped && row + kLines > tile.token_end)
          store_lines<true>(p, tile, lines, row, column, lane);
        else if (lane == 0)
          store_lines_by_tma(p, tile, lines, row, column);
      }
    }
    if (lane == 0) ptx::store_commit();
  }

  // kCommon: nothing is added, 16-bit output, and the copy engine stores every chunk (grouped: but those at an expert's end).
  template <bool kCommon>
  static __device__ __forceinline__ void store_chunks(const Arguments& p, const Cta& cta, const Tile& tile,
                                                      int warpgroup, int buffer, int first_row,
                                                      const RowVectors& row_vectors,
                                                      Accumulator (&sums)[kSlabs][kAccumulators]) {
    const bool adds = !kGrouped && (p.bias != nullptr || (!kFloat && p.azp_adj != nullptr));
    // Staging buffers take turns by a chunk's place in the tile; where chunks are skipped the turns do not follow each other.
    const bool skips = tile.column + kColumns > column_limit(p, tile);
    // Through a shuffle: the copy engine's coordinates then stand in uniform registers.
    const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x / 32 % 4), 0);
#pragma unroll
    for (int slab = 0; slab < kSlabs; ++slab) {
      const int slab_row = first_row + slab * kSlabRows;
      if (slab_row >= row_limit(p, tile)) break;  // the same for the whole warpgroup, as below
#pragma unroll
      for (int chunk = 0; chunk < kGeometry.chunks; ++chunk) {
        const int offset = chunk * kChunk < kColumns - kChunk ? chunk * kChunk : kColumns - kChunk;
        const int chunk_column = tile.column + offset;
        if (chunk_column >= column_limit(p, tile)) break;
        float values[kGroups][4];
        if (kCommon || !adds)
          scale_chunk<false>(p, cta, buffer, slab, chunk_column, offset, row_vectors, sums, values);
        else
          scale_chunk<true>(p, cta, buffer, slab, chunk_column, offset, row_vectors, sums, values);
        if (!kCommon && p.output == OutputKind::float32)
          store_chunk_float32(p, tile, slab_row, chunk_column, values);
        else
          store_chunk_16bit<kCommon>(p, cta, tile, warpgroup, warp, slab_row, chunk_column, values,
                                     (slab * kGeometry.chunks + chunk) % kStagingBuffers,
                                     chunk == 0 && (slab == 0 || skips));
      }
    }
  }

  // kAdds: there is a bias or a zero point. Without, the bias is -0, which fma32 adds without a trace: not even a zero's sign
  // changes, and rn32(scale_a * t) is what is left.
  template <bool kAdds>
  static __device__ __forceinline__ void scale_chunk(const Arguments& p, const Cta& cta, int buffer, int slab,
                                                     int chunk_column, int offset, const RowVectors& row_vectors,
                                                     const Accumulator (&sums)[kSlabs][kAccumulators],
                                                     float (&values)[kGroups][4]) {
    const int lane = threadIdx.x % 32;
    const std::uint32_t column_vectors = vectors(cta, buffer);
    const int pair = offset + lane % 4 * 2;  // this thread's columns in the first group
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      Accumulator acc[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) acc[i] = sums[slab][(offset / 8 + group) * 4 + i];
      if constexpr (kAdds && !kFloat)
        if (p.azp_adj) {
          const int2 column_zero = ptx::load_shared_int2(column_vectors + kZeroPointsAt + (pair + group * 8) * 4);
#pragma unroll
          for (int i = 0; i < 4; ++i)  // modulo 2^32
            acc[i] =
                static_cast<std::int32_t>(static_cast<std::uint32_t>(acc[i]) -
                                          static_cast<std::uint32_t>(row_vectors.zero_point[slab][i / 2]) *
                                              static_cast<std::uint32_t>(i % 2 == 0 ? column_zero.x : column_zero.y));
        }
      const float2 column_scale = ptx::load_shared_float2(column_vectors + (pair + group * 8) * 4);
      float bias[4];  // by accumulator
#pragma unroll
      for (int i = 0; i < 4; ++i) bias[i] = !kAdds ? -0.0f : kSwap ? row_vectors.bias[slab][i / 2] : 0.0f;
      if constexpr (kAdds && !kSwap)
        if (p.bias) {
          if (p.output == OutputKind::float32) {
#pragma unroll
            for (int i = 0; i < 2; ++i)
              bias[i] = bias[i + 2] = load_bias(p, min(chunk_column + lane % 4 * 2 + group * 8 + i, p.n - 1));
          } else {
            const std::uint32_t two = ptx::load_shared_word(column_vectors + kBiasesAt + (pair + group * 8) * 2);
            bias[0] = bias[2] = widen(p, static_cast<std::uint16_t>(two));
            bias[1] = bias[3] = widen(p, static_cast<std::uint16_t>(two >> 16));
          }
        }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float of_row = row_vectors.scale[slab][i / 2], of_column = i % 2 == 0 ? column_scale.x : column_scale.y;
        float sum;
        if constexpr (kFloat)
          sum = acc[i];
        else
          sum = __int2float_rn(acc[i]);
        values[group][i] = __fmaf_rn(kSwap ? of_column : of_row, __fmul_rn(kSwap ? of_row : of_column, sum), bias[i]);
      }
    }
  }

  // Straight from registers: a warp's stores cover whole 32-byte sectors either way.
  static __device__ __forceinline__ void store_chunk_float32(const Arguments& p, const Tile& tile, int slab_row,
                                                             int chunk_column, const float (&values)[kGroups][4]) {
    const int lane = threadIdx.x % 32;
    const int row = slab_row + (threadIdx.x / 32 % 4) * 16 + lane / 4;
    float* out = static_cast<float*>(p.out) + output_begin(p, tile);
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      const int column = chunk_column + group * 8 + lane % 4 * 2;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int r = row + half * 8;
        if (r >= row_limit(p, tile)) continue;
        if constexpr (kSwap) {
#pragma unroll
          for (int i = 0; i < 2; ++i)
            if (column + i < token_limit(p, tile)) out[(column + i) * p.out_stride + r] = values[group][half * 2 + i];
        } else {
          float* to = out + r * p.out_stride + column;
          if (p.vector_store && column + 1 < p.n) {
            *reinterpret_cast<float2*>(to) = make_float2(values[group][half * 2], values[group][half * 2 + 1]);
          } else {
            if (column < p.n) to[0] = values[group][half * 2];
            if (column + 1 < p.n) to[1] = values[group][half * 2 + 1];
          }
        }
      }
    }
  }

  // Who shares a piece of a chunk on its way out. Unswapped, a warp's 16 rows leave by themselves and no warp waits for
  // another; swapped, the chunk is transposed and its lines hold all warps' features.
  static constexpr int kStoringThreads = kSwap ? 128 : 32;
  static __device__ __forceinline__ void storing_threads_meet(int warpgroup) {
    if constexpr (kSwap)
      ptx::named_barrier_sync(kStagingBarrier + warpgroup, 128);
    else
      __syncwarp();
  }

  // Lines of a staging buffer, tokens from `token` on, on their way out: by the copy engine (asked for by one thread) ..
  static __device__ __forceinline__ void store_lines_by_tma(const Arguments& p, const Tile& tile, std::uint32_t staging,
                                                            int token, int feature) {
    if constexpr (kGrouped)
      ptx::store_box(&p.output_map, staging, feature, token, tile.plane);
    else
      ptx::store_box(&p.output_map, staging, feature, token);
  }
  // .. or by kStoringThreads, 16 bytes each where all of a line's pieces are whole.
  template <bool kWhole>
  static __device__ __forceinline__ void store_lines(const Arguments& p, const Tile& tile, std::uint32_t staging,
                                                     int token, int feature, int thread) {
    constexpr int kPieces = kGeometry.output_box_inner / 8;
#pragma unroll 1
    for (int i = thread; i < kGeometry.output_box_outer * kPieces; i += kStoringThreads) {
      const int line = i / kPieces, piece = i % kPieces;
      const uint4 words = ptx::load_shared_16(staging + staged(line, piece));
      const int left = p.n - feature - piece * 8;
      if (token + line >= token_limit(p, tile) || left <= 0) continue;
      std::uint16_t* to = static_cast<std::uint16_t*>(p.out) + output_begin(p, tile) + (token + line) * p.out_stride +
                          feature + piece * 8;
      if (kWhole || (p.vector_store && left >= 8)) {
        *reinterpret_cast<uint4*>(to) = words;
      } else {
        const std::uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
        for (int j = 0; j < 8; ++j)
          if (j < left) to[j] = static_cast<std::uint16_t>(word[j / 2] >> (j % 2 * 16));
      }
    }
  }

  // Through a staging buffer in the output's own order (transposed where swapped), then by the copy engine, which clips at
  // the edges, or 16 bytes a thread where pitch or base are not for it, or rows of another expert follow.
  template <bool kCommon>
  static __device__ __forceinline__ void store_chunk_16bit(const Arguments& p, const Cta& cta, const Tile& tile,
                                                           int warpgroup, int warp, int slab_row, int chunk_column,
                                                           const float (&values)[kGroups][4], int buffer,
                                                           bool all_stored) {
    constexpr int kLines = kGeometry.output_box_outer, kLineBytes = kGeometry.output_box_inner * 2;
    const int lane = threadIdx.x % 32, thread = threadIdx.x % kStoringThreads;
    const std::uint32_t staging = cta.base + kGeometry.at_staging +
                                  (warpgroup * kStagingBuffers + buffer) * kGeometry.chunk_bytes +
                                  (kSwap ? 0 : warp * kLines * kLineBytes);
    if (thread == 0) {
      if (all_stored)
        ptx::store_wait_read<0>();
      else
        ptx::store_wait_read<kStagingBuffers - 1>();
    }
    storing_threads_meet(warpgroup);
    const int in_matrix = lane % 8, half = lane / 8 % 2,
              second = lane / 16;  // matrices: (group, rows 0-7), (group, rows 8-15), ...
    std::uint32_t packed[kGroups][2];
    if (p.output == OutputKind::float16) {
#pragma unroll
      for (int group = 0; group < kGroups; ++group)
#pragma unroll
        for (int h = 0; h < 2; ++h)
          packed[group][h] = ptx::pack_float16(values[group][h * 2], values[group][h * 2 + 1]);
    } else {
#pragma unroll
      for (int group = 0; group < kGroups; ++group)
#pragma unroll
        for (int h = 0; h < 2; ++h)
          packed[group][h] = ptx::pack_bfloat16(values[group][h * 2], values[group][h * 2 + 1]);
    }
#pragma unroll
    for (int group = 0; group < kGroups; group += 2) {
      const int line = kSwap ? (group + second) * 8 + in_matrix : half * 8 + in_matrix;
      const int piece = kSwap ? warp * 2 + half : group + second;  // 16 bytes of a line
      ptx::store_matrices<kSwap>(staging + staged(line, piece), packed[group][0], packed[group][1],
                                 packed[group + 1][0], packed[group + 1][1]);
    }
    ptx::fence_for_copy_engine();
    storing_threads_meet(warpgroup);
    const int token = kSwap ? chunk_column : slab_row + warp * kLines, feature = kSwap ? slab_row : chunk_column;
    // The copy engine clips at the output's edges, not at an expert's last row.
    if ((kCommon || p.store_by_tma) && (!kGrouped || token + kLines <= tile.token_end)) {
      if (thread == 0) store_lines_by_tma(p, tile, staging, token, feature);
    } else {
      store_lines<kCommon>(p, tile, staging, token, feature, thread);
      storing_threads_meet(warpgroup);
    }
    if (thread == 0) ptx::store_commit();  // one group a chunk either way: store_wait_read counts them
  }

  // ---- grouped: what no tile stores ------------------------------------------------------------------------------------

  // By the consumers, after their tiles: rows of no expert become zeros where that is asked for, and experts whose pitches
  // the tensor maps do not have (a caller's own, or hostile ones) are multiplied element by element.
  static __device__ __forceinline__ void finish_experts(const Arguments& p, const Cta& cta) {
    const GroupedGemmProblem& problem = p.problem;
    if (problem.clear_unowned) {
      if (problem.form == GroupedForm::masked) {
        for (int expert = 0; expert < problem.experts; ++expert)
          clear_rows(p, expert, static_cast<int>(limited(read_index(problem.expert_rows, expert), 0, problem.rows)),
                     p.m);
      } else {
        const bool any = problem.experts > 0;
        const int begin =
            any ? static_cast<int>(ptx::load_shared_word(Table::header(cta.base, Table::kOwnedBegin))) : 0;
        const int end = any ? static_cast<int>(ptx::load_shared_word(Table::header(cta.base, Table::kOwnedEnd))) : 0;
        clear_rows(p, 0, 0, begin);
        clear_rows(p, 0, end, p.m);
      }
    }
    if (problem.form == GroupedForm::dropin &&
        ptx::load_shared_word(Table::header(cta.base, Table::kOtherPitches)) != 0)
      multiply_other_pitches(p);
  }

  static __device__ __forceinline__ void clear_rows(const Arguments& p, int plane, int begin, int end) {
    const int element = p.output == OutputKind::float32 ? 4 : 2;
    const bool wide = reinterpret_cast<std::uintptr_t>(p.out) % 16 == 0 && p.out_stride * element % 16 == 0 &&
                      p.problem.out_expert_stride * element % 16 == 0 && p.n * element % 16 == 0;
    const int step = wide ? 16 : element;
    for (int row = begin + blockIdx.x; row < end; row += gridDim.x) {
      char* to = static_cast<char*>(p.out) + (plane * p.problem.out_expert_stride + row * p.out_stride) * element;
      for (std::int64_t at = std::int64_t{threadIdx.x} * step; at < std::int64_t{p.n} * element;
           at += kConsumers * 128 * step) {
        if (wide)
          *reinterpret_cast<uint4*>(to + at) = make_uint4(0, 0, 0, 0);
        else if (element == 4)
          *reinterpret_cast<std::uint32_t*>(to + at) = 0;
        else
          *reinterpret_cast<std::uint16_t*>(to + at) = 0;
      }
    }
  }

  static __device__ __forceinline__ void multiply_other_pitches(const Arguments& p) {
    const GroupedGemmProblem& problem = p.problem;
    std::int64_t owned_end = 0;
    for (int expert = 0; expert < problem.experts; ++expert) {
      const ExpertShare share = next_share(problem, expert, owned_end);
      if (share.rows == 0 || Table::mapped(problem, share)) continue;
      const GemmProblem dense = expert_problem(problem, expert, share);
      for (std::int64_t i = std::int64_t{blockIdx.x} * (kConsumers * 128) + threadIdx.x; i < share.rows * problem.n;
           i += std::int64_t{gridDim.x} * (kConsumers * 128)) {
        const std::int64_t row = i / problem.n, column = i % problem.n;
        const std::uint8_t* a = static_cast<const std::uint8_t*>(dense.a) + row * dense.a_stride;
        const std::uint8_t* b = static_cast<const std::uint8_t*>(dense.b) + column * dense.b_stride;
        float sum = 0;
        if constexpr (kFloat) {
          for (std::int64_t block = 0; block < dense.k; block += kScaleBlockElements) {
            float block_sum = 0;
            for (std::int64_t k = block; k < min(block + kScaleBlockElements, dense.k); ++k)
              block_sum = numerics::fma32(numerics::float8_e4m3fn_to_float(a[k]),
                                          numerics::float8_e4m3fn_to_float(b[k]), block_sum);
            sum = numerics::add32(sum, block_sum);
          }
        } else {
          std::int32_t exact = 0;
          for (std::int64_t k = 0; k < dense.k; ++k)
            exact += static_cast<std::int8_t>(a[k]) * static_cast<std::int8_t>(b[k]);
          sum = __int2float_rn(exact);
        }
        const float value =
            numerics::mul32(dense.scale_a.data[row * dense.scale_a.outer_stride],
                            numerics::mul32(dense.scale_b.data[column * dense.scale_b.outer_stride], sum));
        static_cast<std::uint16_t*>(dense.out)[row * dense.out_stride + column] =
            dense.output_dtype == DType::float16 ? numerics::float_to_float16(value)
                                                 : numerics::float_to_bfloat16(value);
      }
    }
  }

  // Byte offset of 16-byte piece `piece` of line `line` in a staging buffer, swizzled as the output map is.
  static __device__ __forceinline__ int staged(int line, int piece) {
    if constexpr (kGeometry.output_box_inner == 64)
      return line * 128 + ((piece ^ (line & 7)) << 4);
    else
      return line * 64 + ((piece ^ ((line >> 1) & 3)) << 4);
  }
};

}  // namespace evergemm::sm90
