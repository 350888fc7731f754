// SPDX-License-Identifier: Apache-2.0
// Mixture of experts, as asked and as validated: routing, grouped GEMM, gather and quantize, combine, the whole layer,
// and the data operators of the drop-in set. Beside problem.h in the flow; moe_index.h says how the values that come
// from outside (ids, offsets, counts, sizes) are read. Must not go here: arithmetic, choices.
//
// Letters: m rows, n output features, k reduction. Experts are counted from 0; a row is one token at one of its
// experts.
#pragma once
#include <cstdint>

#include "evergemm/problem.h"
#include "evergemm/types.h"

namespace evergemm {

// Integers that a kernel reads and does not trust: int32 or int64, evenly spaced.
struct Indices {
  const void* data = nullptr;
  std::int64_t stride = 1;  // in elements
  bool is_int64 = false;
};

// ---- moe_route -------------------------------------------------------------------------------------------------

struct MoeRouteArguments {
  const char* operator_name = "moe_route";
  TensorView topk_ids;  // [tokens, top_k]
  std::int64_t num_local_experts = 0;
  TensorView expert_map;  // optional, [global experts]: local id or -1
};

// A choice whose expert is not in [0, experts) after the map goes nowhere. Inside an expert rows keep the order of
// (token, choice).
struct MoeRouteProblem {
  std::int64_t tokens = 0, top_k = 0, experts = 0;
  const void* ids = nullptr;  // [tokens, top_k], any values
  std::int64_t ids_token_stride = 0, ids_choice_stride = 0;
  bool ids_are_int64 = false;
  Indices expert_map;  // data null: ids are local ids
  std::int64_t expert_map_size = 0;
  std::int32_t* expert_offsets = nullptr;  // [experts + 1], the rows before each expert; the last one: rows in all
  std::int32_t* source_row = nullptr;      // [tokens * top_k], the token of each row; -1 behind the last row
  std::int32_t* slot = nullptr;            // [tokens, top_k], the row of each choice; -1: nowhere
  Device device;

  std::int64_t choices() const { return tokens * top_k; }
};

// ---- grouped GEMM ----------------------------------------------------------------------------------------------

enum class GroupedForm : std::uint8_t {
  ragged,  // a [rows, k]; expert e owns rows offsets[e] .. offsets[e + 1]
  masked,  // a [experts, rows, k]; expert e owns the first counts[e] of its rows
  dropin,  // cutlass_moe_mm: start rows, problem sizes and pitches in tensors
};

struct GroupedMmArguments {
  const char* operator_name = "grouped_scaled_mm";
  GroupedForm form = GroupedForm::ragged;
  TensorView a, b, scale_a, scale_b;
  TensorView expert_rows;             // expert_offsets [e + 1], rows_per_expert [e] or, dropin, expert_offsets [e]
  TensorView out;                     // not given in the functional form
  DType out_dtype = DType::bfloat16;  // read only where out is not given
  bool fast_accumulation = true;
  bool deterministic = false;
  // dropin
  TensorView problem_sizes, a_strides, b_strides, c_strides;
  bool per_act_token = false, per_out_ch = false;
};

// For each expert e and row i of it: out = cast(scale_a * (scale_b_e * (a @ b_e))), the arithmetic of GemmProblem.
struct GroupedGemmProblem {
  GroupedForm form = GroupedForm::ragged;
  std::int64_t experts = 0;
  std::int64_t rows = 0;  // of a in all; masked: of each expert, used or not
  std::int64_t n = 0, k = 0;
  DType input_dtype = DType::int8;       // int8 or float8_e4m3fn, of a and b
  DType output_dtype = DType::bfloat16;  // bfloat16, float16 or float32
  const void* a = nullptr;               // row i (of expert e) at e * a_expert_stride + i * a_stride
  std::int64_t a_stride = 0, a_expert_stride = 0;
  const void* b = nullptr;  // column j of expert e at e * b_expert_stride + j * b_stride
  std::int64_t b_stride = 0, b_expert_stride = 0;
  void* out = nullptr;
  std::int64_t out_stride = 0, out_expert_stride = 0;
  Scale scale_a;  // of all rows; masked and one scale an expert: expert e starts at e * scale_a_expert_stride
  std::int64_t scale_a_expert_stride = 0;
  Scale scale_b;  // of one expert; expert e starts at e * scale_b_expert_stride
  std::int64_t scale_b_expert_stride = 0;
  Indices expert_rows;         // ragged: [experts + 1] offsets; masked: [experts] counts; dropin: [experts] start rows
  bool clear_unowned = false;  // write zeros to rows that no expert owns (the functional forms)
  bool fast_accumulation = true;
  bool deterministic = false;
  // dropin: (m, n, k) or (n, m, k) an expert, and the pitch of rows of a, columns of b and rows of out inside it
  const std::int32_t* problem_sizes = nullptr;  // [experts, 3], contiguous
  Indices a_pitches, b_pitches, out_pitches;    // [experts]
  Device device;

