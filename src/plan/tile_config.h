// SPDX-License-Identifier: Apache-2.0
// One tile configuration of a tensor-core kernel as a structural value: an entry of an architecture's table, the template
// argument of the kernel that it describes, and the source of that kernel's name.
// Must not go here: CUDA, the tables themselves.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace evergemm::plan_tables {

// What the main loop multiplies and how it sums.
enum class Mainloop : std::uint8_t {
  int8,          // int32 sums, exact
  fp8_fast,      // sums stay in the tensor core for all of k
  fp8_promoted,  // each 128 of k is added to an fp32 sum, with block scales or without
};

enum class Schedule : std::uint8_t {
  basic,        // one consumer warpgroup
  pingpong,     // two consumer warpgroups, a tile each: one multiplies while the other stores
  cooperative,  // two consumer warpgroups share a tile, half its rows each
};

// "Rows" and "columns" are those of the matrix instruction: rows are tokens and columns output features, the other way
// round where swap_ab is set.
struct TileConfig {
  Mainloop mainloop;
  std::int32_t m, n;  // rows and columns of a tile
  std::int32_t k;     // bytes of k that a pipeline stage holds: 128 or 256
  std::int32_t stages;
  std::int32_t cluster_m, cluster_n;  // CTAs side by side that share operand tiles by multicast
  std::int32_t split_k;               // CTAs of a cluster that share a tile's k range
  Schedule schedule;
  bool swap_ab;
  bool grouped = false;  // one product an expert, whose rows the device reads (sm90_grouped.h)

  friend constexpr bool operator==(const TileConfig&, const TileConfig&) = default;
};

// The name of a row, put together at compile time.
struct RowName {
  std::array<char, 72> text{};
  std::size_t length = 0;

  constexpr std::string_view view() const { return std::string_view(text.data(), length); }

  constexpr void append(std::string_view part) {
    for (const char letter : part) text[length++] = letter;
  }
  constexpr void append(std::int32_t number) {
    std::int32_t divisor = 1;
    while (number / divisor >= 10) divisor *= 10;
    for (; divisor > 0; divisor /= 10) text[length++] = static_cast<char>('0' + number / divisor % 10);
  }
};

// "sm90_fp8_128x256x128_c2x1_cooperative", "sm90_fp8promoted_64x16x128_c1x1_split4_basic_swap".
constexpr RowName name_of(const TileConfig& config) {
  RowName name;
  name.append(config.mainloop == Mainloop::int8       ? "sm90_int8_"
              : config.mainloop == Mainloop::fp8_fast ? "sm90_fp8_"
                                                      : "sm90_fp8promoted_");
  name.append(config.m);
  name.append("x");
  name.append(config.n);
  name.append("x");
  name.append(config.k);
  name.append("_c");
  name.append(config.cluster_m);
  name.append("x");
  name.append(config.cluster_n);
  if (config.split_k > 1) {
    name.append("_split");
    name.append(config.split_k);
  }
  name.append(config.schedule == Schedule::basic      ? "_basic"
              : config.schedule == Schedule::pingpong ? "_pingpong"
                                                      : "_cooperative");
  if (config.swap_ab) name.append("_swap");
  if (config.grouped) name.append("_grouped");
  return name;
}

// A table of what its parts hold, in their order.
template <std::size_t... kCounts>
constexpr auto joined(const std::array<TileConfig, kCounts>&... parts) {
  std::array<TileConfig, (kCounts + ...)> all{};
  std::size_t at = 0;
  const auto append = [&all, &at](const auto& part) {
    for (const TileConfig& tile : part) all[at++] = tile;
  };
  (append(parts), ...);
  return all;
}

}  // namespace evergemm::plan_tables
