// SPDX-License-Identifier: Apache-2.0
// Current device, cached device facts, and error texts of the CUDA backend.
#include "cuda/device.h"

#include <array>
#include <mutex>

namespace evergemm::cuda {

DeviceGuard::DeviceGuard(std::int32_t device) {
  std::int32_t current = -1;
  error_ = cudaGetDevice(&current);
  if (error_ != cudaSuccess || current == device) return;
  error_ = cudaSetDevice(device);
  if (error_ == cudaSuccess) previous_ = current;
}

DeviceGuard::~DeviceGuard() {
  if (previous_ >= 0) static_cast<void>(cudaSetDevice(previous_));
}

Status cuda_failure(const std::string& kernel, const std::string& problem, cudaError_t error) {
  static_cast<void>(cudaGetLastError());
  return Status(kernel + ": expected the launch to succeed for " + problem + "; got CUDA error " +
                std::to_string(static_cast<int>(error)) + " (" + cudaGetErrorString(error) +
                "); fix: if no earlier kernel failed, this is a bug of evergemm: please report this line.");
}

namespace {

struct CachedFacts {
  std::once_flag once;
  cudaError_t error = cudaSuccess;
  int major = 0, minor = 0;
  DeviceFacts facts;
};

}  // namespace

Status device_facts(std::int32_t device, DeviceFacts& facts) {
  static std::array<CachedFacts, kMaxDevices> cache;
  if (device < 0 || device >= kMaxDevices)
    return Status("cuda: expected a device index in [0, " + std::to_string(kMaxDevices) + "); got " +
                  std::to_string(device) + "; fix: pass tensors of one of those devices.");
  CachedFacts& cached = cache[static_cast<std::size_t>(device)];
  std::call_once(cached.once, [&cached, device] {
    int cores = 0, shared_memory = 0;
    const auto read = [&](int& value, cudaDeviceAttr attribute) {
      if (cached.error == cudaSuccess) cached.error = cudaDeviceGetAttribute(&value, attribute, device);
    };
    read(cached.major, cudaDevAttrComputeCapabilityMajor);
    read(cached.minor, cudaDevAttrComputeCapabilityMinor);
    read(cores, cudaDevAttrMultiProcessorCount);
    read(shared_memory, cudaDevAttrMaxSharedMemoryPerBlockOptin);
    cached.facts.cores = cores;
    cached.facts.shared_memory_bytes = shared_memory;
    if (cached.error != cudaSuccess) static_cast<void>(cudaGetLastError());
  });
  if (cached.error != cudaSuccess)
    return Status("cuda: expected device " + std::to_string(device) + " to answer; got CUDA error " +
                  std::to_string(static_cast<int>(cached.error)) + " (" + cudaGetErrorString(cached.error) +
                  "); fix: check that the driver is at least 580 and that nvidia-smi lists the device.");
  if (!architecture_of_capability(cached.major, cached.minor, cached.facts.architecture))
    return Status("cuda: expected a GPU of a known compute capability; got " + std::to_string(cached.major) + "." +
                  std::to_string(cached.minor) + "; fix: use CPU tensors, or a release that knows this GPU.");
  facts = cached.facts;
  return Status();
}

bool may_overlap() {
  std::int32_t device = 0;
  DeviceFacts facts;
  if (cudaGetDevice(&device) != cudaSuccess || !device_facts(device, facts).ok()) return false;
  switch (facts.architecture) {
    case Architecture::cpu:
    case Architecture::sm75:
    case Architecture::sm80:
    case Architecture::sm86:
    case Architecture::sm89:
      return false;
    default:
      return true;
  }
}

Status check_plan(const Plan& plan, const Device& device) {
  DeviceFacts facts;
  const Status status = device_facts(device.index, facts);
  if (!status.ok()) return status;
  const std::string index = std::to_string(device.index);
  if (facts.architecture != plan.architecture)
    return Status(std::string(plan.name) + ": expected a device of architecture " + name(plan.architecture) + "; got " +
                  name(facts.architecture) + " (device " + index + "); fix: plan with the facts of that device.");
  if (!is_built(facts.architecture))
    return Status(std::string(plan.name) + ": expected a library with kernels for " + name(facts.architecture) +
                  " (device " + index +
                  "); got one without; fix: install a build with EVERGEMM_ARCHS=all, or move the tensors to the cpu.");
  return Status();
}

}  // namespace evergemm::cuda
