// SPDX-License-Identifier: Apache-2.0
// The fuzzers' promises on random bytes, without clang: every operator is called many times, and each must also have
// been accepted, or the promises about accepted calls would never have been asked.
#include <gtest/gtest.h>

#include <random>

#include "calls.h"

namespace evergemm::fuzz {
namespace {

constexpr int kCallsEach = 12000;

class FuzzSmoke : public testing::TestWithParam<std::size_t> {};

TEST_P(FuzzSmoke, RandomCallsKeepEveryPromise) {
  const unsigned seed = 20261123u + static_cast<unsigned>(GetParam());
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  int accepted_calls = 0;
  std::uint8_t input[256];
  for (int i = 0; i < kCallsEach; ++i) {
    for (std::uint8_t& byte : input) {
      const std::uint32_t value = random();
      byte = static_cast<std::uint8_t>((value & 0x300u) != 0 ? value % 40 : value);  // mostly calm choices
    }
    input[0] = static_cast<std::uint8_t>(GetParam());
    Bytes bytes(input, sizeof input);
    const Call call = any_call(bytes);
    Prepared prepared;
    bool accepted = false;
    ASSERT_EQ(wrong_with_preparation(call, prepared, accepted), "") << "call " << i;
    if (!accepted) continue;
    ++accepted_calls;
    ASSERT_EQ(wrong_with_plans(prepared, random(), static_cast<std::int32_t>(random() % 16) - 2), "") << "call " << i;
  }
  RecordProperty("accepted", accepted_calls);
  EXPECT_GT(accepted_calls, kCallsEach / 10) << all_operators()[GetParam()].name << " is hardly ever accepted";
}

INSTANTIATE_TEST_SUITE_P(Operators, FuzzSmoke, testing::Range(std::size_t{0}, all_operators().size()),
                         [](const auto& info) {
                           std::string text = all_operators()[info.param].name;
                           for (char& c : text)
                             if (c == '.') c = '_';
                           return text;
                         });

}  // namespace
}  // namespace evergemm::fuzz
