// SPDX-License-Identifier: Apache-2.0
// Grouped products, ragged, masked and drop-in, against one dense product for each row: every bit, every routing, offsets,
// counts, sizes and pitches of any value. Mirrors src/reference/moe.cpp, src/cpu/moe.cpp and moe_index.h.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "evergemm/moe_index.h"
#include "evergemm/reference.h"
#include "moe_cases.h"

namespace {

using namespace evergemm;
using namespace evergemm::proof;

enum class Scales : std::uint8_t { tensor, row, mixed, blocks };

struct Shape {
  std::int64_t experts, rows, n, k;
};

// Operands of one grouped problem, each in guarded memory; scales and strides as the validator would set them.
struct Operands {
  Operands(GroupedForm form, const Shape& shape, DType input, DType output, Scales scales, Random& random)
      : masked(form == GroupedForm::masked) {
    const std::int64_t e = shape.experts, t = shape.rows, n = shape.n, k = shape.k;
    const std::int64_t kb = (k + 127) / 128, nb = (n + 127) / 128, matrices = masked ? e : 1;
    const bool dense = form == GroupedForm::dropin;
    const std::int64_t a_pad = dense ? 0 : below(random, 3), b_pad = dense ? 0 : below(random, 3),
                       out_pad = dense ? 0 : below(random, 3);
    problem.form = form;
    problem.experts = e;
    problem.rows = t;
    problem.n = n;
    problem.k = k;
    problem.input_dtype = input;
    problem.output_dtype = output;
    problem.a_stride = k + a_pad;
    problem.a_expert_stride = masked ? t * problem.a_stride + a_pad : 0;
    problem.b_stride = k + b_pad;
    problem.b_expert_stride = n * problem.b_stride + b_pad;
    problem.out_stride = n + out_pad;
    problem.out_expert_stride = masked ? t * problem.out_stride + out_pad : 0;
    item = static_cast<std::size_t>(size_in_bytes(output));
    a.emplace_back(static_cast<std::size_t>(masked ? e * problem.a_expert_stride : t * problem.a_stride));
    b.emplace_back(static_cast<std::size_t>(e * problem.b_expert_stride));
    out.emplace_back(static_cast<std::size_t>(masked ? e * problem.out_expert_stride : t * problem.out_stride) * item);
    fill_codes(a[0], input, random);
    fill_codes(b[0], input, random);
    const bool blocks = scales == Scales::blocks;
    const std::int64_t a_scales = blocks ? matrices * t * kb : scales == Scales::tensor ? 1 : matrices * t;
    const std::int64_t b_scales = blocks ? e * nb * kb : scales == Scales::row ? e * n : e;
    a_scale.emplace_back(static_cast<std::size_t>(a_scales) * 4);
    b_scale.emplace_back(static_cast<std::size_t>(b_scales) * 4);
    fill_scales(a_scale[0], random);
    fill_scales(b_scale[0], random);
    problem.scale_a.data = a_scale[0].as<float>();
    problem.scale_b.data = b_scale[0].as<float>();
    if (blocks) {
      const bool k_fastest = below(random, 2) == 0;
      problem.scale_a = {ScaleMode::BlockWise1x128, problem.scale_a.data, k_fastest ? kb : 1, k_fastest ? 1 : t};
      problem.scale_b = {ScaleMode::BlockWise128x128, problem.scale_b.data, k_fastest ? kb : 1, k_fastest ? 1 : nb};
      problem.scale_a_expert_stride = masked ? t * kb : 0;
      problem.scale_b_expert_stride = nb * kb;
    } else {
      if (scales != Scales::tensor) problem.scale_a = {ScaleMode::RowWise, problem.scale_a.data, 1, 0};
      if (scales != Scales::tensor && masked) problem.scale_a_expert_stride = t;
      if (scales == Scales::row) problem.scale_b = {ScaleMode::RowWise, problem.scale_b.data, 1, 0};
      problem.scale_b_expert_stride = scales == Scales::row ? n : 1;
    }
    problem.a = a[0].as<void>();
    problem.b = b[0].as<void>();
    problem.out = out[0].as<void>();
    for (auto* inputs : {&a, &b, &a_scale, &b_scale}) (*inputs)[0].seal();
  }

  std::string damage() const {
    return a[0].damage() + b[0].damage() + a_scale[0].damage() + b_scale[0].damage() + out[0].damage();
  }

