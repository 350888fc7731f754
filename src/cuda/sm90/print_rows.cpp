// SPDX-License-Identifier: Apache-2.0
// Prints the names of the rows of plan/sm90.h, in order. cmake/KernelInstances.cmake runs it while configuring.
#include <cstdio>

#include "plan/sm90.h"

int main() {
  for (const evergemm::plan_tables::TileConfig& tile : evergemm::plan_tables::kSm90Tiles)
    std::puts(evergemm::plan_tables::name_of(tile).text.data());
  return 0;
}
