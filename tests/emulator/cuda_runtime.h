// SPDX-License-Identifier: Apache-2.0
// What the Hopper kernels and launches use of CUDA's runtime and built-in functions, on the emulated multiprocessor. Stands in the
// place of CUDA's header of that name.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "evergemm/numerics.h"
#include "machine.h"

#define __device__
#define __shared__
#define __forceinline__ inline
#define __align__(bytes) __attribute__((aligned(bytes)))

namespace evergemm::emulator {
// A coordinate of the thread that asks, read when it is used.
template <Index Place::* kOf>
struct Coordinate {
  operator unsigned() const { return (here().*kOf).x; }
};
template <Index Place::* kOf>
struct Coordinates {
  Coordinate<kOf> x;
};
}  // namespace evergemm::emulator
inline constexpr evergemm::emulator::Coordinates<&evergemm::emulator::Place::thread> threadIdx{};
inline constexpr evergemm::emulator::Coordinates<&evergemm::emulator::Place::block> blockIdx{};
inline constexpr evergemm::emulator::Coordinates<&evergemm::emulator::Place::grid> gridDim{};

struct int2 {
  int x, y;
};
struct float2 {
  float x, y;
};
struct uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

template <class X, class Y>
constexpr std::common_type_t<X, Y> min(X x, Y y) {
  return y < x ? y : x;
}
template <class X, class Y>
constexpr std::common_type_t<X, Y> max(X x, Y y) {
  return x < y ? y : x;
}

// ---- arithmetic ----------------------------------------------------------------------------------------------------------
inline float __fmaf_rn(float x, float y, float z) { return evergemm::numerics::fma32(x, y, z); }
inline float __fmul_rn(float x, float y) { return evergemm::numerics::mul32(x, y); }
inline float __fadd_rn(float x, float y) { return evergemm::numerics::add32(x, y); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint_as_float(unsigned bits) { return evergemm::numerics::bits_to_float(bits); }
inline unsigned __float_as_uint(float value) { return evergemm::numerics::float_to_bits(value); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

// ---- memory --------------------------------------------------------------------------------------------------------------
template <class T>
T __ldg(const T* from) {
  ::evergemm::emulator::touch_global();
  return *from;
}
template <class T>
T __ldcg(const T* from) {
  ::evergemm::emulator::touch_global();
  return *from;
}
inline int atomicAdd(int* at, int value) {
  const int before = *at;
  *at += value;
  return before;
}
inline void __threadfence_block() {}
// Of the block's array, the only pointer that is asked for.
inline std::uint32_t __cvta_generic_to_shared(const void*) { return ::evergemm::emulator::kWindow; }
inline void* __cvta_shared_to_generic(std::uint32_t address) { return ::evergemm::emulator::shared(address, 1); }

// ---- warps and blocks ------------------------------------------------------------------------------------------------------
inline void __syncthreads() { ::evergemm::emulator::block_barrier(); }
inline int __syncthreads_and(int value) { return ::evergemm::emulator::block_barrier_and(value); }
inline void __syncwarp() { ::evergemm::emulator::exchange("__syncwarp", 0); }
template <class T>
T __shfl_sync(unsigned, T value, int from) {
  return static_cast<T>(
      ::evergemm::emulator::exchange("__shfl_sync", static_cast<std::uint64_t>(value)).values[from & 31]);
}
template <class T>
T __shfl_up_sync(unsigned, T value, int distance) {
  const auto all = ::evergemm::emulator::exchange("__shfl_up_sync", static_cast<std::uint64_t>(value));
  const int from = ::evergemm::emulator::lane() - distance;
  return from < 0 ? value : static_cast<T>(all.values[from]);
}
inline unsigned __ballot_sync(unsigned, bool value) {
  const auto all = ::evergemm::emulator::exchange("__ballot_sync", value);
  unsigned bits = 0;
  for (int i = 0; i < 32; ++i) bits |= static_cast<unsigned>(all.values[i] != 0) << i;
  return bits;
}
inline unsigned __match_any_sync(unsigned, int value) {
  const auto all = ::evergemm::emulator::exchange("__match_any_sync", static_cast<std::uint64_t>(value));
  unsigned bits = 0;
  for (int i = 0; i < 32; ++i) bits |= static_cast<unsigned>(all.values[i] == static_cast<std::uint64_t>(value)) << i;
  return bits;
}

// ---- the runtime's calls -----------------------------------------------------------------------------------------------------
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDevice = 101,
  cudaErrorLaunchFailure = 719
};
using cudaStream_t = void*;
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3() = default;
  explicit dim3(unsigned width) : x(width) {}
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension, cudaLaunchAttributeProgrammaticStreamSerialization };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    struct {
      unsigned x, y, z;
    } clusterDim;
    int programmaticStreamSerializationAllowed;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};
enum cudaDeviceAttr {
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor,
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin
};
enum cudaDriverEntryPointQueryResult { cudaDriverEntryPointSuccess, cudaDriverEntryPointSymbolNotFound };
inline constexpr unsigned long long cudaEnableDefault = 0;

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value);
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void* kernel, const cudaLaunchConfig_t* config);
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* kernel, int threads,
                                                          std::size_t shared_bytes);
// What a kernel's address points to: what every thread runs.
struct EmulatedKernel {
  void (*run)(const void* parameters);
};
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel, void** arguments);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** entry, unsigned version, unsigned long long flags,
                                             cudaDriverEntryPointQueryResult* found);
