// SPDX-License-Identifier: Apache-2.0
// Mixture of experts as the obvious loops: routing, grouped GEMM, gather and quantize, combine, the layer, and the data
// operators of the drop-in set. Matrix products and quantizers are those of gemm.cpp and quantize.cpp, one expert or
// one row at a time. Must not go here: speed.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "evergemm/moe_index.h"
#include "evergemm/moe_layer.h"
#include "evergemm/numerics.h"
#include "evergemm/reference.h"
#include "reference/elements.h"

namespace evergemm::reference {
namespace {

// x * weight, both in x's type, rounded to it. A source outside [0, tokens) is a row of zeros.
void weighted_row(DType type, const void* x, std::int64_t x_begin, std::int64_t columns, float weight, bool exists,
                  void* row, std::int64_t row_begin) {
  unsigned char narrow[4];
  store_element(type, narrow, 0, weight);
  const float factor = load_element(type, narrow, 0);
  for (std::int64_t column = 0; column < columns; ++column) {
    const float value = exists ? numerics::mul32(load_element(type, x, x_begin + column), factor) : 0.0f;
    store_element(type, row, row_begin + column, value);
  }
}

void copy_row(const void* from, void* to, std::int64_t bytes) {
  if (bytes > 0) std::memcpy(to, from, static_cast<std::size_t>(bytes));
}

void zero_row(void* row, std::int64_t bytes) {
  if (bytes > 0) std::memset(row, 0, static_cast<std::size_t>(bytes));
}

MoeRouteProblem route_of(const MoeDataProblem& problem) {
  MoeRouteProblem route;
  route.tokens = problem.tokens;
  route.top_k = problem.top_k;
  route.experts = problem.experts;
  route.ids = problem.ids;
  route.ids_token_stride = problem.ids_token_stride;
  route.ids_choice_stride = problem.ids_choice_stride;
  return route;
}

}  // namespace

void moe_route(const MoeRouteProblem& problem) {
  std::int32_t row = 0;
  for (std::int64_t choice = 0; choice < problem.choices(); ++choice)
    problem.slot[choice] = problem.source_row[choice] = -1;
  for (std::int64_t expert = 0; expert < problem.experts; ++expert) {
    problem.expert_offsets[expert] = row;
    for (std::int64_t token = 0; token < problem.tokens; ++token)
      for (std::int64_t choice = 0; choice < problem.top_k; ++choice)
        if (local_expert(problem, token, choice) == expert) {
          problem.source_row[row] = static_cast<std::int32_t>(token);
          problem.slot[token * problem.top_k + choice] = row;
          ++row;
        }
  }
  problem.expert_offsets[problem.experts] = row;
}

void grouped_gemm(const GroupedGemmProblem& problem) {
  if (problem.clear_unowned)
    for (std::int64_t expert = 0; expert < (problem.form == GroupedForm::masked ? problem.experts : 1); ++expert)
      for (std::int64_t row = 0; row < problem.rows; ++row)
        for (std::int64_t column = 0; column < problem.n; ++column)
          store_element(problem.output_dtype, problem.out,
                        expert * problem.out_expert_stride + row * problem.out_stride + column, 0.0f);
  std::int64_t owned_end = 0;
  for (std::int64_t expert = 0; expert < problem.experts; ++expert) {
    const ExpertShare share = next_share(problem, expert, owned_end);
    if (share.rows > 0 && problem.n > 0) gemm(problem_of(problem, expert, share, 0, share.rows, 0, problem.n));
  }
}

void moe_gather_quantize(const MoeGatherQuantizeProblem& problem) {
  const std::int64_t item = size_in_bytes(problem.x_dtype);
  QuantizeProblem quantize;
  quantize.scheme = problem.scheme;
  quantize.columns = problem.columns;
  quantize.group_columns = std::max<std::int64_t>(problem.group_columns, 1);
  quantize.x_dtype = problem.x_dtype;
  quantize.x_stride = problem.x_stride;
  quantize.q_dtype = problem.q_dtype;
  quantize.q_stride = problem.columns;
  quantize.scale_group_stride = problem.scheme == QuantizeScheme::per_block ? 1 : 0;
  float one_scale = 1;
  if (problem.scheme == QuantizeScheme::with_given_scale) one_scale = *problem.given_scale;
  if (problem.scheme == QuantizeScheme::per_tensor) {  // every token is seen, gathered or not
    std::vector<std::uint8_t> q(static_cast<std::size_t>(problem.tokens * problem.columns));
    quantize.x = problem.x;
    quantize.rows = problem.tokens;
    quantize.q = q.data();
    quantize.scale = &one_scale;
    reference::quantize(quantize);
  }
  if (problem.one_scale()) {
    *problem.scale = one_scale;
    quantize.scheme = QuantizeScheme::with_given_scale;
    quantize.group_columns = std::max<std::int64_t>(problem.columns, 1);
  }
  std::vector<float> row(static_cast<std::size_t>(problem.columns));  // enough for every type of x
  for (std::int64_t t = 0; t < problem.rows; ++t) {
    const std::int64_t source = read_index(problem.source_row, t);
    const bool exists = source >= 0 && source < problem.tokens;
    const float weight = problem.row_weights == nullptr ? 1.0f : problem.row_weights[t * problem.row_weights_stride];
    const std::int64_t begin = exists ? source * problem.x_stride : 0;
    weighted_row(problem.x_dtype, problem.x, begin, problem.columns, weight, exists, row.data(), 0);
    quantize.x = row.data();
    if (problem.row_weights == nullptr && exists) quantize.x = static_cast<const char*>(problem.x) + begin * item;
    quantize.rows = 1;
    quantize.q = static_cast<std::uint8_t*>(problem.q) + t * problem.columns;
    quantize.scale = problem.one_scale() ? problem.scale : problem.scale + t * problem.groups();
    reference::quantize(quantize);
    // whatever the one scale is (NaN too), a row that nothing is gathered for is 0
    if (!exists) zero_row(quantize.q, problem.columns);
  }
}

void moe_combine(const MoeCombineProblem& problem) {
  for (std::int64_t token = 0; token < problem.tokens; ++token)
    for (std::int64_t column = 0; column < problem.columns; ++column) {
      float sum = 0;
      for (std::int64_t choice = 0; choice < problem.top_k; ++choice) {
        const std::int64_t row = read_index(problem.slot, problem.slots_are_int64,
                                            token * problem.slot_token_stride + choice * problem.slot_choice_stride);
        if (row < 0 || row >= problem.rows) continue;
        const float weight =
            problem.weights == nullptr
                ? 1.0f
                : problem.weights[token * problem.weights_token_stride + choice * problem.weights_choice_stride];
        sum = numerics::fma32(weight, load_element(problem.y_dtype, problem.y, row * problem.y_stride + column), sum);
      }
      store_element(problem.output_dtype, problem.out, token * problem.columns + column, sum);
    }
}

void fused_moe(const FusedMoeProblem& problem) {
  FusedMoeLayout layout;
  if (!fused_moe_layout(problem, TokensGo::through_the_workspace, layout)) return;  // the validator has refused it
  std::vector<std::uint64_t> workspace(static_cast<std::size_t>(layout.bytes / 8));
  FusedMoeSteps steps = fused_moe_steps(problem, layout, workspace.data());
  moe_route(steps.route);
  if (problem.weights_on_input)
    for (std::int64_t token = 0; token < problem.route.tokens; ++token)
      weighted_row(problem.x_dtype, problem.x, token * problem.x_stride, problem.hidden(),
                   problem.topk_weights[token * problem.topk_weights_token_stride], true, steps.weighted,
                   token * problem.hidden());
  quantize(steps.quantize_tokens);
  const std::int64_t routed = steps.route.expert_offsets[problem.route.experts], groups = input_groups(problem.w13);
  for (std::int64_t row = 0; row < routed; ++row) {
    const std::int64_t token = steps.route.source_row[row];
    copy_row(static_cast<const char*>(steps.quantize_tokens.q) + token * problem.hidden(),
             static_cast<char*>(steps.q1) + row * problem.hidden(), problem.hidden());
    if (!one_input_scale(problem.w13))
      copy_row(static_cast<const float*>(steps.quantize_tokens.scale) + token * groups, steps.scale1 + row * groups,
               groups * 4);
  }
  grouped_gemm(steps.product1);
  set_rows(steps.activate, routed);
  quantize(steps.activate);
  grouped_gemm(steps.product2);
  moe_combine(steps.combine);
}

void moe_data(const MoeDataProblem& problem) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  if (problem.kind == MoeDataKind::sizes_from_offsets) {
    std::int64_t begin = limited(read_index(problem.input, 0), 0, kMost);
    for (std::int64_t expert = 0; expert < problem.experts; ++expert) {
      const std::int64_t end = limited(read_index(problem.input, expert + 1), begin, kMost);
      write_sizes(problem, expert, end - begin);
      begin = end;
    }
    return;
  }
  if (problem.kind == MoeDataKind::batched) {
    for (std::int64_t expert = 0; expert < problem.experts; ++expert) {
      problem.expert_offsets[expert] = static_cast<std::int32_t>(expert * problem.padded_rows);
      write_sizes(problem, expert, limited(read_index(problem.input, expert), 0, problem.padded_rows));
    }
    return;
  }
  const MoeRouteProblem route = route_of(problem);
  std::int32_t row = 0, padded = 0;
  for (std::int64_t expert = 0; expert < problem.experts; ++expert) {
    const std::int32_t begin = row;
    for (std::int64_t token = 0; token < problem.tokens; ++token)
      for (std::int64_t choice = 0; choice < problem.top_k; ++choice)
        if (local_expert(route, token, choice) == expert) {
          problem.input_permutation[row] = static_cast<std::int32_t>(token);
          problem.output_permutation[token * problem.top_k + choice] = row;
          ++row;
        }
    problem.expert_offsets[expert] = begin;
    write_sizes(problem, expert, row - begin);
    if (problem.blockscale_offsets == nullptr) continue;  // whose sums the validator has bounded
    problem.blockscale_offsets[expert] = padded;
    padded += (row - begin + 127) / 128 * 128;
  }
  problem.expert_offsets[problem.experts] = row;
  if (problem.blockscale_offsets != nullptr) problem.blockscale_offsets[problem.experts] = padded;
  for (std::int64_t token = 0; token < problem.tokens; ++token)
    for (std::int64_t choice = 0; choice < problem.top_k; ++choice)
      if (local_expert(route, token, choice) < 0) problem.output_permutation[token * problem.top_k + choice] = row;
}

}  // namespace evergemm::reference
