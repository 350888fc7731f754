// SPDX-License-Identifier: Apache-2.0
// ScaledMmArguments -> GemmProblem: the rules of scaled_mm, scaled_mm_azp and their drop-in forms, in signature order.
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

// What scale tensors a problem may have, by the letters of one operand.
struct ScaleShape {
  const char* argument;
  std::int64_t outer;         // m or n
  std::int64_t outer_blocks;  // m, or ceil(n / 128)
  std::int64_t k_blocks;      // ceil(k / 128)
  bool k_first;               // scale_b is [k blocks, n blocks]; scale_a is [m, k blocks]
};

// The shapes that a message lists; built only when it is needed.
std::string accepted_text(const ScaleShape& shape, bool by_numel, bool blocks_allowed) {
  const std::string outer = std::to_string(shape.outer);
  std::string row = outer + " elements";
  if (!by_numel) {
    row = "shape [" + outer + "]";
    row += shape.k_first ? ", [1, " + outer + "] or [" + outer + ", 1]" : " or [" + outer + ", 1]";
  }
  const std::string plain = "1 element (TensorWise)";
  if (!blocks_allowed) return plain + " or " + row + " (RowWise)";
  const std::string grid =
      shape.k_first ? list_text({shape.k_blocks, shape.outer_blocks}) : list_text({shape.outer_blocks, shape.k_blocks});
  return plain + ", " + row + " (RowWise) or shape " + grid +
         (shape.k_first ? " (BlockWise128x128)" : " (BlockWise1x128)");
}

bool is_vector_of(const TensorView& view, std::int64_t length, bool row_form_allowed) {
  if (view.rank == 1) return view.sizes[0] == length;
  if (view.rank != 2) return false;
  return (view.sizes[0] == length && view.sizes[1] == 1) ||
         (row_form_allowed && view.sizes[0] == 1 && view.sizes[1] == length);
}

bool is_block_grid(const TensorView& view, const ScaleShape& shape) {
  const std::int64_t rows = shape.k_first ? shape.k_blocks : shape.outer_blocks;
  const std::int64_t columns = shape.k_first ? shape.outer_blocks : shape.k_blocks;
  return view.rank == 2 && view.sizes[0] == rows && view.sizes[1] == columns;
}

// TensorWise or RowWise, by shape (section "Scale modes" of docs/scale_layouts.md) or, for drop-in operators, by numel.
bool read_plain_scale(const TensorView& view, const ScaleShape& shape, bool by_numel, Scale& scale) {
  const std::int64_t count = numel(view).value_or(-1);
  scale.data = static_cast<const float*>(view.data);
  scale.k_stride = 0;
  if (count == 1) {
    scale.mode = ScaleMode::TensorWise;
    scale.outer_stride = 0;
    return true;
  }
  const std::optional<std::int64_t> stride = vector_stride(view);
  if (by_numel ? count != shape.outer : !is_vector_of(view, shape.outer, shape.k_first)) return false;
  if (!stride) return false;
  scale.mode = ScaleMode::RowWise;
  scale.outer_stride = *stride;
  return true;
}

bool read_block_scale(const TensorView& view, const ScaleShape& shape, Scale& scale) {
  if (!is_block_grid(view, shape)) return false;
  const int outer_dimension = shape.k_first ? 1 : 0;
  scale.mode = shape.k_first ? ScaleMode::BlockWise128x128 : ScaleMode::BlockWise1x128;
  scale.data = static_cast<const float*>(view.data);
  scale.outer_stride = view.strides[outer_dimension];
  scale.k_stride = view.strides[1 - outer_dimension];
  return true;
}