  bool blockwise() const { return scale_a.mode == ScaleMode::BlockWise1x128; }
};

// ---- moe_gather_quantize ---------------------------------------------------------------------------------------

struct MoeGatherQuantizeArguments {
  const char* operator_name = "moe_gather_quantize";
  TensorView x, source_row;
  TensorView scale;             // optional: 1 value, static
  TensorView row_weights;       // optional: [rows]
  std::int64_t group_size = 0;  // 0: a scale a row; -1: one for all of x
  DType dtype = DType::float8_e4m3fn;
};

// q[t] = quantize(x[source_row[t]]), or of x * row_weights[t] rounded to x's type. A source outside [0, tokens) gives a
// row of zeros with scale 1.
struct MoeGatherQuantizeProblem {
  std::int64_t tokens = 0, columns = 0, rows = 0;
  const void* x = nullptr;  // [tokens, columns]
  std::int64_t x_stride = 0;
  DType x_dtype = DType::bfloat16;
  Indices source_row;                  // [rows]
  const float* row_weights = nullptr;  // [rows], or null
  std::int64_t row_weights_stride = 0;
  // per_tensor (the absmax sees every token of x, gathered or not), with_given_scale (one value), per_row, or per_block
  // of 1 x group_columns
  QuantizeScheme scheme = QuantizeScheme::per_row;
  std::int64_t group_columns = 1;
  const float* given_scale = nullptr;
  DType q_dtype = DType::float8_e4m3fn;
  void* q = nullptr;       // [rows, columns], contiguous
  float* scale = nullptr;  // [rows, groups], contiguous; per_tensor and with_given_scale: 1 value
  Device device;

