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

#include "cuda/device.h"
#include "cuda/moe_kernels.h"
#include "cuda/moe_route.cuh"
#include "cuda/quantize_kernels.h"
#include "cuda/quantize_values.cuh"
#include "evergemm/moe_index.h"

namespace evergemm::cuda {
namespace {

constexpr int kMostThreads = 1024, kMostWarps = kMostThreads / kWarp;
constexpr int kKept = 8;                  // choices whose expert a thread keeps between counting and placing
constexpr int kCounters = 8192;           // warps x experts of a block: 32 KiB of shared memory
constexpr int kMostExperts = 1024;        // beyond: route_in_global
constexpr unsigned kCluster = 8;          // blocks that share the work where there is more of it than
constexpr std::int64_t kOneBlock = 1024;  // choices

// How the choices are split: a warp takes warp_choices of them in order, the warps of a block one after the other.
struct Split {
  unsigned choices, warp_choices;
  unsigned counting_warps;  // of a block: those that have choices
  int columns;              // experts, rounded up to whole warps
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

// ---- clusters: blocks that write into each other's shared memory ----------------------------------------------------

__device__ __forceinline__ void arrive_at_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void wait_for_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void store_in_block(std::uint32_t* address, unsigned block, std::uint32_t value) {
#if __CUDA_ARCH__ >= 900
  const auto local = static_cast<std::uint32_t>(__cvta_generic_to_shared(address));
  std::uint32_t remote;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(local), "r"(block));
  asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(remote), "r"(value) : "memory");
#else
  *address = value;  // one block: this one
#endif
}

struct Data {              // what is written besides
  MoeDataProblem problem;  // by the drop-in operator; its ids and outputs are those of the route problem
  std::uint32_t* cleared;
};

// kKeeps: a warp's choices fit the registers of its lanes. Shared memory: counters [warps, columns], counts of every block
// [blocks, columns] and, in clusters, the rows and tokens of the block's own choices.
template <bool kData, bool kKeeps>
__global__ void __launch_bounds__(kMostThreads)
    route_in_shared(const __grid_constant__ MoeRouteProblem p, const __grid_constant__ Split split,
                    const __grid_constant__ Data data) {
  extern __shared__ std::uint32_t memory[];
  __shared__ unsigned scratch[3][kWarp];
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  const unsigned block = blockIdx.x, blocks = gridDim.x;
  const int experts = static_cast<int>(p.experts), columns = split.columns;
  std::uint32_t* const counters = memory;
  std::uint32_t* const exchange = counters + split.counting_warps * columns;
  const bool stages = kKeeps && blocks > 1 && p.source_row != nullptr;
  std::uint32_t* const staged_row = exchange + blocks * columns;
  std::uint32_t* const staged_token = staged_row + warps * split.warp_choices;

  if (blocks > 1) arrive_at_cluster();
  for (int c = static_cast<int>(threadIdx.x); c < static_cast<int>(split.counting_warps) * columns;
       c += static_cast<int>(blockDim.x))
    counters[c] = 0;
  __syncthreads();
  wait_for_previous_kernel();

  // ---- count ----
  const unsigned first = (block * warps + warp) * split.warp_choices,
                 end = min(first + split.warp_choices, split.choices);
  std::uint32_t* const own = counters + warp * columns;
  int expert[kKept];
  unsigned rank[kKept];
  if constexpr (kKeeps) {
    if (first < end) {
#pragma unroll
      for (int j = 0; j < kKept; ++j) {
        const unsigned i = first + static_cast<unsigned>(j) * kWarp + lane;
        expert[j] = i < end ? expert_of(p, split.by_top_k, i) : -1;
      }
#pragma unroll
      for (int j = 0; j < kKept; ++j)
        if (first + static_cast<unsigned>(j) * kWarp < end) rank[j] = count(own, expert[j], lane);
    }
  } else {
    for (unsigned begin = first; begin < end; begin += kWarp)
      count(own, begin + lane < end ? expert_of(p, split.by_top_k, begin + lane) : -1, lane);
  }
  __syncthreads();

  // ---- sum: over the warps before, the blocks before, the experts before ----
  if (blocks > 1) wait_for_cluster();  // every block has started
  for (int c = static_cast<int>(threadIdx.x); c < columns; c += static_cast<int>(blockDim.x)) {
    unsigned sum = 0;
    for (unsigned w = 0; w < split.counting_warps; ++w) {
      const unsigned of_warp = counters[w * columns + c];
      counters[w * columns + c] = sum;
      sum += of_warp;
    }
    for (unsigned b = 0; b < blocks; ++b) store_in_block(&exchange[block * columns + c], b, sum);
  }
  if (blocks > 1) {
    arrive_at_cluster();
    wait_for_cluster();
  } else {
    __syncthreads();
  }
  constexpr int kSums = kData ? 3 : 2;  // rows of all blocks, rows of this block, rows rounded up to 128
  unsigned sums[kSums] = {}, totals[kSums];
  unsigned (&sum_scratch)[kSums][kWarp] = reinterpret_cast<unsigned (&)[kSums][kWarp]>(scratch);
  const int each = (columns + static_cast<int>(blockDim.x) - 1) / static_cast<int>(blockDim.x);
  const int my_begin = static_cast<int>(threadIdx.x) * each, my_end = min(my_begin + each, experts);
  for (int e = my_begin; e < my_end; ++e) {
    unsigned of_all = 0;
    for (unsigned b = 0; b < blocks; ++b) of_all += exchange[b * columns + e];
    sums[0] += of_all;
    sums[1] += exchange[block * columns + e];
    if constexpr (kData) sums[2] += (of_all + 127) / 128 * 128;
  }
  scan_block(sums, totals, sum_scratch);
  for (int e = my_begin; e < my_end; ++e) {
    unsigned of_all = 0, before = 0;
    for (unsigned b = 0; b < blocks; ++b) {
      const unsigned of_block = exchange[b * columns + e];
      before += b < block ? of_block : 0u;
      of_all += of_block;
    }
    const unsigned of_own = exchange[block * columns + e];
    if (block == 0) {
      p.expert_offsets[e] = static_cast<std::int32_t>(sums[0]);
      if constexpr (kData) {
        write_sizes(data.problem, e, of_all);
        if (data.problem.blockscale_offsets != nullptr)
          data.problem.blockscale_offsets[e] = static_cast<std::int32_t>(sums[2]);
        sums[2] += (of_all + 127) / 128 * 128;
      }
    }
    exchange[e] = sums[0] + before;               // where this block's rows of the expert begin
    if (stages) exchange[columns + e] = sums[1];  // the same among this block's rows alone
    sums[0] += of_all;
    sums[1] += of_own;
  }
  const unsigned routed = totals[0];
  if (!kData && block == 0 && data.cleared != nullptr && threadIdx.x < kClearedWords) data.cleared[threadIdx.x] = 0;
  if (block == 0 && threadIdx.x == 0) {
    p.expert_offsets[experts] = static_cast<std::int32_t>(routed);
    if constexpr (kData)
      if (data.problem.blockscale_offsets != nullptr)
        data.problem.blockscale_offsets[experts] = static_cast<std::int32_t>(totals[2]);
  }
  __syncthreads();

  // ---- place ----
  const int nowhere = kData ? static_cast<int>(routed) : -1;
  const auto place = [&](unsigned i, int e, unsigned within) {
    const unsigned row = e >= 0 ? exchange[e] + within : 0u;
    p.slot[i] = e >= 0 ? static_cast<int>(row) : nowhere;
    if (e < 0 || p.source_row == nullptr) return;
    if (stages) {
      const unsigned at = exchange[columns + e] + within;
      staged_row[at] = row;
      staged_token[at] = split.by_top_k.quotient(i);
    } else {
      p.source_row[row] = static_cast<std::int32_t>(split.by_top_k.quotient(i));
    }
  };
  if constexpr (kKeeps) {
    if (first < end) {
#pragma unroll
      for (int j = 0; j < kKept; ++j) {
        const unsigned i = first + static_cast<unsigned>(j) * kWarp + lane;
        if (i < end) place(i, expert[j], expert[j] >= 0 ? own[expert[j]] + rank[j] : 0u);
      }
    }
  } else {
    for (unsigned begin = first; begin < end; begin += kWarp) {
      const unsigned i = begin + lane;
      const int e = i < end ? expert_of(p, split.by_top_k, i) : -1;
      const unsigned within = count(own, e, lane);
      if (i < end) place(i, e, within);
    }
  }
  if (stages) {  // in the order of rows: neighbours are written together
    __syncthreads();
    for (unsigned at = threadIdx.x; at < totals[1]; at += blockDim.x)
      p.source_row[staged_row[at]] = static_cast<std::int32_t>(staged_token[at]);
  }
  if (!kData && p.source_row != nullptr)
    for (unsigned i = routed + block * blockDim.x + threadIdx.x; i < split.choices; i += blocks * blockDim.x)
      p.source_row[i] = -1;
  allow_next_kernel();
}

// Any number of experts, one block: expert_offsets itself holds the counts, then the cursors. Warp w places the experts
// whose number modulo the warps is w, so that no two warps share a cursor.
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
  // Each cursor stands where the next expert begins: move them up, the last ones first.
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

// Rows of each expert from offsets of any value: limited, and made monotone by a running maximum.
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
const void* kernel_of(bool keeps) {
  return keeps ? reinterpret_cast<const void*>(&route_in_shared<kData, true>)
               : reinterpret_cast<const void*>(&route_in_shared<kData, false>);
}

constexpr int kMostSharedBytes = 128 * 1024;  // of a cluster's blocks; those of one block alone stay below 48 KiB

// Clusters need more shared memory than a kernel has unasked; asked for once on each device.
cudaError_t allow_shared_memory(std::int32_t device) {
  struct Allowed {
    std::once_flag once;
    cudaError_t error = cudaSuccess;
  };
  static std::array<Allowed, kMaxDevices> cache;
  Allowed& entry = cache[static_cast<std::size_t>(device)];
  std::call_once(entry.once, [&entry] {
    for (const void* kernel :
         {kernel_of<false>(false), kernel_of<false>(true), kernel_of<true>(false), kernel_of<true>(true)})
      if (entry.error == cudaSuccess)
        entry.error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMostSharedBytes);
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
  split.columns = static_cast<int>((p.experts + kWarp - 1) / kWarp * kWarp);
  if (split.columns == 0) split.columns = kWarp;
  const unsigned most_warps = static_cast<unsigned>(std::min(kMostWarps, kCounters / split.columns));
  const unsigned blocks = clusters && p.choices() > kOneBlock ? kCluster : 1;
  const unsigned warps_of_work = (split.choices + blocks * kWarp - 1) / (blocks * kWarp);
  const unsigned warps =
      std::clamp(warps_of_work, std::min(most_warps, static_cast<unsigned>(split.columns / kWarp)), most_warps);
  split.warp_choices = (split.choices + blocks * warps * kWarp - 1) / (blocks * warps * kWarp) * kWarp;
  const bool keeps = split.warp_choices <= kKept * kWarp;
  split.counting_warps =  // of the first block, which is full where any is
      split.choices == 0 ? 0 : std::min(warps, (split.choices - 1) / split.warp_choices + 1);
  const unsigned staged = keeps && blocks > 1 && p.source_row != nullptr ? 2 * warps * split.warp_choices : 0;
  const std::size_t shared =
      4 * (std::size_t{split.counting_warps + blocks} * static_cast<unsigned>(split.columns) + staged);

  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(warps * kWarp);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  config.attrs = attributes;
  config.numAttrs = 1;
  if (blocks > 1) {
    const cudaError_t error = allow_shared_memory(p.device.index);
    if (error != cudaSuccess) return error;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim.x = blocks;
    attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
    config.numAttrs = 2;
  }
  return cudaLaunchKernelExC(&config, kernel_of<kData>(keeps), arguments);
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
