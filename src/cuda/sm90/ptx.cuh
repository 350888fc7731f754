// SPDX-License-Identifier: Apache-2.0
// Hopper's instructions that C++ has no words for, one thin wrapper each: mbarriers, the bulk tensor copy engine, clusters,
// register hand-over, stmatrix. Must not go here: policy; a wrapper is one instruction (or a wait loop around one).
#pragma once
#include <cuda.h>

#include <cstdint>

namespace evergemm::sm90::ptx {

#define EVERGEMM_PTX static __device__ __forceinline__

EVERGEMM_PTX std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

// ---- mbarriers: shared-memory addresses; the default scope is the CTA, which is enough where consumers read through wgmma ----

EVERGEMM_PTX void barrier_initialize(std::uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// Makes initialized barriers visible to the cluster and to the copy engine.
EVERGEMM_PTX void barrier_initialization_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
EVERGEMM_PTX void barrier_arrive(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// One arrival that also announces `bytes` of bulk copies.
EVERGEMM_PTX void barrier_arrive_expecting(std::uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// One arrival at the same barrier of another CTA of the cluster. No release at cluster scope: that would cost a membar a
// stage, and what the arrival announces is only "my wgmma has read the slot".
EVERGEMM_PTX void barrier_arrive_at(std::uint32_t barrier, std::uint32_t cta) {
  asm volatile(
      "{ .reg .b32 remote; mapa.shared::cluster.u32 remote, %0, %1;"
      "  mbarrier.arrive.shared::cluster.b64 _, [remote]; }" ::"r"(barrier),
      "r"(cta)
      : "memory");
}
// That, by an address that cluster_address() has mapped.
EVERGEMM_PTX void barrier_arrive_cluster(std::uint32_t cluster_address) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(cluster_address) : "memory");
}
// The same, with everything this thread wrote or observed before made visible to the cluster.
EVERGEMM_PTX void barrier_arrive_release_cluster(std::uint32_t cluster_address) {
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(cluster_address) : "memory");
}
EVERGEMM_PTX void barrier_wait(std::uint32_t barrier, std::uint32_t parity) {
  std::uint32_t done;
  do {
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(done)
                 : "r"(barrier), "r"(parity)
                 : "memory");
  } while (!done);
}
// Whether that phase is over, after waiting a moment at most.
EVERGEMM_PTX bool barrier_passed(std::uint32_t barrier, std::uint32_t parity) {
  std::uint32_t done;
  asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
               : "=r"(done)
               : "r"(barrier), "r"(parity)
               : "memory");
  return done != 0;
}
EVERGEMM_PTX void barrier_wait_acquire_cluster(std::uint32_t barrier, std::uint32_t parity) {
  std::uint32_t done;
  do {
    asm volatile(
        "{ .reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
  } while (!done);
}

// ---- named barriers among warps of a CTA ------------------------------------------------------------------------------

EVERGEMM_PTX void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
EVERGEMM_PTX void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- clusters ---------------------------------------------------------------------------------------------------------

// All threads of the cluster have come here. No memory is ordered (a release would cost a membar of the whole GPU): what a peer
// must see goes through mbarriers.
EVERGEMM_PTX void cluster_meet() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;\n barrier.cluster.wait.aligned;" ::: "memory");
}
// For threads that come from different branches.
EVERGEMM_PTX void cluster_meet_unaligned() {
  asm volatile("barrier.cluster.arrive.relaxed;\n barrier.cluster.wait;" ::: "memory");
}
EVERGEMM_PTX std::uint32_t cluster_address(std::uint32_t address, std::uint32_t cta) {
  std::uint32_t mapped;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(cta));
  return mapped;
}
EVERGEMM_PTX void store_cluster(std::uint32_t cluster_address, uint4 value) {
  asm volatile("st.shared::cluster.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(cluster_address), "r"(value.x), "r"(value.y),
               "r"(value.z), "r"(value.w)
               : "memory");
}

// ---- programmatic dependent launch ------------------------------------------------------------------------------------

