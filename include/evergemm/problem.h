// SPDX-License-Identifier: Apache-2.0
// What is asked. A caller describes its tensors as TensorViews in an ...Arguments struct; validate() (validate.h) turns
// that into a plain ...Problem, the only thing that planner and kernels see. No framework type stands here.
//
// Letters: m rows of activations (tokens), n output features, k reduction.
#pragma once
#include <cstdint>

#include "evergemm/types.h"

namespace evergemm {

// A borrowed description of a strided tensor: it owns nothing, sizes and strides must outlive it.
struct TensorView {
  const void* data = nullptr;  // first element (storage offset applied); may be null where a size is 0
  DType dtype = DType::float32;
  Device device;
  std::int32_t rank = -1;                 // -1: the argument was not given (None)
  const std::int64_t* sizes = nullptr;    // [rank]
  const std::int64_t* strides = nullptr;  // [rank], in elements
  std::int64_t storage_bytes = -1;        // bytes from data to the end of its storage; -1: unknown, not checked
  bool requires_grad = false;             // only true where grad mode is on: these operators are inference only

  bool given() const { return rank >= 0; }
};

// A scale as kernels read it: element for output row or column i (in units of `mode`) and k-block j is
// data[i * outer_stride + j * k_stride]; TensorWise has both strides 0, RowWise k_stride 0.
struct Scale {
  ScaleMode mode = ScaleMode::TensorWise;
  const float* data = nullptr;
  std::int64_t outer_stride = 0;
  std::int64_t k_stride = 0;
};

// ---- dense GEMM ------------------------------------------------------------------------------------------------

struct ScaledMmArguments {
  const char* operator_name = "scaled_mm";  // opens every message
  bool is_dropin = false;  // cutlass_scaled_mm*: scales judged by numel, arguments called a_scales and b_scales
  bool has_azp = false;    // scaled_mm_azp, cutlass_scaled_mm_azp: azp_adj must be given
  TensorView a, b, scale_a, scale_b, azp_adj, azp, bias;
  TensorView out;                     // not given in the functional form
  DType out_dtype = DType::bfloat16;  // read only where out is not given
  bool fast_accumulation = true;
  bool deterministic = false;
};

// out = cast(scale_a * (scale_b * (a @ b - azp (x) azp_adj)) + bias); docs/numerics.md has the exact order.
struct GemmProblem {
  std::int64_t m = 0, n = 0, k = 0;
  DType input_dtype = DType::int8;       // int8 or float8_e4m3fn, of a and b
  DType output_dtype = DType::bfloat16;  // bfloat16, float16 or float32, of out and bias
  const void* a = nullptr;               // [m, k], element (i, l) at i * a_stride + l
  std::int64_t a_stride = 0;
  const void* b = nullptr;  // [k, n], column-major: element (l, j) at j * b_stride + l
  std::int64_t b_stride = 0;
  void* out = nullptr;  // [m, n], element (i, j) at i * out_stride + j
  std::int64_t out_stride = 0;
  Scale scale_a;               // [m] outer, TensorWise / RowWise / BlockWise1x128
  Scale scale_b;               // [n] outer (blocks: [n/128]), TensorWise / RowWise / BlockWise128x128
  const void* bias = nullptr;  // [n], output_dtype, or null
  std::int64_t bias_stride = 0;
  bool has_azp = false;
  const std::int32_t* azp_adj = nullptr;  // [n], sum over k of b, or that times a per-tensor zero point
  std::int64_t azp_adj_stride = 0;
  const std::int32_t* azp = nullptr;  // [m], or null: already folded into azp_adj
  std::int64_t azp_stride = 0;
  bool fast_accumulation = true;
  bool deterministic = false;
  Device device;