void check_scales(Checker& check, const ScaledMmArguments& arguments, const ScaleShape& a, const ScaleShape& b,
                  GemmProblem& problem) {
  if (!check.ok()) return;
  Scale plain_a, plain_b, block_a, block_b;
  const bool blocks_allowed = problem.input_dtype == DType::float8_e4m3fn && !arguments.has_azp;
  const bool a_plain = read_plain_scale(arguments.scale_a, a, arguments.is_dropin, plain_a);
  const bool b_plain = read_plain_scale(arguments.scale_b, b, arguments.is_dropin, plain_b);
  const bool a_block = blocks_allowed && read_block_scale(arguments.scale_a, a, block_a);
  const bool b_block = blocks_allowed && read_block_scale(arguments.scale_b, b, block_b);
  // Where several modes fit, the products are equal in value and the order TensorWise, RowWise, blocks decides.
  if (a_plain && b_plain) {
    problem.scale_a = plain_a;
    problem.scale_b = plain_b;
    return;
  }
  if (a_block && b_block) {
    problem.scale_a = block_a;
    problem.scale_b = block_b;
    return;
  }
  const bool a_fits = a_plain || a_block;
  const ScaleShape& wrong = a_fits ? b : a;
  const TensorView& view = a_fits ? arguments.scale_b : arguments.scale_a;
  const bool fits_alone = a_fits ? (b_plain || b_block) : false;
  if (fits_alone) {
    return check.fail(std::string(a.argument) + " and " + b.argument + " both in blocks, or both TensorWise or RowWise",
                      std::string(a.argument) + " of shape " + shape_text(arguments.scale_a) + " with " + b.argument +
                          " of shape " + shape_text(arguments.scale_b),
                      "pass block scales for both operands or for none");
  }
  std::string fix = "pass a scale of one of these shapes";
  if (!blocks_allowed) fix += " (block scales are for float8_e4m3fn operands without zero points)";
  check.fail(std::string(wrong.argument) + " of " + accepted_text(wrong, arguments.is_dropin, blocks_allowed),
             layout_text(view), fix);
}

// A vector argument of `length`: [length] in the operators of this library, any rank of that numel in the drop-in ones.
std::int64_t check_vector(Checker& check, const char* argument, const TensorView& view, std::int64_t length,
                          const char* letter, bool any_rank) {
  if (!check.ok()) return 0;
  const bool shape_fits = any_rank ? numel(view).value_or(-1) == length : view.rank == 1 && view.sizes[0] == length;
  const std::optional<std::int64_t> stride = vector_stride(view);
  if (!shape_fits || !stride) {
    const std::string wanted = any_rank ? std::to_string(length) + " evenly spaced elements (" + letter + ")"
                                        : "shape [" + std::to_string(length) + "] ([" + letter + "])";
    check.fail(std::string(argument) + " of " + wanted, layout_text(view),
               "pass a vector with one value for each of the " + std::to_string(length) +
                   (letter[0] == 'm' ? " rows of a" : " columns of b"));
    return 0;
  }
  return *stride;
}

}  // namespace

