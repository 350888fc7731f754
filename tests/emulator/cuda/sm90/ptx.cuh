// SPDX-License-Identifier: Apache-2.0
// Hopper's instructions on the emulated multiprocessor: the functions of src/cuda/sm90/ptx.cuh, whose comments say what they
// promise. Stands in its place.
#pragma once
#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "evergemm/numerics.h"

namespace evergemm::sm90::ptx {

inline std::uint32_t shared_address(const void* pointer) { return __cvta_generic_to_shared(pointer); }

// ---- mbarriers ---------------------------------------------------------------------------------------------------------
inline void barrier_initialize(std::uint32_t barrier, int arrivals) { emulator::barrier_initialize(barrier, arrivals); }
inline void barrier_initialization_fence() {}
inline void barrier_arrive(std::uint32_t barrier) { emulator::barrier_arrive(barrier); }
inline void barrier_arrive_expecting(std::uint32_t barrier, int bytes) {
  emulator::barrier_arrive_expecting(barrier, bytes);
}
inline void barrier_arrive_at(std::uint32_t barrier, std::uint32_t cta) {
  emulator::barrier_arrive_remote(emulator::map_to(barrier, cta));
}
inline void barrier_arrive_cluster(std::uint32_t cluster_address) { emulator::barrier_arrive_remote(cluster_address); }
inline void barrier_arrive_release_cluster(std::uint32_t cluster_address) {
  emulator::barrier_arrive_remote(cluster_address);
}
inline void barrier_wait(std::uint32_t barrier, std::uint32_t parity) { emulator::barrier_wait(barrier, parity); }
inline bool barrier_passed(std::uint32_t barrier, std::uint32_t parity) {
  return emulator::barrier_passed(barrier, parity);
}
inline void barrier_wait_acquire_cluster(std::uint32_t barrier, std::uint32_t parity) {
  emulator::barrier_wait(barrier, parity);
}
inline void named_barrier_sync(int id, int threads) { emulator::named_barrier(id, threads, true); }
inline void named_barrier_arrive(int id, int threads) { emulator::named_barrier(id, threads, false); }

// ---- clusters ----------------------------------------------------------------------------------------------------------
inline void cluster_meet() { emulator::cluster_barrier(); }
inline void cluster_meet_unaligned() { emulator::cluster_barrier(); }
inline std::uint32_t cluster_address(std::uint32_t address, std::uint32_t cta) {
  return emulator::map_to(address, cta);
}
inline void store_cluster(std::uint32_t cluster_address, uint4 value) {
  std::memcpy(emulator::shared(cluster_address, 16), &value, 16);
}

// ---- programmatic dependent launch: one kernel at a time here --------------------------------------------------------------
inline void wait_for_previous_kernel() { emulator::wait_for_previous_kernel(); }
inline void allow_next_kernel() { emulator::allow_next_kernel(); }
inline bool elect_one() {
  emulator::exchange("elect.sync", 0);
  return emulator::lane() == 0;
}

// ---- bulk tensor copies ------------------------------------------------------------------------------------------------
inline std::uint64_t policy_evict_first() { return 0; }
inline std::uint64_t policy_evict_last() { return 0; }
inline std::uint64_t policy_evict_normal() { return 0; }
inline void prefetch_map(const CUtensorMap*) {}
inline void prefetch_box(const CUtensorMap*, int, int) {}
inline void prefetch_line(const void*) {}
inline void load_box(std::uint32_t destination, const CUtensorMap* map, int inner, int outer, std::uint32_t barrier,
                     std::uint64_t) {
  emulator::load_box(destination, *map, {inner, outer, 0}, barrier, 0);
}
inline void load_box(std::uint32_t destination, const CUtensorMap* map, int inner, int outer, int plane,
                     std::uint32_t barrier, std::uint64_t) {
  emulator::load_box(destination, *map, {inner, outer, plane}, barrier, 0);
}
inline void load_box_multicast(std::uint32_t destination, const CUtensorMap* map, int inner, int outer,
                               std::uint32_t barrier, std::uint64_t, std::uint16_t mask) {
  emulator::load_box(destination, *map, {inner, outer, 0}, barrier, mask);
}
inline void load_box_multicast(std::uint32_t destination, const CUtensorMap* map, int inner, int outer, int plane,
                               std::uint32_t barrier, std::uint64_t, std::uint16_t mask) {
  emulator::load_box(destination, *map, {inner, outer, plane}, barrier, mask);
}
inline void store_box(const CUtensorMap* map, std::uint32_t source, int inner, int outer, int plane) {
  emulator::store_box(*map, source, {inner, outer, plane});
}
inline void store_box(const CUtensorMap* map, std::uint32_t source, int inner, int outer) {
  emulator::store_box(*map, source, {inner, outer, 0});
}
inline void store_commit() { emulator::store_commit(); }
template <int kGroups>
void store_wait_read() {
  emulator::store_wait_read(kGroups);
}
inline void fence_for_copy_engine() {}
inline float load_global_float(const float* from) { return __ldg(from); }
inline void copy_async_4(std::uint32_t destination, const void* source) {
  emulator::copy_async(destination, source, 4);
}
inline void copy_async_arrive(std::uint32_t barrier) { emulator::copy_async_arrive(barrier); }

// ---- wgmma -------------------------------------------------------------------------------------------------------------
inline void wgmma_fence() { emulator::multiply_fence(); }
inline void wgmma_commit() { emulator::multiply_commit(); }
template <int kGroups>
void wgmma_wait() {
  emulator::multiply_wait(kGroups);
}
inline void pin(float&) {}
inline void pin(std::int32_t&) {}
inline void keep(std::uint32_t&) {}
inline void keep(std::int64_t&) {}
template <int kRegisters>
void take_registers() {}
template <int kRegisters>
void give_registers() {}

// ---- shared memory and conversions ---------------------------------------------------------------------------------------
template <class T>
T load_shared(std::uint32_t address) {
  T value;
  std::memcpy(&value, emulator::shared(address, sizeof value), sizeof value);
  return value;
}
template <class T>
void write_shared(std::uint32_t address, T value) {
  std::memcpy(emulator::shared(address, sizeof value), &value, sizeof value);
}
inline float2 load_shared_float2(std::uint32_t address) { return load_shared<float2>(address); }
inline float load_shared_float(std::uint32_t address) { return load_shared<float>(address); }
inline int2 load_shared_int2(std::uint32_t address) { return load_shared<int2>(address); }
inline std::uint32_t load_shared_word(std::uint32_t address) { return load_shared<std::uint32_t>(address); }
inline uint4 load_shared_16(std::uint32_t address) { return load_shared<uint4>(address); }
inline void store_shared_16(std::uint32_t address, uint4 value) { write_shared(address, value); }
inline void store_shared(std::uint32_t address, float value) { write_shared(address, value); }
inline void store_shared(std::uint32_t address, std::int32_t value) { write_shared(address, value); }
inline void store_shared(std::uint32_t address, std::uint16_t value) { write_shared(address, value); }

// Lane l holds elements (l / 4, l % 4 * 2) and the next of each matrix, and the address of row l % 8 of matrix l / 8.
template <bool kTransposed>
void store_matrices(std::uint32_t address, std::uint32_t v0, std::uint32_t v1, std::uint32_t v2, std::uint32_t v3) {
  if (address % 16 != 0) emulator::fail("a row of stmatrix that is not at a multiple of 16");
  const auto addresses = emulator::exchange("stmatrix", address);
  const std::uint32_t values[4] = {v0, v1, v2, v3};
  const int lane = emulator::lane(), row = lane / 4, column = lane % 4 * 2;
  for (int matrix = 0; matrix < 4; ++matrix)
    for (int i = 0; i < 2; ++i) {
      const auto half = static_cast<std::uint16_t>(values[matrix] >> (16 * i));
      const int line = kTransposed ? column + i : row, at = kTransposed ? row : column + i;
      write_shared(static_cast<std::uint32_t>(addresses.values[matrix * 8 + line]) + static_cast<std::uint32_t>(at) * 2,
                   half);
    }
}
inline std::uint32_t pack_bfloat16(float low, float high) {
  return std::uint32_t{numerics::float_to_bfloat16(low)} | std::uint32_t{numerics::float_to_bfloat16(high)} << 16;
}
inline std::uint32_t pack_float16(float low, float high) {
  return std::uint32_t{numerics::float_to_float16(low)} | std::uint32_t{numerics::float_to_float16(high)} << 16;
}
inline float float16_to_float(std::uint16_t bits) { return numerics::float16_to_float(bits); }

}  // namespace evergemm::sm90::ptx
