// SPDX-License-Identifier: Apache-2.0
// Every CPU quantizer row, forced, and permute_cols against the reference: equal bit by bit, in memory with red zones,
// with gaps between rows, for every scheme, source and type. A row that this processor cannot run is skipped and says
// why.
#include "plan/cpu_quantize.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "evergemm/numerics.h"
#include "evergemm/reference.h"
#include "evergemm/run.h"
#include "red_zones.h"

namespace evergemm {
namespace {

using proof::GuardedBuffer;

constexpr std::uint64_t kSeed = 20261123;  // printed by every failure

// splitmix64
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t bits() {
    std::uint64_t z = (state_ += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }
  std::int64_t below(std::int64_t limit) {
    return static_cast<std::int64_t>(bits() % static_cast<std::uint64_t>(limit));
  }
  float uniform() { return static_cast<float>(bits() >> 40) * 0x1p-23f - 1.0f; }  // [-1, 1)
  float normal() {
    float sum = 0;
    for (int i = 0; i < 4; ++i) sum += uniform();
    return sum;
  }

 private:
  std::uint64_t state_;
};

// What stands in x, row by row.
enum class Data {
  ordinary,  // about normal
  mixed,     // rows of: ordinary, zeros, tiny, huge, one NaN, one infinity, random bits, -0
  finite,    // random bits without NaN and infinity
  all_bits,  // element i of the tensor is the bit pattern i (fp32: spread over all patterns)
};

struct Case {
  QuantizeScheme scheme = QuantizeScheme::per_row;
  QuantizeSource source = QuantizeSource::copy;
  DType x_dtype = DType::bfloat16;
  DType q_dtype = DType::int8;
  std::int64_t rows = 1, columns = 1;
  std::int64_t group_rows = 1, group_columns = 0;  // 0: the whole row
  Data data = Data::mixed;
  std::int64_t x_gap = 0, q_gap = 0, residual_gap = 0;  // elements between rows
  std::int64_t scale_gap = 0, azp_stride = 1, weight_stride = 1;
  std::size_t byte_offset = 0;  // q starts that many bytes, x that many elements behind a page
  bool column_major_scales = false;
  bool power_of_two_scales = false;
  bool has_bound = false;
  float bound = 0;
  Activation activation = Activation::silu;
  bool gated = false;
  bool has_residual = false;
  float eps = 0, q_min = 0, q_max = 0;
  std::int64_t extra_q_rows = 0;
  const float* given_scales = nullptr;  // with_given_scale: taken in turn; null: random ones
  std::int64_t given_scale_count = 0;

