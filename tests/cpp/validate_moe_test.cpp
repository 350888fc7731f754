// SPDX-License-Identifier: Apache-2.0
// Every rule of the mixture-of-experts operators by its whole message, each one change to a good call, and what must be
// accepted. Goes through the table of operators, as torch does. Mirrors src/plan/validate_moe.cpp and operators_moe.cpp.
#include <gtest/gtest.h>

#include <cstring>
#include <initializer_list>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "plan/operators.h"

namespace evergemm {
namespace {

constexpr std::int64_t kMostExperts = std::numeric_limits<std::int64_t>::max();

// A call by the names of its arguments. Data pointers are addresses that nobody reads.
class Call {
 public:
  explicit Call(const char* operation) : operation_(find_operator(operation)) {}

  Call& tensor(const char* name, DType dtype, std::vector<std::int64_t> sizes, std::vector<std::int64_t> strides = {}) {
    Argument argument;
    argument.kind = Argument::Kind::tensor;
    add(name, argument);
    set(name, dtype, std::move(sizes), std::move(strides));
    return *this;
  }
  Call& none(const char* name) {
    Argument argument;
    argument.kind = Argument::Kind::tensor;
    return add(name, argument);
  }
  Call& number(const char* name, std::int64_t value, Argument::Kind kind = Argument::Kind::integer) {
    Argument argument;
    argument.kind = kind;
    argument.integer = value;
    return add(name, argument);
  }
  Call& flag(const char* name, bool value) { return number(name, value, Argument::Kind::boolean); }
  Call& type(const char* name, DType value) {
    return number(name, static_cast<std::int64_t>(value), Argument::Kind::dtype);
  }

  TensorView& operator[](const char* name) { return arguments_[index(name)].tensor; }
  std::int64_t& integer(const char* name) { return arguments_[index(name)].integer; }
  // Another tensor in the argument's place, contiguous where no strides are given.
  void set(const char* name, DType dtype, std::vector<std::int64_t> sizes, std::vector<std::int64_t> strides = {}) {
    if (strides.empty()) {
      strides.resize(sizes.size());
      std::int64_t stride = 1;
      for (std::size_t d = sizes.size(); d-- > 0; stride *= std::max<std::int64_t>(sizes[d], 1)) strides[d] = stride;
    }
    TensorView& view = arguments_[index(name)].tensor;
    view.dtype = dtype;
    view.device = {DeviceType::cpu, -1};
    view.rank = static_cast<std::int32_t>(sizes.size());
    view.data = reinterpret_cast<const void*>((index(name) + 1) << 44);
    memory_.push_back(std::make_unique<std::vector<std::int64_t>>(std::move(sizes)));
    view.sizes = memory_.back()->data();
    memory_.push_back(std::make_unique<std::vector<std::int64_t>>(std::move(strides)));
    view.strides = memory_.back()->data();
  }

  std::string error() const {
    Prepared prepared;
    return prepare(prepared);
  }
  std::string prepare(Prepared& prepared) const {
    return operation_->prepare(*operation_, arguments_, prepared).text();
  }

 private:
  Call& add(const char* name, const Argument& argument) {
    names_.push_back(name);
    arguments_.push_back(argument);
    return *this;
  }
  std::size_t index(const char* name) const {
    for (std::size_t i = 0; i < names_.size(); ++i)
      if (std::strcmp(names_[i], name) == 0) return i;
    ADD_FAILURE() << "no argument " << name;
    return 0;
  }