  bool blockwise() const { return scale_a.mode == ScaleMode::BlockWise1x128; }
};

// ---- quantizers ------------------------------------------------------------------------------------------------

enum class QuantizeScheme : std::uint8_t {
  per_tensor,           // one dynamic scale
  with_given_scale,     // scale is an input
  per_row,              // one dynamic scale a row
  per_row_asymmetric,   // int8, scale and zero point a row
  per_block,            // one dynamic scale for each group_rows x group_columns block (1 x g: per group)
  dropin_group,         // per_token_group_fp8_quant, per_token_group_quant_int8
  dropin_group_packed,  // per_token_group_fp8_quant_packed
};

// What produces the values that are quantized.
enum class QuantizeSource : std::uint8_t { copy, activation, rms_norm };

struct QuantizeArguments {
  const char* operator_name = "quantize_per_tensor";
  QuantizeScheme scheme = QuantizeScheme::per_tensor;
  QuantizeSource source = QuantizeSource::copy;
  TensorView x;
  const char* x_name = "x";      // as the operator's signature calls it
  TensorView given_scale;        // with_given_scale
  TensorView scale_upper_bound;  // per_row, optional
  TensorView weight;             // rms_norm: [columns], dtype of x
  TensorView residual;           // rms_norm, optional: added to x first, and the sum is stored back
  DType q_dtype = DType::int8;   // read only where q is not given
  TensorView q, scale, azp;      // outputs; not given in the functional form
  std::int64_t group_rows = 1;
  std::int64_t group_columns = 0;  // 0: the whole row
  bool column_major_scales = false;
  bool power_of_two_scales = false;
  std::int64_t activation = 0;
  bool gated = false;
  double eps = 0;
  double q_min = 0, q_max = 0;  // dropin_*
};

struct QuantizeProblem {
  QuantizeScheme scheme = QuantizeScheme::per_tensor;
  QuantizeSource source = QuantizeSource::copy;
  // q is [rows, columns]; x is [rows, columns], or [rows, 2 * columns] where a gated activation halves it.
  std::int64_t rows = 0, columns = 0;
  const void* x = nullptr;
  std::int64_t x_stride = 0;
  DType x_dtype = DType::bfloat16;  // bfloat16, float16 or float32; weight and residual have it too
  void* q = nullptr;
  std::int64_t q_stride = 0;
  DType q_dtype = DType::int8;  // int8 or float8_e4m3fn
  // Block (i, j) covers group_rows x group_columns elements; its scale is at i * scale_row_stride + j * scale_group_stride.
  // With dropin_group_packed `scale` is an int32 array and one word holds four exponents.
  void* scale = nullptr;  // output; for with_given_scale: a float32 input
  std::int64_t scale_row_stride = 0, scale_group_stride = 0;
  std::int64_t group_rows = 1, group_columns = 0;
  std::int32_t* azp = nullptr;  // [rows], per_row_asymmetric
  std::int64_t azp_stride = 0;
  const float* scale_upper_bound = nullptr;  // one value, limits absmax; or null
  bool power_of_two_scales = false;
  Activation activation = Activation::silu;
  bool gated = false;
  const void* weight = nullptr;  // [columns]
  std::int64_t weight_stride = 0;
  void* residual = nullptr;  // [rows, columns]
  std::int64_t residual_stride = 0;
  float eps = 0;
  float q_min = 0, q_max = 0;
  // dropin_group_packed: column c of scale words starts at c * packed_columns_stride (A = rows rounded up to 4); the words
  // of rows [rows, A) become 0 in every column but the last. q holds q_rows >= rows rows; those beyond `rows` become 0.
  std::int64_t packed_columns_stride = 0;
  std::int64_t q_rows = 0;
  Device device;
};

// ---- permute_cols ----------------------------------------------------------------------------------------------

struct PermuteArguments {
  const char* operator_name = "permute_cols";
  TensorView a, perm;
  TensorView out;  // never given today: the operator is functional
};

// out[i, j] = a[i, perm[j]], 16-bit elements. A perm value outside [0, columns) writes 0.
struct PermuteProblem {
  std::int64_t rows = 0, columns = 0;
  const std::uint16_t* a = nullptr;  // [rows, columns], contiguous
  const std::int32_t* perm = nullptr;
  std::int64_t perm_stride = 0;
  std::uint16_t* out = nullptr;  // [rows, columns], contiguous
  Device device;
};

}  // namespace evergemm
