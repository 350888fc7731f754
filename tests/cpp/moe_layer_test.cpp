// SPDX-License-Identifier: Apache-2.0
// moe_gather_quantize, moe_combine and fused_moe against a writing of their definitions that shares only the scalar
// arithmetic of numerics.h and the dense reference: every bit. Mirrors src/reference/moe.cpp, src/cpu/moe.cpp, moe_layer.h.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "evergemm/moe_layer.h"
#include "evergemm/reference.h"
#include "moe_cases.h"

namespace {

using namespace evergemm;
using namespace evergemm::proof;

float load(DType type, const void* data, std::int64_t i) {
  if (type == DType::bfloat16) return numerics::bfloat16_to_float(static_cast<const std::uint16_t*>(data)[i]);
  if (type == DType::float16) return numerics::float16_to_float(static_cast<const std::uint16_t*>(data)[i]);
  return static_cast<const float*>(data)[i];
}
float rounded(DType type, float value) {
  if (type == DType::bfloat16) return numerics::bfloat16_to_float(numerics::float_to_bfloat16(value));
  if (type == DType::float16) return numerics::float16_to_float(numerics::float_to_float16(value));
  return value;
}
std::uint8_t code_of(DType type, float value, float scale) {
  if (type == DType::int8) return static_cast<std::uint8_t>(numerics::quantize_int8(value, scale));
  return numerics::quantize_float8(value, scale);
}
float scale_of(DType type, float absmax) { return numerics::scale_of(absmax, type == DType::int8 ? 127.0f : 448.0f); }
float absmax_of(const std::vector<float>& values, std::size_t begin, std::size_t end) {
  float most = 0;
  for (std::size_t i = begin; i < end; ++i) most = numerics::larger_magnitude(most, values[i]);
  return most;
}

constexpr DType kXTypes[] = {DType::bfloat16, DType::float16, DType::float32};
constexpr DType kQTypes[] = {DType::int8, DType::float8_e4m3fn};

// ---- moe_gather_quantize ---------------------------------------------------------------------------------------------

struct GatherCase {
  QuantizeScheme scheme;
  std::int64_t group;
  bool weights;
};
constexpr GatherCase kGathers[] = {
    {QuantizeScheme::per_row, 0, false},        {QuantizeScheme::per_row, 0, true},
    {QuantizeScheme::per_block, 32, false},     {QuantizeScheme::per_block, 7, true},
    {QuantizeScheme::per_tensor, 0, false},     {QuantizeScheme::with_given_scale, 0, false},
    {QuantizeScheme::with_given_scale, 0, true}};

TEST(Gather, EveryRowAndEverySource) {
  std::uint64_t seed = 1;
  for (const GatherCase& c : kGathers)
    for (const DType x_type : kXTypes)
      for (const DType q_type : kQTypes)
        for (const std::int64_t columns : {1, 40, 129, 0})
          for (const std::int64_t tokens : {13, 0}) {
            Random random(seed);
            SCOPED_TRACE("seed " + std::to_string(seed) + " columns " + std::to_string(columns));
            const bool wide = seed++ % 2 == 0;
            const std::int64_t rows = 29, x_stride = columns + 3;
            const auto item = static_cast<std::size_t>(size_in_bytes(x_type));
            GuardedBuffer x(static_cast<std::size_t>(tokens * x_stride) * item), source(rows * (wide ? 8 : 4)),
                weights(rows * 2 * 4), given(4);
            fill_values(x, x_type, random);
            fill_scales(weights, random);
            given.as<float>()[0] = seed % 5 == 0 ? numerics::canonical_nan() : 0.03f;
            std::vector<std::int64_t> from;
            for (std::int64_t t = 0; t < rows; ++t) {
              from.push_back(below(random, 3) == 0 || tokens == 0 ? hostile(random, tokens, wide)
                                                                  : below(random, tokens));
              store_index(source, wide, t, from.back());
            }
            for (GuardedBuffer* buffer : {&x, &source, &weights, &given}) buffer->seal();
            MoeGatherQuantizeProblem problem;
            problem.tokens = tokens;
            problem.columns = columns;
            problem.rows = rows;
            problem.x = x.as<void>();
            problem.x_stride = x_stride;
            problem.x_dtype = x_type;
            problem.source_row = {source.as<void>(), 1, wide};
            problem.scheme = c.scheme;
            problem.group_columns = c.group > 0 ? c.group : std::max<std::int64_t>(columns, 1);
            problem.given_scale = given.as<float>();
            problem.q_dtype = q_type;
            if (c.weights) {
              problem.row_weights = weights.as<float>();
              problem.row_weights_stride = 2;
            }
            std::vector<float> whole;
            for (std::int64_t token = 0; token < tokens; ++token)
              for (std::int64_t j = 0; j < columns; ++j) whole.push_back(load(x_type, problem.x, token * x_stride + j));
            const float one = c.scheme == QuantizeScheme::per_tensor
                                  ? scale_of(q_type, absmax_of(whole, 0, whole.size()))
                                  : given.as<float>()[0];
            const std::int64_t groups = problem.groups();
            for (const Runner& runner : runners()) {
              SCOPED_TRACE(runner.text());
              GuardedBuffer q(static_cast<std::size_t>(rows * columns)),
                  scale(static_cast<std::size_t>(problem.one_scale() ? 1 : rows * groups) * 4);
              problem.q = q.as<void>();
              problem.scale = scale.as<float>();
              ASSERT_EQ(run_with(runner, problem), "");
              if (problem.one_scale()) {
                ASSERT_EQ(numerics::float_to_bits(problem.scale[0]), numerics::float_to_bits(one));
              }
              for (std::int64_t t = 0; t < rows; ++t) {
                const std::int64_t token = from[static_cast<std::size_t>(t)];
                const bool exists = token >= 0 && token < tokens;
                std::vector<float> row;
                for (std::int64_t j = 0; j < columns; ++j) {
                  const float value = exists ? load(x_type, problem.x, token * x_stride + j) : 0;
                  row.push_back(c.weights && exists
                                    ? rounded(x_type, value * rounded(x_type, weights.as<float>()[2 * t]))
                                    : value);
                }
                for (std::int64_t j = 0; j < columns; ++j) {
                  const std::int64_t group = j / problem.group_columns;
                  const auto begin = static_cast<std::size_t>(group * problem.group_columns);
                  const float expected_scale =
                      problem.one_scale()
                          ? one
                          : scale_of(q_type, absmax_of(row, begin,
                                                       std::min(row.size(), begin + static_cast<std::size_t>(
                                                                                        problem.group_columns))));
                  if (!problem.one_scale()) {
                    ASSERT_EQ(problem.scale[t * groups + group], expected_scale) << t;
                  }
                  ASSERT_EQ(q.as()[t * columns + j],
                            exists ? code_of(q_type, row[static_cast<std::size_t>(j)], expected_scale) : 0)
                      << t << ", " << j;
                }
                if (columns == 0 && c.scheme == QuantizeScheme::per_row) {
                  ASSERT_EQ(problem.scale[t], 1.0f);
                }
              }
              ASSERT_EQ(x.damage() + source.damage() + weights.damage() + given.damage() + q.damage() + scale.damage(),
                        "");
            }
          }
}

// ---- moe_combine -----------------------------------------------------------------------------------------------------

TEST(Combine, AscendingChoicesWithoutThoseThatWentNowhere) {
  std::uint64_t seed = 1;
  for (const DType y_type : kXTypes)
    for (const DType out_type : kXTypes)
      for (const std::int64_t columns : {1, 63, 1030})
        for (const std::int64_t top_k : {0, 1, 2, 16}) {
          Random random(seed);
          SCOPED_TRACE("seed " + std::to_string(seed));
          const bool wide = seed % 2 == 0, weighted = seed % 5 != 0;
          ++seed;
          const std::int64_t tokens = 9, rows = 21, y_stride = columns + 2;
          GuardedBuffer y(static_cast<std::size_t>(rows * y_stride * size_in_bytes(y_type))),
              weights(static_cast<std::size_t>(tokens * top_k) * 4),
              slot(static_cast<std::size_t>(tokens * top_k) * (wide ? 8 : 4)),
              out(static_cast<std::size_t>(tokens * columns * size_in_bytes(out_type)));
          fill_values(y, y_type, random);
          fill_values(weights, DType::float32, random);
          std::vector<std::int64_t> slots;
          for (std::int64_t i = 0; i < tokens * top_k; ++i) {
            slots.push_back(below(random, 3) == 0 ? hostile(random, rows, wide) : below(random, rows));
            store_index(slot, wide, i, slots.back());
            if (slots.back() < 0) weights.as<float>()[i] = numerics::canonical_nan();  // not read
          }
          for (GuardedBuffer* buffer : {&y, &weights, &slot}) buffer->seal();
          MoeCombineProblem problem;
          problem.tokens = tokens;
          problem.top_k = top_k;
          problem.rows = rows;
          problem.columns = columns;
          problem.y = y.as<void>();
          problem.y_stride = y_stride;
          problem.y_dtype = y_type;
          problem.slot = slot.as<void>();
          problem.slot_token_stride = top_k;
          problem.slot_choice_stride = 1;
          problem.slots_are_int64 = wide;
          if (weighted) {
            problem.weights = weights.as<float>();
            problem.weights_token_stride = top_k;
            problem.weights_choice_stride = 1;
          }
          problem.output_dtype = out_type;
          problem.out = out.as<void>();
          for (const Runner& runner : runners()) {
            SCOPED_TRACE(runner.text());
            out.poison();
            ASSERT_EQ(run_with(runner, problem), "");
            for (std::int64_t token = 0; token < tokens; ++token)
              for (std::int64_t j = 0; j < columns; ++j) {
                float sum = 0;
                for (std::int64_t i = token * top_k; i < (token + 1) * top_k; ++i) {
                  const std::int64_t row = slots[static_cast<std::size_t>(i)];
                  if (row >= 0 && row < rows)
                    sum = numerics::fma32(weighted ? weights.as<float>()[i] : 1.0f,
                                          load(y_type, problem.y, row * y_stride + j), sum);
                }
                const float stored = load(out_type, problem.out, token * columns + j);
                ASSERT_EQ(numerics::float_to_bits(stored), numerics::float_to_bits(rounded(out_type, sum)))
                    << token << ", " << j;
              }
            ASSERT_EQ(y.damage() + weights.damage() + slot.damage() + out.damage(), "");
          }
        }
}

// ---- fused_moe -------------------------------------------------------------------------------------------------------

struct LayerCase {
  std::int64_t tokens, top_k, experts, hidden, intermediate;
};
constexpr LayerCase kLayers[] = {{1, 1, 1, 16, 8},  {17, 2, 4, 48, 40}, {9, 6, 40, 130, 129}, {33, 8, 64, 32, 16},
                                 {0, 2, 4, 16, 16}, {5, 3, 8, 1, 1},    {70, 1, 3, 64, 200},  {4, 16, 20, 24, 0}};

enum class LayerScales : std::uint8_t { tensor, row, blocks, given };

struct Quantized {
  std::vector<std::uint8_t> q;
  std::vector<float> scale;  // one, one a row, or one a row and block
};

// rows x columns of values, quantized as `mode` says; `seen`: what a dynamic scale for all covers.
Quantized quantized(const std::vector<float>& values, const std::vector<float>& seen, std::int64_t columns,
                    LayerScales mode, float given, DType dtype) {
  Quantized result;
  const float one = mode == LayerScales::given ? given : scale_of(dtype, absmax_of(seen, 0, seen.size()));
  if (mode == LayerScales::tensor || mode == LayerScales::given) result.scale.push_back(one);
  const std::size_t block =
      mode == LayerScales::blocks ? 128 : static_cast<std::size_t>(std::max<std::int64_t>(columns, 1));
  for (std::size_t row = 0; columns > 0 && row < values.size() / static_cast<std::size_t>(columns); ++row)
    for (std::size_t begin = 0; begin < static_cast<std::size_t>(columns); begin += block) {
      const std::size_t first = row * static_cast<std::size_t>(columns) + begin,
                        end = row * static_cast<std::size_t>(columns) +
                              std::min(begin + block, static_cast<std::size_t>(columns));
      const bool own = mode == LayerScales::row || mode == LayerScales::blocks;
      const float scale = own ? scale_of(dtype, absmax_of(values, first, end)) : one;
      if (own) result.scale.push_back(scale);
      for (std::size_t i = first; i < end; ++i) result.q.push_back(code_of(dtype, values[i], scale));
    }
  return result;
}

// One row times the weights of one expert, rounded to x's type.
std::vector<float> product_row(const Quantized& input, std::int64_t row, const MoeWeights& weights, std::int64_t expert,
                               DType dtype, DType type, LayerScales mode) {
  std::vector<float> raw(static_cast<std::size_t>(weights.n)), result;
  GemmProblem one;
  one.m = 1;
  one.n = weights.n;
  one.k = weights.k;
  one.input_dtype = dtype;
  one.output_dtype = type;
  one.a = input.q.data() + row * weights.k;
  one.a_stride = weights.k;
  one.b = static_cast<const char*>(weights.data) + expert * weights.expert_stride;
  one.b_stride = weights.row_stride;
  one.out = raw.data();
  one.out_stride = weights.n;
  one.scale_b = weights.scale;
  one.scale_b.data += expert * weights.scale_expert_stride;
  one.scale_a.data = input.scale.data();
  const std::int64_t blocks = (weights.k + 127) / 128;
  if (mode == LayerScales::blocks)
    one.scale_a = {ScaleMode::BlockWise1x128, input.scale.data() + row * blocks, blocks, 1};
  if (mode == LayerScales::row) one.scale_a.data += row;
  reference::gemm(one);
  for (std::int64_t j = 0; j < weights.n; ++j) result.push_back(load(type, raw.data(), j));
  return result;
}

float activated(Activation activation, float x) {
  return activation == Activation::silu   ? numerics::silu(x)
         : activation == Activation::gelu ? numerics::gelu(x)
                                          : numerics::relu_squared(x);
}

struct Layer {
  Layer(const LayerCase& c, DType x_type, DType weight_type, LayerScales mode1, LayerScales mode2, Routing routing,
        std::uint64_t variant)
      : modes{mode1, mode2}, random(variant) {
    problem.x_dtype = x_type;
    problem.weight_dtype = weight_type;
    problem.gated = variant % 3 != 0 && c.intermediate > 0;
    problem.activation = static_cast<Activation>(variant % 3);
    problem.weights_on_input = c.top_k == 1 && variant % 2 == 0;
    problem.x_stride = c.hidden + static_cast<std::int64_t>(variant % 3);
    x.emplace_back(static_cast<std::size_t>(c.tokens * problem.x_stride * size_in_bytes(x_type)));
    fill_values(x[0], x_type, random);
    problem.x = x[0].as<void>();
    weights(problem.w13, c.experts, c.intermediate * (problem.gated ? 2 : 1), c.hidden, mode1);
    weights(problem.w2, c.experts, c.hidden, c.intermediate, mode2);
    MoeRouteProblem& route = problem.route;
    route.tokens = c.tokens;
    route.top_k = c.top_k;
    route.experts = c.experts;
    const std::int64_t choices = c.tokens * c.top_k;
    buffers.emplace_back(static_cast<std::size_t>(choices) * 8);
    for (std::int64_t i = 0; i < choices; ++i) {
      const std::int64_t id = choose_expert(random, routing, c.experts, i % c.top_k, true);
      store_index(buffers.back(), true, i, id);
      ids.push_back(id);
    }
    route.ids = buffers.back().as<void>();
    route.ids_are_int64 = true;
    route.ids_token_stride = c.top_k;
    route.ids_choice_stride = 1;
    buffers.emplace_back(static_cast<std::size_t>(choices) * 4);
    fill_scales(buffers.back(), random);
    problem.topk_weights = buffers.back().as<float>();
    problem.topk_weights_token_stride = c.top_k;
    problem.topk_weights_choice_stride = 1;
    for (GuardedBuffer& buffer : buffers) buffer.seal();
    x[0].seal();
    out.emplace_back(static_cast<std::size_t>(c.tokens * c.hidden * size_in_bytes(x_type)));
    problem.out = out[0].as<void>();
  }

