// SPDX-License-Identifier: Apache-2.0
// What is registered: every operator's schema, key, and the boxed function that torch calls. The table stands in schema.cpp.
#pragma once
#include <cstdint>
#include <span>
#include <string_view>

#include "compat.h"
#include "plan/operators.h"

namespace evergemm::bindings {

inline constexpr std::int32_t kMaxArguments = 16;
inline constexpr std::int32_t kMaxResults = 3;

// One argument of a schema, as the boxed call needs it.
struct SchemaArgument {
  Argument::Kind kind = Argument::Kind::integer;
  bool optional = false;  // Tensor?
  bool written = false;   // Tensor(a!) or Tensor!
};

// A schema read at compile time: a typo in the table does not build.
struct Schema {
  const char* text = "";
  std::string_view name;  // "scaled_mm.out"
  std::int32_t arguments = 0;
  std::int32_t results = 0;
  SchemaArgument argument[kMaxArguments];
};

using BoxedKernel = void (*)(StableIValue* stack, std::uint64_t arguments, std::uint64_t results);

struct RegisteredOperator {
  const Schema* schema;
  bool takes_tensors;  // keys CPU and CUDA; otherwise CompositeExplicitAutograd
  BoxedKernel kernel;
};
std::span<const RegisteredOperator> registered_operators();

// Runs `self` on torch's stack: takes every handle on it, validates, allocates, plans, runs, leaves the results. boxed.cpp.
void call_boxed(const Schema& schema, const Operator& self, StableIValue* stack, std::uint64_t arguments,
                std::uint64_t results);

}  // namespace evergemm::bindings
