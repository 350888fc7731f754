// SPDX-License-Identifier: Apache-2.0
// Where a call runs: the device's facts, torch's stream and torch's threads, for the length of one call.
// Must not go here: decisions (plan() makes them from the facts).
#pragma once
#include "compat.h"
#include "evergemm/plan.h"
#include "evergemm/run.h"

namespace evergemm::bindings {

class DeviceScope {
 public:
  // Throws where this library or this torch cannot serve the device.
  DeviceScope(const Device& device, const char* operator_name);
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

  const DeviceFacts& facts() const { return facts_; }
  const RunContext& context() const { return context_; }
  // Throws where torch could not run one of this call's parallel loops to its end.
  void check_threads(const char* operator_name) const;

 private:
  DeviceFacts facts_;
  RunContext context_;
};

}  // namespace evergemm::bindings
