// SPDX-License-Identifier: Apache-2.0
// Mixture of experts on the device against the reference, bit for bit: routing, data operators, gathering, combining, the
// layer in int8; then 10^5 launches on integers of any value. (fp8 products: grouped_test.cpp and test_moe.py.)
// Usage: moe_test [--quick | --tiny] [--only=NAME] [--kinds=N] [--junit=FILE]; N: only the first kinds of HostileRun::launch.
// Must not go here: timing.
#include <atomic>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>

#include "evergemm/moe_index.h"
#include "evergemm/reference.h"
#include "moe_operands.h"

namespace evergemm::gpu_test {
namespace {

constexpr Device kGpu{DeviceType::cuda, 0};

// The first of several descriptions that is not empty.
std::string first_of(std::initializer_list<std::string> texts) {
  for (const std::string& text : texts)
    if (!text.empty()) return text;
  return "";
}

// ---- routing --------------------------------------------------------------------------------------------------------

struct RouteShape {
  std::int64_t tokens, top_k, experts;
};

std::string text_of(const RouteShape& shape, Routing routing, bool wide, std::uint64_t seed) {
  return std::to_string(shape.tokens) + " x " + std::to_string(shape.top_k) + " of " + std::to_string(shape.experts) +
         " routing " + std::to_string(static_cast<int>(routing)) + (wide ? " int64" : " int32") + " seed " +
         std::to_string(seed) + ": ";
}

std::string route_case(const RouteShape& shape, Routing routing, bool wide, bool strided, bool mapped,
                       std::uint64_t seed) {
  Random random{seed};
  const std::int64_t choices = shape.tokens * shape.top_k, global = mapped ? shape.experts * 2 + 1 : shape.experts;
  MoeRouteProblem p;
  p.device = kGpu;
  p.tokens = shape.tokens;
  p.top_k = shape.top_k;
  p.experts = shape.experts;
  p.ids_are_int64 = wide;
  p.ids_choice_stride = strided ? 2 : 1;
  p.ids_token_stride = shape.top_k * p.ids_choice_stride + (strided ? 3 : 0);
  const std::int64_t width = wide ? 8 : 4;
  Mirror ids((shape.tokens * p.ids_token_stride + 1) * width), map(global * width), offsets((shape.experts + 1) * 4),
      source(choices * 4), slot(choices * 4);
  for (std::int64_t token = 0; token < shape.tokens; ++token)
    for (std::int64_t choice = 0; choice < shape.top_k; ++choice)
      store_index(ids.host<void>(), wide, token * p.ids_token_stride + choice * p.ids_choice_stride,
                  choose_expert(random, routing, global, choice, wide));
  for (std::int64_t i = 0; i < global; ++i)
    store_index(map.host<void>(), wide, i, hostile(random, shape.experts, wide));
  ids.upload();
  map.upload();
  MoeRouteProblem on_device = p;
  const auto bind = [&](MoeRouteProblem& to, bool device) {
    to.ids = device ? ids.device<void>() : ids.host<void>();
    if (mapped) {
      to.expert_map = {device ? map.device<void>() : map.host<void>(), 1, wide};
      to.expert_map_size = global;
    }
    to.expert_offsets = device ? offsets.device<std::int32_t>() : offsets.host<std::int32_t>();
    to.source_row = device ? source.device<std::int32_t>() : source.host<std::int32_t>();
    to.slot = device ? slot.device<std::int32_t>() : slot.host<std::int32_t>();
  };
  bind(p, false);
  bind(on_device, true);
  reference::moe_route(p);
  const std::string wrong =
      first_of({run_on_device(on_device), offsets.difference("expert_offsets"), slot.difference("slot"),
                source.difference("source_row"), ids.difference("ids"), map.difference("expert_map")});
  return wrong.empty() ? "" : text_of(shape, routing, wide, seed) + wrong;
}

// How many cases run: a reduced set for compute-sanitizer, and for racecheck, which takes seconds for each of these blocks of a
// thousand threads, a routing of each of their forms.
enum class Extent : std::uint8_t { full, quick, tiny };

// Shapes of one block, of clusters whose warps have 32 choices each and more, of an odd number of choices, and of many experts.
std::vector<RouteShape> route_shapes(Extent extent) {
  if (extent == Extent::tiny) return {{8, 8, 256}, {171, 6, 512}, {512, 8, 128}, {1000, 7, 1024}, {40, 5, 1025}};
  std::vector<RouteShape> shapes = {{0, 4, 4},      {4, 0, 4},       {1, 1, 1},     {1, 8, 256},    {8, 8, 256},
                                    {17, 2, 8},     {64, 8, 300},    {128, 8, 60},  {129, 8, 60},   {170, 6, 512},
                                    {171, 6, 512},  {300, 4, 33},    {512, 8, 128}, {4096, 8, 512}, {1000, 7, 1024},
                                    {512, 8, 1024}, {4096, 8, 1024}, {3001, 7, 64}, {40, 5, 1025},  {300, 8, 1500},
                                    {3, 3, 0},      {256, 16, 1}};
  if (extent == Extent::full)
    shapes.insert(shapes.end(), {{9000, 8, 256}, {5000, 6, 700}, {4095, 8, 511}, {2000, 2, 2000}});
  return shapes;
}

std::string run_routes(Extent extent, std::int64_t& cases) {
  std::uint64_t seed = 1;
  for (const RouteShape& shape : route_shapes(extent))
    for (const Routing routing : kRoutings)
      for (const int variant : {0, 1, 2, 3}) {
        if (extent == Extent::tiny && (routing != Routing::uniform || variant > 1)) continue;
        if (shape.experts == 0 && routing != Routing::all_empty) continue;
        if (shape.tokens * shape.experts > (1 << 20) && variant > 1) continue;  // the reference's share of the time
        const std::string wrong =
            route_case(shape, routing, (variant & 1) != 0, variant == 2 || variant == 1, variant >= 2, ++seed);
        if (!wrong.empty()) return wrong;
        ++cases;
      }
  return "";
}

// ---- the data operators ---------------------------------------------------------------------------------------------

std::string data_route_case(const RouteShape& shape, Routing routing, bool blockscales, std::uint64_t seed) {
  Random random{seed};
  const std::int64_t choices = shape.tokens * shape.top_k;
  MoeDataProblem p;
  p.device = kGpu;
  p.kind = MoeDataKind::route;
  p.tokens = shape.tokens;
  p.top_k = shape.top_k;
  p.experts = shape.experts;
  p.ids_token_stride = shape.top_k;
  p.ids_choice_stride = 1;
  p.n = 96;
  p.n1 = 192;
  p.k = 64;
  p.transposed = !blockscales && choices <= 64;
  Mirror ids(choices * 4 + 4), offsets((shape.experts + 1) * 4), sizes1(shape.experts * 12), sizes2(shape.experts * 12),
      input(choices * 4), output(choices * 4), blocks((shape.experts + 1) * 4);
  for (std::int64_t i = 0; i < choices; ++i)
    store_index(ids.host<void>(), false, i, choose_expert(random, routing, shape.experts, i % shape.top_k, false));
  ids.upload();
  MoeDataProblem on_device = p;
  const auto bind = [&](MoeDataProblem& to, bool device) {
    const auto at = [device](Mirror& mirror) {
      return device ? mirror.device<std::int32_t>() : mirror.host<std::int32_t>();
    };
    to.ids = at(ids);
    to.expert_offsets = at(offsets);
    to.problem_sizes1 = at(sizes1);
    to.problem_sizes2 = at(sizes2);
    to.input_permutation = at(input);
    to.output_permutation = at(output);
    if (blockscales) to.blockscale_offsets = at(blocks);
  };
  bind(p, false);
  bind(on_device, true);
  reference::moe_data(p);
  const std::string wrong =
      first_of({run_on_device(on_device), offsets.difference("expert_offsets"), sizes1.difference("problem_sizes1"),
                sizes2.difference("problem_sizes2"), input.difference("input_permutation"),
                output.difference("output_permutation"), blocks.difference("blockscale_offsets")});
  return wrong.empty() ? "" : text_of(shape, routing, false, seed) + wrong;
}

std::string data_sizes_case(MoeDataKind kind, std::int64_t experts, bool transposed, std::uint64_t seed) {
  Random random{seed};
  const bool wide = kind == MoeDataKind::sizes_from_offsets;
  MoeDataProblem p;
  p.device = kGpu;
  p.kind = kind;
  p.experts = experts;
  p.padded_rows = 40;
  p.n = 96;
  p.n1 = 192;
  p.k = 64;
  p.transposed = transposed;
  const std::int64_t stride = 1 + random.below(2), count = (experts + 1) * stride;
  Mirror input(count * (wide ? 8 : 4)), offsets(experts * 4), sizes1(experts * 12), sizes2(experts * 12);
  const bool orderly = random.below(2) == 0;
  std::int64_t total = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    total += random.below(9);
    store_index(input.host<void>(), wide, i, orderly ? (wide ? total : random.below(50)) : hostile(random, 1000, wide));
  }
  input.upload();
  MoeDataProblem on_device = p;
  const auto bind = [&](MoeDataProblem& to, bool device) {
    to.input = {device ? input.device<void>() : input.host<void>(), stride, wide};
    const auto at = [device](Mirror& mirror) {
      return device ? mirror.device<std::int32_t>() : mirror.host<std::int32_t>();
    };
    if (!wide) to.expert_offsets = at(offsets);
    to.problem_sizes1 = at(sizes1);
    to.problem_sizes2 = at(sizes2);
  };
  bind(p, false);
  bind(on_device, true);
  reference::moe_data(p);
  const std::string wrong =
      first_of({run_on_device(on_device), offsets.difference("expert_offsets"), sizes1.difference("problem_sizes1"),
                sizes2.difference("problem_sizes2"), input.difference("input")});
  return wrong.empty() ? ""
                       : "kind " + std::to_string(static_cast<int>(kind)) + " experts " + std::to_string(experts) +
                             " seed " + std::to_string(seed) + ": " + wrong;
}

std::string run_data(Extent extent, std::int64_t& cases) {
  std::uint64_t seed = 1000;
  for (const RouteShape& shape : route_shapes(extent))
    for (const Routing routing : kRoutings)
      for (const bool blockscales : {false, true}) {
        if (extent == Extent::tiny && routing != Routing::uniform) continue;
        if (shape.experts == 0 && routing != Routing::all_empty) continue;
        const std::string wrong = data_route_case(shape, routing, blockscales, ++seed);
        if (!wrong.empty()) return wrong;
        ++cases;
      }
  for (const MoeDataKind kind : {MoeDataKind::sizes_from_offsets, MoeDataKind::batched})
    for (const std::int64_t experts : {0, 1, 5, 31, 32, 33, 256, 1023, 1024, 1025, 3000})
      for (int i = 0; i < 6; ++i) {
        const std::string wrong = data_sizes_case(kind, experts, i % 2 == 0, ++seed);
        if (!wrong.empty()) return wrong;
        ++cases;
      }
  return "";
}

// ---- gathering ------------------------------------------------------------------------------------------------------

// group -2: a given scale; -1: one scale; 0: a scale a row; else columns of a group.
std::string gather_case(std::int64_t tokens, std::int64_t columns, std::int64_t rows, std::int64_t group, DType x_type,
                        DType q_type, bool weighted, bool misaligned, std::uint64_t seed) {
  Random random{seed};
  MoeGatherQuantizeProblem p;
  p.device = kGpu;
  p.tokens = tokens;
  p.columns = columns;
  p.rows = rows;
  p.x_dtype = x_type;
  p.q_dtype = q_type;
  p.x_stride = columns + (misaligned ? 1 : random.below(2) * 8);
  p.scheme = group == -2   ? QuantizeScheme::with_given_scale
             : group == -1 ? QuantizeScheme::per_tensor
             : group == 0  ? QuantizeScheme::per_row
                           : QuantizeScheme::per_block;
  p.group_columns = group > 0 ? group : std::max<std::int64_t>(columns, 1);
  p.row_weights_stride = 1 + random.below(2);
  const bool wide = random.below(2) == 0;
  const std::int64_t element = size_in_bytes(x_type), scales = p.one_scale() ? 1 : rows * p.groups();
  Mirror x(tokens * p.x_stride * element, misaligned ? element : 0), source(rows * (wide ? 8 : 4)),
      weights(rows * p.row_weights_stride * 4), given(4), q(rows * columns), scale(scales * 4);
  for (std::int64_t i = 0; i < tokens; ++i)
    for (std::int64_t j = 0; j < columns; ++j)
      store_value(x_type, x.host<void>(), i * p.x_stride + j,
                  random.below(997) == 0 && i % 3 == 0 ? (random.below(2) == 0 ? NAN : -INFINITY)
                  : i == 1                             ? 0.0f
                                                       : draw(random));
  for (std::int64_t i = 0; i < rows; ++i) {
    store_index(source.host<void>(), wide, i,
                random.below(4) == 0 ? hostile(random, tokens, wide) : random.below(std::max<std::int64_t>(tokens, 1)));
    weights.host<float>()[i * p.row_weights_stride] = static_cast<float>(random.uniform());
  }
  given.host<float>()[0] = random.below(5) == 0 ? NAN : 0.0123f;
  for (Mirror* one : {&x, &source, &weights, &given}) one->upload();
  MoeGatherQuantizeProblem on_device = p;
  const auto bind = [&](MoeGatherQuantizeProblem& to, bool device) {
    to.x = device ? x.device<void>() : x.host<void>();
    to.source_row = {device ? source.device<void>() : source.host<void>(), 1, wide};
    if (weighted) to.row_weights = device ? weights.device<float>() : weights.host<float>();
    to.given_scale = device ? given.device<float>() : given.host<float>();
    to.q = device ? q.device<void>() : q.host<void>();
    to.scale = device ? scale.device<float>() : scale.host<float>();
  };
  bind(p, false);
  bind(on_device, true);
  reference::moe_gather_quantize(p);
  const std::string wrong =
      first_of({run_on_device(on_device), scale.difference("scale"), q.difference("q"), x.difference("x")});
  return wrong.empty() ? ""
                       : std::to_string(rows) + " rows of " + std::to_string(tokens) + " x " + std::to_string(columns) +
                             " group " + std::to_string(group) + " " + name(x_type) + " to " + name(q_type) +
                             (weighted ? " weighted" : "") + " seed " + std::to_string(seed) + ": " + wrong;
}

std::string run_gather(Extent extent, std::int64_t& cases) {
  std::uint64_t seed = 5000;
  const std::vector<std::int64_t> widths =
      extent != Extent::full ? std::vector<std::int64_t>{1, 200, 2048}
                             : std::vector<std::int64_t>{0, 1, 7, 8, 130, 200, 264, 512, 2048, 7168, 20000};
  for (const std::int64_t columns : widths)
    for (const std::int64_t group : {-2, -1, 0, 8, 64, 100, 128, 256})
      for (const DType x_type : {DType::bfloat16, DType::float16, DType::float32})
        for (const DType q_type : {DType::int8, DType::float8_e4m3fn})
          for (const std::int64_t rows : {1, 37, 400}) {
            if (columns * rows > 300000 && x_type != DType::bfloat16) continue;
            const bool weighted = group != -1 && seed % 3 == 0;
            const std::string wrong =
                gather_case(rows == 1 ? 1 : 19, columns, rows, group, x_type, q_type, weighted, seed % 5 == 0, seed);
            ++seed;
            if (!wrong.empty()) return wrong;
            ++cases;
          }
  for (const std::int64_t group : {-2, -1, 0, 128})  // many copies of few tokens: quantized once
    for (const std::int64_t columns : {7168, 7170}) {
      const std::string wrong =
          gather_case(19, columns, 1200, group, DType::bfloat16, DType::float8_e4m3fn, false, false, ++seed);
      if (!wrong.empty()) return wrong;
      ++cases;
    }
  for (const std::int64_t group : {-2, -1, 0, 64}) {  // nothing to read
    const std::string wrong =
        first_of({gather_case(0, 64, 9, group, DType::bfloat16, DType::int8, false, false, ++seed),
                  gather_case(5, 64, 0, group, DType::bfloat16, DType::int8, false, false, ++seed)});
    if (!wrong.empty()) return wrong;
    cases += 2;
  }
  return "";
}

// ---- combining ------------------------------------------------------------------------------------------------------

std::string combine_case(std::int64_t tokens, std::int64_t top_k, std::int64_t columns, DType y_type, DType out_type,
                         bool unweighted, bool misaligned, std::uint64_t seed) {
  Random random{seed};
  MoeCombineProblem p;
  p.device = kGpu;
  p.tokens = tokens;
  p.top_k = top_k;
  p.columns = columns;
  p.rows = tokens * top_k + 3;
  p.y_dtype = y_type;
  p.output_dtype = out_type;
  p.y_stride = columns + (misaligned ? 1 : random.below(2) * 8);
  p.slots_are_int64 = random.below(2) == 0;
  p.slot_choice_stride = 1 + random.below(2);
  p.slot_token_stride = top_k * p.slot_choice_stride;
  p.weights_choice_stride = 1 + random.below(2);
  p.weights_token_stride = top_k * p.weights_choice_stride + 1;
  const std::int64_t y_item = size_in_bytes(y_type), out_item = size_in_bytes(out_type);
  Mirror y(p.rows * p.y_stride * y_item, misaligned ? y_item : 0),
      slot((tokens * p.slot_token_stride + 1) * (p.slots_are_int64 ? 8 : 4)),
      weights((tokens * p.weights_token_stride + 1) * 4), out(tokens * columns * out_item);
  for (std::int64_t i = 0; i < p.rows; ++i)
    for (std::int64_t j = 0; j < columns; ++j) store_value(y_type, y.host<void>(), i * p.y_stride + j, draw(random));
  for (std::int64_t token = 0; token < tokens; ++token)
    for (std::int64_t choice = 0; choice < top_k; ++choice) {
      const bool nowhere = random.below(3) == 0;
      const std::int64_t at = token * p.slot_token_stride + choice * p.slot_choice_stride;
      store_index(slot.host<void>(), p.slots_are_int64, at,
                  nowhere ? hostile(random, p.rows, p.slots_are_int64) : random.below(p.rows));
      // NaN: only where it must not be read
      const std::int64_t row = read_index(slot.host<void>(), p.slots_are_int64, at);
      weights.host<float>()[token * p.weights_token_stride + choice * p.weights_choice_stride] =
          row < 0 || row >= p.rows ? NAN : draw(random);
    }
  for (Mirror* one : {&y, &slot, &weights}) one->upload();
  MoeCombineProblem on_device = p;
  const auto bind = [&](MoeCombineProblem& to, bool device) {
    to.y = device ? y.device<void>() : y.host<void>();
    to.slot = device ? slot.device<void>() : slot.host<void>();
    if (!unweighted) to.weights = device ? weights.device<float>() : weights.host<float>();
    to.out = device ? out.device<void>() : out.host<void>();
  };
  bind(p, false);
  bind(on_device, true);
  reference::moe_combine(p);
  const std::string wrong = first_of({run_on_device(on_device), out.difference("out"), y.difference("y")});
  return wrong.empty()
             ? ""
             : std::to_string(tokens) + " x " + std::to_string(top_k) + " of " + std::to_string(columns) + " " +
                   name(y_type) + " to " + name(out_type) + " seed " + std::to_string(seed) + ": " + wrong;
}

std::string run_combine(Extent extent, std::int64_t& cases) {
  std::uint64_t seed = 9000;
  const std::vector<std::int64_t> widths = extent != Extent::full
                                               ? std::vector<std::int64_t>{70, 256}
                                               : std::vector<std::int64_t>{0, 1, 7, 8, 70, 256, 2048, 7168};
  for (const std::int64_t columns : widths)
    for (const std::int64_t tokens : {0, 1, 13, 60})
      for (const std::int64_t top_k : {0, 1, 3, 8, 17})
        for (const DType y_type : {DType::bfloat16, DType::float16, DType::float32})
          for (const DType out_type : {DType::bfloat16, DType::float16, DType::float32}) {
            if (columns * tokens * top_k > 200000 && y_type != DType::bfloat16) continue;
            const std::string wrong =
                combine_case(tokens, top_k, columns, y_type, out_type, seed % 4 == 0, seed % 5 == 0, seed);
            ++seed;
            if (!wrong.empty()) return wrong;
            ++cases;
          }
  return "";
}

// ---- the layer ------------------------------------------------------------------------------------------------------

struct LayerShape {
  std::int64_t tokens, top_k, experts, hidden, intermediate;
};

// int8: every bit is known. scales: 0 one an expert, 1 one a channel; given: static scales of activations.
std::string layer_case(const LayerShape& shape, Routing routing, int scales, bool given, bool gated, bool on_input,
                       DType x_type, std::uint64_t seed) {
  Random random{seed};
  const std::int64_t h = shape.hidden, i = shape.intermediate, n1 = gated ? 2 * i : i;
  FusedMoeProblem p;
  p.device = p.route.device = kGpu;
  p.route.tokens = shape.tokens;
  p.route.top_k = shape.top_k;
  p.route.experts = shape.experts;
  p.route.ids_token_stride = shape.top_k;
  p.route.ids_choice_stride = 1;
  p.x_stride = h + random.below(2) * 8;
  p.x_dtype = x_type;
  p.weight_dtype = DType::int8;
  p.activation = static_cast<Activation>(random.below(3));
  p.gated = gated;
  p.weights_on_input = on_input;
  p.topk_weights_token_stride = shape.top_k;
  p.topk_weights_choice_stride = 1;
  const std::int64_t choices = shape.tokens * shape.top_k, element = size_in_bytes(x_type);
  Mirror x(shape.tokens * p.x_stride * element), ids(choices * 4), weights(choices * 4), w13(shape.experts * n1 * h),
      w2(shape.experts * h * i), s13(shape.experts * n1 * 4), s2(shape.experts * h * 4), a1(4), a2(4),
      out(shape.tokens * h * element);
  for (std::int64_t t = 0; t < shape.tokens; ++t)
    for (std::int64_t j = 0; j < h; ++j) store_value(x_type, x.host<void>(), t * p.x_stride + j, draw(random));
  for (std::int64_t c = 0; c < choices; ++c) {
    store_index(ids.host<void>(), false, c, choose_expert(random, routing, shape.experts, c % shape.top_k, false));
    weights.host<float>()[c] = static_cast<float>(random.uniform());
  }
  for (Mirror* one : {&w13, &w2})
    for (std::int64_t b = 0; b < one->bytes(); ++b) one->host()[b] = static_cast<unsigned char>(random.next());
  for (Mirror* one : {&s13, &s2})
    for (std::int64_t b = 0; b < one->bytes() / 4; ++b)
      one->host<float>()[b] = static_cast<float>(0.0001 + random.uniform() * 0.001);
  a1.host<float>()[0] = 0.03f;
  a2.host<float>()[0] = 0.5f;
  for (Mirror* one : {&x, &ids, &weights, &w13, &w2, &s13, &s2, &a1, &a2}) one->upload();
  FusedMoeProblem on_device = p;
  const auto bind = [&](FusedMoeProblem& to, bool device) {
    const auto floats = [device](Mirror& mirror) { return device ? mirror.device<float>() : mirror.host<float>(); };
    const auto bytes = [device](Mirror& mirror) { return device ? mirror.device<void>() : mirror.host<void>(); };
    to.x = bytes(x);
    to.route.ids = bytes(ids);
    to.topk_weights = floats(weights);
    to.out = bytes(out);
    const auto bind_weights = [&](MoeWeights& part, Mirror& data, Mirror& scale, Mirror& input, std::int64_t n,
                                  std::int64_t k) {
      part.data = bytes(data);
      part.n = n;
      part.k = part.row_stride = k;
      part.expert_stride = n * k;
      part.scale.data = floats(scale);
      part.scale_expert_stride = n;
      if (scales == 1) {
        part.scale.mode = ScaleMode::RowWise;
        part.scale.outer_stride = 1;
      }
      if (given) part.input_scale = floats(input);
    };
    bind_weights(to.w13, w13, s13, a1, n1, h);
    bind_weights(to.w2, w2, s2, a2, h, i);
  };
  bind(p, false);
  bind(on_device, true);
  reference::fused_moe(p);
  const std::string wrong = first_of(
      {run_on_device(on_device), out.difference("out"), x.difference("x"), w13.difference("w13"), w2.difference("w2")});
  return wrong.empty()
             ? ""
             : std::to_string(shape.tokens) + " x " + std::to_string(shape.top_k) + " of " +
                   std::to_string(shape.experts) + ", " + std::to_string(h) + " -> " + std::to_string(i) + " routing " +
                   std::to_string(static_cast<int>(routing)) + " scales " + std::to_string(scales) +
                   (given ? " given" : "") + (gated ? " gated" : "") + (on_input ? " on input " : " ") + name(x_type) +
                   " seed " + std::to_string(seed) + ": " + wrong;
}

std::string run_layer(Extent extent, std::int64_t& cases) {
  std::uint64_t seed = 20000;
  std::vector<LayerShape> shapes = {
      {1, 2, 4, 128, 64}, {8, 3, 8, 256, 96}, {3, 1, 5, 64, 32}, {40, 4, 16, 128, 64}, {200, 3, 8, 128, 64}};
  if (extent == Extent::full)
    shapes.insert(shapes.end(), {{130, 3, 6, 96, 80}, {300, 1, 3, 200, 40}, {0, 2, 3, 64, 32}, {5, 2, 3, 100, 7}});
  for (const LayerShape& shape : shapes)
    for (const Routing routing : kRoutings)
      for (const int scales : {0, 1})
        for (const bool given : {false, true})
          for (const DType x_type : {DType::bfloat16, DType::float16, DType::float32}) {
            ++seed;
            const std::string wrong = layer_case(shape, routing, scales, given, seed % 3 != 0,
                                                 shape.top_k == 1 && seed % 2 == 0, x_type, seed);
            if (!wrong.empty()) return wrong;
            ++cases;
          }
  return "";
}

// ---- data of any value ----------------------------------------------------------------------------------------------

// Ends the program where a launch or a wait does not come back.
class Watchdog {
 public:
  Watchdog() : thread_([this] { watch(); }) {}
  ~Watchdog() {
    ended_ = true;
    thread_.join();
  }
  void alive() { ++beats_; }

