// SPDX-License-Identifier: Apache-2.0
// Mixture of experts on a CUDA device: each operator's launches, and the layer as one chain of kernels over one workspace
// (moe_layer.h), in which every kernel may start while the one before it ends. Must not go here: kernels, rules.
#include <cuda_runtime.h>

#include <cstdint>
#include <string>

#include "cuda/device.h"
#include "cuda/moe_kernels.h"
#include "cuda/portable/launch.h"
#include "cuda/quantize.h"
#include "cuda/quantize_kernels.h"
#include "cuda/registry.h"
#if defined(EVERGEMM_WITH_SM90)
#include "cuda/sm90/launch_grouped.h"
#endif
#include "evergemm/moe_layer.h"
#include "plan/grouped.h"

namespace evergemm {
namespace {

using cuda::cuda_failure;
using cuda::RoutedRows;

// Makes the device current and reads what it can do; launch(facts) enqueues.
template <class Launch>
Status run_on_device(const Plan& plan, const Device& device, Launch launch) {
  const cuda::DeviceGuard guard(device.index);
  if (guard.error() != cudaSuccess)
    return cuda_failure(plan.name, "device " + std::to_string(device.index), guard.error());
  Status status = cuda::check_plan(plan, device);
  DeviceFacts facts;
  if (status.ok()) status = cuda::device_facts(device.index, facts);
  return status.ok() ? launch(facts) : status;
}

bool has_clusters(const DeviceFacts& facts) {
  switch (facts.architecture) {
    case Architecture::sm75:
    case Architecture::sm80:
    case Architecture::sm86:
    case Architecture::sm89:
      return false;
    default:
      return true;
  }
}

std::string text_of(const MoeRouteProblem& problem) {
  return std::to_string(problem.tokens) + " tokens x " + std::to_string(problem.top_k) + " of " +
         std::to_string(problem.experts) + " experts";
}
std::string text_of(const MoeDataProblem& problem) {
  return "kind " + std::to_string(static_cast<int>(problem.kind)) + ", " + std::to_string(problem.tokens) +
         " tokens x " + std::to_string(problem.top_k) + " of " + std::to_string(problem.experts) + " experts";
}
std::string text_of(const MoeCombineProblem& problem) {
  return std::to_string(problem.tokens) + " tokens x " + std::to_string(problem.top_k) + " of " +
         std::to_string(problem.rows) + " x " + std::to_string(problem.columns) + " " + name(problem.y_dtype);
}
std::string text_of(const QuantizeProblem& problem) {
  return std::to_string(problem.rows) + " x " + std::to_string(problem.columns) + " " + name(problem.x_dtype) + " to " +
         name(problem.q_dtype) + ", scheme " + std::to_string(static_cast<int>(problem.scheme));
}

std::string text_of(const MoeGatherQuantizeProblem& problem) {
  return std::to_string(problem.rows) + " rows of " + std::to_string(problem.tokens) + " x " +
         std::to_string(problem.columns) + " " + name(problem.x_dtype);
}

template <class Problem>
Status outcome(const char* kernel, cudaError_t error, const Problem& problem) {
  return error == cudaSuccess ? Status() : cuda_failure(kernel, text_of(problem), error);
}

// ---- moe_gather_quantize ---------------------------------------------------------------------------------------------

cudaError_t gather_quantize(const MoeGatherQuantizeProblem& problem, cudaStream_t stream) {
  RoutedRows rows;
  QuantizeProblem& quantize = rows.quantize;
  quantize.scheme = problem.scheme;
  quantize.rows = quantize.q_rows = problem.rows;
  quantize.columns = problem.columns;
  quantize.x = problem.x;
  quantize.x_stride = problem.x_stride;
  quantize.x_dtype = problem.x_dtype;
  quantize.q = problem.q;
  quantize.q_stride = problem.columns;
  quantize.q_dtype = problem.q_dtype;
  quantize.scale = problem.scale;
  quantize.scale_row_stride = problem.one_scale() ? 0 : problem.groups();
  quantize.scale_group_stride = 1;
  quantize.group_columns = problem.group_columns;
  quantize.device = problem.device;
  rows.source_row = problem.source_row;
  rows.tokens = problem.tokens;
  rows.row_weights = problem.row_weights;
  rows.row_weights_stride = problem.row_weights_stride;
  if (problem.scheme == QuantizeScheme::with_given_scale) {
    quantize.scale = const_cast<float*>(problem.given_scale);
    rows.one_scale = problem.scale;
  }
  if (problem.scheme == QuantizeScheme::per_tensor) {  // every token is seen, gathered or not
    QuantizeProblem tokens = quantize;
    tokens.rows = problem.tokens;
    const cudaError_t error = cuda::launch_tensor_scale(tokens, stream);
    if (error != cudaSuccess) return error;
    quantize.scheme = QuantizeScheme::with_given_scale;
  }
  return cuda::launch_quantize_routed(rows, stream);
}

// Each token once into the workspace, then copies of it.
Status quantize_then_gather(const Plan& plan, const MoeGatherQuantizeProblem& problem, const RunContext& context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  char* const token_q = static_cast<char*>(context.workspace);
  auto* const token_scale = reinterpret_cast<float*>(token_q + (problem.tokens * problem.columns + 255) / 256 * 256);
  QuantizeProblem tokens;
  tokens.scheme = problem.scheme;
  tokens.columns = problem.columns;
  tokens.group_columns = problem.group_columns;
  tokens.x = problem.x;
  tokens.x_stride = problem.x_stride;
  tokens.x_dtype = problem.x_dtype;
  tokens.q = token_q;
  tokens.q_stride = problem.columns;
  tokens.q_dtype = problem.q_dtype;
  const bool given = problem.scheme == QuantizeScheme::with_given_scale;
  tokens.scale = given ? const_cast<float*>(problem.given_scale) : problem.one_scale() ? problem.scale : token_scale;
  tokens.scale_row_stride = problem.one_scale() ? 0 : problem.groups();
  tokens.scale_group_stride = problem.scheme == QuantizeScheme::per_block ? 1 : 0;
  tokens.device = problem.device;
  set_rows(tokens, problem.tokens);
  const Status status = cuda::quantize(tokens, stream);
  if (!status.ok()) return status;
  cuda::GatheredRows rows;
  rows.source_row = problem.source_row;
  rows.rows = problem.rows;
  rows.tokens = problem.tokens;
  rows.columns = problem.columns;
  rows.groups = problem.one_scale() ? 0 : problem.groups();
  rows.token_q = token_q;
  rows.token_scale = token_scale;
  rows.q = problem.q;
  rows.scale = problem.scale;
  rows.one_scale = given ? problem.given_scale : nullptr;
  return outcome(plan.name, cuda::launch_gather(rows, stream), problem);
}

// ---- the layer -------------------------------------------------------------------------------------------------------

// Tokens, quantized straight into the rows of product 1.
RoutedRows routed_tokens(const FusedMoeProblem& problem, const FusedMoeSteps& steps, const std::uint32_t* largest) {
  RoutedRows rows;
  rows.quantize = steps.quantize_tokens;
  rows.quantize.x = problem.x;
  rows.quantize.x_stride = problem.x_stride;
  rows.quantize.q = steps.q1;
  if (!one_input_scale(problem.w13)) rows.quantize.scale = steps.scale1;
  rows.slot = steps.route.slot;
  rows.top_k = problem.route.top_k;
  rows.slot_rows = problem.route.choices();
  if (problem.weights_on_input) {
    rows.row_weights = problem.topk_weights;
    rows.row_weights_stride = problem.topk_weights_token_stride;
  }
  if (rows.quantize.scheme == QuantizeScheme::per_tensor) {
    rows.largest = largest;
    rows.one_scale = static_cast<float*>(steps.quantize_tokens.scale);
  }
  return rows;
}

// Rows of product 1 that are routed, activated and quantized for product 2.
RoutedRows activated_rows(const FusedMoeProblem& problem, FusedMoeSteps& steps, const std::uint32_t* largest,
                          bool offsets_are_there) {
  RoutedRows rows;
  set_rows(steps.activate, problem.route.choices());
  rows.quantize = steps.activate;
  rows.row_count = steps.route.expert_offsets + problem.route.experts;
  rows.early_row_count = offsets_are_there;
  if (rows.quantize.scheme == QuantizeScheme::per_tensor) {
    rows.largest = largest;
    rows.one_scale = static_cast<float*>(steps.activate.scale);
  }
  return rows;
}

Status quantize_rows(const RoutedRows& rows, std::uint32_t* largest, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  if (rows.largest != nullptr) error = cuda::launch_largest_magnitude(rows, largest, stream);
  if (error == cudaSuccess) error = cuda::launch_quantize_routed(rows, stream);
  return outcome("cuda_moe_rows", error, rows.quantize);
}

// What a product may read before the kernel before it has ended; where a family does not, it waits as ever.
struct Early {
  bool weights = false;  // and offsets, unless there are choices
  const MoeRouteProblem* choices = nullptr;
};

Status launch_grouped(const Plan& plan, const GroupedGemmProblem& problem, void* workspace, const RunContext& context,
                      [[maybe_unused]] const Early& early = Early()) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const std::int32_t first = plan_tables::first_portable_grouped_row(plan.architecture);
#if defined(EVERGEMM_WITH_SM90)
  if (plan.row < first)
    return sm90::launch_grouped(plan, problem, workspace, stream, context.overlap, {early.weights, early.choices});
#endif
  return portable::launch_grouped(plan, plan.row - first, problem, workspace, stream, context.overlap);
}

bool multiplies(const GroupedGemmProblem& problem) {
  return problem.rows != 0 && problem.n != 0 && problem.experts != 0;
}

Status product(const GroupedGemmProblem& problem, const DeviceFacts& facts, const RunContext& context, char*& workspace,
               const Early& early) {
  if (!multiplies(problem)) return Status();
  Plan plan;
  Status status = plan_tables::plan_grouped(problem, facts, plan);
  if (!status.ok()) return status;
  status = launch_grouped(plan, problem, workspace, context, early);
  workspace += (plan.workspace_bytes + 255) / 256 * 256;
  return status;
}

Status layer(const FusedMoeProblem& problem, const DeviceFacts& facts, const RunContext& context) {
  FusedMoeLayout layout;
  if (!fused_moe_layout(problem, TokensGo::straight_to_rows, layout)) return Status();  // plan() has refused it
  const auto stream = static_cast<cudaStream_t>(context.stream);
  char* const base = static_cast<char*>(context.workspace);
  char* of_products = base + layout.bytes;
  auto* const largest = reinterpret_cast<std::uint32_t*>(base + layout.largest);
  FusedMoeSteps steps = fused_moe_steps(problem, layout, base);
  steps.route.source_row = nullptr;  // nobody reads it: tokens go to their slots
  const RoutedRows tokens = routed_tokens(problem, steps, largest);
  // A kernel that lets the next one start has itself waited for all before it (the activation's has not: see there). So when
  // product 1 starts, the layer's inputs are there, and offsets unless the kernel before it writes them; when anything behind
  // product 1 starts, offsets and slots are there.
  Early early1{true, nullptr};
  Status status;
  if (cuda::few_tokens(steps.route, tokens)) {
    early1.choices = &steps.route;
    status = outcome("cuda_moe_few_tokens", cuda::launch_few_tokens(steps.route, tokens, largest, stream), steps.route);
  } else {
    status =
        outcome("cuda_moe_route", cuda::launch_route(steps.route, largest, has_clusters(facts), stream), steps.route);
    if (status.ok()) status = quantize_rows(tokens, largest, stream);
  }
  const bool offsets_are_there = multiplies(steps.product1);
  if (status.ok()) status = product(steps.product1, facts, context, of_products, early1);
  if (status.ok())
    status = quantize_rows(activated_rows(problem, steps, largest + 1, offsets_are_there), largest + 1, stream);
  if (status.ok()) status = product(steps.product2, facts, context, of_products, {offsets_are_there, nullptr});
  if (status.ok())
    status = outcome("cuda_moe_combine", cuda::launch_combine(steps.combine, offsets_are_there, stream), steps.combine);
  return status;
}

}  // namespace