  std::string text() const {
    return "scheme " + std::to_string(static_cast<int>(scheme)) + " source " +
           std::to_string(static_cast<int>(source)) + " activation " + std::to_string(static_cast<int>(activation)) +
           (gated ? " gated" : "") + (has_residual ? " residual" : "") + " x " +
           std::to_string(static_cast<int>(x_dtype)) + " q " + std::to_string(static_cast<int>(q_dtype)) + " [" +
           std::to_string(rows) + ", " + std::to_string(columns) + "] groups " + std::to_string(group_rows) + " x " +
           std::to_string(group_columns) + " data " + std::to_string(static_cast<int>(data)) + " gaps " +
           std::to_string(x_gap) + "/" + std::to_string(q_gap) + " offset " + std::to_string(byte_offset) + " eps " +
           std::to_string(eps) + (power_of_two_scales ? " pow2" : "") + " seed " + std::to_string(kSeed);
  }
};

std::int64_t ceil_divide(std::int64_t x, std::int64_t y) { return x / y + (x % y != 0 ? 1 : 0); }
bool is_half(DType type) { return type == DType::bfloat16 || type == DType::float16; }

std::uint32_t encoded(DType type, float value) {
  if (type == DType::bfloat16) return numerics::float_to_bfloat16(value);
  if (type == DType::float16) return numerics::float_to_float16(value);
  return numerics::float_to_bits(value);
}
void put(DType type, void* data, std::int64_t index, std::uint32_t bits) {
  if (is_half(type))
    static_cast<std::uint16_t*>(data)[index] = static_cast<std::uint16_t>(bits);
  else
    static_cast<std::uint32_t*>(data)[index] = bits;
}
bool is_finite(DType type, std::uint32_t bits) {
  if (type == DType::bfloat16) return (bits & 0x7f80u) != 0x7f80u;
  if (type == DType::float16) return (bits & 0x7c00u) != 0x7c00u;
  return (bits & 0x7f800000u) != 0x7f800000u;
}
std::uint32_t random_bits(Random& random, DType type) {
  const auto bits = static_cast<std::uint32_t>(random.bits() >> 32);
  return is_half(type) ? bits & 0xffffu : bits;
}

std::uint32_t element(const Case& c, Random& random, std::int64_t row, std::int64_t column, std::int64_t width) {
  const DType type = c.x_dtype;
  const float infinity = std::numeric_limits<float>::infinity();
  switch (c.data) {
    case Data::ordinary:
      return encoded(type, random.normal());
    case Data::finite:
      for (;;) {
        const std::uint32_t bits = random_bits(random, type);
        if (is_finite(type, bits)) return bits;
      }
    case Data::all_bits: {
      const auto index = static_cast<std::uint32_t>(row * width + column);
      return is_half(type) ? index & 0xffffu : index * 2654435761u;  // odd: visits every pattern once
    }
    case Data::mixed:
      break;
  }
  const bool special = column == (row * 7 + 3) % std::max<std::int64_t>(width, 1);
  switch (row % 8) {
    case 1:
      return encoded(type, 0.0f);
    case 2:
      return encoded(type, random.uniform() * (type == DType::float16 ? 1e-7f : 1e-39f));
    case 3:
      return encoded(type, random.uniform() * (type == DType::float16 ? 65504.0f : 3.38e38f));
    case 4:
      return special ? encoded(type, std::numeric_limits<float>::quiet_NaN()) : encoded(type, random.normal());
    case 5:
      return special ? encoded(type, random.bits() % 2 ? infinity : -infinity) : encoded(type, random.normal());
    case 6:
      return random_bits(random, type);
    case 7:
      return encoded(type, -0.0f);
    default:
      return encoded(type, random.normal());
  }
}

// The operands of one run. Two Operands of one Case hold the same inputs.
struct Operands {
  static std::int64_t size_of(const Case& c) { return size_in_bytes(c.x_dtype); }
  static std::int64_t width(const Case& c) { return c.gated ? 2 * c.columns : c.columns; }
  static std::int64_t span(std::int64_t rows, std::int64_t columns, std::int64_t stride) {
    return rows == 0 || columns == 0 ? 0 : (rows - 1) * stride + columns;
  }
  static bool packed(const Case& c) { return c.scheme == QuantizeScheme::dropin_group_packed; }
  static std::int64_t groups(const Case& c) {
    return c.group_columns == 0 ? 1 : ceil_divide(c.columns, c.group_columns);
  }
  static std::int64_t row_groups(const Case& c) {
    return c.scheme == QuantizeScheme::per_tensor ? 1 : ceil_divide(c.rows, c.group_rows);
  }
  static std::int64_t aligned_rows(const Case& c) { return ceil_divide(c.rows, 4) * 4; }
  static std::int64_t scale_count(const Case& c) {
    if (packed(c)) return groups(c) == 0 ? 0 : c.rows + (ceil_divide(groups(c), 4) - 1) * aligned_rows(c);
    const std::int64_t inner = c.column_major_scales ? row_groups(c) : groups(c);
    const std::int64_t outer = c.column_major_scales ? groups(c) : row_groups(c);
    return span(outer, inner, inner + c.scale_gap);
  }

