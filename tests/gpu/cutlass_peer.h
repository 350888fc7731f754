// SPDX-License-Identifier: Apache-2.0
// CUTLASS 2.x's int8 kernels for Ampere, as a peer of the portable rows (portable_bench). Built where EVERGEMM_CUTLASS_INCLUDE
// names CUTLASS's headers (pip download --no-deps nvidia-cutlass==4.2.0.0, a zip: cutlass_library/source/include).
// Must not go here: anything of CUTLASS.
#pragma once
#include <cuda_runtime.h>

#include <vector>

namespace evergemm::gpu_test {

// out[m, n] = a[m, k] * b[n, k]^T, rows without gaps; out is int32 (the bare product) or bfloat16 (times one).
struct CutlassKernel {
  const char* name;
  bool to_int32;
  bool (*enqueue)(const void* a, const void* b, void* out, int m, int n, int k, cudaStream_t stream);
};
std::vector<CutlassKernel> cutlass_int8_kernels();

}  // namespace evergemm::gpu_test
