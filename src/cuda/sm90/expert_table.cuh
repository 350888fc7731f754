// SPDX-License-Identifier: Apache-2.0
// The experts of a grouped product as a CTA of the Hopper GEMM sees them: a table in shared memory, which each CTA makes for
// itself out of offsets, counts or sizes in device memory, whatever those hold (moe_index.h has the rules).
// Must not go here: tiles of matrices, copies (gemm.cuh).
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/fresh_index.cuh"
#include "cuda/sm90/parameters.h"
#include "cuda/sm90/ptx.cuh"
#include "evergemm/moe_index.h"
#include "plan/tile_geometry.h"

namespace evergemm::sm90 {

// Entries are {first tile, expert, first row, rows} of the experts that have rows, and one behind the last that holds the
// number of tiles. Swapped rows stand in the order of their tiles' widths, widest first: CTAs then get like shares.
// `base`: shared-memory address of the map in tile_geometry.h.
template <plan_tables::TileConfig kConfig>
struct ExpertTable {
  static constexpr plan_tables::Geometry kGeometry = plan_tables::geometry(kConfig);
  static constexpr int kExpertBytes = plan_tables::kExpertBytes;
  static constexpr bool kSwap = kConfig.swap_ab;

  enum Header {
    kTiles,
    kEntries,
    kOtherPitches,
    kOwnedBegin,
    kOwnedEnd,
    kFirstOfWidth,  // 16 of them
    kWarpSums = 6   // pairs, one a warp; where there are no widths
  };  // words
  static constexpr int kTokens = kGeometry.tokens;
  static constexpr int kWidths = 16;  // of a tile, in steps of 16
  static constexpr bool kByWidth = kSwap && kConfig.n > 64;
  static __device__ __forceinline__ std::uint32_t header(std::uint32_t base, int word) {
    return base + kGeometry.at_table + word * 4;
  }
  static __device__ __forceinline__ std::uint32_t entry_at(std::uint32_t base, int entry) {
    return base + kGeometry.at_table + plan_tables::kTableHeaderBytes + entry * kExpertBytes;
  }
  // Tiles of a whole cluster along the tokens, and how many CTAs of one share them.
  static constexpr int kTokenCtas = kSwap ? kConfig.cluster_n : 1;
  static __device__ __forceinline__ int token_tiles(int rows) {
    return (rows + kTokens * kTokenCtas - 1) / (kTokens * kTokenCtas);
  }
  // Swapped tiles share an expert's rows evenly, in steps of what wgmma's n side can be.
  static __device__ __forceinline__ int token_width(int rows, int tiles) {
    return kSwap ? ((rows - 1) / (tiles * kTokenCtas) + 16) / 16 * 16 : kTokens;  // rows up to 2^31: no sum with them
  }

  // Whether the tensor maps, which hold one pitch for all experts, hold this expert's.
  static __device__ __forceinline__ bool mapped(const GroupedGemmProblem& problem, const ExpertShare& share) {
    return share.a_stride == problem.a_stride && share.b_stride == problem.b_stride &&
           share.out_stride == problem.out_stride;
  }
  // An expert that is read alone, as if nothing lay before it: right if this holds for every expert.
  static __device__ __forceinline__ bool independent(const GroupedGemmProblem& problem, int expert,
                                                     const ExpertShare& share) {
    if (problem.form == GroupedForm::masked) return true;
    if (problem.form == GroupedForm::ragged)
      return read_index(problem.expert_rows, expert) <= read_index(problem.expert_rows, expert + 1);
    const bool last = expert + 1 == problem.experts;
    const std::int64_t next = last ? problem.rows : read_index(problem.expert_rows, expert + 1);
    if (!last && read_index(problem.expert_rows, expert) > next) return false;
    return share.rows == 0 || (mapped(problem, share) && share.first_row + share.rows <= next);
  }
  static __device__ __forceinline__ void note_expert(std::uint32_t to, int expert, const ExpertShare& share) {
    ptx::store_shared_16(to,
                         make_uint4(0, static_cast<std::uint32_t>(expert), static_cast<std::uint32_t>(share.first_row),
                                    static_cast<std::uint32_t>(share.rows)));
  }