  explicit Operands(const Case& c)
      : x(static_cast<std::size_t>(span(c.rows, width(c), width(c) + c.x_gap) * size_of(c)),
          c.byte_offset * static_cast<std::size_t>(size_of(c))),
        q(static_cast<std::size_t>(span(c.rows + c.extra_q_rows, c.columns, c.columns + c.q_gap)), c.byte_offset),
        scale(static_cast<std::size_t>(scale_count(c) * 4)),
        azp(static_cast<std::size_t>(span(c.rows, 1, c.azp_stride) * 4)),
        weight(static_cast<std::size_t>(span(c.columns, 1, c.weight_stride) * size_of(c))),
        residual(static_cast<std::size_t>(span(c.rows, c.columns, c.columns + c.residual_gap) * size_of(c))),
        bound(4) {
    Random random(kSeed);
    const std::int64_t x_width = width(c), x_stride = x_width + c.x_gap;
    for (std::int64_t i = 0; i < c.rows; ++i)
      for (std::int64_t j = 0; j < x_width; ++j)
        put(c.x_dtype, x.as(), i * x_stride + j, element(c, random, i, j, x_width));
    if (c.scheme == QuantizeScheme::with_given_scale)
      for (std::int64_t i = 0; i < scale_count(c); ++i)
        scale.as<float>()[i] =
            c.given_scales != nullptr ? c.given_scales[i % c.given_scale_count] : 0.01f + 0.01f * random.uniform();
    for (std::int64_t j = 0; j < c.columns; ++j)
      put(c.x_dtype, weight.as(), j * c.weight_stride, encoded(c.x_dtype, 1.0f + 0.5f * random.uniform()));
    if (c.has_residual)
      for (std::int64_t i = 0; i < c.rows; ++i)
        for (std::int64_t j = 0; j < c.columns; ++j)
          put(c.x_dtype, residual.as(), i * (c.columns + c.residual_gap) + j, encoded(c.x_dtype, random.normal()));
    *bound.as<float>() = c.bound;
    x.seal();
    weight.seal();
    bound.seal();
    if (c.scheme == QuantizeScheme::with_given_scale) scale.seal();

    problem.scheme = c.scheme;
    problem.source = c.source;
    problem.rows = c.rows;
    problem.columns = c.columns;
    problem.x = x.as();
    problem.x_stride = x_stride;
    problem.x_dtype = c.x_dtype;
    problem.q = q.as();
    problem.q_stride = c.columns + c.q_gap;
    problem.q_rows = c.rows + c.extra_q_rows;
    problem.q_dtype = c.q_dtype;
    problem.scale = scale.as();
    const std::int64_t inner = c.column_major_scales ? row_groups(c) : groups(c);
    problem.scale_row_stride = c.column_major_scales ? 1 : inner + c.scale_gap;
    problem.scale_group_stride = c.column_major_scales ? inner + c.scale_gap : 1;
    if (packed(c)) {
      problem.scale_row_stride = 1;
      problem.packed_columns_stride = aligned_rows(c);
    }
    problem.group_rows = c.scheme == QuantizeScheme::per_tensor ? std::max<std::int64_t>(1, c.rows) : c.group_rows;
    problem.group_columns = c.group_columns == 0 ? std::max<std::int64_t>(1, c.columns) : c.group_columns;
    problem.azp = azp.as<std::int32_t>();
    problem.azp_stride = c.azp_stride;
    problem.scale_upper_bound = c.has_bound ? bound.as<float>() : nullptr;
    problem.power_of_two_scales = c.power_of_two_scales;
    problem.activation = c.activation;
    problem.gated = c.gated;
    problem.weight = weight.as();
    problem.weight_stride = c.weight_stride;
    problem.residual = c.has_residual ? residual.as() : nullptr;
    problem.residual_stride = c.columns + c.residual_gap;
    problem.eps = c.eps;
    problem.q_min = c.q_min;
    problem.q_max = c.q_max;
  }

  GuardedBuffer x, q, scale, azp, weight, residual, bound;
  QuantizeProblem problem;
};

// The first byte that differs, or nothing. Buffers are compared whole, so what stands in gaps must be untouched as
// well.
std::string difference(const char* what, const GuardedBuffer& expected, const GuardedBuffer& got) {
  if (std::memcmp(expected.as(), got.as(), expected.bytes()) == 0) return "";
  std::size_t i = 0;
  while (expected.as()[i] == got.as()[i]) ++i;
  return std::string(what) + " byte " + std::to_string(i) + ": expected " + std::to_string(expected.as()[i]) +
         ", got " + std::to_string(got.as()[i]) + "; ";
}
// As above, but a NaN is a NaN: which of two NaN summands an addition returns is not defined.
std::string residual_difference(const Case& c, const GuardedBuffer& expected, const GuardedBuffer& got) {
  const auto is_nan = [&](const GuardedBuffer& buffer, std::size_t i) {
    if (c.x_dtype == DType::float32) return numerics::is_nan(buffer.as<float>()[i]);
    const std::uint32_t magnitude = buffer.as<std::uint16_t>()[i] & 0x7fffu;
    return magnitude > (c.x_dtype == DType::bfloat16 ? 0x7f80u : 0x7c00u);
  };
  const std::size_t size = static_cast<std::size_t>(size_in_bytes(c.x_dtype));
  for (std::size_t i = 0; i < expected.bytes() / size; ++i)
    if (std::memcmp(expected.as() + i * size, got.as() + i * size, size) != 0 &&
        !(is_nan(expected, i) && is_nan(got, i)))
      return "residual element " + std::to_string(i) + "; ";
  return "";
}

std::int64_t comparisons = 0;  // of the test that runs

class CpuQuantize : public ::testing::TestWithParam<std::int32_t> {
 protected:
  void SetUp() override {
    const plan_tables::CpuQuantizeRow& row = plan_tables::kCpuQuantizeRows[static_cast<std::size_t>(GetParam())];
    const InstructionSet here = cpu_facts().instruction_set;
    if (row.instruction_set > here)
      GTEST_SKIP() << row.name << " needs " << name(row.instruction_set) << ", this processor has " << name(here);
    plan_.row = GetParam();
    plan_.name = row.name;
    comparisons = 0;
  }
  void TearDown() override {
    if (!IsSkipped()) {
      EXPECT_GT(comparisons, 0);
    }
  }