  // Row `row` (of expert `expert` where masked) with the weights of `expert`, by one dense product of one row.
  std::vector<unsigned char> expected_row(std::int64_t expert, std::int64_t row, std::int64_t a_begin,
                                          std::int64_t b_stride) const {
    GemmProblem one;
    std::vector<unsigned char> result(static_cast<std::size_t>(problem.n) * item + 1);
    one.m = 1;
    one.n = problem.n;
    one.k = problem.k;
    one.input_dtype = problem.input_dtype;
    one.output_dtype = problem.output_dtype;
    one.a = a[0].as<unsigned char>() + a_begin;
    one.a_stride = problem.k;
    one.b = b[0].as<unsigned char>() + expert * problem.b_expert_stride;
    one.b_stride = b_stride;
    one.out = result.data();
    one.out_stride = problem.n;
    one.scale_a = problem.scale_a;
    one.scale_a.data += expert * problem.scale_a_expert_stride + row * problem.scale_a.outer_stride;
    one.scale_b = problem.scale_b;
    one.scale_b.data += expert * problem.scale_b_expert_stride;
    reference::gemm(one);
    result.pop_back();
    return result;
  }

  bool masked;
  std::size_t item = 0;
  GroupedGemmProblem problem;
  std::vector<GuardedBuffer> a, b, out, a_scale, b_scale;  // one each
};

constexpr Shape kShapes[] = {{1, 1, 1, 1},     {3, 40, 17, 31},  {8, 33, 129, 130}, {5, 64, 300, 128},
                             {40, 70, 16, 64}, {2, 0, 8, 8},     {4, 9, 0, 16},     {3, 7, 33, 0},
                             {0, 5, 9, 4},     {512, 90, 5, 20}, {2, 600, 9, 16}};

DType output_of(std::size_t variant) {
  constexpr DType kOutputs[] = {DType::bfloat16, DType::float16, DType::float32};
  return kOutputs[variant % 3];
}

// Runs every runner on `operands` and compares each row of out, matrix by matrix, with `expected` (empty: nobody's).
void judge(Operands& operands, const std::vector<std::vector<unsigned char>>& expected) {
  GroupedGemmProblem& problem = operands.problem;
  const std::int64_t matrices = operands.masked ? problem.experts : 1;
  const std::size_t width = static_cast<std::size_t>(problem.n) * operands.item;
  for (const bool clear : {true, false})
    for (const Runner& runner : runners()) {
      SCOPED_TRACE(runner.text() + (clear ? " functional" : " out"));
      problem.clear_unowned = clear;
      operands.out[0].poison();
      ASSERT_EQ(run_with(runner, problem), "");
      for (std::int64_t matrix = 0; matrix < matrices && width > 0; ++matrix)
        for (std::int64_t row = 0; row < problem.rows; ++row) {
          const std::vector<unsigned char>& wanted = expected[static_cast<std::size_t>(matrix * problem.rows + row)];
          const unsigned char* stored =
              operands.out[0].as() +
              static_cast<std::size_t>(matrix * problem.out_expert_stride + row * problem.out_stride) * operands.item;
          const std::vector<unsigned char> nobody(width, clear ? 0 : kPoison);
          ASSERT_EQ(std::memcmp(stored, wanted.empty() ? nobody.data() : wanted.data(), width), 0)
              << "matrix " << matrix << " row " << row << (wanted.empty() ? " (nobody's)" : "");
          for (std::size_t i = width;
               i < static_cast<std::size_t>(problem.out_stride) * operands.item && row + 1 < problem.rows; ++i)
            ASSERT_EQ(stored[i], kPoison) << "gap behind row " << row;
        }
      ASSERT_EQ(operands.damage(), "");
    }
}

struct Variant {
  DType input;
  Scales scales;
};
constexpr Variant kVariants[] = {{DType::int8, Scales::tensor},       {DType::int8, Scales::row},
                                 {DType::int8, Scales::mixed},        {DType::float8_e4m3fn, Scales::tensor},
                                 {DType::float8_e4m3fn, Scales::row}, {DType::float8_e4m3fn, Scales::blocks}};

TEST(Ragged, EveryRowIsADenseRow) {
  std::uint64_t seed = 1;
  for (const Shape& shape : kShapes)
    for (const Variant& variant : kVariants) {
      Random random(seed);
      SCOPED_TRACE("seed " + std::to_string(seed) + " experts " + std::to_string(shape.experts) + " rows " +
                   std::to_string(shape.rows));
      Operands operands(GroupedForm::ragged, shape, variant.input, output_of(seed), variant.scales, random);
      const bool wide = seed % 2 == 0, bad = seed % 3 != 0;
      const std::int64_t stride = 1 + below(random, 2);
      ++seed;
      GuardedBuffer offsets(static_cast<std::size_t>((shape.experts + 1) * stride) * (wide ? 8 : 4));
      std::vector<std::int64_t> values;
      for (std::int64_t e = 0; e <= shape.experts; ++e) values.push_back(below(random, shape.rows + 1));
      std::sort(values.begin(), values.end());
      for (std::int64_t& value : values)
        if (bad && below(random, 3) == 0) value = hostile(random, shape.rows, wide);
      if (!wide)
        for (std::int64_t& value : values) value = static_cast<std::int32_t>(value);
      for (std::int64_t e = 0; e <= shape.experts; ++e)
        store_index(offsets, wide, e * stride, values[static_cast<std::size_t>(e)]);
      offsets.seal();
      operands.problem.expert_rows = {offsets.as<void>(), stride, wide};
      // Expert e owns the rows from the largest of offsets 0 .. e to the largest of 0 .. e + 1.
      std::vector<std::vector<unsigned char>> expected(static_cast<std::size_t>(shape.rows));
      for (std::int64_t row = 0; row < shape.rows; ++row) {
        std::int64_t most = std::numeric_limits<std::int64_t>::min();
        for (std::int64_t e = 0; e < shape.experts; ++e) {
          most = std::max(most, values[static_cast<std::size_t>(e)]);
          if (most <= row && std::max(most, values[static_cast<std::size_t>(e + 1)]) > row)
            expected[static_cast<std::size_t>(row)] =
                operands.expected_row(e, row, row * operands.problem.a_stride, operands.problem.b_stride);
        }
      }
      judge(operands, expected);
      ASSERT_EQ(offsets.damage(), "");
    }
}

TEST(Masked, EveryRowIsADenseRow) {
  std::uint64_t seed = 100;
  for (const Shape& whole : kShapes)
    for (const Variant& variant : kVariants) {
      const Shape shape{whole.experts, whole.experts > 8 ? 2 : std::min<std::int64_t>(whole.rows, 9), whole.n, whole.k};
      Random random(seed);
      SCOPED_TRACE("seed " + std::to_string(seed) + " experts " + std::to_string(shape.experts) + " rows " +
                   std::to_string(shape.rows));
      Operands operands(GroupedForm::masked, shape, variant.input, output_of(seed), variant.scales, random);
      const bool wide = seed % 2 == 0;
      ++seed;
      GuardedBuffer counts(static_cast<std::size_t>(shape.experts) * (wide ? 8 : 4));
      std::vector<std::int64_t> values;
      for (std::int64_t e = 0; e < shape.experts; ++e) {
        values.push_back(below(random, 2) == 0 ? below(random, shape.rows + 1) : hostile(random, shape.rows, wide));
        store_index(counts, wide, e, values.back());
      }
      counts.seal();
      operands.problem.expert_rows = {counts.as<void>(), 1, wide};
      std::vector<std::vector<unsigned char>> expected(static_cast<std::size_t>(shape.experts * shape.rows));
      for (std::int64_t e = 0; e < shape.experts; ++e)
        for (std::int64_t row = 0; row < shape.rows; ++row)
          if (row < values[static_cast<std::size_t>(e)])
            expected[static_cast<std::size_t>(e * shape.rows + row)] =
                operands.expected_row(e, row, e * operands.problem.a_expert_stride + row * operands.problem.a_stride,
                                      operands.problem.b_stride);
      judge(operands, expected);
      ASSERT_EQ(counts.damage(), "");
    }
}

// cutlass_moe_mm: who owns an element is worked out element by element.
TEST(Dropin, SizesStartsAndPitchesOfAnyValue) {
  std::uint64_t seed = 1000;
  for (int repeat = 0; repeat < 40; ++repeat)
    for (const Shape& shape : kShapes) {
      if (shape.experts > 100 || shape.rows > 100) continue;
      const Variant variant = kVariants[static_cast<std::size_t>(repeat) % 5];  // no blocks
      Random random(seed);
      SCOPED_TRACE("seed " + std::to_string(seed) + " experts " + std::to_string(shape.experts) + " rows " +
                   std::to_string(shape.rows));
      Operands operands(GroupedForm::dropin, shape, variant.input, output_of(seed % 2), variant.scales, random);
      const int kind = repeat % 4;  // 0, 1: as vLLM sends them, transposed or not; 2: some hostile; 3: pitches too
      const bool wide = seed % 2 == 0;
      ++seed;
      const auto e_count = static_cast<std::size_t>(shape.experts);
      GuardedBuffer starts(e_count * (wide ? 8 : 4)), sizes(e_count * 12), pitches(e_count * 8 * 3);
      std::vector<std::int64_t> start, m, as, bs, cs;
      std::int64_t next = 0;
      for (std::int64_t e = 0; e < shape.experts; ++e) {
        std::int64_t rows = below(random, shape.rows - next + 1);
        start.push_back(next);
        as.push_back(shape.k);
        bs.push_back(shape.k);
        cs.push_back(shape.n);
        next += rows;
        const auto at = static_cast<std::size_t>(e);
        std::int32_t size[3] = {static_cast<std::int32_t>(rows), static_cast<std::int32_t>(shape.n),
                                static_cast<std::int32_t>(shape.k)};
        if (kind == 1) std::swap(size[0], size[1]);
        if (kind >= 2 && below(random, 3) == 0) start[at] = hostile(random, shape.rows, wide);
        if (kind >= 2 && below(random, 3) == 0) {
          rows = static_cast<std::int32_t>(hostile(random, shape.rows, false));
          size[0] = static_cast<std::int32_t>(rows);
        }
        if (kind >= 2 && below(random, 6) == 0) {
          size[1 + below(random, 2)] += 1 + static_cast<std::int32_t>(below(random, 3));
        }
        if (kind == 3 && below(random, 2) == 0) as[at] = hostile(random, 3 * shape.k + 1, true);
        if (kind == 3 && below(random, 2) == 0) bs[at] = hostile(random, 2 * shape.k + 1, true);
        if (kind == 3 && below(random, 2) == 0) cs[at] = hostile(random, 3 * shape.n + 1, true);
        const bool plain = size[1] == shape.n && size[2] == shape.k, swapped = size[0] == shape.n && size[2] == shape.k;
        m.push_back(plain ? size[0] : swapped ? size[1] : 0);
        store_index(starts, wide, e, start[at]);
        for (int i = 0; i < 3; ++i) sizes.as<std::int32_t>()[3 * e + i] = size[i];
        pitches.as<std::int64_t>()[e] = as[at];
        pitches.as<std::int64_t>()[shape.experts + e] = bs[at];
        pitches.as<std::int64_t>()[2 * shape.experts + e] = cs[at];
      }
      for (GuardedBuffer* buffer : {&starts, &sizes, &pitches}) buffer->seal();
      GroupedGemmProblem& problem = operands.problem;
      problem.expert_rows = {starts.as<void>(), 1, wide};
      problem.problem_sizes = sizes.as<std::int32_t>();
      problem.a_pitches = {pitches.as<std::int64_t>(), 1, true};
      problem.b_pitches = {pitches.as<std::int64_t>() + shape.experts, 1, true};
      problem.out_pitches = {pitches.as<std::int64_t>() + 2 * shape.experts, 1, true};

      using Wide = __int128;
      const std::size_t bytes = operands.out[0].bytes();
      std::vector<unsigned char> expected(bytes, kPoison);
      Wide owned = 0;
      for (std::int64_t e = 0; e < shape.experts && shape.n > 0; ++e) {
        const auto at = static_cast<std::size_t>(e);
        const bool b_inside =
            shape.k == 0 || (bs[at] >= 0 && Wide{e} * shape.n * shape.k + Wide{shape.n - 1} * bs[at] + shape.k <=
                                                Wide{shape.experts} * shape.n * shape.k);
        if (start[at] < 0 || cs[at] < shape.n || !b_inside) continue;
        Wide end = owned;
        for (std::int64_t i = 0; i < std::min<std::int64_t>(m[at], shape.rows); ++i) {
          const Wide out_begin = Wide{start[at]} * shape.n + Wide{i} * cs[at],
                     a_begin = Wide{start[at]} * shape.k + Wide{i} * as[at];
          const bool a_inside = shape.k == 0 || (as[at] >= 0 && a_begin + shape.k <= Wide{shape.rows} * shape.k);
          if (Wide{start[at]} + i >= shape.rows || !a_inside || out_begin + shape.n > Wide{shape.rows} * shape.n) break;
          if (out_begin < owned) continue;
          const std::vector<unsigned char> row = operands.expected_row(
              e, start[at] + i, shape.k == 0 ? 0 : static_cast<std::int64_t>(a_begin), shape.k == 0 ? 0 : bs[at]);
          std::copy(
              row.begin(), row.end(),
              expected.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(out_begin) * operands.item));
          end = out_begin + shape.n;
        }
        owned = end;
      }
      for (const Runner& runner : runners()) {
        SCOPED_TRACE(runner.text());
        operands.out[0].poison();
        ASSERT_EQ(run_with(runner, problem), "");
        if (bytes > 0) {
          ASSERT_EQ(std::memcmp(operands.out[0].as(), expected.data(), bytes), 0);
        }
        ASSERT_EQ(operands.damage() + starts.damage() + sizes.damage() + pitches.damage(), "");
      }
    }
}

