// SPDX-License-Identifier: Apache-2.0
// The table of operators as torch sees them. One row = one schema = one boxed function. Schemas that were released are
// frozen: new arguments come last, with defaults (python/evergemm/_schemas.py is the list that tests hold against this one).
// Argument types are Tensor, Tensor?, int, float, bool and ScalarType only: a str leaks memory in released torch headers.
#include "schema.h"

#include <array>
#include <cstddef>
#include <string_view>
#include <utility>

namespace evergemm::bindings {

namespace {

// ---- the schemas -------------------------------------------------------------------------------------------------

// Operators of tensors: keys CPU and CUDA. find_operator() must know each name.
constexpr std::array kTensorSchemas = {
    "scaled_mm(Tensor a, Tensor b, Tensor scale_a, Tensor scale_b, Tensor? bias, ScalarType out_dtype, *, "
    "bool fast_accumulation=True, bool deterministic=False) -> Tensor",
    "scaled_mm.out(Tensor a, Tensor b, Tensor scale_a, Tensor scale_b, Tensor? bias, *, "
    "bool fast_accumulation=True, bool deterministic=False, Tensor(a!) out) -> ()",
    "scaled_mm_azp(Tensor a, Tensor b, Tensor scale_a, Tensor scale_b, Tensor azp_adj, Tensor? azp, Tensor? bias, "
    "ScalarType out_dtype) -> Tensor",
    "scaled_mm_azp.out(Tensor a, Tensor b, Tensor scale_a, Tensor scale_b, Tensor azp_adj, Tensor? azp, Tensor? bias, "
    "*, "
    "Tensor(a!) out) -> ()",
    "_scaled_mm_row(Tensor a, Tensor b, Tensor scale_a, Tensor scale_b, Tensor? azp_adj, Tensor? azp, Tensor? bias, "
    "ScalarType out_dtype, bool fast_accumulation, bool deterministic, int row, bool overlap=True) -> Tensor",

    "quantize_per_tensor(Tensor x, ScalarType dtype) -> (Tensor q, Tensor scale)",
    "quantize_per_tensor.out(Tensor x, *, Tensor(a!) out_q, Tensor(b!) out_scale) -> ()",
    "quantize_static(Tensor x, Tensor scale, ScalarType dtype) -> Tensor",
    "quantize_static.out(Tensor x, Tensor scale, *, Tensor(a!) out_q) -> ()",
    "quantize_per_token(Tensor x, ScalarType dtype, Tensor? scale_upper_bound) -> (Tensor q, Tensor scale)",
    "quantize_per_token.out(Tensor x, Tensor? scale_upper_bound, *, Tensor(a!) out_q, Tensor(b!) out_scale) -> ()",
    "quantize_per_token_asymmetric(Tensor x) -> (Tensor q, Tensor scale, Tensor azp)",
    "quantize_per_token_asymmetric.out(Tensor x, *, Tensor(a!) out_q, Tensor(b!) out_scale, Tensor(c!) out_azp) -> ()",
    "quantize_per_group(Tensor x, int group_size, ScalarType dtype, bool column_major_scales, bool "
    "power_of_two_scales) "
    "-> (Tensor q, Tensor scale)",
    "quantize_per_group.out(Tensor x, int group_size, bool column_major_scales, bool power_of_two_scales, *, "
    "Tensor(a!) out_q, Tensor(b!) out_scale) -> ()",
    "quantize_per_block(Tensor w, int block_n, int block_k, ScalarType dtype) -> (Tensor q, Tensor scale)",
    "quantize_per_block.out(Tensor w, int block_n, int block_k, *, Tensor(a!) out_q, Tensor(b!) out_scale) -> ()",
    "activate_and_quantize(Tensor x, int activation, bool gated, int group_size, ScalarType dtype) "
    "-> (Tensor q, Tensor scale)",
    "activate_and_quantize.out(Tensor x, int activation, bool gated, int group_size, *, "
    "Tensor(a!) out_q, Tensor(b!) out_scale) -> ()",
    "rms_norm_quantize(Tensor x, Tensor weight, float eps, int group_size, ScalarType dtype, Tensor(a!)? residual) "
    "-> (Tensor q, Tensor scale)",
    "rms_norm_quantize.out(Tensor x, Tensor weight, float eps, int group_size, Tensor(a!)? residual, *, "
    "Tensor(b!) out_q, Tensor(c!) out_scale) -> ()",

    "quantized_linear(Tensor x, Tensor weight, Tensor weight_scale, Tensor? input_scale=None, Tensor? azp_adj=None, "
    "Tensor? bias=None, *, bool fast_accumulation=True, bool deterministic=False) -> Tensor",

    "cutlass_scaled_mm(Tensor! out, Tensor a, Tensor b, Tensor a_scales, Tensor b_scales, Tensor? bias) -> ()",
    "cutlass_scaled_mm_azp(Tensor! out, Tensor a, Tensor b, Tensor a_scales, Tensor b_scales, Tensor azp_adj, "
    "Tensor? azp, Tensor? bias) -> ()",
    "permute_cols(Tensor A, Tensor perm) -> Tensor",
    "per_token_group_fp8_quant(Tensor input, Tensor! output_q, Tensor! output_s, int group_size, float eps, "
    "float fp8_min, float fp8_max, bool scale_ue8m0, bool dummy_is_scale_transposed, bool dummy_is_tma_aligned) -> ()",
    "per_token_group_fp8_quant_packed(Tensor input, Tensor! output_q, Tensor! output_s_packed, int group_size, "
    "float eps, float fp8_min, float fp8_max) -> ()",
    "per_token_group_quant_int8(Tensor input, Tensor! output_q, Tensor! output_s, int group_size, float eps, "
    "float int8_min, float int8_max) -> ()",

    "moe_route(Tensor topk_ids, int num_local_experts, Tensor? expert_map=None) -> (Tensor expert_offsets, Tensor "
    "source_row, Tensor slot)",
    "grouped_scaled_mm(Tensor a, Tensor b, Tensor scale_a, Tensor scale_b, Tensor expert_offsets, ScalarType "
    "out_dtype, *, bool fast_accumulation=True, bool deterministic=False) -> Tensor",
    "grouped_scaled_mm.out(Tensor a, Tensor b, Tensor scale_a, Tensor scale_b, Tensor expert_offsets, *, bool "
    "fast_accumulation=True, bool deterministic=False, Tensor(a!) out) -> ()",
    "grouped_scaled_mm_masked(Tensor a, Tensor b, Tensor scale_a, Tensor scale_b, Tensor rows_per_expert, "
    "ScalarType out_dtype, *, bool fast_accumulation=True, bool deterministic=False) -> Tensor",
    "grouped_scaled_mm_masked.out(Tensor a, Tensor b, Tensor scale_a, Tensor scale_b, Tensor rows_per_expert, *, "
    "bool fast_accumulation=True, bool deterministic=False, Tensor(a!) out) -> ()",
    "moe_gather_quantize(Tensor x, Tensor source_row, Tensor? scale, Tensor? row_weights, int group_size, "
    "ScalarType dtype) -> (Tensor q, Tensor scale)",
    "moe_combine(Tensor y, Tensor slot, Tensor topk_weights, ScalarType out_dtype) -> Tensor",
    "fused_moe(Tensor x, Tensor w13, Tensor w2, Tensor w13_scale, Tensor w2_scale, Tensor topk_weights, Tensor "
    "topk_ids, Tensor? expert_map=None, Tensor? a1_scale=None, Tensor? a2_scale=None, int activation=0, bool "
    "apply_router_weight_on_input=False, *, bool fast_accumulation=True, bool deterministic=False) -> Tensor",

    "cutlass_moe_mm(Tensor! out_tensors, Tensor a_tensors, Tensor b_tensors, Tensor a_scales, Tensor b_scales, "
    "Tensor expert_offsets, Tensor problem_sizes, Tensor a_strides, Tensor b_strides, Tensor c_strides, bool "
    "per_act_token, bool per_out_ch) -> ()",
    "get_cutlass_moe_mm_data(Tensor topk_ids, Tensor! expert_offsets, Tensor! problem_sizes1, Tensor! "
    "problem_sizes2, Tensor! input_permutation, Tensor! output_permutation, int num_experts, int n, int k, Tensor? "
    "blockscale_offsets, bool is_gated) -> ()",
    "get_cutlass_moe_mm_problem_sizes_from_expert_offsets(Tensor expert_first_token_offset, Tensor! problem_sizes1, "
    "Tensor! problem_sizes2, int n, int k, bool swap_ab) -> ()",
    "get_cutlass_batched_moe_mm_data(Tensor! expert_offsets, Tensor! problem_sizes1, Tensor! problem_sizes2, Tensor "
    "expert_num_tokens, int num_local_experts, int padded_m, int n, int k) -> ()",
};

// Capability queries: no tensors, key CompositeExplicitAutograd.
struct Query {
  const char* schema;
  bool (*answer)(std::int64_t capability);
};
constexpr std::array kQueries = {
    Query{"cutlass_scaled_mm_supports_fp8(int cuda_device_capability) -> bool", dropin_supports_fp8},
    Query{"cutlass_group_gemm_supported(int cuda_device_capability) -> bool", dropin_supports_grouped},
    Query{"cutlass_scaled_mm_supports_block_fp8(int cuda_device_capability) -> bool", dropin_supports_block_fp8},
};

// ---- reading a schema --------------------------------------------------------------------------------------------

constexpr std::string_view trimmed(std::string_view text) {
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
  return text;
}

consteval SchemaArgument read_argument(std::string_view text) {
  SchemaArgument argument;
  const std::size_t space = text.find(' ');
  if (space == std::string_view::npos) throw "an argument needs a type and a name";
  std::string_view type = text.substr(0, space);
  constexpr std::string_view tensor = "Tensor";
  if (type.substr(0, tensor.size()) == tensor) {
    argument.kind = Argument::Kind::tensor;
    std::string_view rest = type.substr(tensor.size());  // "", "?", "!", "(a!)", "(a!)?"
    if (!rest.empty() && rest.back() == '?') {
      argument.optional = true;
      rest.remove_suffix(1);
    }
    argument.written = rest == "!" || (rest.size() == 4 && rest[0] == '(' && rest[2] == '!' && rest[3] == ')');
    if (!rest.empty() && !argument.written) throw "a tensor type that is not known here";
    return argument;
  }
  if (type == "int") {
    argument.kind = Argument::Kind::integer;
  } else if (type == "float") {
    argument.kind = Argument::Kind::real;
  } else if (type == "bool") {
    argument.kind = Argument::Kind::boolean;
  } else if (type == "ScalarType") {
    argument.kind = Argument::Kind::dtype;
  } else {
    throw "an argument type that is not known here";
  }
  return argument;
}

consteval Schema read_schema(const char* text) {
  Schema schema;
  schema.text = text;
  const std::string_view whole = text;
  const std::size_t open = whole.find('('), arrow = whole.find(" -> ");
  if (open == std::string_view::npos || arrow == std::string_view::npos || whole[arrow - 1] != ')')
    throw "a schema is name(arguments) -> results";
  schema.name = whole.substr(0, open);
  std::string_view arguments = whole.substr(open + 1, arrow - 1 - (open + 1));
  while (!arguments.empty()) {
    const std::size_t comma = arguments.find(',');
    const std::string_view one = trimmed(arguments.substr(0, comma));
    if (one != "*") schema.argument[schema.arguments++] = read_argument(one);
    arguments = comma == std::string_view::npos ? std::string_view() : arguments.substr(comma + 1);
  }
  const std::string_view results = whole.substr(arrow + 4);
  if (results != "()") {
    schema.results = 1;
    for (const char c : results) schema.results += c == ',' ? 1 : 0;
  }
  if (schema.results > kMaxResults) throw "more results than Prepared holds";
  return schema;
}

template <std::size_t I>
constexpr Schema kTensorSchema = read_schema(kTensorSchemas[I]);
template <std::size_t I>
constexpr Schema kQuerySchema = read_schema(kQueries[I].schema);

// ---- what torch calls --------------------------------------------------------------------------------------------

// The boxed call hands over no name, so that each operator needs an address of its own.
template <std::size_t I>
void tensor_kernel(StableIValue* stack, std::uint64_t arguments, std::uint64_t results) {
  static const Operator* const self = find_operator(kTensorSchema<I>.name);
  call_boxed(kTensorSchema<I>, *self, stack, arguments, results);
}

template <std::size_t I>
void query_kernel(StableIValue* stack, std::uint64_t, std::uint64_t) {
  stack[0] = kQueries[I].answer(static_cast<std::int64_t>(stack[0])) ? 1 : 0;
}

template <std::size_t... I, std::size_t... J>
constexpr auto registered_rows(std::index_sequence<I...>, std::index_sequence<J...>) {
  return std::array{RegisteredOperator{&kTensorSchema<I>, true, &tensor_kernel<I>}...,
                    RegisteredOperator{&kQuerySchema<J>, false, &query_kernel<J>}...};
}
constexpr std::array kRegistered =
    registered_rows(std::make_index_sequence<kTensorSchemas.size()>(), std::make_index_sequence<kQueries.size()>());

}  // namespace

std::span<const RegisteredOperator> registered_operators() { return kRegistered; }

}  // namespace evergemm::bindings