  // One case through the reference and through the row; "" where every bit and every red zone is as it should be.
  std::string mismatch(const Case& c, const RunContext& context = RunContext()) const {
    ++comparisons;
    Operands expected(c), got(c);
    reference::quantize(expected.problem);
    const Status status = run(plan_, got.problem, context);
    if (!status.ok()) return status.text();
    std::string text = difference("scale", expected.scale, got.scale) + difference("q", expected.q, got.q) +
                       difference("azp", expected.azp, got.azp) +
                       residual_difference(c, expected.residual, got.residual);
    const std::pair<const char*, const GuardedBuffer*> buffers[] = {
        {"x", &got.x},        {"q", &got.q},           {"scale", &got.scale},
        {"azp", &got.azp},    {"weight", &got.weight}, {"residual", &got.residual},
        {"bound", &got.bound}};
    for (const auto& [what, buffer] : buffers)
      if (const std::string damage = buffer->damage(); !damage.empty())
        text += std::string(what) + ": " + damage + "; ";
    return text;
  }
  void expect_equal(const Case& c, const RunContext& context = RunContext()) const {
    const std::string text = mismatch(c, context);
    EXPECT_EQ(text, "") << plan_.name << ": " << c.text();
  }

  Plan plan_;
};

constexpr DType kInputs[] = {DType::bfloat16, DType::float16, DType::float32};
constexpr DType kOutputs[] = {DType::int8, DType::float8_e4m3fn};
constexpr Activation kActivations[] = {Activation::silu, Activation::gelu, Activation::relu_squared};

struct Shape {
  QuantizeScheme scheme;
  std::int64_t group_rows, group_columns;
};
// Every scheme that takes any source, with its group shapes.
constexpr Shape kShapes[] = {
    {QuantizeScheme::per_tensor, 1, 0},         {QuantizeScheme::per_row, 1, 0},
    {QuantizeScheme::per_row_asymmetric, 1, 0}, {QuantizeScheme::with_given_scale, 1, 0},
    {QuantizeScheme::with_given_scale, 1, 128}, {QuantizeScheme::with_given_scale, 128, 128},
    {QuantizeScheme::per_block, 1, 1},          {QuantizeScheme::per_block, 1, 7},
    {QuantizeScheme::per_block, 1, 32},         {QuantizeScheme::per_block, 1, 64},
    {QuantizeScheme::per_block, 1, 128},        {QuantizeScheme::per_block, 3, 5},
    {QuantizeScheme::per_block, 128, 128},
};

// A case that uses every stride there is.
Case with_gaps(Case c, std::int64_t round) {
  c.x_gap = round % 3 * 5;
  c.q_gap = round % 4 * 3;
  c.residual_gap = round % 2 * 9;
  c.scale_gap = round % 5;
  c.azp_stride = 1 + round % 3;
  c.weight_stride = 1 + round % 2 * 2;
  c.byte_offset = static_cast<std::size_t>(round % 7);
  c.column_major_scales = round % 2 == 1;
  return c;
}

TEST_P(CpuQuantize, EverySchemeSourceAndType) {
  std::int64_t round = 0;
  for (const Shape& shape : kShapes)
    for (const DType x : kInputs)
      for (const DType q : kOutputs)
        for (const std::int64_t rows : {std::int64_t{1}, std::int64_t{9}, shape.group_rows + 2})
          for (const std::int64_t columns : {1, 31, 300})
            for (const Data data : {Data::mixed, Data::ordinary}) {
              if (shape.scheme == QuantizeScheme::per_row_asymmetric && q != DType::int8) continue;
              Case c;
              c.scheme = shape.scheme;
              c.group_rows = shape.group_rows;
              c.group_columns = shape.group_columns;
              c.x_dtype = x;
              c.q_dtype = q;
              c.rows = rows;
              c.columns = columns;
              c.data = data;
              c = with_gaps(c, ++round);
              expect_equal(c);
              c.power_of_two_scales = true;
              expect_equal(c);
              c.power_of_two_scales = false;
              c.source = QuantizeSource::activation;
              c.activation = kActivations[round % 3];
              c.gated = round % 2 == 0;
              expect_equal(c);
              c.gated = false;
              c.source = QuantizeSource::rms_norm;
              c.eps = 1e-6f;
              c.has_residual = round % 2 == 0;
              expect_equal(c);
            }
}

TEST_P(CpuQuantize, EveryResidueOfColumns) {
  std::vector<std::int64_t> columns;
  for (std::int64_t n = 0; n <= 130; ++n) columns.push_back(n);
  for (const std::int64_t around : {256, 512, 1024, 2048})
    for (std::int64_t n = around - 2; n <= around + 2; ++n) columns.push_back(n);
  std::int64_t round = 0;
  for (const std::int64_t n : columns)
    for (const DType x : kInputs) {
      Case c;
      c.x_dtype = x;
      c.q_dtype = kOutputs[++round % 2];
      c.rows = 8;
      c.columns = n;
      c = with_gaps(c, round);
      expect_equal(c);
      c.data = Data::ordinary;
      c.rows = 2;
      c.source = QuantizeSource::rms_norm;
      c.has_residual = round % 3 == 0;
      expect_equal(c);
      c.source = QuantizeSource::activation;
      c.has_residual = false;
      c.gated = true;
      expect_equal(c);
      c.source = QuantizeSource::copy;
      c.gated = false;
      c.scheme = QuantizeScheme::per_block;
      c.group_columns = 32;
      expect_equal(c);
      c.scheme = QuantizeScheme::per_row_asymmetric;
      c.group_columns = 0;
      c.q_dtype = DType::int8;
      expect_equal(c);
    }
}

// All 65,536 values of the 16-bit types and as many of fp32, divided by scales of every kind.
TEST_P(CpuQuantize, EveryValueWithGivenScales) {
  std::vector<float> scales = {1.0f, 0.5f,  2.0f,   0.1f,           0.3f,   1.0f / 127.0f, 1.0f / 448.0f,
                               3.0f, 1e-3f, 7e-5f,  123.456f,       1e4f,   -1.0f,         -0.037f,
                               0.0f, -0.0f, 1e-38f, 1.1754944e-38f, 1e-42f, 1e38f,         3.4028235e38f};
  scales.push_back(std::numeric_limits<float>::infinity());
  scales.push_back(std::numeric_limits<float>::quiet_NaN());
  Random random(kSeed);
  for (int i = 0; i < 17; ++i)
    scales.push_back(numerics::bits_to_float(static_cast<std::uint32_t>(random.bits() >> 33)));
  for (const float& scale : scales)
    for (const DType x : kInputs)
      for (const DType q : kOutputs) {
        Case c;
        c.scheme = QuantizeScheme::with_given_scale;
        c.x_dtype = x;
        c.q_dtype = q;
        c.rows = 256;
        c.columns = 256;
        c.group_rows = 256;
        c.data = Data::all_bits;
        c.given_scales = &scale;
        c.given_scale_count = 1;
        expect_equal(c);
      }
}

// All 16-bit values again where each has a scale of its own: the scale shows the last bit of what was computed from it.
TEST_P(CpuQuantize, EveryValueWithItsOwnScale) {
  for (const DType x : kInputs)
    for (const DType q : kOutputs)
      for (const int source : {0, 1, 2, 3, 4, 5, 6, 7}) {
        Case c;
        c.scheme = QuantizeScheme::per_block;
        c.group_columns = 1;
        c.x_dtype = x;
        c.q_dtype = q;
        c.rows = 256;
        c.columns = 256;
        c.data = Data::all_bits;
        if (source > 0 && source < 7) {
          c.source = QuantizeSource::activation;
          c.activation = kActivations[(source - 1) % 3];
          c.gated = source > 3;
          if (c.gated) c.rows = 128;  // x is twice as wide
        } else if (source == 7) {
          c.scheme = QuantizeScheme::dropin_group;
          c.q_max = q == DType::int8 ? 127.0f : 448.0f;
          c.q_min = -c.q_max;
          c.eps = 1e-10f;
        }
        expect_equal(c);
      }
}

// Activations where they matter: fp32 values from -110 to 100 in steps that are no multiples of anything.
TEST_P(CpuQuantize, ActivationsOfManyFloats) {
  for (const Activation activation : kActivations) {
    Case c;
    c.scheme = QuantizeScheme::per_block;
    c.source = QuantizeSource::activation;
    c.activation = activation;
    c.group_columns = 1;
    c.x_dtype = DType::float32;
    c.rows = 64;
    c.columns = 4096;
    Operands expected(c), got(c);
    for (Operands* operands : {&expected, &got}) {
      Random random(kSeed);
      for (std::int64_t i = 0; i < c.rows * c.columns; ++i)
        operands->x.as<float>()[i] = i % 4 == 0 ? 105.0f * random.uniform() - 5.0f : 6.0f * random.uniform();
      operands->x.seal();
    }
    reference::quantize(expected.problem);
    ASSERT_TRUE(run(plan_, got.problem, RunContext()).ok());
    EXPECT_EQ(difference("scale", expected.scale, got.scale) + difference("q", expected.q, got.q) + got.q.damage(), "")
        << plan_.name << ": " << c.text();
    ++comparisons;
  }
}

// fp32 values on and beside every rounding boundary of int8 and e4m3, and beyond their ends.
TEST_P(CpuQuantize, RoundingBoundaries) {
  std::vector<float> values;
  const auto beside = [&](float boundary) {
    const std::uint32_t bits = numerics::float_to_bits(boundary);
    for (std::uint32_t i = bits < 3 ? 0 : bits - 3; i <= bits + 3; ++i)
      for (const std::uint32_t sign : {0u, 0x80000000u}) values.push_back(numerics::bits_to_float(i | sign));
  };
  for (int i = 0; i <= 260; ++i) beside(0.5f * static_cast<float>(i));
  for (int code = 0; code < 0x7e; ++code) {
    const float low = numerics::float8_e4m3fn_to_float(static_cast<std::uint8_t>(code));
    const float high = numerics::float8_e4m3fn_to_float(static_cast<std::uint8_t>(code + 1));
    beside(low);
    beside(0.5f * (low + high));
  }
  for (const float end : {448.0f, 464.0f, 480.0f, 512.0f, 0x1p22f, 0x1p23f, 3.4e38f}) beside(end);
  for (const float scale : {1.0f, 0.125f, 1024.0f})
    for (const DType q : kOutputs) {
      Case c;
      c.scheme = QuantizeScheme::with_given_scale;
      c.x_dtype = DType::float32;
      c.q_dtype = q;
      c.columns = static_cast<std::int64_t>(values.size());
      c.given_scales = &scale;
      c.given_scale_count = 1;
      Operands expected(c), got(c);
      for (Operands* operands : {&expected, &got}) {
        for (std::size_t i = 0; i < values.size(); ++i) operands->x.as<float>()[i] = values[i] * scale;
        operands->x.seal();
      }
      reference::quantize(expected.problem);
      ASSERT_TRUE(run(plan_, got.problem, RunContext()).ok());
      EXPECT_EQ(difference("q", expected.q, got.q), "") << plan_.name << ": " << c.text();
      ++comparisons;
    }
}

// The sum of squares: each row has a scale for every value, so a different order of one addition shows.
TEST_P(CpuQuantize, RmsNormKeepsItsOrder) {
  std::int64_t round = 0;
  for (const DType x : kInputs)
    for (const std::int64_t columns :
         {1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 255, 256, 257, 333, 1000, 4096, 5003, 8193, 16640})
      for (const bool residual : {false, true})
        for (const float eps : {0.0f, 1e-6f, 0.5f}) {
          Case c;
          c.scheme = QuantizeScheme::per_block;
          c.source = QuantizeSource::rms_norm;
          c.group_columns = 1;
          c.x_dtype = x;
          c.rows = 3;
          c.columns = columns;
          c.data = Data::ordinary;
          c.has_residual = residual;
          c.eps = eps;
          c.weight_stride = 1 + ++round % 2 * 3;
          c.residual_gap = round % 3;
          expect_equal(c);
          c.rows = 8;
          c.group_columns = 0;
          c.scheme = QuantizeScheme::per_row;
          c.data = Data::mixed;
          expect_equal(c);
        }
}

// More produced values than are kept between the passes over a row.
TEST_P(CpuQuantize, LongRows) {
  for (const QuantizeSource source : {QuantizeSource::copy, QuantizeSource::activation, QuantizeSource::rms_norm})
    for (const QuantizeScheme scheme :
         {QuantizeScheme::per_row, QuantizeScheme::per_tensor, QuantizeScheme::per_row_asymmetric})
      for (const std::int64_t columns : {16383, 16384, 16385, 16896, 17011, 40000}) {
        Case c;
        c.scheme = scheme;
        c.source = source;
        c.rows = 2;
        c.columns = columns;
        c.gated = source == QuantizeSource::activation;
        c.has_residual = source == QuantizeSource::rms_norm;
        c.data = Data::ordinary;
        expect_equal(c);
      }
}

TEST_P(CpuQuantize, UpperBound) {
  const float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  for (const float bound : {0.5f, 1.0f, 1e-40f, 0.0f, -1.0f, 1e30f, infinity, nan})
    for (const DType x : kInputs)
      for (const DType q : kOutputs)
        for (const bool power_of_two : {false, true}) {
          Case c;
          c.x_dtype = x;
          c.q_dtype = q;
          c.rows = 16;
          c.columns = 77;
          c.has_bound = true;
          c.bound = bound;
          c.power_of_two_scales = power_of_two;
          expect_equal(c);
        }
}

TEST_P(CpuQuantize, NothingAndAlmostNothing) {
  for (const Shape& shape : kShapes)
    for (const QuantizeSource source : {QuantizeSource::copy, QuantizeSource::activation, QuantizeSource::rms_norm})
      for (const std::int64_t rows : {0, 1, 3})
        for (const std::int64_t columns : {0, 1}) {
          Case c;
          c.scheme = shape.scheme;
          c.source = source;
          c.group_rows = shape.group_rows;
          c.group_columns = shape.group_columns;
          c.rows = rows;
          c.columns = columns;
          c.data = Data::ordinary;
          expect_equal(c);
        }
}

// Groups as wide and as high as an int64 can say.
TEST_P(CpuQuantize, GroupsWiderThanTheTensor) {
  const std::int64_t most = std::numeric_limits<std::int64_t>::max();
  for (const std::int64_t group_rows : {std::int64_t{1}, std::int64_t{6}, most})
    for (const QuantizeScheme scheme : {QuantizeScheme::per_block, QuantizeScheme::with_given_scale}) {
      Case c;
      c.scheme = scheme;
      c.rows = 5;
      c.columns = 70;
      c.group_rows = group_rows;
      c.group_columns = most;
      // Not through the reference: its loops add a group to a column before they compare.
      Case same = c;
      same.group_rows = std::min<std::int64_t>(group_rows, 5);
      same.group_columns = 0;
      Operands expected(same), got(c);
      reference::quantize(expected.problem);
      ASSERT_TRUE(run(plan_, got.problem, RunContext()).ok());
      EXPECT_EQ(difference("scale", expected.scale, got.scale) + difference("q", expected.q, got.q), "") << c.text();
      ++comparisons;
    }
}

TEST_P(CpuQuantize, PerTensorSeesEveryElement) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const DType q : kOutputs)
    for (const float value : {nan, -nan, 1000.0f, -1000.0f, std::numeric_limits<float>::infinity()})
      for (const std::int64_t at : {0, 1, 63, 64, 1000, 2046, 2047}) {
        Case c;
        c.scheme = QuantizeScheme::per_tensor;
        c.q_dtype = q;
        c.x_dtype = DType::float32;
        c.rows = 32;
        c.columns = 64;
        c.data = Data::ordinary;
        Operands expected(c), got(c);
        for (Operands* operands : {&expected, &got}) {
          operands->x.as<float>()[at] = value;
          operands->x.seal();
        }
        reference::quantize(expected.problem);
        ASSERT_TRUE(run(plan_, got.problem, RunContext()).ok());
        EXPECT_EQ(difference("scale", expected.scale, got.scale) + difference("q", expected.q, got.q), "")
            << plan_.name << " value " << value << " at " << at;
        ++comparisons;
      }
}

