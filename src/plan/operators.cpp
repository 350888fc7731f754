// SPDX-License-Identifier: Apache-2.0
// The table of operators: schema arguments in order -> ...Arguments -> validate -> Problem and outputs to allocate.
#include "plan/operators.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "evergemm/validate.h"
#include "plan/operator_reader.h"
#include "plan/operators_moe.h"
#include "plan/validate_rules.h"

namespace evergemm {

namespace {

using operators::add_output;
using operators::Arguments;
using operators::BaseName;
using operators::contiguous_strides;
using operators::has_out;
using operators::Reader;
using validation::ceil_divide;

// x's leading dimensions, then `last`.
void add_like(Prepared& prepared, const TensorView& x, DType dtype, std::int64_t last) {
  OutputSpec& output = add_output(prepared, dtype, x.device, x.rank);
  for (std::int32_t d = 0; d < x.rank; ++d) output.sizes[d] = d + 1 == x.rank ? last : x.sizes[d];
  contiguous_strides(output);
}

// ---- GEMM ------------------------------------------------------------------------------------------------------

Status prepare_gemm(const Operator& self, ScaledMmArguments& arguments, Prepared& prepared) {
  const BaseName base(self.name);
  arguments.operator_name = base.text;
  GemmProblem& problem = prepared.problem.emplace<GemmProblem>();
  Status status = validate(arguments, problem);
  if (!status.ok() || arguments.out.given()) return status;
  OutputSpec& out = add_output(prepared, problem.output_dtype, problem.device, 2);
  out.sizes[0] = problem.m;
  out.sizes[1] = problem.n;
  contiguous_strides(out);
  return status;
}

Status prepare_scaled_mm(const Operator& self, Arguments values, Prepared& prepared) {
  Status status = Reader::check(self, values, has_out(self) ? "tttttbbt" : "tttttdbb");
  if (!status.ok()) return status;
  Reader read(values);
  ScaledMmArguments arguments;
  arguments.a = read.tensor();
  arguments.b = read.tensor();
  arguments.scale_a = read.tensor();
  arguments.scale_b = read.tensor();
  arguments.bias = read.tensor();
  if (!has_out(self)) arguments.out_dtype = read.dtype();
  arguments.fast_accumulation = read.boolean();
  arguments.deterministic = read.boolean();
  if (has_out(self)) arguments.out = read.tensor();
  return prepare_gemm(self, arguments, prepared);
}

Status prepare_scaled_mm_azp(const Operator& self, Arguments values, Prepared& prepared) {
  Status status = Reader::check(self, values, has_out(self) ? "tttttttt" : "tttttttd");
  if (!status.ok()) return status;
  Reader read(values);
  ScaledMmArguments arguments;
  arguments.has_azp = true;
  arguments.a = read.tensor();
  arguments.b = read.tensor();
  arguments.scale_a = read.tensor();
  arguments.scale_b = read.tensor();
  arguments.azp_adj = read.tensor();
  arguments.azp = read.tensor();
  arguments.bias = read.tensor();
  if (has_out(self))
    arguments.out = read.tensor();
  else
    arguments.out_dtype = read.dtype();
  return prepare_gemm(self, arguments, prepared);
}

Status prepare_scaled_mm_row(const Operator& self, Arguments values, Prepared& prepared) {
  Status status = Reader::check(self, values, "tttttttdbbib");
  if (!status.ok()) return status;
  Reader read(values);
  ScaledMmArguments arguments;
  arguments.a = read.tensor();
  arguments.b = read.tensor();
  arguments.scale_a = read.tensor();
  arguments.scale_b = read.tensor();
  arguments.azp_adj = read.tensor();
  arguments.azp = read.tensor();
  arguments.bias = read.tensor();
  arguments.has_azp = arguments.azp_adj.given();
  arguments.out_dtype = read.dtype();
  arguments.fast_accumulation = read.boolean();
  arguments.deterministic = read.boolean();
  prepared.row = static_cast<std::int32_t>(std::clamp<std::int64_t>(read.integer(), -1, INT32_MAX));
  if (prepared.row < 0)
    return validation::violation(self.name, "row of at least 0", "a negative number", "choose a row of the table");
  prepared.overlap = read.boolean();
  return prepare_gemm(self, arguments, prepared);
}

Status prepare_cutlass_scaled_mm(const Operator& self, Arguments values, Prepared& prepared) {
  const bool azp = std::strcmp(self.name, "cutlass_scaled_mm_azp") == 0;
  Status status = Reader::check(self, values, azp ? "tttttttt" : "tttttt");
  if (!status.ok()) return status;
  Reader read(values);
  ScaledMmArguments arguments;
  arguments.is_dropin = true;
  arguments.has_azp = azp;
  arguments.out = read.tensor();
  arguments.a = read.tensor();
  arguments.b = read.tensor();
  arguments.scale_a = read.tensor();
  arguments.scale_b = read.tensor();
  if (azp) {
    arguments.azp_adj = read.tensor();
    arguments.azp = read.tensor();
  }
  arguments.bias = read.tensor();
  return prepare_gemm(self, arguments, prepared);
}

// ---- quantizers ------------------------------------------------------------------------------------------------

Status prepare_quantize(const Operator& self, QuantizeArguments& arguments, Prepared& prepared) {
  const BaseName base(self.name);
  arguments.operator_name = base.text;
  QuantizeProblem& problem = prepared.problem.emplace<QuantizeProblem>();
  Status status = validate(arguments, problem);
  if (!status.ok() || arguments.q.given()) return status;
  const TensorView& x = arguments.x;
  add_like(prepared, x, problem.q_dtype, x.rank == 0 ? 1 : problem.columns);
  switch (arguments.scheme) {
    case QuantizeScheme::per_tensor: {
      OutputSpec& scale = add_output(prepared, DType::float32, x.device, 1);
      scale.sizes[0] = 1;
      contiguous_strides(scale);
      break;
    }
    case QuantizeScheme::per_row:
      add_like(prepared, x, DType::float32, 1);
      break;
    case QuantizeScheme::per_row_asymmetric:
      add_like(prepared, x, DType::float32, 1);
      add_like(prepared, x, DType::int32, 1);
      break;
    case QuantizeScheme::per_block: {
      add_like(prepared, x, DType::float32, ceil_divide(problem.columns, problem.group_columns));
      OutputSpec& scale = prepared.outputs[prepared.output_count - 1];
      if (problem.group_rows > 1) scale.sizes[0] = ceil_divide(problem.rows, problem.group_rows);
      contiguous_strides(scale);
      if (arguments.column_major_scales) {  // rows run fastest; leading dimensions stay merged in order
        const std::int64_t groups = scale.sizes[scale.rank - 1];
        for (std::int32_t d = 0; d + 1 < scale.rank; ++d) scale.strides[d] /= groups > 0 ? groups : 1;
        scale.strides[scale.rank - 1] = problem.rows > 0 ? problem.rows : 1;
      }
      break;
    }
    default:
      break;  // with_given_scale has no scale output
  }
  return status;
}

void read_outputs(const Operator& self, Reader& read, QuantizeArguments& arguments, int scale_outputs) {
  if (!has_out(self)) return;
  arguments.q = read.tensor();
  if (scale_outputs > 0) arguments.scale = read.tensor();
  if (scale_outputs > 1) arguments.azp = read.tensor();
}

Status prepare_quantize_per_tensor(const Operator& self, Arguments values, Prepared& prepared) {
  Status status = Reader::check(self, values, has_out(self) ? "ttt" : "td");
  if (!status.ok()) return status;
  Reader read(values);
  QuantizeArguments arguments;
  arguments.x = read.tensor();
  if (!has_out(self)) arguments.q_dtype = read.dtype();
  read_outputs(self, read, arguments, 1);
  return prepare_quantize(self, arguments, prepared);
}

Status prepare_quantize_static(const Operator& self, Arguments values, Prepared& prepared) {
  Status status = Reader::check(self, values, has_out(self) ? "ttt" : "ttd");
  if (!status.ok()) return status;
  Reader read(values);
  QuantizeArguments arguments;
  arguments.scheme = QuantizeScheme::with_given_scale;
  arguments.x = read.tensor();
  arguments.given_scale = read.tensor();
  if (!has_out(self)) arguments.q_dtype = read.dtype();
  read_outputs(self, read, arguments, 0);
  return prepare_quantize(self, arguments, prepared);
}

Status prepare_quantize_per_token(const Operator& self, Arguments values, Prepared& prepared) {
  Status status = Reader::check(self, values, has_out(self) ? "tttt" : "tdt");
  if (!status.ok()) return status;
  Reader read(values);
  QuantizeArguments arguments;
  arguments.scheme = QuantizeScheme::per_row;
  arguments.x = read.tensor();
  if (!has_out(self)) arguments.q_dtype = read.dtype();
  arguments.scale_upper_bound = read.tensor();
  read_outputs(self, read, arguments, 1);
  return prepare_quantize(self, arguments, prepared);
}

Status prepare_quantize_per_token_asymmetric(const Operator& self, Arguments values, Prepared& prepared) {
  Status status = Reader::check(self, values, has_out(self) ? "tttt" : "t");
  if (!status.ok()) return status;
  Reader read(values);
  QuantizeArguments arguments;
  arguments.scheme = QuantizeScheme::per_row_asymmetric;
  arguments.x = read.tensor();
  read_outputs(self, read, arguments, 2);
  return prepare_quantize(self, arguments, prepared);
}

Status prepare_quantize_per_group(const Operator& self, Arguments values, Prepared& prepared) {
  Status status = Reader::check(self, values, has_out(self) ? "tibbtt" : "tidbb");
  if (!status.ok()) return status;
  Reader read(values);
  QuantizeArguments arguments;
  arguments.scheme = QuantizeScheme::per_block;
  arguments.x = read.tensor();
  arguments.group_columns = read.integer();
  if (!has_out(self)) arguments.q_dtype = read.dtype();
  arguments.column_major_scales = read.boolean();
  arguments.power_of_two_scales = read.boolean();
  read_outputs(self, read, arguments, 1);
  return prepare_quantize(self, arguments, prepared);
}

Status prepare_quantize_per_block(const Operator& self, Arguments values, Prepared& prepared) {
  Status status = Reader::check(self, values, has_out(self) ? "tiitt" : "tiid");
  if (!status.ok()) return status;
  Reader read(values);
  QuantizeArguments arguments;
  arguments.scheme = QuantizeScheme::per_block;
  arguments.x_name = "w";
  arguments.x = read.tensor();
  arguments.group_rows = read.integer();
  arguments.group_columns = read.integer();
  if (!has_out(self)) arguments.q_dtype = read.dtype();
  read_outputs(self, read, arguments, 1);
  return prepare_quantize(self, arguments, prepared);
}

// group_size 0 is one scale a row; any other is groups of that many columns.
void set_group(QuantizeArguments& arguments, std::int64_t group_size) {
  arguments.group_columns = group_size;
  arguments.scheme = group_size == 0 ? QuantizeScheme::per_row : QuantizeScheme::per_block;
}

Status prepare_activate_and_quantize(const Operator& self, Arguments values, Prepared& prepared) {
  Status status = Reader::check(self, values, has_out(self) ? "tibitt" : "tibid");
  if (!status.ok()) return status;
  Reader read(values);
  QuantizeArguments arguments;
  arguments.source = QuantizeSource::activation;
  arguments.x = read.tensor();
  arguments.activation = read.integer();
  arguments.gated = read.boolean();
  set_group(arguments, read.integer());
  if (!has_out(self)) arguments.q_dtype = read.dtype();
  read_outputs(self, read, arguments, 1);
  return prepare_quantize(self, arguments, prepared);
}

Status prepare_rms_norm_quantize(const Operator& self, Arguments values, Prepared& prepared) {
  Status status = Reader::check(self, values, has_out(self) ? "ttfittt" : "ttfidt");
  if (!status.ok()) return status;
  Reader read(values);
  QuantizeArguments arguments;
  arguments.source = QuantizeSource::rms_norm;
  arguments.x = read.tensor();
  arguments.weight = read.tensor();
  arguments.eps = read.real();
  set_group(arguments, read.integer());
  if (!has_out(self)) arguments.q_dtype = read.dtype();
  arguments.residual = read.tensor();
  read_outputs(self, read, arguments, 1);
  return prepare_quantize(self, arguments, prepared);
}

Status prepare_per_token_group(const Operator& self, Arguments values, Prepared& prepared) {
  const bool packed = std::strcmp(self.name, "per_token_group_fp8_quant_packed") == 0;
  const bool int8 = std::strcmp(self.name, "per_token_group_quant_int8") == 0;
  Status status = Reader::check(self, values, packed || int8 ? "tttifff" : "tttifffbbb");
  if (!status.ok()) return status;
  Reader read(values);
  QuantizeArguments arguments;
  arguments.scheme = packed ? QuantizeScheme::dropin_group_packed : QuantizeScheme::dropin_group;
  arguments.x_name = "input";
  arguments.x = read.tensor();
  arguments.q = read.tensor();
  arguments.scale = read.tensor();
  arguments.group_columns = read.integer();
  arguments.eps = read.real();
  arguments.q_min = read.real();
  arguments.q_max = read.real();
  arguments.power_of_two_scales = packed || (!int8 && read.boolean());
  arguments.q_dtype = int8 ? DType::int8 : DType::float8_e4m3fn;
  return prepare_quantize(self, arguments, prepared);
}

Status prepare_quantized_linear(const Operator& self, Arguments values, Prepared& prepared) {
  Status status = Reader::check(self, values, "ttttttbb");
  if (!status.ok()) return status;
  Reader read(values);
  LinearArguments arguments;
  arguments.operator_name = self.name;
  for (TensorView* view : {&arguments.x, &arguments.weight, &arguments.weight_scale, &arguments.input_scale,
                           &arguments.azp_adj, &arguments.bias})
    *view = read.tensor();
  arguments.fast_accumulation = read.boolean();
  arguments.deterministic = read.boolean();
  LinearProblem& problem = prepared.problem.emplace<LinearProblem>();
  status = validate(arguments, problem);
  if (!status.ok()) return status;
  add_like(prepared, arguments.x, arguments.x.dtype, problem.product.n);
  return status;
}

Status prepare_permute_cols(const Operator& self, Arguments values, Prepared& prepared) {
  Status status = Reader::check(self, values, "tt");
  if (!status.ok()) return status;
  Reader read(values);
  PermuteArguments arguments;
  arguments.operator_name = self.name;
  arguments.a = read.tensor();
  arguments.perm = read.tensor();
  PermuteProblem& problem = prepared.problem.emplace<PermuteProblem>();
  status = validate(arguments, problem);
  if (!status.ok()) return status;
  add_like(prepared, arguments.a, arguments.a.dtype, problem.columns);
  return status;
}

constexpr std::array kOperators = {
    Operator{"scaled_mm", prepare_scaled_mm},
    Operator{"scaled_mm.out", prepare_scaled_mm},
    Operator{"scaled_mm_azp", prepare_scaled_mm_azp},
    Operator{"scaled_mm_azp.out", prepare_scaled_mm_azp},
    Operator{"_scaled_mm_row", prepare_scaled_mm_row},
    Operator{"quantize_per_tensor", prepare_quantize_per_tensor},
    Operator{"quantize_per_tensor.out", prepare_quantize_per_tensor},
    Operator{"quantize_static", prepare_quantize_static},
    Operator{"quantize_static.out", prepare_quantize_static},
    Operator{"quantize_per_token", prepare_quantize_per_token},
    Operator{"quantize_per_token.out", prepare_quantize_per_token},
    Operator{"quantize_per_token_asymmetric", prepare_quantize_per_token_asymmetric},
    Operator{"quantize_per_token_asymmetric.out", prepare_quantize_per_token_asymmetric},
    Operator{"quantize_per_group", prepare_quantize_per_group},
    Operator{"quantize_per_group.out", prepare_quantize_per_group},
    Operator{"quantize_per_block", prepare_quantize_per_block},
    Operator{"quantize_per_block.out", prepare_quantize_per_block},
    Operator{"activate_and_quantize", prepare_activate_and_quantize},
    Operator{"activate_and_quantize.out", prepare_activate_and_quantize},
    Operator{"rms_norm_quantize", prepare_rms_norm_quantize},
    Operator{"rms_norm_quantize.out", prepare_rms_norm_quantize},
    Operator{"cutlass_scaled_mm", prepare_cutlass_scaled_mm},
    Operator{"cutlass_scaled_mm_azp", prepare_cutlass_scaled_mm},
    Operator{"quantized_linear", prepare_quantized_linear},
    Operator{"permute_cols", prepare_permute_cols},
    Operator{"per_token_group_fp8_quant", prepare_per_token_group},
    Operator{"per_token_group_fp8_quant_packed", prepare_per_token_group},
    Operator{"per_token_group_quant_int8", prepare_per_token_group},
    Operator{"moe_route", operators::prepare_moe_route},
    Operator{"grouped_scaled_mm", operators::prepare_grouped_scaled_mm},
    Operator{"grouped_scaled_mm.out", operators::prepare_grouped_scaled_mm},
    Operator{"grouped_scaled_mm_masked", operators::prepare_grouped_scaled_mm},
    Operator{"grouped_scaled_mm_masked.out", operators::prepare_grouped_scaled_mm},
    Operator{"moe_gather_quantize", operators::prepare_moe_gather_quantize},
    Operator{"moe_combine", operators::prepare_moe_combine},
    Operator{"fused_moe", operators::prepare_fused_moe},
    Operator{"cutlass_moe_mm", operators::prepare_cutlass_moe_mm},
    Operator{"get_cutlass_moe_mm_data", operators::prepare_cutlass_moe_data},
    Operator{"get_cutlass_moe_mm_problem_sizes_from_expert_offsets", operators::prepare_cutlass_moe_data},
    Operator{"get_cutlass_batched_moe_mm_data", operators::prepare_cutlass_moe_data},
};

// The architecture that a capability (major * 10 + minor) selects, if this binary has kernels for it; cpu otherwise.
Architecture built_architecture_of(std::int64_t capability) {
  Architecture architecture = Architecture::cpu;
  if (!architecture_of_capability(capability / 10, capability % 10, architecture) || !is_built(architecture))
    return Architecture::cpu;
  return architecture;
}

bool runs_here(std::int64_t capability, DType dtype, ScaleMode scale_a, ScaleMode scale_b) {
  const Architecture architecture = built_architecture_of(capability);
  if (architecture == Architecture::cpu) return false;
  GemmProblem problem;
  problem.m = problem.n = problem.k = problem.a_stride = problem.b_stride = problem.out_stride = 128;
  problem.input_dtype = dtype;
  problem.scale_a.mode = scale_a;
  problem.scale_b.mode = scale_b;
  Plan chosen;
  return plan(problem, nominal_facts(architecture), chosen).ok();
}

}  // namespace

const Operator* find_operator(std::string_view name) {
  for (const Operator& row : kOperators)
    if (name == row.name) return &row;
  return nullptr;
}

std::span<const Operator> all_operators() { return kOperators; }

void Prepared::bind(std::int32_t output, void* data) {
  if (GemmProblem* gemm = std::get_if<GemmProblem>(&problem)) {
    gemm->out = data;
  } else if (LinearProblem* linear = std::get_if<LinearProblem>(&problem)) {
    linear->product.out = data;
  } else if (PermuteProblem* permute = std::get_if<PermuteProblem>(&problem)) {
    permute->out = static_cast<std::uint16_t*>(data);
  } else if (QuantizeProblem* quantize = std::get_if<QuantizeProblem>(&problem)) {
    if (output == 0) quantize->q = data;
    if (output == 1) quantize->scale = data;
    if (output == 2) quantize->azp = static_cast<std::int32_t*>(data);
  } else {
    operators::bind_moe(*this, output, data);
  }
}

const Device& Prepared::device() const {
  return std::visit([](const auto& p) -> const Device& { return p.device; }, problem);
}

// fp8 in the predecessor's range: 89 and from 90 on.
bool dropin_supports_fp8(std::int64_t capability) {
  return capability >= 89 && runs_here(capability, DType::float8_e4m3fn, ScaleMode::RowWise, ScaleMode::RowWise);
}

bool dropin_supports_block_fp8(std::int64_t capability) {
  return capability >= 90 &&
         runs_here(capability, DType::float8_e4m3fn, ScaleMode::BlockWise1x128, ScaleMode::BlockWise128x128);
}

// Grouped products in the predecessor's range, 90 to 119.
bool dropin_supports_grouped(std::int64_t capability) {
  if (capability < 90 || capability > 119) return false;
  const Architecture architecture = built_architecture_of(capability);
  if (architecture == Architecture::cpu) return false;
  GroupedGemmProblem problem;
  problem.form = GroupedForm::dropin;
  problem.experts = 1;
  problem.rows = problem.n = problem.k = problem.a_stride = problem.b_stride = problem.out_stride = 128;
  problem.input_dtype = DType::float8_e4m3fn;
  Plan chosen;
  return plan(problem, nominal_facts(architecture), chosen).ok();
}

}  // namespace evergemm