Status run_cuda(const Plan& plan, const MoeRouteProblem& problem, const RunContext& context) {
  return run_on_device(plan, problem.device, [&](const DeviceFacts& facts) {
    return outcome(plan.name,
                   cuda::launch_route(problem, nullptr, has_clusters(facts), static_cast<cudaStream_t>(context.stream)),
                   problem);
  });
}

Status run_cuda(const Plan& plan, const MoeDataProblem& problem, const RunContext& context) {
  return run_on_device(plan, problem.device, [&](const DeviceFacts& facts) {
    return outcome(plan.name,
                   cuda::launch_moe_data(problem, has_clusters(facts), static_cast<cudaStream_t>(context.stream)),
                   problem);
  });
}

Status run_cuda(const Plan& plan, const MoeGatherQuantizeProblem& problem, const RunContext& context) {
  return run_on_device(plan, problem.device, [&](const DeviceFacts&) {
    if (plan.workspace_bytes > 0) return quantize_then_gather(plan, problem, context);
    return outcome(plan.name, gather_quantize(problem, static_cast<cudaStream_t>(context.stream)), problem);
  });
}

Status run_cuda(const Plan& plan, const MoeCombineProblem& problem, const RunContext& context) {
  return run_on_device(plan, problem.device, [&](const DeviceFacts&) {
    return outcome(plan.name, cuda::launch_combine(problem, false, static_cast<cudaStream_t>(context.stream)), problem);
  });
}

Status run_cuda(const Plan& plan, const GroupedGemmProblem& problem, const RunContext& context) {
  return run_on_device(plan, problem.device,
                       [&](const DeviceFacts&) { return launch_grouped(plan, problem, context.workspace, context); });
}

Status run_cuda(const Plan& plan, const FusedMoeProblem& problem, const RunContext& context) {
  return run_on_device(plan, problem.device, [&](const DeviceFacts& facts) { return layer(problem, facts, context); });
}

}  // namespace evergemm
