// SPDX-License-Identifier: Apache-2.0
// The rows of the table of operators that belong to mixture of experts; operators.cpp lists them.
#pragma once
#include <cstdint>
#include <span>

#include "plan/operators.h"

namespace evergemm::operators {

Status prepare_moe_route(const Operator& self, std::span<const Argument> values, Prepared& prepared);
Status prepare_grouped_scaled_mm(const Operator& self, std::span<const Argument> values, Prepared& prepared);
Status prepare_moe_gather_quantize(const Operator& self, std::span<const Argument> values, Prepared& prepared);
Status prepare_moe_combine(const Operator& self, std::span<const Argument> values, Prepared& prepared);
Status prepare_fused_moe(const Operator& self, std::span<const Argument> values, Prepared& prepared);
Status prepare_cutlass_moe_mm(const Operator& self, std::span<const Argument> values, Prepared& prepared);
Status prepare_cutlass_moe_data(const Operator& self, std::span<const Argument> values, Prepared& prepared);

// Prepared::bind for these problems.
void bind_moe(Prepared& prepared, std::int32_t output, void* data);

}  // namespace evergemm::operators
