// SPDX-License-Identifier: Apache-2.0
// fused_moe as steps over one workspace: where each intermediate lies, and the problem of each step. The order of
// operations stands here once, for every backend; a backend brings the kernels. Must not go here: kernels, loops over
// elements.
#pragma once
#include <cstdint>

#include "evergemm/moe.h"

namespace evergemm {

// How tokens reach the rows of product 1: every token quantized into a place of its own and gathered from there (a row's block
// scales lie together), or quantized straight to its rows (a block's scales of all rows lie together, where copy engines can
// read them).
enum class TokensGo : std::uint8_t { through_the_workspace, straight_to_rows };

// Byte offsets in the workspace, multiples of 256.
struct FusedMoeLayout {
  std::int64_t expert_offsets = 0, slot = 0;  // int32
  // What only tokens need that go through the workspace: the token of each row; x times the router's weights, of x's type
  // (weights_on_input); every token, quantized.
  std::int64_t source_row = 0, weighted = 0, token_q = 0;
  std::int64_t token_scale = 0;     // of every token, or the one scale of all
  std::int64_t q1 = 0, scale1 = 0;  // the same, a row for each choice
  std::int64_t product1 = 0;        // [choices, w13.n] of x's type
  std::int64_t q2 = 0, scale2 = 0;
  std::int64_t product2 = 0;    // [choices, hidden] of x's type
  std::int64_t scale_rows = 0;  // block scales: how far apart a row's are; 0: together
  std::int64_t largest = 0;     // two words, for backends that find a dynamic scale of a tensor in passes
  std::int64_t bytes = 0;
};

inline bool one_input_scale(const MoeWeights& weights) {
  return weights.input_scale != nullptr || weights.scale.mode == ScaleMode::TensorWise;
}
// Scales of one row of the input of a product.
inline std::int64_t input_groups(const MoeWeights& weights) {
  const bool blocks = weights.scale.mode == ScaleMode::BlockWise128x128;
  return blocks ? weights.k / kScaleBlock + (weights.k % kScaleBlock != 0 ? 1 : 0) : 1;
}

// False where the workspace would not fit 2^63 bytes.
inline bool fused_moe_layout(const FusedMoeProblem& problem, TokensGo tokens_go, FusedMoeLayout& layout) {
  const bool kept = tokens_go == TokensGo::through_the_workspace, one_scale = one_input_scale(problem.w13);
  const std::int64_t tokens = problem.route.tokens, rows = problem.route.choices();
  const std::int64_t item = size_in_bytes(problem.x_dtype);
  std::int64_t end = 0;
  bool fits = true;
  const auto place = [&](std::int64_t count, std::int64_t each, std::int64_t width) {
    std::int64_t bytes = 0;
    const std::int64_t begin = end;
    fits = fits && !__builtin_mul_overflow(count, each, &bytes) && !__builtin_mul_overflow(bytes, width, &bytes) &&
           !__builtin_add_overflow(bytes, std::int64_t{255}, &bytes) &&
           !__builtin_add_overflow(end, bytes / 256 * 256, &end);
    return begin;
  };
  layout.expert_offsets = place(problem.route.experts + 1, 1, 4);
  layout.source_row = place(kept ? rows : 0, 1, 4);
  layout.slot = place(rows, 1, 4);
  layout.weighted = place(kept && problem.weights_on_input ? tokens : 0, problem.hidden(), item);
  layout.token_q = place(kept ? tokens : 0, problem.hidden(), 1);
  layout.token_scale = place(one_scale ? 1 : kept ? tokens : 0, input_groups(problem.w13), 4);
  layout.q1 = place(rows, problem.hidden(), 1);
  layout.scale_rows = kept ? 0 : (rows + 3) / 4 * 4;  // copy engines want multiples of 16 bytes
  const std::int64_t scale_rows = kept ? rows : layout.scale_rows;
  layout.scale1 = place(scale_rows, input_groups(problem.w13), 4);
  layout.product1 = place(rows, problem.w13.n, item);
  layout.q2 = place(rows, problem.intermediate(), 1);
  layout.scale2 = place(one_input_scale(problem.w2) ? 1 : scale_rows, input_groups(problem.w2), 4);
  layout.product2 = place(rows, problem.hidden(), item);
  layout.largest = place(2, 1, 4);
  layout.bytes = end;
  return fits;
}

// The problem of each step. `workspace` has layout.bytes bytes.
struct FusedMoeSteps {
  MoeRouteProblem route;
  QuantizeProblem quantize_tokens;  // of x, or of `weighted` where weights_on_input
  GroupedGemmProblem product1;
  QuantizeProblem activate;  // its rows: those that are routed, expert_offsets[experts]
  GroupedGemmProblem product2;
  MoeCombineProblem combine;
  void* weighted = nullptr;
  void* q1 = nullptr;  // token_q and its scales, gathered by source_row
  float* scale1 = nullptr;
};

inline QuantizeProblem input_quantizer(const FusedMoeProblem& problem, const MoeWeights& weights, void* q, void* scale,
                                       std::int64_t scale_rows) {
  QuantizeProblem quantize;
  quantize.columns = weights.k;
  quantize.x_dtype = problem.x_dtype;
  quantize.q = q;
  quantize.q_stride = weights.k;
  quantize.q_dtype = problem.weight_dtype;
  quantize.scale = scale;
  quantize.group_columns = weights.k > 0 ? weights.k : 1;
  if (weights.input_scale != nullptr) {
    quantize.scheme = QuantizeScheme::with_given_scale;
    quantize.scale = const_cast<float*>(weights.input_scale);
  } else if (weights.scale.mode == ScaleMode::TensorWise) {
    quantize.scheme = QuantizeScheme::per_tensor;
  } else if (weights.scale.mode == ScaleMode::RowWise) {
    quantize.scheme = QuantizeScheme::per_row;
    quantize.scale_row_stride = 1;
  } else {
    quantize.scheme = QuantizeScheme::per_block;
    quantize.group_columns = kScaleBlock;
    quantize.scale_row_stride = scale_rows == 0 ? input_groups(weights) : 1;
    quantize.scale_group_stride = scale_rows == 0 ? 1 : scale_rows;
  }
  quantize.device = problem.device;
  return quantize;
}

// The rows that a quantizer is to see; its one block spans them where it has one scale.
inline void set_rows(QuantizeProblem& quantize, std::int64_t rows) {
  const bool one = quantize.scheme == QuantizeScheme::per_tensor || quantize.scheme == QuantizeScheme::with_given_scale;
  quantize.rows = quantize.q_rows = rows;
  quantize.group_rows = one && rows > 0 ? rows : 1;
}

inline GroupedGemmProblem layer_product(const FusedMoeProblem& problem, const MoeWeights& weights, const void* q,
                                        const float* scale, std::int64_t scale_rows, void* out,
                                        const std::int32_t* expert_offsets) {
  GroupedGemmProblem product;
  product.experts = problem.route.experts;
  product.rows = problem.route.choices();
  product.n = weights.n;
  product.k = weights.k;
  product.input_dtype = problem.weight_dtype;
  product.output_dtype = problem.x_dtype;
  product.a = q;
  product.a_stride = weights.k;
  product.b = weights.data;
  product.b_stride = weights.row_stride;
  product.b_expert_stride = weights.expert_stride;
  product.out = out;
  product.out_stride = weights.n;
  product.scale_a.data = weights.input_scale != nullptr ? weights.input_scale : scale;
  if (weights.scale.mode == ScaleMode::BlockWise128x128) {
    product.scale_a.mode = ScaleMode::BlockWise1x128;
    product.scale_a.outer_stride = scale_rows == 0 ? input_groups(weights) : 1;
    product.scale_a.k_stride = scale_rows == 0 ? 1 : scale_rows;
  } else if (!one_input_scale(weights)) {
    product.scale_a.mode = ScaleMode::RowWise;
    product.scale_a.outer_stride = 1;
  }
  product.scale_b = weights.scale;
  product.scale_b_expert_stride = weights.scale_expert_stride;
  product.expert_rows.data = expert_offsets;
  product.fast_accumulation = problem.fast_accumulation;
  product.deterministic = problem.deterministic;
  product.device = problem.device;
  return product;
}

inline FusedMoeSteps fused_moe_steps(const FusedMoeProblem& problem, const FusedMoeLayout& layout, void* workspace) {
  char* const base = static_cast<char*>(workspace);
  const auto float_at = [base](std::int64_t offset) { return reinterpret_cast<float*>(base + offset); };
  FusedMoeSteps steps;
  steps.route = problem.route;
  steps.route.expert_offsets = reinterpret_cast<std::int32_t*>(base + layout.expert_offsets);
  steps.route.source_row = reinterpret_cast<std::int32_t*>(base + layout.source_row);
  steps.route.slot = reinterpret_cast<std::int32_t*>(base + layout.slot);
  steps.weighted = base + layout.weighted;
  steps.q1 = base + layout.q1;
  steps.scale1 = float_at(layout.scale1);

  steps.quantize_tokens =
      input_quantizer(problem, problem.w13, base + layout.token_q, base + layout.token_scale, layout.scale_rows);
  steps.quantize_tokens.x = problem.weights_on_input ? steps.weighted : problem.x;
  steps.quantize_tokens.x_stride = problem.weights_on_input ? problem.hidden() : problem.x_stride;
  set_rows(steps.quantize_tokens, problem.route.tokens);
  const float* scale1 = one_input_scale(problem.w13) ? float_at(layout.token_scale) : steps.scale1;
  steps.product1 = layer_product(problem, problem.w13, steps.q1, scale1, layout.scale_rows, base + layout.product1,
                                 steps.route.expert_offsets);

  steps.activate = input_quantizer(problem, problem.w2, base + layout.q2, base + layout.scale2, layout.scale_rows);
  steps.activate.source = QuantizeSource::activation;
  steps.activate.activation = problem.activation;
  steps.activate.gated = problem.gated;
  steps.activate.x = base + layout.product1;
  steps.activate.x_stride = problem.w13.n;
  steps.product2 = layer_product(problem, problem.w2, base + layout.q2, float_at(layout.scale2), layout.scale_rows,
                                 base + layout.product2, steps.route.expert_offsets);

  steps.combine.tokens = problem.route.tokens;
  steps.combine.top_k = problem.route.top_k;
  steps.combine.rows = problem.route.choices();
  steps.combine.columns = problem.hidden();
  steps.combine.y = base + layout.product2;
  steps.combine.y_stride = problem.hidden();
  steps.combine.y_dtype = problem.x_dtype;
  steps.combine.slot = steps.route.slot;
  steps.combine.slot_token_stride = problem.route.top_k;
  steps.combine.slot_choice_stride = 1;
  if (!problem.weights_on_input) {
    steps.combine.weights = problem.topk_weights;
    steps.combine.weights_token_stride = problem.topk_weights_token_stride;
    steps.combine.weights_choice_stride = problem.topk_weights_choice_stride;
  }
  steps.combine.output_dtype = problem.x_dtype;
  steps.combine.out = problem.out;
  steps.combine.device = problem.device;
  return steps;
}

}  // namespace evergemm
