// SPDX-License-Identifier: Apache-2.0
// Before a grouped product: reads offsets, counts or size triples, whatever they hold, and lists the row tiles that there are
// (moe_index.h has the rules; experts are asked in parallel where that gives what asking them in order would). Also: zeros in the
// rows that no expert owns. Must not go here: products.
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/portable/grouped_schedule.h"
#include "cuda/portable/ptx.cuh"

namespace evergemm::portable {
namespace {

constexpr int kThreads = 256;

struct Maximum {
  __device__ std::int64_t operator()(std::int64_t x, std::int64_t y) const { return x > y ? x : y; }
};
struct Sum {
  __device__ std::int64_t operator()(std::int64_t x, std::int64_t y) const { return x + y; }
};

// What `value` of the threads before this one come to, from `carry` on, which becomes what all come to.
template <class Operation>
__device__ std::int64_t before(std::int64_t value, std::int64_t& carry, Operation operation,
                               std::int64_t (&buffer)[kThreads]) {
  buffer[threadIdx.x] = value;
  __syncthreads();
  for (unsigned distance = 1; distance < kThreads; distance *= 2) {
    const std::int64_t other = threadIdx.x >= distance ? buffer[threadIdx.x - distance] : 0;
    __syncthreads();
    if (threadIdx.x >= distance) buffer[threadIdx.x] = operation(other, buffer[threadIdx.x]);
    __syncthreads();
  }
  const std::int64_t earlier = threadIdx.x > 0 ? operation(carry, buffer[threadIdx.x - 1]) : carry;
  const std::int64_t all = operation(carry, buffer[kThreads - 1]);
  __syncthreads();
  carry = all;
  return earlier;
}

__device__ std::int64_t tiles_of(const ExpertShare& share, const Schedule& schedule) {
  return (share.rows + schedule.tile_m - 1) / schedule.tile_m;
}
__device__ void list_tiles(const Schedule& schedule, std::int64_t expert, std::int64_t first, std::int64_t tiles) {
  for (std::int64_t tile = 0; tile < tiles && first + tile < schedule.row_tile_limit; ++tile)
    schedule.row_tiles[first + tile] = RowTile{static_cast<std::int32_t>(expert), static_cast<std::int32_t>(tile)};
}

}  // namespace
}  // namespace evergemm::portable

extern "C" __global__ void __launch_bounds__(evergemm::portable::kThreads)
    portable_grouped_schedule(const __grid_constant__ evergemm::GroupedGemmProblem p,
                              const __grid_constant__ evergemm::portable::Schedule schedule) {
  using namespace evergemm;
  using namespace evergemm::portable;
  __shared__ std::int64_t buffer[kThreads];
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
  std::int64_t end = 0, row_tiles = 0;
  bool collides = false;
  for (std::int64_t first = 0; first < p.experts; first += kThreads) {
    const std::int64_t expert = first + threadIdx.x;
    const bool exists = expert < p.experts;
    ExpertShare share;
    if (p.form == GroupedForm::ragged) {
      // An expert begins where the largest of all offsets before it is, or later.
      const std::int64_t start = exists ? read_index(p.expert_rows, expert) : 0,
                         stop = exists ? read_index(p.expert_rows, expert + 1) : 0;
      const std::int64_t largest = before(start > stop ? start : stop, end, Maximum(), buffer);
      std::int64_t owned_end = limited(largest, 0, p.rows);
      if (exists) share = next_share(p, expert, owned_end);
    } else {
      std::int64_t owned_end = 0;
      if (exists) share = next_share(p, expert, owned_end);
      if (p.form == GroupedForm::dropin) {
        const std::int64_t taken = before(share.rows > 0 ? owned_end : 0, end, Maximum(), buffer);
        if (share.rows > 0 && share.out_begin < taken) collides = true;
      }
    }
    const std::int64_t tiles = tiles_of(share, schedule);
    const std::int64_t first_tile = before(tiles, row_tiles, Sum(), buffer);
    if (exists) {
      schedule.shares[expert] = share;
      list_tiles(schedule, expert, first_tile, tiles);
    }
  }
  if (__syncthreads_or(collides)) {  // hostile: only the order of experts says who owns what
    if (threadIdx.x != 0) return;
    std::int64_t owned_end = 0;
    row_tiles = 0;
    for (std::int64_t expert = 0; expert < p.experts; ++expert) {
      const ExpertShare share = next_share(p, expert, owned_end);
      const std::int64_t tiles = tiles_of(share, schedule);
      schedule.shares[expert] = share;
      list_tiles(schedule, expert, row_tiles, tiles);
      row_tiles += tiles;
    }
  }
  if (threadIdx.x == 0) *schedule.row_tile_count = limited(row_tiles, 0, schedule.row_tile_limit);
}

