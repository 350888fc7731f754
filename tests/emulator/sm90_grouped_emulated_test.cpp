// SPDX-License-Identifier: Apache-2.0
// The grouped Hopper kernels' own source on an emulated multiprocessor, where everything that hardware may do in any order is drawn:
// every row, ragged, masked and drop-in, over even, one-sided and hostile routings. Exact operands, so that each bit is known.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

#include "bound_checker.h"
#include "cuda/sm90/launch_grouped.h"
#include "emulated.h"
#include "plan/sm90_grouped.h"

namespace evergemm {
namespace {

using plan_tables::Mainloop;
using plan_tables::TileConfig;

enum class Routing { uneven, one_expert, hostile };
struct GroupedSetup {
  GroupedForm form;
  Routing routing;
  bool row_scales, block_scales, tokens_fastest, clear, early, from_ids;
  std::int64_t experts, rows, n, k;
  DType output;
  std::uint64_t seed;

  std::string text() const {
    std::ostringstream s;
    s << (form == GroupedForm::ragged   ? "ragged"
          : form == GroupedForm::masked ? "masked"
                                        : "dropin")
      << " routing " << static_cast<int>(routing) << ", " << experts << " experts, " << rows << " rows, n " << n
      << ", k " << k << ", to " << name(output)
      << (block_scales ? ", block scales"
          : row_scales ? ", row scales"
                       : ", tensor scales")
      << (tokens_fastest ? ", tokens fastest" : "") << (clear ? ", clears" : "") << (early ? ", early" : "")
      << (from_ids ? ", from ids" : "") << ", seed " << seed;
    return s.str();
  }
};

// Exact operands of one grouped product, each in guarded memory.
class GroupedOperands {
 public:
  GroupedOperands(const GroupedSetup& setup, DType input) : random_(setup.seed) {
    const auto [form, experts, rows, n, k] = std::tie(setup.form, setup.experts, setup.rows, setup.n, setup.k);
    const bool masked = form == GroupedForm::masked;
    const std::int64_t planes = masked ? experts : 1, k_blocks = (k + 127) / 128, n_blocks = (n + 127) / 128;
    problem_.form = form;
    problem_.experts = experts;
    problem_.rows = rows;
    problem_.n = n;
    problem_.k = k;
    problem_.input_dtype = input;
    problem_.output_dtype = setup.output;
    problem_.clear_unowned = setup.clear;
    problem_.device = Device{DeviceType::cuda, 0};
    problem_.a_stride = problem_.b_stride = k;
    problem_.a_expert_stride = masked ? rows * k : 0;
    problem_.b_expert_stride = n * k;
    problem_.out_stride = n;
    problem_.out_expert_stride = masked ? rows * n : 0;
    problem_.a = codes(planes * rows * k, input);
    problem_.b = codes(experts * n * k, input);
    if (setup.block_scales) {
      const bool fast = setup.tokens_fastest;
      problem_.scale_a = {ScaleMode::BlockWise1x128, scales(planes * rows * k_blocks), fast ? 1 : k_blocks,
                          fast ? rows : 1};
      problem_.scale_b = {ScaleMode::BlockWise128x128, scales(experts * n_blocks * k_blocks), 1, n_blocks};
      problem_.scale_a_expert_stride = masked ? rows * k_blocks : 0;
      problem_.scale_b_expert_stride = n_blocks * k_blocks;
    } else if (setup.row_scales) {
      problem_.scale_a = {ScaleMode::RowWise, scales(planes * rows), 1, 0};
      problem_.scale_b = {ScaleMode::RowWise, scales(experts * n), 1, 0};
      problem_.scale_a_expert_stride = masked ? rows : 0;
      problem_.scale_b_expert_stride = n;
    } else {
      problem_.scale_a.data = scales(1);
      problem_.scale_b.data = scales(experts);
      problem_.scale_b_expert_stride = 1;
    }
    route(setup);
    for (proof::GuardedBuffer& input_buffer : inputs_) input_buffer.seal();
    out_ = std::make_unique<proof::GuardedBuffer>(
        static_cast<std::size_t>(planes * rows * n * size_in_bytes(setup.output)));
    problem_.out = out_->as<void>();
  }

  const GroupedGemmProblem& problem() const { return problem_; }
  // Ids whose rows stand at these offsets.
  const MoeRouteProblem& choices() const { return choices_; }
  std::vector<unsigned char> stored() const {
    const auto* bytes = out_->as<unsigned char>();
    const std::int64_t planes = problem_.form == GroupedForm::masked ? problem_.experts : 1;
    return std::vector<unsigned char>(
        bytes, bytes + planes * problem_.rows * problem_.n * size_in_bytes(problem_.output_dtype));
  }
  void poison_out() { out_->poison(); }
  std::string damage() const {
    std::string text = out_->damage();
    for (const proof::GuardedBuffer& input : inputs_) text += input.damage();
    return text;
  }

