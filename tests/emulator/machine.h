// SPDX-License-Identifier: Apache-2.0
// A multiprocessor as far as the Hopper kernels can tell: threads, warps, blocks and clusters as fibers of one host thread, shared
// memory, mbarriers, named and cluster barriers, the copy engine and the matrix instructions. The kernels' own source is compiled
// for the host with the headers of this folder in the place of CUDA's, and runs here.
//
// Everything that hardware may do in any order is done in an order drawn from a seed, within what the instructions promise: which
// thread is next (some warps are slow for a while), when a copy lands, when an arrival at another block's barrier gets there, when
// a matrix instruction reads its operands. What no order may lead to stops the launch with a sentence: threads that wait for ever,
// arrivals that a barrier does not expect, anything that reaches a block that has left, addresses outside of shared memory.
//
// Not seen here, and for a device and its sanitizers to show: time, caches and registers; the order in which ordinary loads and
// stores become visible (fences, .release and .acquire do nothing, a load is never late); several kernels at a time; convergence beyond
// a warp; roundings of fp8 products. What is missing here is therefore no reason to drop a fence.
// Must not go here: anything that knows the kernels.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "cuda.h"

namespace evergemm::emulator {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};
struct Place {
  Index thread, block, grid;
};
// Of the thread that asks.
const Place& here();
int lane();

// How long what leaves a block (arrivals at others of its cluster, copies for all of them, stores) may be under way.
enum class Network : std::uint8_t {
  any,   // drawn
  late,  // until nothing else can go on
};
struct Conduct {
  std::uint64_t seed = 1;
  Network network = Network::any;
  bool early = false;  // operands are there before the previous kernel has ended: nobody need wait for it
};
void conduct(const Conduct& how);

// Few multiprocessors, so that small problems have several tiles for each; shared memory as on the H100.
inline constexpr int kMultiprocessors = 4, kSharedMemory = 232448;

// What the launches of the host see of the device.
struct Grid {
  int blocks = 1, threads = 1, cluster = 1, shared_bytes = 0;
};
// Runs `body` in every thread; "" or what went wrong.
std::string launch(const Grid& grid, const std::function<void()>& body);
const std::string& last_failure();

// ---- what threads do: one function an instruction ----------------------------------------------------------------------------
// Addresses are those of shared memory: of the thread's own block, or mapped to another block of its cluster.

inline constexpr std::uint32_t kWindow = 1024;  // where a block's shared memory begins

[[noreturn]] void fail(const std::string& text);
// The kernel before this one in the stream has ended once a thread has waited for it. Not before that may the thread use the copy
// engine or read-only loads on global memory (plain loads and stores are not seen), or let the next kernel in.
void wait_for_previous_kernel();
void allow_next_kernel();
void touch_global();
std::uint8_t* shared(std::uint32_t address, std::uint32_t bytes);
std::uint32_t map_to(std::uint32_t address, std::uint32_t rank);

void barrier_initialize(std::uint32_t barrier, int arrivals);
void barrier_arrive(std::uint32_t barrier);
void barrier_arrive_expecting(std::uint32_t barrier, int bytes);
void barrier_arrive_remote(std::uint32_t barrier);
bool barrier_passed(std::uint32_t barrier, std::uint32_t parity);
void barrier_wait(std::uint32_t barrier, std::uint32_t parity);
void named_barrier(int id, int threads, bool waits);
void cluster_barrier();
void block_barrier();
int block_barrier_and(int value);

// Of a whole warp: hands each lane's value to all lanes. `what` tells instructions apart that must not meet.
struct Exchanged {
  std::uint64_t values[32];
};
Exchanged exchange(const char* what, std::uint64_t value);

// To every block of `mask` (0: this one), clipped at the map's edges.
void load_box(std::uint32_t destination, const CUtensorMap& map, const int (&at)[3], std::uint32_t barrier,
              std::uint16_t mask);
void store_box(const CUtensorMap& map, std::uint32_t source, const int (&at)[3]);
void store_commit();
void store_wait_read(int groups);
void copy_async(std::uint32_t destination, const void* source, int bytes);
void copy_async_arrive(std::uint32_t barrier);

// sums (+)= rows * columns for this thread's share of a 64 x columns tile, 32 bytes of k; operands by descriptors.
void multiply(void* sums, int columns, bool is_float, std::uint64_t rows, std::uint64_t operand, bool accumulate);
void multiply_fence();  // this and the wait: by whole warps
void multiply_commit();
void multiply_wait(int groups);

}  // namespace evergemm::emulator
