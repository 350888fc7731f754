// SPDX-License-Identifier: Apache-2.0
// Mixture of experts on the CPU: routing in two passes over the ids, a grouped product as many dense ones (for each
// expert the kernel that the dense rules name for its rows), quantizers and combine spread over threads by rows. Bit
// for bit the reference, whatever the number of threads. Must not go here: arithmetic on matrix elements (the dense
// kernels, the quantizers and moe_combine.h have it), checks.
#include <algorithm>
#include <atomic>
#include <cstring>

#include "cpu/moe_kernels.h"
#include "cpu/registry.h"
#include "evergemm/moe_layer.h"
#include "evergemm/numerics.h"
#include "evergemm/reference.h"
#include "plan/cpu_moe.h"
#include "plan/cpu_quantize.h"
#include "plan/table.h"

namespace evergemm::cpu {
namespace {

using plan_tables::CpuExpertWork;

// A thread is worth its start from about so many bytes moved.
constexpr std::int64_t kBytesForAThread = 65536;
// A piece of a grouped product: small enough that experts of different sizes even out, large enough that repacking b
// for it is a small part of its work. Columns are whole scale blocks.
constexpr std::int64_t kPieceRows = 256;
constexpr std::int64_t kPieceColumns = 256;
static_assert(kPieceColumns % kScaleBlock == 0);

std::int64_t pieces_of(std::int64_t length, std::int64_t piece) {
  return length / piece + (length % piece != 0 ? 1 : 0);
}

// body(begin, end) over [0, count) units of bytes_each bytes.
template <class Body>
void spread(const RunContext& context, std::int64_t count, std::int64_t bytes_each, const Body& body) {
  const std::int64_t grain = std::max<std::int64_t>(1, kBytesForAThread / std::max<std::int64_t>(1, bytes_each));
  if (context.parallel_for == nullptr || context.threads < 2 || count <= grain) return body(0, count);
  context.parallel_for(
      0, count, grain,
      [](void* argument, std::int64_t begin, std::int64_t end) { (*static_cast<const Body*>(argument))(begin, end); },
      const_cast<Body*>(&body));
}

InstructionSet instruction_set(const Plan& plan) {
  return plan_tables::kCpuMoeRows[static_cast<std::size_t>(plan.row)].instruction_set;
}

bool is_reference(const Plan& plan) { return plan_tables::kCpuMoeRows[static_cast<std::size_t>(plan.row)].reference; }

Status check_row(const Plan& plan) {
  if (plan.row >= 0 && static_cast<std::size_t>(plan.row) < plan_tables::kCpuMoeRows.size()) return Status();
  return Status("evergemm: expected a plan for mixture of experts on the cpu; got row " + std::to_string(plan.row) +
                " (" + plan.name + "); fix: plan with cpu_facts().");
}

void copy(void* to, const void* from, std::int64_t bytes) {
  if (bytes > 0) std::memcpy(to, from, static_cast<std::size_t>(bytes));
}

void clear(void* to, std::int64_t bytes) {
  if (bytes > 0) std::memset(to, 0, static_cast<std::size_t>(bytes));
}

// ---- routing
// ---------------------------------------------------------------------------------------------------------

// Counts, sums, places. expert_offsets serves as the cursor of each expert in between. `nowhere`, where given, is where
// the row of a choice that goes nowhere is read from after the sums; otherwise it is -1.
void place_rows(const MoeRouteProblem& problem, const std::int32_t* nowhere) {
  const std::int64_t experts = problem.experts;
  std::int32_t* offsets = problem.expert_offsets;
  std::fill(offsets, offsets + experts + 1, 0);
  for (std::int64_t token = 0; token < problem.tokens; ++token)
    for (std::int64_t choice = 0; choice < problem.top_k; ++choice) {
      const std::int64_t expert = local_expert(problem, token, choice);
      if (expert >= 0) ++offsets[expert + 1];
    }
  for (std::int64_t expert = 0; expert < experts; ++expert) offsets[expert + 1] += offsets[expert];
  const std::int32_t none = nowhere == nullptr ? -1 : *nowhere;
  for (std::int64_t token = 0; token < problem.tokens; ++token)
    for (std::int64_t choice = 0; choice < problem.top_k; ++choice) {
      const std::int64_t expert = local_expert(problem, token, choice);
      const std::int32_t row = expert >= 0 ? offsets[expert]++ : none;
      problem.slot[token * problem.top_k + choice] = row;
      if (expert >= 0) problem.source_row[row] = static_cast<std::int32_t>(token);
    }
  // Each cursor stands where the next expert begins.
  for (std::int64_t expert = experts; expert > 0; --expert) offsets[expert] = offsets[expert - 1];
  offsets[0] = 0;
}

void route(const MoeRouteProblem& problem) {
  place_rows(problem, nullptr);
  const std::int64_t routed = problem.expert_offsets[problem.experts];
  std::fill(problem.source_row + routed, problem.source_row + problem.choices(), -1);
}

void route_data(const MoeDataProblem& problem) {
  MoeRouteProblem ids;
  ids.tokens = problem.tokens;
  ids.top_k = problem.top_k;
  ids.experts = problem.experts;
  ids.ids = problem.ids;
  ids.ids_token_stride = problem.ids_token_stride;
  ids.ids_choice_stride = problem.ids_choice_stride;
  ids.expert_offsets = problem.expert_offsets;
  ids.source_row = problem.input_permutation;
  ids.slot = problem.output_permutation;
  place_rows(ids, problem.expert_offsets + problem.experts);
  std::int32_t padded = 0;
  for (std::int64_t expert = 0; expert < problem.experts; ++expert) {
    const std::int32_t rows = problem.expert_offsets[expert + 1] - problem.expert_offsets[expert];
    write_sizes(problem, expert, rows);
    if (problem.blockscale_offsets == nullptr) continue;  // whose sums the validator has bounded
    problem.blockscale_offsets[expert] = padded;
    padded += (rows + 127) / 128 * 128;
  }
  if (problem.blockscale_offsets != nullptr) problem.blockscale_offsets[problem.experts] = padded;
}

// ---- grouped product
// -------------------------------------------------------------------------------------------------

struct GroupedWork {
  const GroupedGemmProblem* problem;
  const CpuExpertWork* experts;
  std::int64_t pieces;
  std::atomic<std::int64_t> next{0};
};

void run_piece(const GroupedWork& work, std::int64_t piece) {
  const GroupedGemmProblem& problem = *work.problem;
  const CpuExpertWork* end = work.experts + problem.experts;
  const CpuExpertWork* owner =
      std::upper_bound(work.experts, end, piece,
                       [](std::int64_t wanted, const CpuExpertWork& expert) { return wanted < expert.first_piece; }) -
      1;
  const std::int64_t local = piece - owner->first_piece;
  const std::int64_t row = local / owner->column_pieces * kPieceRows,
                     column = local % owner->column_pieces * kPieceColumns;
  const GemmProblem dense =
      problem_of(problem, owner - work.experts, owner->share, row, std::min(kPieceRows, owner->share.rows - row),
                 column, std::min(kPieceColumns, problem.n - column));
  Plan plan;
  plan.row = owner->row;
  plan.name = plan_tables::kCpuTable.row_name(owner->row);
  // The row is one of this build's: cpu_facts() has no instruction set that it lacks.
  (void)run_cpu(plan, dense, RunContext());
}

void clear_rows(const GroupedGemmProblem& problem, std::int64_t begin, std::int64_t rows, std::int64_t row_stride) {
  const std::int64_t item = size_in_bytes(problem.output_dtype);
  for (std::int64_t row = 0; row < rows; ++row)
    clear(static_cast<char*>(problem.out) + (begin + row * row_stride) * item, problem.n * item);
}

void grouped(const GroupedGemmProblem& problem, InstructionSet set, const RunContext& context, void* workspace) {
  DeviceFacts facts;
  facts.instruction_set = set;
  auto* experts = static_cast<CpuExpertWork*>(workspace);
  GroupedWork work{&problem, experts, 0};
  std::int64_t owned_end = 0, cleared_end = 0;
  for (std::int64_t expert = 0; expert < problem.experts; ++expert) {
    CpuExpertWork& one = experts[expert];
    one = CpuExpertWork();
    one.share = next_share(problem, expert, owned_end);
    one.first_piece = work.pieces;
    one.column_pieces = pieces_of(problem.n, kPieceColumns);
    work.pieces += pieces_of(one.share.rows, kPieceRows) * one.column_pieces;
    if (one.share.rows > 0) {
      const GemmProblem dense = problem_of(problem, expert, one.share, 0, one.share.rows, 0, problem.n);
      for (const plan_tables::Rule& rule : plan_tables::kCpuTable.rules(dense, facts)) {
        if (dense.m > rule.m || dense.n > rule.n || dense.k > rule.k) continue;
        one.row = rule.row;
        break;
      }
    }
    if (!problem.clear_unowned) continue;
    if (problem.form == GroupedForm::masked) {
      clear_rows(problem, one.share.out_begin + one.share.rows * problem.out_stride, problem.rows - one.share.rows,
                 problem.out_stride);
    } else if (one.share.rows > 0) {
      clear_rows(problem, cleared_end * problem.out_stride, one.share.first_row - cleared_end, problem.out_stride);
      cleared_end = one.share.first_row + one.share.rows;
    }
  }
  if (problem.clear_unowned && problem.form == GroupedForm::ragged)
    clear_rows(problem, cleared_end * problem.out_stride, problem.rows - cleared_end, problem.out_stride);

  const auto take_pieces = [](void* argument, std::int64_t, std::int64_t) {
    GroupedWork& shared = *static_cast<GroupedWork*>(argument);
    for (std::int64_t piece = shared.next++; piece < shared.pieces; piece = shared.next++) run_piece(shared, piece);
  };
  const std::int64_t threads =
      context.parallel_for == nullptr ? 1 : std::min<std::int64_t>(context.threads, work.pieces);
  if (threads < 2)
    take_pieces(&work, 0, 1);
  else
    context.parallel_for(0, threads, 1, take_pieces, &work);
}

// ---- quantized rows
// --------------------------------------------------------------------------------------------------

Status quantize(const QuantizeProblem& problem, InstructionSet set, const RunContext& context) {
  Plan plan;
  plan.row = plan_tables::cpu_quantize_row(set);
  plan.name = plan_tables::kCpuQuantizeRows[static_cast<std::size_t>(plan.row)].name;
  return run_cpu(plan, problem, context);
}

float load(DType type, const void* data, std::int64_t i) {
  if (type == DType::bfloat16) return numerics::bfloat16_to_float(static_cast<const std::uint16_t*>(data)[i]);
  if (type == DType::float16) return numerics::float16_to_float(static_cast<const std::uint16_t*>(data)[i]);
  return static_cast<const float*>(data)[i];
}

void store(DType type, void* data, std::int64_t i, float value) {
  if (type == DType::bfloat16)
    static_cast<std::uint16_t*>(data)[i] = numerics::float_to_bfloat16(value);
  else if (type == DType::float16)
    static_cast<std::uint16_t*>(data)[i] = numerics::float_to_float16(value);
  else
    static_cast<float*>(data)[i] = value;
}

// to[begin ..] = x[row] * weight, both in x's type, rounded to it.
void weighted_row(DType type, const void* x, std::int64_t x_begin, std::int64_t columns, float weight, void* to,
                  std::int64_t to_begin) {
  float narrow = 0;
  store(type, &narrow, 0, weight);
  const float factor = load(type, &narrow, 0);
  for (std::int64_t j = 0; j < columns; ++j)
    store(type, to, to_begin + j, numerics::mul32(load(type, x, x_begin + j), factor));
}

struct Gather {
  Indices source_row;
  std::int64_t rows, tokens, columns, groups;  // groups: scales to copy a row, 0 where one scale serves all
  const void* token_q;
  const float* token_scale;
  void* q;
  float* scale;
};

// A source that is not a token gives zeros with scale 1.
void gather(const Gather& all, const RunContext& context) {
  spread(context, all.rows, all.columns, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      const std::int64_t token = read_index(all.source_row, row);
      char* q = static_cast<char*>(all.q) + row * all.columns;
      if (token >= 0 && token < all.tokens) {
        copy(q, static_cast<const char*>(all.token_q) + token * all.columns, all.columns);
        copy(all.scale + row * all.groups, all.token_scale + token * all.groups, all.groups * 4);
      } else {
        clear(q, all.columns);
        std::fill(all.scale + row * all.groups, all.scale + (row + 1) * all.groups, 1.0f);
      }
    }
  });
}

