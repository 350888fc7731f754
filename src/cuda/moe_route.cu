// SPDX-License-Identifier: Apache-2.0
// Expert ids to offsets, rows and slots in one launch, stable: a block of threads, or a cluster of them that exchanges its
// counts through shared memory, ranks its choices warp by warp. Also the data operators of the drop-in set. An id may hold
// any value. Must not go here: matrix elements.
#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <mutex>
#include <type_traits>

#include "cuda/device.h"
#include "cuda/moe_kernels.h"
#include "cuda/moe_route.cuh"
#include "cuda/quantize_kernels.h"
#include "cuda/quantize_values.cuh"
#include "evergemm/moe_index.h"

namespace evergemm::cuda {
namespace {

constexpr int kMostThreads = 1024, kMostWarps = kMostThreads / kWarp;
constexpr int kCounters = 8192;  // warps x experts of a block: 32 KiB of shared memory
constexpr int kOutside = 2048;   // copies x experts of a histogram: equal experts of a warp meet in few places
constexpr int kMostCopies = 8, kCopyPad = 4;  // a pad, so that an expert's copies lie in different banks
constexpr int kMostExperts = 1024;            // beyond: route_in_global
constexpr unsigned kOneBlock = 512;           // choices that one block routes alone
constexpr unsigned kCluster = 8;              // blocks that count together
constexpr unsigned kMostClusters = 15;  // that an H100 holds at a time: a sixteenth starts when one of them has ended
constexpr unsigned kMostSingle = 64;
constexpr unsigned kFewWarps = 8;  // of a block that count its slice, where there are clusters enough
constexpr int kAhead = 4;          // ids in flight while the choices outside of a slice are counted
constexpr int kBatch = 8;          // counters in flight

// How the choices are split. The blocks of a cluster (or each block alone) count all choices, a range each. They place a slice
// of their range, which differs from cluster to cluster: what lies before it and behind it is only counted. Within a slice a warp
// takes warp_choices in order.
struct Split {
  unsigned choices, range, slice, warp_choices;
  unsigned cluster;         // blocks of one
  unsigned counting_warps;  // of a block: those that have choices of a slice
  int columns;              // experts, rounded up to whole warps; at most as many as a block has threads
  int copies;               // of a histogram, a power of two; 0: nothing lies outside of the slices
  bool plain;               // ids lie without gaps at a multiple of 16 bytes, and are local experts
  Divisor by_top_k;
};

// How many choices of the same expert stand before this lane's, in this warp's counters and among the lower lanes; the
// counters then hold the whole warp's. expert -1: none.
__device__ __forceinline__ unsigned count(volatile std::uint32_t* counters, int expert, unsigned lane) {
  const unsigned same = __match_any_sync(~0u, expert);
  const unsigned before = expert >= 0 ? counters[expert] : 0u;
  __syncwarp();
  if (expert >= 0 && static_cast<int>(lane) == __ffs(static_cast<int>(same)) - 1)
    counters[expert] = before + static_cast<unsigned>(__popc(same));
  __syncwarp();
  return before + static_cast<unsigned>(__popc(same & ((1u << lane) - 1)));
}

// ---- clusters: blocks that write into each other's shared memory ------------------------------------------------------

__device__ __forceinline__ std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}
// A barrier of this block that completes when `bytes` have come from others. By one warp; the cluster then meets.
__device__ __forceinline__ void expect_bytes(std::uint64_t* barrier, unsigned bytes) {
#if __CUDA_ARCH__ >= 900
  if (threadIdx.x == 0) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncwarp();  // racecheck takes a barrier's beginning for another lane's write
  if (threadIdx.x == 0)
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
#endif
}
// The barriers of all are there. No memory is ordered otherwise: a release would wait for the whole GPU's memory.
__device__ __forceinline__ void arrive_at_cluster() {
#if __CUDA_ARCH__ >= 900
  __syncwarp();  // "aligned": by whole warps
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void wait_for_cluster() {
#if __CUDA_ARCH__ >= 900
  __syncwarp();
  asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
#endif
}
// To the same place in another block of the cluster, counted by the same barrier there.
__device__ __forceinline__ void store_to_block(std::uint32_t* to, std::uint32_t value, std::uint64_t* barrier,
                                               unsigned block) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{ .reg .b32 there, counted;\n"
      "  mapa.shared::cluster.u32 there, %0, %3;\n"
      "  mapa.shared::cluster.u32 counted, %1, %3;\n"
      "  st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [there], %2, [counted]; }" ::"r"(
          shared_address(to)),
      "r"(shared_address(barrier)), "r"(value), "r"(block)
      : "memory");
#endif
}
__device__ __forceinline__ void wait_for_bytes(std::uint64_t* barrier) {
#if __CUDA_ARCH__ >= 900
  std::uint32_t done;
  do {
    asm volatile(
        "{ .reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], 0; selp.u32 %0, 1, 0, p; }"
        : "=r"(done)
        : "r"(shared_address(barrier))
        : "memory");
  } while (!done);
#endif
}

// ---- choices that are only counted -----------------------------------------------------------------------------------

constexpr unsigned kTogether = 4;  // ids that a thread reads at once; ranges and slices begin at multiples of it
constexpr unsigned kRounds = 2;    // such reads in flight: a thread waits for memory once

// Counts the choices [begin, end) but for those of the slice, by all threads.
template <class Id>
__device__ __forceinline__ void count_plain(const Id* ids, unsigned experts, unsigned begin, unsigned end,
                                            unsigned slice_begin, unsigned slice_end, std::uint32_t* before,
                                            std::uint32_t* behind) {
  using Unsigned = std::conditional_t<sizeof(Id) == 8, std::uint64_t, std::uint32_t>;
  const auto count_one = [&](unsigned i, Id id) {  // what is negative is larger than every expert
    if (static_cast<Unsigned>(id) < experts) atomicAdd((i < slice_begin ? before : behind) + id, 1u);
  };
  const unsigned whole = begin + (end - begin) / kTogether * kTogether, step = blockDim.x * kTogether;
#pragma unroll 1
  for (unsigned i = begin + threadIdx.x * kTogether; i < whole; i += step * kRounds) {
    alignas(16) Id id[kRounds][kTogether];
#pragma unroll
    for (unsigned round = 0; round < kRounds; ++round) {
      const unsigned at = i + round * step;
      const bool counted = at < whole && (at < slice_begin || at >= slice_end);
#pragma unroll
      for (unsigned j = 0; j < kTogether; ++j) id[round][j] = Id{-1};
#pragma unroll
      for (unsigned part = 0; part < sizeof(id[0]) / 16; ++part)
        if (counted) reinterpret_cast<uint4*>(id[round])[part] = reinterpret_cast<const uint4*>(ids + at)[part];
    }
#pragma unroll
    for (unsigned round = 0; round < kRounds; ++round)
#pragma unroll
      for (unsigned j = 0; j < kTogether; ++j) count_one(i + round * step, id[round][j]);
  }
  const unsigned last = whole + threadIdx.x;  // of the fewer than kTogether that are left
  if (last < end && (last < slice_begin || last >= slice_end)) count_one(last, ids[last]);
}

// The sum of an expert's counts in the copies of a histogram.
__device__ __forceinline__ unsigned sum_of_copies(const std::uint32_t* counts, int copies, int pitch) {
  unsigned of_copy[kMostCopies], sum = 0;
#pragma unroll
  for (int copy = 0; copy < kMostCopies; ++copy) of_copy[copy] = copy < copies ? counts[copy * pitch] : 0u;
#pragma unroll
  for (int copy = 0; copy < kMostCopies; ++copy) sum += of_copy[copy];
  return sum;
}

struct Data {              // what is written besides
  MoeDataProblem problem;  // by the drop-in operator; its ids and outputs are those of the route problem
  std::uint32_t* cleared;
};

// kOne: a warp has at most 32 choices of the slice, one a lane. Shared memory: counters [warps, columns] of the slice, histograms
// of what lies before and behind it [2, copies, columns and pad], the counts of each block of the cluster [cluster, columns],
// beginnings [columns].
// In shared memory thread t has expert t.
template <bool kData, bool kOne>
__global__ void __launch_bounds__(kMostThreads, 1)
    route_in_shared(const __grid_constant__ MoeRouteProblem p, const __grid_constant__ Split split,
                    const __grid_constant__ Data data) {
  extern __shared__ __align__(16) std::uint32_t memory[];
  constexpr int kSums = kData ? 2 : 1;  // rows, rows rounded up to 128
  __shared__ unsigned scratch[kSums][kWarp];
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const unsigned cluster = split.cluster, rank = blockIdx.x % cluster;
  const int columns = split.columns, pitch = columns + kCopyPad, e = static_cast<int>(threadIdx.x);
  std::uint32_t* const counters = memory;
  std::uint32_t* const outside = counters + split.counting_warps * columns;
  std::uint32_t* const of_blocks = outside + 2 * split.copies * pitch;
  std::uint32_t* const begins = of_blocks + (cluster > 1 ? cluster * columns : 0);
  __shared__ std::uint64_t exchanged;

  if (cluster > 1) {
    if (warp == 0) expect_bytes(&exchanged, cluster * static_cast<unsigned>(columns) * 4);
    arrive_at_cluster();
  }
  static_assert(kWarp % 4 == 0 && kCopyPad % 4 == 0);  // all that begins in this memory begins at 16 bytes
#pragma unroll 1
  for (std::uint32_t* words = memory + threadIdx.x * 4; words < of_blocks; words += blockDim.x * 4)
    *reinterpret_cast<uint4*>(words) = uint4{};
  __syncthreads();
  wait_for_previous_kernel();
  allow_next_kernel();  // it waits for this one's end; starting many blocks takes time

  // ---- count ----
  const unsigned range_begin = min(rank * split.range, split.choices),
                 range_end = min(range_begin + split.range, split.choices),
                 slice_begin = min(range_begin + blockIdx.x / cluster * split.slice, range_end),
                 slice_end = min(slice_begin + split.slice, range_end);
  const unsigned first = slice_begin + warp * split.warp_choices, end = min(first + split.warp_choices, slice_end);
  std::uint32_t* const own = counters + warp * columns;
  int expert = -1;  // kOne: of this lane's choice
  if (kOne && first + lane < end) expert = expert_of(p, split.by_top_k, first + lane);
  if (split.copies > 0) {
    const auto copy = static_cast<unsigned>(threadIdx.x & (static_cast<unsigned>(split.copies) - 1));
    std::uint32_t* const before = outside + copy * pitch;
    std::uint32_t* const behind = before + split.copies * pitch;
    const auto experts = static_cast<unsigned>(p.experts);
    if (split.plain && p.ids_are_int64)
      count_plain(static_cast<const std::int64_t*>(p.ids), experts, range_begin, range_end, slice_begin, slice_end,
                  before, behind);
    else if (split.plain)
      count_plain(static_cast<const std::int32_t*>(p.ids), experts, range_begin, range_end, slice_begin, slice_end,
                  before, behind);
#pragma unroll 1
    for (unsigned i = range_begin + threadIdx.x; !split.plain && i < range_end; i += blockDim.x * kAhead) {
      int others[kAhead];
#pragma unroll
      for (unsigned j = 0; j < kAhead; ++j) {
        const unsigned at = i + j * blockDim.x;
        others[j] = at < range_end && (at < slice_begin || at >= slice_end) ? expert_of(p, split.by_top_k, at) : -1;
      }
#pragma unroll
      for (unsigned j = 0; j < kAhead; ++j)
        if (others[j] >= 0) atomicAdd((i + j * blockDim.x < slice_begin ? before : behind) + others[j], 1u);
    }
  }
  unsigned rank_in_warp = 0;
  if constexpr (kOne) {
    if (first < end) rank_in_warp = count(own, expert, lane);
  } else {
#pragma unroll 1
    for (unsigned begin = first; begin < end; begin += kWarp)
      count(own, begin + lane < end ? expert_of(p, split.by_top_k, begin + lane) : -1, lane);
  }
  __syncthreads();

  // ---- sum ----
  unsigned of_all = 0, of_earlier = 0;  // choices of expert e: all, and those of the ranges before
  if (e < columns) {
    unsigned sum = 0, behind = 0;
    if (split.copies > 0) {
      sum = sum_of_copies(outside + e, split.copies, pitch);
      behind = sum_of_copies(outside + split.copies * pitch + e, split.copies, pitch);
    }
#pragma unroll 1
    for (unsigned w = 0; w < split.counting_warps; w += kBatch) {  // becomes: those before the warp's, in the range
      unsigned of_warp[kBatch];
#pragma unroll
      for (unsigned j = 0; j < kBatch; ++j)
        of_warp[j] = w + j < split.counting_warps ? counters[(w + j) * columns + e] : 0u;
#pragma unroll
      for (unsigned j = 0; j < kBatch; ++j) {
        if (w + j < split.counting_warps) counters[(w + j) * columns + e] = sum;
        sum += of_warp[j];
      }
    }
    of_all = sum + behind;
  }
  if (cluster > 1) {
    wait_for_cluster();  // the others have begun; nobody leaves before all counts have come to it
    if (e < columns)
#pragma unroll
      for (unsigned b = 0; b < kCluster; ++b) store_to_block(&of_blocks[rank * columns + e], of_all, &exchanged, b);
    wait_for_bytes(&exchanged);
    if (e < columns) {
      of_all = 0;
#pragma unroll
      for (unsigned b = 0; b < kCluster; ++b) {
        const unsigned of_block = of_blocks[b * columns + e];
        of_earlier += b < rank ? of_block : 0u;
        of_all += of_block;
      }
    }
  }
  unsigned sums[kSums] = {of_all}, totals[kSums];
  if constexpr (kData) sums[1] = (of_all + 127) / 128 * 128;
  scan_block(sums, totals, scratch);
  const unsigned routed = totals[0];
  if (e < columns) begins[e] = sums[0] + of_earlier;  // where the range's rows of the expert begin
  if (blockIdx.x == 0) {
    if (!kData && data.cleared != nullptr && threadIdx.x < kClearedWords) data.cleared[threadIdx.x] = 0;
    if (e < p.experts) {
      p.expert_offsets[e] = static_cast<std::int32_t>(sums[0]);
      if constexpr (kData) {
        write_sizes(data.problem, e, of_all);
        if (data.problem.blockscale_offsets != nullptr)
          data.problem.blockscale_offsets[e] = static_cast<std::int32_t>(sums[1]);
      }
    }
    if (threadIdx.x == 0) {
      p.expert_offsets[p.experts] = static_cast<std::int32_t>(routed);
      if constexpr (kData)
        if (data.problem.blockscale_offsets != nullptr)
          data.problem.blockscale_offsets[p.experts] = static_cast<std::int32_t>(totals[1]);
    }
  }
  __syncthreads();

  // ---- place ----
  const int nowhere = kData ? static_cast<int>(routed) : -1;
#pragma unroll 1
  for (unsigned begin = first; begin < end; begin += kWarp) {
    const unsigned i = begin + lane;
    if constexpr (!kOne) {
      expert = i < end ? expert_of(p, split.by_top_k, i) : -1;
      rank_in_warp = count(own, expert, lane);
    }
    if (i >= end) continue;
    if (expert < 0) {
      p.slot[i] = nowhere;
      continue;
    }
    const unsigned row = begins[expert] + rank_in_warp + (kOne ? own[expert] : 0u);
    p.slot[i] = static_cast<std::int32_t>(row);
    if (p.source_row != nullptr) p.source_row[row] = static_cast<std::int32_t>(split.by_top_k.quotient(i));
  }
  if (!kData && p.source_row != nullptr)
#pragma unroll 1
    for (unsigned i = routed + blockIdx.x * blockDim.x + threadIdx.x; i < split.choices; i += gridDim.x * blockDim.x)
      p.source_row[i] = -1;
}

// Any number of experts, one block: expert_offsets itself holds the counts,
// then the cursors. Warp w places the experts whose number modulo the warps is
// w, so that no two warps share a cursor.
template <bool kData>
__global__ void __launch_bounds__(kMostThreads)
    route_in_global(const __grid_constant__ MoeRouteProblem p, const __grid_constant__ Split split,
                    const __grid_constant__ Data data) {
  __shared__ unsigned scratch[2][kWarp];
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const auto experts = static_cast<unsigned>(p.experts);
  volatile std::int32_t* const offsets = p.expert_offsets;
  wait_for_previous_kernel();
  for (unsigned e = threadIdx.x; e <= experts; e += kMostThreads) offsets[e] = 0;
  __syncthreads();
  for (unsigned i = threadIdx.x; i < split.choices; i += kMostThreads) {
    const int e = expert_of(p, split.by_top_k, i);
    if (e >= 0) atomicAdd(&p.expert_offsets[e + 1], 1);
  }
  __syncthreads();
  unsigned carry[2] = {};
  for (unsigned begin = 0; begin < experts; begin += kMostThreads) {  // offsets[e + 1]: rows of e -> rows up to e
    const unsigned e = begin + threadIdx.x;
    const unsigned rows = e < experts ? static_cast<unsigned>(offsets[e + 1]) : 0u, padded = (rows + 127) / 128 * 128;
    unsigned sums[2] = {rows, padded}, totals[2];
    __syncthreads();
    scan_block(sums, totals, scratch);
    if (e < experts) {
      offsets[e + 1] = static_cast<std::int32_t>(carry[0] + sums[0] + rows);
      if constexpr (kData) {
        write_sizes(data.problem, e, rows);
        if (data.problem.blockscale_offsets != nullptr)
          data.problem.blockscale_offsets[e] = static_cast<std::int32_t>(carry[1] + sums[1]);
      }
    }
    carry[0] += totals[0];
    carry[1] += totals[1];
  }
  const unsigned routed = carry[0];
  if (!kData && data.cleared != nullptr && threadIdx.x < kClearedWords) data.cleared[threadIdx.x] = 0;
  if constexpr (kData)
    if (threadIdx.x == 0 && data.problem.blockscale_offsets != nullptr)
      data.problem.blockscale_offsets[experts] = static_cast<std::int32_t>(carry[1]);
  __syncthreads();
  for (unsigned begin = 0; begin < split.choices; begin += kWarp) {
    const unsigned i = begin + lane;
    const int e = i < split.choices ? expert_of(p, split.by_top_k, i) : -1;
    const bool mine = e >= 0 && static_cast<unsigned>(e) % kMostWarps == warp;
    if (warp == 0 && e < 0 && i < split.choices) p.slot[i] = kData ? static_cast<int>(routed) : -1;
    const unsigned same = __match_any_sync(~0u, mine ? e : -1);
    const unsigned before = mine ? static_cast<unsigned>(offsets[e]) : 0u;
    __syncwarp();
    if (mine && static_cast<int>(lane) == __ffs(static_cast<int>(same)) - 1)
      offsets[e] = static_cast<std::int32_t>(before) + __popc(same);
    __syncwarp();
    if (!mine) continue;
    const unsigned row = before + static_cast<unsigned>(__popc(same & ((1u << lane) - 1)));
    p.slot[i] = static_cast<std::int32_t>(row);
    if (p.source_row != nullptr) p.source_row[row] = static_cast<std::int32_t>(split.by_top_k.quotient(i));
  }
  __syncthreads();
  // Each cursor stands where the next expert begins: move them up, the last
  // ones first.
  for (unsigned end = (experts + kMostThreads - 1) / kMostThreads * kMostThreads; end > 0; end -= kMostThreads) {
    const unsigned e = end - kMostThreads + threadIdx.x;
    const std::int32_t begin_of_next = e < experts ? offsets[e] : 0;
    __syncthreads();
    if (e + 1 < experts) offsets[e + 1] = begin_of_next;
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    offsets[0] = 0;
    offsets[experts] = static_cast<std::int32_t>(routed);
  }
  if (!kData && p.source_row != nullptr)
    for (unsigned i = routed + threadIdx.x; i < split.choices; i += kMostThreads) p.source_row[i] = -1;
  allow_next_kernel();
}

constexpr std::int64_t kMostRows = std::numeric_limits<std::int32_t>::max();

// Rows of each expert from offsets of any value: limited, and made monotone by
// a running maximum.
__global__ void __launch_bounds__(kMostThreads) sizes_from_offsets(const __grid_constant__ MoeDataProblem p) {
  __shared__ int scratch[kWarp];
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  wait_for_previous_kernel();
  int carry = static_cast<int>(limited(read_index(p.input, 0), 0, kMostRows));
  for (std::int64_t begin = 0; begin < p.experts; begin += kMostThreads) {
    const std::int64_t e = begin + threadIdx.x;
    int highest = e < p.experts ? static_cast<int>(limited(read_index(p.input, e + 1), 0, kMostRows)) : 0;
#pragma unroll
    for (unsigned distance = 1; distance < kWarp; distance *= 2) {
      const int other = __shfl_up_sync(~0u, highest, distance);
      if (lane >= distance) highest = max(highest, other);
    }
    __syncthreads();
    if (lane == kWarp - 1) scratch[warp] = highest;
    __syncthreads();
    int before = carry, all = carry;
    for (unsigned w = 0; w < kMostWarps; ++w) {
      before = w < warp ? max(before, scratch[w]) : before;
      all = max(all, scratch[w]);
    }
    const int in_warp = __shfl_up_sync(~0u, highest, 1);
    const int start = lane > 0 ? max(before, in_warp) : before;
    if (e < p.experts) write_sizes(p, e, max(start, highest) - start);
    carry = all;
  }
  allow_next_kernel();
}

constexpr int kSizeThreads = 256;

__global__ void __launch_bounds__(kSizeThreads) sizes_from_counts(const __grid_constant__ MoeDataProblem p) {
  wait_for_previous_kernel();
  for (std::int64_t e = blockIdx.x * std::int64_t{kSizeThreads} + threadIdx.x; e < p.experts;
       e += std::int64_t{gridDim.x} * kSizeThreads) {
    p.expert_offsets[e] = static_cast<std::int32_t>(e * p.padded_rows);
    write_sizes(p, e, limited(read_index(p.input, e), 0, p.padded_rows));
  }
  allow_next_kernel();
}

// ---- launches -------------------------------------------------------------------------------------------------------

template <bool kData>
const void* kernel_of(bool one) {
  return one ? reinterpret_cast<const void*>(&route_in_shared<kData, true>)
             : reinterpret_cast<const void*>(&route_in_shared<kData, false>);
}

// Copies of a histogram of what lies outside of a slice.
constexpr int copies_of(int columns) {
  int copies = 1;
  while (copies < kMostCopies && 2 * copies * columns <= kOutside) copies *= 2;
  return copies;
}
constexpr int most_counting_warps(int columns) { return std::min(kMostWarps, kCounters / columns); }
// counted: blocks whose counts come to each of them.
constexpr int shared_bytes(int columns, int counting_warps, int copies, int counted) {
  return 4 * (columns * (counting_warps + counted + 1) + 2 * copies * (columns + kCopyPad));
}
// What a block needs at most. (One that places everything has no histograms, and needs less than what needs no asking.)
constexpr int most_shared_bytes(int counted) {
  int most = 0;
  for (int columns = kWarp; columns <= kMostExperts; columns += kWarp)
    most = std::max(most, shared_bytes(columns, most_counting_warps(columns), copies_of(columns), counted));
  return most;
}
static_assert(most_shared_bytes(0) <= 64 * 1024, "Turing has no more");

// More than a kernel has unasked, where more than one block works; asked for once on each device.
cudaError_t allow_shared_memory(std::int32_t device, bool clusters) {
  struct Allowed {
    std::once_flag once;
    cudaError_t error = cudaSuccess;
  };
  static std::array<Allowed, kMaxDevices> cache;
  Allowed& entry = cache[static_cast<std::size_t>(device)];
  std::call_once(entry.once, [&entry, clusters] {
    for (const void* kernel :
         {kernel_of<false>(false), kernel_of<false>(true), kernel_of<true>(false), kernel_of<true>(true)})
      if (entry.error == cudaSuccess)
        entry.error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           most_shared_bytes(clusters ? kCluster : 0));
  });
  return entry.error;
}

