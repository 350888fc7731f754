// SPDX-License-Identifier: Apache-2.0
// What every row of the table of operators is written with: reading a schema's arguments in order, describing the results to
// allocate. Private to operators*.cpp. Must not go here: anything about a single operator.
#pragma once
#include <cstdint>
#include <cstring>
#include <span>
#include <string>

#include "plan/operators.h"
#include "plan/validate_rules.h"

namespace evergemm::operators {

using Arguments = std::span<const Argument>;

// Reads arguments one after the other, in the order of the schema.
class Reader {
 public:
  explicit Reader(Arguments arguments) : arguments_(arguments) {}
  const TensorView& tensor() { return next().tensor; }
  std::int64_t integer() { return next().integer; }
  double real() { return next().real; }
  bool boolean() { return next().integer != 0; }
  DType dtype() { return static_cast<DType>(next().integer); }
  // What is wrong with the number or kinds of the arguments, or an empty status.
  static Status check(const Operator& self, Arguments arguments, const char* kinds) {
    bool fits = std::strlen(kinds) == arguments.size();
    for (std::size_t i = 0; fits && i < arguments.size(); ++i) {
      const Argument::Kind kind = arguments[i].kind;
      const char code = kinds[i];
      fits = code == 't'   ? kind == Argument::Kind::tensor
             : code == 'i' ? kind == Argument::Kind::integer
             : code == 'f' ? kind == Argument::Kind::real
             : code == 'b' ? kind == Argument::Kind::boolean
                           : kind == Argument::Kind::dtype;
    }
    if (fits) return Status();
    return validation::violation(self.name, std::to_string(std::strlen(kinds)) + " arguments of kinds " + kinds,
                                 std::to_string(arguments.size()) + " arguments",
                                 "call it with the arguments of its schema");
  }

 private:
  const Argument& next() { return arguments_[position_++]; }
  Arguments arguments_;
  std::size_t position_ = 0;
};

// "scaled_mm.out" is called scaled_mm in messages.
struct BaseName {
  char text[64];
  explicit BaseName(const char* name) {
    const char* dot = std::strchr(name, '.');
    const std::size_t length = dot == nullptr ? std::strlen(name) : static_cast<std::size_t>(dot - name);
    const std::size_t kept = length < sizeof text - 1 ? length : sizeof text - 1;
    std::memcpy(text, name, kept);
    text[kept] = '\0';
  }
};

inline bool has_out(const Operator& self) { return std::strchr(self.name, '.') != nullptr; }

inline OutputSpec& add_output(Prepared& prepared, DType dtype, const Device& device, std::int32_t rank) {
  OutputSpec& output = prepared.outputs[prepared.output_count++];
  output.dtype = dtype;
  output.device = device;
  output.rank = rank;
  return output;
}

inline void contiguous_strides(OutputSpec& output) {
  std::int64_t stride = 1;
  for (std::int32_t d = output.rank - 1; d >= 0; --d) {
    output.strides[d] = stride;
    // Only an empty result can overflow here (validate() bounds the others), and nobody uses its strides.
    if (__builtin_mul_overflow(stride, output.sizes[d] > 0 ? output.sizes[d] : 1, &stride)) stride = 1;
  }
}

}  // namespace evergemm::operators
