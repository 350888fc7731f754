// SPDX-License-Identifier: Apache-2.0
// One element of a bfloat16, float16 or float32 array, read and written as fp32. For the loops of this folder.
// Must not go here: what is computed from them.
#pragma once
#include <cstdint>

#include "evergemm/numerics.h"
#include "evergemm/types.h"

namespace evergemm::reference {

inline float load_element(DType type, const void* data, std::int64_t index) {
  if (type == DType::bfloat16) return numerics::bfloat16_to_float(static_cast<const std::uint16_t*>(data)[index]);
  if (type == DType::float16) return numerics::float16_to_float(static_cast<const std::uint16_t*>(data)[index]);
  return static_cast<const float*>(data)[index];
}

// Rounds once, to nearest even; beyond the largest finite value: infinity.
inline void store_element(DType type, void* data, std::int64_t index, float value) {
  if (type == DType::bfloat16)
    static_cast<std::uint16_t*>(data)[index] = numerics::float_to_bfloat16(value);
  else if (type == DType::float16)
    static_cast<std::uint16_t*>(data)[index] = numerics::float_to_float16(value);
  else
    static_cast<float*>(data)[index] = value;
}

}  // namespace evergemm::reference