template <bool kData>
cudaError_t launch_routing(const MoeRouteProblem& problem, Data data, bool clusters, cudaStream_t stream) {
  MoeRouteProblem p = problem;
  Split split{};
  split.choices = static_cast<unsigned>(p.choices());  // below 2^31: validated
  split.by_top_k = Divisor::of(std::max<std::int64_t>(p.top_k, 1));
  void* arguments[] = {&p, &split, &data};
  if (p.experts > kMostExperts)
    return launch_overlapping(reinterpret_cast<const void*>(&route_in_global<kData>), 1, kMostThreads, 0, stream,
                              arguments);
  const auto divided = [](unsigned x, unsigned y) { return x / y + (x % y != 0 ? 1u : 0u); };
  split.plain = p.expert_map.data == nullptr && p.ids_choice_stride == 1 &&
                (p.ids_token_stride == p.top_k || p.tokens == 1) && reinterpret_cast<std::uintptr_t>(p.ids) % 16 == 0;
  split.columns = std::max(kWarp, static_cast<int>((p.experts + kWarp - 1) / kWarp * kWarp));
  const bool alone = split.choices <= kOneBlock;
  split.cluster = clusters && !alone ? kCluster : 1;
  auto most_counting = static_cast<unsigned>(most_counting_warps(split.columns));
  if (split.cluster > 1)  // warps rank their choices one after the other; more blocks do so at the same time
    most_counting = std::clamp(divided(split.choices, split.cluster * kMostClusters * kWarp),
                               std::min(kFewWarps, most_counting), most_counting);
  const unsigned slices = alone ? 1
                                : std::min(divided(split.choices, split.cluster * most_counting * kWarp),
                                           split.cluster > 1 ? kMostClusters : kMostSingle);
  const unsigned blocks = slices * split.cluster;
  split.slice = std::max(kWarp + 0u, divided(split.choices, blocks));
  split.warp_choices = divided(divided(split.slice, most_counting), kWarp) * kWarp;
  split.slice = divided(split.slice, split.warp_choices) * split.warp_choices;
  split.range = slices * split.slice;
  split.counting_warps = split.slice / split.warp_choices;
  if (slices > 1) split.copies = copies_of(split.columns);
  // A thread for each expert and choice of the slice, and for ids besides, of which plain ones come several at a time.
  const unsigned readers = alone         ? 0u
                           : split.plain ? std::min(divided(split.range, kTogether * kWarp), kMostWarps / 2u)
                                         : kMostWarps + 0u;
  const unsigned warps = std::clamp(std::max(static_cast<unsigned>(split.columns / kWarp), readers),
                                    split.counting_warps, kMostWarps + 0u);
  const int shared = shared_bytes(split.columns, static_cast<int>(split.counting_warps), split.copies,
                                  split.cluster > 1 ? static_cast<int>(split.cluster) : 0);

  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(warps * kWarp);
  config.dynamicSmemBytes = static_cast<std::size_t>(shared);
  config.stream = stream;
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  config.attrs = attributes;
  config.numAttrs = may_overlap() ? 1 : 0;
  if (!alone) {
    const cudaError_t error = allow_shared_memory(p.device.index, clusters);
    if (error != cudaSuccess) return error;
  }
  if (split.cluster > 1) {
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim.x = split.cluster;
    attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
    config.numAttrs = 2;
  }
  return cudaLaunchKernelExC(&config, kernel_of<kData>(split.warp_choices == kWarp), arguments);
}

}  // namespace