extern "C" __global__ void __launch_bounds__(evergemm::portable::kThreads)
    portable_grouped_clear(const __grid_constant__ evergemm::GroupedGemmProblem p,
                           const __grid_constant__ evergemm::portable::Schedule schedule) {
  using namespace evergemm;
  using namespace evergemm::portable;
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
  const std::int64_t item = p.output_dtype == DType::float32 ? 4 : 2, bytes = p.n * item;
  const std::int64_t lines = p.form == GroupedForm::masked ? p.rows * p.experts : p.rows;
  constexpr int kWarps = kThreads / 32;
  for (std::int64_t line = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / 32; line < lines;
       line += std::int64_t{gridDim.x} * kWarps) {
    std::int64_t expert = 0, row = line;
    bool owned;
    if (p.form == GroupedForm::masked) {
      expert = line / p.rows;
      row = line - expert * p.rows;
      owned = row < schedule.shares[expert].rows;
    } else {  // the last expert that begins at this row or before it: starts ascend
      std::int64_t low = 0, high = p.experts;
      while (low < high) {
        const std::int64_t middle = (low + high) / 2;
        if (schedule.shares[middle].first_row <= row)
          low = middle + 1;
        else
          high = middle;
      }
      owned = low > 0 && row < schedule.shares[low - 1].first_row + schedule.shares[low - 1].rows;
    }
    if (owned) continue;
    char* to = static_cast<char*>(p.out) + (expert * p.out_expert_stride + row * p.out_stride) * item;
    const bool vectors = ((reinterpret_cast<std::uintptr_t>(to) | static_cast<std::uintptr_t>(bytes)) & 15) == 0;
    if (vectors) {
      for (std::int64_t at = threadIdx.x % 32 * 16; at < bytes; at += 32 * 16)
        *reinterpret_cast<uint4*>(to + at) = make_uint4(0, 0, 0, 0);
    } else {
      for (std::int64_t at = threadIdx.x % 32 * 2; at < bytes; at += 32 * 2)
        *reinterpret_cast<std::uint16_t*>(to + at) = 0;
    }
  }
}

namespace evergemm::portable {

namespace {
cudaError_t launch(const void* kernel, unsigned blocks, const GroupedGemmProblem& problem, const Schedule& schedule,
                   cudaStream_t stream, bool overlap) {
  GroupedGemmProblem argument = problem;
  Schedule lists = schedule;
  void* arguments[] = {&argument, &lists};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = overlap ? 1 : 0;
  return cudaLaunchKernelExC(&config, kernel, arguments);
}
}  // namespace

cudaError_t launch_schedule(const GroupedGemmProblem& problem, const Schedule& schedule, cudaStream_t stream,
                            bool overlap) {
  return launch(reinterpret_cast<const void*>(&portable_grouped_schedule), 1, problem, schedule, stream, overlap);
}

cudaError_t launch_clear(const GroupedGemmProblem& problem, const Schedule& schedule, std::int32_t multiprocessors,
                         cudaStream_t stream, bool overlap) {
  constexpr unsigned kBlocksEach = 4;
  return launch(reinterpret_cast<const void*>(&portable_grouped_clear),
                static_cast<unsigned>(multiprocessors) * kBlocksEach, problem, schedule, stream, overlap);
}

}  // namespace evergemm::portable
