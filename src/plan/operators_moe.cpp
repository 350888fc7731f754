// SPDX-License-Identifier: Apache-2.0
// Schema arguments of the mixture-of-experts operators, in order -> ...Arguments -> validate -> Problem and results to
// allocate. Must not go here: rules (validate_moe.cpp has them).
#include "plan/operators_moe.h"

#include <cstring>
#include <string_view>

#include "evergemm/validate.h"
#include "plan/operator_reader.h"

namespace evergemm::operators {

namespace {

void add_result(Prepared& prepared, DType dtype, const Device& device, std::initializer_list<std::int64_t> sizes) {
  OutputSpec& output = add_output(prepared, dtype, device, static_cast<std::int32_t>(sizes.size()));
  std::int32_t d = 0;
  for (const std::int64_t size : sizes) output.sizes[d++] = size;
  contiguous_strides(output);
}

}  // namespace

Status prepare_moe_route(const Operator& self, Arguments values, Prepared& prepared) {
  Status status = Reader::check(self, values, "tit");
  if (!status.ok()) return status;
  Reader read(values);
  MoeRouteArguments arguments;
  arguments.operator_name = self.name;
  arguments.topk_ids = read.tensor();
  arguments.num_local_experts = read.integer();
  arguments.expert_map = read.tensor();
  MoeRouteProblem& problem = prepared.problem.emplace<MoeRouteProblem>();
  status = validate(arguments, problem);
  if (!status.ok()) return status;
  add_result(prepared, DType::int32, problem.device, {problem.experts + 1});
  add_result(prepared, DType::int32, problem.device, {problem.choices()});
  add_result(prepared, DType::int32, problem.device, {problem.tokens, problem.top_k});
  return status;
}

Status prepare_grouped_scaled_mm(const Operator& self, Arguments values, Prepared& prepared) {
  Status status = Reader::check(self, values, has_out(self) ? "tttttbbt" : "tttttdbb");
  if (!status.ok()) return status;
  const BaseName base(self.name);
  Reader read(values);
  GroupedMmArguments arguments;
  arguments.operator_name = base.text;
  const bool masked = std::strcmp(base.text, "grouped_scaled_mm_masked") == 0;
  arguments.form = masked ? GroupedForm::masked : GroupedForm::ragged;
  arguments.a = read.tensor();
  arguments.b = read.tensor();
  arguments.scale_a = read.tensor();
  arguments.scale_b = read.tensor();
  arguments.expert_rows = read.tensor();
  if (!has_out(self)) arguments.out_dtype = read.dtype();
  arguments.fast_accumulation = read.boolean();
  arguments.deterministic = read.boolean();
  if (has_out(self)) {
    arguments.out = read.tensor();
    if (!arguments.out.given()) return validation::violation(base.text, "a tensor for out", "None", "pass out");
  }
  GroupedGemmProblem& problem = prepared.problem.emplace<GroupedGemmProblem>();
  status = validate(arguments, problem);
  if (!status.ok() || has_out(self)) return status;
  if (masked)
    add_result(prepared, problem.output_dtype, problem.device, {problem.experts, problem.rows, problem.n});
  else
    add_result(prepared, problem.output_dtype, problem.device, {problem.rows, problem.n});
  return status;
}

Status prepare_moe_gather_quantize(const Operator& self, Arguments values, Prepared& prepared) {
  Status status = Reader::check(self, values, "ttttid");
  if (!status.ok()) return status;
  Reader read(values);
  MoeGatherQuantizeArguments arguments;
  arguments.operator_name = self.name;
  arguments.x = read.tensor();
  arguments.source_row = read.tensor();
  arguments.scale = read.tensor();
  arguments.row_weights = read.tensor();
  arguments.group_size = read.integer();
  arguments.dtype = read.dtype();
  MoeGatherQuantizeProblem& problem = prepared.problem.emplace<MoeGatherQuantizeProblem>();
  status = validate(arguments, problem);
  if (!status.ok()) return status;
  add_result(prepared, problem.q_dtype, problem.device, {problem.rows, problem.columns});
  if (problem.one_scale())
    add_result(prepared, DType::float32, problem.device, {1});
  else
    add_result(prepared, DType::float32, problem.device, {problem.rows, problem.groups()});
  return status;
}

Status prepare_moe_combine(const Operator& self, Arguments values, Prepared& prepared) {
  Status status = Reader::check(self, values, "tttd");
  if (!status.ok()) return status;
  Reader read(values);
  MoeCombineArguments arguments;
  arguments.operator_name = self.name;
  arguments.y = read.tensor();
  arguments.slot = read.tensor();
  arguments.topk_weights = read.tensor();
  arguments.out_dtype = read.dtype();
  MoeCombineProblem& problem = prepared.problem.emplace<MoeCombineProblem>();
  status = validate(arguments, problem);
  if (!status.ok()) return status;
  add_result(prepared, problem.output_dtype, problem.device, {problem.tokens, problem.columns});
  return status;
}

Status prepare_fused_moe(const Operator& self, Arguments values, Prepared& prepared) {
  Status status = Reader::check(self, values, "ttttttttttibbb");
  if (!status.ok()) return status;
  Reader read(values);
  FusedMoeArguments arguments;
  arguments.operator_name = self.name;
  for (TensorView* view :
       {&arguments.x, &arguments.w13, &arguments.w2, &arguments.w13_scale, &arguments.w2_scale, &arguments.topk_weights,
        &arguments.topk_ids, &arguments.expert_map, &arguments.a1_scale, &arguments.a2_scale})
    *view = read.tensor();
  arguments.activation = read.integer();
  arguments.apply_router_weight_on_input = read.boolean();
  arguments.fast_accumulation = read.boolean();
  arguments.deterministic = read.boolean();
  FusedMoeProblem& problem = prepared.problem.emplace<FusedMoeProblem>();
  status = validate(arguments, problem);
  if (!status.ok()) return status;
  add_result(prepared, problem.x_dtype, problem.device, {problem.route.tokens, problem.hidden()});
  return status;
}

Status prepare_cutlass_moe_mm(const Operator& self, Arguments values, Prepared& prepared) {
  Status status = Reader::check(self, values, "ttttttttttbb");
  if (!status.ok()) return status;
  Reader read(values);
  GroupedMmArguments arguments;
  arguments.operator_name = self.name;
  arguments.form = GroupedForm::dropin;
  for (TensorView* view :
       {&arguments.out, &arguments.a, &arguments.b, &arguments.scale_a, &arguments.scale_b, &arguments.expert_rows,
        &arguments.problem_sizes, &arguments.a_strides, &arguments.b_strides, &arguments.c_strides})
    *view = read.tensor();
  arguments.per_act_token = read.boolean();
  arguments.per_out_ch = read.boolean();
  return validate(arguments, prepared.problem.emplace<GroupedGemmProblem>());
}

Status prepare_cutlass_moe_data(const Operator& self, Arguments values, Prepared& prepared) {
  const std::string_view name = self.name;
  MoeDataArguments arguments;
  arguments.operator_name = self.name;
  arguments.kind = name == "get_cutlass_moe_mm_data"           ? MoeDataKind::route
                   : name == "get_cutlass_batched_moe_mm_data" ? MoeDataKind::batched
                                                               : MoeDataKind::sizes_from_offsets;
  const char* kinds[] = {"ttttttiiitb", "tttiib", "ttttiiii"};  // in the order of MoeDataKind
  Status status = Reader::check(self, values, kinds[static_cast<int>(arguments.kind)]);
  if (!status.ok()) return status;
  Reader read(values);
  switch (arguments.kind) {
    case MoeDataKind::route:
      for (TensorView* view : {&arguments.topk_ids, &arguments.expert_offsets, &arguments.problem_sizes1,
                               &arguments.problem_sizes2, &arguments.input_permutation, &arguments.output_permutation})
        *view = read.tensor();
      arguments.num_experts = read.integer();
      arguments.n = read.integer();
      arguments.k = read.integer();
      arguments.blockscale_offsets = read.tensor();
      arguments.is_gated = read.boolean();
      break;
    case MoeDataKind::sizes_from_offsets:
      arguments.expert_first_token_offset = read.tensor();
      arguments.problem_sizes1 = read.tensor();
      arguments.problem_sizes2 = read.tensor();
      arguments.n = read.integer();
      arguments.k = read.integer();
      arguments.swap_ab = read.boolean();
      break;
    case MoeDataKind::batched:
      arguments.expert_offsets = read.tensor();
      arguments.problem_sizes1 = read.tensor();
      arguments.problem_sizes2 = read.tensor();
      arguments.expert_num_tokens = read.tensor();
      arguments.num_experts = read.integer();
      arguments.padded_m = read.integer();
      arguments.n = read.integer();
      arguments.k = read.integer();
      break;
  }
  return validate(arguments, prepared.problem.emplace<MoeDataProblem>());
}

void bind_moe(Prepared& prepared, std::int32_t output, void* data) {
  if (MoeRouteProblem* route = std::get_if<MoeRouteProblem>(&prepared.problem)) {
    if (output == 0) route->expert_offsets = static_cast<std::int32_t*>(data);
    if (output == 1) route->source_row = static_cast<std::int32_t*>(data);
    if (output == 2) route->slot = static_cast<std::int32_t*>(data);
  } else if (MoeGatherQuantizeProblem* gather = std::get_if<MoeGatherQuantizeProblem>(&prepared.problem)) {
    if (output == 0) gather->q = data;
    if (output == 1) gather->scale = static_cast<float*>(data);
  } else if (GroupedGemmProblem* grouped = std::get_if<GroupedGemmProblem>(&prepared.problem)) {
    grouped->out = data;
  } else if (MoeCombineProblem* combine = std::get_if<MoeCombineProblem>(&prepared.problem)) {
    combine->out = data;
  } else if (FusedMoeProblem* layer = std::get_if<FusedMoeProblem>(&prepared.problem)) {
    layer->out = data;
  }
}

}  // namespace evergemm::operators
