// SPDX-License-Identifier: Apache-2.0
// The reference quantizers against a second writing of docs/numerics.md in double: every case, every scheme and source,
// all 65,536 values of both 16-bit types under a set of scales, and single facts by hand.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "bound_checker.h"
#include "cases.h"
#include "evergemm/numerics.h"
#include "evergemm/reference.h"
#include "gemm_operands.h"
#include "quantize_operands.h"

namespace {

using namespace evergemm;
using namespace evergemm::proof;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr DType kInputs[] = {DType::bfloat16, DType::float16, DType::float32};
constexpr DType kResults[] = {DType::int8, DType::float8_e4m3fn};

// One rounding to fp32 of a quotient, product or sum of two fp32 numbers: double has bits enough that rounding twice is
// rounding once.
float once(double value) { return static_cast<float>(value); }

struct Expected {
  std::vector<float> scale;  // [row blocks, column blocks]
  std::vector<std::int32_t> azp;
  std::vector<std::uint32_t> words;  // packed storage
  std::vector<std::uint8_t> q;       // [q_rows, columns]
  std::vector<double> residual;
};

std::uint8_t float8_code(double value) { return std::isnan(value) ? 0x7f : encode_float8_e4m3fn(value); }

class Oracle {
 public:
  explicit Oracle(const QuantizeProblem& problem) : p(problem) {
    values_.resize(static_cast<std::size_t>(p.rows * p.columns));
    for (std::int64_t i = 0; i < p.rows; ++i) read_row(i);
  }

  Expected run(std::int64_t row_blocks, std::int64_t column_blocks) {
    expected_.q.assign(static_cast<std::size_t>(p.q_rows * p.columns), 0);
    if (p.scheme == QuantizeScheme::dropin_group || p.scheme == QuantizeScheme::dropin_group_packed) {
      dropin(column_blocks);
    } else if (p.scheme == QuantizeScheme::per_row_asymmetric) {
      for (std::int64_t i = 0; i < p.rows; ++i) asymmetric(i);
    } else {
      for (std::int64_t i = 0; i < row_blocks; ++i)
        for (std::int64_t j = 0; j < column_blocks; ++j) block(i, j);
    }
    return expected_;
  }

 private:
  float value(std::int64_t i, std::int64_t j) const { return values_[static_cast<std::size_t>(i * p.columns + j)]; }
  std::uint8_t& q(std::int64_t i, std::int64_t j) { return expected_.q[static_cast<std::size_t>(i * p.columns + j)]; }

  void read_row(std::int64_t i) {
    std::vector<float> x(static_cast<std::size_t>(p.columns));
    for (std::int64_t j = 0; j < p.columns; ++j) {
      x[j] = once(load(p.x_dtype, p.x, i * p.x_stride + j));
      if (p.residual != nullptr) {
        const float sum = once(static_cast<double>(x[j]) + load(p.x_dtype, p.residual, i * p.residual_stride + j));
        x[j] = once(round_to(p.x_dtype, static_cast<double>(sum)));
        expected_.residual.push_back(static_cast<double>(x[j]));
      }
    }
    if (p.source == QuantizeSource::rms_norm) {
      const auto tree = [](std::vector<float> values) {  // the first half takes the second, until one is left
        while (values.size() > 1) {
          const std::size_t half = values.size() / 2;
          for (std::size_t j = 0; j < half; ++j) values[j] = values[j] + values[half + j];
          values.resize(half);
        }
        return values[0];
      };
      std::vector<float> partial(32);
      for (std::int64_t first = 0; first < p.columns; first += 256) {
        std::vector<float> squares(256);
        for (std::int64_t j = first; j < std::min(first + 256, p.columns); ++j) squares[j - first] = x[j] * x[j];
        float& sum = partial[static_cast<std::size_t>(first / 256 % 32)];
        sum = sum + tree(squares);
      }
      const float mean = once(static_cast<double>(tree(partial)) / static_cast<double>(p.columns));
      const float root =
          once(std::sqrt(static_cast<double>(once(static_cast<double>(mean) + static_cast<double>(p.eps)))));
      const float factor = once(1.0 / static_cast<double>(root));
      for (std::int64_t j = 0; j < p.columns; ++j)
        x[j] = (x[j] * factor) * once(load(p.x_dtype, p.weight, j * p.weight_stride));
    } else if (p.source == QuantizeSource::activation) {
      for (std::int64_t j = 0; j < p.columns; ++j) {
        x[j] = p.activation == Activation::silu   ? numerics::silu(x[j])
               : p.activation == Activation::gelu ? numerics::gelu(x[j])
                                                  : numerics::relu_squared(x[j]);
        if (p.gated) x[j] *= once(load(p.x_dtype, p.x, i * p.x_stride + p.columns + j));
      }
    }
    std::copy(x.begin(), x.end(), values_.begin() + i * p.columns);
  }