 private:
  void watch() {
    constexpr std::chrono::milliseconds kPatience(5000), kStep(20);
    std::int64_t seen = -1;
    auto since = std::chrono::steady_clock::now();
    while (!ended_) {
      std::this_thread::sleep_for(kStep);
      const auto now = std::chrono::steady_clock::now();
      if (beats_ != seen) {
        seen = beats_;
        since = now;
      } else if (now - since > kPatience) {
        std::fprintf(stderr, "watchdog: nothing came back for 5 s\n");
        std::fflush(stderr);
        std::_Exit(3);
      }
    }
  }
  std::atomic<std::int64_t> beats_{0};
  std::atomic<bool> ended_{false};
  std::thread thread_;
};

constexpr std::int64_t kExperts = 7, kTokens = 12, kTopK = 3, kRows = kTokens * kTopK, kN = 48, kK = 32;
constexpr std::int64_t kPool = 4096;  // integers of one purpose; a launch takes a few of them, from anywhere

// Operators on shared buffers; each launch points at other integers of the pools. With `check` outputs are poisoned first and
// compared with the reference's, which also shows that nothing else was written.
class HostileRun {
 public:
  explicit HostileRun(std::uint64_t seed) : random_{seed} {
    for (std::int64_t i = 0; i < kPool; ++i) {
      store_index(ids_.host<void>(), false, i, choose_expert(random_, Routing::hostile, kExperts, 0, false));
      store_index(wide_ids_.host<void>(), true, i, choose_expert(random_, Routing::hostile, kExperts, 0, true));
      const bool orderly = i / 64 % 2 == 0;
      store_index(offsets_.host<void>(), false, i, orderly ? i % 64 * 3 / 5 : hostile(random_, kRows, false));
      store_index(wide_offsets_.host<void>(), true, i, orderly ? i % 64 * 3 / 5 : hostile(random_, kRows, true));
      const std::int64_t part = i % 3, proper = part == 0 ? random_.below(kRows) : part == 1 ? kN : kK;
      store_index(sizes_.host<void>(), false, i, random_.below(4) != 0 ? proper : hostile(random_, kRows, false));
      const auto pitch = [&](std::int64_t width) {
        const std::int64_t kind = random_.below(8);
        return kind < 5 ? width : kind == 5 ? 2 * width : hostile(random_, width, true);
      };
      store_index(k_pitches_.host<void>(), true, i, pitch(kK));
      store_index(n_pitches_.host<void>(), true, i, pitch(kN));
    }
    for (Mirror* one : {&a_, &b_, &w2_})
      for (std::int64_t i = 0; i < one->bytes(); ++i) one->host()[i] = static_cast<unsigned char>(random_.next());
    for (std::int64_t i = 0; i < scales_.bytes() / 4; ++i)
      scales_.host<float>()[i] = static_cast<float>(0.001 + random_.uniform());
    for (std::int64_t i = 0; i < x_.bytes() / 2; ++i) store_value(DType::bfloat16, x_.host<void>(), i, draw(random_));
    for (Mirror* one : inputs()) one->upload();
  }