Status gather_quantize(const MoeGatherQuantizeProblem& problem, InstructionSet set, const RunContext& context) {
  QuantizeProblem rows;
  rows.scheme = problem.scheme;
  rows.columns = problem.columns;
  rows.group_columns = std::max<std::int64_t>(problem.group_columns, 1);
  rows.x_dtype = problem.x_dtype;
  rows.q_dtype = problem.q_dtype;
  rows.q_stride = problem.columns;
  const std::int64_t groups = problem.one_scale() ? 0 : problem.groups();
  rows.scale_row_stride = groups;
  rows.scale_group_stride = problem.scheme == QuantizeScheme::per_block ? 1 : 0;
  if (problem.scheme == QuantizeScheme::with_given_scale) *problem.scale = *problem.given_scale;

  if (problem.row_weights == nullptr) {  // each token once, then gather
    char* token_q = static_cast<char*>(context.workspace);
    auto* token_scale = reinterpret_cast<float*>(token_q + plan_tables::whole_lines(problem.tokens * problem.columns));
    rows.x = problem.x;
    rows.x_stride = problem.x_stride;
    rows.q = token_q;
    rows.scale = problem.one_scale() ? problem.scale : token_scale;
    set_rows(rows, problem.tokens);
    const Status status = quantize(rows, set, context);
    if (!status.ok()) return status;
    gather({problem.source_row, problem.rows, problem.tokens, problem.columns, groups, token_q, token_scale, problem.q,
            problem.scale},
           context);
    return status;
  }

  const std::int64_t item = size_in_bytes(problem.x_dtype);
  const auto exists = [&](std::int64_t row) {
    const std::int64_t token = read_index(problem.source_row, row);
    return token >= 0 && token < problem.tokens;
  };
  spread(context, problem.rows, problem.columns * item, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      if (exists(row))
        weighted_row(problem.x_dtype, problem.x, read_index(problem.source_row, row) * problem.x_stride,
                     problem.columns, problem.row_weights[row * problem.row_weights_stride], context.workspace,
                     row * problem.columns);
      else
        clear(static_cast<char*>(context.workspace) + row * problem.columns * item, problem.columns * item);
    }
  });
  rows.x = context.workspace;
  rows.x_stride = problem.columns;
  rows.q = problem.q;
  rows.scale = problem.scale;
  set_rows(rows, problem.rows);
  const Status status = quantize(rows, set, context);
  // Whatever the one scale is (NaN too), a row that nothing is gathered for is 0.
  for (std::int64_t row = 0; row < problem.rows && problem.one_scale(); ++row)
    if (!exists(row)) clear(static_cast<char*>(problem.q) + row * problem.columns, problem.columns);
  return status;
}

