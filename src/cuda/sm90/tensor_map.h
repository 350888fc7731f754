// SPDX-License-Identifier: Apache-2.0
// Tensor maps: what the copy engine needs to know of a matrix in global memory, made by the driver's own function.
// Must not go here: which operand gets which box (the launches).
#pragma once
#include <cuda.h>

#include <cstdint>

namespace evergemm::sm90 {

struct Matrix {
  const void* data;
  CUtensorMapDataType type;
  std::int64_t element_bytes;
  std::int64_t inner, outer;  // elements; inner is contiguous
  std::int64_t pitch;         // elements
  std::int64_t planes = 0;    // not 0: a map of three dimensions, matrices plane_pitch elements apart
  std::int64_t plane_pitch = 0;
};

// Boxes of [box_outer, box_inner] elements of `matrix`, of one plane; elements outside of it read as zeros and are not written. False
// where the copy engine cannot address the matrix or the driver refuses.
bool encode(const Matrix& matrix, std::int32_t box_inner, std::int32_t box_outer, CUtensorMapSwizzle swizzle,
            CUtensorMap& map);

}  // namespace evergemm::sm90