Status validate(const ScaledMmArguments& arguments, GemmProblem& problem) {
  Checker check(arguments.operator_name);
  problem = GemmProblem();
  const bool dropin = arguments.is_dropin;
  const char* scale_a_name = dropin ? "a_scales" : "scale_a";
  const char* scale_b_name = dropin ? "b_scales" : "scale_b";
  const TensorView &a = arguments.a, &b = arguments.b, &out = arguments.out;

  if (arguments.has_azp)
    check.tensor("a", a, {DType::int8}, nullptr);
  else
    check.tensor("a", a, {DType::int8, DType::float8_e4m3fn}, nullptr);
  check.rank("a", a, 2, "[m, k]");
  if (!check.ok()) return check.take();
  problem.device = a.device;
  problem.input_dtype = a.dtype;
  problem.m = a.sizes[0];
  problem.k = a.sizes[1];
  if (problem.m > 0 && problem.k > 1 && a.strides[1] != 1)  // an empty tensor's strides say nothing
    check.fail("a row-major (stride(1) == 1)", layout_text(a), "pass a.contiguous()");
  problem.a = a.data;
  problem.a_stride = problem.m > 1 ? a.strides[0] : problem.k;
  check.exact_sum(a.dtype, problem.k);

  check.tensor("b", b, {a.dtype}, &a.device);
  check.rank("b", b, 2, "[k, n]");
  if (!check.ok()) return check.take();
  problem.n = b.sizes[1];
  if (b.sizes[0] != problem.k)
    check.fail("b with as many rows as a has columns (k = " + std::to_string(problem.k) + ")", layout_text(b),
               "pass weight.t() of an [n, k] weight with the same k as a");
  if (check.ok() && problem.n > 0 && problem.k > 1 && b.strides[0] != 1)
    check.fail("b column-major (stride(0) == 1)", layout_text(b), "pass weight.t() of a contiguous [n, k] weight");
  problem.b = b.data;
  problem.b_stride = problem.n > 1 ? b.strides[1] : problem.k;

  const std::int64_t k_blocks = ceil_divide(problem.k, kScaleBlock), n_blocks = ceil_divide(problem.n, kScaleBlock);
  check.tensor(scale_a_name, arguments.scale_a, {DType::float32}, &a.device);
  check.tensor(scale_b_name, arguments.scale_b, {DType::float32}, &a.device);
  check_scales(check, arguments, {scale_a_name, problem.m, problem.m, k_blocks, false},
               {scale_b_name, problem.n, n_blocks, k_blocks, true}, problem);

  if (arguments.has_azp) {
    problem.has_azp = true;
    check.tensor("azp_adj", arguments.azp_adj, {DType::int32}, &a.device);
    problem.azp_adj_stride = check_vector(check, "azp_adj", arguments.azp_adj, problem.n, "n", dropin);
    problem.azp_adj = static_cast<const std::int32_t*>(arguments.azp_adj.data);
    if (arguments.azp.given()) {
      check.tensor("azp", arguments.azp, {DType::int32}, &a.device);
      problem.azp_stride = check_vector(check, "azp", arguments.azp, problem.m, "m", true);
      problem.azp = static_cast<const std::int32_t*>(arguments.azp.data);
    }
  }

  const DType output_dtype = out.given() ? out.dtype : arguments.out_dtype;
  if (arguments.bias.given()) {
    check.tensor("bias", arguments.bias, {output_dtype}, &a.device);
    problem.bias_stride = check_vector(check, "bias", arguments.bias, problem.n, "n", dropin);
    problem.bias = arguments.bias.data;
  }

  const bool sixteen_bit = output_dtype == DType::bfloat16 || output_dtype == DType::float16;
  if (check.ok() && !out.given() && !sixteen_bit && output_dtype != DType::float32)
    check.fail("out_dtype bfloat16, float16 or float32", name(output_dtype), "choose one of them");
  problem.output_dtype = output_dtype;
  problem.out_stride = problem.n;
  if (out.given()) {
    if (dropin)
      check.tensor("out", out, {DType::bfloat16, DType::float16}, &a.device);
    else
      check.tensor("out", out, {DType::bfloat16, DType::float16, DType::float32}, &a.device);
    check.rank("out", out, 2, "[m, n]");
    if (check.ok() && (out.sizes[0] != problem.m || out.sizes[1] != problem.n))
      check.fail("out of shape " + list_text({problem.m, problem.n}), layout_text(out),
                 "allocate out as torch.empty(m, n)");
    if (check.ok() && problem.m > 0 && problem.n > 1 && out.strides[1] != 1)
      check.fail("out row-major (stride(1) == 1)", layout_text(out), "allocate out as torch.empty(m, n)");
    if (check.ok() && problem.m > 1 && problem.n > 0 && out.strides[0] < problem.n)
      check.fail("out whose rows do not share elements (stride(0) >= " + std::to_string(problem.n) + ")",
                 layout_text(out), "allocate out as torch.empty(m, n)");
    if (check.ok()) {
      problem.out = const_cast<void*>(out.data);
      problem.out_stride = problem.m > 1 ? out.strides[0] : problem.n;
    }
    check.no_overlap("out", out, "a", a);
    check.no_overlap("out", out, "b", b);
    check.no_overlap("out", out, scale_a_name, arguments.scale_a);
    check.no_overlap("out", out, scale_b_name, arguments.scale_b);
    check.no_overlap("out", out, "azp_adj", arguments.azp_adj);
    check.no_overlap("out", out, "azp", arguments.azp);
    check.no_overlap("out", out, "bias", arguments.bias);
  } else if (check.ok()) {
    std::int64_t bytes = 0;
    if (__builtin_mul_overflow(problem.m, problem.n, &bytes) ||
        __builtin_mul_overflow(bytes, size_in_bytes(output_dtype), &bytes))
      check.fail("an output of less than 2^63 bytes",
                 "m = " + std::to_string(problem.m) + ", n = " + std::to_string(problem.n), "split m or n");
  }
  problem.fast_accumulation = arguments.fast_accumulation;
  problem.deterministic = arguments.deterministic;
  return check.take();
}

}  // namespace evergemm
