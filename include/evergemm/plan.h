// SPDX-License-Identifier: Apache-2.0
// What is decided. plan() makes no CUDA call and does not know the kernels: pure, printable, testable without a GPU.
// explain() is a plan printed.
#pragma once
#include <cstdint>
#include <string>

#include "evergemm/error.h"
#include "evergemm/linear.h"
#include "evergemm/moe.h"
#include "evergemm/problem.h"
#include "evergemm/types.h"

namespace evergemm {

// Instruction sets that CPU rows need; each row states one.
enum class InstructionSet : std::uint8_t { portable, avx2, avx512, avx512_vnni };
const char* name(InstructionSet set);

// What a device can do, read once per device by the caller (cpu_facts(), or from a GPU) or made up: a plan can be asked
// for any architecture, also one that is not here.
struct DeviceFacts {
  Architecture architecture = Architecture::cpu;
  InstructionSet instruction_set = InstructionSet::portable;  // cpu: the best that this processor runs
  std::int32_t cores = 1;                                     // cpu: threads used at most; GPUs: multiprocessors
  std::int32_t shared_memory_bytes = 0;                       // GPUs: per block, opt-in maximum
  bool avx512_vbmi = false;                                   // cpu: permutes bytes, for looking up fp8 codes
};
// This machine's processor. EVERGEMM_CPU=portable|avx2|avx512|avx512_vnni lowers what is reported (tests, comparisons).
DeviceFacts cpu_facts();
// A data-sheet device of that architecture, for explain() without the device.
DeviceFacts nominal_facts(Architecture architecture);
// Facts for "cpu" (this one), "cpu-portable", "cpu-avx2", "cpu-avx512", "cpu-avx512_vnni", "sm90a", ...; false for other texts.
bool facts_named(const char* text, DeviceFacts& facts);

// Whether kernels for that architecture are in this binary (cpu always is). A plan can be asked for either way.
bool is_built(Architecture architecture);
// Whose code a GPU of that compute capability runs: its own; an earlier member's of its generation (but for sm_90a's, which is
// for that GPU alone); later than every generation known here, what the driver makes of the newest PTX, where the binary has
// it. False: nobody's.
bool architecture_of_capability(std::int64_t major, std::int64_t minor, Architecture& architecture);

// fp8: `promoted` adds each 128 of k to an fp32 sum; `fast` leaves the sum in the tensor core for all of k.
enum class Accumulation : std::uint8_t { exact_int32, fast, promoted };
const char* name(Accumulation accumulation);

// A plan can be kept: it holds for all problems that differ in nothing but addresses of the same alignment to 16 bytes, and
// run() is then all that a call costs.
struct Plan {
  Architecture architecture = Architecture::cpu;
  std::int32_t row = -1;       // index into the architecture's table; -1: nothing to launch (empty result)
  const char* name = "empty";  // the row's name: tests, benchmarks, explain(), errors and profilers use the same
  std::int32_t rule = -1;      // index of the rule that chose it; -1: forced, or nothing to choose
  const char* why = "";        // that rule's reason
  Accumulation accumulation = Accumulation::exact_int32;
  bool swap_ab = false;
  std::int32_t split_k = 1;
  std::int64_t workspace_bytes = 0;
  std::int32_t quantizer_row = -1;  // LinearProblem: of the step before the product, which is `row`
};

// Chooses a row. An architecture without rows for the problem is an error that says what to do.
Status plan(const GemmProblem& problem, const DeviceFacts& facts, Plan& out);
Status plan(const QuantizeProblem& problem, const DeviceFacts& facts, Plan& out);
Status plan(const PermuteProblem& problem, const DeviceFacts& facts, Plan& out);
Status plan(const LinearProblem& problem, const DeviceFacts& facts, Plan& out);
Status plan(const MoeRouteProblem& problem, const DeviceFacts& facts, Plan& out);
Status plan(const GroupedGemmProblem& problem, const DeviceFacts& facts, Plan& out);
Status plan(const MoeGatherQuantizeProblem& problem, const DeviceFacts& facts, Plan& out);
Status plan(const MoeCombineProblem& problem, const DeviceFacts& facts, Plan& out);
Status plan(const FusedMoeProblem& problem, const DeviceFacts& facts, Plan& out);
Status plan(const MoeDataProblem& problem, const DeviceFacts& facts, Plan& out);
// Forces a row of the architecture's table (tests, tuning); an error where that row cannot run the problem.
Status plan_row(const GemmProblem& problem, const DeviceFacts& facts, std::int32_t row, Plan& out);
// Why `row` cannot run this problem here, or an empty string where it can.
std::string why_not(const GemmProblem& problem, const DeviceFacts& facts, std::int32_t row);

// The rows of an architecture's GEMM table.
std::int32_t row_count(Architecture architecture);
const char* row_name(Architecture architecture, std::int32_t row);

// The plan as JSON: row, rule, reason, rejected rows with reasons, accumulation, workspace, roofline estimate.
std::string explain(const GemmProblem& problem, const DeviceFacts& facts);

}  // namespace evergemm
