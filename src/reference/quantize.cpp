// SPDX-License-Identifier: Apache-2.0
// Every quantizer as the obvious loops: values from their source, a scale for each block of them, one rounding each.
// docs/numerics.md, section "Quantizers", is this file in words. Must not go here: speed.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "evergemm/numerics.h"
#include "evergemm/reference.h"
#include "reference/elements.h"

namespace evergemm::reference {
namespace {

std::int64_t ceil_divide(std::int64_t x, std::int64_t y) { return x / y + (x % y != 0 ? 1 : 0); }

// ---- the values that are quantized ----------------------------------------------------------------------------------

float x_at(const QuantizeProblem& problem, std::int64_t row, std::int64_t column) {
  return load_element(problem.x_dtype, problem.x, row * problem.x_stride + column);
}

// residual = x + residual, rounded to their type. From then on it stands in the place of x.
void add_residual(const QuantizeProblem& problem) {
  for (std::int64_t row = 0; row < problem.rows; ++row)
    for (std::int64_t column = 0; column < problem.columns; ++column) {
      const std::int64_t index = row * problem.residual_stride + column;
      const float sum =
          numerics::add32(x_at(problem, row, column), load_element(problem.x_dtype, problem.residual, index));
      store_element(problem.x_dtype, problem.residual, index, sum);
    }
}

float normalized_input(const QuantizeProblem& problem, std::int64_t row, std::int64_t column) {
  if (problem.residual == nullptr) return x_at(problem, row, column);
  return load_element(problem.x_dtype, problem.residual, row * problem.residual_stride + column);
}

template <std::size_t kCount>
float sum_of_halves(float (&values)[kCount]) {
  for (std::size_t half = kCount / 2; half > 0; half /= 2)
    for (std::size_t j = 0; j < half; ++j) values[j] = numerics::add32(values[j], values[j + half]);
  return values[0];
}

// 1 / sqrt(mean of squares + eps) of a row; the order of the sum is that of numerics.h.
float inverse_rms_of_row(const QuantizeProblem& problem, std::int64_t row) {
  float partial[numerics::kSquarePartials] = {};
  for (std::int64_t run = 0; run * numerics::kSquareRun < problem.columns; ++run) {
    float squares[numerics::kSquareRun] = {};
    for (std::int64_t j = 0; j < numerics::kSquareRun && run * numerics::kSquareRun + j < problem.columns; ++j) {
      const float x = normalized_input(problem, row, run * numerics::kSquareRun + j);
      squares[j] = numerics::mul32(x, x);
    }
    float& sum = partial[run % numerics::kSquarePartials];
    sum = numerics::add32(sum, sum_of_halves(squares));
  }
  return numerics::inverse_rms(sum_of_halves(partial), problem.columns, problem.eps);
}

float activated(Activation activation, float x) {
  if (activation == Activation::silu) return numerics::silu(x);
  if (activation == Activation::gelu) return numerics::gelu(x);
  return numerics::relu_squared(x);
}

// What belongs to a whole row, computed once for it.
float row_factor(const QuantizeProblem& problem, std::int64_t row) {
  return problem.source == QuantizeSource::rms_norm ? inverse_rms_of_row(problem, row) : 1.0f;
}

float value_at(const QuantizeProblem& problem, std::int64_t row, std::int64_t column, float factor) {
  if (problem.source == QuantizeSource::rms_norm) {
    const float weight = load_element(problem.x_dtype, problem.weight, column * problem.weight_stride);
    return numerics::mul32(numerics::mul32(normalized_input(problem, row, column), factor), weight);
  }
  const float x = x_at(problem, row, column);
  if (problem.source == QuantizeSource::copy) return x;
  const float gate = activated(problem.activation, x);
  return problem.gated ? numerics::mul32(gate, x_at(problem, row, problem.columns + column)) : gate;
}

// ---- one scale for each block
// -----------------------------------------------------------------------------------------

void store_q(const QuantizeProblem& problem, std::int64_t row, std::int64_t column, float value, float scale) {
  const std::int64_t index = row * problem.q_stride + column;
  if (problem.q_dtype == DType::int8)
    static_cast<std::int8_t*>(problem.q)[index] = numerics::quantize_int8(value, scale);
  else
    static_cast<std::uint8_t*>(problem.q)[index] = numerics::quantize_float8(value, scale);
}

float scale_of_absmax(const QuantizeProblem& problem, float absmax) {
  if (problem.scale_upper_bound != nullptr && absmax > *problem.scale_upper_bound) absmax = *problem.scale_upper_bound;
  const float scale = numerics::scale_of(absmax, problem.q_dtype == DType::int8 ? 127.0f : numerics::kFloat8E4m3fnMax);
  return problem.power_of_two_scales ? numerics::power_of_two_at_least(scale) : scale;
}

// per_tensor, with_given_scale, per_row and per_block differ in nothing but the size of a block and where a scale is
// from.
void quantize_blocks(const QuantizeProblem& problem) {
  const bool per_tensor = problem.scheme == QuantizeScheme::per_tensor;
  const bool given = problem.scheme == QuantizeScheme::with_given_scale;
  const std::int64_t block_rows = per_tensor ? std::max<std::int64_t>(problem.rows, 1) : problem.group_rows;
  const bool whole_row = per_tensor || problem.scheme == QuantizeScheme::per_row || problem.group_columns == 0;
  const std::int64_t block_columns = whole_row ? std::max<std::int64_t>(problem.columns, 1) : problem.group_columns;
  // Without elements a tensor still has its one scale, and a row its own.
  const std::int64_t row_blocks = per_tensor ? 1 : ceil_divide(problem.rows, block_rows);
  const std::int64_t column_blocks = whole_row ? 1 : ceil_divide(problem.columns, block_columns);
  auto* scales = static_cast<float*>(problem.scale);
  std::vector<float> factors;  // of the rows of one row of blocks

  for (std::int64_t i = 0; i < row_blocks; ++i) {
    const std::int64_t first_row = i * block_rows, end_row = std::min(problem.rows, first_row + block_rows);
    factors.clear();
    for (std::int64_t row = first_row; row < end_row; ++row) factors.push_back(row_factor(problem, row));
    for (std::int64_t j = 0; j < column_blocks; ++j) {
      const std::int64_t first_column = j * block_columns;
      const std::int64_t end_column = std::min(problem.columns, first_column + block_columns);
      float& scale = scales[i * problem.scale_row_stride + j * problem.scale_group_stride];
      if (!given) {
        float absmax = 0;
        for (std::int64_t row = first_row; row < end_row; ++row)
          for (std::int64_t column = first_column; column < end_column; ++column)
            absmax = numerics::larger_magnitude(absmax, value_at(problem, row, column, factors[row - first_row]));
        scale = scale_of_absmax(problem, absmax);
      }
      for (std::int64_t row = first_row; row < end_row; ++row)
        for (std::int64_t column = first_column; column < end_column; ++column)
          store_q(problem, row, column, value_at(problem, row, column, factors[row - first_row]), scale);
    }
  }
}

void quantize_asymmetric(const QuantizeProblem& problem) {
  for (std::int64_t row = 0; row < problem.rows; ++row) {
    const float factor = row_factor(problem, row);
    float low = 0, high = 0;
    for (std::int64_t column = 0; column < problem.columns; ++column) {
      const float value = value_at(problem, row, column, factor);
      if (numerics::is_nan(value) || value < low) low = value;  // a NaN low compares false and stays
      if (value > high) high = value;
    }
    const float scale = numerics::asymmetric_scale(low, high);
    const std::int32_t azp = numerics::asymmetric_zero_point(low, scale);
    static_cast<float*>(problem.scale)[row * problem.scale_row_stride] = scale;
    problem.azp[row * problem.azp_stride] = azp;
    for (std::int64_t column = 0; column < problem.columns; ++column)
      static_cast<std::int8_t*>(problem.q)[row * problem.q_stride + column] =
          numerics::quantize_int8_asymmetric(value_at(problem, row, column, factor), scale, azp);
  }
}

// ---- per_token_group_*
// ------------------------------------------------------------------------------------------------

void quantize_dropin(const QuantizeProblem& problem) {
  const bool packed = problem.scheme == QuantizeScheme::dropin_group_packed;
  const std::int64_t groups = ceil_divide(problem.columns, problem.group_columns);
  const std::int64_t words = ceil_divide(groups, 4);
  auto* packed_scales = static_cast<std::uint32_t*>(problem.scale);

  if (packed) {
    for (std::int64_t word = 0; word < words; ++word) {
      const std::int64_t end = word + 1 < words ? problem.packed_columns_stride : problem.rows;
      for (std::int64_t row = 0; row < end; ++row)
        packed_scales[row * problem.scale_row_stride + word * problem.packed_columns_stride] = 0;
    }
    for (std::int64_t row = problem.rows; row < problem.q_rows; ++row)
      for (std::int64_t column = 0; column < problem.columns; ++column)
        static_cast<std::uint8_t*>(problem.q)[row * problem.q_stride + column] = 0;
  }

  for (std::int64_t row = 0; row < problem.rows; ++row)
    for (std::int64_t group = 0; group < groups; ++group) {
      const std::int64_t begin = group * problem.group_columns;
      const std::int64_t end = std::min(problem.columns, begin + problem.group_columns);
      float absmax = 0;
      for (std::int64_t column = begin; column < end; ++column) {
        const float magnitude = numerics::abs32(x_at(problem, row, column));
        if (magnitude > absmax) absmax = magnitude;  // NaN compares false: it does not count
      }
      float scale = numerics::dropin_group_scale(absmax, problem.eps, problem.q_max);
      if (packed || problem.power_of_two_scales) {
        const std::uint32_t exponent = numerics::dropin_group_exponent(scale);
        scale = numerics::bits_to_float(exponent << 23);  // 255 is infinity
        if (packed)
          packed_scales[row * problem.scale_row_stride + group / 4 * problem.packed_columns_stride] |=
              exponent << (group % 4 * 8);
      }
      if (!packed)
        static_cast<float*>(problem.scale)[row * problem.scale_row_stride + group * problem.scale_group_stride] = scale;
      for (std::int64_t column = begin; column < end; ++column) {
        const float value = numerics::dropin_clamp(x_at(problem, row, column), scale, problem.q_min, problem.q_max);
        const std::int64_t index = row * problem.q_stride + column;
        if (problem.q_dtype == DType::int8)
          static_cast<std::int8_t*>(problem.q)[index] = numerics::dropin_int8(value);  // cut toward zero
        else
          static_cast<std::uint8_t*>(problem.q)[index] = numerics::float_to_float8_e4m3fn(value);
      }
    }
}

}  // namespace

void quantize(const QuantizeProblem& problem) {
  if (problem.residual != nullptr) add_residual(problem);
  switch (problem.scheme) {
    case QuantizeScheme::per_row_asymmetric:
      return quantize_asymmetric(problem);
    case QuantizeScheme::dropin_group:
    case QuantizeScheme::dropin_group_packed:
      return quantize_dropin(problem);
    default:
      return quantize_blocks(problem);
  }
}

}  // namespace evergemm::reference
