// SPDX-License-Identifier: Apache-2.0
// The emulated device as the planner sees it. Must not go here: the machine itself (machine.h).
#pragma once
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

}  // namespace evergemm::emulator
