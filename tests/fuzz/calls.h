// SPDX-License-Identifier: Apache-2.0
// Turns bytes into a call of some operator, and says what must hold of the answer whatever the call was. Used by both
// fuzzers and by tests/cpp/fuzz_smoke_test.cpp; a broken promise is one sentence, and the caller ends the process or
// fails.
#pragma once
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "evergemm/plan.h"
#include "plan/operators.h"

namespace evergemm::fuzz {

// Reads choices from the input; zeros once it is used up.
class Bytes {
 public:
  Bytes(const std::uint8_t* data, std::size_t size) : data_(data), end_(data + size) {}
  std::uint8_t byte() { return data_ == end_ ? 0 : *data_++; }
  std::uint32_t below(std::uint32_t limit) { return byte() % limit; }
  bool coin() { return (byte() & 1) != 0; }
  bool rarely() { return byte() >= 240; }
  std::int64_t word() {
    std::uint64_t value = 0;
    for (int i = 0; i < 8; ++i) value = value << 8 | byte();
    return static_cast<std::int64_t>(value);
  }
  // A size or stride as they come from outside: small, around a block, around 2^31, around the ends of int64.
  std::int64_t quantity() {
    constexpr std::int64_t kLandmarks[] = {0,
                                           1,
                                           16,
                                           128,
                                           4096,
                                           65793,
                                           131071,
                                           INT64_C(1) << 31,
                                           INT64_C(1) << 40,
                                           std::numeric_limits<std::int64_t>::max() - 4};
    const std::uint8_t kind = byte();
    if (kind < 128) return kind % 40;
    if (kind < 240) return kLandmarks[kind % std::size(kLandmarks)] - 4 + below(9);
    return word();
  }

