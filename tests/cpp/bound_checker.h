// SPDX-License-Identifier: Apache-2.0
// The judge of every GEMM: given a problem whose `out` holds what a kernel stored (all pointers on the host), says ""
// or what is wrong. It shares no code with the library: its own conversions, its own sums. docs/numerics.md proves the
// bound.
//
//   int8  check_int8(problem)         every element bit for bit
//   fp8   check_bound(problem, model) every element inside the proven interval of its accumulation model
//         check_rms(problem, model)   the RMS error of each 64 x 64 tile against a host emulator of that model
//         check_fp8(problem, model)   both
//   any   check_same(problem, other)  equal bits (two NaNs are equal) to a second output of the same shape
//   window(problem, ...)              a part of a problem, to judge samples of a large one
//
// The bound is necessary, not sufficient: a suite also needs exact-by-construction data and check_rms.
// Must not go here: test cases, a test framework, numerics of the library.
#pragma once
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "evergemm/problem.h"

namespace evergemm::proof {

// ---- the models of accumulation ------------------------------------------------------------------------------------

enum class Accumulator : std::uint8_t {
  fp32_fma,            // one fp32 fma for each k, ascending
  aligned_truncation,  // a step's products and the running sum cut to `fraction_bits` below the largest exponent
};

struct AccumulationModel {
  const char* name;
  Accumulator accumulator;
  int fraction_bits;           // aligned_truncation: F
  std::int64_t step;           // aligned_truncation: products of one instruction
  std::int64_t promote_every;  // k after which the partial sum is added to an fp32 sum; 0: never
};

inline constexpr std::int64_t kPromotionBlock = 128;
inline constexpr int kHopperFractionBits = 13;   // calibrated on the device by the GPU tests
inline constexpr std::int64_t kHopperStep = 32;  // k of one fp8 tensor core instruction
inline constexpr AccumulationModel kCpuModel{"fp32 fma, promoted every 128", Accumulator::fp32_fma, 0, 1,
                                             kPromotionBlock};
inline constexpr AccumulationModel kHopperFastModel{"Hopper fast", Accumulator::aligned_truncation, kHopperFractionBits,
                                                    kHopperStep, 0};
inline constexpr AccumulationModel kHopperPromotedModel{"Hopper promoted every 128", Accumulator::aligned_truncation,
                                                        kHopperFractionBits, kHopperStep, kPromotionBlock};

inline constexpr double kUnit = 0x1p-24;        // half an ulp of 1 in fp32: relative error of one rounding
inline constexpr double kUnderflow = 0x1p-150;  // half the smallest fp32 subnormal: absolute error of one rounding
inline constexpr double kExactSum = 64;  // products are multiples of 2^-18: fp32 sums up to 2^24 * 2^-18 are exact
inline constexpr double kFloat32Max = 0x1.fffffep127;
inline constexpr double kOracleSlack = 0x1p-40;  // relative: float64 roundings of the checker itself
inline constexpr std::int64_t kTile = 64;        // rows and columns of an RMS tile
inline constexpr std::int64_t kMinimumTileElements =
    256;                                  // fewer errors make no statistic: those problems have no RMS test
inline constexpr double kRmsLimit = 1.5;  // kernel RMS / emulator RMS

// ---- independent conversions (exact values as double)
// ----------------------------------------------------------------

inline double decode_float8_e4m3fn(std::uint8_t code) {
  const int exponent = (code >> 3) & 15, mantissa = code & 7;
  double value = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  if (exponent == 15 && mantissa == 7) value = std::numeric_limits<double>::quiet_NaN();
  return (code & 0x80) != 0 ? -value : value;
}

inline double decode_16(std::uint16_t code, int mantissa_bits, int bias) {
  const int exponent_bits = 15 - mantissa_bits;
  const int exponent = (code >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const int mantissa = code & ((1 << mantissa_bits) - 1);
  double value;
  if (exponent == (1 << exponent_bits) - 1)
    value = mantissa == 0 ? std::numeric_limits<double>::infinity() : std::numeric_limits<double>::quiet_NaN();
  else
    value = exponent == 0 ? std::ldexp(mantissa, 1 - bias - mantissa_bits)
                          : std::ldexp((1 << mantissa_bits) + mantissa, exponent - bias - mantissa_bits);
  return (code & 0x8000) != 0 ? -value : value;
}

inline double load(DType type, const void* data, std::int64_t index) {
  const auto* bytes = static_cast<const unsigned char*>(data);
  std::uint16_t half;
  float single;
  switch (type) {
    case DType::bfloat16:
      std::memcpy(&half, bytes + 2 * index, 2);
      return decode_16(half, 7, 127);
    case DType::float16:
      std::memcpy(&half, bytes + 2 * index, 2);
      return decode_16(half, 10, 15);
    case DType::float32:
      std::memcpy(&single, bytes + 4 * index, 4);
      return static_cast<double>(single);
    case DType::int8:
      return static_cast<double>(static_cast<std::int8_t>(bytes[index]));
    case DType::float8_e4m3fn:
      return decode_float8_e4m3fn(bytes[index]);
    default:
      return std::numeric_limits<double>::quiet_NaN();
  }
}

// A double rounded once, to nearest even, to bfloat16, float16 or float32; beyond the largest finite value: infinity.
inline double round_to(DType type, double value) {
  if (!std::isfinite(value) || value == 0) return value;
  const int precision = type == DType::bfloat16 ? 8 : type == DType::float16 ? 11 : 24;
  const int lowest = type == DType::float16 ? -14 : -126;
  const double largest = type == DType::bfloat16 ? 0x1.fep127 : type == DType::float16 ? 65504.0 : kFloat32Max;
  const double quantum = std::ldexp(1.0, std::max(std::ilogb(value), lowest) - (precision - 1));
  const double rounded = std::nearbyint(value / quantum) * quantum;
  if (std::fabs(rounded) > largest) return std::copysign(std::numeric_limits<double>::infinity(), value);
  return rounded;
}

// ---- reading a problem
// ------------------------------------------------------------------------------------------------

inline double scale_at(const Scale& scale, std::int64_t outer, std::int64_t k_block) {
  return static_cast<double>(scale.data[outer * scale.outer_stride + k_block * scale.k_stride]);
}
inline double bias_at(const GemmProblem& p, std::int64_t j) {
  return p.bias == nullptr ? 0.0 : load(p.output_dtype, p.bias, j * p.bias_stride);
}
inline double stored_at(const GemmProblem& p, std::int64_t i, std::int64_t j) {
  return load(p.output_dtype, p.out, i * p.out_stride + j);
}

// Rows [m_begin, m_end) and columns [n_begin, n_end) of a problem; n_begin must be a multiple of 128 with block scales.
inline GemmProblem window(GemmProblem p, std::int64_t m_begin, std::int64_t m_end, std::int64_t n_begin,
                          std::int64_t n_end) {
  const std::int64_t input = size_in_bytes(p.input_dtype), output = size_in_bytes(p.output_dtype);
  const auto advance = [](const void* data, std::int64_t bytes) -> const void* {
    return data == nullptr ? nullptr : static_cast<const char*>(data) + bytes;
  };
  p.a = advance(p.a, m_begin * p.a_stride * input);
  p.b = advance(p.b, n_begin * p.b_stride * input);
  p.out = static_cast<char*>(p.out) + (m_begin * p.out_stride + n_begin) * output;
  p.scale_a.data += m_begin * p.scale_a.outer_stride;
  p.scale_b.data += (p.blockwise() ? n_begin / kScaleBlock : n_begin) * p.scale_b.outer_stride;
  p.bias = advance(p.bias, n_begin * p.bias_stride * output);
  if (p.azp_adj != nullptr) p.azp_adj += n_begin * p.azp_adj_stride;
  if (p.azp != nullptr) p.azp += m_begin * p.azp_stride;
  p.m = m_end - m_begin;
  p.n = n_end - n_begin;
  return p;
}

// fp8 operands as doubles, dense: a [m, k], b [n, k].
struct DecodedOperands {
  std::vector<double> a, b;
};
inline DecodedOperands decode_operands(const GemmProblem& p) {
  std::array<double, 256> table;
  for (int code = 0; code < 256; ++code) table[code] = decode_float8_e4m3fn(static_cast<std::uint8_t>(code));
  const auto* a = static_cast<const std::uint8_t*>(p.a);
  const auto* b = static_cast<const std::uint8_t*>(p.b);
  DecodedOperands decoded;
  decoded.a.resize(static_cast<std::size_t>(p.m * p.k));
  decoded.b.resize(static_cast<std::size_t>(p.n * p.k));
  for (std::int64_t i = 0; i < p.m; ++i)
    for (std::int64_t l = 0; l < p.k; ++l) decoded.a[i * p.k + l] = table[a[i * p.a_stride + l]];
  for (std::int64_t j = 0; j < p.n; ++j)
    for (std::int64_t l = 0; l < p.k; ++l) decoded.b[j * p.k + l] = table[b[j * p.b_stride + l]];
  return decoded;
}

// ---- the bound
// ----------------------------------------------------------------------------------------------------------

// An exact value, how far the kernel's may be from it, and the squares of the products that went in.
struct Bounded {
  double exact = 0, error = 0, squares = 0;
};

// One accumulation run over [begin, end) that starts at 0.
inline Bounded bound_of_run(const AccumulationModel& model, const double* a, const double* b, std::int64_t begin,
                            std::int64_t end) {
  Bounded sum;
  if (model.accumulator == Accumulator::fp32_fma) {
    for (std::int64_t l = begin; l < end; ++l) {
      const double product = a[l] * b[l];
      sum.exact += product;
      sum.squares += product * product;
      const double magnitude = std::fabs(sum.exact) + sum.error;
      if (magnitude > kExactSum) sum.error += kUnit * magnitude;
    }
    return sum;
  }
  const double cut = std::ldexp(1.0, -model.fraction_bits);
  for (std::int64_t start = begin; start < end; start += model.step) {
    const std::int64_t stop = std::min(end, start + model.step);
    double step_sum = 0, largest = 0;
    for (std::int64_t l = start; l < stop; ++l) {
      const double product = a[l] * b[l];
      step_sum += product;
      sum.squares += product * product;
      largest = std::max(largest, std::fabs(product));
    }
    // step + 1 terms, each cut by less than 2^-F of the largest; then the result cut by less than 2^-F of itself
    const double aligned =
        static_cast<double>(model.step + 1) * cut * std::max(largest, std::fabs(sum.exact) + sum.error);
    sum.exact += step_sum;
    sum.error += aligned;
    sum.error += cut * (std::fabs(sum.exact) + sum.error);
  }
  return sum;
}

// The exact result of one element (scales and bias included) and the bound of the fp32 value before its last rounding.
// error is infinite where an fp32 intermediate may overflow: nothing is proven there.
inline Bounded bound_of_element(const GemmProblem& p, const DecodedOperands& operands, const AccumulationModel& model,
                                std::int64_t i, std::int64_t j) {
  const double* a = operands.a.data() + i * p.k;
  const double* b = operands.b.data() + j * p.k;
  const double bias = bias_at(p, j);
  const double infinity = std::numeric_limits<double>::infinity();
  Bounded result;
  if (p.blockwise()) {
    for (std::int64_t block = 0; block * kScaleBlock < p.k; ++block) {
      const Bounded run = bound_of_run(model, a, b, block * kScaleBlock, std::min(p.k, (block + 1) * kScaleBlock));
      const double scale = scale_at(p.scale_a, i, block) * scale_at(p.scale_b, j / kScaleBlock, block);
      const double scale_error = kUnit * std::fabs(scale) + kUnderflow;
      result.exact += scale * run.exact;
      result.squares += scale * scale * run.squares;
      result.error += std::fabs(scale) * run.error + scale_error * (std::fabs(run.exact) + run.error);
      result.error += kUnit * (std::fabs(result.exact) + result.error) + kUnderflow;
      if (std::fabs(scale) > kFloat32Max || std::fabs(result.exact) + result.error > kFloat32Max)
        result.error = infinity;
    }
    result.exact += bias;
    if (p.bias != nullptr) result.error += kUnit * (std::fabs(result.exact) + result.error);
  } else {
    const std::int64_t promote = model.promote_every == 0 ? std::max<std::int64_t>(p.k, 1) : model.promote_every;
    for (std::int64_t begin = 0; begin < p.k; begin += promote) {
      const Bounded run = bound_of_run(model, a, b, begin, std::min(p.k, begin + promote));
      result.exact += run.exact;
      result.error += run.error;
      result.squares += run.squares;
      const double magnitude = std::fabs(result.exact) + result.error;
      if (begin > 0 && magnitude > kExactSum) result.error += kUnit * magnitude;
    }
    const double scale_a = scale_at(p.scale_a, i, 0), scale_b = scale_at(p.scale_b, j, 0);
    const double t = std::fabs(scale_b * result.exact);
    double t_error = std::fabs(scale_b) * result.error;
    t_error += kUnit * (t + t_error) + kUnderflow;
    result.exact = scale_a * (scale_b * result.exact) + bias;
    result.squares *= scale_a * scale_a * scale_b * scale_b;
    result.error = std::fabs(scale_a) * t_error;
    result.error += kUnit * (std::fabs(result.exact) + result.error) + kUnderflow;
    if (t + t_error > kFloat32Max) result.error = infinity;
  }
  result.error += kOracleSlack * (std::fabs(result.exact) + result.error + std::fabs(bias));
  if (std::isfinite(result.exact) && std::fabs(result.exact) + result.error > kFloat32Max) result.error = infinity;
  return result;
}

// ---- the emulator
// -------------------------------------------------------------------------------------------------------

inline double emulate_run(const AccumulationModel& model, const double* a, const double* b, std::int64_t begin,
                          std::int64_t end) {
  if (model.accumulator == Accumulator::fp32_fma) {
    float sum = 0;
    for (std::int64_t l = begin; l < end; ++l) sum = std::fma(static_cast<float>(a[l]), static_cast<float>(b[l]), sum);
    return static_cast<double>(sum);
  }
  double sum = 0;
  for (std::int64_t start = begin; start < end; start += model.step) {
    const std::int64_t stop = std::min(end, start + model.step);
    double largest = std::fabs(sum);
    for (std::int64_t l = start; l < stop; ++l) largest = std::max(largest, std::fabs(a[l] * b[l]));
    if (!(largest > 0)) continue;
    const int exponent = std::ilogb(largest);
    const double inverse = std::ldexp(1.0, model.fraction_bits - exponent);  // |term * inverse| < 2^(F + 1)
    std::int64_t aligned = static_cast<std::int64_t>(sum * inverse);         // the casts cut towards zero
    for (std::int64_t l = start; l < stop; ++l) aligned += static_cast<std::int32_t>(a[l] * b[l] * inverse);
    sum = static_cast<double>(aligned) / inverse;
    if (sum != 0) {
      const double quantum = std::ldexp(1.0, std::ilogb(sum) - model.fraction_bits);
      sum = std::trunc(sum / quantum) * quantum;
    }
  }
  return sum;
}

// What hardware of that model would store, as a double. Operands must be finite.
inline double emulate_element(const GemmProblem& p, const DecodedOperands& operands, const AccumulationModel& model,
                              std::int64_t i, std::int64_t j) {
  const double* a = operands.a.data() + i * p.k;
  const double* b = operands.b.data() + j * p.k;
  const auto bias = static_cast<float>(bias_at(p, j));
  float sum = 0;
  if (p.blockwise()) {
    for (std::int64_t block = 0; block * kScaleBlock < p.k; ++block) {
      const double run = emulate_run(model, a, b, block * kScaleBlock, std::min(p.k, (block + 1) * kScaleBlock));
      const auto scale =
          static_cast<float>(scale_at(p.scale_a, i, block) * scale_at(p.scale_b, j / kScaleBlock, block));
      sum = std::fma(scale, static_cast<float>(run), sum);
    }
    if (p.bias != nullptr) sum += bias;
    return round_to(p.output_dtype, static_cast<double>(sum));
  }
  const std::int64_t promote = model.promote_every == 0 ? std::max<std::int64_t>(p.k, 1) : model.promote_every;
  for (std::int64_t begin = 0; begin < p.k; begin += promote)
    sum += static_cast<float>(emulate_run(model, a, b, begin, std::min(p.k, begin + promote)));
  const float t = static_cast<float>(scale_at(p.scale_b, j, 0)) * sum;
  const auto scale_a = static_cast<float>(scale_at(p.scale_a, i, 0));
  return round_to(p.output_dtype, static_cast<double>(p.bias != nullptr ? std::fma(scale_a, t, bias) : scale_a * t));
}

// ---- verdicts
// -----------------------------------------------------------------------------------------------------------

struct Verdict {
  std::string failure;         // "" where everything passed
  std::int64_t elements = 0;   // judged one by one
  std::int64_t failures = 0;   // of them
  std::int64_t tiles = 0;      // judged by RMS
  double worst_share = 0;      // largest share of its interval that an element's error takes
  double worst_rms_ratio = 0;  // largest kernel RMS / emulator RMS
  bool ok() const { return failure.empty(); }
};

inline std::string at(std::int64_t i, std::int64_t j) {
  return std::string("[").append(std::to_string(i)).append(", ").append(std::to_string(j)).append("]");
}

// Every element must lie in [rn_out(exact - B), rn_out(exact + B)]; NaN and infinities where exact arithmetic has them.
inline Verdict check_bound(const GemmProblem& p, const AccumulationModel& model) {
  const DecodedOperands operands = decode_operands(p);
  Verdict verdict;
  for (std::int64_t i = 0; i < p.m; ++i)
    for (std::int64_t j = 0; j < p.n; ++j) {
      const Bounded element = bound_of_element(p, operands, model, i, j);
      const double stored = stored_at(p, i, j);
      bool good;
      double low = element.exact, high = element.exact;
      if (std::isnan(element.exact)) {
        good = std::isnan(stored);
      } else if (std::isinf(element.exact)) {
        good = stored == element.exact;
      } else if (!std::isfinite(element.error)) {
        good = false;  // the data proves nothing: a mistake of the test
      } else {
        low = round_to(p.output_dtype, element.exact - element.error);
        high = round_to(p.output_dtype, element.exact + element.error);
        good = stored >= low && stored <= high;
        const double room = stored > element.exact ? high - element.exact : element.exact - low;
        if (good && std::isfinite(stored) && stored != element.exact)
          verdict.worst_share = std::max(verdict.worst_share, std::fabs(stored - element.exact) / room);
      }
      ++verdict.elements;
      if (good) continue;
      if (verdict.failures++ == 0) {
        std::ostringstream text;
        text.precision(9);
        text << "element " << at(i, j) << " is " << stored << ", must lie in [" << low << ", " << high << "] (exact "
             << element.exact << ", bound " << element.error << ", model " << model.name << ")";
        verdict.failure = text.str();
      }
    }
  if (verdict.failures > 0)
    verdict.failure +=
        "; " + std::to_string(verdict.failures) + " of " + std::to_string(verdict.elements) + " elements fail";
  return verdict;
}

// Tiles of about 64 x 64 (wider where m < 64, taller where n < 64) cover the output, the last ones overlapping their
// neighbours so that none is small. Each error counts in units of the root of its sum of squared products.
inline Verdict check_rms(const GemmProblem& p, const AccumulationModel& model) {
  Verdict verdict;
  if (p.m * p.n < kMinimumTileElements) return verdict;
  const DecodedOperands operands = decode_operands(p);
  std::vector<double> kernel_square(static_cast<std::size_t>(p.m * p.n)), emulator_square(kernel_square.size());
  for (std::int64_t i = 0; i < p.m; ++i)
    for (std::int64_t j = 0; j < p.n; ++j) {
      const Bounded element = bound_of_element(p, operands, model, i, j);
      const double unit = std::sqrt(element.squares) + std::fabs(bias_at(p, j));
      const double stored = stored_at(p, i, j);
      if (!std::isfinite(element.exact) || !std::isfinite(stored) || !(unit > 0)) continue;  // check_bound judges these
      const double kernel = (stored - element.exact) / unit;
      const double emulator = (emulate_element(p, operands, model, i, j) - element.exact) / unit;
      if (!std::isfinite(emulator)) continue;
      kernel_square[i * p.n + j] = kernel * kernel;
      emulator_square[i * p.n + j] = emulator * emulator;
    }
  const std::int64_t rows = std::min(p.m, p.n < kTile ? kTile * kTile / p.n : kTile);
  const std::int64_t columns = std::min(p.n, p.m < kTile ? kTile * kTile / p.m : kTile);
  for (std::int64_t i = 0; i < p.m; i += rows)
    for (std::int64_t j = 0; j < p.n; j += columns) {
      const std::int64_t top = std::min(i, p.m - rows), left = std::min(j, p.n - columns);
      double kernel = 0, emulator = 0;
      for (std::int64_t r = top; r < top + rows; ++r)
        for (std::int64_t c = left; c < left + columns; ++c) {
          kernel += kernel_square[r * p.n + c];
          emulator += emulator_square[r * p.n + c];
        }
      ++verdict.tiles;
      if (kernel == 0) continue;
      const double ratio = std::sqrt(kernel / emulator);
      verdict.worst_rms_ratio = std::max(verdict.worst_rms_ratio, ratio);
      if (ratio <= kRmsLimit) continue;
      if (verdict.failures++ == 0) {
        std::ostringstream text;
        text << "tile at " << at(top, left) << " of " << rows << " x " << columns << ": RMS error is " << ratio
             << " times the emulator's, at most " << kRmsLimit << " (model " << model.name << ")";
        verdict.failure = text.str();
      }
    }
  if (verdict.failures > 0)
    verdict.failure += "; " + std::to_string(verdict.failures) + " of " + std::to_string(verdict.tiles) + " tiles fail";
  return verdict;
}

inline Verdict check_fp8(const GemmProblem& p, const AccumulationModel& model) {
  Verdict verdict = check_bound(p, model);
  const Verdict rms = check_rms(p, model);
  verdict.tiles = rms.tiles;
  verdict.failures += rms.failures;
  verdict.worst_rms_ratio = rms.worst_rms_ratio;
  if (!rms.failure.empty()) verdict.failure += (verdict.failure.empty() ? "" : "; ") + rms.failure;
  return verdict;
}

// Stored values compare by bits, so that -0 is not +0; any NaN equals any NaN.
inline bool same_bits(DType type, const void* x, std::int64_t x_index, const void* y, std::int64_t y_index) {
  const std::int64_t size = size_in_bytes(type);
  if (std::memcmp(static_cast<const char*>(x) + x_index * size, static_cast<const char*>(y) + y_index * size,
                  static_cast<std::size_t>(size)) == 0)
    return true;
  return std::isnan(load(type, x, x_index)) && std::isnan(load(type, y, y_index));
}

// Bit for bit against a second output of the same shape and type, for kernels that must equal the reference.
inline Verdict check_same(const GemmProblem& p, const void* other, std::int64_t other_stride) {
  Verdict verdict;
  for (std::int64_t i = 0; i < p.m; ++i)
    for (std::int64_t j = 0; j < p.n; ++j) {
      ++verdict.elements;
      if (same_bits(p.output_dtype, p.out, i * p.out_stride + j, other, i * other_stride + j)) continue;
      if (verdict.failures++ == 0) {
        std::ostringstream text;
        text.precision(9);
        text << "element " << at(i, j) << " is " << stored_at(p, i, j) << ", expected exactly "
             << load(p.output_dtype, other, i * other_stride + j);
        verdict.failure = text.str();
      }
    }
  if (verdict.failures > 0)
    verdict.failure +=
        "; " + std::to_string(verdict.failures) + " of " + std::to_string(verdict.elements) + " elements differ";
  return verdict;
}

// The exact result of an int8 problem from 64-bit sums, element by element, zero points, wrapping and roundings
// included.
inline double int8_element(const GemmProblem& p, std::int64_t i, std::int64_t j) {
  const auto* a = static_cast<const std::int8_t*>(p.a);
  const auto* b = static_cast<const std::int8_t*>(p.b);
  std::int64_t sum = 0;
  for (std::int64_t l = 0; l < p.k; ++l) sum += std::int64_t{a[i * p.a_stride + l]} * b[j * p.b_stride + l];
  if (p.has_azp) {
    // the product may exceed 64 bits together with the sum: unsigned arithmetic keeps the low 32 bits right
    const auto azp =
        static_cast<std::uint64_t>(p.azp == nullptr ? std::int64_t{1} : std::int64_t{p.azp[i * p.azp_stride]});
    const auto adj = static_cast<std::uint64_t>(std::int64_t{p.azp_adj[j * p.azp_adj_stride]});
    sum = static_cast<std::int64_t>(static_cast<std::uint64_t>(sum) - azp * adj);
  }
  const auto wrapped = static_cast<std::int32_t>(static_cast<std::uint32_t>(static_cast<std::uint64_t>(sum)));
  const auto scale_a = static_cast<float>(scale_at(p.scale_a, i, 0));
  const double product = scale_at(p.scale_b, j, 0) * round_to(DType::float32, wrapped);  // 48 bits: exact in float64
  const auto t = static_cast<float>(product);
  if (p.bias == nullptr && !p.has_azp) return round_to(p.output_dtype, static_cast<double>(scale_a * t));
  return round_to(p.output_dtype, static_cast<double>(std::fma(scale_a, t, static_cast<float>(bias_at(p, j)))));
}

inline Verdict check_int8(const GemmProblem& p) {
  Verdict verdict;
  for (std::int64_t i = 0; i < p.m; ++i)
    for (std::int64_t j = 0; j < p.n; ++j) {
      const double expected = int8_element(p, i, j), stored = stored_at(p, i, j);
      ++verdict.elements;
      if (std::isnan(expected) ? std::isnan(stored)
                               : stored == expected && std::signbit(stored) == std::signbit(expected))
        continue;
      if (verdict.failures++ == 0) {
        std::ostringstream text;
        text.precision(9);
        text << "element " << at(i, j) << " is " << stored << ", expected exactly " << expected;
        verdict.failure = text.str();
      }
    }
  if (verdict.failures > 0)
    verdict.failure +=
        "; " + std::to_string(verdict.failures) + " of " + std::to_string(verdict.elements) + " elements differ";
  return verdict;
}

}  // namespace evergemm::proof
