// SPDX-License-Identifier: Apache-2.0
// Every rule of the validator by its whole message, and what must be accepted. Mirrors src/plan/validate_*.cpp.
#include "evergemm/validate.h"

#include <gtest/gtest.h>

#include <array>
#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

namespace evergemm {
namespace {

// Owns sizes, strides and bytes of a view.
class Tensor {
 public:
  Tensor() = default;
  Tensor(DType dtype, std::vector<std::int64_t> sizes) { set(dtype, sizes, contiguous(sizes)); }
  Tensor(DType dtype, std::vector<std::int64_t> sizes, std::vector<std::int64_t> strides) {
    set(dtype, sizes, strides);
  }

  static std::vector<std::int64_t> contiguous(const std::vector<std::int64_t>& sizes) {
    std::vector<std::int64_t> strides(sizes.size());
    std::int64_t stride = 1;
    for (std::size_t d = sizes.size(); d-- > 0;) {
      strides[d] = stride;
      stride *= std::max<std::int64_t>(sizes[d], 1);
    }
    return strides;
  }

  TensorView view() const {
    TensorView v;
    if (!given_) return v;
    v.data = bytes_->data() + byte_offset;
    v.dtype = dtype;
    v.device = device;
    v.rank = static_cast<std::int32_t>(sizes.size());
    v.sizes = sizes.data();
    v.strides = strides.data();
    v.storage_bytes = storage_bytes >= 0 ? storage_bytes : static_cast<std::int64_t>(bytes_->size()) - byte_offset;
    v.requires_grad = requires_grad;
    return v;
  }

  // The same storage seen in another way.
  Tensor alias(DType other_dtype, std::vector<std::int64_t> other_sizes, std::vector<std::int64_t> other_strides,
               std::int64_t offset) const {
    Tensor other = *this;
    other.dtype = other_dtype;
    other.sizes = std::move(other_sizes);
    other.strides = std::move(other_strides);
    other.byte_offset = offset;
    return other;
  }

  DType dtype = DType::float32;
  Device device{DeviceType::cpu, -1};
  std::vector<std::int64_t> sizes, strides;
  std::int64_t byte_offset = 0, storage_bytes = -1;
  bool requires_grad = false;

 private:
  void set(DType type, std::vector<std::int64_t> new_sizes, std::vector<std::int64_t> new_strides) {
    dtype = type;
    sizes = std::move(new_sizes);
    strides = std::move(new_strides);
    given_ = true;
    std::int64_t last = 1;
    for (std::size_t d = 0; d < sizes.size(); ++d) last += std::max<std::int64_t>(sizes[d] - 1, 0) * strides[d];
    bytes_ = std::make_shared<std::vector<std::max_align_t>>(
        static_cast<std::size_t>(last) * 8 / sizeof(std::max_align_t) + 8);
    byte_size_ = last * std::max<std::int64_t>(size_in_bytes(type), 1);
    storage_bytes = byte_size_;
  }
  struct Bytes {
    std::shared_ptr<std::vector<std::max_align_t>> owned;
    char* data() const { return reinterpret_cast<char*>(owned->data()); }
    std::size_t size() const { return owned->size() * sizeof(std::max_align_t); }
    const Bytes* operator->() const { return this; }
    Bytes& operator=(std::shared_ptr<std::vector<std::max_align_t>> p) {
      owned = std::move(p);
      return *this;
    }
  } bytes_;
  std::int64_t byte_size_ = 0;
  bool given_ = false;
};

// ---- scaled_mm -------------------------------------------------------------------------------------------------

struct Gemm {
  std::int64_t m = 3, n = 5, k = 7;
  DType input = DType::int8, output = DType::bfloat16;
  Tensor a{input, {m, k}}, b{input, {k, n}, {1, k}}, scale_a{DType::float32, {1}}, scale_b{DType::float32, {n}};
  Tensor azp_adj, azp, bias, out;
  bool dropin = false, has_azp = false;
  const char* name = "scaled_mm";

  Gemm() = default;
  Gemm(DType type, std::int64_t rows, std::int64_t columns, std::int64_t depth)
      : m(rows), n(columns), k(depth), input(type) {}

