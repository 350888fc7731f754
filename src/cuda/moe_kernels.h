// SPDX-License-Identifier: Apache-2.0
// The kernels of mixture of experts besides the products, for moe_run.cpp: what each does and which operands it needs.
// Every launch may start while the kernel before it ends. Must not go here: choices between architectures, checks.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "evergemm/moe.h"

namespace evergemm::cuda {

// ---- moe_route.cu ---------------------------------------------------------------------------------------------------

// One launch. source_row null: not written. cleared: kClearedWords words that become 0 before the next kernel, or null.
// clusters: whether the device has thread block clusters.
inline constexpr int kClearedWords = 2;
cudaError_t launch_route(const MoeRouteProblem& problem, std::uint32_t* cleared, bool clusters, cudaStream_t stream);
// The data operators: one launch each.
cudaError_t launch_moe_data(const MoeDataProblem& problem, bool clusters, cudaStream_t stream);

// ---- moe_rows.cu ----------------------------------------------------------------------------------------------------

// Rows that are quantized, and where each comes from and goes to.
struct RoutedRows {
  QuantizeProblem quantize;  // x, q, scales, scheme; source copy or activation; `rows`: at most so many
  // Row r of q is made of row source_row[r] of x; outside [0, tokens): zeros with scale 1. Null data: of row r.
  Indices source_row;
  std::int64_t tokens = 0;
  // Row r of x goes to the rows slot[r, 0 .. top_k) of q, those outside [0, slot_rows) left out. Null: to row r.
  const std::int32_t* slot = nullptr;
  std::int64_t top_k = 0, slot_rows = 0;
  // x is multiplied by row_weights[r] rounded to x's type, and rounded to it, first. Null: it is not.
  const float* row_weights = nullptr;
  std::int64_t row_weights_stride = 0;
  const std::int32_t* row_count = nullptr;  // on the device, at most quantize.rows; null: quantize.rows
  bool early_row_count = false;             // it is there before the previous kernel has ended
  // per_tensor: the bits of the largest magnitude, found before (launch_largest_magnitude).
  const std::uint32_t* largest = nullptr;
  // per_tensor, with_given_scale: where the one scale is stored, or null. quantize.scale is with_given_scale's input.
  float* one_scale = nullptr;
};

inline constexpr int kMostRowThreads = 512;
// Whether a row can be read and written by vectors of 8 columns, and how its scales are found then (moe_rows.cuh).
bool rows_have_vectors(const QuantizeProblem& problem);
int lanes_of_scale(const QuantizeProblem& problem);

// One launch. Schemes: per_row, per_block of 1 x group_columns, with_given_scale (one value), per_tensor (`largest` given).
cudaError_t launch_quantize_routed(const RoutedRows& rows, cudaStream_t stream);
// largest = the larger of it and the magnitudes of all values that launch_quantize_routed would quantize; 0 before.
cudaError_t launch_largest_magnitude(const RoutedRows& rows, std::uint32_t* largest, cudaStream_t stream);

// ---- moe_gather.cu --------------------------------------------------------------------------------------------------

// Row r of q and its scales are those of token source_row[r]; outside [0, tokens): zeros with scale 1.
struct GatheredRows {
  Indices source_row;
  std::int64_t rows = 0, tokens = 0, columns = 0, groups = 0;  // groups: scales of a row, 0 where one serves all
  const void* token_q = nullptr;                               // [tokens, columns], a workspace
  const float* token_scale = nullptr;
  void* q = nullptr;
  float* scale = nullptr;
  const float* one_scale = nullptr;  // copied to *scale; or null
};
cudaError_t launch_gather(const GatheredRows& rows, cudaStream_t stream);

// ---- moe_few_tokens.cu ----------------------------------------------------------------------------------------------

// Routing and quantizing of so few tokens that each block finds its token's slots by itself; what launch_route and
// launch_quantize_routed would do in two launches. rows: scattered to problem.slot, source_row is not written.
bool few_tokens(const MoeRouteProblem& problem, const RoutedRows& rows);
cudaError_t launch_few_tokens(const MoeRouteProblem& problem, const RoutedRows& rows, std::uint32_t* cleared,
                              cudaStream_t stream);

// ---- moe_combine.cu -------------------------------------------------------------------------------------------------

// early_slots: slots and weights are there before the previous kernel has ended.
cudaError_t launch_combine(const MoeCombineProblem& problem, bool early_slots, cudaStream_t stream);

}  // namespace evergemm::cuda
