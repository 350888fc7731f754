// SPDX-License-Identifier: Apache-2.0
// What all GEMM kernels of this folder share: how a result is cut into blocks for the threads, and the per-column and
// per-row values of the epilogue, gathered from their strides into plain arrays.
// Everything here is a plain struct or a function of gemm_block.cpp, which is compiled for any processor: a file
// compiled for one instruction set must not define inline functions that the linker could keep for all.
#pragma once
#include <cstdint>

#include "evergemm/problem.h"
#include "evergemm/run.h"

namespace evergemm::cpu {

// Columns that one block has at most: a whole scale block, so that a panel never straddles two.
inline constexpr std::int64_t kBlockColumns = 128;

// Rows [row_begin, row_end) of columns [column_begin, column_end) of the result; column_begin is a multiple of the
// kernel's panel width, and no block crosses a multiple of kBlockColumns.
struct Block {
  std::int64_t row_begin, row_end, column_begin, column_end;
};
// What a kernel keeps of a block stands on the stack, at most 300 KiB: nothing is allocated, so nothing can fail.
using BlockKernel = void (*)(const GemmProblem& problem, const Block& block);

struct Splitting {
  std::int64_t panel_columns;
  std::int64_t panels_per_block;    // at most; together with panel_columns a divisor of kBlockColumns
  std::int64_t row_tile;            // rows of a block are a multiple of this, except at the end
  std::int64_t max_rows;            // of one block: what the kernel's buffers hold
  std::int64_t products_per_piece;  // multiply-adds that are worth waking a thread for
};
// Calls `kernel` for blocks that cover the result once, in parallel where the context allows it.
void for_each_block(const GemmProblem& problem, const RunContext& context, const Splitting& splitting,
                    BlockKernel kernel);

// Epilogue values of a block's columns; entries beyond the last column are zero, so that vectors may read them.
struct ColumnValues {
  alignas(64) float scale_b[kBlockColumns];  // int8 and fp8 without scale blocks
  alignas(64) float bias[kBlockColumns];
  alignas(64) std::int32_t azp_adj[kBlockColumns];
};
void load_columns(const GemmProblem& problem, std::int64_t column_begin, std::int64_t column_end, ColumnValues& values);

}  // namespace evergemm::cpu