  std::string error(GemmProblem* result = nullptr) const {
    ScaledMmArguments arguments;
    arguments.operator_name = name;
    arguments.is_dropin = dropin;
    arguments.has_azp = has_azp;
    arguments.a = a.view();
    arguments.b = b.view();
    arguments.scale_a = scale_a.view();
    arguments.scale_b = scale_b.view();
    arguments.azp_adj = azp_adj.view();
    arguments.azp = azp.view();
    arguments.bias = bias.view();
    arguments.out = out.view();
    arguments.out_dtype = output;
    GemmProblem problem;
    const Status status = validate(arguments, problem);
    if (result != nullptr) *result = problem;
    return status.text();
  }
};

struct GemmRule {
  const char* rule;
  std::function<void(Gemm&)> breaks;
  const char* message;
};

const GemmRule kGemmRules[] = {
    {"missing tensor", [](Gemm& g) { g.scale_a = Tensor(); },
     "scaled_mm: expected a tensor for scale_a; got None; fix: pass scale_a."},
    {"gradient", [](Gemm& g) { g.b.requires_grad = true; },
     "scaled_mm: expected tensors without gradients (inference only); got b that requires grad; fix: call it under "
     "torch.no_grad(), or pass b.detach()."},
    {"dtype of a", [](Gemm& g) { g.a = Tensor(DType::bfloat16, {3, 7}); },
     "scaled_mm: expected a of dtype int8 or float8_e4m3fn; got bfloat16; fix: convert or quantize a to one of them."},
    {"unknown dtype", [](Gemm& g) { g.a.dtype = static_cast<DType>(99); },
     "scaled_mm: expected a of dtype int8 or float8_e4m3fn; got dtype code 99; fix: convert or quantize a to one of "
     "them."},
    {"device of a", [](Gemm& g) { g.a.device = {DeviceType::other, 0}; },
     "scaled_mm: expected a on cpu or cuda; got a device of another kind; fix: move the tensors to one of them."},
    {"rank of a", [](Gemm& g) { g.a = Tensor(DType::int8, {1, 3, 7}); },
     "scaled_mm: expected a of rank 2 [m, k]; got shape [1, 3, 7], strides [21, 7, 1]; fix: reshape a to [m, k]."},
    {"a row-major", [](Gemm& g) { g.a = Tensor(DType::int8, {3, 7}, {1, 3}); },
     "scaled_mm: expected a row-major (stride(1) == 1); got shape [3, 7], strides [1, 3]; fix: pass a.contiguous()."},
    {"int8 k limit",
     [](Gemm& g) {
       g.a = Tensor(DType::int8, {1, 131072});
       g.b = Tensor(DType::int8, {131072, 5}, {1, 131072});
     },
     "scaled_mm: expected k of at most 131071 for int8 (the sum is exact in int32 up to there); got k = 131072; fix: "
     "split "
     "k and add the results, or use float8_e4m3fn."},
    {"dtype of b", [](Gemm& g) { g.b.dtype = DType::float8_e4m3fn; },
     "scaled_mm: expected b of dtype int8; got float8_e4m3fn; fix: pass b.to(torch.int8)."},
    {"device of b", [](Gemm& g) { g.b.device = {DeviceType::cuda, 1}; },
     "scaled_mm: expected b on cpu like the first argument; got cuda:1; fix: move all tensors to one device."},
    {"k of b", [](Gemm& g) { g.b = Tensor(DType::int8, {6, 5}, {1, 6}); },
     "scaled_mm: expected b with as many rows as a has columns (k = 7); got shape [6, 5], strides [1, 6]; fix: pass "
     "weight.t() of an [n, k] weight with the same k as a."},
    {"b column-major", [](Gemm& g) { g.b = Tensor(DType::int8, {7, 5}); },
     "scaled_mm: expected b column-major (stride(0) == 1); got shape [7, 5], strides [5, 1]; fix: pass weight.t() of a "
     "contiguous [n, k] weight."},
    {"span of b", [](Gemm& g) { g.b.storage_bytes = 34; },
     "scaled_mm: expected b inside its storage (35 bytes from its first element); got 34 bytes left in the storage, "
     "shape "
     "[7, 5], strides [1, 7]; fix: do not resize the storage of a tensor in use, or pass a fresh one."},
    {"span of a scale", [](Gemm& g) { g.scale_b.storage_bytes = 16; },
     "scaled_mm: expected scale_b inside its storage (20 bytes from its first element); got 16 bytes left in the "
     "storage, "
     "shape [5], strides [1]; fix: do not resize the storage of a tensor in use, or pass a fresh one."},
    {"negative stride", [](Gemm& g) { g.a.strides[0] = -7; },
     "scaled_mm: expected a with sizes and strides >= 0; got shape [3, 7], strides [-7, 1]; fix: pass a tensor that "
     "torch "
     "could make."},
    {"overflowing span", [](Gemm& g) { g.a.strides[0] = INT64_MAX / 2 + 1; },
     "scaled_mm: expected a that spans less than 2^63 bytes; got shape [3, 7], strides [4611686018427387904, 1]; fix: "
     "pass "
     "a smaller tensor."},
    {"alignment", [](Gemm& g) { g.scale_b.byte_offset = 2; },
     "scaled_mm: expected scale_b aligned to its element (4 bytes); got an address that is 2 bytes off; fix: pass "
     "scale_b.clone()."},
    {"dtype of a scale", [](Gemm& g) { g.scale_a = Tensor(DType::float16, {1}); },
     "scaled_mm: expected scale_a of dtype float32; got float16; fix: pass scale_a.to(torch.float32)."},
    {"shape of scale_a", [](Gemm& g) { g.scale_a = Tensor(DType::float32, {2}); },
     "scaled_mm: expected scale_a of 1 element (TensorWise) or shape [3] or [3, 1] (RowWise); got shape [2], strides "
     "[1]; "
     "fix: pass a scale of one of these shapes (block scales are for float8_e4m3fn operands without zero points)."},
    {"row form of scale_a", [](Gemm& g) { g.scale_a = Tensor(DType::float32, {1, 3}); },
     "scaled_mm: expected scale_a of 1 element (TensorWise) or shape [3] or [3, 1] (RowWise); got shape [1, 3], "
     "strides "
     "[3, 1]; fix: pass a scale of one of these shapes (block scales are for float8_e4m3fn operands without zero "
     "points)."},
    {"shape of scale_b",
     [](Gemm& g) {
       g = Gemm(DType::float8_e4m3fn, 3, 300, 200);
       g.scale_b = Tensor(DType::float32, {3, 2});
     },
     "scaled_mm: expected scale_b of 1 element (TensorWise), shape [300], [1, 300] or [300, 1] (RowWise) or shape [2, "
     "3] "
     "(BlockWise128x128); got shape [3, 2], strides [2, 1]; fix: pass a scale of one of these shapes."},
    {"blocks for one operand",
     [](Gemm& g) {
       g = Gemm(DType::float8_e4m3fn, 3, 300, 200);
       g.scale_a = Tensor(DType::float32, {3, 2});
     },
     "scaled_mm: expected scale_a and scale_b both in blocks, or both TensorWise or RowWise; got scale_a of shape [3, "
     "2] "
     "with scale_b of shape [300]; fix: pass block scales for both operands or for none."},
    {"dtype of bias", [](Gemm& g) { g.bias = Tensor(DType::float32, {5}); },
     "scaled_mm: expected bias of dtype bfloat16; got float32; fix: pass bias.to(torch.bfloat16)."},
    {"shape of bias", [](Gemm& g) { g.bias = Tensor(DType::bfloat16, {1, 5}); },
     "scaled_mm: expected bias of shape [5] ([n]); got shape [1, 5], strides [5, 1]; fix: pass a vector with one value "
     "for "
     "each of the 5 columns of b."},
    {"out_dtype", [](Gemm& g) { g.output = DType::int8; },
     "scaled_mm: expected out_dtype bfloat16, float16 or float32; got int8; fix: choose one of them."},
    {"dtype of out", [](Gemm& g) { g.out = Tensor(DType::int32, {3, 5}); },
     "scaled_mm: expected out of dtype bfloat16, float16 or float32; got int32; fix: convert or quantize out to one of "
     "them."},
    {"shape of out", [](Gemm& g) { g.out = Tensor(DType::bfloat16, {5, 3}); },
     "scaled_mm: expected out of shape [3, 5]; got shape [5, 3], strides [3, 1]; fix: allocate out as torch.empty(m, "
     "n)."},
    {"out row-major", [](Gemm& g) { g.out = Tensor(DType::bfloat16, {3, 5}, {1, 3}); },
     "scaled_mm: expected out row-major (stride(1) == 1); got shape [3, 5], strides [1, 3]; fix: allocate out as "
     "torch.empty(m, n)."},
    {"out with shared rows", [](Gemm& g) { g.out = Tensor(DType::bfloat16, {3, 5}, {4, 1}); },
     "scaled_mm: expected out whose rows do not share elements (stride(0) >= 5); got shape [3, 5], strides [4, 1]; "
     "fix: "
     "allocate out as torch.empty(m, n)."},
    {"out over a",
     [](Gemm& g) {
       g.out = Tensor(DType::bfloat16, {3, 16});
       g.a = g.out.alias(DType::int8, {3, 7}, {32, 1}, 9);
       g.out = g.out.alias(DType::bfloat16, {3, 5}, {16, 1}, 0);
     },
     "scaled_mm: expected out that shares no byte with a; got out with shape [3, 5], strides [16, 1] over a with shape "
     "[3, "
     "7], strides [32, 1]; fix: pass a separate tensor for out."},
    {"azp_adj missing",
     [](Gemm& g) {
       g.has_azp = true;
       g.name = "scaled_mm_azp";
     },
     "scaled_mm_azp: expected a tensor for azp_adj; got None; fix: pass azp_adj."},
    {"azp is int8 only",
     [](Gemm& g) {
       g = Gemm(DType::float8_e4m3fn, 3, 5, 7);
       g.has_azp = true;
       g.name = "scaled_mm_azp";
     },
     "scaled_mm_azp: expected a of dtype int8; got float8_e4m3fn; fix: pass a.to(torch.int8)."},
    {"shape of azp_adj",
     [](Gemm& g) {
       g.has_azp = true;
       g.name = "scaled_mm_azp";
       g.azp_adj = Tensor(DType::int32, {4});
     },
     "scaled_mm_azp: expected azp_adj of shape [5] ([n]); got shape [4], strides [1]; fix: pass a vector with one "
     "value for "
     "each of the 5 columns of b."},
    {"numel of azp",
     [](Gemm& g) {
       g.has_azp = true;
       g.name = "scaled_mm_azp";
       g.azp_adj = Tensor(DType::int32, {5});
       g.azp = Tensor(DType::int32, {4, 1});
     },
     "scaled_mm_azp: expected azp of 3 evenly spaced elements (m); got shape [4, 1], strides [1, 1]; fix: pass a "
     "vector "
     "with one value for each of the 3 rows of a."},
    {"drop-in scale names",
     [](Gemm& g) {
       g.dropin = true;
       g.name = "cutlass_scaled_mm";
       g.out = Tensor(DType::bfloat16, {3, 5});
       g.scale_a = Tensor(DType::float32, {2});
     },
     "cutlass_scaled_mm: expected a_scales of 1 element (TensorWise) or 3 elements (RowWise); got shape [2], strides "
     "[1]; fix: pass a scale of one of these shapes (block scales are for float8_e4m3fn operands without zero "
     "points)."},
    {"drop-in out dtype",
     [](Gemm& g) {
       g.dropin = true;
       g.name = "cutlass_scaled_mm";
       g.out = Tensor(DType::float32, {3, 5});
     },
     "cutlass_scaled_mm: expected out of dtype bfloat16 or float16; got float32; fix: convert or quantize out to one "
     "of "
     "them."},
};

TEST(ValidateGemm, EveryRuleSaysExpectedGotFix) {
  for (const GemmRule& rule : kGemmRules) {
    Gemm gemm;
    rule.breaks(gemm);
    EXPECT_EQ(gemm.error(), rule.message) << "rule: " << rule.rule;
  }
}

TEST(ValidateGemm, ReadsTheModeFromTheShapes) {
  struct Case {
    std::vector<std::int64_t> a, b;
    ScaleMode mode_a, mode_b;
  };
  const Case cases[] = {
      {{}, {1, 1}, ScaleMode::TensorWise, ScaleMode::TensorWise},
      {{3}, {1}, ScaleMode::RowWise, ScaleMode::TensorWise},
      {{3, 1}, {1, 300}, ScaleMode::RowWise, ScaleMode::RowWise},
      {{1}, {300, 1}, ScaleMode::TensorWise, ScaleMode::RowWise},
      {{3, 2}, {2, 3}, ScaleMode::BlockWise1x128, ScaleMode::BlockWise128x128},
  };
  for (const Case& c : cases) {
    Gemm gemm(DType::float8_e4m3fn, 3, 300, 200);
    gemm.scale_a = Tensor(DType::float32, c.a);
    gemm.scale_b = Tensor(DType::float32, c.b);
    GemmProblem problem;
    EXPECT_EQ(gemm.error(&problem), "");
    EXPECT_EQ(problem.scale_a.mode, c.mode_a);
    EXPECT_EQ(problem.scale_b.mode, c.mode_b);
    EXPECT_EQ(problem.m, 3);
    EXPECT_EQ(problem.n, 300);
    EXPECT_EQ(problem.k, 200);
  }
}

TEST(ValidateGemm, KeepsRealStrides) {
  Gemm gemm(DType::float8_e4m3fn, 3, 300, 200);
  gemm.a = Tensor(DType::float8_e4m3fn, {3, 200}, {512, 1});
  gemm.b = Tensor(DType::float8_e4m3fn, {200, 300}, {1, 256});
  gemm.out = Tensor(DType::float32, {3, 300}, {301, 1});
  gemm.scale_a = Tensor(DType::float32, {3, 2}, {1, 4});
  gemm.scale_b = Tensor(DType::float32, {2, 3}, {1, 2});
  GemmProblem problem;
  ASSERT_EQ(gemm.error(&problem), "");
  EXPECT_EQ(problem.a_stride, 512);
  EXPECT_EQ(problem.b_stride, 256);
  EXPECT_EQ(problem.out_stride, 301);
  EXPECT_EQ(problem.scale_a.outer_stride, 1);
  EXPECT_EQ(problem.scale_a.k_stride, 4);
  EXPECT_EQ(problem.scale_b.outer_stride, 2);
  EXPECT_EQ(problem.scale_b.k_stride, 1);
}

TEST(ValidateGemm, AcceptsEmptyAndSingleDimensions) {
  for (std::int64_t m : {0, 1, 2})
    for (std::int64_t n : {0, 1, 2})
      for (std::int64_t k : {0, 1, 2}) {
        Gemm gemm(DType::int8, m, n, k);
        gemm.scale_b = Tensor(DType::float32, {1});
        EXPECT_EQ(gemm.error(), "") << m << " " << n << " " << k;
        // strides of dimensions of size <= 1 say nothing
        if (k <= 1) gemm.b = Tensor(DType::int8, {k, n}, {17, 1});
        EXPECT_EQ(gemm.error(), "") << m << " " << n << " " << k;
      }
}

TEST(ValidateGemm, StridesOfEmptyTensorsSayNothing) {
  Gemm gemm;  // numpy hands (0, 7) over with strides (0, 0)
  gemm.a = Tensor(DType::int8, {0, 7}, {0, 0});
  gemm.out = Tensor(DType::bfloat16, {0, 5}, {0, 0});
  EXPECT_EQ(gemm.error(), "");
  gemm = Gemm();
  gemm.b = Tensor(DType::int8, {7, 0}, {0, 0});
  gemm.scale_b = Tensor(DType::float32, {1});
  gemm.out = Tensor(DType::bfloat16, {3, 0}, {0, 0});
  EXPECT_EQ(gemm.error(), "");
}

TEST(ValidateGemm, OverlapIsJudgedByTheBytesAddressed) {
  // a in the left half of each row of one buffer, out in the right half: interleaved, nothing shared.
  const Tensor buffer(DType::int8, {3, 64});
  Gemm gemm;
  gemm.a = buffer.alias(DType::int8, {3, 7}, {64, 1}, 0);
  gemm.out = buffer.alias(DType::bfloat16, {3, 5}, {32, 1}, 8);
  EXPECT_EQ(gemm.error(), "");
  gemm.out = buffer.alias(DType::bfloat16, {3, 5}, {32, 1}, 6);
  EXPECT_NE(gemm.error().find("shares no byte with a"), std::string::npos);
  // rows of different pitch that meet once, in the last row
  gemm.a = buffer.alias(DType::int8, {3, 7}, {20, 1}, 0);       // 0-6, 20-26, 40-46
  gemm.out = buffer.alias(DType::bfloat16, {3, 5}, {8, 1}, 8);  // 8-17, 24-33, 40-49
  EXPECT_NE(gemm.error().find("shares no byte with a"), std::string::npos);
}

TEST(ValidateGemm, DropinJudgesScalesByNumel) {
  const std::vector<std::vector<std::int64_t>> forms_a = {{}, {1}, {1, 1}, {3}, {3, 1}, {1, 3}, {1, 3, 1}};
  const std::vector<std::vector<std::int64_t>> forms_b = {{}, {1}, {1, 1}, {5}, {5, 1}, {1, 5}};
  for (const auto& form_a : forms_a)
    for (const auto& form_b : forms_b) {
      Gemm gemm;
      gemm.dropin = true;
      gemm.name = "cutlass_scaled_mm";
      gemm.out = Tensor(DType::bfloat16, {3, 5});
      gemm.scale_a = Tensor(DType::float32, form_a);
      gemm.scale_b = Tensor(DType::float32, form_b);
      gemm.bias = Tensor(DType::bfloat16, {1, 5});
      EXPECT_EQ(gemm.error(), "");
    }
}

// ---- quantizers ------------------------------------------------------------------------------------------------

struct Quantize {
  QuantizeArguments arguments;
  Tensor x{DType::bfloat16, {3, 10}}, given_scale, bound, weight, residual, q, scale, azp;

