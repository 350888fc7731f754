// SPDX-License-Identifier: Apache-2.0
// moe_combine over columns that stay in L1, written once and compiled for each instruction set by
// moe_combine_portable.cpp and moe_combine_avx2.cpp. Everything stands in an unnamed namespace: a function that the
// linker shares between files would be kept from one of them. Must not go here: threads.
#pragma once
#include <cstdint>

#include "cpu/moe_kernels.h"
#include "evergemm/moe_index.h"
#include "evergemm/numerics.h"

namespace evergemm::cpu {

namespace {

struct BFloat16Element {
  std::uint16_t bits;
  float get() const { return numerics::bfloat16_to_float(bits); }
  void set(float value) { bits = numerics::float_to_bfloat16(value); }
};
struct Float16Element {
  std::uint16_t bits;
  float get() const { return numerics::float16_to_float(bits); }
  void set(float value) { bits = numerics::float_to_float16(value); }
};
struct Float32Element {
  float value;
  float get() const { return value; }
  void set(float next) { value = next; }
};

constexpr std::int64_t kCombineColumns = 512;

template <class Element>
void add_scaled(const void* y, std::int64_t begin, std::int64_t count, float weight, float* sums) {
  const Element* from = static_cast<const Element*>(y) + begin;
  for (std::int64_t j = 0; j < count; ++j) sums[j] = numerics::fma32(weight, from[j].get(), sums[j]);
}

template <class Element>
void store_sums(void* out, std::int64_t begin, std::int64_t count, const float* sums) {
  Element* to = static_cast<Element*>(out) + begin;
  for (std::int64_t j = 0; j < count; ++j) to[j].set(sums[j]);
}

void combine_tokens(const MoeCombineProblem& problem, std::int64_t token_begin, std::int64_t token_end) {
  alignas(64) float sums[kCombineColumns];
  for (std::int64_t token = token_begin; token < token_end; ++token)
    for (std::int64_t begin = 0; begin < problem.columns; begin += kCombineColumns) {
      const std::int64_t left = problem.columns - begin, count = left < kCombineColumns ? left : kCombineColumns;
      for (std::int64_t j = 0; j < count; ++j) sums[j] = 0;
      for (std::int64_t choice = 0; choice < problem.top_k; ++choice) {
        const std::int64_t row = read_index(problem.slot, problem.slots_are_int64,
                                            token * problem.slot_token_stride + choice * problem.slot_choice_stride);
        if (row < 0 || row >= problem.rows) continue;
        const float weight =
            problem.weights == nullptr
                ? 1.0f
                : problem.weights[token * problem.weights_token_stride + choice * problem.weights_choice_stride];
        const std::int64_t from = row * problem.y_stride + begin;
        if (problem.y_dtype == DType::bfloat16)
          add_scaled<BFloat16Element>(problem.y, from, count, weight, sums);
        else if (problem.y_dtype == DType::float16)
          add_scaled<Float16Element>(problem.y, from, count, weight, sums);
        else
          add_scaled<Float32Element>(problem.y, from, count, weight, sums);
      }
      const std::int64_t to = token * problem.columns + begin;
      if (problem.output_dtype == DType::bfloat16)
        store_sums<BFloat16Element>(problem.out, to, count, sums);
      else if (problem.output_dtype == DType::float16)
        store_sums<Float16Element>(problem.out, to, count, sums);
      else
        store_sums<Float32Element>(problem.out, to, count, sums);
    }
}

}  // namespace
}  // namespace evergemm::cpu
