// SPDX-License-Identifier: Apache-2.0
// Every row of the grouped GEMM table, forced over every case that it can run, against exact sums on the host.
// Usage: grouped_test [--rows=TEXT] [--quick | --tiny] [--junit=FILE]     rows whose name holds TEXT; a reduced set for
// sanitizers; a single product for the slowest of them
// Must not go here: timing.
#include <array>
#include <cstring>
#include <limits>
#include <span>
#include <string>

#include "cuda/registry.h"
#include "grouped_cases.h"
#include "plan/sm90_grouped.h"

namespace evergemm::gpu_test {
namespace {

using plan_tables::grouped_row_name_sm90;
using plan_tables::grouped_why_not_sm90;
using plan_tables::kSm90GroupedRows;

const DeviceFacts& facts() {
  static const DeviceFacts facts = [] {
    DeviceFacts found;
    const Status status = cuda_facts(0, found);
    if (status.ok()) return found;
    std::fprintf(stderr, "%s\n", status.text().c_str());
    std::exit(2);
  }();
  return facts;
}

std::string run_row(const GroupedGemmProblem& problem, std::int32_t row) {
  Plan plan;
  const Status planned = plan_tables::plan_grouped_row_sm90(problem, facts(), row, plan);
  return planned.ok() ? run_cuda(plan, problem, RunContext()).text() : planned.text();
}

std::string run_chosen(const GroupedGemmProblem& problem) {
  Plan chosen;
  const Status planned = plan(problem, facts(), chosen);
  if (!planned.ok()) return planned.text();
  DeviceBuffer workspace(chosen.workspace_bytes);
  RunContext context;
  context.workspace = workspace.data();
  const std::string failure = run_cuda(chosen, problem, context).text();
  require(cudaDeviceSynchronize(), chosen.name);
  return failure;
}

struct Options {
  std::string rows;
  bool quick = false, tiny = false;
};
bool selected(const Options& options, std::int32_t row) {
  return options.rows.empty() || std::string(grouped_row_name_sm90(row)).find(options.rows) != std::string::npos;
}

struct Part {
  Kind kind;
  int layout;  // of block scales
  const char* suffix;
};

bool any_selected(const Options& options, Kind kind) {
  const char* prefix = kind == Kind::int8 ? "sm90_int8_" : kind == Kind::fast ? "sm90_fp8_" : "sm90_fp8promoted_";
  for (std::int32_t row = 0; row < kSm90GroupedRows; ++row)
    if (selected(options, row) && std::string(grouped_row_name_sm90(row)).find(prefix) == 0) return true;
  return false;
}

// How many rows each expert gets.
enum class Routing { uniform, skewed, empty_tail, one_expert, none, hostile };
constexpr Routing kRoutings[] = {Routing::uniform,    Routing::skewed, Routing::empty_tail,
                                 Routing::one_expert, Routing::none,   Routing::hostile};

std::int64_t hostile_value(Random& random, std::int64_t limit, bool wide) {
  switch (random.below(wide ? 10 : 8)) {
    case 0:
      return 0;
    case 1:
      return -1;
    case 2:
      return limit;
    case 3:
      return limit + 1;
    case 4:
      return std::numeric_limits<std::int32_t>::min();
    case 5:
      return std::numeric_limits<std::int32_t>::max();
    case 6:
      return static_cast<std::int32_t>(random.next());
    case 7:
      return random.below(limit + 1);
    case 8:
      return std::numeric_limits<std::int64_t>::min();
    default:
      return std::numeric_limits<std::int64_t>::max();
  }
}

// Counts that sum to at most `rows` (ragged, drop-in) or are each at most `rows` (masked).
std::vector<std::int64_t> draw_counts(const GroupedShape& shape, bool masked, Routing routing, Random& random) {
  std::vector<std::int64_t> counts(static_cast<std::size_t>(shape.experts), 0);
  if (routing == Routing::none) return counts;
  if (masked) {
    for (std::int64_t e = 0; e < shape.experts; ++e) {
      std::int64_t& count = counts[static_cast<std::size_t>(e)];
      if (routing == Routing::uniform) count = random.below(shape.rows + 1);
      if (routing == Routing::skewed) count = e % 7 == 0 ? shape.rows : random.below(4);
      if (routing == Routing::empty_tail) count = e < (shape.experts + 1) / 2 ? random.below(shape.rows + 1) : 0;
      if (routing == Routing::one_expert) count = e == shape.experts / 2 ? shape.rows : 0;
    }
    return counts;
  }
  const std::int64_t routed = routing == Routing::skewed ? shape.rows - shape.rows / 5 : shape.rows;
  for (std::int64_t row = 0; row < routed; ++row) {
    std::int64_t expert = random.below(shape.experts);
    if (routing == Routing::skewed && random.below(2) == 0) expert = shape.experts / 3;
    if (routing == Routing::empty_tail) expert = random.below((shape.experts + 1) / 2);
    if (routing == Routing::one_expert) expert = shape.experts / 2;
    ++counts[static_cast<std::size_t>(expert)];
  }
  return counts;
}

void route(GroupedCase& test, const GroupedShape& shape, GroupedForm form, Routing routing, Random& random) {
  const bool wide = random.below(2) == 0, masked = form == GroupedForm::masked;
  const std::vector<std::int64_t> counts = draw_counts(shape, masked, routing, random);
  const bool hostile = routing == Routing::hostile;
  if (masked) {
    std::vector<std::int64_t> values = counts;
    for (std::int64_t& value : values)
      if (hostile) value = hostile_value(random, shape.rows, wide);
    return test.set_rows(values, wide);
  }
  std::vector<std::int64_t> starts;
  std::int64_t next = 0;
  for (const std::int64_t count : counts) {
    starts.push_back(next);
    next += count;
  }
  if (form == GroupedForm::ragged) starts.push_back(next);
  for (std::int64_t& start : starts)
    if (hostile && random.below(2) == 0) start = hostile_value(random, shape.rows, wide);
  test.set_rows(starts, wide);
  if (form == GroupedForm::ragged) return;
  const bool transposed = random.below(2) == 0;
  std::vector<std::int32_t> sizes;
  std::vector<std::int64_t> a(counts.size(), shape.k), b = a, out(counts.size(), shape.n);
  for (std::size_t e = 0; e < counts.size(); ++e) {
    const auto m = static_cast<std::int32_t>(hostile ? random.below(shape.rows + 1) : counts[e]);
    sizes.push_back(transposed ? static_cast<std::int32_t>(shape.n) : m);
    sizes.push_back(transposed ? m : static_cast<std::int32_t>(shape.n));
    sizes.push_back(static_cast<std::int32_t>(shape.k));
    if (!hostile) continue;
    if (random.below(4) == 0)
      sizes[3 * e + static_cast<std::size_t>(random.below(3))] =
          static_cast<std::int32_t>(hostile_value(random, shape.rows, false));
    for (auto* pitches : {&a, &b, &out}) {
      if (random.below(6) == 0) (*pitches)[e] = hostile_value(random, 4 * shape.k, true);
      if (random.below(6) == 0) (*pitches)[e] *= 2;
    }
  }
  test.set_sizes(sizes);
  test.set_pitches(a, b, out);
}

constexpr GroupedShape kRagged[] = {{1, 40, 136, 144},   {3, 70, 200, 1040},  {8, 700, 264, 528},
                                    {16, 300, 520, 272}, {40, 90, 1032, 384}, {5, 1500, 136, 2064},
                                    {512, 300, 72, 128}, {2, 600, 2824, 640}};
constexpr GroupedShape kMasked[] = {{3, 33, 136, 144}, {4, 300, 264, 528}, {40, 17, 520, 272}, {512, 3, 72, 128}};
constexpr GroupedShape kTiny[] = {{2, 40, 136, 1680}};  // longer than any ring
constexpr GroupedShape kQuick[] = {{3, 70, 136, 272}};

GroupedVariant draw_variant(GroupedForm form, Kind kind, int index, Random& random) {
  GroupedVariant variant;
  variant.form = form;
  constexpr std::array kOutputs = {DType::bfloat16, DType::float16, DType::float32};
  variant.exact = kind != Kind::int8 && index % 2 == 1;
  variant.output = kOutputs[static_cast<std::size_t>(index % (form == GroupedForm::dropin || variant.exact ? 1 : 3))];
  if (form == GroupedForm::dropin && index % 4 >= 2 && !variant.exact) variant.output = DType::float16;
  variant.row_scale_a = random.below(3) != 0;
  variant.row_scale_b = random.below(3) != 0;
  if (form == GroupedForm::dropin) return variant;
  variant.clear = random.below(2) == 0;
  variant.a_pad = random.below(3) * 16;
  variant.b_pad = random.below(3) * 16;
  constexpr std::array<std::int64_t, 4> kOutPads = {0, 8, 3, 16};
  variant.out_pad = kOutPads[static_cast<std::size_t>(random.below(4))];
  return variant;
}

std::string run_forced_rows(const Options& options, GroupedForm form, Kind kind, int layout, std::int64_t& cases) {
  Random random{static_cast<std::uint64_t>(kind) * 1000003 + static_cast<std::uint64_t>(form) * 77 + 5};
  std::string failures;
  int failed = 0, index = static_cast<int>(kind);
  const bool masked = form == GroupedForm::masked;
  const std::span<const GroupedShape> shapes = options.tiny    ? std::span<const GroupedShape>(kTiny)
                                               : options.quick ? std::span<const GroupedShape>(kQuick)
                                               : masked        ? std::span<const GroupedShape>(kMasked)
                                                               : std::span<const GroupedShape>(kRagged);
  for (const GroupedShape& shape : shapes)
    for (int pass = 0; pass < (options.tiny ? 1 : 2); ++pass) {
      const std::uint64_t seed = random.next();
      GroupedVariant variant = draw_variant(form, kind, index++, random);
      variant.scale_layout = layout;
      GroupedCase test(kind, shape, variant, seed);
      for (int i = 0; i < (options.tiny ? 1 : 3); ++i) {
        const Routing routing = options.tiny ? Routing::uniform : kRoutings[(index * 2 + i * 5 + pass) % 6];
        route(test, shape, form, routing, random);
        test.solve();
        std::int32_t first = -1;
        for (std::int32_t row = 0; row < kSm90GroupedRows; ++row) {
          if (!selected(options, row) || !grouped_why_not_sm90(test.problem(), facts(), row).empty()) continue;
          test.output().poison();
          std::string failure = run_row(test.problem(), row);
          require(cudaDeviceSynchronize(), grouped_row_name_sm90(row));
          ++cases;
          // rows that sum in the same order must agree bit for bit (experts of other pitches are summed in another)
          const bool one_order = form != GroupedForm::dropin;
          if (failure.empty() && one_order && first >= 0 && !test.same_as_kept())
            failure = std::string("bits differ from ") + grouped_row_name_sm90(first);
          if (failure.empty()) failure = test.judge(one_order, one_order && first < 0);
          if (one_order && first < 0) first = row;
          if (failure.empty() || failed++ >= 8) continue;
          failures += std::string("\n    ") + grouped_row_name_sm90(row) + ", " + test.text() + ", routing " +
                      std::to_string(static_cast<int>(routing)) + ", seed " + std::to_string(seed) + ": " + failure;
        }
      }
    }
  if (failed == 0) return "";
  std::string text = std::to_string(failed);
  text.append(" failures").append(failures);
  return text;
}

// What the copy engine cannot take: whatever plan() chooses, of the portable rows.
std::string run_unaligned(std::int64_t& cases) {
  Random random{4242};
  int index = 0;
  for (const GroupedForm form : {GroupedForm::ragged, GroupedForm::masked})
    for (const Kind kind : {Kind::int8, Kind::fast, Kind::promoted, Kind::block})
      for (const GroupedShape& shape : {GroupedShape{5, 70, 33, 130}, GroupedShape{3, 9, 70, 0}}) {
        GroupedVariant variant = draw_variant(form, kind, index++, random);
        variant.a_pad = random.below(4);
        variant.b_pad = random.below(4);
        variant.shift = random.below(16);
        variant.scale_layout = index % 2;
        const std::uint64_t seed = random.next();
        GroupedCase test(kind, shape, variant, seed);
        route(test, shape, form, kRoutings[index % 6], random);
        test.solve();
        test.output().poison();
        std::string failure = run_chosen(test.problem());
        ++cases;
        if (failure.empty()) failure = test.judge(false, false);
        if (!failure.empty()) return test.text() + ", seed " + std::to_string(seed) + ": " + failure;
      }
  return "";
}

}  // namespace
}  // namespace evergemm::gpu_test

