// SPDX-License-Identifier: Apache-2.0
// Prints plan/portable.h for cmake/PortableInstances.cmake, which runs it while configuring: one line an architecture ("sm80",
// memory class), then one a row (name, memory class, index, whether
// it is compiled for grouped products too, whether it may split k).
#include <cstdio>

#include "plan/portable.h"

namespace {

// As src/plan/names.cpp has it; a program of one file is all that a configuring build can run.
const char* name_of(evergemm::Architecture architecture) {
  using evergemm::Architecture;
  switch (architecture) {
    case Architecture::cpu:
      return "cpu";
    case Architecture::sm75:
      return "sm75";
    case Architecture::sm80:
      return "sm80";
    case Architecture::sm86:
      return "sm86";
    case Architecture::sm89:
      return "sm89";
    case Architecture::sm90a:
      return "sm90a";
    case Architecture::sm100:
      return "sm100";
    case Architecture::sm103:
      return "sm103";
    case Architecture::sm110:
      return "sm110";
    case Architecture::sm120:
      return "sm120";
    case Architecture::sm121:
      return "sm121";
  }
  return "unknown";
}

}  // namespace

int main() {
  using namespace evergemm::plan_tables;
  for (const PortableArchitecture& entry : kPortableArchitectures)
    std::printf("architecture %s %d\n", name_of(entry.architecture), static_cast<int>(entry.memory));
  for (const MemoryClass memory : {MemoryClass::turing, MemoryClass::small, MemoryClass::large}) {
    int index = 0;
    for (const PortableTile& tile : portable_rows_of(memory))
      std::printf("row %s %d %d %d %d\n", name_of(tile).text.data(), static_cast<int>(memory), index++,
                  has_grouped(tile) ? 1 : 0, may_split(tile) ? 1 : 0);
  }
  return 0;
}
