// SPDX-License-Identifier: Apache-2.0
// Prints the rows of plan/sm90.h and plan/sm90_grouped.h, in order: tile, header, table, parameters, the function that hands
// out the kernel, name. cmake/KernelInstances.cmake runs it while configuring.
#include <cstdio>

#include "plan/sm90.h"
#include "plan/sm90_grouped.h"

template <class Table>
void print_rows(const Table& table, const char* constants) {
  int tile = 0;
  for (const evergemm::plan_tables::TileConfig& config : table)
    std::printf("%d %s %s\n", tile++, constants, evergemm::plan_tables::name_of(config).text.data());
}

int main() {
  print_rows(evergemm::plan_tables::kSm90Tiles, "sm90.h kSm90Tiles Parameters kernel_of");
  print_rows(evergemm::plan_tables::kSm90GroupedTiles,
             "sm90_grouped.h kSm90GroupedTiles GroupedParameters grouped_kernel_of");
  return 0;
}