  static constexpr int kKinds = 10;

  // "" or what is wrong.
  std::string launch(int kind, bool check) {
    seed_here_ = random_.state;
    switch (kind) {
      case 0:
        return route(check);
      case 1:
      case 2:
      case 3:
        return data(static_cast<MoeDataKind>(kind - 1), check);
      case 4:
        return gather(check);
      case 5:
        return combine(check);
      case 6:
        return grouped(GroupedForm::ragged, check);
      case 7:
        return grouped(GroupedForm::masked, check);
      case 8:
        return grouped(GroupedForm::dropin, check);
      default:
        return layer(check);
    }
  }

  // After a wait: red zones of everything, and inputs unchanged.
  std::string damage() {
    for (Mirror* one : inputs()) {
      const std::string wrong = one->difference("an input");
      if (!wrong.empty()) return wrong;
    }
    for (Mirror* one : {&ints_, &more_ints_, &out_, &workspace_})
      if (!one->zones_whole()) return "a red zone was written";
    return "";
  }

 private:
  std::vector<Mirror*> inputs() {
    return {&ids_,    &wide_ids_, &offsets_, &wide_offsets_, &sizes_, &k_pitches_, &n_pitches_,
            &scales_, &a_,        &b_,       &w2_,           &x_};
  }
  std::int64_t somewhere(std::int64_t count) { return random_.below(kPool - count); }
  static const void* at(Mirror& mirror, bool device, std::int64_t index, std::int64_t width) {
    return (device ? mirror.device<char>() : mirror.host<char>()) + index * width;
  }
  template <class Problem>
  std::string run(Problem& on_host, Problem& on_device, void (*reference)(const Problem&), bool check) {
    Plan chosen;
    Status status = plan(on_device, device_facts(), chosen);
    if (!status.ok()) return status.text();
    if (chosen.workspace_bytes > workspace_.bytes()) return "a workspace of " + std::to_string(chosen.workspace_bytes);
    if (check)
      for (Mirror* one : {&ints_, &more_ints_, &out_}) one->poison();
    RunContext context;
    context.workspace = workspace_.device<void>();
    status = run_cuda(chosen, on_device, context);
    if (!status.ok() || !check) return status.ok() ? "" : status.text();
    require(cudaDeviceSynchronize(), chosen.name);
    reference(on_host);
    const std::string wrong =
        first_of({ints_.difference("integers"), more_ints_.difference("more integers"), out_.difference("out")});
    return wrong.empty() ? "" : std::string(chosen.name) + " state " + std::to_string(seed_here_) + ": " + wrong;
  }