  // Offsets in shared memory, made before the previous kernel has finished: copied, or counted from the ids of all choices.
  // By all threads; returns where they are. Behind the experts as they are read, in a ring that is not in use yet.
  static __device__ __forceinline__ const void* early_offsets(const GroupedParameters& p, std::uint32_t base) {
    constexpr int kAt = plan_tables::kMostExperts * kExpertBytes;
    static_assert(kAt + (plan_tables::kMostExperts + 1) * 4 <= kConfig.stages * kGeometry.rows_bytes);
    const int experts = static_cast<int>(p.problem.experts), threads = kGeometry.threads;
    const std::uint32_t shared = base + kGeometry.at_rows + kAt;
    auto* const offsets = static_cast<std::int32_t*>(__cvta_shared_to_generic(shared));
    if (p.choices.ids == nullptr) {
      const auto* written = static_cast<const int*>(p.problem.expert_rows.data);
      for (int e = threadIdx.x; e <= experts; e += threads) offsets[e] = __ldcg(written + e);
      __syncthreads();
      return offsets;
    }
    for (int e = threadIdx.x; e <= experts; e += threads) offsets[e] = 0;
    __syncthreads();
    const auto top_k = static_cast<unsigned>(p.choices.top_k),
               choices = static_cast<unsigned>(p.choices.tokens) * top_k;
    for (unsigned i = threadIdx.x; i < choices; i += threads) {
      const std::int64_t expert = local_expert(p.choices, i / top_k, i % top_k, cuda::ReadThroughL2());
      if (expert >= 0) atomicAdd(offsets + expert, 1);
    }
    __syncthreads();
    if (threadIdx.x < 32) {  // each lane the sums of a run of experts
      const int each = (experts + 31) / 32, begin = min(static_cast<int>(threadIdx.x) * each, experts),
                end = min(begin + each, experts);
      int rows = 0;
      for (int e = begin; e < end; ++e) rows += offsets[e];
      int sum = inclusive_sum(rows) - rows;
      for (int e = begin; e < end; ++e) {
        const int of_expert = offsets[e];
        offsets[e] = sum;
        sum += of_expert;
      }
      if (threadIdx.x == 31) offsets[experts] = sum;
    }
    __syncthreads();
    return offsets;
  }

  // By all threads. The ring is not in use yet and holds the experts as they are read.
  static __device__ __forceinline__ void make(const GroupedParameters& p, std::uint32_t base) {
    GroupedGemmProblem problem = p.problem;
    if (p.early) problem.expert_rows.data = early_offsets(p, base);
    const int experts = static_cast<int>(problem.experts);
    const std::uint32_t read = base + kGeometry.at_rows;
    if (threadIdx.x < 32) ptx::store_shared(header(base, threadIdx.x), 0);
    bool all_independent = true;
    for (int expert = threadIdx.x; expert < experts; expert += kGeometry.threads) {
      std::int64_t nothing_owned = 0;
      const ExpertShare share = next_share(problem, expert, nothing_owned);
      all_independent = all_independent && independent(problem, expert, share);
      note_expert(read + expert * kExpertBytes, expert, share);
    }
    if (!__syncthreads_and(all_independent)) {  // values that a router would not write: in order, by one thread
      if (threadIdx.x == 0) {
        std::int64_t owned_end = 0;
        for (int expert = 0; expert < experts; ++expert) {
          ExpertShare share = next_share(problem, expert, owned_end);
          if (share.rows > 0 && !mapped(problem, share)) {
            ptx::store_shared(header(base, kOtherPitches), 1);
            share.rows = 0;
          }
          note_expert(read + expert * kExpertBytes, expert, share);
        }
      }
      __syncthreads();
    }
    if constexpr (!kByWidth)
      arrange_in_order(p, base, experts, read);
    else if (threadIdx.x < 32)
      arrange_by_width(p, base, experts, read);
    ptx::fence_for_copy_engine();  // which fills the ring next
  }

  static __device__ __forceinline__ void note_owned(std::uint32_t base, int experts, std::uint32_t read) {
    if (experts == 0) return;
    const uint4 first = ptx::load_shared_16(read), last = ptx::load_shared_16(read + (experts - 1) * kExpertBytes);
    ptx::store_shared(header(base, kOwnedBegin), static_cast<std::int32_t>(first.z));
    ptx::store_shared(header(base, kOwnedEnd), static_cast<std::int32_t>(last.z + last.w));
  }

  // Experts that have rows in their own order. By all threads: few tokens wait for this.
  static __device__ __forceinline__ void arrange_in_order(const GroupedParameters& p, std::uint32_t base, int experts,
                                                          std::uint32_t read) {
    constexpr int kWarps = kGeometry.threads / 32;
    static_assert(kWarpSums + 2 * kWarps <= plan_tables::kTableHeaderBytes / 4);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int entries = 0, tiles = 0;
    for (int begin = 0; begin < experts; begin += kGeometry.threads) {
      const int at = begin + static_cast<int>(threadIdx.x);
      uint4 expert = make_uint4(0, 0, 0, 0);
      if (at < experts) expert = ptx::load_shared_16(read + at * kExpertBytes);
      const bool has_rows = expert.w != 0;
      const unsigned with_rows = __ballot_sync(~0u, has_rows);
      const int own = token_tiles(static_cast<int>(expert.w)) * p.tiles_features, sum = inclusive_sum(own);
      if (begin > 0) __syncthreads();  // the sums before these have been read
      if (lane == 31) {
        ptx::store_shared(header(base, kWarpSums + 2 * warp), __popc(with_rows));
        ptx::store_shared(header(base, kWarpSums + 2 * warp + 1), sum);
      }
      __syncthreads();
      int place = entries + __popc(with_rows & ((1u << lane) - 1)), first_tile = tiles + sum - own;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        const int2 of_warp = ptx::load_shared_int2(header(base, kWarpSums + 2 * w));
        place += w < warp ? of_warp.x : 0;
        first_tile += w < warp ? of_warp.y : 0;
        entries += of_warp.x;
        tiles += of_warp.y;
      }
      expert.x = static_cast<std::uint32_t>(first_tile);
      if (has_rows) ptx::store_shared_16(entry_at(base, place), expert);
    }
    if (threadIdx.x != 0) return;
    note_owned(base, experts, read);
    ptx::store_shared(entry_at(base, entries), tiles);
    ptx::store_shared(header(base, kTiles), tiles);
    ptx::store_shared(header(base, kEntries), entries);
  }

