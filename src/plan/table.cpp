// SPDX-License-Identifier: Apache-2.0
// Which architectures have rows, which have kernels in this binary, and data-sheet facts for those that are not here.
#include "plan/table.h"

#include <cstring>
#include <string_view>

#include "evergemm/plan.h"

#ifndef EVERGEMM_BUILT_ARCHITECTURES
#define EVERGEMM_BUILT_ARCHITECTURES ""  // comma-separated names, set by the build: "sm90a"
#endif

namespace evergemm {

namespace {

// Set by the build where PTX for GPUs of tomorrow is in the binary.
#if defined(EVERGEMM_WITH_PTX)
constexpr bool kHasPtx = true;
#else
constexpr bool kHasPtx = false;
#endif

}  // namespace

namespace plan_tables {

const ArchitectureTable* table_of(Architecture architecture) {
  switch (architecture) {
    case Architecture::cpu:
      return &kCpuTable;
    case Architecture::sm90a:
      return &kSm90aTable;
    case Architecture::sm75:
      return &kPortableTuringTable;
    case Architecture::sm86:
    case Architecture::sm89:
    case Architecture::sm120:
    case Architecture::sm121:
      return &kPortableSmallTable;
    case Architecture::sm80:
    case Architecture::sm100:
    case Architecture::sm103:
    case Architecture::sm110:
      return &kPortableLargeTable;
  }
  return nullptr;
}

}  // namespace plan_tables

bool is_built(Architecture architecture) {
  if (architecture == Architecture::cpu) return true;
  std::string_view built = EVERGEMM_BUILT_ARCHITECTURES;
  const std::string_view wanted = name(architecture);
  while (!built.empty()) {
    const std::size_t comma = built.find(',');
    if (built.substr(0, comma) == wanted) return true;
    built = comma == std::string_view::npos ? std::string_view() : built.substr(comma + 1);
  }
  return false;
}

bool architecture_of_capability(std::int64_t major, std::int64_t minor, Architecture& architecture) {
  struct Known {
    std::int64_t major, minor;
    Architecture architecture;
  };
  constexpr Known known[] = {
      {7, 5, Architecture::sm75},   {8, 0, Architecture::sm80},   {8, 6, Architecture::sm86},
      {8, 9, Architecture::sm89},   {9, 0, Architecture::sm90a},  {10, 0, Architecture::sm100},
      {10, 3, Architecture::sm103}, {11, 0, Architecture::sm110}, {12, 0, Architecture::sm120},
      {12, 1, Architecture::sm121},
  };
  constexpr std::int64_t newest = 12;
  bool found = false;
  for (const Known& entry : known) {
    const bool same = entry.major == major && entry.minor == minor;
    const bool successor = entry.major == major && entry.minor < minor && entry.architecture != Architecture::sm90a;
    const bool beyond = kHasPtx && entry.architecture == Architecture::sm120 && major > newest;
    if (!same && !successor && !beyond) continue;
    architecture = entry.architecture;
    found = true;
  }
  return found;
}

DeviceFacts nominal_facts(Architecture architecture) {
  // Multiprocessors and shared memory per block (opt-in) of a common card: T4, A100, A10, L40S, H100 SXM, B200, B300,
  // Thor, RTX 5090, GB10. Source: NVIDIA's data sheets and CUDA programming guide, table of compute capabilities.
  struct Nominal {
    Architecture architecture;
    std::int32_t multiprocessors;
    std::int32_t shared_memory_bytes;
  };
  constexpr std::int32_t kib = 1024;
  constexpr Nominal table[] = {
      {Architecture::sm75, 40, 64 * kib},    {Architecture::sm80, 108, 163 * kib},
      {Architecture::sm86, 72, 99 * kib},    {Architecture::sm89, 142, 99 * kib},
      {Architecture::sm90a, 132, 227 * kib}, {Architecture::sm100, 148, 227 * kib},
      {Architecture::sm103, 160, 227 * kib}, {Architecture::sm110, 20, 227 * kib},
      {Architecture::sm120, 170, 99 * kib},  {Architecture::sm121, 48, 99 * kib},
  };
  for (const Nominal& nominal : table) {
    if (nominal.architecture != architecture) continue;
    DeviceFacts facts;
    facts.architecture = architecture;
    facts.cores = nominal.multiprocessors;
    facts.shared_memory_bytes = nominal.shared_memory_bytes;
    return facts;
  }
  return cpu_facts();
}

bool facts_named(const char* text, DeviceFacts& facts) {
  constexpr std::string_view cpu_prefix = "cpu-";
  const std::string_view wanted = text;
  if (wanted.substr(0, cpu_prefix.size()) == cpu_prefix) {
    for (InstructionSet set :
         {InstructionSet::portable, InstructionSet::avx2, InstructionSet::avx512, InstructionSet::avx512_vnni}) {
      if (wanted.substr(cpu_prefix.size()) == name(set)) {
        facts = cpu_facts();
        facts.instruction_set = set;
        facts.avx512_vbmi = set == InstructionSet::avx512_vnni;  // as on Ice Lake, Zen 4 and all that followed
        return true;
      }
    }
    return false;
  }
  Architecture architecture;
  if (!parse(text, architecture)) return false;
  facts = nominal_facts(architecture);
  return true;
}

}  // namespace evergemm
