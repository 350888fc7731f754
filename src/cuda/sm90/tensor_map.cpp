// SPDX-License-Identifier: Apache-2.0
// Tensor maps through the driver's entry point, looked up by name: the library needs no libcuda.so to load.
#include "cuda/sm90/tensor_map.h"

#include <cuda_runtime.h>

namespace evergemm::sm90 {
namespace {

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

// Null where the driver lacks it.
EncodeTiled encode_function() {
  static const EncodeTiled function = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    constexpr unsigned kSince = 12000;  // the CUDA version that introduced it
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, kSince, cudaEnableDefault, &found) !=
            cudaSuccess ||
        found != cudaDriverEntryPointSuccess) {
      static_cast<void>(cudaGetLastError());
      entry = nullptr;
    }
    return reinterpret_cast<EncodeTiled>(entry);
  }();
  return function;
}

// The driver wants a context that is current in this thread. A thread that has called nothing yet has none: the runtime binds the
// device's own where it is told the device, not where it is asked for it.
bool bind_context() {
  int device = 0;
  return cudaGetDevice(&device) == cudaSuccess && cudaSetDevice(device) == cudaSuccess;
}

constexpr std::int64_t kPitchLimit = std::int64_t{1} << 40;

// Whether the copy engine can address it at all.
bool copyable(const Matrix& matrix) {
  const std::int64_t pitch_bytes = matrix.pitch * matrix.element_bytes;
  return reinterpret_cast<std::uintptr_t>(matrix.data) % 16 == 0 && matrix.inner > 0 && matrix.outer > 0 &&
         (matrix.outer == 1 ||
          (pitch_bytes % 16 == 0 && pitch_bytes >= matrix.inner * matrix.element_bytes && pitch_bytes < kPitchLimit)) &&
         (matrix.planes <= 1 || (matrix.plane_pitch * matrix.element_bytes % 16 == 0 && matrix.plane_pitch > 0 &&
                                 matrix.plane_pitch < kPitchLimit / matrix.element_bytes));
}

}  // namespace

bool encode(const Matrix& matrix, std::int32_t box_inner, std::int32_t box_outer, CUtensorMapSwizzle swizzle,
            CUtensorMap& map) {
  const EncodeTiled function = encode_function();
  if (function == nullptr || !copyable(matrix)) return false;
  // A single row has no pitch of its own: give it the smallest that the copy engine takes.
  const std::int64_t row_bytes = (matrix.inner * matrix.element_bytes + 15) / 16 * 16;
  const std::int64_t pitch_bytes = matrix.outer == 1 ? row_bytes : matrix.pitch * matrix.element_bytes;
  // Nor has a single plane.
  const std::int64_t plane_bytes = matrix.planes <= 1 ? pitch_bytes : matrix.plane_pitch * matrix.element_bytes;
  const cuuint64_t sizes[3] = {static_cast<cuuint64_t>(matrix.inner), static_cast<cuuint64_t>(matrix.outer),
                               static_cast<cuuint64_t>(matrix.planes)};
  const cuuint64_t pitch[2] = {static_cast<cuuint64_t>(pitch_bytes), static_cast<cuuint64_t>(plane_bytes)};
  const cuuint32_t box[3] = {static_cast<cuuint32_t>(box_inner), static_cast<cuuint32_t>(box_outer), 1};
  const cuuint32_t steps[3] = {1, 1, 1};
  const cuuint32_t dimensions = matrix.planes == 0 ? 2 : 3;  // as many as the kernel's copies name
  const auto made = [&] {
    return function(&map, matrix.type, dimensions, const_cast<void*>(matrix.data), sizes, pitch, box, steps,
                    CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                    CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
  };
  // Not kept between calls: the driver takes 47 ns, looking one up took nearly as long (docs/tuning_log.md).
  return made() || (bind_context() && made());
}

}  // namespace evergemm::sm90