  void weights(MoeWeights& w, std::int64_t experts, std::int64_t n, std::int64_t k, LayerScales mode) {
    w.n = n;
    w.k = k;
    w.row_stride = k + below(random, 2);
    w.expert_stride = n * w.row_stride + below(random, 2);
    buffers.reserve(16);
    buffers.emplace_back(static_cast<std::size_t>(experts * w.expert_stride));
    fill_codes(buffers.back(), problem.weight_dtype, random);
    w.data = buffers.back().as<void>();
    const std::int64_t nb = (n + 127) / 128, kb = (k + 127) / 128;
    const std::int64_t each = mode == LayerScales::blocks ? nb * kb : mode == LayerScales::row ? n : 1;
    buffers.emplace_back(static_cast<std::size_t>(experts * each) * 4);
    for (std::int64_t i = 0; i < experts * each; ++i)
      buffers.back().as<float>()[i] = 0.002f + static_cast<float>(below(random, 100)) / 9973.0f;
    w.scale.data = buffers.back().as<float>();
    w.scale_expert_stride = each;
    if (mode == LayerScales::row) w.scale = {ScaleMode::RowWise, w.scale.data, 1, 0};
    if (mode == LayerScales::blocks) w.scale = {ScaleMode::BlockWise128x128, w.scale.data, kb, 1};
    if (mode == LayerScales::given) {
      buffers.emplace_back(4);
      buffers.back().as<float>()[0] = 0.031f;
      w.input_scale = buffers.back().as<float>();
    }
  }

