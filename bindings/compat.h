// SPDX-License-Identifier: Apache-2.0
// Torch's stable C interface as this library uses it, with everything that a plain include would get wrong. First file of
// the torch layer; only bindings/ includes it. Must not go here: anything that knows an operator.
//
// Why the C shims and not torch/csrc/stable/*.h's classes: those convert arguments one by one and leak every tensor handle
// of the call when a conversion throws (a ScalarType newer than the target), and their static registrations terminate the
// process on a bad schema.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "evergemm/types.h"

// Lives in libtorch_cuda.so: weak, so that the library loads on a torch without CUDA, where it is null.
#pragma weak aoti_torch_get_current_cuda_stream

namespace evergemm::bindings {

// The oldest torch we run on, in aoti_torch_abi_version()'s layout (major and minor in the two highest bytes).
inline constexpr std::uint64_t kOldestTorch = 0x020a000000000000ull;

// Raw codes: one load each, where the typed accessors compare with every dtype in turn. The numbers are fixed by torch's
// serialized formats; registration checks them against the getters once (codes_are_ours).
inline constexpr std::int32_t kCpuCode = 0;
inline constexpr std::int32_t kCudaCode = 1;
inline bool codes_are_ours() {
  return aoti_torch_device_type_cpu() == kCpuCode && aoti_torch_device_type_cuda() == kCudaCode &&
         aoti_torch_dtype_int8() == static_cast<std::int32_t>(DType::int8) &&
         aoti_torch_dtype_int32() == static_cast<std::int32_t>(DType::int32) &&
         aoti_torch_dtype_float16() == static_cast<std::int32_t>(DType::float16) &&
         aoti_torch_dtype_float32() == static_cast<std::int32_t>(DType::float32) &&
         aoti_torch_dtype_bfloat16() == static_cast<std::int32_t>(DType::bfloat16) &&
         aoti_torch_dtype_float8_e4m3fn() == static_cast<std::int32_t>(DType::float8_e4m3fn);
}

inline Device device_of(std::int32_t type_code, std::int32_t index) {
  if (type_code == kCpuCode) return Device{DeviceType::cpu, -1};
  if (type_code == kCudaCode) return Device{DeviceType::cuda, index};
  return Device{DeviceType::other, index};
}
inline std::int32_t device_code(const Device& device) { return device.type == DeviceType::cuda ? kCudaCode : kCpuCode; }

// What torch says about the last call of its C interface that failed; torch 2.10 to 2.12 do not tell.
std::string last_torch_error();

// Throws where a call of torch's C interface failed: `doing` says what for. std::runtime_error is the one type that arrives in
// Python as RuntimeError on every torch.
inline void require(AOTITorchError code, const char* operator_name, const char* doing) {
  if (code == AOTI_TORCH_SUCCESS) return;
  const std::string text = last_torch_error();
  throw std::runtime_error(std::string(operator_name) + ": torch failed while " + doing + (text.empty() ? "" : ": ") +
                           text);
}

// Owns one tensor handle.
class OwnedTensor {
 public:
  OwnedTensor() = default;
  explicit OwnedTensor(AtenTensorHandle handle) : handle_(handle) {}
  OwnedTensor(const OwnedTensor&) = delete;
  OwnedTensor& operator=(const OwnedTensor&) = delete;
  ~OwnedTensor() { reset(nullptr); }

  AtenTensorHandle get() const { return handle_; }
  AtenTensorHandle release() {
    AtenTensorHandle handle = handle_;
    handle_ = nullptr;
    return handle;
  }
  void reset(AtenTensorHandle handle) {
    if (handle_ != nullptr) aoti_torch_delete_tensor_object(handle_);
    handle_ = handle;
  }

 private:
  AtenTensorHandle handle_ = nullptr;
};

}  // namespace evergemm::bindings