// One scale of a for each expert, which only the drop-in operator knows.
TEST(Dropin, OneScaleOfAnExpert) {
  Random random(77);
  const Shape shape{3, 12, 20, 40};
  Operands operands(GroupedForm::dropin, shape, DType::int8, DType::bfloat16, Scales::tensor, random);
  GuardedBuffer scales(3 * 4), starts(3 * 4), sizes(3 * 12), pitches(3 * 8 * 2);
  fill_scales(scales, random);
  for (int e = 0; e < 3; ++e) {
    starts.as<std::int32_t>()[e] = 4 * e;
    const std::int32_t size[3] = {4, 20, 40};
    std::memcpy(sizes.as<std::int32_t>() + 3 * e, size, sizeof size);
    pitches.as<std::int64_t>()[e] = 40;
    pitches.as<std::int64_t>()[3 + e] = 20;
  }
  GroupedGemmProblem& problem = operands.problem;
  problem.scale_a.data = scales.as<float>();
  problem.scale_a_expert_stride = 1;
  problem.expert_rows = {starts.as<void>(), 1, false};
  problem.problem_sizes = sizes.as<std::int32_t>();
  problem.a_pitches = problem.b_pitches = {pitches.as<void>(), 1, true};
  problem.out_pitches = {pitches.as<std::int64_t>() + 3, 1, true};
  for (const Runner& runner : runners()) {
    operands.out[0].poison();
    ASSERT_EQ(run_with(runner, problem), "");
    for (std::int64_t row = 0; row < 12; ++row) {
      const std::vector<unsigned char> wanted = operands.expected_row(row / 4, row, row * 40, 40);
      ASSERT_EQ(std::memcmp(operands.out[0].as() + static_cast<std::size_t>(row) * wanted.size(), wanted.data(),
                            wanted.size()),
                0)
          << row;
    }
  }
}