  static float at_least_smallest(double scale) { return std::max(once(scale), 0x1p-126f); }

  float scale_of_values(const std::vector<float>& values) const {
    double largest = 0;
    for (const float v : values) {
      if (std::isnan(v)) return std::numeric_limits<float>::quiet_NaN();
      largest = std::max(largest, static_cast<double>(std::fabs(v)));
    }
    if (p.scale_upper_bound != nullptr) largest = std::min(largest, static_cast<double>(*p.scale_upper_bound));
    float scale = 1;
    if (largest != 0)
      scale = at_least_smallest(std::min(largest, kFloat32Max) / (p.q_dtype == DType::int8 ? 127 : 448));
    if (p.power_of_two_scales) {
      int exponent;
      const float fraction = std::frexp(scale, &exponent);  // scale = fraction * 2^exponent, fraction in [0.5, 1)
      scale = std::ldexp(1.0f, std::min(fraction == 0.5f ? exponent - 1 : exponent, 127));
    }
    return scale;
  }

  std::uint8_t quantized(float v, float scale) const {
    const float quotient = once(static_cast<double>(v) / static_cast<double>(scale));
    if (p.q_dtype == DType::float8_e4m3fn) return float8_code(static_cast<double>(quotient));
    if (std::isnan(quotient)) return 0;
    return static_cast<std::uint8_t>(static_cast<std::int8_t>(std::clamp(std::nearbyint(quotient), -128.0f, 127.0f)));
  }

  void block(std::int64_t i, std::int64_t j) {
    const std::int64_t bottom = std::min(p.rows, (i + 1) * p.group_rows),
                       right = std::min(p.columns, (j + 1) * p.group_columns);
    std::vector<float> values;
    for (std::int64_t row = i * p.group_rows; row < bottom; ++row)
      for (std::int64_t column = j * p.group_columns; column < right; ++column) values.push_back(value(row, column));
    const float scale = p.scheme == QuantizeScheme::with_given_scale
                            ? static_cast<const float*>(p.scale)[i * p.scale_row_stride + j * p.scale_group_stride]
                            : scale_of_values(values);
    expected_.scale.push_back(scale);
    for (std::int64_t row = i * p.group_rows; row < bottom; ++row)
      for (std::int64_t column = j * p.group_columns; column < right; ++column)
        q(row, column) = quantized(value(row, column), scale);
  }

  void asymmetric(std::int64_t i) {
    double low = 0, high = 0;
    bool nan = false;
    for (std::int64_t j = 0; j < p.columns; ++j) {
      nan = nan || std::isnan(value(i, j));
      low = std::min(low, static_cast<double>(value(i, j)));
      high = std::max(high, static_cast<double>(value(i, j)));
    }
    low = std::max(low, -kFloat32Max);
    high = std::min(high, kFloat32Max);
    const double range = std::min(static_cast<double>(once(high - low)), kFloat32Max);
    const float scale = nan ? std::numeric_limits<float>::quiet_NaN() : range == 0 ? 1 : at_least_smallest(range / 255);
    const float steps = once(low / static_cast<double>(scale));
    const int azp = nan ? 0 : static_cast<int>(std::nearbyint(-128.0f - steps));
    expected_.scale.push_back(scale);
    expected_.azp.push_back(azp);
    for (std::int64_t j = 0; j < p.columns; ++j) {
      const float quotient = once(static_cast<double>(value(i, j)) / static_cast<double>(scale));
      const double shifted = nan ? 0 : std::clamp(std::nearbyint(static_cast<double>(quotient)) + azp, -128.0, 127.0);
      q(i, j) = static_cast<std::uint8_t>(static_cast<std::int8_t>(shifted));
    }
  }

