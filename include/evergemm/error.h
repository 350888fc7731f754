// SPDX-License-Identifier: Apache-2.0
// How a layer says no: a Status that is empty (success) or holds one finished sentence
// "op: expected ...; got ...; fix: ...". No exception is thrown below bindings/.
#pragma once
#include <string>
#include <utility>

namespace evergemm {

class [[nodiscard]] Status {
 public:
  Status() = default;                                            // success
  explicit Status(std::string text) : text_(std::move(text)) {}  // failure; text must not be empty
  bool ok() const { return text_.empty(); }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

}  // namespace evergemm
