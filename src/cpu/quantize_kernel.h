// SPDX-License-Identifier: Apache-2.0
// What a CPU quantizer is: three passes over rows, compiled once for each instruction set (quantize_portable.cpp, ...)
// from quantize_rows.h. quantize_registry.cpp picks one and spreads its passes over threads. Must not go here: code.
// Files compiled for a wider instruction set include this header, and may share no function.
#pragma once
#include <cstdint>

#include "evergemm/problem.h"

namespace evergemm::cpu {

struct QuantizeKernel {
  // Every scheme but per_tensor: units [begin, end), their scales and zero points included. A unit is what depends on
  // nothing else: group_rows rows of per_block, one row of every other scheme.
  void (*units)(const QuantizeProblem& problem, std::int64_t begin, std::int64_t end);
  // per_tensor, first pass: the largest magnitude of rows [begin, end) as fp32 bits, which order like the magnitudes;
  // above 0x7f800000 where one is NaN. Stores the residual sum.
  std::uint32_t (*magnitude)(const QuantizeProblem& problem, std::int64_t begin, std::int64_t end);
  // per_tensor, second pass: rows [begin, end) with the scale found.
  void (*with_scale)(const QuantizeProblem& problem, float scale, std::int64_t begin, std::int64_t end);
  // The scale that belongs to a largest magnitude, given as fp32 bits.
  float (*scale_from)(const QuantizeProblem& problem, std::uint32_t magnitude);
};

extern const QuantizeKernel kQuantizePortable;
#if defined(__x86_64__)
extern const QuantizeKernel kQuantizeAvx2;
extern const QuantizeKernel kQuantizeAvx512;
#endif

}  // namespace evergemm::cpu
