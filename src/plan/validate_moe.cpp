// SPDX-License-Identifier: Apache-2.0
// ...Arguments of moe.h -> ...Problem: the rules of routing, grouped GEMM, gather and quantize, combine, the layer, and
// the data operators of the drop-in set, in signature order. What tensors hold (ids, offsets, sizes) is not judged
// here: it lives on the device and is clamped where it is read (moe_index.h).
#include <algorithm>
#include <limits>

#include "evergemm/moe_layer.h"
#include "evergemm/validate.h"
#include "plan/validate_rules.h"

namespace evergemm {

namespace {

using validation::ceil_divide;
using validation::Checker;
using validation::layout_text;
using validation::list_text;
using validation::numel;
using validation::shape_text;
using validation::vector_stride;

constexpr std::int64_t kMostInt32 = std::numeric_limits<std::int32_t>::max();

// Expected letters of a shape, for messages: "[e, k, n]" and "torch.empty(e, k, n)".
void check_shape(Checker& check, const char* argument, const TensorView& view,
                 std::initializer_list<std::int64_t> sizes, const char* letters) {
  if (!check.ok()) return;
  bool same = view.rank == static_cast<std::int32_t>(sizes.size());
  std::int32_t d = 0;
  for (const std::int64_t size : sizes) {
    same = same && view.sizes[d] == size;
    ++d;
  }
  if (!same)
    check.fail(std::string(argument) + " of shape " + list_text(sizes) + " (" + letters + ")", layout_text(view),
               "pass " + std::string(argument) + " of that shape");
}

// A vector of `count` integers, shape [count] or, where any_rank, any shape of that many.
Indices read_indices(Checker& check, const char* argument, const TensorView& view, std::int64_t count,
                     const char* letter, bool any_rank) {
  Indices indices;
  if (!check.ok()) return indices;
  const std::optional<std::int64_t> stride = vector_stride(view);
  const bool fits = any_rank ? numel(view).value_or(-1) == count : view.rank == 1 && view.sizes[0] == count;
  if (!fits || !stride) {
    check.fail(
        std::string(argument) + (any_rank ? " of " + std::to_string(count) + " evenly spaced elements (" + letter + ")"
                                          : " of shape " + list_text({count}) + " ([" + letter + "])"),
        layout_text(view), "pass " + std::string(argument) + " with that many elements");
    return indices;
  }
  indices.data = view.data;
  indices.stride = *stride;
  indices.is_int64 = view.dtype == DType::int64;
  return indices;
}

// An output of `count` int32 without gaps, whatever its rank.
std::int32_t* read_output(Checker& check, const char* argument, const TensorView& view, std::int64_t count,
                          const char* letters, const Device& device) {
  check.tensor(argument, view, {DType::int32}, &device);
  if (!check.ok()) return nullptr;
  const std::optional<std::int64_t> stride = vector_stride(view);
  if (numel(view).value_or(-1) != count || !stride || (count > 1 && *stride != 1))
    check.fail(std::string(argument) + " contiguous, of " + std::to_string(count) + " elements (" + letters + ")",
               layout_text(view), "allocate it with torch.empty(..., dtype=torch.int32)");
  return static_cast<std::int32_t*>(const_cast<void*>(view.data));
}

// The last dimension of a matrix, or of a matrix an expert, without gaps.
void check_contiguous_rows(Checker& check, const char* argument, const TensorView& view, bool written = false) {
  const std::int32_t last = view.rank - 1;
  if (check.ok() && view.sizes[last] > 1 && view.strides[last] != 1)
    check.fail(std::string(argument) + " with contiguous rows (stride(" + std::to_string(last) + ") == 1)",
               layout_text(view),
               written ? "allocate " + std::string(argument) + " with torch.empty"
                       : "pass " + std::string(argument) + ".contiguous()");
}

void check_out_dtype(Checker& check, DType dtype) {
  if (check.ok() && dtype != DType::bfloat16 && dtype != DType::float16 && dtype != DType::float32)
    check.fail("out_dtype bfloat16, float16 or float32", name(dtype), "choose one of them");
}

// One more is counted, too: offsets of experts + 1.
void check_experts(Checker& check, const char* argument, std::int64_t experts, const char* fix) {
  if (check.ok() && (experts < 0 || experts >= kMostInt32))
    check.fail(std::string(argument) + " in [0, 2^31 - 1)", std::to_string(experts), fix);
}

void check_choices(Checker& check, const char* argument, const TensorView& view) {
  if (check.ok() && numel(view).value_or(-1) > kMostInt32)
    check.fail(std::string(argument) + " of less than 2^31 elements (rows are counted in int32)", layout_text(view),
               "split the tokens");
}

void check_bytes(Checker& check, std::initializer_list<std::int64_t> factors) {
  std::int64_t bytes = 1;
  bool fits = true;
  for (const std::int64_t factor : factors) fits = fits && !__builtin_mul_overflow(bytes, factor, &bytes);
  if (check.ok() && !fits)
    check.fail("a result of less than 2^63 bytes", "sizes " + list_text(factors), "split the rows");
}

// ---- routing ---------------------------------------------------------------------------------------------------

void read_route(Checker& check, const TensorView& topk_ids, std::int64_t experts, const TensorView& expert_map,
                const Device* device, MoeRouteProblem& route) {
  check.tensor("topk_ids", topk_ids, {DType::int32, DType::int64}, device);
  check.rank("topk_ids", topk_ids, 2, "[tokens, top_k]");
  check_choices(check, "topk_ids", topk_ids);
  if (!check.ok()) return;
  route.device = topk_ids.device;
  route.tokens = topk_ids.sizes[0];
  route.top_k = topk_ids.sizes[1];
  route.experts = experts;
  route.ids = topk_ids.data;
  route.ids_token_stride = topk_ids.strides[0];
  route.ids_choice_stride = topk_ids.strides[1];
  route.ids_are_int64 = topk_ids.dtype == DType::int64;
  check_experts(check, "num_local_experts", experts, "pass the number of experts on this rank");
  if (!check.ok() || !expert_map.given()) return;
  check.tensor("expert_map", expert_map, {DType::int32, DType::int64}, &topk_ids.device);
  check.rank("expert_map", expert_map, 1, "[global experts]");
  if (!check.ok()) return;
  route.expert_map_size = expert_map.sizes[0];
  route.expert_map = read_indices(check, "expert_map", expert_map, route.expert_map_size, "global experts", false);
}

// ---- scales of grouped products --------------------------------------------------------------------------------

// One scale an expert, one a column of each expert, or blocks. `stored`: as the weight is stored, [e, n, k]; otherwise
// as it is multiplied, [e, k, n].
struct ExpertScaleShape {
  const char* argument;
  std::int64_t experts, n, n_blocks, k_blocks;
  bool stored;
};

std::string accepted_text(const ExpertScaleShape& shape, bool blocks_allowed) {
  const std::int64_t e = shape.experts, n = shape.n;
  std::string text = "shape " + list_text({e}) + (shape.stored ? " or " : ", ") + list_text({e, 1}) +
                     (shape.stored ? "" : " or " + list_text({e, 1, 1})) + " (TensorWise), " + list_text({e, n}) +
                     (shape.stored ? " or " : ", " + list_text({e, 1, n}) + " or ") + list_text({e, n, 1}) +
                     " (RowWise)";
  if (blocks_allowed)
    text += " or " +
            (shape.stored ? list_text({e, shape.n_blocks, shape.k_blocks})
                          : list_text({e, shape.k_blocks, shape.n_blocks})) +
            " (BlockWise128x128)";
  return text;
}

bool read_plain_expert_scale(const TensorView& view, const ExpertScaleShape& shape, Scale& scale,
                             std::int64_t& expert_stride) {
  if (view.rank < 1 || view.rank > 3 || view.sizes[0] != shape.experts) return false;
  scale = Scale();
  scale.data = static_cast<const float*>(view.data);
  expert_stride = view.strides[0];
  const std::int64_t second = view.rank > 1 ? view.sizes[1] : 1, third = view.rank > 2 ? view.sizes[2] : 1;
  if (second == 1 && third == 1) return true;  // TensorWise
  scale.mode = ScaleMode::RowWise;
  if (third == 1 && second == shape.n) {
    scale.outer_stride = view.strides[1];
    return true;
  }
  if (!shape.stored && second == 1 && third == shape.n && view.rank == 3) {
    scale.outer_stride = view.strides[2];
    return true;
  }
  return false;
}

bool read_block_expert_scale(const TensorView& view, const ExpertScaleShape& shape, Scale& scale,
                             std::int64_t& expert_stride) {
  const int n_dimension = shape.stored ? 1 : 2, k_dimension = 3 - n_dimension;
  if (view.rank != 3 || view.sizes[0] != shape.experts || view.sizes[n_dimension] != shape.n_blocks ||
      view.sizes[k_dimension] != shape.k_blocks)
    return false;
  scale.mode = ScaleMode::BlockWise128x128;
  scale.data = static_cast<const float*>(view.data);
  scale.outer_stride = view.strides[n_dimension];
  scale.k_stride = view.strides[k_dimension];
  expert_stride = view.strides[0];
  return true;
}

// scale_a: one value, one a row, or one a row and block of k. Masked rows have a leading dimension of experts.
struct RowScaleShape {
  std::int64_t experts, rows, k_blocks;
  bool masked;
};

std::string accepted_text(const RowScaleShape& shape, bool blocks_allowed) {
  const std::int64_t e = shape.experts, m = shape.rows, blocks = shape.k_blocks;
  std::string text =
      "1 element (TensorWise), shape " +
      (shape.masked ? list_text({e, m}) + " or " + list_text({e, m, 1}) : list_text({m}) + " or " + list_text({m, 1})) +
      " (RowWise)";
  if (blocks_allowed)
    text += " or " + (shape.masked ? list_text({e, m, blocks}) : list_text({m, blocks})) + " (BlockWise1x128)";
  return text;
}

bool read_plain_row_scale(const TensorView& view, const RowScaleShape& shape, Scale& scale,
                          std::int64_t& expert_stride) {
  scale = Scale();
  scale.data = static_cast<const float*>(view.data);
  expert_stride = 0;
  if (numel(view).value_or(-1) == 1) return true;
  scale.mode = ScaleMode::RowWise;
  const std::int32_t row_dimension = shape.masked ? 1 : 0;
  if (view.rank != row_dimension + 1 && !(view.rank == row_dimension + 2 && view.sizes[row_dimension + 1] == 1))
    return false;
  if (view.sizes[row_dimension] != shape.rows || (shape.masked && view.sizes[0] != shape.experts)) return false;
  scale.outer_stride = view.strides[row_dimension];
  if (shape.masked) expert_stride = view.strides[0];
  return true;
}

bool read_block_row_scale(const TensorView& view, const RowScaleShape& shape, Scale& scale,
                          std::int64_t& expert_stride) {
  const std::int32_t row_dimension = shape.masked ? 1 : 0;
  if (view.rank != row_dimension + 2 || view.sizes[row_dimension] != shape.rows ||
      view.sizes[row_dimension + 1] != shape.k_blocks || (shape.masked && view.sizes[0] != shape.experts))
    return false;
  scale.mode = ScaleMode::BlockWise1x128;
  scale.data = static_cast<const float*>(view.data);
  scale.outer_stride = view.strides[row_dimension];
  scale.k_stride = view.strides[row_dimension + 1];
  expert_stride = shape.masked ? view.strides[0] : 0;
  return true;
}

void check_grouped_scales(Checker& check, const GroupedMmArguments& arguments, GroupedGemmProblem& problem) {
  if (!check.ok()) return;
  const bool blocks_allowed = problem.input_dtype == DType::float8_e4m3fn;
  const std::int64_t k_blocks = ceil_divide(problem.k, kScaleBlock), n_blocks = ceil_divide(problem.n, kScaleBlock);
  const RowScaleShape a{problem.experts, problem.rows, k_blocks, arguments.form == GroupedForm::masked};
  const ExpertScaleShape b{"scale_b", problem.experts, problem.n, n_blocks, k_blocks, false};
  Scale plain_a, plain_b, block_a, block_b;
  std::int64_t plain_a_expert = 0, plain_b_expert = 0, block_a_expert = 0, block_b_expert = 0;
  const bool a_plain = read_plain_row_scale(arguments.scale_a, a, plain_a, plain_a_expert);
  const bool b_plain = read_plain_expert_scale(arguments.scale_b, b, plain_b, plain_b_expert);
  const bool a_block = blocks_allowed && read_block_row_scale(arguments.scale_a, a, block_a, block_a_expert);
  const bool b_block = blocks_allowed && read_block_expert_scale(arguments.scale_b, b, block_b, block_b_expert);
  const std::string fix = blocks_allowed
                              ? "pass a scale of one of these shapes"
                              : "pass a scale of one of these shapes (block scales are for float8_e4m3fn operands)";
  if (a_plain && b_plain) {
    problem.scale_a = plain_a;
    problem.scale_a_expert_stride = plain_a_expert;
    problem.scale_b = plain_b;
    problem.scale_b_expert_stride = plain_b_expert;
  } else if (a_block && b_block) {
    problem.scale_a = block_a;
    problem.scale_a_expert_stride = block_a_expert;
    problem.scale_b = block_b;
    problem.scale_b_expert_stride = block_b_expert;
  } else if (!a_plain && !a_block) {
    check.fail("scale_a of " + accepted_text(a, blocks_allowed), layout_text(arguments.scale_a), fix);
  } else if (!b_plain && !b_block) {
    check.fail("scale_b of " + accepted_text(b, blocks_allowed), layout_text(arguments.scale_b), fix);
  } else {
    check.fail(
        "scale_a and scale_b both in blocks, or both TensorWise or RowWise",
        "scale_a of shape " + shape_text(arguments.scale_a) + " with scale_b of shape " + shape_text(arguments.scale_b),
        "pass block scales for both operands or for none");
  }
}

// ---- grouped GEMM ----------------------------------------------------------------------------------------------

// Rows of out that share no element: [rows, n], or [experts, rows, n] in either nesting.
void check_distinct_rows(Checker& check, const TensorView& out, std::int64_t experts, std::int64_t rows, std::int64_t n,
                         bool masked) {
  if (!check.ok() || n == 0 || rows == 0 || experts == 0) return;
  const std::int64_t row_stride = out.strides[masked ? 1 : 0], expert_stride = masked ? out.strides[0] : 0;
  const bool rows_distinct = rows <= 1 || row_stride >= n;
  const bool outer_experts = expert_stride >= (rows - 1) * row_stride + n;
  const bool inner_experts = expert_stride >= n && row_stride >= (experts - 1) * expert_stride + n;
  if (!rows_distinct || (masked && experts > 1 && !outer_experts && !inner_experts))
    check.fail("out whose rows do not share elements", layout_text(out), "allocate out with torch.empty");
}

void read_grouped_out(Checker& check, const GroupedMmArguments& arguments, GroupedGemmProblem& problem) {
  const bool masked = arguments.form == GroupedForm::masked;
  const TensorView& out = arguments.out;
  const std::int64_t rows = problem.rows, n = problem.n;
  problem.out_stride = n;
  if (!masked || __builtin_mul_overflow(rows, n, &problem.out_expert_stride))
    problem.out_expert_stride = 0;  // with an overflow there are no experts, or the result is refused below
  if (!out.given()) {
    check_out_dtype(check, arguments.out_dtype);
    check_bytes(check, {masked ? problem.experts : 1, rows, n, 4});
    problem.output_dtype = arguments.out_dtype;
    problem.clear_unowned = true;
    return;
  }
  check.tensor("out", out, {DType::bfloat16, DType::float16, DType::float32}, &problem.device);
  if (masked)
    check_shape(check, "out", out, {problem.experts, rows, n}, "experts, rows, n");
  else
    check_shape(check, "out", out, {rows, n}, "rows, n");
  check_contiguous_rows(check, "out", out, true);
  check_distinct_rows(check, out, problem.experts, rows, n, masked);
  if (!check.ok()) return;
  problem.output_dtype = out.dtype;
  problem.out = const_cast<void*>(out.data);
  problem.out_stride = out.strides[masked ? 1 : 0];
  problem.out_expert_stride = masked ? out.strides[0] : 0;
  check.no_overlap("out", out, "a", arguments.a);
  check.no_overlap("out", out, "b", arguments.b);
  check.no_overlap("out", out, "scale_a", arguments.scale_a);
  check.no_overlap("out", out, "scale_b", arguments.scale_b);
  check.no_overlap("out", out, masked ? "rows_per_expert" : "expert_offsets", arguments.expert_rows);
}

Status validate_grouped(const GroupedMmArguments& arguments, GroupedGemmProblem& problem) {
  Checker check(arguments.operator_name);
  const bool masked = arguments.form == GroupedForm::masked;
  const TensorView &a = arguments.a, &b = arguments.b;
  check.tensor("a", a, {DType::int8, DType::float8_e4m3fn}, nullptr);
  check.rank("a", a, masked ? 3 : 2, masked ? "[experts, rows, k]" : "[rows, k]");
  check_contiguous_rows(check, "a", a);
  if (!check.ok()) return check.take();
  problem.device = a.device;
  problem.input_dtype = a.dtype;
  problem.rows = a.sizes[masked ? 1 : 0];
  problem.k = a.sizes[masked ? 2 : 1];
  problem.a = a.data;
  problem.a_stride = a.strides[masked ? 1 : 0];
  problem.a_expert_stride = masked ? a.strides[0] : 0;
  check.exact_sum(a.dtype, problem.k);

  check.tensor("b", b, {a.dtype}, &a.device);
  check.rank("b", b, 3, "[experts, k, n]");
  if (!check.ok()) return check.take();
  problem.experts = b.sizes[0];
  problem.n = b.sizes[2];
  check_experts(check, "the experts of b", problem.experts, "pass the weights of the experts on this rank");
  if (!check.ok()) return check.take();
  if (masked && a.sizes[0] != problem.experts)
    check.fail("b with as many experts as a (" + std::to_string(a.sizes[0]) + ")", layout_text(b),
               "pass weight.transpose(1, 2) of an [experts, n, k] weight with the same experts as a");
  if (check.ok() && b.sizes[1] != problem.k)
    check.fail("b with as many rows an expert as a has columns (k = " + std::to_string(problem.k) + ")", layout_text(b),
               "pass weight.transpose(1, 2) of an [experts, n, k] weight with the same k as a");
  if (check.ok() && problem.k > 1 && b.strides[1] != 1)
    check.fail("b column-major for each expert (stride(1) == 1)", layout_text(b),
               "pass weight.transpose(1, 2) of a contiguous [experts, n, k] weight");
  problem.b = b.data;
  problem.b_stride = b.strides[2];
  problem.b_expert_stride = b.strides[0];

  check.tensor("scale_a", arguments.scale_a, {DType::float32}, &a.device);
  check.tensor("scale_b", arguments.scale_b, {DType::float32}, &a.device);
  check_grouped_scales(check, arguments, problem);
  const char* rows_name = masked ? "rows_per_expert" : "expert_offsets";
  check.tensor(rows_name, arguments.expert_rows, {DType::int32, DType::int64}, &a.device);
  problem.expert_rows = read_indices(check, rows_name, arguments.expert_rows, problem.experts + (masked ? 0 : 1),
                                     masked ? "experts" : "experts + 1", false);
  read_grouped_out(check, arguments, problem);
  return check.take();
}

// One value, one a row, or one an expert; one an expert, or one a column of each.
void check_dropin_scales(Checker& check, const GroupedMmArguments& arguments, GroupedGemmProblem& problem) {
  if (!check.ok()) return;
  const std::int64_t experts = problem.experts, n = problem.n;
  const std::int64_t a_count = numel(arguments.scale_a).value_or(-1), b_count = numel(arguments.scale_b).value_or(-1);
  const std::optional<std::int64_t> a_stride = vector_stride(arguments.scale_a),
                                    b_stride = vector_stride(arguments.scale_b);
  problem.scale_a.data = static_cast<const float*>(arguments.scale_a.data);
  problem.scale_b.data = static_cast<const float*>(arguments.scale_b.data);
  if (arguments.per_act_token) {
    if (a_count != problem.rows || !a_stride)
      return check.fail("a_scales of " + std::to_string(problem.rows) + " evenly spaced elements (per_act_token=True)",
                        layout_text(arguments.scale_a), "pass one scale a row of a_tensors, or per_act_token=False");
    problem.scale_a.mode = ScaleMode::RowWise;
    problem.scale_a.outer_stride = *a_stride;
  } else {
    if ((a_count != 1 && a_count != experts) || !a_stride)
      return check.fail(
          "a_scales of 1 or " + std::to_string(experts) + " (an expert) evenly spaced elements (per_act_token=False)",
          layout_text(arguments.scale_a), "pass one scale, one an expert, or per_act_token=True");
    problem.scale_a_expert_stride = a_count == 1 ? 0 : *a_stride;
  }
  std::int64_t channels = 0;
  const bool counted = !__builtin_mul_overflow(experts, n, &channels);
  const std::int64_t wanted = arguments.per_out_ch ? channels : experts;
  if (!counted || b_count != wanted || !b_stride)
    return check.fail("b_scales of " + std::to_string(wanted) +
                          " evenly spaced elements (per_out_ch=" + (arguments.per_out_ch ? "True)" : "False)"),
                      layout_text(arguments.scale_b),
                      arguments.per_out_ch ? "pass one scale a column of each expert, or per_out_ch=False"
                                           : "pass one scale an expert, or per_out_ch=True");
  problem.scale_b_expert_stride = arguments.per_out_ch ? n * *b_stride : *b_stride;
  if (arguments.per_out_ch) {
    problem.scale_b.mode = ScaleMode::RowWise;
    problem.scale_b.outer_stride = *b_stride;
  }
}

bool is_dense(const TensorView& view) {
  for (std::int32_t d = 0; d < view.rank; ++d)
    if (view.sizes[d] == 0) return true;
  std::int64_t expected = 1;
  for (std::int32_t d = view.rank - 1; d >= 0; --d) {
    if (view.sizes[d] != 1 && view.strides[d] != expected) return false;
    if (__builtin_mul_overflow(expected, view.sizes[d], &expected))
      return false;  // only a broadcast view is that large
  }
  return true;
}

Status validate_dropin(const GroupedMmArguments& arguments, GroupedGemmProblem& problem) {
  Checker check(arguments.operator_name);
  const TensorView &a = arguments.a, &b = arguments.b, &out = arguments.out;
  check.tensor("a_tensors", a, {DType::int8, DType::float8_e4m3fn}, nullptr);
  check.rank("a_tensors", a, 2, "[rows, k]");
  if (check.ok() && !is_dense(a))
    check.fail("a_tensors contiguous (start rows count dense rows)", layout_text(a), "pass a_tensors.contiguous()");
  if (!check.ok()) return check.take();
  problem.device = a.device;
  problem.input_dtype = a.dtype;
  problem.rows = a.sizes[0];
  problem.k = problem.a_stride = a.sizes[1];
  problem.a = a.data;
  check.exact_sum(a.dtype, problem.k);

  check.tensor("out_tensors", out, {DType::bfloat16, DType::float16}, &a.device);
  check.rank("out_tensors", out, 2, "[rows, n]");
  if (check.ok() && out.sizes[0] != problem.rows)
    check.fail("out_tensors with as many rows as a_tensors (" + std::to_string(problem.rows) + ")", layout_text(out),
               "allocate it as torch.empty(a_tensors.size(0), n)");
  if (check.ok() && !is_dense(out))
    check.fail("out_tensors contiguous (start rows count dense rows)", layout_text(out), "pass a contiguous tensor");
  if (!check.ok()) return check.take();
  problem.n = problem.out_stride = out.sizes[1];
  problem.output_dtype = out.dtype;
  problem.out = const_cast<void*>(out.data);

  check.tensor("b_tensors", b, {a.dtype}, &a.device);
  check.rank("b_tensors", b, 3, "[experts, n, k]");
  if (!check.ok()) return check.take();
  problem.experts = b.sizes[0];
  check_experts(check, "the experts of b_tensors", problem.experts, "pass the weights of the experts on this rank");
  if (!check.ok()) return check.take();
  const std::int64_t n = problem.n, k = problem.k;
  const std::int64_t swapped_sizes[] = {b.sizes[0], b.sizes[2], b.sizes[1]};
  const std::int64_t swapped_strides[] = {b.strides[0], b.strides[2], b.strides[1]};
  TensorView swapped = b;
  swapped.sizes = swapped_sizes;
  swapped.strides = swapped_strides;
  const bool as_stored = b.sizes[1] == n && b.sizes[2] == k && is_dense(b);
  const bool as_view = b.sizes[1] == k && b.sizes[2] == n && is_dense(swapped);
  if (!as_stored && !as_view)
    check.fail("b_tensors contiguous of shape " + list_text({problem.experts, n, k}) +
                   " ([experts, n, k]), or its transpose(1, 2)",
               layout_text(b), "pass the stored weight, or weight.transpose(1, 2)");
  problem.b = b.data;
  problem.b_stride = k;
  if (__builtin_mul_overflow(n, k, &problem.b_expert_stride)) problem.b_expert_stride = 0;  // b is empty: no experts

  check.tensor("a_scales", arguments.scale_a, {DType::float32}, &a.device);
  check.tensor("b_scales", arguments.scale_b, {DType::float32}, &a.device);
  check_dropin_scales(check, arguments, problem);
  check.tensor("expert_offsets", arguments.expert_rows, {DType::int64, DType::int32}, &a.device);
  problem.expert_rows = read_indices(check, "expert_offsets", arguments.expert_rows, problem.experts, "experts", false);
  check.tensor("problem_sizes", arguments.problem_sizes, {DType::int32}, &a.device);
  check_shape(check, "problem_sizes", arguments.problem_sizes, {problem.experts, 3}, "experts, 3");
  if (check.ok() && !is_dense(arguments.problem_sizes))
    check.fail("problem_sizes contiguous", layout_text(arguments.problem_sizes), "pass problem_sizes.contiguous()");
  problem.problem_sizes = static_cast<const std::int32_t*>(arguments.problem_sizes.data);
  struct Pitch {
    const char* name;
    const TensorView* view;
    Indices* into;
  };
  for (const Pitch& pitch : {Pitch{"a_strides", &arguments.a_strides, &problem.a_pitches},
                             Pitch{"b_strides", &arguments.b_strides, &problem.b_pitches},
                             Pitch{"c_strides", &arguments.c_strides, &problem.out_pitches}}) {
    check.tensor(pitch.name, *pitch.view, {DType::int64}, &a.device);
    *pitch.into = read_indices(check, pitch.name, *pitch.view, problem.experts, "experts", false);
  }
  check.no_overlap("out_tensors", out, "a_tensors", a);
  check.no_overlap("out_tensors", out, "b_tensors", b);
  check.no_overlap("out_tensors", out, "a_scales", arguments.scale_a);
  check.no_overlap("out_tensors", out, "b_scales", arguments.scale_b);
  check.no_overlap("out_tensors", out, "expert_offsets", arguments.expert_rows);
  check.no_overlap("out_tensors", out, "problem_sizes", arguments.problem_sizes);
  check.no_overlap("out_tensors", out, "a_strides", arguments.a_strides);
  check.no_overlap("out_tensors", out, "b_strides", arguments.b_strides);
  check.no_overlap("out_tensors", out, "c_strides", arguments.c_strides);
  return check.take();
}

// ---- fused_moe -------------------------------------------------------------------------------------------------

// One of the layer's weights, as stored: [experts, n, k], rows contiguous, any other strides.
void read_weights(Checker& check, const char* argument, const TensorView& view, MoeWeights& weights) {
  check_contiguous_rows(check, argument, view);
  if (!check.ok()) return;
  weights.data = view.data;
  weights.n = view.sizes[1];
  weights.k = view.sizes[2];
  weights.expert_stride = view.strides[0];
  weights.row_stride = view.strides[1];
}

void read_weight_scale(Checker& check, const char* argument, const TensorView& view, std::int64_t experts, DType dtype,
                       const Device& device, MoeWeights& weights) {
  check.tensor(argument, view, {DType::float32}, &device);
  if (!check.ok()) return;
  const bool blocks_allowed = dtype == DType::float8_e4m3fn;
  const ExpertScaleShape shape{
      argument, experts, weights.n, ceil_divide(weights.n, kScaleBlock), ceil_divide(weights.k, kScaleBlock), true};
  // The scale also says how the product's input is quantized, so that modes of equal value differ: rank decides. [e, 1, 1] is
  // one block where an expert has one, and [e, 1] one column where it has one.
  if (blocks_allowed && read_block_expert_scale(view, shape, weights.scale, weights.scale_expert_stride)) return;
  if (read_plain_expert_scale(view, shape, weights.scale, weights.scale_expert_stride)) {
    if (view.rank > 1 && weights.n == 1) weights.scale.mode = ScaleMode::RowWise;
    return;
  }
  check.fail(std::string(argument) + " of " + accepted_text(shape, blocks_allowed), layout_text(view),
             blocks_allowed ? "pass a scale of one of these shapes"
                            : "pass a scale of one of these shapes (block scales are for float8_e4m3fn weights)");
}

void read_input_scale(Checker& check, const char* argument, const TensorView& view, const Device& device,
                      MoeWeights& weights) {
  if (!view.given()) return;
  check.tensor(argument, view, {DType::float32}, &device);
  if (check.ok() && numel(view).value_or(-1) != 1)
    check.fail(std::string(argument) + " of 1 element (static, TensorWise)", layout_text(view),
               "pass one value, or None for dynamic scales");
  if (check.ok() && weights.scale.mode == ScaleMode::BlockWise128x128)
    check.fail(std::string(argument) + " None with block scales (they are dynamic, 1 x 128)", "a tensor", "pass None");
  weights.input_scale = static_cast<const float*>(view.data);
}

}  // namespace

Status validate(const MoeRouteArguments& arguments, MoeRouteProblem& problem) {
  Checker check(arguments.operator_name);
  problem = MoeRouteProblem();
  read_route(check, arguments.topk_ids, arguments.num_local_experts, arguments.expert_map, nullptr, problem);
  return check.take();
}

Status validate(const GroupedMmArguments& arguments, GroupedGemmProblem& problem) {
  problem = GroupedGemmProblem();
  problem.form = arguments.form;
  problem.fast_accumulation = arguments.fast_accumulation;
  problem.deterministic = arguments.deterministic;
  return arguments.form == GroupedForm::dropin ? validate_dropin(arguments, problem)
                                               : validate_grouped(arguments, problem);
}

Status validate(const MoeGatherQuantizeArguments& arguments, MoeGatherQuantizeProblem& problem) {
  Checker check(arguments.operator_name);
  problem = MoeGatherQuantizeProblem();
  const TensorView& x = arguments.x;
  check.tensor("x", x, {DType::bfloat16, DType::float16, DType::float32}, nullptr);
  check.rank("x", x, 2, "[tokens, k]");
  check_contiguous_rows(check, "x", x);
  if (!check.ok()) return check.take();
  problem.device = x.device;
  problem.tokens = x.sizes[0];
  problem.columns = x.sizes[1];
  problem.x = x.data;
  problem.x_stride = x.strides[0];
  problem.x_dtype = x.dtype;
  check.tensor("source_row", arguments.source_row, {DType::int32, DType::int64}, &x.device);
  check.rank("source_row", arguments.source_row, 1, "[rows]");
  if (!check.ok()) return check.take();
  problem.rows = arguments.source_row.sizes[0];
  problem.source_row = read_indices(check, "source_row", arguments.source_row, problem.rows, "rows", false);
  if (arguments.scale.given()) {
    check.tensor("scale", arguments.scale, {DType::float32}, &x.device);
    if (check.ok() && numel(arguments.scale).value_or(-1) != 1)
      check.fail("scale of 1 element (static)", layout_text(arguments.scale),
                 "pass one value, or None for dynamic scales");
    problem.given_scale = static_cast<const float*>(arguments.scale.data);
  }
  if (arguments.row_weights.given()) {
    check.tensor("row_weights", arguments.row_weights, {DType::float32}, &x.device);
    problem.row_weights_stride =
        read_indices(check, "row_weights", arguments.row_weights, problem.rows, "rows", false).stride;
    problem.row_weights = static_cast<const float*>(arguments.row_weights.data);
  }
  const std::int64_t group = arguments.group_size;
  if (check.ok() && group < -1)
    check.fail("group_size -1 (one scale), 0 (a scale a row) or more", std::to_string(group), "choose one of them");
  if (check.ok() && arguments.scale.given() && group > 0)
    check.fail("group_size 0 or -1 with a static scale (it has 1 element)", std::to_string(group),
               "pass 0, or scale=None");
  if (check.ok() && !arguments.scale.given() && group == -1 && arguments.row_weights.given())
    check.fail("row_weights None with group_size -1 (its absmax sees every token, weighted or not)", "a tensor",
               "weight x before, or choose group_size 0");
  problem.scheme = arguments.scale.given() ? QuantizeScheme::with_given_scale
                   : group == -1           ? QuantizeScheme::per_tensor
                   : group == 0            ? QuantizeScheme::per_row
                                           : QuantizeScheme::per_block;
  problem.group_columns = group > 0 ? group : std::max<std::int64_t>(problem.columns, 1);
  problem.q_dtype = arguments.dtype;
  if (check.ok() && arguments.dtype != DType::int8 && arguments.dtype != DType::float8_e4m3fn)
    check.fail("dtype int8 or float8_e4m3fn", name(arguments.dtype), "choose one of them");
  check_bytes(check, {std::max(problem.rows, problem.tokens), problem.columns, 4});
  return check.take();
}

Status validate(const MoeCombineArguments& arguments, MoeCombineProblem& problem) {
  Checker check(arguments.operator_name);
  problem = MoeCombineProblem();
  const TensorView &y = arguments.y, &slot = arguments.slot, &weights = arguments.topk_weights;
  check.tensor("y", y, {DType::bfloat16, DType::float16, DType::float32}, nullptr);
  check.rank("y", y, 2, "[rows, n]");
  check_contiguous_rows(check, "y", y);
  check.tensor("slot", slot, {DType::int32, DType::int64}, check.ok() ? &y.device : nullptr);
  check.rank("slot", slot, 2, "[tokens, top_k]");
  if (!check.ok()) return check.take();
  problem.device = y.device;
  problem.rows = y.sizes[0];
  problem.columns = y.sizes[1];
  problem.y = y.data;
  problem.y_stride = y.strides[0];
  problem.y_dtype = y.dtype;
  problem.tokens = slot.sizes[0];
  problem.top_k = slot.sizes[1];
  problem.slot = slot.data;
  problem.slot_token_stride = slot.strides[0];
  problem.slot_choice_stride = slot.strides[1];
  problem.slots_are_int64 = slot.dtype == DType::int64;
  check.tensor("topk_weights", weights, {DType::float32}, &y.device);
  check_shape(check, "topk_weights", weights, {problem.tokens, problem.top_k}, "tokens, top_k");
  check_out_dtype(check, arguments.out_dtype);
  check_bytes(check, {problem.tokens, problem.columns, 4});
  if (!check.ok()) return check.take();
  problem.weights = static_cast<const float*>(weights.data);
  problem.weights_token_stride = weights.strides[0];
  problem.weights_choice_stride = weights.strides[1];
  problem.output_dtype = arguments.out_dtype;
  return check.take();
}

Status validate(const FusedMoeArguments& arguments, FusedMoeProblem& problem) {
  Checker check(arguments.operator_name);
  problem = FusedMoeProblem();
  const TensorView &x = arguments.x, &w13 = arguments.w13, &w2 = arguments.w2;
  check.tensor("x", x, {DType::bfloat16, DType::float16, DType::float32}, nullptr);
  check.rank("x", x, 2, "[tokens, hidden]");
  check_contiguous_rows(check, "x", x);
  if (!check.ok()) return check.take();
  problem.device = x.device;
  problem.x = x.data;
  problem.x_stride = x.strides[0];
  problem.x_dtype = x.dtype;
  check.tensor("w13", w13, {DType::int8, DType::float8_e4m3fn}, &x.device);
  check.rank("w13", w13, 3, "[experts, 2 * intermediate, hidden]");
  if (check.ok() && w13.sizes[2] != x.sizes[1])
    check.fail("w13 with as many columns as x (hidden = " + std::to_string(x.sizes[1]) + ")", layout_text(w13),
               "pass the weight as stored, [experts, 2 * intermediate, hidden], gate rows first");
  read_weights(check, "w13", w13, problem.w13);
  problem.weight_dtype = w13.dtype;
  check.tensor("w2", w2, {w13.dtype}, &x.device);
  check.rank("w2", w2, 3, "[experts, hidden, intermediate]");
  if (!check.ok()) return check.take();
  const std::int64_t experts = w13.sizes[0];
  if (w2.sizes[0] != experts || w2.sizes[1] != x.sizes[1] ||
      (w13.sizes[1] != w2.sizes[2] && w13.sizes[1] / 2 != w2.sizes[2]) ||
      (w13.sizes[1] != w2.sizes[2] && w13.sizes[1] % 2 != 0))
    check.fail("w2 of shape " + list_text({experts, x.sizes[1], w13.sizes[1] / 2}) + " (gated) or " +
                   list_text({experts, x.sizes[1], w13.sizes[1]}) + " (not gated)",
               layout_text(w2), "pass the weight as stored, [experts, hidden, intermediate]");
  read_weights(check, "w2", w2, problem.w2);
  problem.gated = check.ok() && w13.sizes[1] != w2.sizes[2];
  check.exact_sum(w13.dtype, std::max(problem.w13.k, problem.w2.k));
  read_weight_scale(check, "w13_scale", arguments.w13_scale, experts, w13.dtype, x.device, problem.w13);
  read_weight_scale(check, "w2_scale", arguments.w2_scale, experts, w13.dtype, x.device, problem.w2);

  const TensorView& weights = arguments.topk_weights;
  check.tensor("topk_weights", weights, {DType::float32}, &x.device);
  check.rank("topk_weights", weights, 2, "[tokens, top_k]");
  if (check.ok() && weights.sizes[0] != x.sizes[0])
    check.fail("topk_weights with a row for each row of x (" + std::to_string(x.sizes[0]) + ")", layout_text(weights),
               "pass one weight for each token and choice");
  if (!check.ok()) return check.take();
  problem.topk_weights = static_cast<const float*>(weights.data);
  problem.topk_weights_token_stride = weights.strides[0];
  problem.topk_weights_choice_stride = weights.strides[1];
  read_route(check, arguments.topk_ids, experts, arguments.expert_map, &x.device, problem.route);
  check_shape(check, "topk_ids", arguments.topk_ids, {weights.sizes[0], weights.sizes[1]}, "tokens, top_k");
  read_input_scale(check, "a1_scale", arguments.a1_scale, x.device, problem.w13);
  read_input_scale(check, "a2_scale", arguments.a2_scale, x.device, problem.w2);
  if (check.ok() && (arguments.activation < 0 || arguments.activation > 2))
    check.fail("activation 0 (silu), 1 (gelu) or 2 (relu squared)", std::to_string(arguments.activation),
               "choose one of them");
  if (check.ok() && arguments.apply_router_weight_on_input && weights.sizes[1] != 1)
    check.fail("top_k 1 with apply_router_weight_on_input", "top_k " + std::to_string(weights.sizes[1]),
               "apply the weights when combining (apply_router_weight_on_input=False)");
  if (!check.ok()) return check.take();
  problem.activation = static_cast<Activation>(arguments.activation);
  problem.weights_on_input = arguments.apply_router_weight_on_input;
  problem.fast_accumulation = arguments.fast_accumulation;
  problem.deterministic = arguments.deterministic;
  FusedMoeLayout layout;
  if (!fused_moe_layout(problem, TokensGo::through_the_workspace, layout))
    check.fail("a workspace of less than 2^63 bytes",
               "sizes " + list_text({problem.route.choices(), problem.w13.n, problem.w13.k}), "split the tokens");
  check_bytes(check, {problem.route.tokens, problem.hidden(), 4});
  return check.take();
}

Status validate(const MoeDataArguments& arguments, MoeDataProblem& problem) {
  Checker check(arguments.operator_name);
  problem = MoeDataProblem();
  problem.kind = arguments.kind;
  const bool route = arguments.kind == MoeDataKind::route, batched = arguments.kind == MoeDataKind::batched;
  const char* input_name = route ? "topk_ids" : batched ? "expert_num_tokens" : "expert_first_token_offset";
  const char* experts_name = route ? "num_experts" : "num_local_experts";
  const TensorView& input = route     ? arguments.topk_ids
                            : batched ? arguments.expert_num_tokens
                                      : arguments.expert_first_token_offset;
  check.tensor(input_name, input, {arguments.kind == MoeDataKind::sizes_from_offsets ? DType::int64 : DType::int32},
               nullptr);
  if (!check.ok()) return check.take();
  problem.device = input.device;
  problem.experts = arguments.num_experts;
  if (route) {
    check.rank(input_name, input, 2, "[tokens, top_k]");
    check_choices(check, input_name, input);
    if (!check.ok()) return check.take();
    problem.tokens = input.sizes[0];
    problem.top_k = input.sizes[1];
    problem.ids = static_cast<const std::int32_t*>(input.data);
    problem.ids_token_stride = input.strides[0];
    problem.ids_choice_stride = input.strides[1];
  } else if (!batched) {
    check.rank(input_name, input, 1, "[experts + 1]");
    if (check.ok() && input.sizes[0] < 1)
      check.fail("expert_first_token_offset of at least 1 element (experts + 1)", layout_text(input),
                 "pass [experts + 1]");
    if (!check.ok()) return check.take();
    problem.experts = input.sizes[0] - 1;
  }
  check_experts(check, experts_name, problem.experts, "pass the number of experts");
  const std::int64_t experts = check.ok() ? problem.experts : 0, choices = problem.tokens * problem.top_k;
  const std::int64_t counts[] = {arguments.n, arguments.k};
  for (int i = 0; i < 2; ++i) {
    const std::int64_t most = i == 0 ? kMostInt32 / 2 : kMostInt32;
    if (check.ok() && (counts[i] < 0 || counts[i] > most))
      check.fail(std::string(i == 0 ? "n" : "k") + " in [0, " + std::to_string(most) + "]", std::to_string(counts[i]),
                 "pass the sizes of the weights");
  }
  if (batched) {
    std::int64_t rows = 0;
    if (check.ok() &&
        (arguments.padded_m < 0 || __builtin_mul_overflow(experts, arguments.padded_m, &rows) || rows > kMostInt32))
      check.fail("padded_m with 0 <= num_local_experts * padded_m < 2^31", std::to_string(arguments.padded_m),
                 "pass the rows that each expert has room for");
    problem.padded_rows = arguments.padded_m;
    problem.input = read_indices(check, input_name, input, experts, "experts", true);
    problem.transposed = rows <= 64;
  } else if (route) {
    problem.transposed = !arguments.blockscale_offsets.given() && choices <= 64;
  } else {
    problem.input = read_indices(check, input_name, input, experts + 1, "experts + 1", false);
    problem.transposed = arguments.swap_ab;
  }
  if (!check.ok()) return check.take();
  const bool gated = !route || arguments.is_gated;
  problem.n = static_cast<std::int32_t>(arguments.n);
  problem.k = static_cast<std::int32_t>(arguments.k);
  problem.n1 = gated ? 2 * problem.n : problem.n;

  if (route)
    problem.expert_offsets =
        read_output(check, "expert_offsets", arguments.expert_offsets, experts + 1, "experts + 1", input.device);
  if (batched)
    problem.expert_offsets =
        read_output(check, "expert_offsets", arguments.expert_offsets, experts, "experts", input.device);
  problem.problem_sizes1 =
      read_output(check, "problem_sizes1", arguments.problem_sizes1, 3 * experts, "experts, 3", input.device);
  problem.problem_sizes2 =
      read_output(check, "problem_sizes2", arguments.problem_sizes2, 3 * experts, "experts, 3", input.device);
  if (route) {
    problem.input_permutation =
        read_output(check, "input_permutation", arguments.input_permutation, choices, "tokens * top_k", input.device);
    problem.output_permutation =
        read_output(check, "output_permutation", arguments.output_permutation, choices, "tokens * top_k", input.device);
    if (arguments.blockscale_offsets.given()) {
      problem.blockscale_offsets = read_output(check, "blockscale_offsets", arguments.blockscale_offsets, experts + 1,
                                               "experts + 1", input.device);
      if (check.ok() && choices + 127 * experts > kMostInt32)
        check.fail("blockscale_offsets below 2^31 (tokens * top_k + 127 * num_experts)",
                   list_text({problem.tokens, problem.top_k, experts}), "split the tokens");
    }
  }
  struct Named {
    const char* name;
    const TensorView* view;
  };
  const Named tensors[] = {{input_name, &input},
                           {"expert_offsets", &arguments.expert_offsets},
                           {"problem_sizes1", &arguments.problem_sizes1},
                           {"problem_sizes2", &arguments.problem_sizes2},
                           {"input_permutation", &arguments.input_permutation},
                           {"output_permutation", &arguments.output_permutation},
                           {"blockscale_offsets", &arguments.blockscale_offsets}};
  for (std::size_t i = 1; i < std::size(tensors); ++i)
    for (std::size_t j = 0; j < i; ++j)
      check.no_overlap(tensors[i].name, *tensors[i].view, tensors[j].name, *tensors[j].view);
  return check.take();
}

}  // namespace evergemm
