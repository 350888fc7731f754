// SPDX-License-Identifier: Apache-2.0
// Wording and byte arithmetic of the validators; see validate_rules.h.
#include "plan/validate_rules.h"

namespace evergemm::validation {

namespace {

std::string dtype_list(std::initializer_list<DType> dtypes) {
  std::string text;
  std::size_t i = 0;
  for (DType dtype : dtypes) {
    if (i > 0) text += i + 1 == dtypes.size() ? " or " : ", ";
    text += evergemm::name(dtype);
    ++i;
  }
  return text;
}

std::string dtype_text(DType dtype) {
  const char* known = evergemm::name(dtype);
  return std::string(known) == "unknown" ? "dtype code " + std::to_string(static_cast<std::int32_t>(dtype)) : known;
}

// The largest byte offset (past the end) that a view addresses, relative to its data; nothing on overflow.
std::optional<std::int64_t> span_bytes(const TensorView& view) {
  std::int64_t last = 0;
  for (std::int32_t d = 0; d < view.rank; ++d) {
    if (view.sizes[d] == 0) return 0;
    std::int64_t extent = 0;
    if (__builtin_mul_overflow(view.sizes[d] - 1, view.strides[d], &extent) ||
        __builtin_add_overflow(last, extent, &last))
      return std::nullopt;
  }
  std::int64_t bytes = 0;
  if (__builtin_add_overflow(last, std::int64_t{1}, &last) ||
      __builtin_mul_overflow(last, size_in_bytes(view.dtype), &bytes))
    return std::nullopt;
  return bytes;
}

}  // namespace

Status violation(const char* operator_name, const std::string& expected, const std::string& got,
                 const std::string& fix) {
  return Status(std::string(operator_name) + ": expected " + expected + "; got " + got + "; fix: " + fix + ".");
}

std::string list_text(std::initializer_list<std::int64_t> values) {
  std::string text = "[";
  for (std::int64_t value : values) text += (text.size() > 1 ? ", " : "") + std::to_string(value);
  return text + "]";
}

namespace {
std::string list_of(const std::int64_t* values, std::int32_t count) {
  std::string text = "[";
  for (std::int32_t i = 0; i < count; ++i) text += (i > 0 ? ", " : "") + std::to_string(values[i]);
  return text + "]";
}
}  // namespace

std::string shape_text(const TensorView& view) { return list_of(view.sizes, view.rank < 0 ? 0 : view.rank); }

std::string layout_text(const TensorView& view) {
  return "shape " + shape_text(view) + ", strides " + list_of(view.strides, view.rank < 0 ? 0 : view.rank);
}

std::string device_text(const Device& device) {
  switch (device.type) {
    case DeviceType::cpu:
      return "cpu";
    case DeviceType::cuda:
      return "cuda:" + std::to_string(device.index);
    case DeviceType::other:
      break;
  }
  return "a device of another kind";
}

std::optional<std::int64_t> numel(const TensorView& view) {
  std::int64_t count = 1;
  for (std::int32_t d = 0; d < view.rank; ++d)
    if (view.sizes[d] == 0) return 0;
  for (std::int32_t d = 0; d < view.rank; ++d)
    if (__builtin_mul_overflow(count, view.sizes[d], &count)) return std::nullopt;
  return count;
}

std::optional<Rows> as_rows(const TensorView& view) {
  Rows merged;
  merged.rows = 1;
  merged.columns = view.rank == 0 ? 1 : view.sizes[view.rank - 1];
  merged.column_stride = view.rank > 0 && merged.columns > 1 ? view.strides[view.rank - 1] : 0;
  bool empty = merged.columns == 0;
  for (std::int32_t d = 0; d + 1 < view.rank; ++d) empty = empty || view.sizes[d] == 0;
  if (empty) merged.column_stride = merged.columns > 1 ? 1 : 0;  // strides of an empty tensor say nothing
  // From the innermost leading dimension outwards: each must continue the one inside it.
  for (std::int32_t d = view.rank - 2; d >= 0; --d) {
    const std::int64_t size = view.sizes[d];
    if (size != 1 && !empty) {
      if (merged.rows == 1) {
        merged.row_stride = view.strides[d];
      } else {
        std::int64_t continued = 0;
        if (__builtin_mul_overflow(merged.rows, merged.row_stride, &continued) || view.strides[d] != continued)
          return std::nullopt;
      }
    }
    if (__builtin_mul_overflow(merged.rows, size, &merged.rows)) return std::nullopt;
  }
  return merged;
}

std::optional<std::int64_t> vector_stride(const TensorView& view) {
  std::int64_t count = 1, stride = 0;
  for (std::int32_t d = view.rank - 1; d >= 0; --d) {
    const std::int64_t size = view.sizes[d];
    if (size == 0) return 0;
    if (size == 1) continue;
    if (count == 1) {
      stride = view.strides[d];
    } else {
      std::int64_t continued = 0;
      if (__builtin_mul_overflow(count, stride, &continued) || view.strides[d] != continued) return std::nullopt;
    }
    if (__builtin_mul_overflow(count, size, &count)) return std::nullopt;
  }
  return stride;
}

std::optional<ByteRows> addressed(const TensorView& view) {
  if (!view.given() || view.data == nullptr) return std::nullopt;
  const std::optional<std::int64_t> count = numel(view);
  if (!count || *count == 0) return std::nullopt;
  const std::int64_t item = size_in_bytes(view.dtype);
  ByteRows bytes;
  bytes.begin = reinterpret_cast<std::uintptr_t>(view.data);
  const std::optional<std::int64_t> span = span_bytes(view);
  if (!span) return std::nullopt;
  const std::optional<Rows> rows = as_rows(view);
  if (!rows) {  // not evenly spaced: the whole span, which can only refuse more
    bytes.rows = 1;
    bytes.width = bytes.pitch = *span;
    return bytes;
  }
  const bool dense_row = rows->columns == 1 || rows->column_stride == 1;
  if (dense_row) {
    bytes.rows = rows->rows;
    bytes.width = rows->columns * item;
    bytes.pitch = rows->row_stride * item;
  } else if (rows->rows == 1 || (rows->row_stride == 1 && rows->column_stride >= rows->rows)) {
    // one strided row, or a column-major matrix: its columns are the intervals
    bytes.rows = rows->columns;
    bytes.width = rows->rows * item;
    bytes.pitch = rows->column_stride * item;
  } else {
    bytes.rows = 1;
    bytes.width = *span;
  }
  if (bytes.rows == 1 || bytes.pitch == bytes.width) {  // one interval
    bytes.width = bytes.rows == 1 ? bytes.width : bytes.width * bytes.rows;
    bytes.rows = 1;
    bytes.pitch = bytes.width;
  }
  return bytes;
}

bool overlap(const ByteRows& x, const ByteRows& y) {
  if (x.rows > y.rows) return overlap(y, x);
  using Wide = __int128;
  const Wide y_begin = y.begin, y_end = y_begin + Wide{y.rows - 1} * y.pitch + y.width;
  const Wide x_begin = x.begin, x_end = x_begin + Wide{x.rows - 1} * x.pitch + x.width;
  if (x_begin >= y_end || y_begin >= x_end) return false;
  for (std::int64_t i = 0; i < x.rows; ++i) {
    const Wide begin = x_begin + Wide{i} * x.pitch, end = begin + x.width;
    // A row j of y meets [begin, end) where y_begin + j * pitch < end and y_begin + j * pitch + width > begin.
    if (y.pitch == 0) {
      if (y_begin < end && y_begin + y.width > begin) return true;
      continue;
    }
    const Wide reach = end - y_begin;  // j * pitch < reach
    if (reach <= 0) continue;
    Wide last = (reach - 1) / y.pitch;
    if (last > y.rows - 1) last = y.rows - 1;
    if (y_begin + last * y.pitch + y.width > begin) return true;
  }
  return false;
}

void Checker::tensor(const char* argument, const TensorView& view, std::initializer_list<DType> dtypes,
                     const Device* device) {
  if (!ok()) return;
  const std::string argument_name = argument;
  if (!view.given()) return fail("a tensor for " + argument_name, "None", "pass " + argument_name);
  if (view.requires_grad)
    return fail("tensors without gradients (inference only)", argument_name + " that requires grad",
                "call it under torch.no_grad(), or pass " + argument_name + ".detach()");
  bool dtype_fits = false;
  for (DType dtype : dtypes) dtype_fits = dtype_fits || view.dtype == dtype;
  if (!dtype_fits) {
    const std::string wanted = dtype_list(dtypes);
    return fail(argument_name + " of dtype " + wanted, dtype_text(view.dtype),
                dtypes.size() == 1 ? "pass " + argument_name + ".to(torch." + wanted + ")"
                                   : "convert or quantize " + argument_name + " to one of them");
  }
  if (device == nullptr) {
    if (view.device.type == DeviceType::other)
      return fail(argument_name + " on cpu or cuda", device_text(view.device), "move the tensors to one of them");
  } else if (!(view.device == *device)) {
    return fail(argument_name + " on " + device_text(*device) + " like the first argument", device_text(view.device),
                "move all tensors to one device");
  }
  for (std::int32_t d = 0; d < view.rank; ++d)
    if (view.sizes[d] < 0 || view.strides[d] < 0)
      return fail(argument_name + " with sizes and strides >= 0", layout_text(view),
                  "pass a tensor that torch could make");
  const std::optional<std::int64_t> span = span_bytes(view);
  if (!span || !numel(view))
    return fail(argument_name + " that spans less than 2^63 bytes", layout_text(view), "pass a smaller tensor");
  if (view.storage_bytes >= 0 && *span > view.storage_bytes)
    return fail(argument_name + " inside its storage (" + std::to_string(*span) + " bytes from its first element)",
                std::to_string(view.storage_bytes) + " bytes left in the storage, " + layout_text(view),
                "do not resize the storage of a tensor in use, or pass a fresh one");
  const std::int64_t item = size_in_bytes(view.dtype);
  if (*span > 0 && reinterpret_cast<std::uintptr_t>(view.data) % static_cast<std::uintptr_t>(item) != 0)
    return fail(argument_name + " aligned to its element (" + std::to_string(item) + " bytes)",
                "an address that is " +
                    std::to_string(reinterpret_cast<std::uintptr_t>(view.data) % static_cast<std::uintptr_t>(item)) +
                    " bytes off",
                "pass " + argument_name + ".clone()");
}

void Checker::rank(const char* argument, const TensorView& view, std::int32_t rank, const char* letters) {
  if (!ok() || view.rank == rank) return;
  fail(std::string(argument) + " of rank " + std::to_string(rank) + " " + letters, layout_text(view),
       "reshape " + std::string(argument) + " to " + letters);
}

void Checker::exact_sum(DType dtype, std::int64_t k) {
  constexpr std::int64_t kMost = 131071;  // 128 * 128 * 131,071 < 2^31
  if (ok() && dtype == DType::int8 && k > kMost)
    fail("k of at most 131071 for int8 (the sum is exact in int32 up to there)", "k = " + std::to_string(k),
         "split k and add the results, or use float8_e4m3fn");
}

void Checker::no_overlap(const char* output_name, const TensorView& output, const char* input_name,
                         const TensorView& input) {
  if (!ok() || !output.given() || !input.given()) return;
  const std::optional<ByteRows> x = addressed(output), y = addressed(input);
  if (!x || !y || !overlap(*x, *y)) return;
  fail(
      std::string(output_name) + " that shares no byte with " + input_name,
      std::string(output_name) + " with " + layout_text(output) + " over " + input_name + " with " + layout_text(input),
      "pass a separate tensor for " + std::string(output_name));
}

}  // namespace evergemm::validation