  void dropin(std::int64_t groups) {
    const bool packed = p.scheme == QuantizeScheme::dropin_group_packed;
    const std::int64_t words = (groups + 3) / 4, padded = (p.rows + 3) / 4 * 4;
    if (packed && p.rows > 0 && words > 0)
      expected_.words.assign(static_cast<std::size_t>((words - 1) * padded + p.rows), 0);
    for (std::int64_t i = 0; i < p.rows; ++i)
      for (std::int64_t g = 0; g < groups; ++g) {
        double absmax = 0;
        for (std::int64_t j = g * p.group_columns; j < (g + 1) * p.group_columns; ++j)
          if (!std::isnan(value(i, j))) absmax = std::max(absmax, static_cast<double>(std::fabs(value(i, j))));
        float scale = once(std::max(absmax, static_cast<double>(p.eps)) / static_cast<double>(p.q_max));
        if (packed || p.power_of_two_scales) {
          std::uint32_t bits;
          const float limited = std::max(scale, 1e-10f);
          std::memcpy(&bits, &limited, sizeof bits);
          const std::uint32_t e = (bits >> 23 & 255) + ((bits & 0x7fffff) != 0 ? 1 : 0);
          scale = once(std::ldexp(1.0, static_cast<int>(e) - 127));  // 2^128 is infinity as a float
          if (packed) expected_.words[static_cast<std::size_t>(g / 4 * padded + i)] |= e << (8 * (g % 4));
        }
        expected_.scale.push_back(scale);
        for (std::int64_t j = g * p.group_columns; j < (g + 1) * p.group_columns; ++j) {
          const float x = value(i, j);
          float v = once(static_cast<double>(x) / static_cast<double>(scale));
          if (std::isinf(x)) v = x > 0 ? p.q_max : p.q_min;
          if (std::isnan(x)) v = p.q_min;
          v = std::min(std::max(v, p.q_min), p.q_max);
          q(i, j) = p.q_dtype == DType::int8 ? static_cast<std::uint8_t>(static_cast<std::int8_t>(std::trunc(v)))
                                             : float8_code(static_cast<double>(v));
        }
      }
  }

  const QuantizeProblem& p;
  std::vector<float> values_;
  Expected expected_;
};

std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return std::isnan(value) ? 0x7fc00000u : bits;
}

void run_and_judge(const QuantizeSetup& setup) {
  SCOPED_TRACE(setup.text());
  QuantizeOperands operands(setup);
  const QuantizeProblem& p = operands.problem();
  const Expected expected = Oracle(p).run(operands.row_blocks(), operands.column_blocks());
  reference::quantize(p);
  ASSERT_EQ(operands.damage(), "");

  if (setup.scheme == QuantizeScheme::dropin_group_packed) {
    ASSERT_EQ(expected.words.size() * 4, operands.scale().bytes());
    for (std::size_t i = 0; i < expected.words.size(); ++i)
      ASSERT_EQ(operands.scale().as<std::uint32_t>()[i], expected.words[i]) << "word " << i;
  } else {
    ASSERT_EQ(static_cast<std::int64_t>(expected.scale.size()), operands.row_blocks() * operands.column_blocks());
    for (std::int64_t i = 0; i < operands.row_blocks(); ++i)
      for (std::int64_t j = 0; j < operands.column_blocks(); ++j) {
        const std::int64_t index = i * p.scale_row_stride + j * p.scale_group_stride;
        ASSERT_EQ(operands.scale().as<std::uint32_t>()[index],
                  bits_of(expected.scale[i * operands.column_blocks() + j]))
            << "scale " << at(i, j);
      }
  }
  for (std::size_t i = 0; i < expected.azp.size(); ++i) ASSERT_EQ(p.azp[2 * i], expected.azp[i]) << "azp " << i;
  for (std::int64_t i = 0; i < p.q_rows; ++i)
    for (std::int64_t j = 0; j < p.columns; ++j)
      ASSERT_EQ(int{operands.q().as<std::uint8_t>()[i * p.q_stride + j]}, int{expected.q[i * p.columns + j]})
          << "q " << at(i, j);
  for (std::size_t i = 0; i < expected.residual.size(); ++i) {
    const std::int64_t row = static_cast<std::int64_t>(i) / p.columns,
                       column = static_cast<std::int64_t>(i) % p.columns;
    const double stored = load(p.x_dtype, p.residual, row * p.residual_stride + column);
    ASSERT_TRUE(stored == expected.residual[i] || (std::isnan(stored) && std::isnan(expected.residual[i])))
        << at(row, column);
  }
}