TEST_P(CpuQuantize, DropinGroups) {
  struct Limits {
    DType q;
    float q_min, q_max;
  };
  const Limits limits[] = {{DType::int8, -128.0f, 127.0f},           {DType::int8, -127.0f, 127.0f},
                           {DType::int8, -300.0f, 300.0f},           {DType::int8, -7.0f, 7.0f},
                           {DType::float8_e4m3fn, -448.0f, 448.0f},  {DType::float8_e4m3fn, -240.0f, 240.0f},
                           {DType::float8_e4m3fn, -1000.0f, 1000.0f}};
  std::int64_t round = 0;
  for (const Limits& limit : limits)
    for (const DType x : kInputs)
      for (const std::int64_t group : {1, 7, 32, 64, 128})
        for (const std::int64_t groups : {1, 3, 4, 5})
          for (const float eps : {1e-10f, 0.5f, 3e38f})
            for (const bool ue8m0 : {false, true}) {
              Case c;
              c.scheme = QuantizeScheme::dropin_group;
              c.x_dtype = x;
              c.q_dtype = limit.q;
              c.q_min = limit.q_min;
              c.q_max = limit.q_max;
              c.group_columns = group;
              c.columns = group * groups;
              c.rows = 9;
              c.eps = eps;
              c.power_of_two_scales = ue8m0;
              c.scale_gap = ++round % 3;
              c.column_major_scales = round % 2 == 0;
              c.byte_offset = static_cast<std::size_t>(round % 5);
              expect_equal(c);
            }
}

