// SPDX-License-Identifier: Apache-2.0
// What a call costs at least: operations and bytes, against rates that state their source. Data and one formula.
#pragma once
#include <algorithm>

#include "evergemm/plan.h"

namespace evergemm {

struct Rates {
  Architecture architecture;
  double operations_per_second;  // int8 and fp8 alike: they share the peak
  double bytes_per_second;
  const char* source;
};

inline constexpr Rates kRates[] = {
    {Architecture::sm90a, 1450e12, 3.08e12, "measured on an H100 SXM 80 GB: sustained fp8 matmul, pure read"},
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
    const double compute = result.operations / rates.operations_per_second;
    const double memory = result.bytes / rates.bytes_per_second;
    result.microseconds = 1e6 * std::max(compute, memory);
    result.bound = compute > memory ? "compute" : "memory";
    result.source = rates.source;
  }
  return result;
}

}  // namespace evergemm