const std::vector<float> kScales = {1.0f,
                                    0.1f,
                                    1.0f / 448.0f,
                                    3.7e-5f,
                                    0x1p-126f,
                                    0x1p-140f,
                                    0x1p20f,
                                    -0.375f,
                                    1e30f,
                                    kInfinity,
                                    0.0f,
                                    -0.0f,
                                    1.9921875f,
                                    std::numeric_limits<float>::quiet_NaN(),
                                    std::numeric_limits<float>::max()};

std::vector<QuantizeCase> quick_cases() {
  std::vector<QuantizeCase> cases;
  for (const QuantizeCase& c : quantize_cases())
    if (!c.slow) cases.push_back(c);
  return cases;
}

class EveryCase : public ::testing::TestWithParam<QuantizeCase> {
 protected:
  // What is not the point of a case varies with `variant`, so that the suite meets every mixture.
  static QuantizeSetup setup(QuantizeScheme scheme, std::uint64_t variant) {
    QuantizeSetup s;
    s.scheme = scheme;
    s.rows = GetParam().rows;
    s.columns = GetParam().columns;
    s.group_rows = GetParam().group_rows;
    s.group_columns = GetParam().group_columns;
    s.x = kInputs[variant % 3];
    s.q = kResults[variant / 3 % 2];
    s.values = kAllValues[variant % 8];
    s.x_padding = static_cast<std::int64_t>(variant % 4) * 2;
    s.q_padding = static_cast<std::int64_t>(variant % 5);
    s.residual_padding = static_cast<std::int64_t>(variant % 3);
    s.weight_stride = 1 + static_cast<std::int64_t>(variant % 2);
    s.byte_offset = variant % 7;
    s.seed = variant + 1;
    return s;
  }
};
INSTANTIATE_TEST_SUITE_P(Cases, EveryCase, ::testing::ValuesIn(quick_cases()),
                         [](const auto& info) { return info.param.id; });

