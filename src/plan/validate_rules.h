// SPDX-License-Identifier: Apache-2.0
// The sentences and questions that all validators share: how a violation is worded, how a view is printed, which bytes it
// addresses. Private to src/plan/validate_*.cpp.
#pragma once
#include <cstdint>
#include <optional>
#include <string>

#include "evergemm/error.h"
#include "evergemm/problem.h"

namespace evergemm::validation {

// "op: expected ...; got ...; fix: ...."
Status violation(const char* operator_name, const std::string& expected, const std::string& got,
                 const std::string& fix);

std::string shape_text(const TensorView& view);                     // "[4096, 11008]"
std::string layout_text(const TensorView& view);                    // "shape [4096, 11008], strides [11008, 1]"
std::string device_text(const Device& device);                      // "cpu", "cuda:1"
std::string list_text(std::initializer_list<std::int64_t> values);  // "[3, 5]"

// Elements; nothing where the product leaves int64.
std::optional<std::int64_t> numel(const TensorView& view);

inline std::int64_t ceil_divide(std::int64_t value, std::int64_t by) { return value / by + (value % by != 0 ? 1 : 0); }

// A view as rows of evenly spaced elements: what every operand here is, after leading dimensions are merged.
struct Rows {
  std::int64_t rows = 0, columns = 0;
  std::int64_t row_stride = 0, column_stride = 0;  // in elements; 0 where the dimension has size <= 1
};
// Merges all dimensions but the last `kept` = 1; nothing where strides do not allow it. Rank 0 is one row of one element.
std::optional<Rows> as_rows(const TensorView& view);
// The stride of a view that holds a vector, whatever its rank; nothing where its elements are not evenly spaced.
std::optional<std::int64_t> vector_stride(const TensorView& view);

// The bytes that a view addresses, as evenly spaced byte intervals.
struct ByteRows {
  std::uint64_t begin = 0;  // address
  std::int64_t rows = 0, width = 0, pitch = 0;
};
// Nothing where a size is 0, where the address is not known, or where dimensions cannot be merged.
std::optional<ByteRows> addressed(const TensorView& view);
bool overlap(const ByteRows& x, const ByteRows& y);

// Rules for one tensor argument, asked one after the other; the first that fails is kept, later ones do nothing.
class Checker {
 public:
  explicit Checker(const char* operator_name) : operator_name_(operator_name) {}

  bool ok() const { return status_.ok(); }
  Status take() { return std::move(status_); }
  const char* operator_name() const { return operator_name_; }

  void fail(const std::string& expected, const std::string& got, const std::string& fix) {
    if (ok()) status_ = violation(operator_name_, expected, got, fix);
  }

  // No gradient, one of `dtypes`, on `device` (or, for the first argument, on any that is supported), inside its storage,
  // aligned to its element.
  void tensor(const char* argument, const TensorView& view, std::initializer_list<DType> dtypes, const Device* device);
  void rank(const char* argument, const TensorView& view, std::int32_t rank, const char* letters);
  // int8: the sum over k fits int32 in any order.
  void exact_sum(DType dtype, std::int64_t k);
  // `output` may not share a byte with `input`.
  void no_overlap(const char* output_name, const TensorView& output, const char* input_name, const TensorView& input);

 private:
  const char* operator_name_;
  Status status_;
};

}  // namespace evergemm::validation