 private:
  std::int64_t below(std::int64_t limit) {
    return static_cast<std::int64_t>(random_() % static_cast<std::uint64_t>(limit));
  }
  template <class T>
  T* allocate(std::int64_t count) {
    inputs_.emplace_back(static_cast<std::size_t>(count) * sizeof(T));
    return inputs_.back().as<T>();
  }
  const void* codes(std::int64_t count, DType type) {
    constexpr std::array<std::uint8_t, 4> kInt8 = {0xFF, 0, 1, 2}, kFp8 = {0xB8, 0, 0x38, 0x40};  // -1, 0, 1, 2
    auto* to = allocate<std::uint8_t>(count);
    for (std::int64_t i = 0; i < count; ++i)
      to[i] = (type == DType::int8 ? kInt8 : kFp8)[static_cast<std::size_t>(below(4))];
    return to;
  }
  const float* scales(std::int64_t count) {
    auto* to = allocate<float>(count);
    for (std::int64_t i = 0; i < count; ++i) to[i] = std::ldexp(1.0f, static_cast<int>(below(4)) - 2);
    return to;
  }
  // Offsets, counts or start rows with sizes.
  void route(const GroupedSetup& setup) {
    const std::int64_t experts = setup.experts, rows = setup.rows;
    std::vector<std::int64_t> counts(static_cast<std::size_t>(experts), 0);
    if (setup.routing == Routing::one_expert)
      counts[static_cast<std::size_t>(experts / 2)] = rows;
    else
      for (std::int64_t i = 0; i < rows - rows / 8; ++i)
        ++counts[static_cast<std::size_t>(below(below(3) == 0 ? experts : (experts + 1) / 2))];
    const bool masked = setup.form == GroupedForm::masked, hostile = setup.routing == Routing::hostile;
    auto* to = allocate<std::int32_t>(experts + 1);
    const auto wild = [&](std::int64_t value) {
      constexpr std::array<std::int32_t, 4> kWild = {-1, 0, std::numeric_limits<std::int32_t>::min(),
                                                     std::numeric_limits<std::int32_t>::max()};
      return static_cast<std::int32_t>(hostile && below(3) == 0 ? kWild[static_cast<std::size_t>(below(4))] : value);
    };
    std::int64_t begin = hostile ? 0 : rows / 16;
    for (std::int64_t e = 0; e <= experts; ++e) {
      const std::int64_t count = e < experts ? counts[static_cast<std::size_t>(e)] : 0;
      to[e] = wild(masked ? count : begin);
      begin += count;
    }
    problem_.expert_rows.data = to;
    if (setup.from_ids) choose(to, experts);
    if (setup.form != GroupedForm::dropin) return;
    auto* sizes = allocate<std::int32_t>(3 * experts);
    auto* pitches = allocate<std::int64_t>(3 * experts);
    for (std::int64_t e = 0; e < experts; ++e) {
      sizes[3 * e] = wild(counts[static_cast<std::size_t>(e)]);
      sizes[3 * e + 1] = static_cast<std::int32_t>(setup.n);
      sizes[3 * e + 2] = static_cast<std::int32_t>(setup.k);
      if (below(2) == 0) std::swap(sizes[3 * e], sizes[3 * e + 1]);
      pitches[e] = pitches[experts + e] = setup.k;
      pitches[2 * experts + e] = setup.n;
    }
    problem_.problem_sizes = sizes;
    problem_.a_pitches = {pitches, 1, true};
    problem_.b_pitches = {pitches + experts, 1, true};
    problem_.out_pitches = {pitches + 2 * experts, 1, true};
  }

  // Choices of the experts whose offsets these are, in any order, and some that go nowhere; the offsets then begin at 0.
  void choose(std::int32_t* offsets, std::int64_t experts) {
    std::vector<std::int64_t> ids;
    for (std::int64_t e = 0; e < experts; ++e)
      ids.insert(ids.end(), static_cast<std::size_t>(offsets[e + 1] - offsets[e]), e);
    for (std::int64_t e = experts; e >= 0; --e) offsets[e] -= offsets[0];
    ids.push_back(experts);
    if (ids.size() % 2 != 0) ids.push_back(-1);
    std::shuffle(ids.begin(), ids.end(), random_);
    auto* to = allocate<std::int64_t>(static_cast<std::int64_t>(ids.size()));
    std::copy(ids.begin(), ids.end(), to);
    choices_.top_k = 2;
    choices_.tokens = static_cast<std::int64_t>(ids.size()) / 2;
    choices_.experts = experts;
    choices_.ids = to;
    choices_.ids_token_stride = 2;
    choices_.ids_choice_stride = 1;
    choices_.ids_are_int64 = true;
  }