TEST_P(EveryCase, PerTensor) {
  for (std::uint64_t v = 0; v < 24; ++v) run_and_judge(setup(QuantizeScheme::per_tensor, v));
}
TEST_P(EveryCase, PerRow) {
  for (std::uint64_t v = 0; v < 24; ++v) {
    QuantizeSetup s = setup(QuantizeScheme::per_row, v);
    s.has_upper_bound = v % 2 == 1;
    run_and_judge(s);
  }
}
TEST_P(EveryCase, PerRowAsymmetric) {
  for (std::uint64_t v = 0; v < 24; ++v) {
    QuantizeSetup s = setup(QuantizeScheme::per_row_asymmetric, v);
    s.q = DType::int8;
    run_and_judge(s);
  }
}
TEST_P(EveryCase, PerGroupAndBlock) {
  for (std::uint64_t v = 0; v < 24; ++v) {
    QuantizeSetup s = setup(QuantizeScheme::per_block, v);
    s.column_major_scales = v % 2 == 1;
    s.power_of_two_scales = v % 4 >= 2;
    run_and_judge(s);
  }
}
TEST_P(EveryCase, GivenScales) {
  for (std::uint64_t v = 0; v < 24; ++v) {
    QuantizeSetup s = setup(QuantizeScheme::with_given_scale, v);
    if (v % 4 == 0) s.group_rows = 1, s.group_columns = 0;  // one a row
    s.given_scales = kScales;
    s.column_major_scales = v % 2 == 1;
    run_and_judge(s);
  }
}
TEST_P(EveryCase, Activations) {
  for (std::uint64_t v = 0; v < 24; ++v) {
    QuantizeSetup s = setup(v % 2 == 0 ? QuantizeScheme::per_row : QuantizeScheme::per_block, v);
    s.group_rows = 1;
    s.source = QuantizeSource::activation;
    s.activation = static_cast<Activation>(v % 3);
    s.gated = v % 4 >= 2;
    run_and_judge(s);
  }
}
TEST_P(EveryCase, RmsNorm) {
  for (std::uint64_t v = 0; v < 24; ++v) {
    QuantizeSetup s = setup(v % 2 == 0 ? QuantizeScheme::per_row : QuantizeScheme::per_block, v);
    s.group_rows = 1;
    s.source = QuantizeSource::rms_norm;
    s.has_residual = v % 4 >= 2;
    s.eps = v % 5 == 0 ? 0.0f : 1e-5f;
    run_and_judge(s);
  }
}
// The group that divides the row and is nearest below the case's: these operators take no ragged groups.
TEST_P(EveryCase, DropinGroups) {
  for (std::uint64_t v = 0; v < 24; ++v) {
    QuantizeSetup s = setup(v % 3 == 2 ? QuantizeScheme::dropin_group_packed : QuantizeScheme::dropin_group, v);
    s.group_rows = 1;
    s.group_columns = std::clamp<std::int64_t>(s.group_columns, 1, std::max<std::int64_t>(s.columns, 1));
    while (s.columns % s.group_columns != 0) --s.group_columns;
    s.q_padding = 0;
    s.eps = 1e-10f;
    if (s.scheme == QuantizeScheme::dropin_group_packed) {
      s.q = DType::float8_e4m3fn;
      s.extra_q_rows = static_cast<std::int64_t>(v % 4);
    } else if (s.q == DType::int8) {
      s.q_min = -128;
      s.q_max = 127;
    } else {
      s.power_of_two_scales = v % 2 == 1;
    }
    s.column_major_scales = v % 2 == 0;
    run_and_judge(s);
  }
}

// ---- all 65,536 values of the 16-bit types
// ------------------------------------------------------------------------------

class Every16BitValue : public ::testing::TestWithParam<std::tuple<DType, DType>> {};
INSTANTIATE_TEST_SUITE_P(Types, Every16BitValue,
                         ::testing::Combine(::testing::Values(DType::bfloat16, DType::float16),
                                            ::testing::ValuesIn(kResults)),
                         [](const auto& info) {
                           return std::string(evergemm::name(std::get<0>(info.param))) + "_" +
                                  evergemm::name(std::get<1>(info.param));
                         });

TEST_P(Every16BitValue, UnderEveryScale) {
  QuantizeSetup s;
  s.scheme = QuantizeScheme::with_given_scale;
  s.x = std::get<0>(GetParam());
  s.q = std::get<1>(GetParam());
  s.rows = static_cast<std::int64_t>(kScales.size());
  s.columns = 65536;
  s.values = Values::all_codes;
  s.given_scales = kScales;
  run_and_judge(s);
  QuantizeOperands operands(s);
  std::vector<bool> seen(65536);
  for (int j = 0; j < 65536; ++j) seen[static_cast<const std::uint16_t*>(operands.problem().x)[j]] = true;
  EXPECT_EQ(std::count(seen.begin(), seen.end(), true), 65536);
}

