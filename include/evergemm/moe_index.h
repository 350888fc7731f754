// SPDX-License-Identifier: Apache-2.0
// How ids, offsets, counts and pitches that come from outside are read, written once for every backend: whatever they
// hold, what is addressed stays inside the tensors, and no two experts write the same element. Pure integer arithmetic.
// Must not go here: elements of matrices, threads.
#pragma once
#include <cstdint>

#include "evergemm/moe.h"
#include "evergemm/numerics.h"

namespace evergemm {

EVERGEMM_HOST_DEVICE std::int64_t read_index(const void* data, bool is_int64, std::int64_t at) {
  return is_int64 ? static_cast<const std::int64_t*>(data)[at] : static_cast<const std::int32_t*>(data)[at];
}
EVERGEMM_HOST_DEVICE std::int64_t read_index(const Indices& indices, std::int64_t i) {
  return read_index(indices.data, indices.is_int64, i * indices.stride);
}

// value limited to [low, high], low <= high.
EVERGEMM_HOST_DEVICE std::int64_t limited(std::int64_t value, std::int64_t low, std::int64_t high) {
  return value < low ? low : value > high ? high : value;
}

// How indices are read, unless a caller has a way of its own.
struct ReadIndex {
  EVERGEMM_HOST_DEVICE std::int64_t operator()(const void* data, bool is_int64, std::int64_t at) const {
    return read_index(data, is_int64, at);
  }
};

// The local expert of choice (token, choice), or -1 where it goes nowhere.
template <class Read = ReadIndex>
EVERGEMM_HOST_DEVICE std::int64_t local_expert(const MoeRouteProblem& problem, std::int64_t token, std::int64_t choice,
                                               const Read& read = Read()) {
  std::int64_t id =
      read(problem.ids, problem.ids_are_int64, token * problem.ids_token_stride + choice * problem.ids_choice_stride);
  const Indices& map = problem.expert_map;
  if (map.data != nullptr) {
    if (id < 0 || id >= problem.expert_map_size) return -1;
    id = read(map.data, map.is_int64, id * map.stride);
  }
  return id >= 0 && id < problem.experts ? id : -1;
}

// One expert's part of a grouped product. Begins and strides count elements.
struct ExpertShare {
  std::int64_t rows = 0;
  std::int64_t first_row = 0;  // where the rows' scales start
  std::int64_t a_begin = 0, a_stride = 0;
  std::int64_t b_begin = 0, b_stride = 0;
  std::int64_t out_begin = 0, out_stride = 0;
};

// Rows of `width` elements, `pitch` apart from row `first` of a dense [rows, width] on, that end inside it.
EVERGEMM_HOST_DEVICE std::int64_t rows_that_fit(std::int64_t rows, std::int64_t width, std::int64_t first,
                                                std::int64_t pitch) {
  if (pitch < 0 || first < 0 || first >= rows) return 0;
  if (pitch == 0 || width == 0) return rows - first;
  return 1 + (rows - 1 - first) * width / pitch;
}

// The rows of a size triple, (m, n, k) or (n, m, k); 0 where n and k are not the problem's.
EVERGEMM_HOST_DEVICE std::int64_t rows_of_sizes(const std::int32_t* sizes, std::int64_t n, std::int64_t k) {
  if (sizes[2] != k) return 0;
  const std::int64_t rows = sizes[1] == n ? sizes[0] : sizes[0] == n ? sizes[1] : 0;
  return rows < 0 ? 0 : rows;
}

// The share of `expert`. Experts are asked in ascending order with one `owned_end`, 0 at first: an expert cannot own
// what lies before the end of another's.
EVERGEMM_HOST_DEVICE ExpertShare next_share(const GroupedGemmProblem& problem, std::int64_t expert,
                                            std::int64_t& owned_end) {
  ExpertShare share;
  share.a_stride = problem.a_stride;
  share.b_begin = expert * problem.b_expert_stride;
  share.b_stride = problem.b_stride;
  share.out_stride = problem.out_stride;
  if (problem.form == GroupedForm::masked) {
    share.rows = limited(read_index(problem.expert_rows, expert), 0, problem.rows);
    share.a_begin = expert * problem.a_expert_stride;
    share.out_begin = expert * problem.out_expert_stride;
    return share;
  }
  const std::int64_t start = read_index(problem.expert_rows, expert);
  if (problem.form == GroupedForm::ragged) {
    share.first_row = limited(start, owned_end, problem.rows);
    owned_end = limited(read_index(problem.expert_rows, expert + 1), share.first_row, problem.rows);
    share.rows = owned_end - share.first_row;
    share.a_begin = share.first_row * problem.a_stride;
    share.out_begin = share.first_row * problem.out_stride;
    return share;
  }
  // dropin: owned_end counts elements of out
  const std::int64_t n = problem.n, k = problem.k;
  share.a_stride = k > 0 ? read_index(problem.a_pitches, expert) : 0;  // k = 0: no element of a or b is read, and a
  share.b_stride = k > 0 ? read_index(problem.b_pitches, expert) : 0;  // hostile pitch must not enter an address either
  share.out_stride = read_index(problem.out_pitches, expert);
  if (start < 0 || start >= problem.rows || n == 0 || share.out_stride < n) return share;
  const bool b_fits = k == 0 || rows_that_fit(problem.experts * n, k, expert * n, share.b_stride) >= n;
  if (!b_fits) return share;
  std::int64_t rows = limited(rows_of_sizes(problem.problem_sizes + 3 * expert, n, k), 0, problem.rows - start);
  rows = limited(rows, 0, rows_that_fit(problem.rows, n, start, share.out_stride));
  if (k > 0) rows = limited(rows, 0, rows_that_fit(problem.rows, k, start, share.a_stride));
  const std::int64_t taken = owned_end - start * n;  // elements that earlier experts own
  const std::int64_t skipped = taken > 0 ? (taken - 1) / share.out_stride + 1 : 0;
  if (skipped >= rows) return share;
  share.rows = rows - skipped;
  share.first_row = start + skipped;
  share.a_begin = k > 0 ? start * k + skipped * share.a_stride : 0;
  share.out_begin = start * n + skipped * share.out_stride;
  owned_end = share.out_begin + (share.rows - 1) * share.out_stride + n;
  return share;
}

// One expert's product as a dense problem; `rows` of its share from `row` on, columns [column, column + columns), where
// `column` is a multiple of 128. For hosts; always inlined for the reason that numerics.h gives.
__attribute__((always_inline)) inline GemmProblem problem_of(const GroupedGemmProblem& problem, std::int64_t expert,
                                                             const ExpertShare& share, std::int64_t row,
                                                             std::int64_t rows, std::int64_t column,
                                                             std::int64_t columns) {
  GemmProblem dense;
  dense.m = rows;
  dense.n = columns;
  dense.k = problem.k;
  dense.input_dtype = problem.input_dtype;
  dense.output_dtype = problem.output_dtype;
  dense.a = static_cast<const char*>(problem.a) + share.a_begin + row * share.a_stride;
  dense.a_stride = share.a_stride;
  dense.b = static_cast<const char*>(problem.b) + share.b_begin + column * share.b_stride;
  dense.b_stride = share.b_stride;
  const std::int64_t out_begin = share.out_begin + row * share.out_stride + column;
  dense.out = static_cast<char*>(problem.out) + out_begin * size_in_bytes(problem.output_dtype);
  dense.out_stride = share.out_stride;
  dense.scale_a = problem.scale_a;
  dense.scale_a.data += expert * problem.scale_a_expert_stride + (share.first_row + row) * problem.scale_a.outer_stride;
  dense.scale_b = problem.scale_b;
  const std::int64_t scale_column = problem.scale_b.mode == ScaleMode::BlockWise128x128 ? column / kScaleBlock : column;
  dense.scale_b.data += expert * problem.scale_b_expert_stride + scale_column * problem.scale_b.outer_stride;
  dense.fast_accumulation = problem.fast_accumulation;
  dense.deterministic = problem.deterministic;
  dense.device = problem.device;
  return dense;
}

// Both size triples of one expert of a data operator.
EVERGEMM_HOST_DEVICE void write_sizes(const MoeDataProblem& problem, std::int64_t expert, std::int64_t m) {
  std::int32_t* first = problem.problem_sizes1 + 3 * expert;
  std::int32_t* second = problem.problem_sizes2 + 3 * expert;
  const std::int32_t rows = static_cast<std::int32_t>(m);
  first[0] = problem.transposed ? problem.n1 : rows;
  first[1] = problem.transposed ? rows : problem.n1;
  first[2] = problem.k;
  second[0] = problem.transposed ? problem.k : rows;
  second[1] = problem.transposed ? rows : problem.k;
  second[2] = problem.n;
}

}  // namespace evergemm