  // The widest first. By one warp.
  static __device__ __forceinline__ void arrange_by_width(const GroupedParameters& p, std::uint32_t base, int experts,
                                                          std::uint32_t read) {
    const int lane = threadIdx.x;
    const unsigned before_me = (1u << lane) - 1;
    if (lane == 0) note_owned(base, experts, read);
    // Where each expert goes: behind those that are wider, or as wide and before it.
    int entries = 0;
    const auto width_class = [](const uint4& expert) {
      const int rows = static_cast<int>(expert.w);
      return kWidths - token_width(rows, token_tiles(rows)) / 16;
    };
    for (int at = 0; at < experts; at += 32) {
      uint4 expert = make_uint4(0, 0, 0, 0);
      if (at + lane < experts) expert = ptx::load_shared_16(read + (at + lane) * kExpertBytes);
      const int wanted = expert.w == 0 ? kWidths : width_class(expert);
      const unsigned alike = __match_any_sync(~0u, wanted);
      const std::uint32_t counter = header(base, kFirstOfWidth + wanted);
      if (wanted < kWidths && (alike & before_me) == 0)
        ptx::store_shared(counter, static_cast<std::int32_t>(ptx::load_shared_word(counter)) + __popc(alike));
      __syncwarp();
    }
    const int count = lane < kWidths ? static_cast<int>(ptx::load_shared_word(header(base, kFirstOfWidth + lane))) : 0;
    const int sum = inclusive_sum(count);
    if (lane < kWidths) ptx::store_shared(header(base, kFirstOfWidth + lane), sum - count);
    __syncwarp();
    for (int at = 0; at < experts; at += 32) {
      uint4 expert = make_uint4(0, 0, 0, 0);
      if (at + lane < experts) expert = ptx::load_shared_16(read + (at + lane) * kExpertBytes);
      const bool has_rows = expert.w != 0;
      const int wanted = has_rows ? width_class(expert) : kWidths;
      const unsigned alike = __match_any_sync(~0u, wanted);
      const std::uint32_t counter = header(base, kFirstOfWidth + (has_rows ? wanted : 0));
      const int first = static_cast<int>(ptx::load_shared_word(counter));
      __syncwarp();
      if (has_rows && (alike & before_me) == 0) ptx::store_shared(counter, first + __popc(alike));
      __syncwarp();
      if (has_rows) ptx::store_shared_16(entry_at(base, first + __popc(alike & before_me)), expert);
      entries += __popc(__ballot_sync(~0u, has_rows));
    }
    __syncwarp();
    int tiles = 0;
    for (int at = 0; at < entries; at += 32) {
      const bool exists = at + lane < entries;
      const int rows = exists ? static_cast<int>(ptx::load_shared_16(entry_at(base, at + lane)).w) : 0;
      const int here = token_tiles(rows) * p.tiles_features;
      const int sum = inclusive_sum(here);
      if (exists) ptx::store_shared(entry_at(base, at + lane), tiles + sum - here);
      tiles += __shfl_sync(~0u, sum, 31);
    }
    if (lane == 0) {
      ptx::store_shared(entry_at(base, entries), tiles);
      ptx::store_shared(header(base, kTiles), tiles);
      ptx::store_shared(header(base, kEntries), entries);
    }
  }

  static __device__ __forceinline__ int inclusive_sum(int value) {  // over a warp's lanes
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int other = __shfl_up_sync(~0u, value, distance);
      if (static_cast<int>(threadIdx.x % 32) >= distance) value += other;
    }
    return value;
  }

  // The entry that holds tile `index`, asked for by a whole warp. Indices ascend, and so does `entry`, which remembers the
  // place: a look at 32 entries mostly finds the next one.
  static __device__ __forceinline__ uint4 find(std::uint32_t base, int entries, int index, int& entry) {
    const int lane = threadIdx.x % 32;
    for (;;) {
      const int first = static_cast<int>(ptx::load_shared_word(entry_at(base, min(entry + 1 + lane, entries))));
      const int passed = __popc(__ballot_sync(~0u, index >= first));
      entry += passed;
      if (passed < 32) break;
    }
    const uint4 found = ptx::load_shared_16(entry_at(base, entry));
    __syncwarp();  // together again: wgmma and stmatrix follow
    return found;
  }
};

}  // namespace evergemm::sm90