TEST_P(Every16BitValue, UnderItsOwnScale) {
  QuantizeSetup s;
  s.x = std::get<0>(GetParam());
  s.q = std::get<1>(GetParam());
  s.rows = 512;
  s.columns = 128;
  for (const Values values : {Values::all_codes, Values::finite}) {
    s.values = values;
    s.scheme = QuantizeScheme::per_row;
    s.has_upper_bound = false;
    run_and_judge(s);
    s.has_upper_bound = true;
    run_and_judge(s);
    s.has_upper_bound = false;
    s.scheme = QuantizeScheme::per_tensor;
    run_and_judge(s);
    s.scheme = QuantizeScheme::per_block;
    for (const auto& [rows, columns] : {std::pair{1, 1}, std::pair{1, 2}, std::pair{1, 16}, std::pair{16, 16}}) {
      s.group_rows = rows;
      s.group_columns = columns;
      for (const bool power : {false, true}) {
        s.power_of_two_scales = power;
        run_and_judge(s);
      }
    }
    s.group_rows = 1;
    s.power_of_two_scales = false;
    for (const Activation activation : {Activation::silu, Activation::gelu, Activation::relu_squared}) {
      s.source = QuantizeSource::activation;
      s.activation = activation;
      s.group_columns = 4;
      run_and_judge(s);
    }
    s.source = QuantizeSource::copy;
    if (s.q == DType::int8) {
      s.scheme = QuantizeScheme::per_row_asymmetric;
      run_and_judge(s);
      s.q_min = -128;
      s.q_max = 127;
    }
    for (const std::int64_t group : {1, 4, 64}) {
      s.group_columns = group;
      s.eps = 1e-10f;
      s.scheme = QuantizeScheme::dropin_group;
      run_and_judge(s);
      if (s.q == DType::int8) continue;
      s.power_of_two_scales = true;
      run_and_judge(s);
      s.scheme = QuantizeScheme::dropin_group_packed;
      run_and_judge(s);
      s.power_of_two_scales = false;
    }
    s.eps = 1e-6f;
  }
}

// ---- facts by hand
// ----------------------------------------------------------------------------------------------------

struct OneRow {
  std::vector<float> x, scale = std::vector<float>(8, 77);
  std::vector<std::int8_t> q = std::vector<std::int8_t>(64, 77);
  std::int32_t azp = 77;
  QuantizeProblem problem;

  explicit OneRow(std::vector<float> values, QuantizeScheme scheme, DType q_dtype = DType::int8)
      : x(std::move(values)) {
    problem.scheme = scheme;
    problem.rows = problem.q_rows = 1;
    problem.columns = static_cast<std::int64_t>(x.size());
    problem.group_columns = problem.columns;
    problem.x = x.data();
    problem.x_stride = problem.q_stride = problem.columns;
    problem.x_dtype = DType::float32;
    problem.q_dtype = q_dtype;
    problem.q = q.data();
    problem.scale = scale.data();
    problem.scale_group_stride = 1;
    problem.azp = &azp;
    problem.eps = 1e-10f;
    problem.q_min = q_dtype == DType::int8 ? -128 : -448;
    problem.q_max = q_dtype == DType::int8 ? 127 : 448;
  }
  void run() { reference::quantize(problem); }
};

TEST(Facts, ZerosHaveScaleOne) {
  OneRow row({0, -0.0f, 0}, QuantizeScheme::per_row);
  row.run();
  EXPECT_EQ(row.scale[0], 1);
  EXPECT_EQ(row.q[0] | row.q[1] | row.q[2], 0);
}

TEST(Facts, HalvesRoundToEven) {
  OneRow row({0.5f, 1.5f, 2.5f, -0.5f, -1.5f, 127}, QuantizeScheme::per_row);
  row.run();
  EXPECT_EQ(row.scale[0], 1);
  const std::vector<std::int8_t> expected = {0, 2, 2, 0, -2, 127};
  EXPECT_TRUE(std::equal(expected.begin(), expected.end(), row.q.begin()));
}

TEST(Facts, AnUpperBoundLimitsAbsmaxAndValuesSaturate) {
  OneRow row({254, -300, 10}, QuantizeScheme::per_row);
  const float bound = 127;
  row.problem.scale_upper_bound = &bound;
  row.run();
  EXPECT_EQ(row.scale[0], 1);
  EXPECT_EQ(row.q[0], 127);
  EXPECT_EQ(row.q[1], -128);
  EXPECT_EQ(row.q[2], 10);
}

TEST(Facts, AsymmetricUsesAll256Steps) {
  OneRow row({-1, 0, 254}, QuantizeScheme::per_row_asymmetric);
  row.run();
  EXPECT_EQ(row.scale[0], 1);
  EXPECT_EQ(row.azp, -127);
  EXPECT_EQ(row.q[0], -128);
  EXPECT_EQ(row.q[1], -127);
  EXPECT_EQ(row.q[2], 127);
}

