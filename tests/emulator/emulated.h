// SPDX-License-Identifier: Apache-2.0
// The emulated device as the planner sees it, and where the draws of a test begin. Must not go here: the machine itself (machine.h).
#pragma once
#include <cstdlib>

#include "evergemm/plan.h"
#include "machine.h"

namespace evergemm::emulator {

inline DeviceFacts facts() {
  DeviceFacts facts;
  facts.architecture = Architecture::sm90a;
  facts.cores = kMultiprocessors;
  facts.shared_memory_bytes = kSharedMemory;
  return facts;
}

// Added to what each test draws from: EVERGEMM_EMULATED_SEED=1, 2, ... are other sizes, operands and orders of the same tests.
inline int first_draw() {
  const char* seed = std::getenv("EVERGEMM_EMULATED_SEED");
  return seed == nullptr ? 0 : 1000 * std::atoi(seed);
}

}  // namespace evergemm::emulator
