// SPDX-License-Identifier: Apache-2.0
// The kernels that cmake/KernelInstances.cmake compiles, one a row of plan/sm90.h and plan/sm90_grouped.h.
#pragma once

namespace evergemm::sm90 {

// The kernel of tile kTile of kSm90Tiles, as launches take it. Each generated file defines one of these.
template <int kTile>
const void* kernel_of();

// The same for kSm90GroupedTiles.
template <int kTile>
const void* grouped_kernel_of();

}  // namespace evergemm::sm90
