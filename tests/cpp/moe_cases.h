// SPDX-License-Identifier: Apache-2.0
// Routings, hostile integers and buffers for the mixture-of-experts tests. Header only. Must not go here: what the operators
// should compute (each test has its own oracle).
#pragma once
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "evergemm/moe.h"
#include "evergemm/plan.h"
#include "evergemm/run.h"
#include "plan/cpu_moe.h"
#include "red_zones.h"

namespace evergemm::proof {

using Random = std::mt19937_64;

inline std::int64_t below(Random& random, std::int64_t limit) {
  return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(limit));
}

enum class Routing : std::uint8_t { uniform, one_hot, all_empty, trailing_empty, duplicates, hostile };
inline constexpr Routing kRoutings[] = {Routing::uniform,        Routing::one_hot,    Routing::all_empty,
                                        Routing::trailing_empty, Routing::duplicates, Routing::hostile};
inline const char* name(Routing routing) {
  constexpr const char* kNames[] = {"uniform", "one_hot", "all_empty", "trailing_empty", "duplicates", "hostile"};
  return kNames[static_cast<int>(routing)];
}

// An integer that no caller should send, or should.
inline std::int64_t hostile(Random& random, std::int64_t limit, bool wide) {
  switch (below(random, wide ? 10 : 8)) {
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
      return static_cast<std::int32_t>(random());
    case 7:
      return below(random, limit + 1);
    case 8:
      return std::numeric_limits<std::int64_t>::min();
    default:
      return std::numeric_limits<std::int64_t>::max();
  }
}

inline std::int64_t choose_expert(Random& random, Routing routing, std::int64_t experts, std::int64_t choice,
                                  bool wide) {
  switch (routing) {
    case Routing::uniform:
      return below(random, experts);
    case Routing::one_hot:
      return choice == 0 ? experts / 2 : below(random, experts);
    case Routing::all_empty:
      return -1;
    case Routing::trailing_empty:
      return below(random, experts / 2 + 1);
    case Routing::duplicates:
      return (choice / 2) % experts;
    case Routing::hostile:
      return below(random, 2) == 0 ? below(random, experts) : hostile(random, experts, wide);
  }
  return 0;
}

inline void store_index(GuardedBuffer& buffer, bool wide, std::int64_t at, std::int64_t value) {
  if (wide)
    buffer.as<std::int64_t>()[at] = value;
  else
    buffer.as<std::int32_t>()[at] = static_cast<std::int32_t>(value);
}

// Every element that a bit pattern can hold but NaN, so that products stay comparable.
inline void fill_codes(GuardedBuffer& buffer, DType dtype, Random& random) {
  for (std::size_t i = 0; i < buffer.bytes(); ++i) {
    unsigned char code = static_cast<unsigned char>(random());
    if (dtype == DType::float8_e4m3fn && (code & 0x7f) == 0x7f) code ^= 1;
    buffer.as()[i] = code;
  }
}
inline void fill_scales(GuardedBuffer& buffer, Random& random) {
  for (std::size_t i = 0; i < buffer.bytes() / 4; ++i)
    buffer.as<float>()[i] = 0.001f + static_cast<float>(below(random, 1000)) / 997.0f;
}
inline void fill_values(GuardedBuffer& buffer, DType dtype, Random& random) {
  std::normal_distribution<float> normal;
  for (std::size_t i = 0; i < buffer.bytes() / static_cast<std::size_t>(size_in_bytes(dtype)); ++i) {
    const float value = normal(random) * 2;
    if (dtype == DType::bfloat16)
      buffer.as<std::uint16_t>()[i] = numerics::float_to_bfloat16(value);
    else if (dtype == DType::float16)
      buffer.as<std::uint16_t>()[i] = numerics::float_to_float16(value);
    else
      buffer.as<float>()[i] = value;
  }
}

// How a problem is run: by the specification, or by a row of the CPU's with one or several threads.
struct Runner {
  std::int32_t row;
  bool threads;
  std::string text() const {
    return std::string(plan_tables::kCpuMoeRows[static_cast<std::size_t>(row)].name) + (threads ? ", threads" : "");
  }
};
// The specification first, then every row that this processor can run.
inline std::vector<Runner> runners() {
  std::vector<Runner> all{{0, false}};
  const std::int32_t best = plan_tables::cpu_moe_row(cpu_facts().instruction_set);
  for (std::int32_t row = 1; row <= best; ++row) all.push_back({row, false});
  all.push_back({best, true});
  return all;
}

// Plans, gives a guarded workspace, runs. "" or what is wrong.
template <class Problem>
std::string run_with(const Runner& runner, const Problem& problem) {
  Plan chosen;
  const Status planned = plan(problem, cpu_facts(), chosen);
  if (!planned.ok()) return planned.text();
  if (chosen.row < 0) return "";
  chosen.row = runner.row;
  GuardedBuffer workspace(static_cast<std::size_t>(chosen.workspace_bytes));
  RunContext context;
  context.workspace = workspace.as<void>();
  if (runner.threads) {
    context.parallel_for = parallel_for_threads;
    context.threads = 3;
  }
  const Status done = run(chosen, problem, context);
  return done.ok() ? workspace.damage() : done.text();
}

}  // namespace evergemm::proof
