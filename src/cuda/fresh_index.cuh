// SPDX-License-Identifier: Apache-2.0
// Reads of indices that an earlier kernel wrote, by a kernel that has not yet waited for the one before it: past the L1, which
// may hold what it saw at that address before. Beside moe_index.h in the flow. Must not go here: what the values mean.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "evergemm/moe_index.h"

namespace evergemm::cuda {

struct ReadThroughL2 {
  __device__ __forceinline__ std::int64_t operator()(const void* data, bool is_int64, std::int64_t at) const {
    return is_int64 ? __ldcg(static_cast<const long long*>(data) + at) : __ldcg(static_cast<const int*>(data) + at);
  }
};

}  // namespace evergemm::cuda