void combine(const MoeCombineProblem& problem, InstructionSet set, const RunContext& context) {
  spread(context, problem.tokens, problem.columns * problem.top_k * 4, [&](std::int64_t begin, std::int64_t end) {
#if defined(__x86_64__)
    if (set >= InstructionSet::avx2) return moe_combine_avx2(problem, begin, end);
#endif
    moe_combine_portable(problem, begin, end);
  });
}

// ---- the layer
// -------------------------------------------------------------------------------------------------------

Status layer(const FusedMoeProblem& problem, InstructionSet set, const RunContext& context) {
  FusedMoeLayout layout;
  if (!fused_moe_layout(problem, TokensGo::through_the_workspace, layout)) return Status();  // plan() has refused it
  FusedMoeSteps steps = fused_moe_steps(problem, layout, context.workspace);
  void* const grouped_workspace = static_cast<char*>(context.workspace) + layout.bytes;
  const std::int64_t hidden = problem.hidden();
  route(steps.route);
  if (problem.weights_on_input)
    spread(context, problem.route.tokens, hidden * 4, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t token = begin; token < end; ++token)
        weighted_row(problem.x_dtype, problem.x, token * problem.x_stride, hidden,
                     problem.topk_weights[token * problem.topk_weights_token_stride], steps.weighted, token * hidden);
    });
  Status status = quantize(steps.quantize_tokens, set, context);
  if (!status.ok()) return status;
  const std::int64_t routed = steps.route.expert_offsets[problem.route.experts];
  Indices source_row;
  source_row.data = steps.route.source_row;
  gather(
      {source_row, routed, problem.route.tokens, hidden, one_input_scale(problem.w13) ? 0 : input_groups(problem.w13),
       steps.quantize_tokens.q, static_cast<const float*>(steps.quantize_tokens.scale), steps.q1, steps.scale1},
      context);
  if (problem.w13.n > 0) grouped(steps.product1, set, context, grouped_workspace);
  set_rows(steps.activate, routed);
  status = quantize(steps.activate, set, context);
  if (!status.ok()) return status;
  grouped(steps.product2, set, context, grouped_workspace);
  combine(steps.combine, set, context);
  return Status();
}

}  // namespace

