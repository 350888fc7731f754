// SPDX-License-Identifier: Apache-2.0
// Every EVERGEMM_PARTSth kernel of plan/sm90.h and plan/sm90_grouped.h, from EVERGEMM_PART on, for the emulated multiprocessor:
// compiled once a part, side by side.
#include <array>
#include <utility>

#include "cuda/sm90/gemm.cuh"
#include "cuda/sm90/instances.h"
#include "plan/sm90.h"
#include "plan/sm90_grouped.h"

namespace evergemm::sm90 {

template <int kTile>
const void* kernel_of() {
  static constexpr EmulatedKernel kernel{[](const void* parameters) {
    Gemm<plan_tables::kSm90Tiles[kTile]>::run(*static_cast<const Parameters*>(parameters));
  }};
  return &kernel;
}
template <int kTile>
const void* grouped_kernel_of() {
  static constexpr EmulatedKernel kernel{[](const void* parameters) {
    Gemm<plan_tables::kSm90GroupedTiles[kTile]>::run(*static_cast<const GroupedParameters*>(parameters));
  }};
  return &kernel;
}

namespace {

constexpr int in_part(std::size_t rows) {
  return (static_cast<int>(rows) - EVERGEMM_PART + EVERGEMM_PARTS - 1) / EVERGEMM_PARTS;
}
using KernelOf = const void* (*)();
template <int... kDense, int... kGrouped>
constexpr auto kernels(std::integer_sequence<int, kDense...>, std::integer_sequence<int, kGrouped...>) {
  return std::array<KernelOf, sizeof...(kDense) + sizeof...(kGrouped)>{
      &kernel_of<EVERGEMM_PART + kDense * EVERGEMM_PARTS>...,
      &grouped_kernel_of<EVERGEMM_PART + kGrouped * EVERGEMM_PARTS>...};
}
// Named, so that the compiler makes them: other translation units call them.
[[gnu::used]] constexpr auto kKernels =
    kernels(std::make_integer_sequence<int, in_part(plan_tables::kSm90Tiles.size())>(),
            std::make_integer_sequence<int, in_part(plan_tables::kSm90GroupedTiles.size())>());

}  // namespace
}  // namespace evergemm::sm90
