// SPDX-License-Identifier: Apache-2.0
// moe_route and the data operators of the drop-in set against lists built token by token: 1 to 512 experts, top_k 1 to 16,
// every routing, ids and offsets of any value. Mirrors src/reference/moe.cpp and src/cpu/moe.cpp.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "cases.h"
#include "evergemm/numerics.h"
#include "moe_cases.h"

namespace {

using namespace evergemm;
using namespace evergemm::proof;

// What each expert receives, in the order of (token, choice).
struct Expected {
  std::vector<std::vector<std::int32_t>> tokens_of;  // by expert
  std::vector<std::int32_t> slot;                    // by choice; -1: nowhere
  std::int32_t routed = 0;
};

Expected expect(const std::vector<std::int64_t>& local, std::int64_t top_k, std::int64_t experts) {
  Expected expected;
  expected.tokens_of.resize(static_cast<std::size_t>(experts));
  std::vector<std::pair<std::int64_t, std::size_t>> order;
  for (std::size_t i = 0; i < local.size(); ++i)
    if (local[i] >= 0 && local[i] < experts) order.emplace_back(local[i], i);
  std::sort(order.begin(), order.end());
  expected.slot.assign(local.size(), -1);
  for (std::size_t row = 0; row < order.size(); ++row) {
    expected.slot[order[row].second] = static_cast<std::int32_t>(row);
    expected.tokens_of[static_cast<std::size_t>(order[row].first)].push_back(
        static_cast<std::int32_t>(static_cast<std::int64_t>(order[row].second) / top_k));
  }
  expected.routed = static_cast<std::int32_t>(order.size());
  return expected;
}

class Routings : public ::testing::TestWithParam<Routing> {};
INSTANTIATE_TEST_SUITE_P(All, Routings, ::testing::ValuesIn(kRoutings),
                         [](const auto& info) { return name(info.param); });

TEST_P(Routings, EveryChoiceHasItsRow) {
  std::uint64_t seed = 1;
  for (const RoutingCase& c : routing_cases())
    for (const bool wide : {false, true})
      for (const bool mapped : {false, true}) {
        Random random(seed);
        SCOPED_TRACE("seed " + std::to_string(seed++) + " tokens " + std::to_string(c.tokens) + " top_k " +
                     std::to_string(c.top_k) + " experts " + std::to_string(c.experts));
        const std::int64_t global = mapped ? 2 * c.experts + 1 : c.experts, choices = c.tokens * c.top_k;
        // Gaps between ids hold valid ids, which must not be read as such.
        const std::int64_t choice_stride = 1 + below(random, 2),
                           token_stride = c.top_k * choice_stride + below(random, 3);
        const std::int64_t size = wide ? 8 : 4;
        GuardedBuffer ids(static_cast<std::size_t>(c.tokens * token_stride * size)),
            map(static_cast<std::size_t>(2 * (global + 2) * size));
        for (std::int64_t i = 0; i < c.tokens * token_stride; ++i) store_index(ids, wide, i, 0);
        std::vector<std::int64_t> local;
        std::vector<std::int64_t> map_values;
        for (std::int64_t i = 0; i < global; ++i) {
          map_values.push_back(below(random, 3) == 0 ? hostile(random, c.experts, wide) : below(random, c.experts));
          store_index(map, wide, 2 * i, map_values.back());
          store_index(map, wide, 2 * i + 1, 0);
        }
        for (std::int64_t i = 2 * global; i < 2 * global + 4; ++i)
          store_index(map, wide, i, 0);  // behind the map: an expert
        for (std::int64_t token = 0; token < c.tokens; ++token)
          for (std::int64_t choice = 0; choice < c.top_k; ++choice) {
            const std::int64_t id = choose_expert(random, GetParam(), global, choice, wide);
            store_index(ids, wide, token * token_stride + choice * choice_stride, id);
            const bool known = id >= 0 && id < global;
            local.push_back(!known ? -1 : mapped ? map_values[static_cast<std::size_t>(id)] : id);
          }
        ids.seal();
        map.seal();
        MoeRouteProblem problem;
        problem.tokens = c.tokens;
        problem.top_k = c.top_k;
        problem.experts = c.experts;
        problem.ids = ids.as<void>();
        problem.ids_token_stride = token_stride;
        problem.ids_choice_stride = choice_stride;
        problem.ids_are_int64 = wide;
        if (mapped) {
          problem.expert_map.data = map.as<void>();
          problem.expert_map.stride = 2;
          problem.expert_map.is_int64 = wide;
          problem.expert_map_size = global;
        }
        const Expected expected = expect(local, c.top_k, c.experts);
        for (const Runner& runner : runners()) {
          SCOPED_TRACE(runner.text());
          GuardedBuffer offsets(static_cast<std::size_t>(c.experts + 1) * 4),
              source(static_cast<std::size_t>(choices) * 4), slot(static_cast<std::size_t>(choices) * 4);
          problem.expert_offsets = offsets.as<std::int32_t>();
          problem.source_row = source.as<std::int32_t>();
          problem.slot = slot.as<std::int32_t>();
          std::fill(problem.source_row, problem.source_row + choices, 77);  // the poison reads as -1, "no token"
          std::fill(problem.slot, problem.slot + choices, 77);
          ASSERT_EQ(run_with(runner, problem), "");
          std::int32_t row = 0;
          for (std::int64_t expert = 0; expert < c.experts; ++expert) {
            ASSERT_EQ(problem.expert_offsets[expert], row) << expert;
            for (const std::int32_t token : expected.tokens_of[static_cast<std::size_t>(expert)])
              ASSERT_EQ(problem.source_row[row++], token) << row;
          }
          ASSERT_EQ(problem.expert_offsets[c.experts], expected.routed);
          for (; row < choices; ++row) ASSERT_EQ(problem.source_row[row], -1) << row;
          for (std::int64_t i = 0; i < choices; ++i)
            ASSERT_EQ(problem.slot[i], expected.slot[static_cast<std::size_t>(i)]) << i;
          // The rows of the choices that went somewhere are each row once.
          const std::set<std::int32_t> distinct(problem.slot, problem.slot + choices);
          ASSERT_EQ(distinct.size() - distinct.count(-1), static_cast<std::size_t>(expected.routed));
          ASSERT_EQ(ids.damage() + map.damage() + offsets.damage() + source.damage() + slot.damage(), "");
        }
      }
}

TEST_P(Routings, DropinDataHasTheSameOrder) {
  std::uint64_t seed = 1000;
  for (const RoutingCase& c : routing_cases())
    for (const bool blockscales : {false, true}) {
      Random random(seed);
      SCOPED_TRACE("seed " + std::to_string(seed++) + " tokens " + std::to_string(c.tokens) + " top_k " +
                   std::to_string(c.top_k) + " experts " + std::to_string(c.experts));
      const std::int64_t choices = c.tokens * c.top_k;
      GuardedBuffer ids(static_cast<std::size_t>(choices) * 4);
      std::vector<std::int64_t> local;
      for (std::int64_t i = 0; i < choices; ++i) {
        local.push_back(choose_expert(random, GetParam(), c.experts, i % c.top_k, false));
        store_index(ids, false, i, local.back());
      }
      ids.seal();
      const Expected expected = expect(local, c.top_k, c.experts);
      MoeDataProblem problem;
      problem.tokens = c.tokens;
      problem.top_k = c.top_k;
      problem.experts = c.experts;
      problem.ids = ids.as<std::int32_t>();
      problem.ids_token_stride = c.top_k;
      problem.ids_choice_stride = 1;
      problem.n1 = 96;
      problem.n = 48;
      problem.k = 32;
      problem.transposed = !blockscales && choices <= 64;
      for (const Runner& runner : runners()) {
        SCOPED_TRACE(runner.text());
        GuardedBuffer offsets(static_cast<std::size_t>(c.experts + 1) * 4),
            padded(static_cast<std::size_t>(c.experts + 1) * 4), sizes1(static_cast<std::size_t>(c.experts) * 12),
            sizes2(static_cast<std::size_t>(c.experts) * 12), input(static_cast<std::size_t>(choices) * 4),
            output(static_cast<std::size_t>(choices) * 4);
        problem.expert_offsets = offsets.as<std::int32_t>();
        problem.problem_sizes1 = sizes1.as<std::int32_t>();
        problem.problem_sizes2 = sizes2.as<std::int32_t>();
        problem.input_permutation = input.as<std::int32_t>();
        problem.output_permutation = output.as<std::int32_t>();
        problem.blockscale_offsets = blockscales ? padded.as<std::int32_t>() : nullptr;
        ASSERT_EQ(run_with(runner, problem), "");
        std::int32_t row = 0, padded_row = 0;
        for (std::int64_t expert = 0; expert < c.experts; ++expert) {
          const std::vector<std::int32_t>& tokens = expected.tokens_of[static_cast<std::size_t>(expert)];
          const std::int32_t m = static_cast<std::int32_t>(tokens.size());
          ASSERT_EQ(problem.expert_offsets[expert], row);
          if (blockscales) {
            ASSERT_EQ(problem.blockscale_offsets[expert], padded_row);
          }
          padded_row += (m + 127) / 128 * 128;
          const std::int32_t first[2][3] = {{m, 96, 32}, {96, m, 32}}, second[2][3] = {{m, 32, 48}, {32, m, 48}};
          for (int i = 0; i < 3; ++i) {
            ASSERT_EQ(problem.problem_sizes1[3 * expert + i], first[problem.transposed][i]);
            ASSERT_EQ(problem.problem_sizes2[3 * expert + i], second[problem.transposed][i]);
          }
          for (const std::int32_t token : tokens) ASSERT_EQ(problem.input_permutation[row++], token);
        }
        ASSERT_EQ(problem.expert_offsets[c.experts], expected.routed);
        if (blockscales) {
          ASSERT_EQ(problem.blockscale_offsets[c.experts], padded_row);
        }
        for (; row < choices; ++row) ASSERT_EQ(problem.input_permutation[row], -1) << "untouched: still the poison";
        for (std::int64_t i = 0; i < choices; ++i) {
          const std::int32_t slot = expected.slot[static_cast<std::size_t>(i)];
          ASSERT_EQ(problem.output_permutation[i], slot < 0 ? expected.routed : slot);
        }
        ASSERT_EQ(ids.damage() + offsets.damage() + padded.damage() + sizes1.damage() + sizes2.damage() +
                      input.damage() + output.damage(),
                  "");
      }
    }
}

TEST(Sizes, FromOffsetsOfAnyValue) {
  Random random(5);
  for (int repeat = 0; repeat < 200; ++repeat) {
    const std::int64_t experts = below(random, 9);
    GuardedBuffer offsets(static_cast<std::size_t>(experts + 1) * 8);
    std::vector<std::int64_t> values;
    for (std::int64_t e = 0; e <= experts; ++e) {
      values.push_back(repeat % 2 == 0 ? 10 * e + below(random, 10) : hostile(random, 40, true));
      store_index(offsets, true, e, values.back());
    }
    offsets.seal();
    MoeDataProblem problem;
    problem.kind = MoeDataKind::sizes_from_offsets;
    problem.experts = experts;
    problem.input.data = offsets.as<void>();
    problem.input.is_int64 = true;
    problem.n1 = 14;
    problem.n = 7;
    problem.k = 5;
    problem.transposed = repeat % 3 == 0;
    for (const Runner& runner : runners()) {
      GuardedBuffer sizes1(static_cast<std::size_t>(experts) * 12), sizes2(static_cast<std::size_t>(experts) * 12);
      problem.problem_sizes1 = sizes1.as<std::int32_t>();
      problem.problem_sizes2 = sizes2.as<std::int32_t>();
      ASSERT_EQ(run_with(runner, problem), "");
      std::int64_t most = 0, previous = 0;  // the largest offset so far, kept inside [0, 2^31)
      for (std::int64_t e = 0; e <= experts; ++e) {
        most = std::max(most, std::min<std::int64_t>(values[static_cast<std::size_t>(e)], 2147483647));
        if (e > 0) {
          const std::int32_t m = static_cast<std::int32_t>(most - previous);
          const std::int32_t* first = problem.problem_sizes1 + 3 * (e - 1);
          const std::int32_t* second = problem.problem_sizes2 + 3 * (e - 1);
          const int m_at = problem.transposed ? 1 : 0;
          ASSERT_EQ(first[m_at], m) << "repeat " << repeat << " expert " << e - 1;
          ASSERT_EQ(first[1 - m_at], 14);
          ASSERT_EQ(first[2], 5);
          ASSERT_EQ(second[m_at], m);
          ASSERT_EQ(second[1 - m_at], 5);
          ASSERT_EQ(second[2], 7);
        }
        previous = most;
      }
      ASSERT_EQ(offsets.damage() + sizes1.damage() + sizes2.damage(), "");
    }
  }
}

TEST(Sizes, BatchedCountsOfAnyValue) {
  Random random(6);
  for (int repeat = 0; repeat < 200; ++repeat) {
    const std::int64_t experts = 1 + below(random, 9), padded = below(random, 30);
    GuardedBuffer counts(static_cast<std::size_t>(experts) * 4);
    std::vector<std::int64_t> values;
    for (std::int64_t e = 0; e < experts; ++e) {
      values.push_back(repeat % 2 == 0 ? below(random, padded + 1) : hostile(random, padded, false));
      store_index(counts, false, e, values.back());
    }
    counts.seal();
    MoeDataProblem problem;
    problem.kind = MoeDataKind::batched;
    problem.experts = experts;
    problem.padded_rows = padded;
    problem.input.data = counts.as<void>();
    problem.n1 = 14;
    problem.n = 7;
    problem.k = 5;
    for (const Runner& runner : runners()) {
      GuardedBuffer offsets(static_cast<std::size_t>(experts) * 4), sizes1(static_cast<std::size_t>(experts) * 12),
          sizes2(static_cast<std::size_t>(experts) * 12);
      problem.expert_offsets = offsets.as<std::int32_t>();
      problem.problem_sizes1 = sizes1.as<std::int32_t>();
      problem.problem_sizes2 = sizes2.as<std::int32_t>();
      ASSERT_EQ(run_with(runner, problem), "");
      for (std::int64_t e = 0; e < experts; ++e) {
        const std::int64_t value = values[static_cast<std::size_t>(e)], m = value < 0 ? 0 : std::min(value, padded);
        ASSERT_EQ(problem.expert_offsets[e], e * padded);
        ASSERT_EQ(problem.problem_sizes1[3 * e], m);
        ASSERT_EQ(problem.problem_sizes1[3 * e + 1], 14);
        ASSERT_EQ(problem.problem_sizes2[3 * e], m);
        ASSERT_EQ(problem.problem_sizes2[3 * e + 1], 5);
        ASSERT_EQ(problem.problem_sizes2[3 * e + 2], 7);
      }
      ASSERT_EQ(counts.damage() + offsets.damage() + sizes1.damage() + sizes2.damage(), "");
    }
  }
}

}  // namespace