  std::mt19937_64 random_;
  GroupedGemmProblem problem_;
  MoeRouteProblem choices_;
  std::vector<proof::GuardedBuffer> inputs_;
  std::unique_ptr<proof::GuardedBuffer> out_;
};

std::string run_grouped_row(std::int32_t row, const GroupedSetup& setup, const emulator::Conduct& how) {
  const TileConfig& tile = plan_tables::kSm90GroupedTiles[static_cast<std::size_t>(row)];
  GroupedOperands operands(setup, tile.mainloop == Mainloop::int8 ? DType::int8 : DType::float8_e4m3fn);
  GroupedGemmProblem problem = operands.problem();
  problem.fast_accumulation = tile.mainloop != Mainloop::fp8_promoted;
  Plan plan;
  if (const Status planned = plan_tables::plan_grouped_row_sm90(problem, emulator::facts(), row, plan); !planned.ok())
    return planned.text();
  if (const Status solved = emulator::solve_on_cpu(problem); !solved.ok()) return solved.text();
  const std::vector<unsigned char> expected = operands.stored();
  operands.poison_out();
  emulator::conduct(how);
  sm90::EarlyOperands early;
  early.weights = setup.early;
  if (setup.from_ids) early.choices = &operands.choices();
  const Status status = sm90::launch_grouped(plan, problem, nullptr, nullptr, true, early);
  if (!status.ok()) return status.text();
  const std::vector<unsigned char> stored = operands.stored();
  for (std::size_t i = 0; i < stored.size(); ++i)
    if (stored[i] != expected[i]) {
      const auto element = static_cast<std::int64_t>(i) / size_in_bytes(problem.output_dtype);
      return std::string("element ") + proof::at(element / problem.n, element % problem.n) + " differs";
    }
  return operands.damage();
}

class EmulatedGroupedRow : public testing::TestWithParam<std::int32_t> {};

TEST_P(EmulatedGroupedRow, StoresEveryBitWhateverTheOrder) {
  const std::int32_t row = GetParam();
  const TileConfig& tile = plan_tables::kSm90GroupedTiles[static_cast<std::size_t>(row)];
  const std::int64_t features = tile.swap_ab ? tile.m * tile.cluster_m : tile.n * tile.cluster_n,
                     tokens = tile.swap_ab ? tile.n * tile.cluster_n : tile.m * tile.cluster_m;
  constexpr std::array kForms = {GroupedForm::ragged, GroupedForm::masked, GroupedForm::dropin};
  constexpr std::array kRoutings = {Routing::uneven, Routing::one_expert, Routing::hostile};
  constexpr std::array kOutputs = {DType::bfloat16, DType::float16, DType::float32};
  int variant = row + emulator::first_draw();
  for (const GroupedForm form : kForms)
    for (const Routing routing : kRoutings) {
      GroupedSetup setup{};
      setup.form = form;
      setup.routing = routing;
      setup.block_scales = tile.mainloop == Mainloop::fp8_promoted && form != GroupedForm::dropin && variant % 4 != 3;
      setup.row_scales = variant / 2 % 2 == 0;
      setup.tokens_fastest = variant % 3 != 0;
      setup.clear = form != GroupedForm::dropin && variant / 2 % 2 == 1;
      setup.early = form == GroupedForm::ragged && variant % 3 == 1;
      setup.from_ids = setup.early && routing != Routing::hostile && row % 2 == 0;
      setup.experts = 3 + variant % 3;
      setup.rows = (form == GroupedForm::masked ? tokens / 2 : tokens) + 4 * (variant % 5);
      setup.n = (variant / 2 % 2 == 0 ? features + 8 : features / 2 + 24) + variant / 1000 * 8 % 128;
      setup.k = variant % 3 == 0 ? 144 : 128 * tile.stages / 2 + 272;
      setup.output = kOutputs[static_cast<std::size_t>(variant % (form == GroupedForm::dropin ? 2 : 3))];
      setup.seed = static_cast<std::uint64_t>(++variant);
      const emulator::Network network = variant % 2 == 0 ? emulator::Network::any : emulator::Network::late;
      EXPECT_EQ(run_grouped_row(row, setup, {setup.seed, network, setup.early}), "")
          << setup.text() << (network == emulator::Network::late ? ", late" : "");
    }
}

INSTANTIATE_TEST_SUITE_P(Sm90, EmulatedGroupedRow, testing::Range(std::int32_t{0}, plan_tables::kSm90GroupedRows),
                         [](const auto& row) { return std::string(plan_tables::grouped_row_name_sm90(row.param)); });

}  // namespace
}  // namespace evergemm