cudaError_t launch_route(const MoeRouteProblem& problem, std::uint32_t* cleared, bool clusters, cudaStream_t stream) {
  return launch_routing<false>(problem, Data{MoeDataProblem(), cleared}, clusters, stream);
}

cudaError_t launch_moe_data(const MoeDataProblem& problem, bool clusters, cudaStream_t stream) {
  MoeDataProblem p = problem;
  void* arguments[] = {&p};
  if (p.kind == MoeDataKind::sizes_from_offsets)
    return p.experts == 0 ? cudaSuccess
                          : launch_overlapping(reinterpret_cast<const void*>(&sizes_from_offsets), 1, kMostThreads, 0,
                                               stream, arguments);
  if (p.kind == MoeDataKind::batched) {
    constexpr std::int64_t kMostBlocks = 1024;
    const std::int64_t blocks = std::min((p.experts + kSizeThreads - 1) / kSizeThreads, kMostBlocks);
    return blocks == 0 ? cudaSuccess
                       : launch_overlapping(reinterpret_cast<const void*>(&sizes_from_counts),
                                            static_cast<unsigned>(blocks), kSizeThreads, 0, stream, arguments);
  }
  MoeRouteProblem route;
  route.tokens = p.tokens;
  route.top_k = p.top_k;
  route.experts = p.experts;
  route.ids = p.ids;
  route.ids_token_stride = p.ids_token_stride;
  route.ids_choice_stride = p.ids_choice_stride;
  route.expert_offsets = p.expert_offsets;
  route.source_row = p.input_permutation;
  route.slot = p.output_permutation;
  route.device = p.device;
  return launch_routing<true>(route, Data{p, nullptr}, clusters, stream);
}

}  // namespace evergemm::cuda
