// SPDX-License-Identifier: Apache-2.0
// What every CUDA kernel family needs of the runtime: the right device for the length of a call, what a device can do, errors
// as sentences. Must not go here: kernels, tensor maps.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <string>

#include "evergemm/error.h"
#include "evergemm/plan.h"

namespace evergemm::cuda {

inline constexpr std::int32_t kMaxDevices = 64;

// Makes a device current until the end of the scope. Takes no context with it: a device that is current already costs a look.
class DeviceGuard {
 public:
  explicit DeviceGuard(std::int32_t device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  cudaError_t error() const { return error_; }

 private:
  std::int32_t previous_ = -1;  // -1: nothing to restore
  cudaError_t error_ = cudaSuccess;
};

// A CUDA call of ours that failed after validation: our bug, or a device that is in trouble. Clears the runtime's last error
// so that the next call of anybody does not find it.
Status cuda_failure(const std::string& kernel, const std::string& problem, cudaError_t error);

// Read once per device, thread-safe. An error where `device` is not a CUDA device of this machine.
Status device_facts(std::int32_t device, DeviceFacts& facts);

// Whether kernels of the current device may start while the one before them in the stream ends: from compute capability 9.0 on.
bool may_overlap();

// What a caller could get wrong: a plan for another device, a binary without kernels for this one.
Status check_plan(const Plan& plan, const Device& device);

}  // namespace evergemm::cuda
