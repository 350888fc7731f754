// SPDX-License-Identifier: Apache-2.0
// Every operator as a row: the arguments of its schema, in order, become a validated Problem and the outputs to allocate.
// The torch bindings, the fakes and the C interface all come through prepare(), so that they accept and refuse alike.
// Must not go here: torch types, launches.
#pragma once
#include <cstdint>
#include <span>
#include <string_view>
#include <variant>

#include "evergemm/error.h"
#include "evergemm/linear.h"
#include "evergemm/moe.h"
#include "evergemm/plan.h"
#include "evergemm/problem.h"

namespace evergemm {

inline constexpr std::int32_t kMaxRank = 64;  // torch's own limit

// One argument of a schema. A Tensor? that is None is a tensor with rank -1.
struct Argument {
  enum class Kind : std::uint8_t { tensor, integer, real, boolean, dtype };
  Kind kind = Kind::integer;
  TensorView tensor;
  std::int64_t integer = 0;  // integer, boolean (0 or 1), dtype (torch's code)
  double real = 0;
};

// A result that the caller allocates: contiguous unless strides say otherwise.
struct OutputSpec {
  DType dtype = DType::float32;
  Device device;
  std::int32_t rank = 0;
  std::int64_t sizes[kMaxRank];
  std::int64_t strides[kMaxRank];
};

struct Prepared {
  std::variant<GemmProblem, QuantizeProblem, PermuteProblem, MoeRouteProblem, GroupedGemmProblem,
               MoeGatherQuantizeProblem, MoeCombineProblem, FusedMoeProblem, MoeDataProblem, LinearProblem>
      problem;
  std::int32_t row = -1;          // _scaled_mm_row: the forced row
  bool overlap = true;            // _scaled_mm_row: RunContext::overlap
  std::int32_t output_count = 0;  // results of the functional form, in the order of the schema; 0 for out variants
  OutputSpec outputs[3];

  void bind(std::int32_t output, void* data);  // hands result `output`'s memory to the problem
  const Device& device() const;
};

struct Operator {
  const char* name;  // "scaled_mm", "scaled_mm.out", "cutlass_scaled_mm", ...
  Status (*prepare)(const Operator& self, std::span<const Argument> arguments, Prepared& prepared);
};

// Null for a name that is not an operator of tensors (the capability queries are not).
const Operator* find_operator(std::string_view name);
std::span<const Operator> all_operators();

// plan + run of whatever was prepared is the caller's: std::visit over problem.

// The capability queries of the drop-in set; `capability` is major * 10 + minor.
bool dropin_supports_fp8(std::int64_t capability);
bool dropin_supports_block_fp8(std::int64_t capability);
bool dropin_supports_grouped(std::int64_t capability);

}  // namespace evergemm
