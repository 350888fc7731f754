// SPDX-License-Identifier: Apache-2.0
// The Hopper kernels' own source on an emulated multiprocessor (machine.h), where everything that hardware may do in any order is
// drawn: every row over problems with tails, with fewer blocks of k than stages and with more, with several tiles a block, with
// blocks of a cluster that have nothing to store. Exact operands, so that each bit of the answer is known; what waits for ever,
// reaches a block that has left, or is not where it should be ends a launch with a sentence.
#include <gtest/gtest.h>

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "bound_checker.h"
#include "cuda/sm90/instances.h"
#include "cuda/sm90/launch.h"
#include "emulated.h"
#include "gemm_operands.h"
#include "plan/sm90.h"
#include "plan/table.h"

namespace evergemm {
namespace {

using plan_tables::kSm90Rows;
using plan_tables::kSm90Table;
using plan_tables::kSm90Tiles;
using plan_tables::Mainloop;
using plan_tables::TileConfig;

using KernelOf = const void* (*)();
template <int... kTiles>
constexpr auto make_kernels(std::integer_sequence<int, kTiles...>) {
  return std::array<KernelOf, sizeof...(kTiles)>{&sm90::kernel_of<kTiles>...};
}
constexpr auto kKernels = make_kernels(std::make_integer_sequence<int, kSm90Rows>());

// Run-time values that a launch can meet, drawn by `variant`.
proof::GemmSetup setup_of(const TileConfig& tile, std::int64_t m, std::int64_t n, std::int64_t k, int variant) {
  constexpr std::array kOutputs = {DType::bfloat16, DType::float32, DType::float16};
  proof::GemmSetup setup;
  setup.m = m;
  setup.n = n;
  setup.k = k;
  setup.data = proof::Data::exact;
  setup.input = tile.mainloop == Mainloop::int8 ? DType::int8 : DType::float8_e4m3fn;
  setup.output = kOutputs[static_cast<std::size_t>(variant % 3)];
  setup.bias = variant % 2 == 1;
  setup.scale_a = variant % 4 < 2 ? ScaleMode::RowWise : ScaleMode::TensorWise;
  setup.scale_b = variant % 4 == 1 ? ScaleMode::TensorWise : ScaleMode::RowWise;
  if (tile.mainloop == Mainloop::fp8_promoted && variant % 4 != 3) {
    setup.scale_a = ScaleMode::BlockWise1x128;
    setup.scale_b = ScaleMode::BlockWise128x128;
    setup.transposed_scales = variant % 4 != 2;  // as the copy engine reads them where m is a multiple of 4
  }
  if (tile.mainloop == Mainloop::int8 && variant % 3 == 2)
    setup.zero_point = variant % 2 == 0 ? proof::ZeroPoint::per_row : proof::ZeroPoint::folded;
  setup.a_padding = variant % 3 * 16 + (16 - k % 16) % 16;
  setup.b_padding = (16 - k % 16) % 16;
  // The copy engine stores rows that lie multiples of 16 bytes apart.
  constexpr std::array<std::int64_t, 5> kOutPads = {0, 8, 3, 0, 1};
  setup.out_padding = kOutPads[static_cast<std::size_t>(variant % 5)];
  setup.vector_stride = 1 + variant % 2;
  setup.seed = static_cast<std::uint64_t>(variant) + 1;
  return setup;
}

// "" or what went wrong.
std::string run_row(std::int32_t row, const proof::GemmSetup& setup, const emulator::Conduct& how) {
  proof::GemmOperands operands(setup);
  GemmProblem& problem = operands.problem();
  problem.fast_accumulation = kSm90Tiles[static_cast<std::size_t>(row)].mainloop != Mainloop::fp8_promoted;
  problem.device = Device{DeviceType::cuda, 0};
  const std::string why_not = kSm90Table.why_not(problem, emulator::facts(), row);
  if (!why_not.empty()) return std::string("cannot run: ") + why_not;
  if (const Status solved = emulator::solve_on_cpu(problem); !solved.ok()) return solved.text();
  const auto bytes = static_cast<std::size_t>(((problem.m - 1) * problem.out_stride + problem.n) *
                                              size_in_bytes(problem.output_dtype));
  const auto* stored = static_cast<const unsigned char*>(problem.out);
  const std::vector<unsigned char> expected(stored, stored + bytes);
  operands.poison_out();
  Plan plan;
  plan.architecture = Architecture::sm90a;
  plan.row = row;
  plan.name = kSm90Table.row_name(row);
  kSm90Table.finish(problem, emulator::facts(), plan);
  emulator::conduct(how);
  const Status status = sm90::launch(plan, problem, kKernels[static_cast<std::size_t>(row)](), nullptr, true);
  if (!status.ok()) return status.text();
  const proof::Verdict verdict = proof::check_same(problem, expected.data(), problem.out_stride);
  return !verdict.failure.empty() ? verdict.failure : operands.damage();
}

class EmulatedRow : public testing::TestWithParam<std::int32_t> {};

TEST_P(EmulatedRow, StoresEveryBitWhateverTheOrder) {
  const TileConfig& tile = kSm90Tiles[static_cast<std::size_t>(GetParam())];
  const std::int64_t rows = tile.m * tile.cluster_m, columns = tile.n * tile.cluster_n;
  const std::int64_t tokens = tile.swap_ab ? columns : rows, features = tile.swap_ab ? rows : columns;
  struct Size {
    std::int64_t m, n, k;
    bool past_edges = false;  // a cluster reaches past both
  };
  const bool in_turns = tile.schedule == plan_tables::Schedule::pingpong;
  const std::int64_t ring = std::int64_t{tile.k} * tile.stages * tile.split_k,
                     clusters = emulator::kMultiprocessors / (tile.cluster_m * tile.cluster_n * tile.split_k);
  const Size sizes[] = {
      {1, features - 3, 3 * tile.k * tile.split_k - 32},  // one tile, shorter than the ring
      {tokens + 4, features / 2 + 8, ring + 2 * tile.k + 16},
      {tokens / 2, 2 * features + features / 8, 3 * tile.k, true},
      {tokens + tokens / 8, features / 8, 2 * ring, true},  // all that is left is one CTA's
      // Several tiles a block; two a warpgroup that takes its own, each longer than the ring.
      {tokens / 2, (in_turns ? 4 : 2) * clusters * features - 8, in_turns ? ring + tile.k : 2 * tile.k * tile.split_k},
  };
  int variant = GetParam() + emulator::first_draw();
  for (const Size& size : sizes) {
    if (size.past_edges && tile.cluster_m * tile.cluster_n == 1) continue;
    // A CTA at the corner that runs ahead of the one across shows in few orders.
    const int orders = size.past_edges && tile.cluster_m > 1 && tile.cluster_n > 1 ? 2 : 1;
    for (int order = 0; order < orders; ++order)
      for (const emulator::Network network : {emulator::Network::any, emulator::Network::late}) {
        const std::int64_t more = emulator::first_draw() == 0 ? 0 : variant * 7919 % 64;
        const proof::GemmSetup setup =
            setup_of(tile, size.m + more % 5, size.n + more * 4, size.k + more * 16, variant++);
        const emulator::Conduct how{static_cast<std::uint64_t>(variant), network};
        EXPECT_EQ(run_row(GetParam(), setup, how), "")
            << setup.text() << (network == emulator::Network::late ? ", late" : "");
      }
  }
}

INSTANTIATE_TEST_SUITE_P(Sm90, EmulatedRow, testing::Range(std::int32_t{0}, kSm90Rows),
                         [](const auto& row) { return std::string(kSm90Table.row_name(row.param)); });

}  // namespace
}  // namespace evergemm