  MoeRouteProblem route_problem(bool device, bool wide, std::int64_t begin) {
    MoeRouteProblem p;
    p.device = kGpu;
    p.tokens = kTokens;
    p.top_k = kTopK;
    p.experts = kExperts;
    p.ids = at(wide ? wide_ids_ : ids_, device, begin, wide ? 8 : 4);
    p.ids_are_int64 = wide;
    p.ids_token_stride = kTopK;
    p.ids_choice_stride = 1;
    std::int32_t* ints = device ? ints_.device<std::int32_t>() : ints_.host<std::int32_t>();
    p.expert_offsets = ints;
    p.source_row = ints + 64;
    p.slot = ints + 128;
    return p;
  }
  std::string route(bool check) {
    const bool wide = random_.below(2) == 0, mapped = random_.below(2) == 0;
    const std::int64_t begin = somewhere(kRows), map_begin = somewhere(kExperts);
    MoeRouteProblem host = route_problem(false, wide, begin), device = route_problem(true, wide, begin);
    if (mapped) {
      host.expert_map = {at(ids_, false, map_begin, 4), 1, false};
      device.expert_map = {at(ids_, true, map_begin, 4), 1, false};
      host.expert_map_size = device.expert_map_size = kExperts;
    }
    return run(host, device, &reference::moe_route, check);
  }
  std::string data(MoeDataKind kind, bool check) {
    MoeDataProblem host;
    host.device = kGpu;
    host.kind = kind;
    host.tokens = kTokens;
    host.top_k = kTopK;
    host.experts = kExperts;
    host.ids_token_stride = kTopK;
    host.ids_choice_stride = 1;
    host.padded_rows = 5;
    host.n = host.n1 = kN;
    host.k = kK;
    const std::int64_t begin = somewhere(kRows);
    MoeDataProblem device = host;
    const auto bind = [&](MoeDataProblem& p, bool on_device) {
      p.ids = static_cast<const std::int32_t*>(at(ids_, on_device, begin, 4));
      const bool wide = kind == MoeDataKind::sizes_from_offsets;
      p.input = {at(wide ? wide_offsets_ : offsets_, on_device, begin, wide ? 8 : 4), 1, wide};
      std::int32_t* ints = on_device ? ints_.device<std::int32_t>() : ints_.host<std::int32_t>();
      std::int32_t* more = on_device ? more_ints_.device<std::int32_t>() : more_ints_.host<std::int32_t>();
      p.expert_offsets = ints;
      p.input_permutation = ints + 64;
      p.output_permutation = ints + 128;
      p.problem_sizes1 = more;
      p.problem_sizes2 = more + 64;
      p.blockscale_offsets = more + 128;
    };
    bind(host, false);
    bind(device, true);
    return run(host, device, &reference::moe_data, check);
  }
  std::string gather(bool check) {
    MoeGatherQuantizeProblem host;
    host.device = kGpu;
    host.tokens = kTokens;
    host.columns = host.x_stride = host.group_columns = kK;
    host.rows = kRows;
    const std::int64_t begin = somewhere(kRows);
    MoeGatherQuantizeProblem device = host;
    const auto bind = [&](MoeGatherQuantizeProblem& p, bool on_device) {
      p.x = at(x_, on_device, 0, 2);
      p.source_row = {at(wide_offsets_, on_device, begin, 8), 1, true};
      p.q = const_cast<void*>(at(out_, on_device, 0, 1));
      p.scale = on_device ? ints_.device<float>() : ints_.host<float>();
    };
    bind(host, false);
    bind(device, true);
    return run(host, device, &reference::moe_gather_quantize, check);
  }
  std::string combine(bool check) {
    MoeCombineProblem host;
    host.device = kGpu;
    host.tokens = host.rows = kTokens;
    host.top_k = kTopK;
    host.columns = host.y_stride = kK;
    host.slot_token_stride = host.weights_token_stride = kTopK;
    host.slot_choice_stride = host.weights_choice_stride = 1;
    const std::int64_t begin = somewhere(kRows);
    MoeCombineProblem device = host;
    const auto bind = [&](MoeCombineProblem& p, bool on_device) {
      p.y = at(x_, on_device, 0, 2);
      p.slot = at(offsets_, on_device, begin, 4);
      p.weights = on_device ? scales_.device<float>() : scales_.host<float>();
      p.out = const_cast<void*>(at(out_, on_device, 0, 1));
    };
    bind(host, false);
    bind(device, true);
    return run(host, device, &reference::moe_combine, check);
  }
  std::string grouped(GroupedForm form, bool check) {
    const bool wide = random_.below(2) == 0;
    GroupedGemmProblem host;
    host.device = kGpu;
    host.form = form;
    host.experts = kExperts;
    host.rows = form == GroupedForm::masked ? kRows / kExperts : kRows;
    host.n = host.out_stride = kN;
    host.k = host.a_stride = host.b_stride = kK;
    host.a_expert_stride = form == GroupedForm::masked ? host.rows * kK : 0;
    host.out_expert_stride = form == GroupedForm::masked ? host.rows * kN : 0;
    host.b_expert_stride = kN * kK;
    host.clear_unowned = form != GroupedForm::dropin && random_.below(2) == 0;
    const std::int64_t begin = somewhere(kExperts + 1), sizes = somewhere(3 * kExperts) / 3 * 3,
                       a = somewhere(kExperts), b = somewhere(kExperts), c = somewhere(kExperts);
    GroupedGemmProblem device = host;
    const auto bind = [&](GroupedGemmProblem& p, bool on_device) {
      p.a = at(a_, on_device, 0, 1);
      p.b = at(b_, on_device, 0, 1);
      p.out = const_cast<void*>(at(out_, on_device, 0, 1));
      p.scale_a.data = p.scale_b.data = on_device ? scales_.device<float>() : scales_.host<float>();
      p.expert_rows = {at(wide ? wide_offsets_ : offsets_, on_device, begin, wide ? 8 : 4), 1, wide};
      if (form != GroupedForm::dropin) return;
      p.problem_sizes = static_cast<const std::int32_t*>(at(sizes_, on_device, sizes, 4));
      p.a_pitches = {at(k_pitches_, on_device, a, 8), 1, true};
      p.b_pitches = {at(k_pitches_, on_device, b, 8), 1, true};
      p.out_pitches = {at(n_pitches_, on_device, c, 8), 1, true};
    };
    bind(host, false);
    bind(device, true);
    return run(host, device, &reference::grouped_gemm, check);
  }
  std::string layer(bool check) {
    const std::int64_t begin = somewhere(kRows);
    FusedMoeProblem host;
    host.device = kGpu;
    host.x_stride = kK;
    host.weight_dtype = DType::int8;
    host.topk_weights_token_stride = kTopK;
    host.topk_weights_choice_stride = 1;
    FusedMoeProblem device = host;
    const auto bind = [&](FusedMoeProblem& p, bool on_device) {
      p.route = route_problem(on_device, false, begin);
      p.route.expert_offsets = p.route.source_row = p.route.slot = nullptr;
      p.x = at(x_, on_device, 0, 2);
      const float* scales = on_device ? scales_.device<float>() : scales_.host<float>();
      p.topk_weights = scales;
      const auto bind_weights = [&](MoeWeights& part, Mirror& from, std::int64_t n, std::int64_t k) {
        part.data = at(from, on_device, 0, 1);
        part.n = n;
        part.k = part.row_stride = k;
        part.expert_stride = n * k;
        part.scale.mode = ScaleMode::RowWise;
        part.scale.data = scales;
        part.scale.outer_stride = 1;
      };
      bind_weights(p.w13, b_, kN, kK);
      bind_weights(p.w2, w2_, kK, kN / 2);
      p.out = const_cast<void*>(at(out_, on_device, 0, 1));
    };
    bind(host, false);
    bind(device, true);
    return run(host, device, &reference::fused_moe, check);
  }