  std::string error(QuantizeProblem* result = nullptr) {
    arguments.x = x.view();
    arguments.given_scale = given_scale.view();
    arguments.scale_upper_bound = bound.view();
    arguments.weight = weight.view();
    arguments.residual = residual.view();
    arguments.q = q.view();
    arguments.scale = scale.view();
    arguments.azp = azp.view();
    QuantizeProblem problem;
    const Status status = validate(arguments, problem);
    if (result != nullptr) *result = problem;
    return status.text();
  }
};

void make_dropin(Quantize& quantize, const char* name, bool packed) {
  quantize.arguments.operator_name = name;
  quantize.arguments.x_name = "input";
  quantize.arguments.scheme = packed ? QuantizeScheme::dropin_group_packed : QuantizeScheme::dropin_group;
  quantize.arguments.group_columns = 2;
  quantize.arguments.q_dtype = DType::float8_e4m3fn;
  quantize.arguments.q_min = -448;
  quantize.arguments.q_max = 448;
  quantize.q = Tensor(DType::float8_e4m3fn, {3, 10});
  quantize.scale = packed ? Tensor(DType::int32, {3, 2}, {1, 4}) : Tensor(DType::float32, {3, 5});
}

struct QuantizeRule {
  const char* rule;
  std::function<void(Quantize&)> breaks;
  const char* message;
};

const QuantizeRule kQuantizeRules[] = {
    {"dtype of x", [](Quantize& t) { t.x = Tensor(DType::float64, {3, 10}); },
     "quantize_per_tensor: expected x of dtype bfloat16, float16 or float32; got float64; fix: convert or quantize x "
     "to one "
     "of them."},
    {"rows of x", [](Quantize& t) { t.x = Tensor(DType::bfloat16, {3, 10}, {1, 3}); },
     "quantize_per_tensor: expected x whose rows are contiguous and evenly spaced; got shape [3, 10], strides [1, 3]; "
     "fix: "
     "pass x.contiguous()."},
    {"leading dimensions of x", [](Quantize& t) { t.x = Tensor(DType::bfloat16, {2, 3, 10}, {40, 12, 1}); },
     "quantize_per_tensor: expected x whose rows are contiguous and evenly spaced; got shape [2, 3, 10], strides [40, "
     "12, "
     "1]; fix: pass x.contiguous()."},
    {"rank of x",
     [](Quantize& t) {
       t.arguments.operator_name = "quantize_per_token";
       t.arguments.scheme = QuantizeScheme::per_row;
       t.x = Tensor(DType::bfloat16, {});
     },
     "quantize_per_token: expected x of rank 1 or more; got a scalar; fix: pass x.reshape(1, -1)."},
    {"dtype", [](Quantize& t) { t.arguments.q_dtype = DType::uint8; },
     "quantize_per_tensor: expected dtype int8 or float8_e4m3fn; got uint8; fix: choose one of them."},
    {"given scale",
     [](Quantize& t) {
       t.arguments.operator_name = "quantize_static";
       t.arguments.scheme = QuantizeScheme::with_given_scale;
       t.given_scale = Tensor(DType::float32, {4});
     },
     "quantize_static: expected scale of 1 element (TensorWise), shape [3] or [3, 1] (RowWise), [3, 1] "
     "(BlockWise1x128) or "
     "[1, 1] (BlockWise128x128); got shape [4], strides [1]; fix: pass a scale of one of these shapes."},
    {"group size",
     [](Quantize& t) {
       t.arguments.operator_name = "quantize_per_group";
       t.arguments.scheme = QuantizeScheme::per_block;
       t.arguments.group_columns = 0;
     },
     "quantize_per_group: expected group_size of at least 1; got 0; fix: pass 128."},
    {"block_n",
     [](Quantize& t) {
       t.arguments.operator_name = "quantize_per_block";
       t.arguments.x_name = "w";
       t.arguments.scheme = QuantizeScheme::per_block;
       t.arguments.group_rows = -1;
       t.arguments.group_columns = 4;
     },
     "quantize_per_block: expected block_n of at least 1; got -1; fix: pass 128."},
    {"block_k",
     [](Quantize& t) {
       t.arguments.operator_name = "quantize_per_block";
       t.arguments.x_name = "w";
       t.arguments.scheme = QuantizeScheme::per_block;
       t.arguments.group_rows = 2;
       t.arguments.group_columns = 0;
     },
     "quantize_per_block: expected block_k of at least 1; got 0; fix: pass 128."},
    {"rank of w",
     [](Quantize& t) {
       t.arguments.operator_name = "quantize_per_block";
       t.arguments.x_name = "w";
       t.arguments.scheme = QuantizeScheme::per_block;
       t.arguments.group_rows = 2;
       t.arguments.group_columns = 4;
       t.x = Tensor(DType::bfloat16, {2, 3, 10});
     },
     "quantize_per_block: expected w of rank 2 [n, k]; got shape [2, 3, 10], strides [30, 10, 1]; fix: reshape w to "
     "[n, "
     "k]."},
    {"activation",
     [](Quantize& t) {
       t.arguments.operator_name = "activate_and_quantize";
       t.arguments.scheme = QuantizeScheme::per_row;
       t.arguments.source = QuantizeSource::activation;
       t.arguments.activation = 3;
     },
     "activate_and_quantize: expected activation 0 (silu), 1 (gelu) or 2 (relu squared); got 3; fix: choose one of "
     "them."},
    {"odd halves",
     [](Quantize& t) {
       t.arguments.operator_name = "activate_and_quantize";
       t.arguments.scheme = QuantizeScheme::per_row;
       t.arguments.source = QuantizeSource::activation;
       t.arguments.gated = true;
       t.x = Tensor(DType::bfloat16, {3, 9});
     },
     "activate_and_quantize: expected an even last dimension of x (gate and up halves); got shape [3, 9], strides [9, "
     "1]; "
     "fix: pass x with both halves."},
    {"negative group of a fused quantizer",
     [](Quantize& t) {
       t.arguments.operator_name = "activate_and_quantize";
       t.arguments.scheme = QuantizeScheme::per_block;
       t.arguments.source = QuantizeSource::activation;
       t.arguments.group_columns = -1;
     },
     "activate_and_quantize: expected group_size of 0 (per token) or more; got -1; fix: pass 128."},
    {"weight",
     [](Quantize& t) {
       t.arguments.operator_name = "rms_norm_quantize";
       t.arguments.scheme = QuantizeScheme::per_row;
       t.arguments.source = QuantizeSource::rms_norm;
       t.weight = Tensor(DType::bfloat16, {9});
     },
     "rms_norm_quantize: expected weight of shape [10]; got shape [9], strides [1]; fix: pass one value for each "
     "column of "
     "x."},
    {"residual over x",
     [](Quantize& t) {
       t.arguments.operator_name = "rms_norm_quantize";
       t.arguments.scheme = QuantizeScheme::per_row;
       t.arguments.source = QuantizeSource::rms_norm;
       t.weight = Tensor(DType::bfloat16, {10});
       t.residual = t.x;
     },
     "rms_norm_quantize: expected residual that shares no byte with x; got residual with shape [3, 10], strides [10, "
     "1] "
     "over x with shape [3, 10], strides [10, 1]; fix: pass a separate tensor for residual."},
    {"shape of residual",
     [](Quantize& t) {
       t.arguments.operator_name = "rms_norm_quantize";
       t.arguments.scheme = QuantizeScheme::per_row;
       t.arguments.source = QuantizeSource::rms_norm;
       t.weight = Tensor(DType::bfloat16, {10});
       t.residual = Tensor(DType::bfloat16, {3, 9});
     },
     "rms_norm_quantize: expected residual of the shape of x (last dimension 10); got shape [3, 9], strides [9, 1]; "
     "fix: "
     "allocate residual with that shape."},
    {"scale_upper_bound",
     [](Quantize& t) {
       t.arguments.operator_name = "quantize_per_token";
       t.arguments.scheme = QuantizeScheme::per_row;
       t.bound = Tensor(DType::float32, {2});
     },
     "quantize_per_token: expected scale_upper_bound of 1 element; got shape [2], strides [1]; fix: pass a scalar "
     "tensor."},
    {"out_q dtype",
     [](Quantize& t) {
       t.arguments.operator_name = "quantize_per_token_asymmetric";
       t.arguments.scheme = QuantizeScheme::per_row_asymmetric;
       t.q = Tensor(DType::float8_e4m3fn, {3, 10});
     },
     "quantize_per_token_asymmetric: expected out_q of dtype int8; got float8_e4m3fn; fix: pass out_q.to(torch.int8)."},
    {"out_q shape", [](Quantize& t) { t.q = Tensor(DType::int8, {3, 9}); },
     "quantize_per_tensor: expected out_q of the shape of x (last dimension 10); got shape [3, 9], strides [9, 1]; "
     "fix: "
     "allocate out_q with that shape."},
    {"out_q shared rows", [](Quantize& t) { t.q = Tensor(DType::int8, {3, 10}, {5, 1}); },
     "quantize_per_tensor: expected out_q whose rows do not share elements; got shape [3, 10], strides [5, 1]; fix: "
     "pass "
     "out_q.contiguous()."},
    {"out_scale missing", [](Quantize& t) { t.q = Tensor(DType::int8, {3, 10}); },
     "quantize_per_tensor: expected a tensor for out_scale; got None; fix: pass out_scale."},
    {"out_scale numel",
     [](Quantize& t) {
       t.q = Tensor(DType::int8, {3, 10});
       t.scale = Tensor(DType::float32, {2});
     },
     "quantize_per_tensor: expected out_scale of 1 element; got shape [2], strides [1]; fix: allocate it as "
     "torch.empty(1)."},
    {"out_scale rows",
     [](Quantize& t) {
       t.arguments.operator_name = "quantize_per_token";
       t.arguments.scheme = QuantizeScheme::per_row;
       t.q = Tensor(DType::int8, {3, 10});
       t.scale = Tensor(DType::float32, {2});
     },
     "quantize_per_token: expected out_scale of 3 evenly spaced elements; got shape [2], strides [1]; fix: allocate it "
     "as "
     "torch.empty(3, 1, dtype=torch.float32)."},
    {"out_scale grid",
     [](Quantize& t) {
       t.arguments.operator_name = "quantize_per_group";
       t.arguments.scheme = QuantizeScheme::per_block;
       t.arguments.group_columns = 4;
       t.q = Tensor(DType::int8, {3, 10});
       t.scale = Tensor(DType::float32, {3, 2});
     },
     "quantize_per_group: expected out_scale of shape [3, 3]; got shape [3, 2], strides [2, 1]; fix: allocate it as "
     "torch.empty(3, 3, dtype=torch.float32)."},
    {"out_azp",
     [](Quantize& t) {
       t.arguments.operator_name = "quantize_per_token_asymmetric";
       t.arguments.scheme = QuantizeScheme::per_row_asymmetric;
       t.q = Tensor(DType::int8, {3, 10});
       t.scale = Tensor(DType::float32, {3, 1});
       t.azp = Tensor(DType::int32, {4});
     },
     "quantize_per_token_asymmetric: expected out_azp of 3 evenly spaced elements; got shape [4], strides [1]; fix: "
     "allocate it as torch.empty(m, 1, dtype=torch.int32)."},
    {"out_q over x",
     [](Quantize& t) {
       t.q = t.x.alias(DType::int8, {3, 10}, {10, 1}, 0);
       t.scale = Tensor(DType::float32, {1});
     },
     "quantize_per_tensor: expected out_q that shares no byte with x; got out_q with shape [3, 10], strides [10, 1] "
     "over x "
     "with shape [3, 10], strides [10, 1]; fix: pass a separate tensor for out_q."},
    {"drop-in input contiguous",
     [](Quantize& t) {
       make_dropin(t, "per_token_group_fp8_quant", false);
       t.x = Tensor(DType::bfloat16, {3, 10}, {12, 1});
     },
     "per_token_group_fp8_quant: expected input contiguous; got shape [3, 10], strides [12, 1]; fix: pass "
     "input.contiguous()."},
    {"drop-in group size",
     [](Quantize& t) {
       make_dropin(t, "per_token_group_fp8_quant", false);
       t.arguments.group_columns = 4;
     },
     "per_token_group_fp8_quant: expected group_size that divides the last dimension of input (10); got 4; fix: choose "
     "a "
     "divisor, usually 128."},
    {"drop-in q dtype",
     [](Quantize& t) {
       make_dropin(t, "per_token_group_fp8_quant", false);
       t.q = Tensor(DType::int8, {3, 10});
     },
     "per_token_group_fp8_quant: expected output_q of dtype float8_e4m3fn; got int8; fix: pass "
     "output_q.to(torch.float8_e4m3fn)."},
    {"drop-in q shape",
     [](Quantize& t) {
       make_dropin(t, "per_token_group_fp8_quant", false);
       t.q = Tensor(DType::float8_e4m3fn, {2, 10});
     },
     "per_token_group_fp8_quant: expected output_q of the shape of input; got shape [2, 10], strides [10, 1]; fix: "
     "allocate "
     "it as torch.empty_like(input, dtype=...)."},
    {"drop-in range",
     [](Quantize& t) {
       make_dropin(t, "per_token_group_fp8_quant", false);
       t.arguments.q_min = 500;
     },
     "per_token_group_fp8_quant: expected fp8_min < fp8_max; got 500.000000 and 448.000000; fix: pass -448 and 448."},
    {"packed strides",
     [](Quantize& t) {
       make_dropin(t, "per_token_group_fp8_quant_packed", true);
       t.scale = Tensor(DType::int32, {3, 2}, {1, 3});
     },
     "per_token_group_fp8_quant_packed: expected output_s_packed of shape [3, 2] and strides [1, 4]; got shape [3, 2], "
     "strides [1, 3]; fix: allocate it as torch.empty_strided(shape, strides, dtype=torch.int32)."},
};

TEST(ValidateQuantize, EveryRuleSaysExpectedGotFix) {
  for (const QuantizeRule& rule : kQuantizeRules) {
    Quantize quantize;
    rule.breaks(quantize);
    EXPECT_EQ(quantize.error(), rule.message) << "rule: " << rule.rule;
  }
}

TEST(ValidateQuantize, MergesLeadingDimensions) {
  Quantize quantize;
  quantize.arguments.scheme = QuantizeScheme::per_row;
  quantize.x = Tensor(DType::float16, {2, 1, 3, 10}, {48, 7, 16, 1});
  QuantizeProblem problem;
  ASSERT_EQ(quantize.error(&problem), "");
  EXPECT_EQ(problem.rows, 6);
  EXPECT_EQ(problem.columns, 10);
  EXPECT_EQ(problem.x_stride, 16);
  EXPECT_EQ(problem.group_rows, 1);
  EXPECT_EQ(problem.group_columns, 10);
}

TEST(ValidateQuantize, GivenScaleOfEveryMode) {
  struct Case {
    std::vector<std::int64_t> shape;
    std::int64_t group_rows, group_columns;
  };
  for (const Case& c : {Case{{}, 300, 200}, Case{{300}, 1, 200}, Case{{300, 1}, 1, 200}, Case{{300, 2}, 1, 128},
                        Case{{3, 2}, 128, 128}}) {
    Quantize quantize;
    quantize.arguments.scheme = QuantizeScheme::with_given_scale;
    quantize.x = Tensor(DType::float32, {300, 200});
    quantize.given_scale = Tensor(DType::float32, c.shape);
    QuantizeProblem problem;
    ASSERT_EQ(quantize.error(&problem), "");
    EXPECT_EQ(problem.group_rows, c.group_rows);
    EXPECT_EQ(problem.group_columns, c.group_columns);
  }
}

TEST(ValidateQuantize, EmptyProblemsAreFine) {
  for (QuantizeScheme scheme :
       {QuantizeScheme::per_tensor, QuantizeScheme::per_row, QuantizeScheme::per_row_asymmetric}) {
    for (const std::vector<std::int64_t>& shape : {std::vector<std::int64_t>{0, 10}, {3, 0}, {0, 0}, {0}}) {
      Quantize quantize;
      quantize.arguments.scheme = scheme;
      quantize.x = Tensor(DType::bfloat16, shape, std::vector<std::int64_t>(shape.size(), 0));
      QuantizeProblem problem;
      EXPECT_EQ(quantize.error(&problem), "");
      quantize.x = Tensor(DType::bfloat16, shape);
      EXPECT_EQ(quantize.error(&problem), "");
      EXPECT_GE(problem.group_rows, 1);
      EXPECT_GE(problem.group_columns, 1);
    }
  }
}

// ---- quantized_linear --------------------------------------------------------------------------------------------

struct Linear {
  Tensor x{DType::bfloat16, {2, 3, 200}}, weight{DType::int8, {5, 200}}, weight_scale{DType::float32, {5, 1}};
  Tensor input_scale, azp_adj, bias;

