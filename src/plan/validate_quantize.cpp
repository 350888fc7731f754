// SPDX-License-Identifier: Apache-2.0
// QuantizeArguments -> QuantizeProblem and PermuteArguments -> PermuteProblem: the rules of every quantizer, of the drop-in
// group quantizers and of permute_cols, in signature order.
#include "evergemm/validate.h"
#include "plan/validate_rules.h"

namespace evergemm {

namespace {

using validation::as_rows;
using validation::ceil_divide;
using validation::Checker;
using validation::layout_text;
using validation::list_text;
using validation::numel;
using validation::Rows;
using validation::vector_stride;

bool is_dropin(QuantizeScheme scheme) {
  return scheme == QuantizeScheme::dropin_group || scheme == QuantizeScheme::dropin_group_packed;
}

// A tensor as [rows, columns] with contiguous rows; reports where its layout does not allow it.
Rows read_rows(Checker& check, const char* argument, const TensorView& view, bool distinct_rows) {
  if (!check.ok()) return {};
  const std::optional<Rows> rows = as_rows(view);
  if (!rows || rows->column_stride > 1 || (rows->columns > 1 && rows->column_stride != 1)) {
    check.fail(std::string(argument) + " whose rows are contiguous and evenly spaced", layout_text(view),
               "pass " + std::string(argument) + ".contiguous()");
    return {};
  }
  Rows result = *rows;
  if (result.rows <= 1) result.row_stride = result.columns;
  if (distinct_rows && result.rows > 1 && result.row_stride < result.columns)
    check.fail(std::string(argument) + " whose rows do not share elements", layout_text(view),
               "pass " + std::string(argument) + ".contiguous()");
  return result;
}

void check_same_shape(Checker& check, const char* argument, const TensorView& view, const TensorView& x,
                      const char* x_name, std::int64_t last) {
  if (!check.ok()) return;
  bool same = view.rank == x.rank;
  for (std::int32_t d = 0; same && d < x.rank; ++d) same = view.sizes[d] == (d + 1 == x.rank ? last : x.sizes[d]);
  if (!same)
    check.fail(std::string(argument) + " of the shape of " + x_name + " (last dimension " + std::to_string(last) + ")",
               layout_text(view), "allocate " + std::string(argument) + " with that shape");
}

// The output scale of `rows` x `groups` values: leading dimensions of x, or [rows], then groups.
void read_scale_output(Checker& check, const char* argument, const TensorView& view, std::int64_t rows,
                       std::int64_t groups, QuantizeProblem& problem) {
  if (!check.ok()) return;
  if (groups == 1) {  // one value a row: any evenly spaced vector of that many
    const std::optional<std::int64_t> stride = vector_stride(view);
    if (numel(view).value_or(-1) != rows || !stride) {
      check.fail(std::string(argument) + " of " + std::to_string(rows) + " evenly spaced elements", layout_text(view),
                 "allocate it as torch.empty(" + std::to_string(rows) + ", 1, dtype=torch.float32)");
      return;
    }
    problem.scale_row_stride = *stride;
    problem.scale_group_stride = 0;
  } else {
    const std::optional<Rows> layout = as_rows(view);
    if (view.rank < 1 || !layout || layout->rows != rows || layout->columns != groups) {
      check.fail(std::string(argument) + " of shape " + list_text({rows, groups}), layout_text(view),
                 "allocate it as torch.empty(" + std::to_string(rows) + ", " + std::to_string(groups) +
                     ", dtype=torch.float32)");
      return;
    }
    problem.scale_row_stride = layout->row_stride;
    problem.scale_group_stride = layout->column_stride;
  }
  problem.scale = const_cast<void*>(view.data);
}

// quantize_static: a scale of any mode, judged by shape.
void read_given_scale(Checker& check, const TensorView& view, QuantizeProblem& problem) {
  if (!check.ok()) return;
  const std::int64_t rows = problem.rows, columns = problem.columns;
  const std::int64_t k_blocks = ceil_divide(columns, kScaleBlock), row_blocks = ceil_divide(rows, kScaleBlock);
  problem.scale = const_cast<void*>(view.data);
  problem.scale_row_stride = problem.scale_group_stride = 0;
  problem.group_rows = rows;
  problem.group_columns = columns;
  if (numel(view).value_or(-1) == 1) return;
  if (view.rank == 1 ? view.sizes[0] == rows : view.rank == 2 && view.sizes[0] == rows && view.sizes[1] == 1) {
    problem.scale_row_stride = view.strides[0];
    problem.group_rows = 1;
    return;
  }
  const bool per_row_blocks = view.rank == 2 && view.sizes[0] == rows && view.sizes[1] == k_blocks;
  const bool square_blocks = view.rank == 2 && view.sizes[0] == row_blocks && view.sizes[1] == k_blocks;
  if (per_row_blocks || square_blocks) {
    problem.scale_row_stride = view.strides[0];
    problem.scale_group_stride = view.strides[1];
    problem.group_rows = per_row_blocks ? 1 : kScaleBlock;
    problem.group_columns = kScaleBlock;
    return;
  }
  check.fail("scale of 1 element (TensorWise), shape [" + std::to_string(rows) + "] or [" + std::to_string(rows) +
                 ", 1] (RowWise), " + list_text({rows, k_blocks}) + " (BlockWise1x128) or " +
                 list_text({row_blocks, k_blocks}) + " (BlockWise128x128)",
             layout_text(view), "pass a scale of one of these shapes");
}

void check_contiguous(Checker& check, const char* argument, const TensorView& view) {
  if (!check.ok()) return;
  std::int64_t expected = 1;
  bool contiguous = true;
  for (std::int32_t d = view.rank - 1; d >= 0; --d) {
    if (view.sizes[d] == 0) return;
    if (view.sizes[d] != 1 && view.strides[d] != expected) contiguous = false;
    if (__builtin_mul_overflow(expected, view.sizes[d], &expected)) {  // only a broadcast view is that large
      contiguous = false;
      break;
    }
  }
  if (!contiguous)
    check.fail(std::string(argument) + " contiguous", layout_text(view),
               "pass " + std::string(argument) + ".contiguous()");
}

void check_dropin(Checker& check, const QuantizeArguments& arguments, QuantizeProblem& problem) {
  const TensorView &x = arguments.x, &q = arguments.q, &scale = arguments.scale;
  const bool packed = arguments.scheme == QuantizeScheme::dropin_group_packed;
  const char* scale_name = packed ? "output_s_packed" : "output_s";
  check_contiguous(check, arguments.x_name, x);
  const Rows in = read_rows(check, arguments.x_name, x, false);
  problem.rows = in.rows;
  problem.columns = in.columns;
  problem.x_stride = in.row_stride;

  const bool int8 = arguments.q_dtype == DType::int8;
  check.tensor("output_q", q, {int8 ? DType::int8 : DType::float8_e4m3fn}, &x.device);
  check_contiguous(check, "output_q", q);
  const Rows out = read_rows(check, "output_q", q, true);
  const bool q_fits = packed ? out.columns == in.columns && out.rows >= in.rows : numel(q) == numel(x);
  if (check.ok() && !q_fits)
    check.fail("output_q of the shape of input", layout_text(q), "allocate it as torch.empty_like(input, dtype=...)");
  problem.q = const_cast<void*>(q.data);
  problem.q_stride = problem.columns;
  problem.q_rows = packed ? out.rows : problem.rows;

  const std::int64_t group = arguments.group_columns;
  if (check.ok() && (group < 1 || (problem.columns % group) != 0))
    check.fail("group_size that divides the last dimension of input (" + std::to_string(problem.columns) + ")",
               std::to_string(group), "choose a divisor, usually 128");
  if (!check.ok()) return;
  const std::int64_t groups = problem.columns / group;
  problem.group_columns = group;
  problem.q_dtype = q.dtype;
  if (!(arguments.q_min < arguments.q_max))
    return check.fail(int8 ? "int8_min < int8_max" : "fp8_min < fp8_max",
                      std::to_string(arguments.q_min) + " and " + std::to_string(arguments.q_max),
                      int8 ? "pass -128 and 127" : "pass -448 and 448");
  if (packed) {
    const std::int64_t words = ceil_divide(groups, 4);
    std::int64_t aligned = 0;
    if (__builtin_mul_overflow(ceil_divide(problem.rows, 4), std::int64_t{4}, &aligned))
      return check.fail("fewer than 2^63 - 3 rows", layout_text(x), "pass a smaller input");
    check.tensor(scale_name, scale, {DType::int32}, &x.device);
    check.rank(scale_name, scale, 2, "[rows, ceil(groups / 4)]");
    if (!check.ok()) return;
    const bool shape = scale.sizes[0] == problem.rows && scale.sizes[1] == words;
    const bool strides = (problem.rows <= 1 || scale.strides[0] == 1) && (words <= 1 || scale.strides[1] == aligned);
    if (!shape || !strides)
      return check.fail(std::string(scale_name) + " of shape " + list_text({problem.rows, words}) + " and strides " +
                            list_text({1, aligned}),
                        layout_text(scale), "allocate it as torch.empty_strided(shape, strides, dtype=torch.int32)");
    problem.scale = const_cast<void*>(scale.data);
    problem.scale_row_stride = 1;
    problem.packed_columns_stride = aligned;
  } else {
    check.tensor(scale_name, scale, {DType::float32}, &x.device);
    read_scale_output(check, scale_name, scale, problem.rows, groups, problem);
  }
  check.no_overlap("output_q", q, arguments.x_name, x);
  check.no_overlap(scale_name, scale, arguments.x_name, x);
  check.no_overlap(scale_name, scale, "output_q", q);
}

}  // namespace

Status validate(const QuantizeArguments& arguments, QuantizeProblem& problem) {
  Checker check(arguments.operator_name);
  problem = QuantizeProblem();
  const TensorView& x = arguments.x;
  const char* x_name = arguments.x_name;
  check.tensor(x_name, x, {DType::bfloat16, DType::float16, DType::float32}, nullptr);
  if (!check.ok()) return check.take();
  problem.scheme = arguments.scheme;
  problem.source = arguments.source;
  problem.device = x.device;
  problem.x = x.data;
  problem.x_dtype = x.dtype;
  problem.power_of_two_scales = arguments.power_of_two_scales;
  problem.gated = arguments.gated;
  problem.eps = static_cast<float>(arguments.eps);
  problem.q_min = static_cast<float>(arguments.q_min);
  problem.q_max = static_cast<float>(arguments.q_max);
  if (arguments.scheme != QuantizeScheme::per_tensor && x.rank < 1)
    check.fail(std::string(x_name) + " of rank 1 or more", "a scalar",
               "pass " + std::string(x_name) + ".reshape(1, -1)");
  if (arguments.scheme == QuantizeScheme::per_block) {
    if (arguments.group_rows != 1 || arguments.operator_name == std::string("quantize_per_block"))
      check.rank(x_name, x, 2, "[n, k]");
  }
  if (is_dropin(arguments.scheme)) {
    check_dropin(check, arguments, problem);
    return check.take();
  }

  const Rows in = read_rows(check, x_name, x, false);
  problem.rows = in.rows;
  problem.columns = in.columns;
  problem.x_stride = in.row_stride;

  if (arguments.source == QuantizeSource::rms_norm) {
    check.tensor("weight", arguments.weight, {x.dtype}, &x.device);
    if (check.ok() && !(arguments.weight.rank == 1 && arguments.weight.sizes[0] == problem.columns))
      check.fail("weight of shape [" + std::to_string(problem.columns) + "]", layout_text(arguments.weight),
                 "pass one value for each column of x");
    if (check.ok()) {
      problem.weight = arguments.weight.data;
      problem.weight_stride = problem.columns > 1 ? arguments.weight.strides[0] : 0;
    }
  }

  if (arguments.scheme == QuantizeScheme::with_given_scale) {
    check.tensor("scale", arguments.given_scale, {DType::float32}, &x.device);
    read_given_scale(check, arguments.given_scale, problem);
  }

  if (arguments.source == QuantizeSource::activation && check.ok()) {
    if (arguments.activation < 0 || arguments.activation > 2)
      check.fail("activation 0 (silu), 1 (gelu) or 2 (relu squared)", std::to_string(arguments.activation),
                 "choose one of them");
    else
      problem.activation = static_cast<Activation>(arguments.activation);
    if (arguments.gated) {
      if (check.ok() && problem.columns % 2 != 0)
        check.fail("an even last dimension of x (gate and up halves)", layout_text(x), "pass x with both halves");
      problem.columns /= 2;
    }
  }

  const std::int64_t group = arguments.group_columns;
  if (check.ok()) {
    const bool whole_row_allowed = arguments.source != QuantizeSource::copy;  // fused quantizers: 0 = per token
    if (arguments.scheme == QuantizeScheme::per_block) {
      if (arguments.group_rows < 1)
        check.fail("block_n of at least 1", std::to_string(arguments.group_rows), "pass 128");
      if (check.ok() && group < 1)
        check.fail(arguments.group_rows == 1
                       ? (whole_row_allowed ? "group_size of 0 (per token) or more" : "group_size of at least 1")
                       : "block_k of at least 1",
                   std::to_string(group), "pass 128");
    }
  }

  const DType q_dtype = arguments.q.given() ? arguments.q.dtype : arguments.q_dtype;
  if (check.ok() && !arguments.q.given() && q_dtype != DType::int8 && q_dtype != DType::float8_e4m3fn)
    check.fail("dtype int8 or float8_e4m3fn", name(q_dtype), "choose one of them");
  problem.q_dtype = q_dtype;

  if (arguments.scale_upper_bound.given()) {
    check.tensor("scale_upper_bound", arguments.scale_upper_bound, {DType::float32}, &x.device);
    if (check.ok() && numel(arguments.scale_upper_bound).value_or(-1) != 1)
      check.fail("scale_upper_bound of 1 element", layout_text(arguments.scale_upper_bound), "pass a scalar tensor");
    problem.scale_upper_bound = static_cast<const float*>(arguments.scale_upper_bound.data);
  }

  if (arguments.residual.given()) {
    check.tensor("residual", arguments.residual, {x.dtype}, &x.device);
    check_same_shape(check, "residual", arguments.residual, x, x_name, problem.columns);
    const Rows residual = read_rows(check, "residual", arguments.residual, true);
    problem.residual = const_cast<void*>(arguments.residual.data);
    problem.residual_stride = residual.row_stride;
    check.no_overlap("residual", arguments.residual, x_name, x);
    check.no_overlap("residual", arguments.residual, "weight", arguments.weight);
  }
  if (!check.ok()) return check.take();

  switch (arguments.scheme) {
    case QuantizeScheme::per_tensor:
      problem.group_rows = problem.rows;
      problem.group_columns = problem.columns;
      break;
    case QuantizeScheme::per_row:
    case QuantizeScheme::per_row_asymmetric:
      problem.group_columns = problem.columns;
      break;
    case QuantizeScheme::per_block:
      problem.group_rows = arguments.group_rows;
      problem.group_columns = group;
      break;
    default:
      break;  // with_given_scale: set by its scale
  }
  // Blocks count in whole ones from 1 up, so that no kernel divides by 0 on an empty problem.
  if (problem.group_rows < 1) problem.group_rows = 1;
  if (problem.group_columns < 1) problem.group_columns = 1;

  const std::int64_t row_groups = ceil_divide(problem.rows, problem.group_rows);
  const std::int64_t column_groups = ceil_divide(problem.columns, problem.group_columns);
  const bool one_value = arguments.scheme == QuantizeScheme::per_tensor;
  const bool scale_is_output = arguments.scheme != QuantizeScheme::with_given_scale;
  const bool per_row =
      arguments.scheme == QuantizeScheme::per_row || arguments.scheme == QuantizeScheme::per_row_asymmetric;
  problem.q_stride = problem.columns;
  problem.q_rows = problem.rows;
  if (scale_is_output) {  // a fresh contiguous result
    const std::int64_t groups = per_row ? 1 : column_groups;
    problem.scale_row_stride = one_value ? 0 : arguments.column_major_scales ? 1 : groups;
    problem.scale_group_stride = one_value || per_row ? 0 : arguments.column_major_scales ? row_groups : 1;
  }
  problem.azp_stride = 1;

  if (check.ok() && !arguments.q.given()) {  // results that the caller allocates; x may be huge with stride 0
    std::int64_t q_bytes = 0, scale_bytes = 0;
    if (__builtin_mul_overflow(problem.rows, problem.columns, &q_bytes) ||
        __builtin_mul_overflow(row_groups, per_row || one_value ? 1 : column_groups, &scale_bytes) ||
        __builtin_mul_overflow(scale_bytes, size_in_bytes(DType::float32), &scale_bytes))
      check.fail("results of less than 2^63 bytes", layout_text(x), std::string("split ") + x_name);
  }
  if (arguments.q.given()) {
    const bool asymmetric = arguments.scheme == QuantizeScheme::per_row_asymmetric;
    if (asymmetric)
      check.tensor("out_q", arguments.q, {DType::int8}, &x.device);
    else
      check.tensor("out_q", arguments.q, {DType::int8, DType::float8_e4m3fn}, &x.device);
    check_same_shape(check, "out_q", arguments.q, x, x_name, problem.columns);
    const Rows q = read_rows(check, "out_q", arguments.q, true);
    problem.q = const_cast<void*>(arguments.q.data);
    problem.q_stride = q.row_stride;
    if (scale_is_output) {
      check.tensor("out_scale", arguments.scale, {DType::float32}, &x.device);
      if (one_value) {
        if (check.ok() && numel(arguments.scale).value_or(-1) != 1)
          check.fail("out_scale of 1 element", layout_text(arguments.scale), "allocate it as torch.empty(1)");
        problem.scale = const_cast<void*>(arguments.scale.data);
      } else {
        read_scale_output(check, "out_scale", arguments.scale, row_groups, per_row ? 1 : column_groups, problem);
      }
    }
    if (asymmetric) {
      check.tensor("out_azp", arguments.azp, {DType::int32}, &x.device);
      const std::optional<std::int64_t> stride = check.ok() ? vector_stride(arguments.azp) : std::nullopt;
      if (check.ok() && (numel(arguments.azp).value_or(-1) != problem.rows || !stride))
        check.fail("out_azp of " + std::to_string(problem.rows) + " evenly spaced elements", layout_text(arguments.azp),
                   "allocate it as torch.empty(m, 1, dtype=torch.int32)");
      problem.azp = static_cast<std::int32_t*>(const_cast<void*>(arguments.azp.data));
      problem.azp_stride = stride.value_or(1);
    }
    struct Named {
      const char* name;
      const TensorView* view;
    };
    const Named outputs[] = {{"out_q", &arguments.q}, {"out_scale", &arguments.scale}, {"out_azp", &arguments.azp}};
    const Named inputs[] = {{x_name, &x},
                            {"weight", &arguments.weight},
                            {"scale", &arguments.given_scale},
                            {"scale_upper_bound", &arguments.scale_upper_bound},
                            {"residual", &arguments.residual}};
    for (const Named& output : outputs)
      for (const Named& input : inputs) check.no_overlap(output.name, *output.view, input.name, *input.view);
    check.no_overlap("out_scale", arguments.scale, "out_q", arguments.q);
    check.no_overlap("out_azp", arguments.azp, "out_q", arguments.q);
    check.no_overlap("out_azp", arguments.azp, "out_scale", arguments.scale);
  }
  return check.take();
}

Status validate(const PermuteArguments& arguments, PermuteProblem& problem) {
  Checker check(arguments.operator_name);
  problem = PermuteProblem();
  const TensorView &a = arguments.a, &perm = arguments.perm;
  check.tensor("A", a, {DType::float16, DType::bfloat16, DType::int16}, nullptr);
  if (check.ok() && a.rank < 1) check.fail("A of rank 1 or more", "a scalar", "pass a matrix");
  check_contiguous(check, "A", a);
  const Rows rows = read_rows(check, "A", a, false);
  check.tensor("perm", perm, {DType::int32}, &a.device);
  const std::optional<std::int64_t> stride = check.ok() ? vector_stride(perm) : std::nullopt;
  if (check.ok() && (numel(perm).value_or(-1) != rows.columns || !stride))
    check.fail("perm of " + std::to_string(rows.columns) + " elements (one for each column of A)", layout_text(perm),
               "pass a permutation of range(A.size(-1)) as int32");
  if (!check.ok()) return check.take();
  problem.rows = rows.rows;
  problem.columns = rows.columns;
  problem.a = static_cast<const std::uint16_t*>(a.data);
  problem.perm = static_cast<const std::int32_t*>(perm.data);
  problem.perm_stride = *stride;
  problem.device = a.device;
  return Status();
}

}  // namespace evergemm