Status run_cpu(const Plan& plan, const MoeRouteProblem& problem, const RunContext&) {
  Status status = check_row(plan);
  if (!status.ok()) return status;
  if (is_reference(plan))
    reference::moe_route(problem);
  else
    route(problem);
  return status;
}

Status run_cpu(const Plan& plan, const GroupedGemmProblem& problem, const RunContext& context) {
  Status status = check_row(plan);
  if (!status.ok()) return status;
  if (is_reference(plan))
    reference::grouped_gemm(problem);
  else
    grouped(problem, instruction_set(plan), context, context.workspace);
  return status;
}

Status run_cpu(const Plan& plan, const MoeGatherQuantizeProblem& problem, const RunContext& context) {
  Status status = check_row(plan);
  if (!status.ok()) return status;
  if (!is_reference(plan)) return gather_quantize(problem, instruction_set(plan), context);
  reference::moe_gather_quantize(problem);
  return status;
}

Status run_cpu(const Plan& plan, const MoeCombineProblem& problem, const RunContext& context) {
  Status status = check_row(plan);
  if (!status.ok()) return status;
  if (is_reference(plan))
    reference::moe_combine(problem);
  else
    combine(problem, instruction_set(plan), context);
  return status;
}

Status run_cpu(const Plan& plan, const FusedMoeProblem& problem, const RunContext& context) {
  Status status = check_row(plan);
  if (!status.ok()) return status;
  if (!is_reference(plan)) return layer(problem, instruction_set(plan), context);
  reference::fused_moe(problem);
  return status;
}

Status run_cpu(const Plan& plan, const MoeDataProblem& problem, const RunContext&) {
  Status status = check_row(plan);
  if (!status.ok()) return status;
  if (is_reference(plan) || problem.kind != MoeDataKind::route)
    reference::moe_data(problem);  // sizes alone: the obvious loop is the fast one
  else
    route_data(problem);
  return status;
}

}  // namespace evergemm::cpu
