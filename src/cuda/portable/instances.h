// SPDX-License-Identifier: Apache-2.0
// The kernels that cmake/KernelInstances.cmake compiles, one a row of plan/portable.h and memory class.
// Must not go here: anything that needs the toolkit's compiler.
#pragma once
#include <array>
#include <cstdint>

#include "plan/portable.h"

namespace evergemm::portable {

// By memory class and row: what gives the kernel, or null where this binary has none. Generated.
using KernelOf = const void* (*)();
using Kernels = std::array<std::array<KernelOf, plan_tables::kPortableRows>, 3>;
extern const Kernels kKernels, kGroupedKernels, kSumKernels;

}  // namespace evergemm::portable
