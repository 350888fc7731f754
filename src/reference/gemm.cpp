// SPDX-License-Identifier: Apache-2.0
// scaled_mm and scaled_mm_azp as the obvious loops: the order of operations of docs/numerics.md, one element at a time.
// Reached through run() as the row cpu_reference, and by every test as the answer. Must not go here: speed.
#include <algorithm>
#include <cstdint>

#include "evergemm/numerics.h"
#include "evergemm/reference.h"
#include "reference/elements.h"

namespace evergemm::reference {
namespace {

using numerics::add32;
using numerics::fma32;
using numerics::mul32;

float scale_at(const Scale& scale, std::int64_t outer, std::int64_t k_block) {
  return scale.data[outer * scale.outer_stride + k_block * scale.k_stride];
}

// sum over k of a * b, minus the zero point's share; two's complement, so unsigned: signed overflow has no meaning in
// C++.
std::int32_t int8_sum(const GemmProblem& problem, std::int64_t i, std::int64_t j) {
  const auto* a = static_cast<const std::int8_t*>(problem.a) + i * problem.a_stride;  // [k]
  const auto* b = static_cast<const std::int8_t*>(problem.b) + j * problem.b_stride;  // [k]
  std::uint32_t sum = 0;
  for (std::int64_t l = 0; l < problem.k; ++l)
    sum += static_cast<std::uint32_t>(std::int32_t{a[l]} * std::int32_t{b[l]});
  if (problem.has_azp) {
    const auto adjustment = static_cast<std::uint32_t>(problem.azp_adj[j * problem.azp_adj_stride]);
    const auto azp = problem.azp == nullptr ? 1u : static_cast<std::uint32_t>(problem.azp[i * problem.azp_stride]);
    sum -= azp * adjustment;
  }
  return static_cast<std::int32_t>(sum);
}

// sum over one k-block of 128, k ascending, one fma a step, from +0.
float float8_block_sum(const GemmProblem& problem, std::int64_t i, std::int64_t j, std::int64_t block) {
  const auto* a = static_cast<const std::uint8_t*>(problem.a) + i * problem.a_stride;  // [k]
  const auto* b = static_cast<const std::uint8_t*>(problem.b) + j * problem.b_stride;  // [k]
  const std::int64_t end = std::min(problem.k, (block + 1) * kScaleBlock);
  float sum = 0;
  for (std::int64_t l = block * kScaleBlock; l < end; ++l)
    sum = fma32(numerics::float8_e4m3fn_to_float(a[l]), numerics::float8_e4m3fn_to_float(b[l]), sum);
  return sum;
}

float bias_at(const GemmProblem& problem, std::int64_t j) {
  return load_element(problem.output_dtype, problem.bias, j * problem.bias_stride);
}

// t = scale_b * sum;  out = fma(scale_a, t, bias), without a bias scale_a * t, with zero points and no bias fma(..,
// +0).
float scaled(const GemmProblem& problem, std::int64_t i, std::int64_t j, float sum) {
  const float scale_a = scale_at(problem.scale_a, i, 0);
  const float t = mul32(scale_at(problem.scale_b, j, 0), sum);
  if (problem.bias != nullptr) return fma32(scale_a, t, bias_at(problem, j));
  return problem.has_azp ? fma32(scale_a, t, 0.0f) : mul32(scale_a, t);
}

float element(const GemmProblem& problem, std::int64_t i, std::int64_t j) {
  if (problem.input_dtype == DType::int8)
    return scaled(problem, i, j, static_cast<float>(int8_sum(problem, i, j)));  // the conversion rounds to nearest even

  const std::int64_t blocks = problem.k / kScaleBlock + (problem.k % kScaleBlock != 0 ? 1 : 0);
  float main = 0;
  if (!problem.blockwise()) {
    for (std::int64_t block = 0; block < blocks; ++block) main = add32(main, float8_block_sum(problem, i, j, block));
    return scaled(problem, i, j, main);
  }
  for (std::int64_t block = 0; block < blocks; ++block) {
    const float scale = mul32(scale_at(problem.scale_a, i, block), scale_at(problem.scale_b, j / kScaleBlock, block));
    main = fma32(scale, float8_block_sum(problem, i, j, block), main);
  }
  return problem.bias != nullptr ? add32(main, bias_at(problem, j)) : main;
}

}  // namespace

void gemm(const GemmProblem& problem) {
  for (std::int64_t i = 0; i < problem.m; ++i)
    for (std::int64_t j = 0; j < problem.n; ++j)
      store_element(problem.output_dtype, problem.out, i * problem.out_stride + j, element(problem, i, j));
}

}  // namespace evergemm::reference