// A row's bits depend on its expert and itself alone: neither on the other rows nor on where it lies.
TEST(Ragged, NanStaysWithItsExpert) {
  Random random(9);
  const Shape shape{3, 30, 40, 200};
  Operands operands(GroupedForm::ragged, shape, DType::float8_e4m3fn, DType::float32, Scales::blocks, random);
  const std::int32_t offsets[] = {0, 10, 20, 30};
  operands.problem.expert_rows = {offsets, 1, false};
  operands.b[0].as()[operands.problem.b_expert_stride + 5] = 0x7f;  // column 0 of expert 1
  for (const Runner& runner : runners()) {
    operands.out[0].poison();
    ASSERT_EQ(run_with(runner, operands.problem), "");
    for (std::int64_t row = 0; row < shape.rows; ++row)
      for (std::int64_t j = 0; j < shape.n; ++j)
        ASSERT_EQ(numerics::is_nan(operands.out[0].as<float>()[row * operands.problem.out_stride + j]),
                  row / 10 == 1 && j == 0)
            << row << ", " << j;
  }
}

// Index arithmetic near the ends of int64, against 128-bit integers.
TEST(Index, RowsThatFit) {
  Random random(3);
  for (int repeat = 0; repeat < 20000; ++repeat) {
    const std::int64_t rows = 1 + below(random, repeat % 2 == 0 ? 50 : 1'000'000'000),
                       width = below(random, 1'000'000'000);
    const std::int64_t first = repeat % 5 == 0 ? hostile(random, rows, true) : below(random, rows);
    const std::int64_t pitch = repeat % 3 == 0 ? hostile(random, width, true) : below(random, 3 * width + 2);
    const std::int64_t fits = rows_that_fit(rows, width, first, pitch);
    using Wide = __int128;
    const auto inside = [&](Wide i) { return Wide{first} * width + i * pitch + width <= Wide{rows} * width; };
    if (first < 0 || first >= rows || pitch < 0) {
      ASSERT_EQ(fits, 0);
    } else if (pitch == 0 || width == 0) {
      ASSERT_EQ(fits, rows - first);
    } else {
      ASSERT_TRUE(inside(Wide{fits} - 1) && !inside(fits)) << rows << " " << width << " " << first << " " << pitch;
    }
  }
}

}  // namespace