  const Operator* operation_;
  std::vector<const char*> names_;
  std::vector<Argument> arguments_;
  std::vector<std::unique_ptr<std::vector<std::int64_t>>> memory_;
};

// Good calls: 3 experts, 10 rows, n 5, k 7; 6 tokens with 2 choices each; a layer of hidden 8 and intermediate 5.
Call good(const std::string& name) {
  Call c(name.c_str());
  const bool out = name.find(".out") != std::string::npos, masked = name.find("masked") != std::string::npos;
  if (name == "moe_route") {
    c.tensor("topk_ids", DType::int32, {6, 2}).number("num_local_experts", 3).tensor("expert_map", DType::int32, {8});
  } else if (name.find("grouped_scaled_mm") == 0) {
    if (masked)
      c.tensor("a", DType::int8, {3, 10, 7});
    else
      c.tensor("a", DType::int8, {10, 7});
    c.tensor("b", DType::int8, {3, 7, 5}, {35, 1, 7});
    c.tensor("scale_a", DType::float32, {1}).tensor("scale_b", DType::float32, {3, 5});
    c.tensor(masked ? "rows_per_expert" : "expert_offsets", DType::int32, {masked ? 3 : 4});
    if (!out) c.type("out_dtype", DType::bfloat16);
    c.flag("fast_accumulation", true).flag("deterministic", false);
    if (out && masked) c.tensor("out", DType::bfloat16, {3, 10, 5});
    if (out && !masked) c.tensor("out", DType::bfloat16, {10, 5});
  } else if (name == "moe_gather_quantize") {
    c.tensor("x", DType::bfloat16, {6, 8}).tensor("source_row", DType::int32, {4}).none("scale").none("row_weights");
    c.number("group_size", 0).type("dtype", DType::int8);
  } else if (name == "moe_combine") {
    c.tensor("y", DType::bfloat16, {10, 5}).tensor("slot", DType::int32, {6, 2});
    c.tensor("topk_weights", DType::float32, {6, 2}).type("out_dtype", DType::bfloat16);
  } else if (name == "fused_moe") {
    c.tensor("x", DType::bfloat16, {6, 8}).tensor("w13", DType::int8, {3, 10, 8}).tensor("w2", DType::int8, {3, 8, 5});
    c.tensor("w13_scale", DType::float32, {3}).tensor("w2_scale", DType::float32, {3, 8});
    c.tensor("topk_weights", DType::float32, {6, 2}).tensor("topk_ids", DType::int64, {6, 2});
    c.none("expert_map").none("a1_scale").none("a2_scale").number("activation", 0);
    c.flag("apply_router_weight_on_input", false).flag("fast_accumulation", true).flag("deterministic", false);
  } else if (name == "cutlass_moe_mm") {
    c.tensor("out_tensors", DType::bfloat16, {10, 5}).tensor("a_tensors", DType::float8_e4m3fn, {10, 7});
    c.tensor("b_tensors", DType::float8_e4m3fn, {3, 5, 7});
    c.tensor("a_scales", DType::float32, {1, 1}).tensor("b_scales", DType::float32, {3, 1, 1});
    c.tensor("expert_offsets", DType::int64, {3}).tensor("problem_sizes", DType::int32, {3, 3});
    c.tensor("a_strides", DType::int64, {3})
        .tensor("b_strides", DType::int64, {3})
        .tensor("c_strides", DType::int64, {3});
    c.flag("per_act_token", false).flag("per_out_ch", false);
  } else if (name == "get_cutlass_moe_mm_data") {
    c.tensor("topk_ids", DType::int32, {6, 2}).tensor("expert_offsets", DType::int32, {4});
    c.tensor("problem_sizes1", DType::int32, {3, 3}).tensor("problem_sizes2", DType::int32, {3, 3});
    c.tensor("input_permutation", DType::int32, {12}).tensor("output_permutation", DType::int32, {6, 2});
    c.number("num_experts", 3).number("n", 5).number("k", 7).none("blockscale_offsets").flag("is_gated", true);
  } else if (name == "get_cutlass_moe_mm_problem_sizes_from_expert_offsets") {
    c.tensor("expert_first_token_offset", DType::int64, {4}).tensor("problem_sizes1", DType::int32, {3, 3});
    c.tensor("problem_sizes2", DType::int32, {3, 3}).number("n", 5).number("k", 7).flag("swap_ab", false);
  } else {
    c.tensor("expert_offsets", DType::int32, {3}).tensor("problem_sizes1", DType::int32, {3, 3});
    c.tensor("problem_sizes2", DType::int32, {3, 3}).tensor("expert_num_tokens", DType::int32, {3});
    c.number("num_local_experts", 3).number("padded_m", 4).number("n", 5).number("k", 7);
  }
  return c;
}

struct Rule {
  const char* rule;
  const char* operation;
  void (*breaks)(Call&);
  const char* message;
};

const Rule kMoeRules[] = {
    {"topk_ids dtype", "moe_route", [](Call& c) { c["topk_ids"].dtype = DType::int16; },
     "moe_route: expected topk_ids of dtype int32 or int64; got int16; fix: convert or quantize topk_ids "
     "to one of them."},
    {"topk_ids missing", "moe_route", [](Call& c) { c["topk_ids"].rank = -1; },
     "moe_route: expected a tensor for topk_ids; got None; fix: pass topk_ids."},
    {"topk_ids rank", "moe_route", [](Call& c) { c.set("topk_ids", DType::int32, {6}); },
     "moe_route: expected topk_ids of rank 2 [tokens, top_k]; got shape [6], strides [1]; fix: reshape "
     "topk_ids to [tokens, top_k]."},
    {"topk_ids on another kind of device", "moe_route", [](Call& c) { c["topk_ids"].device.type = DeviceType::other; },
     "moe_route: expected topk_ids on cpu or cuda; got a device of another kind; fix: move the tensors to "
     "one of them."},
    {"too many choices", "moe_route", [](Call& c) { c.set("topk_ids", DType::int32, {INT64_C(1) << 30, 2}); },
     "moe_route: expected topk_ids of less than 2^31 elements (rows are counted in int32); got shape "
     "[1073741824, 2], strides [2, 1]; fix: split the tokens."},
    {"experts below 0", "moe_route", [](Call& c) { c.integer("num_local_experts") = -1; },
     "moe_route: expected num_local_experts in [0, 2^31 - 1); got -1; fix: pass the number of experts on "
     "this rank."},
    {"experts beyond int32", "moe_route", [](Call& c) { c.integer("num_local_experts") = INT64_C(1) << 31; },
     "moe_route: expected num_local_experts in [0, 2^31 - 1); got 2147483648; fix: pass the number of "
     "experts on this rank."},
    {"experts of which one more is beyond int32", "moe_route",
     [](Call& c) { c.integer("num_local_experts") = (INT64_C(1) << 31) - 1; },
     "moe_route: expected num_local_experts in [0, 2^31 - 1); got 2147483647; fix: pass the number of "
     "experts on this rank."},
    {"expert_map dtype", "moe_route", [](Call& c) { c.set("expert_map", DType::float32, {8}); },
     "moe_route: expected expert_map of dtype int32 or int64; got float32; fix: convert or quantize "
     "expert_map to one of them."},
    {"expert_map rank", "moe_route", [](Call& c) { c.set("expert_map", DType::int32, {8, 1}); },
     "moe_route: expected expert_map of rank 1 [global experts]; got shape [8, 1], strides [1, 1]; fix: "
     "reshape expert_map to [global experts]."},
    {"expert_map elsewhere", "moe_route", [](Call& c) { c["expert_map"].device = {DeviceType::cuda, 0}; },
     "moe_route: expected expert_map on cpu like the first argument; got cuda:0; fix: move all tensors to "
     "one device."},
    {"expert_map outside its storage", "moe_route", [](Call& c) { c["expert_map"].storage_bytes = 31; },
     "moe_route: expected expert_map inside its storage (32 bytes from its first element); got 31 bytes "
     "left in the storage, shape [8], strides [1]; fix: do not resize the storage of a tensor in use, or "
     "pass a fresh one."},
    {"a dtype", "grouped_scaled_mm", [](Call& c) { c["a"].dtype = DType::bfloat16; },
     "grouped_scaled_mm: expected a of dtype int8 or float8_e4m3fn; got bfloat16; fix: convert or "
     "quantize a to one of them."},
    {"a rank", "grouped_scaled_mm", [](Call& c) { c.set("a", DType::int8, {7}); },
     "grouped_scaled_mm: expected a of rank 2 [rows, k]; got shape [7], strides [1]; fix: reshape a to "
     "[rows, k]."},
    {"a rows not contiguous", "grouped_scaled_mm", [](Call& c) { c.set("a", DType::int8, {10, 7}, {1, 10}); },
     "grouped_scaled_mm: expected a with contiguous rows (stride(1) == 1); got shape [10, 7], strides [1, "
     "10]; fix: pass a.contiguous()."},
    {"a requires grad", "grouped_scaled_mm", [](Call& c) { c["a"].requires_grad = true; },
     "grouped_scaled_mm: expected tensors without gradients (inference only); got a that requires grad; "
     "fix: call it under torch.no_grad(), or pass a.detach()."},
    {"int8 k limit", "grouped_scaled_mm",
     [](Call& c) {
       c.set("a", DType::int8, {10, 131072});
       c.set("b", DType::int8, {3, 131072, 5}, {655360, 1, 131072});
     },
     "grouped_scaled_mm: expected k of at most 131071 for int8 (the sum is exact in int32 up to there); "
     "got k = 131072; fix: split k and add the results, or use float8_e4m3fn."},
    {"b dtype", "grouped_scaled_mm", [](Call& c) { c["b"].dtype = DType::float8_e4m3fn; },
     "grouped_scaled_mm: expected b of dtype int8; got float8_e4m3fn; fix: pass b.to(torch.int8)."},
    {"b rank", "grouped_scaled_mm", [](Call& c) { c.set("b", DType::int8, {7, 5}, {1, 7}); },
     "grouped_scaled_mm: expected b of rank 3 [experts, k, n]; got shape [7, 5], strides [1, 7]; fix: "
     "reshape b to [experts, k, n]."},
    {"experts past int32", "grouped_scaled_mm",
     [](Call& c) { c.set("b", DType::int8, {kMostExperts, 7, 0}, {0, 1, 7}); },
     "grouped_scaled_mm: expected the experts of b in [0, 2^31 - 1); got 9223372036854775807; fix: pass the weights of "
     "the experts on this rank."},
    {"b rows", "grouped_scaled_mm", [](Call& c) { c.set("b", DType::int8, {3, 8, 5}, {40, 1, 8}); },
     "grouped_scaled_mm: expected b with as many rows an expert as a has columns (k = 7); got shape [3, "
     "8, 5], strides [40, 1, 8]; fix: pass weight.transpose(1, 2) of an [experts, n, k] weight with the "
     "same k as a."},
    {"b row-major", "grouped_scaled_mm", [](Call& c) { c.set("b", DType::int8, {3, 7, 5}); },
     "grouped_scaled_mm: expected b column-major for each expert (stride(1) == 1); got shape [3, 7, 5], "
     "strides [35, 5, 1]; fix: pass weight.transpose(1, 2) of a contiguous [experts, n, k] weight."},
    {"scale_a dtype", "grouped_scaled_mm", [](Call& c) { c.set("scale_a", DType::float64, {1}); },
     "grouped_scaled_mm: expected scale_a of dtype float32; got float64; fix: pass "
     "scale_a.to(torch.float32)."},
    {"scale_a shape", "grouped_scaled_mm", [](Call& c) { c.set("scale_a", DType::float32, {9}); },
     "grouped_scaled_mm: expected scale_a of 1 element (TensorWise), shape [10] or [10, 1] (RowWise); got "
     "shape [9], strides [1]; fix: pass a scale of one of these shapes (block scales are for "
     "float8_e4m3fn operands)."},
    {"scale_b shape", "grouped_scaled_mm", [](Call& c) { c.set("scale_b", DType::float32, {5}); },
     "grouped_scaled_mm: expected scale_b of shape [3], [3, 1] or [3, 1, 1] (TensorWise), [3, 5], [3, 1, "
     "5] or [3, 5, 1] (RowWise); got shape [5], strides [1]; fix: pass a scale of one of these shapes "
     "(block scales are for float8_e4m3fn operands)."},
    {"scale_b of too many ranks", "grouped_scaled_mm", [](Call& c) { c.set("scale_b", DType::float32, {3, 5, 1, 1}); },
     "grouped_scaled_mm: expected scale_b of shape [3], [3, 1] or [3, 1, 1] (TensorWise), [3, 5], [3, 1, "
     "5] or [3, 5, 1] (RowWise); got shape [3, 5, 1, 1], strides [5, 1, 1, 1]; fix: pass a scale of one "
     "of these shapes (block scales are for float8_e4m3fn operands)."},
    {"int8 in blocks", "grouped_scaled_mm",
     [](Call& c) {
       c.set("a", DType::int8, {10, 300});
       c.set("b", DType::int8, {3, 300, 200}, {60000, 1, 300});
       c.set("scale_a", DType::float32, {10, 3});
       c.set("scale_b", DType::float32, {3, 3, 2});
     },
     "grouped_scaled_mm: expected scale_a of 1 element (TensorWise), shape [10] or [10, 1] (RowWise); got "
     "shape [10, 3], strides [3, 1]; fix: pass a scale of one of these shapes (block scales are for "
     "float8_e4m3fn operands)."},
    {"blocks of one operand", "grouped_scaled_mm",
     [](Call& c) {
       c.set("a", DType::float8_e4m3fn, {10, 300});
       c.set("b", DType::float8_e4m3fn, {3, 300, 200}, {60000, 1, 300});
       c.set("scale_b", DType::float32, {3, 3, 2});
     },
     "grouped_scaled_mm: expected scale_a and scale_b both in blocks, or both TensorWise or RowWise; got "
     "scale_a of shape [1] with scale_b of shape [3, 3, 2]; fix: pass block scales for both operands or "
     "for none."},
    {"block scale_b transposed", "grouped_scaled_mm",
     [](Call& c) {
       c.set("a", DType::float8_e4m3fn, {10, 300});
       c.set("b", DType::float8_e4m3fn, {3, 300, 200}, {60000, 1, 300});
       c.set("scale_a", DType::float32, {10, 3});
       c.set("scale_b", DType::float32, {3, 2, 3});
     },
     "grouped_scaled_mm: expected scale_b of shape [3], [3, 1] or [3, 1, 1] (TensorWise), [3, 200], [3, "
     "1, 200] or [3, 200, 1] (RowWise) or [3, 3, 2] (BlockWise128x128); got shape [3, 2, 3], strides [6, "
     "3, 1]; fix: pass a scale of one of these shapes."},
    {"expert_offsets dtype", "grouped_scaled_mm", [](Call& c) { c["expert_offsets"].dtype = DType::float32; },
     "grouped_scaled_mm: expected expert_offsets of dtype int32 or int64; got float32; fix: convert or "
     "quantize expert_offsets to one of them."},
    {"expert_offsets length", "grouped_scaled_mm", [](Call& c) { c.set("expert_offsets", DType::int32, {3}); },
     "grouped_scaled_mm: expected expert_offsets of shape [4] ([experts + 1]); got shape [3], strides "
     "[1]; fix: pass expert_offsets with that many elements."},
    {"expert_offsets rank", "grouped_scaled_mm", [](Call& c) { c.set("expert_offsets", DType::int32, {4, 1}); },
     "grouped_scaled_mm: expected expert_offsets of shape [4] ([experts + 1]); got shape [4, 1], strides "
     "[1, 1]; fix: pass expert_offsets with that many elements."},
    {"out_dtype", "grouped_scaled_mm", [](Call& c) { c.integer("out_dtype") = static_cast<std::int64_t>(DType::int8); },
     "grouped_scaled_mm: expected out_dtype bfloat16, float16 or float32; got int8; fix: choose one of "
     "them."},
    {"out missing", "grouped_scaled_mm.out", [](Call& c) { c["out"].rank = -1; },
     "grouped_scaled_mm: expected a tensor for out; got None; fix: pass out."},
    {"out shape", "grouped_scaled_mm.out", [](Call& c) { c.set("out", DType::bfloat16, {10, 6}); },
     "grouped_scaled_mm: expected out of shape [10, 5] (rows, n); got shape [10, 6], strides [6, 1]; fix: "
     "pass out of that shape."},
    {"out rows not contiguous", "grouped_scaled_mm.out",
     [](Call& c) { c.set("out", DType::bfloat16, {10, 5}, {1, 10}); },
     "grouped_scaled_mm: expected out with contiguous rows (stride(1) == 1); got shape [10, 5], strides "
     "[1, 10]; fix: allocate out with torch.empty."},
    {"out rows shared", "grouped_scaled_mm.out", [](Call& c) { c.set("out", DType::bfloat16, {10, 5}, {4, 1}); },
     "grouped_scaled_mm: expected out whose rows do not share elements; got shape [10, 5], strides [4, "
     "1]; fix: allocate out with torch.empty."},
    {"out over a", "grouped_scaled_mm.out", [](Call& c) { c["out"].data = static_cast<const char*>(c["a"].data) + 68; },
     "grouped_scaled_mm: expected out that shares no byte with a; got out with shape [10, 5], strides [5, "
     "1] over a with shape [10, 7], strides [7, 1]; fix: pass a separate tensor for out."},
    {"out over expert_offsets", "grouped_scaled_mm.out", [](Call& c) { c["out"].data = c["expert_offsets"].data; },
     "grouped_scaled_mm: expected out that shares no byte with expert_offsets; got out with shape [10, "
     "5], strides [5, 1] over expert_offsets with shape [4], strides [1]; fix: pass a separate tensor for "
     "out."},
    {"masked a rank", "grouped_scaled_mm_masked", [](Call& c) { c.set("a", DType::int8, {10, 7}); },
     "grouped_scaled_mm_masked: expected a of rank 3 [experts, rows, k]; got shape [10, 7], strides [7, "
     "1]; fix: reshape a to [experts, rows, k]."},
    {"masked experts", "grouped_scaled_mm_masked", [](Call& c) { c.set("a", DType::int8, {4, 10, 7}); },
     "grouped_scaled_mm_masked: expected b with as many experts as a (4); got shape [3, 7, 5], strides "
     "[35, 1, 7]; fix: pass weight.transpose(1, 2) of an [experts, n, k] weight with the same experts as "
     "a."},
    {"masked scale_a", "grouped_scaled_mm_masked", [](Call& c) { c.set("scale_a", DType::float32, {10}); },
     "grouped_scaled_mm_masked: expected scale_a of 1 element (TensorWise), shape [3, 10] or [3, 10, 1] "
     "(RowWise); got shape [10], strides [1]; fix: pass a scale of one of these shapes (block scales are "
     "for float8_e4m3fn operands)."},
    {"masked block scale_a", "grouped_scaled_mm_masked",
     [](Call& c) {
       c.set("a", DType::float8_e4m3fn, {3, 10, 300});
       c.set("b", DType::float8_e4m3fn, {3, 300, 200}, {60000, 1, 300});
       c.set("scale_a", DType::float32, {10, 3});
       c.set("scale_b", DType::float32, {3, 3, 2});
     },
     "grouped_scaled_mm_masked: expected scale_a of 1 element (TensorWise), shape [3, 10] or [3, 10, 1] "
     "(RowWise) or [3, 10, 3] (BlockWise1x128); got shape [10, 3], strides [3, 1]; fix: pass a scale of "
     "one of these shapes."},
    {"rows_per_expert length", "grouped_scaled_mm_masked", [](Call& c) { c.set("rows_per_expert", DType::int32, {4}); },
     "grouped_scaled_mm_masked: expected rows_per_expert of shape [3] ([experts]); got shape [4], strides "
     "[1]; fix: pass rows_per_expert with that many elements."},
    {"masked out shape", "grouped_scaled_mm_masked.out", [](Call& c) { c.set("out", DType::bfloat16, {10, 5}); },
     "grouped_scaled_mm_masked: expected out of shape [3, 10, 5] (experts, rows, n); got shape [10, 5], "
     "strides [5, 1]; fix: pass out of that shape."},
    {"masked out experts shared", "grouped_scaled_mm_masked.out",
     [](Call& c) { c.set("out", DType::bfloat16, {3, 10, 5}, {45, 5, 1}); },
     "grouped_scaled_mm_masked: expected out whose rows do not share elements; got shape [3, 10, 5], "
     "strides [45, 5, 1]; fix: allocate out with torch.empty."},
    {"x dtype", "moe_gather_quantize", [](Call& c) { c["x"].dtype = DType::int8; },
     "moe_gather_quantize: expected x of dtype bfloat16, float16 or float32; got int8; fix: convert or "
     "quantize x to one of them."},
    {"x rank", "moe_gather_quantize", [](Call& c) { c.set("x", DType::bfloat16, {2, 6, 8}); },
     "moe_gather_quantize: expected x of rank 2 [tokens, k]; got shape [2, 6, 8], strides [48, 8, 1]; "
     "fix: reshape x to [tokens, k]."},
    {"source_row dtype", "moe_gather_quantize", [](Call& c) { c["source_row"].dtype = DType::int16; },
     "moe_gather_quantize: expected source_row of dtype int32 or int64; got int16; fix: convert or "
     "quantize source_row to one of them."},
    {"source_row rank", "moe_gather_quantize", [](Call& c) { c.set("source_row", DType::int32, {4, 1}); },
     "moe_gather_quantize: expected source_row of rank 1 [rows]; got shape [4, 1], strides [1, 1]; fix: "
     "reshape source_row to [rows]."},
    {"static scale of several", "moe_gather_quantize", [](Call& c) { c.set("scale", DType::float32, {4}); },
     "moe_gather_quantize: expected scale of 1 element (static); got shape [4], strides [1]; fix: pass "
     "one value, or None for dynamic scales."},
    {"row_weights length", "moe_gather_quantize", [](Call& c) { c.set("row_weights", DType::float32, {5}); },
     "moe_gather_quantize: expected row_weights of shape [4] ([rows]); got shape [5], strides [1]; fix: "
     "pass row_weights with that many elements."},
    {"row_weights dtype", "moe_gather_quantize", [](Call& c) { c.set("row_weights", DType::bfloat16, {4}); },
     "moe_gather_quantize: expected row_weights of dtype float32; got bfloat16; fix: pass "
     "row_weights.to(torch.float32)."},
    {"group_size below -1", "moe_gather_quantize", [](Call& c) { c.integer("group_size") = -2; },
     "moe_gather_quantize: expected group_size -1 (one scale), 0 (a scale a row) or more; got -2; fix: "
     "choose one of them."},
    {"groups with a static scale", "moe_gather_quantize",
     [](Call& c) {
       c.set("scale", DType::float32, {1});
       c.integer("group_size") = 4;
     },
     "moe_gather_quantize: expected group_size 0 or -1 with a static scale (it has 1 element); got 4; "
     "fix: pass 0, or scale=None."},
    {"weights with one dynamic scale", "moe_gather_quantize",
     [](Call& c) {
       c.set("row_weights", DType::float32, {4});
       c.integer("group_size") = -1;
     },
     "moe_gather_quantize: expected row_weights None with group_size -1 (its absmax sees every token, "
     "weighted or not); got a tensor; fix: weight x before, or choose group_size 0."},
    {"dtype", "moe_gather_quantize", [](Call& c) { c.integer("dtype") = static_cast<std::int64_t>(DType::uint8); },
     "moe_gather_quantize: expected dtype int8 or float8_e4m3fn; got uint8; fix: choose one of them."},
    {"y dtype", "moe_combine", [](Call& c) { c["y"].dtype = DType::int8; },
     "moe_combine: expected y of dtype bfloat16, float16 or float32; got int8; fix: convert or quantize y "
     "to one of them."},
    {"y rank", "moe_combine", [](Call& c) { c.set("y", DType::bfloat16, {10}); },
     "moe_combine: expected y of rank 2 [rows, n]; got shape [10], strides [1]; fix: reshape y to [rows, "
     "n]."},
    {"slot rank", "moe_combine", [](Call& c) { c.set("slot", DType::int32, {12}); },
     "moe_combine: expected slot of rank 2 [tokens, top_k]; got shape [12], strides [1]; fix: reshape "
     "slot to [tokens, top_k]."},
    {"topk_weights dtype", "moe_combine", [](Call& c) { c.set("topk_weights", DType::bfloat16, {6, 2}); },
     "moe_combine: expected topk_weights of dtype float32; got bfloat16; fix: pass "
     "topk_weights.to(torch.float32)."},
    {"topk_weights shape", "moe_combine", [](Call& c) { c.set("topk_weights", DType::float32, {2, 6}); },
     "moe_combine: expected topk_weights of shape [6, 2] (tokens, top_k); got shape [2, 6], strides [6, "
     "1]; fix: pass topk_weights of that shape."},
    {"combine out_dtype", "moe_combine", [](Call& c) { c.integer("out_dtype") = 99; },
     "moe_combine: expected out_dtype bfloat16, float16 or float32; got unknown; fix: choose one of them."},
    {"layer x dtype", "fused_moe", [](Call& c) { c["x"].dtype = DType::float64; },
     "fused_moe: expected x of dtype bfloat16, float16 or float32; got float64; fix: convert or quantize "
     "x to one of them."},
    {"w13 columns", "fused_moe", [](Call& c) { c.set("w13", DType::int8, {3, 10, 9}); },
     "fused_moe: expected w13 with as many columns as x (hidden = 8); got shape [3, 10, 9], strides [90, "
     "9, 1]; fix: pass the weight as stored, [experts, 2 * intermediate, hidden], gate rows first."},
    {"w13 rows not contiguous", "fused_moe", [](Call& c) { c.set("w13", DType::int8, {3, 10, 8}, {80, 1, 10}); },
     "fused_moe: expected w13 with contiguous rows (stride(2) == 1); got shape [3, 10, 8], strides [80, "
     "1, 10]; fix: pass w13.contiguous()."},
    {"w2 dtype", "fused_moe", [](Call& c) { c["w2"].dtype = DType::float8_e4m3fn; },
     "fused_moe: expected w2 of dtype int8; got float8_e4m3fn; fix: pass w2.to(torch.int8)."},
    {"w2 shape", "fused_moe", [](Call& c) { c.set("w2", DType::int8, {3, 8, 6}); },
     "fused_moe: expected w2 of shape [3, 8, 5] (gated) or [3, 8, 10] (not gated); got shape [3, 8, 6], "
     "strides [48, 6, 1]; fix: pass the weight as stored, [experts, hidden, intermediate]."},
    {"w13 of odd rows", "fused_moe", [](Call& c) { c.set("w13", DType::int8, {3, 11, 8}); },
     "fused_moe: expected w2 of shape [3, 8, 5] (gated) or [3, 8, 11] (not gated); got shape [3, 8, 5], "
     "strides [40, 5, 1]; fix: pass the weight as stored, [experts, hidden, intermediate]."},
    {"w13_scale shape", "fused_moe", [](Call& c) { c.set("w13_scale", DType::float32, {10}); },
     "fused_moe: expected w13_scale of shape [3] or [3, 1] (TensorWise), [3, 10] or [3, 10, 1] (RowWise); "
     "got shape [10], strides [1]; fix: pass a scale of one of these shapes (block scales are for "
     "float8_e4m3fn weights)."},
    {"w2_scale shape", "fused_moe", [](Call& c) { c.set("w2_scale", DType::float32, {3, 10}); },
     "fused_moe: expected w2_scale of shape [3] or [3, 1] (TensorWise), [3, 8] or [3, 8, 1] (RowWise); "
     "got shape [3, 10], strides [10, 1]; fix: pass a scale of one of these shapes (block scales are for "
     "float8_e4m3fn weights)."},
    {"fp8 w13_scale shape", "fused_moe",
     [](Call& c) {
       c["w13"].dtype = c["w2"].dtype = DType::float8_e4m3fn;
       c.set("w13_scale", DType::float32, {3, 1, 2});
     },
     "fused_moe: expected w13_scale of shape [3] or [3, 1] (TensorWise), [3, 10] or [3, 10, 1] (RowWise) "
     "or [3, 1, 1] (BlockWise128x128); got shape [3, 1, 2], strides [2, 2, 1]; fix: pass a scale of one "
     "of these shapes."},
    {"layer topk_weights rank", "fused_moe", [](Call& c) { c.set("topk_weights", DType::float32, {6}); },
     "fused_moe: expected topk_weights of rank 2 [tokens, top_k]; got shape [6], strides [1]; fix: "
     "reshape topk_weights to [tokens, top_k]."},
    {"layer topk_weights rows", "fused_moe", [](Call& c) { c.set("topk_weights", DType::float32, {5, 2}); },
     "fused_moe: expected topk_weights with a row for each row of x (6); got shape [5, 2], strides [2, "
     "1]; fix: pass one weight for each token and choice."},
    {"layer topk_ids shape", "fused_moe", [](Call& c) { c.set("topk_ids", DType::int32, {6, 3}); },
     "fused_moe: expected topk_ids of shape [6, 2] (tokens, top_k); got shape [6, 3], strides [3, 1]; "
     "fix: pass topk_ids of that shape."},
    {"a1_scale of several", "fused_moe", [](Call& c) { c.set("a1_scale", DType::float32, {6}); },
     "fused_moe: expected a1_scale of 1 element (static, TensorWise); got shape [6], strides [1]; fix: "
     "pass one value, or None for dynamic scales."},
    {"a2_scale with blocks", "fused_moe",
     [](Call& c) {
       c["w13"].dtype = c["w2"].dtype = DType::float8_e4m3fn;
       c.set("w2_scale", DType::float32, {3, 1, 1});
       c.set("a2_scale", DType::float32, {1});
     },
     "fused_moe: expected a2_scale None with block scales (they are dynamic, 1 x 128); got a tensor; fix: "
     "pass None."},
    {"activation", "fused_moe", [](Call& c) { c.integer("activation") = 3; },
     "fused_moe: expected activation 0 (silu), 1 (gelu) or 2 (relu squared); got 3; fix: choose one of "
     "them."},
    {"weights on the input", "fused_moe", [](Call& c) { c.integer("apply_router_weight_on_input") = 1; },
     "fused_moe: expected top_k 1 with apply_router_weight_on_input; got top_k 2; fix: apply the weights "
     "when combining (apply_router_weight_on_input=False)."},
    {"experts of a drop-in past int32", "cutlass_moe_mm",
     [](Call& c) { c.set("b_tensors", DType::float8_e4m3fn, {kMostExperts, 0, 7}, {0, 7, 1}); },
     "cutlass_moe_mm: expected the experts of b_tensors in [0, 2^31 - 1); got 9223372036854775807; fix: pass the "
     "weights "
     "of the experts on this rank."},
    {"a_tensors not dense", "cutlass_moe_mm",
     [](Call& c) { c.set("a_tensors", DType::float8_e4m3fn, {10, 7}, {8, 1}); },
     "cutlass_moe_mm: expected a_tensors contiguous (start rows count dense rows); got shape [10, 7], "
     "strides [8, 1]; fix: pass a_tensors.contiguous()."},
    {"out_tensors dtype", "cutlass_moe_mm", [](Call& c) { c["out_tensors"].dtype = DType::float32; },
     "cutlass_moe_mm: expected out_tensors of dtype bfloat16 or float16; got float32; fix: convert or "
     "quantize out_tensors to one of them."},
    {"out_tensors rows", "cutlass_moe_mm", [](Call& c) { c.set("out_tensors", DType::bfloat16, {9, 5}); },
     "cutlass_moe_mm: expected out_tensors with as many rows as a_tensors (10); got shape [9, 5], strides "
     "[5, 1]; fix: allocate it as torch.empty(a_tensors.size(0), n)."},
    {"out_tensors not dense", "cutlass_moe_mm", [](Call& c) { c.set("out_tensors", DType::bfloat16, {10, 5}, {6, 1}); },
     "cutlass_moe_mm: expected out_tensors contiguous (start rows count dense rows); got shape [10, 5], "
     "strides [6, 1]; fix: pass a contiguous tensor."},
    {"b_tensors shape", "cutlass_moe_mm", [](Call& c) { c.set("b_tensors", DType::float8_e4m3fn, {3, 5, 8}); },
     "cutlass_moe_mm: expected b_tensors contiguous of shape [3, 5, 7] ([experts, n, k]), or its "
     "transpose(1, 2); got shape [3, 5, 8], strides [40, 8, 1]; fix: pass the stored weight, or "
     "weight.transpose(1, 2)."},
    {"b_tensors not dense", "cutlass_moe_mm",
     [](Call& c) { c.set("b_tensors", DType::float8_e4m3fn, {3, 5, 7}, {40, 8, 1}); },
     "cutlass_moe_mm: expected b_tensors contiguous of shape [3, 5, 7] ([experts, n, k]), or its "
     "transpose(1, 2); got shape [3, 5, 7], strides [40, 8, 1]; fix: pass the stored weight, or "
     "weight.transpose(1, 2)."},
    {"a_scales a row", "cutlass_moe_mm", [](Call& c) { c.integer("per_act_token") = 1; },
     "cutlass_moe_mm: expected a_scales of 10 evenly spaced elements (per_act_token=True); got shape [1, "
     "1], strides [1, 1]; fix: pass one scale a row of a_tensors, or per_act_token=False."},
    {"a_scales for all", "cutlass_moe_mm", [](Call& c) { c.set("a_scales", DType::float32, {10}); },
     "cutlass_moe_mm: expected a_scales of 1 or 3 (an expert) evenly spaced elements "
     "(per_act_token=False); got shape [10], strides [1]; fix: pass one scale, one an expert, or "
     "per_act_token=True."},
    {"b_scales a channel", "cutlass_moe_mm", [](Call& c) { c.integer("per_out_ch") = 1; },
     "cutlass_moe_mm: expected b_scales of 15 evenly spaced elements (per_out_ch=True); got shape [3, 1, "
     "1], strides [1, 1, 1]; fix: pass one scale a column of each expert, or per_out_ch=False."},
    {"b_scales an expert", "cutlass_moe_mm", [](Call& c) { c.set("b_scales", DType::float32, {3, 5}); },
     "cutlass_moe_mm: expected b_scales of 3 evenly spaced elements (per_out_ch=False); got shape [3, 5], "
     "strides [5, 1]; fix: pass one scale an expert, or per_out_ch=True."},
    {"start rows", "cutlass_moe_mm", [](Call& c) { c.set("expert_offsets", DType::int64, {4}); },
     "cutlass_moe_mm: expected expert_offsets of shape [3] ([experts]); got shape [4], strides [1]; fix: "
     "pass expert_offsets with that many elements."},
    {"problem_sizes shape", "cutlass_moe_mm", [](Call& c) { c.set("problem_sizes", DType::int32, {3, 4}); },
     "cutlass_moe_mm: expected problem_sizes of shape [3, 3] (experts, 3); got shape [3, 4], strides [4, "
     "1]; fix: pass problem_sizes of that shape."},
    {"problem_sizes layout", "cutlass_moe_mm", [](Call& c) { c.set("problem_sizes", DType::int32, {3, 3}, {1, 3}); },
     "cutlass_moe_mm: expected problem_sizes contiguous; got shape [3, 3], strides [1, 3]; fix: pass "
     "problem_sizes.contiguous()."},
    {"a_strides dtype", "cutlass_moe_mm", [](Call& c) { c["a_strides"].dtype = DType::int32; },
     "cutlass_moe_mm: expected a_strides of dtype int64; got int32; fix: pass a_strides.to(torch.int64)."},
    {"b_strides length", "cutlass_moe_mm", [](Call& c) { c.set("b_strides", DType::int64, {2}); },
     "cutlass_moe_mm: expected b_strides of shape [3] ([experts]); got shape [2], strides [1]; fix: pass "
     "b_strides with that many elements."},
    {"out_tensors over b_tensors", "cutlass_moe_mm",
     [](Call& c) { c["out_tensors"].data = static_cast<const char*>(c["b_tensors"].data) + 104; },
     "cutlass_moe_mm: expected out_tensors that shares no byte with b_tensors; got out_tensors with shape "
     "[10, 5], strides [5, 1] over b_tensors with shape [3, 5, 7], strides [35, 7, 1]; fix: pass a "
     "separate tensor for out_tensors."},
    {"data topk_ids dtype", "get_cutlass_moe_mm_data", [](Call& c) { c["topk_ids"].dtype = DType::int64; },
     "get_cutlass_moe_mm_data: expected topk_ids of dtype int32; got int64; fix: pass "
     "topk_ids.to(torch.int32)."},
    {"data num_experts", "get_cutlass_moe_mm_data", [](Call& c) { c.integer("num_experts") = -1; },
     "get_cutlass_moe_mm_data: expected num_experts in [0, 2^31 - 1); got -1; fix: pass the number of "
     "experts."},
    {"data n", "get_cutlass_moe_mm_data", [](Call& c) { c.integer("n") = INT64_C(1) << 30; },
     "get_cutlass_moe_mm_data: expected n in [0, 1073741823]; got 1073741824; fix: pass the sizes of the "
     "weights."},
    {"data k", "get_cutlass_moe_mm_data", [](Call& c) { c.integer("k") = -1; },
     "get_cutlass_moe_mm_data: expected k in [0, 2147483647]; got -1; fix: pass the sizes of the weights."},
    {"data expert_offsets", "get_cutlass_moe_mm_data", [](Call& c) { c.set("expert_offsets", DType::int32, {3}); },
     "get_cutlass_moe_mm_data: expected expert_offsets contiguous, of 4 elements (experts + 1); got shape "
     "[3], strides [1]; fix: allocate it with torch.empty(..., dtype=torch.int32)."},
    {"data sizes", "get_cutlass_moe_mm_data", [](Call& c) { c.set("problem_sizes2", DType::int32, {3, 2}); },
     "get_cutlass_moe_mm_data: expected problem_sizes2 contiguous, of 9 elements (experts, 3); got shape "
     "[3, 2], strides [2, 1]; fix: allocate it with torch.empty(..., dtype=torch.int32)."},
    {"data permutation dtype", "get_cutlass_moe_mm_data", [](Call& c) { c["input_permutation"].dtype = DType::int64; },
     "get_cutlass_moe_mm_data: expected input_permutation of dtype int32; got int64; fix: pass "
     "input_permutation.to(torch.int32)."},
    {"data permutation not dense", "get_cutlass_moe_mm_data",
     [](Call& c) { c.set("output_permutation", DType::int32, {12}, {2}); },
     "get_cutlass_moe_mm_data: expected output_permutation contiguous, of 12 elements (tokens * top_k); "
     "got shape [12], strides [2]; fix: allocate it with torch.empty(..., dtype=torch.int32)."},
    {"data blockscale_offsets", "get_cutlass_moe_mm_data",
     [](Call& c) { c.set("blockscale_offsets", DType::int32, {3}); },
     "get_cutlass_moe_mm_data: expected blockscale_offsets contiguous, of 4 elements (experts + 1); got "
     "shape [3], strides [1]; fix: allocate it with torch.empty(..., dtype=torch.int32)."},
    {"data blockscale_offsets overflow", "get_cutlass_moe_mm_data",
     [](Call& c) {
       c.integer("num_experts") = INT64_C(1) << 24;
       c.set("expert_offsets", DType::int32, {(INT64_C(1) << 24) + 1});
       c.set("problem_sizes1", DType::int32, {INT64_C(1) << 24, 3});
       c.set("problem_sizes2", DType::int32, {INT64_C(1) << 24, 3});
       c.set("topk_ids", DType::int32, {INT64_C(1) << 24, 2});
       c.set("input_permutation", DType::int32, {INT64_C(1) << 25});
       c.set("output_permutation", DType::int32, {INT64_C(1) << 25});
       c.set("blockscale_offsets", DType::int32, {(INT64_C(1) << 24) + 1});
     },
     "get_cutlass_moe_mm_data: expected blockscale_offsets below 2^31 (tokens * top_k + 127 * "
     "num_experts); got [16777216, 2, 16777216]; fix: split the tokens."},
    {"data outputs over each other", "get_cutlass_moe_mm_data",
     [](Call& c) { c["problem_sizes2"].data = c["problem_sizes1"].data; },
     "get_cutlass_moe_mm_data: expected problem_sizes2 that shares no byte with problem_sizes1; got "
     "problem_sizes2 with shape [3, 3], strides [3, 1] over problem_sizes1 with shape [3, 3], strides [3, "
     "1]; fix: pass a separate tensor for problem_sizes2."},
    {"offsets dtype", "get_cutlass_moe_mm_problem_sizes_from_expert_offsets",
     [](Call& c) { c["expert_first_token_offset"].dtype = DType::int32; },
     "get_cutlass_moe_mm_problem_sizes_from_expert_offsets: expected expert_first_token_offset of dtype "
     "int64; got int32; fix: pass expert_first_token_offset.to(torch.int64)."},
    {"offsets empty", "get_cutlass_moe_mm_problem_sizes_from_expert_offsets",
     [](Call& c) { c.set("expert_first_token_offset", DType::int64, {0}); },
     "get_cutlass_moe_mm_problem_sizes_from_expert_offsets: expected expert_first_token_offset of at "
     "least 1 element (experts + 1); got shape [0], strides [1]; fix: pass [experts + 1]."},
    {"offsets sizes", "get_cutlass_moe_mm_problem_sizes_from_expert_offsets",
     [](Call& c) { c.set("problem_sizes1", DType::int32, {4, 3}); },
     "get_cutlass_moe_mm_problem_sizes_from_expert_offsets: expected problem_sizes1 contiguous, of 9 "
     "elements (experts, 3); got shape [4, 3], strides [3, 1]; fix: allocate it with torch.empty(..., "
     "dtype=torch.int32)."},
    {"batched rows", "get_cutlass_batched_moe_mm_data", [](Call& c) { c.integer("padded_m") = INT64_C(1) << 30; },
     "get_cutlass_batched_moe_mm_data: expected padded_m with 0 <= num_local_experts * padded_m < 2^31; "
     "got 1073741824; fix: pass the rows that each expert has room for."},
    {"batched counts", "get_cutlass_batched_moe_mm_data",
     [](Call& c) { c.set("expert_num_tokens", DType::int32, {4}); },
     "get_cutlass_batched_moe_mm_data: expected expert_num_tokens of 3 evenly spaced elements (experts); "
     "got shape [4], strides [1]; fix: pass expert_num_tokens with that many elements."},
    {"batched offsets", "get_cutlass_batched_moe_mm_data", [](Call& c) { c.set("expert_offsets", DType::int32, {4}); },
     "get_cutlass_batched_moe_mm_data: expected expert_offsets contiguous, of 3 elements (experts); got "
     "shape [4], strides [1]; fix: allocate it with torch.empty(..., dtype=torch.int32)."},
    {"batched over its input", "get_cutlass_batched_moe_mm_data",
     [](Call& c) { c["expert_offsets"].data = c["expert_num_tokens"].data; },
     "get_cutlass_batched_moe_mm_data: expected expert_offsets that shares no byte with "
     "expert_num_tokens; got expert_offsets with shape [3], strides [1] over expert_num_tokens with shape "
     "[3], strides [1]; fix: pass a separate tensor for expert_offsets."},
};

TEST(ValidateMoe, EveryRuleSaysExpectedGotFix) {
  for (const Rule& rule : kMoeRules) {
    Call call = good(rule.operation);
    EXPECT_EQ(call.error(), "") << "the good call of " << rule.operation;
    rule.breaks(call);
    EXPECT_EQ(call.error(), rule.message) << "rule: " << rule.rule;
  }
}

template <class Problem>
Problem accepted(const Call& call) {
  Prepared prepared;
  EXPECT_EQ(call.prepare(prepared), "");
  return std::get<Problem>(prepared.problem);
}

TEST(ValidateMoe, ScalesOfAnExpertInEveryShape) {
  struct Case {
    std::vector<std::int64_t> a, b;
    ScaleMode mode_a, mode_b;
    std::int64_t b_stride, b_k_stride, b_expert_stride;
  };
  const Case cases[] = {
      {{1}, {3}, ScaleMode::TensorWise, ScaleMode::TensorWise, 0, 0, 1},
      {{10}, {3, 1}, ScaleMode::RowWise, ScaleMode::TensorWise, 0, 0, 1},
      {{10, 1}, {3, 1, 1}, ScaleMode::RowWise, ScaleMode::TensorWise, 0, 0, 1},
      {{1, 1}, {3, 200}, ScaleMode::TensorWise, ScaleMode::RowWise, 1, 0, 200},
      {{10, 1}, {3, 1, 200}, ScaleMode::RowWise, ScaleMode::RowWise, 1, 0, 200},
      {{10}, {3, 200, 1}, ScaleMode::RowWise, ScaleMode::RowWise, 1, 0, 200},
      {{10, 3}, {3, 3, 2}, ScaleMode::BlockWise1x128, ScaleMode::BlockWise128x128, 1, 2, 6},
  };
  for (const Case& c : cases) {
    Call call = good("grouped_scaled_mm");
    call.set("a", DType::float8_e4m3fn, {10, 300});
    call.set("b", DType::float8_e4m3fn, {3, 300, 200}, {60000, 1, 300});
    call.set("scale_a", DType::float32, c.a);
    call.set("scale_b", DType::float32, c.b);
    const auto problem = accepted<GroupedGemmProblem>(call);
    EXPECT_EQ(problem.scale_a.mode, c.mode_a);
    EXPECT_EQ(problem.scale_b.mode, c.mode_b);
    EXPECT_EQ(problem.scale_b.outer_stride, c.b_stride);
    EXPECT_EQ(problem.scale_b.k_stride, c.b_k_stride);
    EXPECT_EQ(problem.scale_b_expert_stride, c.b_expert_stride);
    EXPECT_TRUE(problem.clear_unowned);
  }
}

TEST(ValidateMoe, ALayersScalesSayHowItsInputIsQuantized) {
  struct Case {
    std::vector<std::int64_t> scale;
    std::int64_t n;  // rows of w13
    ScaleMode mode;
  };
  const Case cases[] = {
      {{3}, 10, ScaleMode::TensorWise},
      {{3, 1}, 10, ScaleMode::TensorWise},
      {{3, 10}, 10, ScaleMode::RowWise},
      {{3, 10, 1}, 10, ScaleMode::RowWise},
      {{3, 1, 1}, 10, ScaleMode::BlockWise128x128},  // one block, though it has the value of one scale
      {{3, 2, 1}, 130, ScaleMode::BlockWise128x128},
      {{3, 1, 1}, 130, ScaleMode::TensorWise},
  };
  for (const Case& c : cases) {
    Call call = good("fused_moe");
    call.set("w13", DType::float8_e4m3fn, {3, c.n, 8});
    call.set("w2", DType::float8_e4m3fn, {3, 8, c.n / 2});
    call.set("w13_scale", DType::float32, c.scale);
    EXPECT_EQ(accepted<FusedMoeProblem>(call).w13.scale.mode, c.mode) << c.scale.size() << " ranks, n " << c.n;
  }
  Call one = good("fused_moe");  // a channel an expert: [e, 1] is one scale a row
  one.set("x", DType::bfloat16, {6, 1});
  one.set("w13", DType::int8, {3, 10, 1});
  one.set("w2", DType::int8, {3, 1, 5});
  one.set("w2_scale", DType::float32, {3, 1});
  EXPECT_EQ(accepted<FusedMoeProblem>(one).w2.scale.mode, ScaleMode::RowWise);
}

TEST(ValidateMoe, GatedIsReadFromTheWeights) {
  Call call = good("fused_moe");
  auto problem = accepted<FusedMoeProblem>(call);
  EXPECT_TRUE(problem.gated);
  EXPECT_EQ(problem.hidden(), 8);
  EXPECT_EQ(problem.intermediate(), 5);
  EXPECT_EQ(problem.route.experts, 3);
  call.set("w2", DType::int8, {3, 8, 10});
  problem = accepted<FusedMoeProblem>(call);
  EXPECT_FALSE(problem.gated);
  EXPECT_EQ(problem.intermediate(), 10);
}

TEST(ValidateMoe, DropinWeightsInBothOrientations) {
  Call call = good("cutlass_moe_mm");
  EXPECT_EQ(accepted<GroupedGemmProblem>(call).b_stride, 7);
  call.set("b_tensors", DType::float8_e4m3fn, {3, 7, 5}, {35, 1, 7});
  EXPECT_EQ(accepted<GroupedGemmProblem>(call).b_stride, 7);
  call.set("a_scales", DType::float32, {3});  // one an expert
  EXPECT_EQ(accepted<GroupedGemmProblem>(call).scale_a_expert_stride, 1);
  call.set("a_scales", DType::float32, {10, 1});
  call.set("b_scales", DType::float32, {3, 5});
  call.integer("per_act_token") = call.integer("per_out_ch") = 1;
  const auto problem = accepted<GroupedGemmProblem>(call);
  EXPECT_EQ(problem.scale_a.mode, ScaleMode::RowWise);
  EXPECT_EQ(problem.scale_a.outer_stride, 1);
  EXPECT_EQ(problem.scale_b.outer_stride, 1);
  EXPECT_EQ(problem.scale_b_expert_stride, 5);
}

TEST(ValidateMoe, SizesAreTransposedForFewRows) {
  struct Case {
    const char* operation;
    std::int64_t tokens_or_rows;
    bool blockscales, transposed;
  };
  const Case cases[] = {{"get_cutlass_moe_mm_data", 32, false, true},
                        {"get_cutlass_moe_mm_data", 33, false, false},
                        {"get_cutlass_moe_mm_data", 32, true, false},
                        {"get_cutlass_batched_moe_mm_data", 21, false, true},
                        {"get_cutlass_batched_moe_mm_data", 22, false, false}};
  for (const Case& c : cases) {
    Call call = good(c.operation);
    if (std::strcmp(c.operation, "get_cutlass_moe_mm_data") == 0) {
      call.set("topk_ids", DType::int32, {c.tokens_or_rows, 2});
      call.set("input_permutation", DType::int32, {c.tokens_or_rows * 2});
      call.set("output_permutation", DType::int32, {c.tokens_or_rows * 2});
      if (c.blockscales) call.set("blockscale_offsets", DType::int32, {4});
    } else {
      call.integer("padded_m") = c.tokens_or_rows;
    }
    EXPECT_EQ(accepted<MoeDataProblem>(call).transposed, c.transposed) << c.operation << " " << c.tokens_or_rows;
  }
  Call call = good("get_cutlass_moe_mm_problem_sizes_from_expert_offsets");
  EXPECT_FALSE(accepted<MoeDataProblem>(call).transposed);
  call.integer("swap_ab") = 1;
  EXPECT_TRUE(accepted<MoeDataProblem>(call).transposed);
  Call gate = good("get_cutlass_moe_mm_data");
  EXPECT_EQ(accepted<MoeDataProblem>(gate).n1, 10);
  gate.integer("is_gated") = 0;
  EXPECT_EQ(accepted<MoeDataProblem>(gate).n1, 5);
}

TEST(ValidateMoe, ResultsInTheOrderOfTheSchema) {
  Prepared prepared;
  EXPECT_EQ(good("moe_route").prepare(prepared), "");
  ASSERT_EQ(prepared.output_count, 3);
  EXPECT_EQ(prepared.outputs[0].sizes[0], 4);
  EXPECT_EQ(prepared.outputs[1].sizes[0], 12);
  EXPECT_EQ(prepared.outputs[2].rank, 2);
  std::int32_t memory[3];
  for (std::int32_t i = 0; i < 3; ++i) prepared.bind(i, memory + i);
  const auto& route = std::get<MoeRouteProblem>(prepared.problem);
  EXPECT_EQ(route.expert_offsets, memory);
  EXPECT_EQ(route.source_row, memory + 1);
  EXPECT_EQ(route.slot, memory + 2);

  Prepared gather;
  Call call = good("moe_gather_quantize");
  call.integer("group_size") = 3;
  EXPECT_EQ(call.prepare(gather), "");
  EXPECT_EQ(gather.outputs[1].sizes[0], 4);
  EXPECT_EQ(gather.outputs[1].sizes[1], 3);
}

TEST(ValidateMoe, GpusAndWhatTheyRun) {
  struct Expected {
    const char* name;
    const char* row;  // null: products, whose rows the architecture names
  };
  const Expected all[] = {{"moe_route", "cuda_moe_route"},
                          {"grouped_scaled_mm", nullptr},
                          {"grouped_scaled_mm_masked", nullptr},
                          {"moe_gather_quantize", "cuda_moe_gather_quantize"},
                          {"moe_combine", "cuda_moe_combine"},
                          {"fused_moe", nullptr},
                          {"cutlass_moe_mm", nullptr},
                          {"get_cutlass_moe_mm_data", "cuda_moe_data"},
                          {"get_cutlass_moe_mm_problem_sizes_from_expert_offsets", "cuda_moe_data"},
                          {"get_cutlass_batched_moe_mm_data", "cuda_moe_data"}};
  for (const char* architecture : {"sm75", "sm80", "sm90a", "sm120"})
    for (const Expected& expected : all) {
      DeviceFacts facts;
      ASSERT_TRUE(facts_named(architecture, facts));
      Prepared prepared;
      ASSERT_EQ(good(expected.name).prepare(prepared), "");
      Plan chosen;
      const Status status =
          std::visit([&](const auto& problem) { return plan(problem, facts, chosen); }, prepared.problem);
      EXPECT_EQ(status.text(), "") << expected.name << " on " << architecture;
      EXPECT_GE(chosen.row, 0);
      if (expected.row == nullptr) continue;
      EXPECT_STREQ(chosen.name, expected.row);
      EXPECT_EQ(chosen.workspace_bytes, 0);
    }
  EXPECT_EQ(dropin_supports_grouped(90), is_built(Architecture::sm90a));
  EXPECT_FALSE(dropin_supports_grouped(89) || dropin_supports_grouped(120) || dropin_supports_grouped(-1));
}

}  // namespace
}  // namespace evergemm