// Returns once every kernel before this one in the stream has finished and its writes are visible.
EVERGEMM_PTX void wait_for_previous_kernel() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
// Lets the next kernel's CTAs start where there is room; they wait for this kernel's end before they read.
EVERGEMM_PTX void allow_next_kernel() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// ---- bulk tensor copies -----------------------------------------------------------------------------------------------

EVERGEMM_PTX std::uint64_t policy_evict_first() {
  std::uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
EVERGEMM_PTX std::uint64_t policy_evict_last() {
  std::uint64_t policy;
  asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
EVERGEMM_PTX std::uint64_t policy_evict_normal() {
  std::uint64_t policy;
  asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
EVERGEMM_PTX void prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
// Into L2 only: no thread observes the bytes, so this is allowed before wait_for_previous_kernel().
EVERGEMM_PTX void prefetch_box(const CUtensorMap* map, int inner, int outer) {
  asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%0, {%1, %2}];" ::"l"(map), "r"(inner), "r"(outer)
               : "memory");
}
EVERGEMM_PTX void prefetch_line(const void* address) { asm volatile("prefetch.global.L2 [%0];" ::"l"(address)); }
EVERGEMM_PTX void load_box(std::uint32_t destination, const CUtensorMap* map, int inner, int outer,
                           std::uint32_t barrier, std::uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(destination),
      "l"(map), "r"(inner), "r"(outer), "r"(barrier), "l"(policy)
      : "memory");
}
// Of a map with three dimensions.
EVERGEMM_PTX void load_box(std::uint32_t destination, const CUtensorMap* map, int inner, int outer, int plane,
                           std::uint32_t barrier, std::uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(destination),
      "l"(map), "r"(inner), "r"(outer), "r"(plane), "r"(barrier), "l"(policy)
      : "memory");
}
// To the same offset in every CTA of `mask`, counted on each one's own barrier.
EVERGEMM_PTX void load_box_multicast(std::uint32_t destination, const CUtensorMap* map, int inner, int outer,
                                     std::uint32_t barrier, std::uint64_t policy, std::uint16_t mask) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint"
      " [%0], [%1, {%2, %3}], [%4], %5, %6;" ::"r"(destination),
      "l"(map), "r"(inner), "r"(outer), "r"(barrier), "h"(mask), "l"(policy)
      : "memory");
}
EVERGEMM_PTX void load_box_multicast(std::uint32_t destination, const CUtensorMap* map, int inner, int outer, int plane,
                                     std::uint32_t barrier, std::uint64_t policy, std::uint16_t mask) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint"
      " [%0], [%1, {%2, %3, %4}], [%5], %6, %7;" ::"r"(destination),
      "l"(map), "r"(inner), "r"(outer), "r"(plane), "r"(barrier), "h"(mask), "l"(policy)
      : "memory");
}
EVERGEMM_PTX void store_box(const CUtensorMap* map, std::uint32_t source, int inner, int outer, int plane) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
               "r"(source), "r"(inner), "r"(outer), "r"(plane)
               : "memory");
}
EVERGEMM_PTX void store_box(const CUtensorMap* map, std::uint32_t source, int inner, int outer) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map), "r"(source),
               "r"(inner), "r"(outer)
               : "memory");
}
EVERGEMM_PTX void store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Waits until at most kGroups committed stores still read shared memory.
template <int kGroups>
EVERGEMM_PTX void store_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kGroups) : "memory");
}
// Orders this thread's ordinary shared-memory writes before later reads by the copy engine.
EVERGEMM_PTX void fence_for_copy_engine() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// True in one lane of a whole warp, always the same one. Unlike by threadIdx, the compiler knows by it that one lane is at work, and
// needs no loop over lanes around what takes uniform registers.
EVERGEMM_PTX bool elect_one() {
  int elected;
  asm volatile("{ .reg .pred p; elect.sync _|p, 0xffffffff; selp.b32 %0, 1, 0, p; }" : "=r"(elected));
  return elected != 0;
}

