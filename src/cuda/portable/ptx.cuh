// SPDX-License-Identifier: Apache-2.0
// Instructions that C++ has no words for, from Turing on: matrix loads, asynchronous copies, tensor core products.
// What an architecture lacks is made of what it has, here and nowhere else. Must not go here: policy, layouts of tiles.
#pragma once
#include <cstdint>

#include "evergemm/numerics.h"

namespace evergemm::portable::ptx {

#define EVERGEMM_PORTABLE_PTX static __device__ __forceinline__

#if defined(__CUDA_ARCH__)
inline constexpr bool kAsynchronousCopies = __CUDA_ARCH__ >= 800;
// Ada and the Blackwell of graphics cards multiply e4m3. Elsewhere, also where the instruction exists but is made of fp16
// products (Hopper, the Blackwell of data centres), operands are converted once a fragment and multiplied as fp16: exact
// products, fp32 sums.
inline constexpr bool kMultipliesFloat8 = __CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1200;
inline constexpr bool kConvertsFloat8 = __CUDA_ARCH__ >= 890;
#else
inline constexpr bool kAsynchronousCopies = true, kMultipliesFloat8 = false, kConvertsFloat8 = true;
#endif
// Without a conversion instruction e4m3 bits are moved into fp16's fields, which makes a value 2^-8 of itself: exact, down to
// subnormals of both. Sums of products are then this times too small.
inline constexpr float kSumScale = kMultipliesFloat8 || kConvertsFloat8 ? 1.0f : 65536.0f;

EVERGEMM_PORTABLE_PTX std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

// Returns once every kernel before this one in the stream has finished, where kernels may overlap.
EVERGEMM_PORTABLE_PTX void wait_for_previous_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
EVERGEMM_PORTABLE_PTX void allow_next_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// ---- copies ------------------------------------------------------------------------------------------------------------

// 16 bytes to shared memory where `copies`; those beyond `bytes` become 0. `from` is a multiple of 16.
EVERGEMM_PORTABLE_PTX void copy_asynchronously(std::uint32_t to, const void* from, int bytes, bool copies) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %3, 0; @p cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2; }" ::"r"(to),
      "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(static_cast<int>(copies))
      : "memory");
#endif
}
EVERGEMM_PORTABLE_PTX void copy_whole_asynchronously(std::uint32_t to, const void* from) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to), "l"(__cvta_generic_to_global(from))
               : "memory");
#endif
}
EVERGEMM_PORTABLE_PTX void commit_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Until at most kPending of this thread's committed groups are under way.
template <int kPending>
EVERGEMM_PORTABLE_PTX void wait_for_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}
EVERGEMM_PORTABLE_PTX void store_shared(std::uint32_t to, uint4 words) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(words.x), "r"(words.y), "r"(words.z),
               "r"(words.w)
               : "memory");
}

// ---- fragments ---------------------------------------------------------------------------------------------------------

// Four 8 x 16-byte matrices; lane 8 i + r holds the address of row r of matrix i.
EVERGEMM_PORTABLE_PTX void load_matrices(std::uint32_t address, std::uint32_t& x0, std::uint32_t& x1, std::uint32_t& x2,
                                         std::uint32_t& x3) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x0), "=r"(x1), "=r"(x2), "=r"(x3)
               : "r"(address)
               : "memory");
}

// ---- products: sums[16 x 8] += a[16 x 32] * b[32 x 8], fragments as m16n8k32 has them ------------------------------------

EVERGEMM_PORTABLE_PTX void multiply_int8(std::int32_t (&c)[4], const std::uint32_t (&a)[4],
                                         const std::uint32_t (&b)[2]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
#pragma unroll
  for (int half = 0; half < 4; ++half)  // rows 0-7 and 8-15, k 0-15 and 16-31
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
                 : "+r"(c[half % 2 * 2]), "+r"(c[half % 2 * 2 + 1])
                 : "r"(a[half]), "r"(b[half / 2]));
#endif
}

EVERGEMM_PORTABLE_PTX void multiply_float8(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Four e4m3 values (k ascending from the lowest byte) as two pairs of fp16.
EVERGEMM_PORTABLE_PTX void widen_float8(std::uint32_t four, std::uint32_t& low, std::uint32_t& high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  asm("{ .reg .b16 x, y; mov.b32 {x, y}, %2; cvt.rn.f16x2.e4m3x2 %0, x; cvt.rn.f16x2.e4m3x2 %1, y; }"
      : "=r"(low), "=r"(high)
      : "r"(four));
#else
  const std::uint32_t pairs[2] = {__byte_perm(four, 0, 0x1404), __byte_perm(four, 0, 0x3424)};  // each in a high byte
  std::uint32_t wide[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    // s eeee mmm 00000000 -> s 0eeee mmm 0000000; a NaN (all of eeee mmm set) also gets the exponent's upper bit
    const std::uint32_t magnitude = pairs[i] & 0x7f007f00u;
    const std::uint32_t not_a_number = (magnitude + 0x01000100u) & 0x80008000u;
    wide[i] = (pairs[i] & 0x80008000u) | ((magnitude | not_a_number) >> 1);
  }
  low = wide[0];
  high = wide[1];
#endif
}

// The same product of fragments that widen_float8() has made of each register: a[2 i], a[2 i + 1] are the pairs of register i.
EVERGEMM_PORTABLE_PTX void multiply_float16(float (&c)[4], const std::uint32_t (&a)[8], const std::uint32_t (&b)[4]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#pragma unroll
  for (int half = 0; half < 2; ++half)  // k 0-15 and 16-31; which k stands where is the same for a and b
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[half * 4]), "r"(a[half * 4 + 2]), "r"(a[half * 4 + 1]), "r"(a[half * 4 + 3]), "r"(b[half * 2]),
          "r"(b[half * 2 + 1]));
#else
#pragma unroll
  for (int quarter = 0; quarter < 4; ++quarter)
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[quarter / 2 * 4 + quarter % 2]), "r"(a[quarter / 2 * 4 + 2 + quarter % 2]), "r"(b[quarter]));
#endif
}

// ---- stores of 16-bit values -------------------------------------------------------------------------------------------

EVERGEMM_PORTABLE_PTX std::uint32_t pack_float16(float low, float high) {
  std::uint32_t packed;
  asm("{ .reg .b16 x, y; cvt.rn.f16.f32 x, %1; cvt.rn.f16.f32 y, %2; mov.b32 %0, {x, y}; }"
      : "=r"(packed)
      : "f"(low), "f"(high));
  return packed;
}

EVERGEMM_PORTABLE_PTX std::uint32_t pack_bfloat16(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  std::uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %2, %1;" : "=r"(packed) : "f"(low), "f"(high));
  return packed;
#else
  return numerics::float_to_bfloat16(low) | static_cast<std::uint32_t>(numerics::float_to_bfloat16(high)) << 16;
#endif
}

}  // namespace evergemm::portable::ptx