  // The definition, token by token.
  std::vector<float> expected() const {
    const std::int64_t hidden = problem.hidden(), intermediate = problem.intermediate(), tokens = problem.route.tokens,
                       top_k = problem.route.top_k;
    const DType type = problem.x_dtype, dtype = problem.weight_dtype;
    std::vector<float> input;
    for (std::int64_t token = 0; token < tokens; ++token)
      for (std::int64_t j = 0; j < hidden; ++j) {
        const float value = load(type, problem.x, token * problem.x_stride + j);
        input.push_back(problem.weights_on_input ? rounded(type, value * rounded(type, problem.topk_weights[token]))
                                                 : value);
      }
    const float given1 = problem.w13.input_scale == nullptr ? 0 : *problem.w13.input_scale;
    const float given2 = problem.w2.input_scale == nullptr ? 0 : *problem.w2.input_scale;
    const Quantized first = quantized(input, input, hidden, modes[0], given1, dtype);
    std::vector<float> activations;  // of the routed choices, in the order of the choices
    std::vector<std::int64_t> routed;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      if (ids[i] < 0 || ids[i] >= problem.route.experts) continue;
      routed.push_back(static_cast<std::int64_t>(i));
      const std::vector<float> h =
          product_row(first, static_cast<std::int64_t>(i) / top_k, problem.w13, ids[i], dtype, type, modes[0]);
      for (std::int64_t j = 0; j < intermediate; ++j) {
        const float gate = activated(problem.activation, h[static_cast<std::size_t>(j)]);
        activations.push_back(problem.gated ? gate * h[static_cast<std::size_t>(intermediate + j)] : gate);
      }
    }
    Quantized second = quantized(activations, activations, intermediate, modes[1], given2, dtype);
    if (second.scale.empty()) second.scale.assign(routed.size() + 1, 1.0f);
    std::vector<float> result(static_cast<std::size_t>(tokens * hidden), 0.0f);
    for (std::size_t at = 0; at < routed.size(); ++at) {
      const std::int64_t i = routed[at];
      const std::vector<float> y = product_row(second, static_cast<std::int64_t>(at), problem.w2,
                                               ids[static_cast<std::size_t>(i)], dtype, type, modes[1]);
      for (std::int64_t j = 0; j < hidden; ++j) {
        float& sum = result[static_cast<std::size_t>(i / top_k * hidden + j)];
        sum = numerics::fma32(problem.weights_on_input ? 1.0f : problem.topk_weights[i], y[static_cast<std::size_t>(j)],
                              sum);
      }
    }
    for (float& value : result) value = rounded(type, value);
    return result;
  }

