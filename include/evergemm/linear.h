// SPDX-License-Identifier: Apache-2.0
// A linear layer with a quantized weight: x is quantized and multiplied in one call. What is asked, and where the quantized x
// lies meanwhile, for every backend. Must not go here: kernels; they are those of the quantizer and of the product.
#pragma once
#include <cstdint>

#include "evergemm/problem.h"
#include "evergemm/types.h"

namespace evergemm {

// How x is quantized follows from what is given: input_scale: with that scale; azp_adj: with a zero point for each token;
// weight_scale in blocks: for each 128 neighbours of a token; otherwise for each token.
struct LinearArguments {
  const char* operator_name = "quantized_linear";
  TensorView x, weight, weight_scale;
  TensorView input_scale, azp_adj, bias;  // optional
  bool fast_accumulation = true;
  bool deterministic = false;
};

// `quantize` writes what `product` reads: q, its scales and zero points, which place() puts into the call's workspace.
struct LinearProblem {
  QuantizeProblem quantize;
  GemmProblem product;
  Device device;
};

// Points both steps to a workspace at `base`, and returns its bytes. Rows of q start at multiples of 16 bytes, block scales of
// one k-block lie side by side: what a product reads fastest. validate() has seen that nothing overflows.
inline std::int64_t place(LinearProblem& problem, void* base) {
  constexpr std::int64_t line = 256;
  std::int64_t bytes = 0;
  const auto take = [&bytes, base](std::int64_t size) {
    void* const here = base == nullptr ? nullptr : static_cast<char*>(base) + bytes;
    bytes += (size + line - 1) / line * line;
    return here;
  };
  QuantizeProblem& quantize = problem.quantize;
  GemmProblem& product = problem.product;
  const std::int64_t m = product.m, groups = (product.k + kScaleBlock - 1) / kScaleBlock, tokens = (m + 3) / 4 * 4;
  quantize.q_stride = product.a_stride = (product.k + 15) / 16 * 16;
  quantize.q_rows = m;
  product.a = quantize.q = take(m * product.a_stride);
  if (quantize.scheme != QuantizeScheme::with_given_scale) {
    quantize.scale = take(4 * tokens * (product.blockwise() ? groups : 1));
    product.scale_a.data = static_cast<const float*>(quantize.scale);
    quantize.scale_row_stride = product.scale_a.outer_stride = 1;
    quantize.scale_group_stride = product.scale_a.k_stride = product.blockwise() ? tokens : 0;
  }
  if (quantize.scheme == QuantizeScheme::per_row_asymmetric) {
    product.azp = quantize.azp = static_cast<std::int32_t*>(take(4 * m));
    quantize.azp_stride = product.azp_stride = 1;
  }
  return bytes;
}

}  // namespace evergemm