// Of read-only memory, opaque to the compiler: a value that it knows to be the same for a warp it moves into a uniform
// register at once, and waits for the load there instead of where the value is used.
EVERGEMM_PTX float load_global_float(const float* from) {
  float value;
  asm volatile("ld.global.nc.f32 %0, [%1];" : "=f"(value) : "l"(from));
  return value;
}

// ---- small asynchronous copies ----------------------------------------------------------------------------------------

EVERGEMM_PTX void copy_async_4(std::uint32_t destination, const void* source) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(destination), "l"(source) : "memory");
}
// Arrives (one of the barrier's expected arrivals) when all earlier copy_async_4 of this thread have landed.
EVERGEMM_PTX void copy_async_arrive(std::uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

// ---- wgmma ------------------------------------------------------------------------------------------------------------

EVERGEMM_PTX void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
EVERGEMM_PTX void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kGroups>
EVERGEMM_PTX void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
}
// Keeps the compiler from moving accumulator registers across a fence or a wait.
EVERGEMM_PTX void pin(float& value) { asm volatile("" : "+f"(value)::"memory"); }
EVERGEMM_PTX void pin(std::int32_t& value) { asm volatile("" : "+r"(value)::"memory"); }
// Keeps the compiler from computing a value again inside a loop.
EVERGEMM_PTX void keep(std::uint32_t& value) { asm volatile("" : "+r"(value)); }
EVERGEMM_PTX void keep(std::int64_t& value) { asm volatile("" : "+l"(value)); }
template <int kRegisters>
EVERGEMM_PTX void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
EVERGEMM_PTX void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// ---- shared memory and conversions --------------------------------------------------------------------------------------

EVERGEMM_PTX float2 load_shared_float2(std::uint32_t address) {
  float2 value;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(value.x), "=f"(value.y) : "r"(address) : "memory");
  return value;
}
EVERGEMM_PTX float load_shared_float(std::uint32_t address) {
  float value;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(address) : "memory");
  return value;
}
EVERGEMM_PTX int2 load_shared_int2(std::uint32_t address) {
  int2 value;
  asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(value.x), "=r"(value.y) : "r"(address) : "memory");
  return value;
}
EVERGEMM_PTX std::uint32_t load_shared_word(std::uint32_t address) {
  std::uint32_t value;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
  return value;
}
EVERGEMM_PTX uint4 load_shared_16(std::uint32_t address) {
  uint4 value;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "r"(address)
               : "memory");
  return value;
}
EVERGEMM_PTX void store_shared_16(std::uint32_t address, uint4 value) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(value.x), "r"(value.y), "r"(value.z),
               "r"(value.w)
               : "memory");
}
EVERGEMM_PTX void store_shared(std::uint32_t address, float value) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(value) : "memory");
}
EVERGEMM_PTX void store_shared(std::uint32_t address, std::int32_t value) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}
EVERGEMM_PTX void store_shared(std::uint32_t address, std::uint16_t value) {
  asm volatile("st.shared.b16 [%0], %1;" ::"r"(address), "h"(value) : "memory");
}
// Four 8x8 matrices of 16-bit values; lane l gives the address of row l % 8 of matrix l / 8.
template <bool kTransposed>
EVERGEMM_PTX void store_matrices(std::uint32_t address, std::uint32_t v0, std::uint32_t v1, std::uint32_t v2,
                                 std::uint32_t v3) {
  if constexpr (kTransposed)
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v0),
                 "r"(v1), "r"(v2), "r"(v3)
                 : "memory");
  else
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v0), "r"(v1),
                 "r"(v2), "r"(v3)
                 : "memory");
}
EVERGEMM_PTX std::uint32_t pack_bfloat16(float low, float high) {
  std::uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
EVERGEMM_PTX std::uint32_t pack_float16(float low, float high) {
  std::uint32_t packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
EVERGEMM_PTX float float16_to_float(std::uint16_t bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

#undef EVERGEMM_PTX

}  // namespace evergemm::sm90::ptx