  bool one_scale() const { return scheme == QuantizeScheme::per_tensor || scheme == QuantizeScheme::with_given_scale; }
  std::int64_t groups() const {
    if (scheme != QuantizeScheme::per_block) return 1;
    return columns / group_columns + (columns % group_columns != 0 ? 1 : 0);
  }
};

// ---- moe_combine -----------------------------------------------------------------------------------------------

struct MoeCombineArguments {
  const char* operator_name = "moe_combine";
  TensorView y, slot, topk_weights;
  DType out_dtype = DType::bfloat16;
};

// out[i] = cast(sum over choices c, ascending, of weight[i, c] * y[slot[i, c]]), fp32 fma; choices whose slot is
// outside [0, rows) are skipped.
struct MoeCombineProblem {
  std::int64_t tokens = 0, top_k = 0, rows = 0, columns = 0;
  const void* y = nullptr;  // [rows, columns]
  std::int64_t y_stride = 0;
  DType y_dtype = DType::bfloat16;
  const void* slot = nullptr;  // [tokens, top_k]
  std::int64_t slot_token_stride = 0, slot_choice_stride = 0;
  bool slots_are_int64 = false;
  const float* weights = nullptr;  // [tokens, top_k]; null: 1
  std::int64_t weights_token_stride = 0, weights_choice_stride = 0;
  DType output_dtype = DType::bfloat16;
  void* out = nullptr;  // [tokens, columns], contiguous
  Device device;
};

// ---- fused_moe -------------------------------------------------------------------------------------------------

struct FusedMoeArguments {
  const char* operator_name = "fused_moe";
  TensorView x, w13, w2, w13_scale, w2_scale, topk_weights, topk_ids, expert_map, a1_scale, a2_scale;
  std::int64_t activation = 0;
  bool apply_router_weight_on_input = false;
  bool fast_accumulation = true;
  bool deterministic = false;
};

// One of the layer's two products: weights as stored, [experts, n, k] with contiguous rows, and how its input is
// quantized.
struct MoeWeights {
  const void* data = nullptr;
  std::int64_t n = 0, k = 0;
  std::int64_t row_stride = 0, expert_stride = 0;
  Scale scale;  // of one expert
  std::int64_t scale_expert_stride = 0;
  const float* input_scale =
      nullptr;  // 1 value, static; null: dynamic, a scale a tensor, a row or 1 x 128 as `scale` is
};

// route, quantize every token, gather, product 1, activation and quantize, product 2, combine; moe_layer.h has the
// steps.
struct FusedMoeProblem {
  MoeRouteProblem route;    // its outputs stay null: they lie in the workspace
  const void* x = nullptr;  // [tokens, hidden]
  std::int64_t x_stride = 0;
  DType x_dtype = DType::bfloat16;  // of the result and of what lies between the steps too
  DType weight_dtype = DType::float8_e4m3fn;
  MoeWeights w13;                       // [experts, 2 * intermediate or intermediate, hidden]
  MoeWeights w2;                        // [experts, hidden, intermediate]
  const float* topk_weights = nullptr;  // [tokens, top_k]
  std::int64_t topk_weights_token_stride = 0, topk_weights_choice_stride = 0;
  Activation activation = Activation::silu;
  bool gated = true;
  bool weights_on_input = false;  // x * weight is rounded to x's type before it is quantized; top_k is 1
  bool fast_accumulation = true;
  bool deterministic = false;
  void* out = nullptr;  // [tokens, hidden], contiguous
  Device device;

  std::int64_t hidden() const { return w13.k; }
  std::int64_t intermediate() const { return w2.k; }
};

// ---- the data operators of the drop-in set ---------------------------------------------------------------------

enum class MoeDataKind : std::uint8_t {
  route,               // get_cutlass_moe_mm_data
  sizes_from_offsets,  // get_cutlass_moe_mm_problem_sizes_from_expert_offsets
  batched,             // get_cutlass_batched_moe_mm_data
};

struct MoeDataArguments {
  const char* operator_name = "get_cutlass_moe_mm_data";
  MoeDataKind kind = MoeDataKind::route;
  TensorView topk_ids;                   // route
  TensorView expert_first_token_offset;  // sizes_from_offsets
  TensorView expert_num_tokens;          // batched
  TensorView expert_offsets, problem_sizes1, problem_sizes2, input_permutation, output_permutation, blockscale_offsets;
  std::int64_t num_experts = 0, n = 0, k = 0, padded_m = 0;
  bool is_gated = true, swap_ab = false;
};

struct MoeDataProblem {
  MoeDataKind kind = MoeDataKind::route;
  std::int64_t tokens = 0, top_k = 0, experts = 0;
  const std::int32_t* ids = nullptr;  // route: [tokens, top_k], any values
  std::int64_t ids_token_stride = 0, ids_choice_stride = 0;
  Indices input;                           // sizes_from_offsets: [experts + 1] offsets; batched: [experts] counts
  std::int64_t padded_rows = 0;            // batched: rows of each expert
  std::int32_t n1 = 0, n = 0, k = 0;       // product 1 is [m, n1, k], product 2 [m, k, n]
  bool transposed = false;                 // sizes as (n1, m, k) and (k, m, n)
  std::int32_t* expert_offsets = nullptr;  // route: [experts + 1]; batched: [experts]
  std::int32_t* problem_sizes1 = nullptr;  // [experts, 3], contiguous
  std::int32_t* problem_sizes2 = nullptr;  // [experts, 3], contiguous
  std::int32_t* input_permutation =
      nullptr;  // route: [tokens * top_k], the token of each row; untouched behind the last
  std::int32_t* output_permutation =
      nullptr;  // route: [tokens * top_k], the row of each choice; nowhere: the rows in all
  std::int32_t* blockscale_offsets = nullptr;  // route, or null: [experts + 1] sums of counts rounded up to 128
  Device device;
};

}  // namespace evergemm