  std::string damage() const {
    std::string text = x[0].damage() + out[0].damage();
    for (const GuardedBuffer& buffer : buffers) text += buffer.damage();
    return text;
  }

  FusedMoeProblem problem;
  LayerScales modes[2];
  Random random;
  std::vector<std::int64_t> ids;
  std::vector<GuardedBuffer> x, out, buffers;
};

TEST(Layer, IsItsDefinitionToTheBit) {
  constexpr LayerScales kModes[][2] = {
      {LayerScales::tensor, LayerScales::tensor}, {LayerScales::row, LayerScales::row},
      {LayerScales::given, LayerScales::given},   {LayerScales::blocks, LayerScales::blocks},
      {LayerScales::row, LayerScales::tensor},    {LayerScales::given, LayerScales::row}};
  std::uint64_t variant = 1;
  std::int64_t compared = 0;
  for (const LayerCase& c : kLayers)
    for (const auto& mode : kModes)
      for (const Routing routing : kRoutings) {
        const bool blocks = mode[0] == LayerScales::blocks;
        const DType weight_type = blocks ? DType::float8_e4m3fn : kQTypes[variant % 2];
        SCOPED_TRACE("variant " + std::to_string(variant) + " routing " + name(routing) + " experts " +
                     std::to_string(c.experts));
        Layer layer(c, kXTypes[variant % 3], weight_type, mode[0], mode[1], routing, variant);
        ++variant;
        const std::vector<float> expected = layer.expected();
        for (const Runner& runner : runners()) {
          SCOPED_TRACE(runner.text());
          layer.out[0].poison();
          ASSERT_EQ(run_with(runner, layer.problem), "");
          for (std::size_t i = 0; i < expected.size(); ++i) {
            const float stored = load(layer.problem.x_dtype, layer.problem.out, static_cast<std::int64_t>(i));
            const bool both_nan = numerics::is_nan(stored) && numerics::is_nan(expected[i]);
            ASSERT_TRUE(both_nan || numerics::float_to_bits(stored) == numerics::float_to_bits(expected[i]))
                << i << ": " << stored << ", expected " << expected[i];
            ++compared;
          }
          ASSERT_EQ(layer.damage(), "");
        }
      }
  EXPECT_GT(compared, 100000);
}

// Every shape's workspace is as large as its parts, none of which overlap: the red zone behind it is whole (run_with), and the
// layout refuses what does not fit.
TEST(Layer, WorkspaceOfHugeShapesIsRefused) {
  FusedMoeProblem problem;
  problem.route.tokens = 1 << 30;
  problem.route.top_k = 1;
  problem.w13.n = std::int64_t{1} << 31;
  problem.w13.k = std::int64_t{1} << 31;
  problem.w2.n = problem.w13.k;
  problem.w2.k = problem.w13.n;
  FusedMoeLayout layout;
  EXPECT_FALSE(fused_moe_layout(problem, TokensGo::through_the_workspace, layout));
  Plan chosen;
  EXPECT_EQ(plan(problem, cpu_facts(), chosen).text(),
            "fused_moe: expected a workspace of less than 2^63 bytes; got a larger one; fix: split the tokens.");
}

}  // namespace