TEST(Facts, DropinInt8CutsTowardsZeroAndKeepsEps) {
  OneRow row({127, 1.99f, -1.99f, std::numeric_limits<float>::quiet_NaN(), 0, 0, 0, 0}, QuantizeScheme::dropin_group);
  row.problem.group_columns = 4;
  row.run();
  EXPECT_EQ(row.scale[0], 1);
  EXPECT_EQ(row.q[1], 1);
  EXPECT_EQ(row.q[2], -1);
  EXPECT_EQ(row.q[3], -128);
  EXPECT_EQ(row.scale[1], 1e-10f / 127);
  EXPECT_EQ(row.q[4], 0);
}

TEST(Facts, DropinInfinityTakesTheLimitAndFiniteValuesVanish) {
  for (const bool power_of_two : {false, true}) {
    OneRow row({kInfinity, -kInfinity, 5, -5}, QuantizeScheme::dropin_group, DType::float8_e4m3fn);
    row.problem.power_of_two_scales = power_of_two;
    row.run();
    EXPECT_EQ(row.scale[0], kInfinity);
    EXPECT_EQ(static_cast<std::uint8_t>(row.q[0]), 0x7e);
    EXPECT_EQ(static_cast<std::uint8_t>(row.q[1]), 0xfe);
    EXPECT_EQ(row.q[2] & 0x7f, 0);
    EXPECT_EQ(row.q[3] & 0x7f, 0);
  }
}

TEST(Facts, PackedExponentsFillTheirBytesAndTheirPadding) {
  constexpr std::int64_t kRows = 3, kGroups = 6, kColumns = 12;  // two words a row, A = 4, storage 3 + 4 = 7 words
  std::vector<float> x(kRows * kColumns, 448.0f);
  for (int j = 0; j < 2; ++j) x[kColumns + 2 * 2 + j] = 449.0f;  // row 1, group 2: 449 / 448 rounds up to 2
  GuardedBuffer words(7 * 4), q(5 * kColumns);
  QuantizeProblem p;
  p.scheme = QuantizeScheme::dropin_group_packed;
  p.rows = kRows;
  p.q_rows = 5;
  p.columns = kColumns;
  p.group_columns = kColumns / kGroups;
  p.x = x.data();
  p.x_stride = p.q_stride = kColumns;
  p.x_dtype = DType::float32;
  p.q_dtype = DType::float8_e4m3fn;
  p.q = q.as<void>();
  p.scale = words.as<void>();
  p.scale_row_stride = 1;
  p.packed_columns_stride = 4;
  p.eps = 1e-10f;
  p.q_min = -448;
  p.q_max = 448;
  reference::quantize(p);
  const std::uint32_t expected[] = {0x7f7f7f7f, 0x7f807f7f, 0x7f7f7f7f, 0, 0x00007f7f, 0x00007f7f, 0x00007f7f};
  for (int i = 0; i < 7; ++i) EXPECT_EQ(words.as<std::uint32_t>()[i], expected[i]) << i;
  for (int j = 0; j < kColumns; ++j) {
    EXPECT_EQ(q.as<std::uint8_t>()[j], 0x7e);
    EXPECT_EQ(q.as<std::uint8_t>()[4 * kColumns + j], 0);
  }
  EXPECT_EQ(words.damage() + q.damage(), "");
}

TEST(Facts, RmsNormOfEqualValuesIsOne) {
  const float weight[] = {1, 1, 1, 1}, x[] = {3, 3, -3, 3};
  OneRow row(std::vector<float>(x, x + 4), QuantizeScheme::per_row);
  row.problem.source = QuantizeSource::rms_norm;
  row.problem.weight = weight;
  row.problem.weight_stride = 1;
  row.problem.eps = 0;
  row.run();
  EXPECT_NEAR(row.scale[0], 1.0f / 127, 1e-9);
  EXPECT_EQ(row.q[0], 127);
  EXPECT_EQ(row.q[2], -127);
}

}  // namespace
