// SPDX-License-Identifier: Apache-2.0
// Tensor handle -> TensorView: the last place that knows torch. Sizes and strides are borrowed from the tensor, which the
// caller keeps alive. Must not go here: judgement of any kind (that is validate()'s).
#pragma once
#include "compat.h"
#include "evergemm/problem.h"

namespace evergemm::bindings {

// Integers and bool carry no gradient.
inline bool may_require_grad(std::int32_t dtype_code) { return dtype_code > 4 && dtype_code != 11; }

// Whether torch would record this tensor in a graph now; asked only while grad mode is on. The stable interface has no getter,
// so we look at what torch does: a view of a tensor that requires grad has a history, and so is no leaf.
inline bool records_gradient(AtenTensorHandle handle, const std::int64_t* sizes, const std::int64_t* strides) {
  AtenTensorHandle view = nullptr;
  if (aoti_torch_as_strided(handle, sizes, strides, &view) != AOTI_TORCH_SUCCESS) return false;
  StableIValue stack[1] = {reinterpret_cast<std::uintptr_t>(view)};  // the call takes the handle
  if (torch_call_dispatcher("aten::is_leaf", "", stack, TORCH_ABI_VERSION) != AOTI_TORCH_SUCCESS) return false;
  return (stack[0] & 1) == 0;
}

// `written`: an output, whose address must be safe to write to (a copy-on-write tensor is copied now).
inline TensorView view_of(AtenTensorHandle handle, bool written, bool grad_mode, const char* operator_name) {
  TensorView view;
  std::int32_t dtype = 0, device_type = 0, device_index = 0;
  std::int64_t rank = 0, storage_bytes = 0, storage_offset = 0;
  std::int64_t *sizes = nullptr, *strides = nullptr;
  void* data = nullptr;
  AOTITorchError failed = aoti_torch_get_dtype(handle, &dtype);
  failed |= aoti_torch_get_device_type(handle, &device_type);
  if (device_type != kCpuCode) failed |= aoti_torch_get_device_index(handle, &device_index);
  failed |= aoti_torch_get_dim(handle, &rank);
  failed |= aoti_torch_get_sizes(handle, &sizes);
  failed |= aoti_torch_get_strides(handle, &strides);
  failed |= aoti_torch_get_storage_size(handle, &storage_bytes);
  failed |= aoti_torch_get_storage_offset(handle, &storage_offset);
  if (written) {
    failed |= torch_get_mutable_data_ptr(handle, &data);
  } else {
    const void* read_only = nullptr;
    failed |= torch_get_const_data_ptr(handle, &read_only);
    data = const_cast<void*>(read_only);
  }
  require(failed, operator_name, "reading a tensor argument (it must be strided and in memory)");
  view.data = data;
  view.dtype = static_cast<DType>(dtype);
  view.device = device_of(device_type, device_index);
  view.rank = static_cast<std::int32_t>(rank);
  view.sizes = sizes;
  view.strides = strides;
  const std::int64_t item = size_in_bytes(view.dtype);
  // Of a dtype that no operator takes the item size is not known here, nor needed.
  view.storage_bytes = item == 0 ? -1 : storage_bytes - storage_offset * item;
  view.requires_grad = grad_mode && may_require_grad(dtype) && records_gradient(handle, sizes, strides);
  return view;
}

}  // namespace evergemm::bindings
