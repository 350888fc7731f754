// SPDX-License-Identifier: Apache-2.0
// Tensor maps through the driver's entry point, looked up by name: the library needs no libcuda.so to load. Each thread keeps
// those that it made last.
#include "cuda/sm90/tensor_map.h"

#include <cuda_runtime.h>

#include <array>
#include <cstddef>
#include <memory>
#include <new>

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

// Everything that the driver makes a map from. A kept map with the same key is the map that the driver would make again,
// whatever has become of the memory meanwhile; nor does a map depend on the device, as every device here is a Hopper.
struct Key {
  std::uintptr_t data = 0;
  std::int64_t inner = 0, outer = 0, pitch_bytes = 0, planes = 0, plane_bytes = 0;
  std::int32_t box_inner = 0, box_outer = 0, type = 0, swizzle = 0;
  friend bool operator==(const Key&, const Key&) = default;
};

// Weights of a model's layers come again every step, activations mostly so: enough places for 200 products.
constexpr std::size_t kPlaces = 512;

struct Kept {
  CUtensorMap map;
  Key key;  // inner is 0 where the place is free
};
using Places = std::array<Kept, kPlaces>;

Kept* place_of(const Key& key) {
  static thread_local const std::unique_ptr<Places> places(new (std::nothrow) Places());
  if (places == nullptr) return nullptr;
  std::uint64_t mixed = key.data >> 4;
  for (const std::int64_t part : {key.inner, key.outer, key.pitch_bytes, key.planes, key.plane_bytes,
                                  (std::int64_t{key.box_outer} << 32) + key.box_inner + key.swizzle})
    mixed = (mixed ^ static_cast<std::uint64_t>(part)) * 0x9e3779b97f4a7c15ull;
  return &(*places)[mixed >> 32 & (kPlaces - 1)];
}

bool encode_anew(const Key& key, CUtensorMap& map) {
  const EncodeTiled function = encode_function();
  if (function == nullptr) return false;
  const cuuint64_t sizes[3] = {static_cast<cuuint64_t>(key.inner), static_cast<cuuint64_t>(key.outer),
                               static_cast<cuuint64_t>(key.planes)};
  const cuuint64_t pitch[2] = {static_cast<cuuint64_t>(key.pitch_bytes), static_cast<cuuint64_t>(key.plane_bytes)};
  const cuuint32_t box[3] = {static_cast<cuuint32_t>(key.box_inner), static_cast<cuuint32_t>(key.box_outer), 1};
  const cuuint32_t steps[3] = {1, 1, 1};
  const cuuint32_t dimensions = key.planes == 0 ? 2 : 3;
  return function(&map, static_cast<CUtensorMapDataType>(key.type), dimensions, reinterpret_cast<void*>(key.data),
                  sizes, pitch, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, static_cast<CUtensorMapSwizzle>(key.swizzle),
                  CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace

bool encode(const Matrix& matrix, std::int32_t box_inner, std::int32_t box_outer, CUtensorMapSwizzle swizzle,
            CUtensorMap& map) {
  if (!copyable(matrix)) return false;
  Key key;
  key.data = reinterpret_cast<std::uintptr_t>(matrix.data);
  key.inner = matrix.inner;
  key.outer = matrix.outer;
  // A single row has no pitch of its own: give it the smallest that the copy engine takes.
  key.pitch_bytes =
      matrix.outer == 1 ? (matrix.inner * matrix.element_bytes + 15) / 16 * 16 : matrix.pitch * matrix.element_bytes;
  // Nor has a single plane.
  key.planes = matrix.planes;
  key.plane_bytes = matrix.planes == 1 ? key.pitch_bytes : matrix.plane_pitch * matrix.element_bytes;
  key.box_inner = box_inner;
  key.box_outer = box_outer;
  key.type = static_cast<std::int32_t>(matrix.type);
  key.swizzle = static_cast<std::int32_t>(swizzle);
  Kept* const place = place_of(key);
  if (place == nullptr) return encode_anew(key, map);
  if (!(place->key == key)) {
    place->key = Key();  // a refusal must not leave the old key with half a map
    if (!encode_anew(key, place->map)) return false;
    place->key = key;
  }
  map = place->map;
  return true;
}

}  // namespace evergemm::sm90