TEST_P(CpuQuantize, DropinPackedScales) {
  for (const DType x : kInputs)
    for (const std::int64_t rows : {0, 1, 2, 3, 4, 5, 9})
      for (const std::int64_t group : {1, 7, 32, 128})
        for (const std::int64_t groups : {1, 2, 3, 4, 5, 8, 9})
          for (const std::int64_t extra : {0, 3}) {
            Case c;
            c.scheme = QuantizeScheme::dropin_group_packed;
            c.x_dtype = x;
            c.q_dtype = DType::float8_e4m3fn;
            c.q_min = -448.0f;
            c.q_max = 448.0f;
            c.eps = 1e-10f;
            c.rows = rows;
            c.group_columns = group;
            c.columns = group * groups;
            c.extra_q_rows = extra;
            expect_equal(c);
          }
}

// ---- threads
// ------------------------------------------------------------------------------------------------------------

std::int64_t pieces_called = 0;

// Pieces of 1, 2, 3, ... from the end to the beginning, whatever the grain.
void uneven(std::int64_t begin, std::int64_t end, std::int64_t, ParallelForBody body, void* context) {
  std::int64_t size = 1;
  while (end > begin) {
    const std::int64_t from = std::max(begin, end - size++);
    body(context, from, end);
    end = from;
    ++pieces_called;
  }
}

