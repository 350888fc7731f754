// SPDX-License-Identifier: Apache-2.0
// The portable family's rows and costs: one kernel template on warp-level tensor core instructions for every NVIDIA GPU from
// Turing on. A row is compiled for the architectures of one memory class, which sets its number of stages.
// Data only: cmake/PortableInstances.cmake compiles the rows, src/cuda/portable has the template, plan/portable.cpp chooses.
// Must not go here: CUDA, decisions.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "evergemm/types.h"
#include "plan/rules.h"
#include "plan/tile_config.h"

namespace evergemm::plan_tables {

// Architectures whose blocks may have as much shared memory, and so the same rows.
enum class MemoryClass : std::uint8_t {
  turing,  // 64 KB, no asynchronous copies: two stages through registers
  small,   // 99 KB: sm_86, sm_89, sm_120, sm_121
  large,   // 163 KB (sm_80) and 227 KB (sm_90a, sm_100, sm_103, sm_110)
};

struct PortableTile {
  Mainloop mainloop;
  std::int32_t m, n;  // tokens and output features of a tile
  std::int32_t k;     // bytes of k in a stage: 64 or 128
  std::int32_t warps_m, warps_n;
  std::int32_t stages;

  friend constexpr bool operator==(const PortableTile&, const PortableTile&) = default;
};

constexpr std::int32_t threads_of(const PortableTile& tile) { return tile.warps_m * tile.warps_n * 32; }
constexpr std::int32_t shared_memory_of(const PortableTile& tile) { return (tile.m + tile.n) * tile.k * tile.stages; }
// Whether the kernel's 32-bit counts hold the tiles along n, eight rows of which are walked together, and the stages of k.
constexpr bool counts_in_32_bits(const PortableTile& tile, std::int64_t n, std::int64_t k) {
  return n / tile.n < (std::int64_t{1} << 29) - 1 && k / tile.k < (std::int64_t{1} << 31) - 1;
}

// Bytes of shared memory that a block may ask for (CUDA programming guide, table of compute capabilities).
constexpr std::int32_t shared_memory_limit(Architecture architecture) {
  constexpr std::int32_t kib = 1024;
  switch (architecture) {
    case Architecture::cpu:
      return 0;
    case Architecture::sm75:
      return 64 * kib;
    case Architecture::sm80:
      return 163 * kib;
    case Architecture::sm86:
    case Architecture::sm89:
    case Architecture::sm120:
    case Architecture::sm121:
      return 99 * kib;
    case Architecture::sm90a:
    case Architecture::sm100:
    case Architecture::sm103:
    case Architecture::sm110:
      return 227 * kib;
  }
  return 0;
}

struct PortableArchitecture {
  Architecture architecture;
  MemoryClass memory;
  bool multiplies_fp8;  // has tensor core instructions of its own for e4m3; the others multiply fp16
};
inline constexpr std::array kPortableArchitectures = {
    PortableArchitecture{Architecture::sm75, MemoryClass::turing, false},
    PortableArchitecture{Architecture::sm80, MemoryClass::large, false},
    PortableArchitecture{Architecture::sm86, MemoryClass::small, false},
    PortableArchitecture{Architecture::sm89, MemoryClass::small, true},
    PortableArchitecture{Architecture::sm90a, MemoryClass::large, false},
    PortableArchitecture{Architecture::sm100, MemoryClass::large, false},
    PortableArchitecture{Architecture::sm103, MemoryClass::large, false},
    PortableArchitecture{Architecture::sm110, MemoryClass::large, false},
    PortableArchitecture{Architecture::sm120, MemoryClass::small, true},
    PortableArchitecture{Architecture::sm121, MemoryClass::small, true},
};

constexpr const PortableArchitecture& entry_of(Architecture architecture) {
  for (const PortableArchitecture& entry : kPortableArchitectures)
    if (entry.architecture == architecture) return entry;
  return kPortableArchitectures[0];
}

// "portable_int8_128x128x64_s3".
constexpr RowName name_of(const PortableTile& tile) {
  RowName name;
  name.append(tile.mainloop == Mainloop::int8       ? "portable_int8_"
              : tile.mainloop == Mainloop::fp8_fast ? "portable_fp8_"
                                                    : "portable_fp8promoted_");
  name.append(tile.m);
  name.append("x");
  name.append(tile.n);
  name.append("x");
  name.append(tile.k);
  name.append("_s");
  name.append(tile.stages);
  return name;
}

// ---- rows ----------------------------------------------------------------------------------------------------------------

inline constexpr std::size_t kPortableRows = 22;

// Few tokens: 16 and 32 of them, with 128 bytes of k a stage and many stages, so that weights stream; 32 features where there
// are few of those too. Many: 64 x 64 a warp, the most products for each byte that a warp reads from shared memory. Promotion
// keeps a second set of sums: half of that.
// clang-format off
constexpr std::array<PortableTile, kPortableRows> portable_rows(MemoryClass memory) {
  const auto stages = [memory](std::int32_t turing, std::int32_t small, std::int32_t large) {
    return memory == MemoryClass::turing ? turing : memory == MemoryClass::small ? small : large;
  };
  return {
      //                                    m    n    k   warps  stages
      PortableTile{Mainloop::int8,          16,  32, 128, 1, 2, stages(2, 6, 12)},
      PortableTile{Mainloop::int8,          16,  64, 128, 1, 4, stages(2, 4, 8)},
      PortableTile{Mainloop::int8,          32,  64, 128, 1, 4, stages(2, 4, 6)},
      PortableTile{Mainloop::int8,          64,  64, 128, 2, 2, stages(2, 3, 4)},
      PortableTile{Mainloop::int8,          64, 128,  64, 2, 2, stages(2, 4, 5)},
      PortableTile{Mainloop::int8,         128,  64, 128, 2, 2, stages(2, 4, 4)},
      PortableTile{Mainloop::int8,         128, 128,  64, 2, 2, stages(2, 3, 4)},
      PortableTile{Mainloop::int8,         128, 256,  64, 2, 4, stages(2, 4, 4)},
      PortableTile{Mainloop::fp8_fast,      16,  32, 128, 1, 2, stages(2, 6, 12)},
      PortableTile{Mainloop::fp8_fast,      16,  64, 128, 1, 4, stages(2, 4, 8)},
      PortableTile{Mainloop::fp8_fast,      32,  64, 128, 1, 4, stages(2, 4, 6)},
      PortableTile{Mainloop::fp8_fast,      64,  64, 128, 2, 2, stages(2, 3, 4)},
      PortableTile{Mainloop::fp8_fast,      64, 128,  64, 2, 2, stages(2, 4, 5)},
      PortableTile{Mainloop::fp8_fast,     128,  64, 128, 2, 2, stages(2, 4, 4)},
      PortableTile{Mainloop::fp8_fast,     128, 128,  64, 2, 2, stages(2, 3, 4)},
      PortableTile{Mainloop::fp8_fast,     128, 256,  64, 2, 4, stages(2, 4, 4)},
      PortableTile{Mainloop::fp8_promoted,  16,  32, 128, 1, 2, stages(2, 6, 12)},
      PortableTile{Mainloop::fp8_promoted,  16,  64, 128, 1, 4, stages(2, 4, 8)},
      PortableTile{Mainloop::fp8_promoted,  32,  64, 128, 1, 4, stages(2, 4, 6)},
      PortableTile{Mainloop::fp8_promoted,  64,  64, 128, 2, 2, stages(2, 3, 4)},
      PortableTile{Mainloop::fp8_promoted,  64, 128,  64, 2, 4, stages(2, 4, 5)},
      PortableTile{Mainloop::fp8_promoted, 128, 128,  64, 2, 4, stages(2, 3, 4)},
  };
}
// clang-format on

inline constexpr auto kPortableTuringRows = portable_rows(MemoryClass::turing);
inline constexpr auto kPortableSmallRows = portable_rows(MemoryClass::small);
inline constexpr auto kPortableLargeRows = portable_rows(MemoryClass::large);

constexpr const std::array<PortableTile, kPortableRows>& portable_rows_of(MemoryClass memory) {
  return memory == MemoryClass::turing  ? kPortableTuringRows
         : memory == MemoryClass::small ? kPortableSmallRows
                                        : kPortableLargeRows;
}

// Every architecture here has 64 K registers for a block, and a thread may have 255 of them: no row can fail to launch for want
// of registers.
inline constexpr std::int32_t kRegistersOfBlock = 65536, kRegistersOfThread = 256;

// What the template assumes of a tile. A scale block of 128 x 128 covers a tile's features with one scale.
constexpr bool valid(const PortableTile& tile) {
  const std::int32_t pieces = tile.k / 16, threads = threads_of(tile);
  const std::int32_t warp_m = tile.m / tile.warps_m, warp_n = tile.n / tile.warps_n;
  return (tile.k == 64 || tile.k == 128) && tile.stages >= 2 && warp_m % 16 == 0 && warp_n % 16 == 0 &&
         (warp_n == 16 || warp_n % 32 == 0) && tile.m * pieces % threads == 0 && tile.n * pieces % threads == 0 &&
         threads / pieces % 8 == 0 && threads * kRegistersOfThread <= kRegistersOfBlock &&
         (tile.mainloop != Mainloop::fp8_promoted || 128 % tile.n == 0);
}
constexpr bool rows_fit(const PortableArchitecture& entry) {
  for (const PortableTile& tile : portable_rows_of(entry.memory))
    if (!valid(tile) || shared_memory_of(tile) > shared_memory_limit(entry.architecture)) return false;
  return true;
}
static_assert(rows_fit(kPortableArchitectures[0]), "sm_75");
static_assert(rows_fit(kPortableArchitectures[1]), "sm_80");
static_assert(rows_fit(kPortableArchitectures[2]), "sm_86");
static_assert(rows_fit(kPortableArchitectures[3]), "sm_89");
static_assert(rows_fit(kPortableArchitectures[4]), "sm_90a");
static_assert(rows_fit(kPortableArchitectures[5]), "sm_100");
static_assert(rows_fit(kPortableArchitectures[6]), "sm_103");
static_assert(rows_fit(kPortableArchitectures[7]), "sm_110");
static_assert(rows_fit(kPortableArchitectures[8]), "sm_120");
static_assert(rows_fit(kPortableArchitectures[9]), "sm_121");
static_assert(kPortableArchitectures.size() == 10);

// Rows that are compiled for grouped products too.
constexpr bool has_grouped(const PortableTile& tile) {
  return (tile.n == 64 && tile.m < 64) || (tile.n == 128 && tile.m <= 128);
}

// "portable_int8_128x128x64_s3_grouped".
constexpr RowName grouped_name_of(const PortableTile& tile) {
  RowName name = name_of(tile);
  name.append("_grouped");
  return name;
}

constexpr std::int32_t portable_row(Mainloop mainloop, std::int32_t m, std::int32_t n) {
  for (std::size_t row = 0; row < kPortableRows; ++row)
    if (kPortableTuringRows[row].mainloop == mainloop && kPortableTuringRows[row].m == m &&
        kPortableTuringRows[row].n == n)
      return static_cast<std::int32_t>(row);
  return -1;
}

// Rows whose products may split k: parts are computed as if they were tiles of their own, then summed in order of k.
constexpr bool may_split(const PortableTile& tile) { return tile.n <= 128; }
inline constexpr std::int32_t kPortableMostParts = 16;
// k in blocks of 128; how many of them a part has; how many parts that makes, of which none is empty; the sums of one part.
constexpr std::int64_t blocks_of(std::int64_t k) { return k <= 128 ? 1 : (k - 1) / 128 + 1; }
constexpr std::int64_t blocks_of_part(std::int64_t k, std::int64_t parts) { return (blocks_of(k) - 1) / parts + 1; }
constexpr std::int64_t parts_of(std::int64_t k, std::int64_t wanted) {
  return (blocks_of(k) - 1) / blocks_of_part(k, wanted) + 1;
}
constexpr std::int64_t part_bytes_of(const PortableTile& tile, std::int64_t m, std::int64_t n) {
  return ((m - 1) / tile.m + 1) * ((n - 1) / tile.n + 1) * tile.m * tile.n * 4;
}

// ---- costs ---------------------------------------------------------------------------------------------------------------
// A multiprocessor's share of the tiles takes, for each 128 of k,
//   max(alone_ns * rounds of `resident` tiles, shared_ns * tiles, bytes of a and b / kPortableBytesPerNanosecond)
// where k is split a tile counts once for each part, and the sum comes on top: kPortableSumNs and the bytes of the parts, written
// and read. The row and split of the least time run; a tie goes to the earlier row and the fewer parts. The costs are an H100's
// (docs/tuning_log.md); on other GPUs, where nobody has measured yet, only their ratios count, and the number of
// multiprocessors is the device's.
struct PortableCost {
  std::int32_t row;
  std::int32_t resident;  // tiles that a multiprocessor has at a time
  std::int32_t alone_ns, shared_ns;
};
inline constexpr std::int64_t kPortableBytesPerNanosecond = 17;      // that a multiprocessor draws from memory
inline constexpr std::int64_t kPortableSumNs = 2200;                 // of a second kernel
inline constexpr std::int64_t kPortablePartBytesPerNanosecond = 25;  // that a multiprocessor writes to or reads from L2
inline constexpr std::int64_t kPortableLeastBlocksOfPart = 4;        // of 128 of k: what fills a row's stages
inline constexpr const char* kPortableLeastTime = "least predicted time for each multiprocessor's share of the tiles";

constexpr auto portable_costs(Mainloop mainloop) {
  return std::array{
      PortableCost{portable_row(mainloop, 16, 64), 2, 270, 200},
      PortableCost{portable_row(mainloop, 16, 32), 3, 190, 120},
      PortableCost{portable_row(mainloop, 32, 64), 3, 290, 220},
      PortableCost{portable_row(mainloop, 64, 64), 3, 450, 250},
      PortableCost{portable_row(mainloop, 64, 128), 3, 600, 440},
      PortableCost{portable_row(mainloop, 128, 64), 2, 500, 390},
      PortableCost{portable_row(mainloop, 128, 128), 2, 800, 710},
      PortableCost{portable_row(mainloop, 128, 256), 1, 1250, 1450},
  };
}
inline constexpr auto kPortableInt8Costs = portable_costs(Mainloop::int8);
inline constexpr auto kPortableFp8Costs = portable_costs(Mainloop::fp8_fast);
inline constexpr std::array kPortablePromotedCosts = {
    PortableCost{portable_row(Mainloop::fp8_promoted, 16, 64), 2, 270, 200},
    PortableCost{portable_row(Mainloop::fp8_promoted, 16, 32), 3, 190, 120},
    PortableCost{portable_row(Mainloop::fp8_promoted, 32, 64), 3, 290, 220},
    PortableCost{portable_row(Mainloop::fp8_promoted, 64, 64), 3, 450, 270},
    PortableCost{portable_row(Mainloop::fp8_promoted, 64, 128), 2, 600, 480},
    PortableCost{portable_row(Mainloop::fp8_promoted, 128, 128), 1, 800, 800},
};
// Where fp8 is multiplied as fp16.
inline constexpr std::array kPortableFp16Costs = {
    PortableCost{portable_row(Mainloop::fp8_fast, 16, 64), 2, 300, 250},
    PortableCost{portable_row(Mainloop::fp8_fast, 16, 32), 3, 200, 140},
    PortableCost{portable_row(Mainloop::fp8_fast, 32, 64), 3, 450, 370},
    PortableCost{portable_row(Mainloop::fp8_fast, 64, 64), 3, 700, 430},
    PortableCost{portable_row(Mainloop::fp8_fast, 64, 128), 3, 1430, 740},
    PortableCost{portable_row(Mainloop::fp8_fast, 128, 128), 2, 2700, 1600},
    PortableCost{portable_row(Mainloop::fp8_fast, 128, 256), 1, 2900, 3100},
};
inline constexpr std::array kPortableFp16PromotedCosts = {
    PortableCost{portable_row(Mainloop::fp8_promoted, 16, 64), 2, 690, 400},
    PortableCost{portable_row(Mainloop::fp8_promoted, 16, 32), 3, 400, 250},
    PortableCost{portable_row(Mainloop::fp8_promoted, 32, 64), 3, 780, 440},
    PortableCost{portable_row(Mainloop::fp8_promoted, 64, 64), 3, 790, 460},
    PortableCost{portable_row(Mainloop::fp8_promoted, 64, 128), 2, 1240, 1210},
    PortableCost{portable_row(Mainloop::fp8_promoted, 128, 128), 1, 2360, 2380},
};

template <std::size_t N>
constexpr bool portable_rows_exist(const std::array<PortableCost, N>& costs) {
  for (const PortableCost& cost : costs)
    if (cost.row < 0 || cost.resident < 1) return false;
  return true;
}
static_assert(portable_rows_exist(kPortableInt8Costs) && portable_rows_exist(kPortableFp8Costs) &&
              portable_rows_exist(kPortablePromotedCosts) && portable_rows_exist(kPortableFp16Costs) &&
              portable_rows_exist(kPortableFp16PromotedCosts));

// ---- rules: grouped products ---------------------------------------------------------------------------------------------

inline constexpr const char* kPortableStream = "few rows an expert: deep stages of k stream the weights once";
inline constexpr const char* kPortableMiddle = "small tiles waste little of an expert's last one";
inline constexpr const char* kPortableLarge =
    "64 x 64 outputs a warp: the most products for each byte from shared memory";

// By the rows of an expert on average, which is what the host knows. m alone decides.
constexpr auto portable_grouped_rules_of(Mainloop mainloop) {
  return std::array{
      Rule{16, any, any, portable_row(mainloop, 16, 64), kPortableStream},
      Rule{48, any, any, portable_row(mainloop, 32, 64), kPortableStream},
      Rule{128, any, any, portable_row(mainloop, 64, 128), kPortableMiddle},
      Rule{any, any, any, portable_row(mainloop, 128, 128), kPortableLarge},
  };
}
inline constexpr auto kPortableGroupedInt8Rules = portable_grouped_rules_of(Mainloop::int8);
inline constexpr auto kPortableGroupedFp8Rules = portable_grouped_rules_of(Mainloop::fp8_fast);
inline constexpr auto kPortableGroupedPromotedRules = portable_grouped_rules_of(Mainloop::fp8_promoted);

template <std::size_t N>
constexpr bool portable_grouped_rows_exist(const std::array<Rule, N>& rules) {
  for (const Rule& rule : rules)
    if (rule.row < 0 || !has_grouped(kPortableTuringRows[static_cast<std::size_t>(rule.row)])) return false;
  return well_formed(rules);
}
static_assert(portable_grouped_rows_exist(kPortableGroupedInt8Rules) &&
              portable_grouped_rows_exist(kPortableGroupedFp8Rules) &&
              portable_grouped_rows_exist(kPortableGroupedPromotedRules));

}  // namespace evergemm::plan_tables
