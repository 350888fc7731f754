// SPDX-License-Identifier: Apache-2.0
// Cuts a result into blocks for the threads and gathers the epilogue's values. Compiled for any processor.
// Must not go here: arithmetic on matrix elements.
#include "cpu/gemm_block.h"

#include <algorithm>

#include "evergemm/numerics.h"

namespace evergemm::cpu {
namespace {

std::int64_t divide_up(std::int64_t x, std::int64_t y) { return x / y + (x % y != 0 ? 1 : 0); }

// Items are numbered row chunk by row chunk, so that neighbouring items share rows of a and become one block.
struct BlockLoop {
  const GemmProblem* problem;
  BlockKernel kernel;
  std::int64_t panel_columns, panels_per_block, panels, rows_per_chunk;
};

void run_items(void* context, std::int64_t begin, std::int64_t end) {
  const BlockLoop& loop = *static_cast<const BlockLoop*>(context);
  for (std::int64_t item = begin; item < end;) {
    const std::int64_t chunk = item / loop.panels, panel = item % loop.panels;
    const std::int64_t count =
        std::min({loop.panels_per_block - panel % loop.panels_per_block, end - item, loop.panels - panel});
    loop.kernel(*loop.problem,
                Block{chunk * loop.rows_per_chunk, std::min(loop.problem->m, (chunk + 1) * loop.rows_per_chunk),
                      panel * loop.panel_columns, std::min(loop.problem->n, (panel + count) * loop.panel_columns)});
    item += count;
  }
}

}  // namespace

void for_each_block(const GemmProblem& problem, const RunContext& context, const Splitting& splitting,
                    BlockKernel kernel) {
  if (problem.m == 0 || problem.n == 0) return;
  const std::int64_t panels = divide_up(problem.n, splitting.panel_columns);
  const std::int64_t threads = context.parallel_for == nullptr ? 1 : std::max(context.threads, 1);
  // Rows are only split where the panels alone cannot keep every thread busy: each chunk of rows repacks b.
  constexpr std::int64_t kItemsPerThread = 4, kTilesPerChunk = 4;
  const std::int64_t wanted_chunks = threads == 1 ? 1 : kItemsPerThread * threads / panels;
  const std::int64_t chunks = std::max(divide_up(problem.m, splitting.max_rows),
                                       std::min(wanted_chunks, problem.m / (kTilesPerChunk * splitting.row_tile)));
  // Chunks of about equal height: max_rows + 4 rows are two halves, not a chunk of 4 rows that packs b once more.
  const std::int64_t rows_per_chunk = std::min(
      splitting.max_rows,
      divide_up(divide_up(problem.m, std::max<std::int64_t>(chunks, 1)), splitting.row_tile) * splitting.row_tile);
  BlockLoop loop{&problem, kernel, splitting.panel_columns, splitting.panels_per_block, panels, rows_per_chunk};
  const std::int64_t items = divide_up(problem.m, rows_per_chunk) * panels;

  const double products = static_cast<double>(std::min(rows_per_chunk, problem.m)) *
                          static_cast<double>(splitting.panel_columns) * static_cast<double>(problem.k + 64);
  const std::int64_t grain = std::max<std::int64_t>(
      1, static_cast<std::int64_t>(static_cast<double>(splitting.products_per_piece) / products));
  if (threads == 1) {
    run_items(&loop, 0, items);
  } else {
    context.parallel_for(0, items, grain, run_items, &loop);
  }
}

void load_columns(const GemmProblem& problem, std::int64_t column_begin, std::int64_t column_end,
                  ColumnValues& values) {
  const std::int64_t count = column_end - column_begin;
  const bool has_scale = problem.scale_b.mode != ScaleMode::BlockWise128x128;
  const float* scale = problem.scale_b.data;
  const std::int64_t scale_stride = problem.scale_b.outer_stride;
  for (std::int64_t j = 0; j < count; ++j) {
    values.scale_b[j] = has_scale ? scale[(column_begin + j) * scale_stride] : 0.0f;
  }
  for (std::int64_t j = 0; j < count; ++j) {
    const std::int64_t at = (column_begin + j) * problem.bias_stride;
    if (problem.bias == nullptr) {
      values.bias[j] = 0.0f;
    } else if (problem.output_dtype == DType::float32) {
      values.bias[j] = static_cast<const float*>(problem.bias)[at];
    } else if (problem.output_dtype == DType::float16) {
      values.bias[j] = numerics::float16_to_float(static_cast<const std::uint16_t*>(problem.bias)[at]);
    } else {
      values.bias[j] = numerics::bfloat16_to_float(static_cast<const std::uint16_t*>(problem.bias)[at]);
    }
  }
  for (std::int64_t j = 0; j < count; ++j) {
    values.azp_adj[j] = problem.azp_adj == nullptr ? 0 : problem.azp_adj[(column_begin + j) * problem.azp_adj_stride];
  }
  for (std::int64_t j = count; j < kBlockColumns; ++j) {
    values.scale_b[j] = values.bias[j] = 0.0f;
    values.azp_adj[j] = 0;
  }
}

}  // namespace evergemm::cpu