TEST_P(CpuQuantize, ThreadsDoNotShow) {
  RunContext threads, pieces;
  threads.parallel_for = parallel_for_threads;
  pieces.parallel_for = uneven;
  threads.threads = pieces.threads = 2;
  std::int64_t round = 0;
  for (const Shape& shape : kShapes)
    for (const QuantizeSource source : {QuantizeSource::copy, QuantizeSource::activation, QuantizeSource::rms_norm}) {
      Case c;
      c.scheme = shape.scheme;
      c.source = source;
      c.group_rows = shape.group_rows;
      c.group_columns = shape.group_columns;
      c.rows = shape.group_rows > 100 ? 300 : 45;
      c.columns = shape.group_rows > 100 ? 300 : 1201;
      c.q_dtype = shape.scheme == QuantizeScheme::per_row_asymmetric ? DType::int8 : kOutputs[++round % 2];
      c.has_residual = source == QuantizeSource::rms_norm;
      c.gated = source == QuantizeSource::activation;
      for (const Data data : {Data::mixed, Data::ordinary}) {
        c.data = data;
        expect_equal(c, threads);
        pieces_called = 0;
        expect_equal(c, pieces);
        if (GetParam() > 0) {  // the reference has no threads
          EXPECT_GT(pieces_called, 1) << c.text();
        }
      }
    }
  Case c;
  c.scheme = QuantizeScheme::dropin_group_packed;
  c.q_dtype = DType::float8_e4m3fn;
  c.q_max = 448.0f;
  c.q_min = -448.0f;
  c.eps = 1e-10f;
  c.rows = 45;
  c.group_columns = 128;
  c.columns = 128 * 17;
  c.extra_q_rows = 3;
  expect_equal(c, threads);
  expect_equal(c, pieces);
}