int main(int argument_count, char** arguments) {
  using namespace evergemm;
  using namespace evergemm::gpu_test;
  Options options;
  const char* junit = nullptr;
  for (int i = 1; i < argument_count; ++i) {
    const std::string argument = arguments[i];
    if (argument.rfind("--rows=", 0) == 0)
      options.rows = argument.substr(7);
    else if (argument.rfind("--junit=", 0) == 0)
      junit = arguments[i] + 8;
    else if (argument == "--quick")
      options.quick = true;
    else if (argument == "--tiny")
      options.quick = options.tiny = true;
  }
  Report report;
  // Block scales twice: copied by plain loads where k is their fast dimension, else by the copy engine.
  for (const auto& [kind, layout, suffix] :
       {Part{Kind::int8, 0, ""}, Part{Kind::fast, 0, ""}, Part{Kind::promoted, 0, ""}, Part{Kind::block, 1, "_loaded"},
        Part{Kind::block, 0, "_copied"}})
    for (const GroupedForm form : {GroupedForm::ragged, GroupedForm::masked, GroupedForm::dropin}) {
      if (form == GroupedForm::dropin && kind >= Kind::promoted) continue;  // cutlass_moe_mm has neither
      if (options.tiny && form != GroupedForm::ragged) continue;
      if (!any_selected(options, kind)) continue;  // --rows names none of this kind
      const char* form_name = form == GroupedForm::ragged   ? "ragged"
                              : form == GroupedForm::masked ? "masked"
                                                            : "dropin";
      report.test(form_name, std::string(name(kind)) + suffix, [&, kind = kind, layout = layout](std::int64_t& cases) {
        return run_forced_rows(options, form, kind, layout, cases);
      });
    }
  if (options.tiny || !options.rows.empty()) return report.finish(junit);
  report.test("chosen", "unaligned", [&](std::int64_t& cases) { return run_unaligned(cases); });
  return report.finish(junit);
}