  Random random_;
  std::uint64_t seed_here_ = 0;
  Mirror ids_{kPool * 4}, wide_ids_{kPool * 8}, offsets_{kPool * 4}, wide_offsets_{kPool * 8}, sizes_{kPool * 4},
      k_pitches_{kPool * 8}, n_pitches_{kPool * 8}, scales_{1024 * 4}, a_{kRows * kK}, b_{kExperts * kN * kK},
      w2_{kExperts * kK * kN / 2}, x_{kTokens * kK * 2}, ints_{256 * 4}, more_ints_{256 * 4}, out_{kRows * kN * 4},
      workspace_{1 << 20};
};

int hostile_kinds = HostileRun::kKinds;

std::string run_hostile(Extent extent, std::int64_t& cases) {
  const std::int64_t launches = extent != Extent::full ? 5000 : 100000;
  constexpr std::int64_t kBatch = 2000, kChecked = 50;  // of a batch one in fifty is compared
  HostileRun run(77);
  Watchdog watchdog;
  for (std::int64_t i = 0; i < launches; ++i) {
    const std::string wrong = run.launch(static_cast<int>(i % hostile_kinds), i / hostile_kinds % kChecked == 0);
    if (!wrong.empty()) return "launch " + std::to_string(i) + ": " + wrong;
    ++cases;
    watchdog.alive();
    if ((i + 1) % kBatch != 0) continue;
    require(cudaDeviceSynchronize(), "hostile launches");
    const std::string damage = run.damage();
    if (!damage.empty()) return "after launch " + std::to_string(i) + ": " + damage;
  }
  return "";
}

}  // namespace
}  // namespace evergemm::gpu_test

int main(int count, char** arguments) {
  using namespace evergemm::gpu_test;
  Extent extent = Extent::full;
  const char* junit = nullptr;
  std::string only;
  for (int i = 1; i < count; ++i) {
    const std::string argument = arguments[i];
    if (argument == "--quick") extent = Extent::quick;
    if (argument == "--tiny") extent = Extent::tiny;
    if (argument.rfind("--junit=", 0) == 0) junit = arguments[i] + 8;
    if (argument.rfind("--only=", 0) == 0) only = argument.substr(7);
    if (argument.rfind("--kinds=", 0) == 0) hostile_kinds = std::atoi(arguments[i] + 8);
  }
  struct Named {
    const char* name;
    std::string (*run)(Extent extent, std::int64_t& cases);
  };
  Report report;
  for (const Named& test : {Named{"route", run_routes}, Named{"data", run_data}, Named{"gather", run_gather},
                            Named{"combine", run_combine}, Named{"layer", run_layer}, Named{"hostile", run_hostile}})
    if (only.empty() || only == test.name)
      report.test("moe", test.name, [&](std::int64_t& cases) { return test.run(extent, cases); });
  return report.finish(junit);
}