  std::string error(LinearProblem* result = nullptr) const {
    LinearArguments arguments;
    arguments.x = x.view();
    arguments.weight = weight.view();
    arguments.weight_scale = weight_scale.view();
    arguments.input_scale = input_scale.view();
    arguments.azp_adj = azp_adj.view();
    arguments.bias = bias.view();
    LinearProblem problem;
    const Status status = validate(arguments, problem);
    if (result != nullptr) *result = problem;
    return status.text();
  }
};

void make_float8(Linear& t) { t.weight = Tensor(DType::float8_e4m3fn, {5, 200}); }

struct LinearRule {
  const char* rule;
  void (*break_it)(Linear&);
  const char* message;
};

const LinearRule kLinearRules[] = {
    {"dtype of x", [](Linear& t) { t.x = Tensor(DType::int8, {3, 200}); },
     "quantized_linear: expected x of dtype bfloat16, float16 or float32; got int8; fix: convert or quantize x to one "
     "of them."},
    {"rank of x", [](Linear& t) { t.x = Tensor(DType::float32, {}); },
     "quantized_linear: expected x of rank 1 or more ([..., k]); got shape [], strides []; fix: pass rows of "
     "features."},
    {"gradient of x", [](Linear& t) { t.x.requires_grad = true; },
     "quantized_linear: expected tensors without gradients (inference only); got x that requires grad; fix: call it "
     "under torch.no_grad(), or pass x.detach()."},
    {"dtype of weight", [](Linear& t) { t.weight = Tensor(DType::bfloat16, {5, 200}); },
     "quantized_linear: expected weight of dtype int8 or float8_e4m3fn; got bfloat16; fix: convert or quantize weight "
     "to one of them."},
    {"rank of weight", [](Linear& t) { t.weight = Tensor(DType::int8, {200}); },
     "quantized_linear: expected weight of rank 2 [n, k]; got shape [200], strides [1]; fix: reshape weight to [n, "
     "k]."},
    {"k of weight", [](Linear& t) { t.weight = Tensor(DType::int8, {5, 199}); },
     "quantized_linear: expected weight with as many columns as x has features (k = 200); got shape [5, 199], strides "
     "[199, 1]; fix: pass an [n, k] weight with the k of x."},
    {"layout of weight", [](Linear& t) { t.weight = Tensor(DType::int8, {5, 200}, {1, 5}); },
     "quantized_linear: expected weight row-major (stride(1) == 1); got shape [5, 200], strides [1, 5]; fix: pass "
     "weight.contiguous()."},
    {"k of int8",
     [](Linear& t) {
       t.x = Tensor(DType::bfloat16, {1, 131072});
       t.weight = Tensor(DType::int8, {1, 131072});
       t.weight_scale = Tensor(DType::float32, {1});
     },
     "quantized_linear: expected k of at most 131071 for int8 (the sum is exact in int32 up to there); got k = 131072; "
     "fix: split k and add the results, or use float8_e4m3fn."},
    {"dtype of weight_scale", [](Linear& t) { t.weight_scale = Tensor(DType::float16, {5, 1}); },
     "quantized_linear: expected weight_scale of dtype float32; got float16; fix: pass "
     "weight_scale.to(torch.float32)."},
    {"shape of weight_scale", [](Linear& t) { t.weight_scale = Tensor(DType::float32, {1, 2}); },
     "quantized_linear: expected weight_scale of 1 element, shape [5] or [5, 1]; got shape [1, 2], strides [2, 1]; "
     "fix: "
     "pass a scale of one of these shapes (blocks are for float8_e4m3fn without input_scale)."},
    {"shape of weight_scale of a float8 weight",
     [](Linear& t) {
       make_float8(t);
       t.weight_scale = Tensor(DType::float32, {2, 1});
     },
     "quantized_linear: expected weight_scale of 1 element, shape [5] or [5, 1] or [1, 2] (blocks of 128 x 128); got "
     "shape [2, 1], strides [1, 1]; fix: pass a scale of one of these shapes."},
    {"blocks with input_scale",
     [](Linear& t) {
       make_float8(t);
       t.weight_scale = Tensor(DType::float32, {1, 2});
       t.input_scale = Tensor(DType::float32, {1});
     },
     "quantized_linear: expected weight_scale of 1 element, shape [5] or [5, 1]; got shape [1, 2], strides [2, 1]; "
     "fix: "
     "pass a scale of one of these shapes (blocks are for float8_e4m3fn without input_scale)."},
    {"size of input_scale", [](Linear& t) { t.input_scale = Tensor(DType::float32, {6}); },
     "quantized_linear: expected input_scale of 1 element; got shape [6], strides [1]; fix: pass one scale, or none to "
     "quantize x dynamically."},
    {"shape of azp_adj", [](Linear& t) { t.azp_adj = Tensor(DType::int32, {6}); },
     "quantized_linear: expected azp_adj of shape [5] ([n]); got shape [6], strides [1]; fix: pass a vector with one "
     "value for each of the 5 rows of weight."},
    {"azp_adj of a float8 weight",
     [](Linear& t) {
       make_float8(t);
       t.azp_adj = Tensor(DType::int32, {5});
     },
     "quantized_linear: expected azp_adj only with an int8 weight and no input_scale; got a weight of float8_e4m3fn; "
     "fix: leave azp_adj away."},
    {"azp_adj with input_scale",
     [](Linear& t) {
       t.azp_adj = Tensor(DType::int32, {5});
       t.input_scale = Tensor(DType::float32, {1});
     },
     "quantized_linear: expected azp_adj only with an int8 weight and no input_scale; got a weight of int8 with "
     "input_scale; fix: leave azp_adj away."},
    {"dtype of bias", [](Linear& t) { t.bias = Tensor(DType::float16, {5}); },
     "quantized_linear: expected bias of dtype bfloat16; got float16; fix: pass bias.to(torch.bfloat16)."},
    {"shape of bias", [](Linear& t) { t.bias = Tensor(DType::bfloat16, {1, 5}); },
     "quantized_linear: expected bias of shape [5] ([n]); got shape [1, 5], strides [5, 1]; fix: pass a vector with "
     "one "
     "value for each of the 5 rows of weight."},
    {"device of bias", [](Linear& t) { (t.bias = Tensor(DType::bfloat16, {5})).device = {DeviceType::cuda, 1}; },
     "quantized_linear: expected bias on cpu like the first argument; got cuda:1; fix: move all tensors to one "
     "device."},
    {"rows of x", [](Linear& t) { t.x = Tensor(DType::bfloat16, {2, 3, 200}, {1000, 200, 1}); },
     "quantized_linear: expected x whose rows are contiguous and evenly spaced; got shape [2, 3, 200], strides [1000, "
     "200, 1]; fix: pass x.contiguous()."},
};

TEST(ValidateLinear, EveryRuleSaysExpectedGotFix) {
  EXPECT_EQ(Linear().error(), "");
  for (const LinearRule& rule : kLinearRules) {
    Linear linear;
    rule.break_it(linear);
    EXPECT_EQ(linear.error(), rule.message) << rule.rule;
  }
}

TEST(ValidateLinear, WhatIsGivenSaysHowXIsQuantized) {
  struct Case {
    void (*change)(Linear&);
    QuantizeScheme scheme;
    ScaleMode scale_a, scale_b;
  };
  const Case cases[] = {
      {[](Linear&) {}, QuantizeScheme::per_row, ScaleMode::RowWise, ScaleMode::RowWise},
      {[](Linear& t) { t.weight_scale = Tensor(DType::float32, {}); }, QuantizeScheme::per_row, ScaleMode::RowWise,
       ScaleMode::TensorWise},
      {[](Linear& t) { t.azp_adj = Tensor(DType::int32, {5}); }, QuantizeScheme::per_row_asymmetric, ScaleMode::RowWise,
       ScaleMode::RowWise},
      {[](Linear& t) { t.input_scale = Tensor(DType::float32, {1}); }, QuantizeScheme::with_given_scale,
       ScaleMode::TensorWise, ScaleMode::RowWise},
      {[](Linear& t) {
         make_float8(t);
         t.weight_scale = Tensor(DType::float32, {1, 2});
       },
       QuantizeScheme::per_block, ScaleMode::BlockWise1x128, ScaleMode::BlockWise128x128},
  };
  for (const Case& one : cases) {
    Linear linear;
    one.change(linear);
    LinearProblem problem;
    ASSERT_EQ(linear.error(&problem), "");
    EXPECT_EQ(problem.quantize.scheme, one.scheme);
    EXPECT_EQ(problem.product.scale_a.mode, one.scale_a);
    EXPECT_EQ(problem.product.scale_b.mode, one.scale_b);
    EXPECT_EQ(problem.product.m, 6);
    EXPECT_EQ(problem.product.k, 200);
    // What the quantizer writes is what the product reads, in 16-byte rows, one after the other, without an overlap.
    alignas(256) static char memory[1 << 14];
    const std::int64_t bytes = place(problem, memory);
    EXPECT_EQ(problem.product.a, problem.quantize.q);
    EXPECT_EQ(problem.product.a_stride, 208);
    EXPECT_EQ(problem.quantize.q_stride, 208);
    EXPECT_LE(bytes, static_cast<std::int64_t>(sizeof memory));
    EXPECT_LE(bytes, (problem.product.m + 4) * (2 * problem.product.k + 1024));  // what validate() has counted
    if (one.scheme != QuantizeScheme::with_given_scale) {
      EXPECT_EQ(problem.product.scale_a.data, problem.quantize.scale);
      EXPECT_GE(static_cast<const char*>(problem.quantize.scale), memory + 6 * 208);
      EXPECT_EQ(problem.quantize.scale_row_stride, 1);
      EXPECT_EQ(problem.quantize.scale_group_stride, problem.product.scale_a.k_stride);
    } else {
      EXPECT_EQ(problem.product.scale_a.data, static_cast<const float*>(linear.input_scale.view().data));
    }
    if (one.scheme == QuantizeScheme::per_row_asymmetric) {
      EXPECT_EQ(problem.product.azp, problem.quantize.azp);
      EXPECT_GE(reinterpret_cast<const char*>(problem.quantize.azp),
                static_cast<const char*>(problem.quantize.scale) + 24);
    }
  }
}

TEST(ValidateLinear, TheWorkspaceHoldsEveryTokensScalesAndZeroPoints) {
  Linear asymmetric, blocks;
  asymmetric.x = blocks.x = Tensor(DType::bfloat16, {1000, 200});
  asymmetric.azp_adj = Tensor(DType::int32, {5});
  make_float8(blocks);
  blocks.weight_scale = Tensor(DType::float32, {1, 2});
  for (const Linear* linear : {&asymmetric, &blocks}) {
    LinearProblem problem;
    ASSERT_EQ(linear->error(&problem), "");
    EXPECT_GE(place(problem, nullptr), 1000 * (208 + 8));  // a scale and a zero point a token, or two scales
    EXPECT_EQ(problem.product.scale_a.k_stride, linear == &blocks ? 1000 : 0);
  }
}

// ---- permute_cols ----------------------------------------------------------------------------------------------

TEST(ValidatePermute, EveryRuleSaysExpectedGotFix) {
  struct Case {
    Tensor a, perm;
    const char* message;
  };
  const Tensor good_a(DType::float16, {3, 4}), good_perm(DType::int32, {4});
  for (const Case& c : {
           Case{good_a, good_perm, ""},
           Case{Tensor(DType::float32, {3, 4}), good_perm,
                "permute_cols: expected A of dtype float16, bfloat16 or int16; got float32; fix: convert or quantize A "
                "to "
                "one of them."},
           Case{Tensor(DType::float16, {}), good_perm,
                "permute_cols: expected A of rank 1 or more; got a scalar; fix: pass a matrix."},
           Case{Tensor(DType::float16, {3, 4}, {5, 1}), good_perm,
                "permute_cols: expected A contiguous; got shape [3, 4], strides [5, 1]; fix: pass A.contiguous()."},
           Case{good_a, Tensor(DType::int64, {4}),
                "permute_cols: expected perm of dtype int32; got int64; fix: pass perm.to(torch.int32)."},
           Case{
               good_a, Tensor(DType::int32, {3}),
               "permute_cols: expected perm of 4 elements (one for each column of A); got shape [3], strides [1]; fix: "
               "pass a permutation of range(A.size(-1)) as int32."},
       }) {
    PermuteArguments arguments;
    arguments.a = c.a.view();
    arguments.perm = c.perm.view();
    PermuteProblem problem;
    EXPECT_EQ(validate(arguments, problem).text(), c.message);
  }
}

}  // namespace
}  // namespace evergemm