INSTANTIATE_TEST_SUITE_P(
    Rows, CpuQuantize,
    ::testing::Range<std::int32_t>(0, static_cast<std::int32_t>(plan_tables::kCpuQuantizeRows.size())),
    [](const ::testing::TestParamInfo<std::int32_t>& info) {
      return plan_tables::kCpuQuantizeRows[static_cast<std::size_t>(info.param)].name;
    });

TEST(CpuQuantizeRows, RowWithoutKernelIsAnError) {
  Case c;
  Operands operands(c);
  Plan plan;
  plan.row = static_cast<std::int32_t>(plan_tables::kCpuQuantizeRows.size());
  plan.name = "no such row";
  const Status status = run(plan, operands.problem, RunContext());
  EXPECT_NE(status.text().find("got row 4 (no such row)"), std::string::npos) << status.text();
}

// ---- permute_cols
// --------------------------------------------------------------------------------------------------------

TEST(CpuPermute, EqualsReference) {
  RunContext serial, threads, pieces;
  threads.parallel_for = parallel_for_threads;
  pieces.parallel_for = uneven;
  threads.threads = pieces.threads = 2;
  Random random(kSeed);
  for (const std::int64_t rows : {0, 1, 2, 3, 4, 5, 7, 8, 40})
    for (const std::int64_t columns : {0, 1, 2, 15, 16, 17, 129, 5000})
      for (const std::int64_t stride : {1, 3})
        for (const bool hostile : {false, true}) {
          const std::size_t bytes = static_cast<std::size_t>(rows * columns * 2);
          GuardedBuffer a(bytes), expected(bytes), got(bytes);
          GuardedBuffer perm(static_cast<std::size_t>(columns == 0 ? 0 : (columns - 1) * stride + 1) * 4);
          for (std::int64_t i = 0; i < rows * columns; ++i)
            a.as<std::uint16_t>()[i] = static_cast<std::uint16_t>(random.bits());
          for (std::int64_t j = 0; j < columns; ++j) {
            constexpr std::int32_t kOutside[] = {-1, std::numeric_limits<std::int32_t>::min(),
                                                 std::numeric_limits<std::int32_t>::max()};
            std::int32_t value = static_cast<std::int32_t>(random.below(columns));
            if (hostile && random.below(3) == 0)
              value = j % 4 == 3 ? static_cast<std::int32_t>(columns) : kOutside[j % 4];
            perm.as<std::int32_t>()[j * stride] = value;
          }
          a.seal();
          perm.seal();
          PermuteProblem problem;
          problem.rows = rows;
          problem.columns = columns;
          problem.a = a.as<std::uint16_t>();
          problem.perm = perm.as<std::int32_t>();
          problem.perm_stride = stride;
          problem.out = expected.as<std::uint16_t>();
          reference::permute(problem);
          problem.out = got.as<std::uint16_t>();
          Plan plan;
          plan.row = 0;
          plan.name = "cpu_permute";
          for (const RunContext& context : {serial, threads, pieces}) {
            got.poison();
            ASSERT_TRUE(run(plan, problem, context).ok());
            EXPECT_EQ(difference("out", expected, got) + got.damage() + a.damage() + perm.damage(), "")
                << "[" << rows << ", " << columns << "] stride " << stride << " seed " << kSeed;
          }
        }
}

}  // namespace
}  // namespace evergemm
