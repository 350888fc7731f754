// SPDX-License-Identifier: Apache-2.0
// LinearArguments -> LinearProblem: the rules of quantized_linear, in signature order.
#include "evergemm/validate.h"
#include "plan/validate_rules.h"

namespace evergemm {

namespace {

using validation::ceil_divide;
using validation::Checker;
using validation::layout_text;
using validation::list_text;
using validation::numel;
using validation::vector_stride;

void check_weight(Checker& check, const TensorView& x, const TensorView& weight, GemmProblem& product) {
  check.tensor("weight", weight, {DType::int8, DType::float8_e4m3fn}, &x.device);
  check.rank("weight", weight, 2, "[n, k]");
  if (!check.ok()) return;
  product.k = x.sizes[x.rank - 1];
  product.n = weight.sizes[0];
  product.input_dtype = weight.dtype;
  if (weight.sizes[1] != product.k)
    check.fail("weight with as many columns as x has features (k = " + std::to_string(product.k) + ")",
               layout_text(weight), "pass an [n, k] weight with the k of x");
  if (check.ok() && product.n > 0 && product.k > 1 && weight.strides[1] != 1)
    check.fail("weight row-major (stride(1) == 1)", layout_text(weight), "pass weight.contiguous()");
  check.exact_sum(weight.dtype, product.k);
  product.b = weight.data;
  product.b_stride = product.n > 1 ? weight.strides[0] : product.k;
}

// 1 element, one for each row of weight, or one for each 128 x 128 of it, as weights are stored.
void read_weight_scale(Checker& check, const LinearArguments& arguments, GemmProblem& product) {
  const TensorView& view = arguments.weight_scale;
  check.tensor("weight_scale", view, {DType::float32}, &arguments.x.device);
  if (!check.ok()) return;
  const std::int64_t n = product.n;
  Scale& scale = product.scale_b;
  scale.data = static_cast<const float*>(view.data);
  if (numel(view) == 1) return;
  const bool a_vector =
      view.rank == 1 ? view.sizes[0] == n : view.rank == 2 && view.sizes[0] == n && view.sizes[1] == 1;
  if (a_vector) {
    scale.mode = ScaleMode::RowWise;
    scale.outer_stride = view.strides[0];
    return;
  }
  const std::int64_t n_blocks = ceil_divide(n, kScaleBlock), k_blocks = ceil_divide(product.k, kScaleBlock);
  const bool blocks_allowed = product.input_dtype == DType::float8_e4m3fn && !arguments.input_scale.given();
  if (blocks_allowed && view.rank == 2 && view.sizes[0] == n_blocks && view.sizes[1] == k_blocks) {
    scale.mode = ScaleMode::BlockWise128x128;
    scale.outer_stride = view.strides[0];
    scale.k_stride = view.strides[1];
    product.scale_a.mode = ScaleMode::BlockWise1x128;
    return;
  }
  check.fail("weight_scale of 1 element, shape [" + std::to_string(n) + "] or [" + std::to_string(n) + ", 1]" +
                 (blocks_allowed ? " or " + list_text({n_blocks, k_blocks}) + " (blocks of 128 x 128)" : ""),
             layout_text(view),
             blocks_allowed ? "pass a scale of one of these shapes"
                            : "pass a scale of one of these shapes (blocks are for float8_e4m3fn without input_scale)");
}

void check_vector(Checker& check, const char* argument, const TensorView& view, std::int64_t n) {
  if (check.ok() && (view.rank != 1 || view.sizes[0] != n))
    check.fail(std::string(argument) + " of shape [" + std::to_string(n) + "] ([n])", layout_text(view),
               "pass a vector with one value for each of the " + std::to_string(n) + " rows of weight");
}

}  // namespace

Status validate(const LinearArguments& arguments, LinearProblem& problem) {
  Checker check(arguments.operator_name);
  problem = LinearProblem();
  GemmProblem& product = problem.product;
  const TensorView& x = arguments.x;
  check.tensor("x", x, {DType::bfloat16, DType::float16, DType::float32}, nullptr);
  if (check.ok() && x.rank < 1) check.fail("x of rank 1 or more ([..., k])", layout_text(x), "pass rows of features");
  if (!check.ok()) return check.take();
  problem.device = product.device = x.device;
  product.output_dtype = x.dtype;
  check_weight(check, x, arguments.weight, product);
  read_weight_scale(check, arguments, product);

  QuantizeArguments quantize;
  quantize.operator_name = arguments.operator_name;
  quantize.x = x;
  quantize.q_dtype = product.input_dtype;
  quantize.scheme = QuantizeScheme::per_row;
  if (product.blockwise()) {
    quantize.scheme = QuantizeScheme::per_block;
    quantize.group_columns = kScaleBlock;
    quantize.column_major_scales = true;
  }
  if (arguments.input_scale.given()) {
    check.tensor("input_scale", arguments.input_scale, {DType::float32}, &x.device);
    if (check.ok() && numel(arguments.input_scale) != 1)
      check.fail("input_scale of 1 element", layout_text(arguments.input_scale),
                 "pass one scale, or none to quantize x dynamically");
    quantize.scheme = QuantizeScheme::with_given_scale;
    quantize.given_scale = arguments.input_scale;
  }
  if (arguments.azp_adj.given()) {
    check.tensor("azp_adj", arguments.azp_adj, {DType::int32}, &x.device);
    check_vector(check, "azp_adj", arguments.azp_adj, product.n);
    if (check.ok() && (product.input_dtype != DType::int8 || arguments.input_scale.given()))
      check.fail("azp_adj only with an int8 weight and no input_scale",
                 std::string("a weight of ") + name(product.input_dtype) +
                     (arguments.input_scale.given() ? " with input_scale" : ""),
                 "leave azp_adj away");
    quantize.scheme = QuantizeScheme::per_row_asymmetric;
    product.has_azp = true;
    product.azp_adj = static_cast<const std::int32_t*>(arguments.azp_adj.data);
    product.azp_adj_stride = check.ok() ? arguments.azp_adj.strides[0] : 0;
  }
  if (arguments.bias.given()) {
    check.tensor("bias", arguments.bias, {x.dtype}, &x.device);
    check_vector(check, "bias", arguments.bias, product.n);
    product.bias = arguments.bias.data;
    product.bias_stride = check.ok() ? arguments.bias.strides[0] : 0;
  }
  if (!check.ok()) return check.take();

  Status status = validate(quantize, problem.quantize);
  if (!status.ok()) return status;
  product.m = problem.quantize.rows;
  product.out_stride = product.n;
  product.fast_accumulation = arguments.fast_accumulation;
  product.deterministic = arguments.deterministic;
  if (quantize.scheme == QuantizeScheme::with_given_scale)
    product.scale_a.data = static_cast<const float*>(arguments.input_scale.data);
  else if (!product.blockwise())
    product.scale_a.mode = ScaleMode::RowWise;

  // Bytes of the result, and of q with its scales and zero points (place()), which are less than 2 k + 1024 a token.
  std::int64_t result = 0, workspace = 0, wide = 0;
  if (__builtin_mul_overflow(product.m, product.n, &result) ||
      __builtin_mul_overflow(result, size_in_bytes(product.output_dtype), &result) ||
      __builtin_mul_overflow(product.k, std::int64_t{2}, &wide) ||
      __builtin_add_overflow(wide, std::int64_t{1024}, &wide) ||
      __builtin_add_overflow(product.m, std::int64_t{4}, &workspace) ||
      __builtin_mul_overflow(workspace, wide, &workspace))
    check.fail("x and a result of less than 2^62 bytes",
               "m = " + std::to_string(product.m) + ", n = " + std::to_string(product.n) +
                   ", k = " + std::to_string(product.k),
               "split m or n");
  return check.take();
}

}  // namespace evergemm
