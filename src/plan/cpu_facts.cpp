// SPDX-License-Identifier: Apache-2.0
// What this machine's processor can do, as the planner wants to know it. The only file of the planner that looks at the
// machine. Must not go here: choices.
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <cstdlib>
#include <cstring>
#include <thread>

#include "evergemm/plan.h"

namespace evergemm {
namespace {

#if defined(__x86_64__)
bool has_f16c() {  // clang 14 does not know this word in __builtin_cpu_supports
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif

// __builtin_cpu_supports also asks the operating system whether it saves the wider registers.
InstructionSet best_instruction_set() {
#if defined(__x86_64__)
  if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c())) {
    return InstructionSet::portable;
  }
  if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))) {
    return InstructionSet::avx2;
  }
  return __builtin_cpu_supports("avx512vnni") ? InstructionSet::avx512_vnni : InstructionSet::avx512;
#else
  return InstructionSet::portable;
#endif
}

bool permutes_bytes() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512vbmi");
#else
  return false;
#endif
}

}  // namespace

DeviceFacts cpu_facts() {
  // The processor does not change; the environment may (tests), and reading it costs nothing next to a plan.
  static const InstructionSet best = best_instruction_set();
  static const unsigned cores = std::thread::hardware_concurrency();  // 0: unknown
  DeviceFacts facts;
  facts.architecture = Architecture::cpu;
  facts.instruction_set = best;
  facts.cores = cores == 0 ? 1 : static_cast<std::int32_t>(cores);
  if (const char* wanted = std::getenv("EVERGEMM_CPU")) {
    for (InstructionSet set : {InstructionSet::portable, InstructionSet::avx2, InstructionSet::avx512}) {
      if (set < best && std::strcmp(wanted, name(set)) == 0) facts.instruction_set = set;  // lowers, never raises
    }
  }
  // Lowered to plain avx512, a processor counts as one without VBMI, so that the row for such a one can be tried.
  facts.avx512_vbmi = facts.instruction_set >= InstructionSet::avx512_vnni && permutes_bytes();
  return facts;
}

}  // namespace evergemm