 private:
  const std::uint8_t* data_;
  const std::uint8_t* end_;
};

// A call: the arguments and the memory that their sizes and strides lie in. Data pointers are addresses that nobody
// reads.
struct Call {
  const Operator* operation = nullptr;
  std::vector<Argument> arguments;
  std::vector<std::unique_ptr<std::int64_t[]>> memory;
};

// The kinds of an operator's arguments, as its own message names them ("8 arguments of kinds tttttdbb").
inline std::string kinds_of(const Operator& operation) {
  Prepared prepared;
  const std::string text = operation.prepare(operation, {}, prepared).text();
  constexpr std::string_view before = "arguments of kinds ";
  const std::size_t start = text.find(before);
  if (start == std::string::npos) return "";
  return text.substr(start + before.size(), text.find(';', start) - start - before.size());
}

// What a tensor argument usually is; one letter each, in the order of the schema. An operator that is missing here
// still gets calls, but hardly ever one that is accepted: fuzz_smoke_test says so.
struct Recipe {
  std::string_view operation;
  std::string_view tensors;
};
// A a [m, k] · B b [k, n] column-major · s, S scales of a, b · j azp_adj [n] · z azp [m] · b bias [n] · O out [m, n]
// X x [m, k] · H x [m, 2k] where gated · W weight [k] · R residual [m, k] · P perm [k] · Q q [m, k] · 1 one float
// Experts, e of them (as many as a group has columns): E b [e, k, n] column-major · N b [e, n, k] · F a [e, m, k] · f its
// scales · U out [e, m, n] · e scales of E · h scales of N · o int32 [e + 1] · T int64 [e + 1] · c int32 [e] · x int64 [e]
// t sizes [e, 3] · I ids [m, n] · v float [m, n] · D int32 [m * n] · K like o or none · M map [k] or none · d int32 [n]
// u float [n] or none · p [e, 2n or n, k] · q [e, k, n] · y, Y scales of p, q · l float [m, 1] · L ids [m, 1]
// V weight [n, k] · k its scales · J azp_adj or none · a bias [n] of x's type or none · r float [m, 1] · i int32 [m, 1] · g a float a row or group [m, k / group] · G the same for blocks · w packed words
constexpr Recipe kRecipes[] = {
    {"scaled_mm", "ABsSb"},
    {"scaled_mm.out", "ABsSbO"},
    {"scaled_mm_azp", "ABsSjzb"},
    {"scaled_mm_azp.out", "ABsSjzbO"},
    {"_scaled_mm_row", "ABsSjzb"},
    {"quantize_per_tensor", "X"},
    {"quantize_per_tensor.out", "XQ1"},
    {"quantize_static", "Xr"},
    {"quantize_static.out", "XrQ"},
    {"quantize_per_token", "X1"},
    {"quantize_per_token.out", "X1Qr"},
    {"quantize_per_token_asymmetric", "X"},
    {"quantize_per_token_asymmetric.out", "XQri"},
    {"quantize_per_group", "X"},
    {"quantize_per_group.out", "XQg"},
    {"quantize_per_block", "X"},
    {"quantize_per_block.out", "XQG"},
    {"activate_and_quantize", "H"},
    {"activate_and_quantize.out", "HQg"},
    {"rms_norm_quantize", "XWR"},
    {"rms_norm_quantize.out", "XWRQg"},
    {"cutlass_scaled_mm", "OABsSb"},
    {"cutlass_scaled_mm_azp", "OABsSjzb"},
    {"quantized_linear", "XVk1Ja"},
    {"permute_cols", "XP"},
    {"per_token_group_fp8_quant", "XQg"},
    {"per_token_group_fp8_quant_packed", "XQw"},
    {"per_token_group_quant_int8", "XQg"},
    {"moe_route", "IM"},
    {"grouped_scaled_mm", "AEseo"},
    {"grouped_scaled_mm.out", "AEseoO"},
    {"grouped_scaled_mm_masked", "FEfec"},
    {"grouped_scaled_mm_masked.out", "FEfecU"},
    {"moe_gather_quantize", "Xd1u"},
    {"moe_combine", "XIv"},
    {"fused_moe", "XpqyYlLM11"},
    {"cutlass_moe_mm", "OANshctxxx"},
    {"get_cutlass_moe_mm_data", "IottDDK"},
    {"get_cutlass_moe_mm_problem_sizes_from_expert_offsets", "Ttt"},
    {"get_cutlass_batched_moe_mm_data", "cttc"},
};

// What one call's arguments share.
struct Theme {
  std::int64_t m, n, k, group;
  DType input, output, x, q;
  bool blocks, gated, per_row;
};

inline std::int64_t ceil_by(std::int64_t value, std::int64_t by) {
  return by <= 0 || value <= 0 ? 0 : value / by + (value % by != 0);
}

// The tensor of that letter, most often as it should be; then any of its properties may be spoiled.
inline TensorView any_tensor(Bytes& bytes, Call& call, const Theme& theme, char letter) {
  constexpr DType kTypes[] = {DType::int8,    DType::float8_e4m3fn, DType::float32,        DType::bfloat16,
                              DType::float16, DType::int32,         DType::float8_e8m0fnu, DType::int64,
                              DType::float64, DType::uint8,         DType::boolean};
  const std::int64_t m = theme.m, n = theme.n, k = theme.k;
  const std::int64_t groups = theme.group == 0 ? 1 : ceil_by(k, theme.group), experts = theme.group;
  TensorView view;
  call.memory.push_back(std::make_unique<std::int64_t[]>(2 * 16));
  std::int64_t* sizes = call.memory.back().get();
  std::int64_t* strides = sizes + 16;
  bool first_fastest = false;
  auto shape = [&](DType dtype, std::int32_t rank, std::int64_t rows, std::int64_t columns) {
    view.dtype = dtype;
    view.rank = rank;
    sizes[0] = rank == 1 ? columns : rows;
    sizes[1] = columns;
  };
  switch (letter) {
    case 'A':
      shape(theme.input, 2, m, k);
      break;
    case 'B':
      shape(theme.input, 2, k, n);
      first_fastest = true;
      break;
    case 's':
      theme.blocks ? shape(DType::float32, 2, m, ceil_by(k, 128)) : shape(DType::float32, 2, theme.per_row ? m : 1, 1);
      break;
    case 'S':
      theme.blocks ? shape(DType::float32, 2, ceil_by(k, 128), ceil_by(n, 128))
                   : shape(DType::float32, 2, 1, theme.per_row ? n : 1);
      break;
    case 'j':
      shape(DType::int32, 1, 1, n);
      break;
    case 'z':
      shape(DType::int32, 1, 1, m);
      break;
    case 'b':
      shape(theme.output, 1, 1, n);
      break;
    case 'O':
      shape(theme.output, 2, m, n);
      break;
    case 'X':
      shape(theme.x, 2, m, k);
      break;
    case 'H':
      shape(theme.x, 2, m, theme.gated ? 2 * (k & INT64_MAX >> 1) : k);
      break;
    case 'W':
      shape(theme.x, 1, 1, k);
      break;
    case 'R':
      shape(theme.x, 2, m, k);
      break;
    case 'P':
      shape(DType::int32, 1, 1, k);
      break;
    case 'Q':
      shape(theme.q, 2, m, k);
      break;
    case '1':
      shape(DType::float32, 1, 1, 1);
      break;
    case 'r':
      shape(DType::float32, 2, m, 1);
      break;
    case 'i':
      shape(DType::int32, 2, m, 1);
      break;
    case 'g':
      shape(DType::float32, 2, m, groups);
      first_fastest = bytes.coin();
      break;
    case 'G':
      shape(DType::float32, 2, ceil_by(m, theme.group), groups);
      break;
    case 'w':
      shape(DType::int32, 2, m, ceil_by(groups, 4));
      first_fastest = true;
      break;
    case 'E':
      shape(theme.input, 3, experts, k);
      sizes[2] = n;
      break;
    case 'N':
      shape(theme.input, 3, experts, n);
      sizes[2] = k;
      break;
    case 'F':
      shape(theme.input, 3, experts, m);
      sizes[2] = k;
      break;
    case 'f':
      theme.blocks ? shape(DType::float32, 3, experts, m) : shape(DType::float32, 2, experts, m);
      sizes[2] = ceil_by(k, 128);
      break;
    case 'U':
      shape(theme.output, 3, experts, m);
      sizes[2] = n;
      break;
    case 'e':
      theme.blocks ? shape(DType::float32, 3, experts, ceil_by(k, 128))
                   : shape(DType::float32, 2, experts, theme.per_row ? n : 1);
      sizes[2] = ceil_by(n, 128);
      break;
    case 'h':
      shape(DType::float32, 2, experts, theme.per_row ? n : 1);
      break;
    case 'o':
    case 'K':
      shape(DType::int32, 1, 1, experts + 1);
      break;
    case 'T':
      shape(DType::int64, 1, 1, experts + 1);
      break;
    case 'c':
      shape(DType::int32, 1, 1, experts);
      break;
    case 'x':
      shape(DType::int64, 1, 1, experts);
      break;
    case 't':
      shape(DType::int32, 2, experts, 3);
      break;
    case 'I':
      shape(DType::int32, 2, m, n);
      break;
    case 'v':
      shape(DType::float32, 2, m, n);
      break;
    case 'D':
      shape(DType::int32, 1, 1, (m & 0xffff) * (n & 0xffff));
      break;
    case 'M':
      shape(DType::int32, 1, 1, k);
      break;
    case 'd':
      shape(DType::int32, 1, 1, n);
      break;
    case 'u':
      shape(DType::float32, 1, 1, n);
      break;
    case 'p':
      shape(theme.input, 3, experts, theme.gated ? 2 * (n & INT64_MAX >> 1) : n);
      sizes[2] = k;
      break;
    case 'q':
      shape(theme.input, 3, experts, k);
      sizes[2] = n;
      break;
    case 'y':
    case 'Y': {
      const std::int64_t rows = letter == 'Y' ? k : theme.gated ? 2 * (n & INT64_MAX >> 1) : n;
      theme.blocks ? shape(DType::float32, 3, experts, ceil_by(rows, 128))
                   : shape(DType::float32, 2, experts, theme.per_row ? rows : 1);
      sizes[2] = ceil_by(letter == 'Y' ? n : k, 128);
      break;
    }
    case 'V':
      shape(theme.input, 2, n, k);
      break;
    case 'k':
      theme.blocks ? shape(DType::float32, 2, ceil_by(n, 128), ceil_by(k, 128))
                   : shape(DType::float32, 2, theme.per_row ? n : 1, 1);
      break;
    case 'J':
      shape(DType::int32, 1, 1, n);
      break;
    case 'a':
      shape(theme.x, 1, 1, n);
      break;
    case 'l':
      shape(DType::float32, 2, m, 1);
      break;
    case 'L':
      shape(DType::int32, 2, m, 1);
      break;
    default:
      shape(kTypes[bytes.below(std::size(kTypes))], static_cast<std::int32_t>(bytes.below(4)), m, k);
      sizes[2] = n;
      break;
  }
  const bool optional = letter == 'b' || letter == 'z' || letter == 'R' || letter == 'M' || letter == 'K' ||
                        letter == 'u' || letter == 'J' || letter == 'a' || (letter == '1' && bytes.coin());
  if (optional ? bytes.coin() : bytes.rarely()) {
    TensorView none;
    return none;
  }

  if (bytes.rarely())
    view.dtype = bytes.coin() ? kTypes[bytes.below(std::size(kTypes))] : static_cast<DType>(bytes.byte());
  if (bytes.rarely()) view.device.type = static_cast<DeviceType>(bytes.below(3));
  view.device.index = view.device.type == DeviceType::cuda ? 0 : -1;
  if (bytes.rarely()) {
    const std::int32_t rank = static_cast<std::int32_t>(bytes.below(9));
    for (std::int32_t d = view.rank; d < rank; ++d) sizes[d] = bytes.coin() ? 1 : bytes.quantity();
    view.rank = rank;
  }
  if (bytes.rarely() && view.rank > 0) sizes[bytes.below(static_cast<std::uint32_t>(view.rank))] = bytes.quantity();
  std::int64_t stride = 1;
  for (std::int32_t i = 0; i < view.rank; ++i) {
    std::int32_t d = first_fastest ? i : view.rank - 1 - i;
    if (letter == 'E' && view.rank == 3) d = (i + 1) % 3;  // rows of k first, then columns, then experts
    strides[d] = stride;
    if (letter == 'w')
      stride = (ceil_by(sizes[d], 4) & INT64_MAX >> 2) * 4;  // columns of words start at multiples of 4
    else if (__builtin_mul_overflow(stride, sizes[d] > 0 ? sizes[d] : 1, &stride))
      stride = 1;
  }
  if (bytes.rarely() && view.rank > 0) strides[bytes.below(static_cast<std::uint32_t>(view.rank))] = bytes.quantity();
  view.requires_grad = bytes.byte() == 255;
  // Far apart, so that two tensors overlap only where the bytes say so.
  const std::uint64_t position = bytes.rarely() ? bytes.below(4) : call.arguments.size();
  view.data = reinterpret_cast<const void*>(((position + 1) << 48) + (bytes.rarely() ? bytes.byte() : 0));
  view.storage_bytes = bytes.rarely() ? bytes.quantity() : -1;
  view.sizes = sizes;
  view.strides = strides;
  return view;
}

inline Call any_call(Bytes& bytes) {
  Call call;
  const auto operators = all_operators();
  call.operation = &operators[bytes.byte() % operators.size()];
  std::string_view recipe;
  for (const Recipe& known : kRecipes)
    if (known.operation == call.operation->name) recipe = known.tensors;

  constexpr DType kFloats[] = {DType::bfloat16, DType::float16, DType::float32};
  const bool int8_only = std::string_view(call.operation->name).find("int8") != std::string_view::npos ||
                         std::string_view(call.operation->name).find("azp") != std::string_view::npos ||
                         std::string_view(call.operation->name).find("asymmetric") != std::string_view::npos;
  const bool float8_only = std::string_view(call.operation->name).find("fp8") != std::string_view::npos;
  Theme theme;
  theme.m = bytes.quantity();
  theme.n = bytes.quantity();
  constexpr std::int64_t kGroups[] = {1, 8, 128, 0};
  theme.group = kGroups[bytes.below(4)];
  theme.k = bytes.quantity();
  if (theme.group > 0 && bytes.coin()) theme.k = theme.k / theme.group * theme.group;
  theme.input = int8_only || bytes.coin() ? DType::int8 : DType::float8_e4m3fn;
  theme.q = float8_only || (!int8_only && bytes.coin()) ? DType::float8_e4m3fn : DType::int8;
  theme.output = kFloats[bytes.below(3)];
  theme.x = kFloats[bytes.below(3)];
  const bool grouped_dropin = std::string_view(call.operation->name) == "cutlass_moe_mm";
  theme.blocks = theme.input == DType::float8_e4m3fn && bytes.coin() && !grouped_dropin;
  theme.gated = bytes.coin();
  theme.per_row = bytes.coin();

  const bool multiplies =
      recipe.starts_with("AB") || recipe.starts_with("AE") || recipe.starts_with("FE") || recipe.starts_with("XI");
  std::size_t tensors = 0;
  for (const char kind : kinds_of(*call.operation)) {
    Argument argument;
    switch (kind) {
      case 't':
        argument.kind = Argument::Kind::tensor;
        argument.tensor = any_tensor(bytes, call, theme, tensors < recipe.size() ? recipe[tensors] : '?');
        ++tensors;
        break;
      case 'i':
        argument.kind = Argument::Kind::integer;
        argument.integer = bytes.rarely() ? bytes.quantity() : bytes.rarely() ? bytes.below(4) : theme.group;
        break;
      case 'f':
        argument.kind = Argument::Kind::real;
        argument.real = bytes.rarely()              ? static_cast<double>(bytes.word())
                        : call.arguments.size() < 6 ? bytes.byte() - 128.0
                                                    : 127.0;
        break;
      case 'b':
        argument.kind = Argument::Kind::boolean;
        argument.integer = tensors == 1 ? theme.gated : grouped_dropin ? theme.per_row : bytes.coin();
        break;
      default:
        argument.kind = Argument::Kind::dtype;
        argument.integer = bytes.rarely() ? bytes.quantity()
                           : multiplies   ? static_cast<std::int64_t>(theme.output)
                                          : static_cast<std::int64_t>(theme.q);
        break;
    }
    call.arguments.push_back(argument);
  }
  return call;
}

// ---- what must hold --------------------------------------------------------------------------------------------

// "op: expected ...; got ...; fix: ..."
inline std::string wrong_with_message(const Operator& operation, const std::string& text) {
  const std::string base = std::string(operation.name).substr(0, std::string(operation.name).find('.'));
  const std::size_t got = text.find("; got "), fix = text.find("; fix: ");
  if (!text.starts_with(base + ": expected ")) return "a message that does not open with the operator: " + text;
  if (got == std::string::npos || fix == std::string::npos || fix < got)
    return "a message without got and fix: " + text;
  return "";
}

// Rows of evenly spaced elements that a kernel will touch must lie inside the storage of the tensor they came from.
inline std::string wrong_with_span(const Call& call, const char* what, const void* data, std::int64_t element_bytes,
                                   std::int64_t rows, std::int64_t row_stride, std::int64_t columns,
                                   std::int64_t column_stride) {
  if (data == nullptr || rows == 0 || columns == 0) return "";
  const __int128 last =
      static_cast<__int128>(rows - 1) * row_stride + static_cast<__int128>(columns - 1) * column_stride;
  if (rows < 0 || columns < 0 || row_stride < 0 || column_stride < 0)
    return std::string(what) + ": a negative size or stride";
  const __int128 bytes = (last + 1) * element_bytes;
  if (bytes > std::numeric_limits<std::int64_t>::max()) return std::string(what) + ": a span beyond int64";
  for (const Argument& argument : call.arguments) {
    if (argument.kind != Argument::Kind::tensor || argument.tensor.data != data) continue;
    const std::int64_t storage = argument.tensor.storage_bytes;
    if (storage >= 0 && bytes <= storage) return "";
    if (storage < 0) return "";
  }
  for (const Argument& argument : call.arguments)
    if (argument.kind == Argument::Kind::tensor && argument.tensor.data == data)
      return std::string(what) + ": a span outside its storage was accepted";
  return std::string(what) + ": a pointer that no argument has";
}

inline std::string wrong_with_problem(const Call& call, const GemmProblem& p) {
  if (p.m < 0 || p.n < 0 || p.k < 0) return "a negative size";
  if (p.input_dtype != DType::int8 && p.input_dtype != DType::float8_e4m3fn) return "an input type that no kernel has";
  if (p.output_dtype != DType::bfloat16 && p.output_dtype != DType::float16 && p.output_dtype != DType::float32)
    return "an output type that no kernel has";
  if (p.has_azp && p.azp_adj == nullptr && p.n > 0) return "azp without azp_adj";
  const std::int64_t out_bytes = size_in_bytes(p.output_dtype);
  const bool blocks = p.blockwise();
  const std::int64_t k_blocks = blocks ? p.k / kScaleBlock + (p.k % kScaleBlock != 0) : 1;
  const std::int64_t n_blocks = p.n / kScaleBlock + (p.n % kScaleBlock != 0);
  const std::int64_t a_scales = p.scale_a.mode == ScaleMode::TensorWise ? 1 : p.m;
  const std::int64_t b_scales = blocks ? n_blocks : p.scale_b.mode == ScaleMode::TensorWise ? 1 : p.n;
  if (p.m == 0 || p.n == 0) return "";  // nothing is read or written
  const std::string spans[] = {
      wrong_with_span(call, "a", p.a, 1, p.m, p.a_stride, p.k, 1),
      wrong_with_span(call, "b", p.b, 1, p.n, p.b_stride, p.k, 1),
      wrong_with_span(call, "out", p.out, out_bytes, p.m, p.out_stride, p.n, 1),
      wrong_with_span(call, "scale_a", p.scale_a.data, 4, a_scales, p.scale_a.outer_stride, k_blocks,
                      p.scale_a.k_stride),
      wrong_with_span(call, "scale_b", p.scale_b.data, 4, b_scales, p.scale_b.outer_stride, k_blocks,
                      p.scale_b.k_stride),
      wrong_with_span(call, "bias", p.bias, out_bytes, 1, 0, p.n, p.bias_stride),
      wrong_with_span(call, "azp_adj", p.azp_adj, 4, 1, 0, p.n, p.azp_adj_stride),
      wrong_with_span(call, "azp", p.azp, 4, 1, 0, p.m, p.azp_stride),
  };
  for (const std::string& span : spans)
    if (!span.empty()) return span;
  return "";
}

inline std::string wrong_with_problem(const Call& call, const QuantizeProblem& p) {
  if (p.rows < 0 || p.columns < 0) return "a negative size";
  if (p.q_dtype != DType::int8 && p.q_dtype != DType::float8_e4m3fn) return "a q type that no kernel has";
  if (p.x_dtype != DType::bfloat16 && p.x_dtype != DType::float16 && p.x_dtype != DType::float32)
    return "an x type that no kernel has";
  if (p.rows == 0 || p.columns == 0) return "";
  if (p.group_rows <= 0) return "groups of no rows";
  const std::int64_t x_bytes = size_in_bytes(p.x_dtype);
  const std::int64_t x_columns = p.gated ? 2 * p.columns : p.columns;
  const std::string spans[] = {
      wrong_with_span(call, "x", p.x, x_bytes, p.rows, p.x_stride, x_columns, 1),
      wrong_with_span(call, "q", p.q, 1, p.rows, p.q_stride, p.columns, 1),
      wrong_with_span(call, "azp", p.azp, 4, 1, 0, p.rows, p.azp_stride),
      wrong_with_span(call, "weight", p.weight, x_bytes, 1, 0, p.columns, p.weight_stride),
      wrong_with_span(call, "residual", p.residual, x_bytes, p.rows, p.residual_stride, p.columns, 1),
  };
  for (const std::string& span : spans)
    if (!span.empty()) return span;
  return "";
}

inline std::string wrong_with_problem(const Call& call, const PermuteProblem& p) {
  if (p.rows < 0 || p.columns < 0) return "a negative size";
  const std::string span = wrong_with_span(call, "a", p.a, 2, p.rows, p.columns, p.columns, 1);
  return span.empty() ? wrong_with_span(call, "perm", p.perm, 4, 1, 0, p.columns, p.perm_stride) : span;
}

inline std::string wrong_with_indices(const Call& call, const char* what, const Indices& indices, std::int64_t count) {
  return wrong_with_span(call, what, indices.data, indices.is_int64 ? 8 : 4, 1, 0, count, indices.stride);
}

inline std::string first_of(std::initializer_list<std::string> sentences) {
  for (const std::string& sentence : sentences)
    if (!sentence.empty()) return sentence;
  return "";
}

inline std::string wrong_with_problem(const Call& call, const MoeRouteProblem& p) {
  if (p.tokens < 0 || p.top_k < 0 || p.experts < 0) return "a negative size";
  if (static_cast<__int128>(p.tokens) * p.top_k >= INT64_C(1) << 31) return "rows beyond int32";
  return first_of({wrong_with_span(call, "topk_ids", p.ids, p.ids_are_int64 ? 8 : 4, p.tokens, p.ids_token_stride,
                                   p.top_k, p.ids_choice_stride),
                   wrong_with_indices(call, "expert_map", p.expert_map, p.expert_map_size)});
}

inline std::string wrong_with_problem(const Call& call, const GroupedGemmProblem& p) {
  if (p.experts < 0 || p.rows < 0 || p.n < 0 || p.k < 0) return "a negative size";
  if (p.experts == 0 || p.rows == 0 || p.n == 0) return "";
  const bool masked = p.form == GroupedForm::masked;
  const std::int64_t matrices = masked ? p.experts : 1, k_blocks = p.blockwise() ? ceil_by(p.k, 128) : 1;
  const std::int64_t a_rows = p.scale_a.mode == ScaleMode::TensorWise ? 1 : p.rows;
  const std::int64_t b_rows = p.scale_b.mode == ScaleMode::TensorWise ? 1 : p.blockwise() ? ceil_by(p.n, 128) : p.n;
  const std::int64_t item = size_in_bytes(p.output_dtype), k = p.k > 0 ? p.k : 0;
  std::string wrong = first_of(
      {wrong_with_span(call, "a", p.a, 1, matrices, p.a_expert_stride, k == 0 ? 0 : (p.rows - 1) * p.a_stride + k, 1),
       wrong_with_span(call, "b", p.b, 1, p.experts, p.b_expert_stride, k == 0 ? 0 : (p.n - 1) * p.b_stride + k, 1),
       wrong_with_span(call, "out", p.out, item, matrices, p.out_expert_stride, (p.rows - 1) * p.out_stride + p.n, 1),
       wrong_with_indices(call, "the experts' rows", p.expert_rows,
                          p.experts + (p.form == GroupedForm::ragged ? 1 : 0))});
  if (k_blocks > 0)
    wrong =
        first_of({wrong,
                  wrong_with_span(call, "scale_a", p.scale_a.data, 4, p.scale_a_expert_stride == 0 ? 1 : p.experts,
                                  p.scale_a_expert_stride,
                                  (a_rows - 1) * p.scale_a.outer_stride + (k_blocks - 1) * p.scale_a.k_stride + 1, 1),
                  wrong_with_span(call, "scale_b", p.scale_b.data, 4, p.experts, p.scale_b_expert_stride,
                                  (b_rows - 1) * p.scale_b.outer_stride + (k_blocks - 1) * p.scale_b.k_stride + 1, 1)});
  if (p.form != GroupedForm::dropin) return wrong;
  return first_of({wrong, wrong_with_span(call, "problem_sizes", p.problem_sizes, 4, p.experts, 3, 3, 1),
                   wrong_with_indices(call, "a_strides", p.a_pitches, p.experts),
                   wrong_with_indices(call, "b_strides", p.b_pitches, p.experts),
                   wrong_with_indices(call, "c_strides", p.out_pitches, p.experts)});
}

inline std::string wrong_with_problem(const Call& call, const MoeGatherQuantizeProblem& p) {
  if (p.tokens < 0 || p.columns < 0 || p.rows < 0 || p.group_columns < 1) return "a negative size or an empty group";
  return first_of({wrong_with_span(call, "x", p.x, size_in_bytes(p.x_dtype), p.tokens, p.x_stride, p.columns, 1),
                   wrong_with_indices(call, "source_row", p.source_row, p.rows),
                   wrong_with_span(call, "row_weights", p.row_weights, 4, 1, 0, p.rows, p.row_weights_stride),
                   wrong_with_span(call, "scale", p.given_scale, 4, 1, 0, 1, 1)});
}

inline std::string wrong_with_problem(const Call& call, const MoeCombineProblem& p) {
  if (p.tokens < 0 || p.top_k < 0 || p.rows < 0 || p.columns < 0) return "a negative size";
  return first_of({wrong_with_span(call, "y", p.y, size_in_bytes(p.y_dtype), p.rows, p.y_stride, p.columns, 1),
                   wrong_with_span(call, "slot", p.slot, p.slots_are_int64 ? 8 : 4, p.tokens, p.slot_token_stride,
                                   p.top_k, p.slot_choice_stride),
                   wrong_with_span(call, "topk_weights", p.weights, 4, p.tokens, p.weights_token_stride, p.top_k,
                                   p.weights_choice_stride)});
}

inline std::string wrong_with_weights(const Call& call, const char* what, const MoeWeights& w, std::int64_t experts) {
  if (w.n < 0 || w.k < 0) return "a negative size";
  if (experts == 0 || w.n == 0 || w.k == 0) return "";
  const bool blocks = w.scale.mode == ScaleMode::BlockWise128x128;
  const std::int64_t rows = w.scale.mode == ScaleMode::TensorWise ? 1 : blocks ? ceil_by(w.n, 128) : w.n;
  const std::int64_t k_blocks = blocks ? ceil_by(w.k, 128) : 1;
  return first_of({wrong_with_span(call, what, w.data, 1, experts, w.expert_stride, (w.n - 1) * w.row_stride + w.k, 1),
                   wrong_with_span(call, "a weight's scale", w.scale.data, 4, experts, w.scale_expert_stride,
                                   (rows - 1) * w.scale.outer_stride + (k_blocks - 1) * w.scale.k_stride + 1, 1),
                   wrong_with_span(call, "a static scale", w.input_scale, 4, 1, 0, 1, 1)});
}

inline std::string wrong_with_problem(const Call& call, const FusedMoeProblem& p) {
  if (p.w13.n != (p.gated ? 2 : 1) * p.intermediate() || p.w2.n != p.hidden())
    return "weights that do not fit each other";
  return first_of({wrong_with_problem(call, p.route),
                   wrong_with_span(call, "x", p.x, size_in_bytes(p.x_dtype), p.route.tokens, p.x_stride, p.hidden(), 1),
                   wrong_with_weights(call, "w13", p.w13, p.route.experts),
                   wrong_with_weights(call, "w2", p.w2, p.route.experts),
                   wrong_with_span(call, "topk_weights", p.topk_weights, 4, p.route.tokens, p.topk_weights_token_stride,
                                   p.route.top_k, p.topk_weights_choice_stride)});
}

inline std::string wrong_with_problem(const Call& call, const LinearProblem& p) {
  if (p.product.m != p.quantize.rows || p.product.k != p.quantize.columns) return "steps that do not fit each other";
  const __int128 counted = (static_cast<__int128>(p.product.m) + 4) * (static_cast<__int128>(p.product.k) * 2 + 1024);
  if (counted > std::numeric_limits<std::int64_t>::max()) return "a workspace beyond int64 bytes";
  LinearProblem placed = p;
  const std::int64_t bytes = place(placed, nullptr);
  if (bytes < 0 || bytes > counted) return "a workspace larger than what was counted";
  return first_of({wrong_with_problem(call, p.quantize), wrong_with_problem(call, p.product)});
}

inline std::string wrong_with_problem(const Call& call, const MoeDataProblem& p) {
  if (p.tokens < 0 || p.top_k < 0 || p.experts < 0 || p.n1 < 0 || p.n < 0 || p.k < 0) return "a negative size";
  const bool route = p.kind == MoeDataKind::route;
  const std::int64_t offsets = p.experts + (p.kind == MoeDataKind::batched ? 0 : 1), rows = p.tokens * p.top_k;
  return first_of(
      {wrong_with_span(call, "topk_ids", p.ids, 4, p.tokens, p.ids_token_stride, p.top_k, p.ids_choice_stride),
       route ? "" : wrong_with_indices(call, "the experts' rows", p.input, offsets),
       wrong_with_span(call, "expert_offsets", p.expert_offsets, 4, 1, 0, offsets, 1),
       wrong_with_span(call, "problem_sizes1", p.problem_sizes1, 4, p.experts, 3, 3, 1),
       wrong_with_span(call, "problem_sizes2", p.problem_sizes2, 4, p.experts, 3, 3, 1),
       wrong_with_span(call, "input_permutation", p.input_permutation, 4, 1, 0, rows, 1),
       wrong_with_span(call, "output_permutation", p.output_permutation, 4, 1, 0, rows, 1),
       wrong_with_span(call, "blockscale_offsets", p.blockscale_offsets, 4, 1, 0, offsets, 1)});
}

inline std::string wrong_with_outputs(const Prepared& prepared) {
  if (prepared.output_count < 0 || prepared.output_count > 3) return "a number of outputs that no operator has";
  for (std::int32_t i = 0; i < prepared.output_count; ++i) {
    const OutputSpec& output = prepared.outputs[i];
    if (output.rank < 0 || output.rank > kMaxRank) return "an output of impossible rank";
    bool empty = false;
    for (std::int32_t d = 0; d < output.rank; ++d) {
      if (output.sizes[d] < 0 || output.strides[d] < 0) return "an output of negative size or stride";
      if (output.sizes[d] == 0) empty = true;
    }
    if (empty) continue;
    __int128 bytes = size_in_bytes(output.dtype);
    for (std::int32_t d = 0; d < output.rank; ++d) {
      bytes *= output.sizes[d];
      if (bytes > std::numeric_limits<std::int64_t>::max()) return "an output beyond int64 bytes";
    }
    __int128 last = 0;  // bounded: sizes multiply to less than 2^63
    for (std::int32_t d = 0; d < output.rank; ++d)
      last += static_cast<__int128>(output.sizes[d] - 1) * output.strides[d];
    if ((last + 1) * size_in_bytes(output.dtype) != bytes) return "an output that is not dense";
  }
  return "";
}

// Everything that is promised of a call's preparation. An empty string, or the promise that was broken.
inline std::string wrong_with_preparation(const Call& call, Prepared& prepared, bool& accepted) {
  const Status status = call.operation->prepare(*call.operation, call.arguments, prepared);
  accepted = status.ok();
  if (!accepted) return wrong_with_message(*call.operation, status.text());
  std::string wrong = wrong_with_outputs(prepared);
  if (wrong.empty())
    wrong = std::visit([&](const auto& problem) { return wrong_with_problem(call, problem); }, prepared.problem);
  return wrong.empty() ? wrong : std::string(call.operation->name) + ": " + wrong;
}

inline std::vector<DeviceFacts> all_devices() {
  std::vector<DeviceFacts> devices;
  for (const char* text : {"cpu-portable", "cpu-avx2", "cpu-avx512", "cpu-avx512_vnni", "sm80", "sm90a", "sm100"}) {
    DeviceFacts facts;
    if (facts_named(text, facts)) devices.push_back(facts);
  }
  return devices;
}

// Everything that is promised of plans for an accepted problem.
inline std::string wrong_with_plan(const GemmProblem& problem, const DeviceFacts& facts, std::int32_t forced_row) {
  Plan chosen, again;
  const Status status = plan(problem, facts, chosen);
  const std::int32_t rows = row_count(facts.architecture);
  if (!status.ok()) {
    if (facts.architecture == Architecture::cpu) return "the CPU refuses a valid problem: " + status.text();
  } else {
    if (chosen.row < -1 || chosen.row >= rows) return "a row outside the table";
    if ((chosen.row == -1) != (problem.m == 0 || problem.n == 0))
      return "a row for an empty result, or none for another";
    if (chosen.name == nullptr || chosen.why == nullptr) return "a plan without name or reason";
    if (chosen.workspace_bytes < 0 || chosen.split_k < 1) return "a negative workspace or no split";
    if (chosen.row >= 0 && !why_not(problem, facts, chosen.row).empty()) return "a row was chosen that cannot run";
    if (!plan(problem, facts, again).ok() || again.row != chosen.row || again.workspace_bytes != chosen.workspace_bytes)
      return "two plans of one problem differ";
  }
  Plan forced;
  const bool can = forced_row >= 0 && forced_row < rows && why_not(problem, facts, forced_row).empty();
  const Status forced_status = plan_row(problem, facts, forced_row, forced);
  if (forced_status.ok() && forced.row != -1 && (!can || forced.row != forced_row))
    return "a row was forced that cannot run";
  const std::string json = explain(problem, facts);
  if (json.size() < 2 || json.front() != '{' || json.back() != '}')
    return "an explanation that is not a JSON object: " + json;
  return "";
}
template <typename Problem>
std::string wrong_with_plan(const Problem& problem, const DeviceFacts& facts, std::int32_t) {
  Plan chosen;
  const Status status = plan(problem, facts, chosen);
  if (!status.ok())
    return facts.architecture == Architecture::cpu ? "the CPU refuses a valid problem: " + status.text() : "";
  if (chosen.name == nullptr || chosen.workspace_bytes < 0) return "a plan without name, or a negative workspace";
  return "";
}

// `choice` picks the device.
inline std::string wrong_with_plans(const Prepared& prepared, std::uint32_t choice, std::int32_t forced_row) {
  static const std::vector<DeviceFacts> devices = all_devices();
  const DeviceFacts& facts = devices[choice % devices.size()];
  const std::string wrong =
      std::visit([&](const auto& problem) { return wrong_with_plan(problem, facts, forced_row); }, prepared.problem);
  return wrong.empty() ? wrong : std::string(name(facts.architecture)) + ": " + wrong;
}

}  // namespace evergemm::fuzz
