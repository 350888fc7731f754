// SPDX-License-Identifier: Apache-2.0
// What a call costs at least: operations and bytes, against rates that state their source. Data and one formula.
#pragma once
#include <algorithm>

#include "evergemm/plan.h"

namespace evergemm {

struct Rates {
  Architecture architecture;
  // Dense, of int8 and of fp8 operands: fp8's is fp16's where there is no fp8 tensor core. 0: not published.
  double int8_operations_per_second, fp8_operations_per_second;
  double bytes_per_second;
  const char* source;
};

// The cards of nominal_facts(). Peaks of data sheets are not reached: times are what no kernel can beat.
inline constexpr Rates kRates[] = {
    {Architecture::sm75, 130e12, 65e12, 0.32e12, "NVIDIA T4 data sheet: peak int8, fp16 (for fp8), memory"},
    {Architecture::sm80, 624e12, 312e12, 2.039e12,
     "NVIDIA A100 SXM 80 GB data sheet: peak int8, fp16 (for fp8), memory"},
    {Architecture::sm86, 250e12, 125e12, 0.6e12, "NVIDIA A10 data sheet: peak int8, fp16 (for fp8), memory"},
    {Architecture::sm89, 733e12, 733e12, 0.864e12, "NVIDIA L40S data sheet: peak int8, fp8, memory"},
    {Architecture::sm90a, 1450e12, 1450e12, 3.08e12, "measured on an H100 SXM 80 GB: sustained fp8 matmul, pure read"},
    {Architecture::sm100, 4500e12, 4500e12, 8e12, "NVIDIA B200 data sheet: peak int8, fp8, memory"},
    {Architecture::sm103, 0, 4500e12, 8e12, "NVIDIA B300 data sheet: peak fp8, memory (int8: memory alone)"},
    {Architecture::sm110, 0, 517e12, 0.273e12, "NVIDIA Jetson T5000 data sheet: peak fp8, memory (int8: memory alone)"},
    {Architecture::sm120, 838e12, 419e12, 1.792e12,
     "NVIDIA RTX 5090, RTX Blackwell white paper: peak int8, fp8 with fp32 sums, memory"},
    {Architecture::sm121, 0, 0, 0.273e12, "NVIDIA GB10 data sheet: memory alone"},
};

struct Roofline {
  double operations = 0, bytes = 0;
  double microseconds = 0;  // 0: no rates known for the device
  const char* bound = "unknown";
  const char* source = "no rates for this device; evergemm bench measures them";
};

// operations = 2 m n k; bytes = a + b once each, out once, scales where they are blocks.
inline Roofline roofline(const GemmProblem& problem, const DeviceFacts& facts) {
  const double m = static_cast<double>(problem.m), n = static_cast<double>(problem.n),
               k = static_cast<double>(problem.k);
  Roofline result;
  result.operations = 2.0 * m * n * k;
  result.bytes = n * k + m * k + m * n * static_cast<double>(size_in_bytes(problem.output_dtype));
  if (problem.blockwise()) result.bytes += 4.0 * (m * k / 128.0 + n * k / 16384.0);
  for (const Rates& rates : kRates) {
    if (rates.architecture != facts.architecture) continue;
    const double rate =
        problem.input_dtype == DType::int8 ? rates.int8_operations_per_second : rates.fp8_operations_per_second;
    const double compute = rate > 0 ? result.operations / rate : 0;
    const double memory = result.bytes / rates.bytes_per_second;
    result.microseconds = 1e6 * std::max(compute, memory);
    result.bound = compute > memory ? "compute" : "memory";
    result.source = rates.source;
  }
  return result;
}

}  // namespace evergemm
