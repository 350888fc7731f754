// SPDX-License-Identifier: Apache-2.0
// Operands for GEMM tests: a description (shape, types, scale modes, strides, data) becomes a GemmProblem whose every
// array lies in a GuardedBuffer. The same data in every suite: what the reference was judged on, each kernel is judged
// on. Must not go here: expected results (bound_checker.h), the shapes themselves (tests/cases.json).
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "evergemm/problem.h"
#include "red_zones.h"

namespace evergemm::proof {

enum class Data : std::uint8_t {
  exact,  // operands from {-1, 0, 1, 2}, scales powers of two that differ from row to row, column to column, block to
          // block, small integer biases: every intermediate is exact, so every bit of the result is known
  full_range,  // every code but NaN, alike
  normal,      // normally distributed, as quantized activations and weights are
  positive,    // all positive: accumulation errors add up
  one_huge,    // one product of the largest value among small ones, at another k in every row
  cancelling,  // the second half of k repeats the first with the opposite sign, one term apart
  subnormal,   // fp8 subnormals and the smallest normals
  extreme,     // only the largest magnitudes: +-448, -128 and 127
};
inline const char* name(Data data) {
  constexpr const char* kNames[] = {"exact",    "full_range", "normal",    "positive",
                                    "one_huge", "cancelling", "subnormal", "extreme"};
  return kNames[static_cast<int>(data)];
}
inline constexpr Data kAllData[] = {Data::exact,    Data::full_range, Data::normal,    Data::positive,
                                    Data::one_huge, Data::cancelling, Data::subnormal, Data::extreme};

enum class ZeroPoint : std::uint8_t { none, folded, per_row };

struct GemmSetup {
  std::int64_t m = 0, n = 0, k = 0;
  DType input = DType::int8, output = DType::bfloat16;
  ScaleMode scale_a = ScaleMode::RowWise, scale_b = ScaleMode::RowWise;
  bool bias = false;
  ZeroPoint zero_point = ZeroPoint::none;
  Data data = Data::full_range;
  std::int64_t a_padding = 0, b_padding = 0, out_padding = 0;  // elements between rows
  std::int64_t vector_stride = 1;                              // of bias, azp, azp_adj and RowWise scales
  bool transposed_scales = false;                              // block scales with the other dimension contiguous
  std::size_t byte_offset = 0;  // of a, b and out behind a page boundary; counted in elements for out
  std::uint64_t seed = 1;

  std::string text() const {
    std::ostringstream s;
    s << m << "x" << n << "x" << k << " " << evergemm::name(input) << "->" << evergemm::name(output) << " "
      << evergemm::name(scale_a) << "/" << evergemm::name(scale_b) << (bias ? " bias" : "")
      << (zero_point == ZeroPoint::none     ? ""
          : zero_point == ZeroPoint::folded ? " azp folded"
                                            : " azp")
      << " " << proof::name(data) << " pads " << a_padding << "," << b_padding << "," << out_padding
      << " vector stride " << vector_stride << (transposed_scales ? " transposed scales" : "") << " offset "
      << byte_offset << " seed " << seed;
    return s.str();
  }
};

inline std::uint8_t encode_float8_e4m3fn(double value) {  // nearest even, saturating; for making data only
  const double magnitude = std::min(std::fabs(value), 448.0);
  const int exponent = magnitude == 0 ? -6 : std::max(std::ilogb(magnitude), -6);
  const auto eighths = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 3 - exponent)));  // 0 .. 16
  const int code = eighths + (exponent + 6) * 8;  // the normal's leading 8 stands for one step of the exponent
  return static_cast<std::uint8_t>(code | (std::signbit(value) ? 0x80 : 0));
}

class GemmOperands {
 public:
  explicit GemmOperands(const GemmSetup& setup) : setup_(setup), random_(setup.seed * 7919 + 17) {
    const std::int64_t m = setup.m, n = setup.n, k = setup.k;
    problem_.m = m;
    problem_.n = n;
    problem_.k = k;
    problem_.input_dtype = setup.input;
    problem_.output_dtype = setup.output;
    problem_.a_stride = k + setup.a_padding;
    problem_.b_stride = k + setup.b_padding;
    problem_.out_stride = n + setup.out_padding;
    problem_.a = matrix(m, problem_.a_stride, false);
    problem_.b = matrix(n, problem_.b_stride, true);
    problem_.scale_a = scale(setup.scale_a, m, k, false);
    problem_.scale_b = scale(setup.scale_b, setup.scale_b == ScaleMode::BlockWise128x128 ? blocks(n) : n, k, true);
    if (setup.bias) {
      problem_.bias_stride = setup.vector_stride;
      problem_.bias = bias();
    }
    if (setup.zero_point != ZeroPoint::none) {
      problem_.has_azp = true;
      problem_.azp_adj_stride = setup.vector_stride;
      problem_.azp_adj = column_sums(setup.zero_point == ZeroPoint::folded ? 93 : 1);
      if (setup.zero_point == ZeroPoint::per_row) {
        problem_.azp_stride = setup.vector_stride;
        problem_.azp = zero_points();
      }
    }
    for (GuardedBuffer& input : inputs_) input.seal();
    const std::int64_t size = size_in_bytes(setup.output);
    out_ = std::make_unique<GuardedBuffer>(span(m, n, problem_.out_stride) * size,
                                           setup.byte_offset * static_cast<std::size_t>(size));
    problem_.out = out_->as<void>();
  }

  GemmProblem& problem() { return problem_; }
  const GemmSetup& setup() const { return setup_; }

  void poison_out() { out_->poison(); }
  // "" where no input, no red zone and no byte between the rows of out was written.
  std::string damage() const {
    for (const GuardedBuffer& input : inputs_)
      if (std::string text = input.damage(); !text.empty()) return "input: " + text;
    if (std::string text = out_->damage(); !text.empty()) return "out: " + text;
    const auto size = static_cast<std::size_t>(size_in_bytes(setup_.output));
    return out_->gap_damage(static_cast<std::size_t>(problem_.m), static_cast<std::size_t>(problem_.n) * size,
                            static_cast<std::size_t>(problem_.out_stride) * size);
  }

 private:
  static std::int64_t blocks(std::int64_t length) { return (length + kScaleBlock - 1) / kScaleBlock; }
  // Elements from the first to the last of a strided matrix: nothing behind its last row.
  static std::size_t span(std::int64_t rows, std::int64_t columns, std::int64_t stride) {
    return rows == 0 || columns == 0 ? 0 : static_cast<std::size_t>((rows - 1) * stride + columns);
  }
  template <class T>
  T* allocate(std::size_t elements, std::size_t offset = 0) {
    inputs_.emplace_back(elements * sizeof(T), offset);
    return inputs_.back().as<T>();
  }
  std::int64_t below(std::int64_t limit) {
    return static_cast<std::int64_t>(random_() % static_cast<std::uint64_t>(limit));
  }
  double gaussian() { return normal_(random_); }

  // One operand value; `row` and `l` matter for the adversarial kinds.
  double value(std::int64_t row, std::int64_t l, bool is_b) {
    const bool int8 = setup_.input == DType::int8;
    switch (setup_.data) {
      case Data::exact:
        return static_cast<double>(below(4) - 1);
      case Data::normal:
        return int8 ? gaussian() * 35 : gaussian() * 60;
      case Data::positive:
        return int8 ? 1 + static_cast<double>(below(127)) : 0.5 + static_cast<double>(below(400));
      case Data::one_huge:
        return l == (row * 37 + 11) % std::max<std::int64_t>(setup_.k, 1) || is_b ? (int8 ? -128 : 448)
                                                                                  : (int8 ? 1 : 0.0625);
      case Data::subnormal:
        return int8 ? static_cast<double>(below(3) - 1) : std::ldexp(static_cast<double>(below(33) - 16), -9);
      case Data::extreme:
        return int8 ? (below(4) != 0 ? -128 : 127) : (below(2) != 0 ? 448 : -448);
      default:  // full_range; cancelling starts from it
        return int8 ? static_cast<double>(below(256) - 128) : 0;
    }
  }

  const void* matrix(std::int64_t rows, std::int64_t stride, bool is_b) {
    auto* data = allocate<std::uint8_t>(span(rows, setup_.k, stride), setup_.byte_offset);
    const bool int8 = setup_.input == DType::int8;
    for (std::int64_t row = 0; row < rows; ++row)
      for (std::int64_t l = 0; l < setup_.k; ++l) {
        std::uint8_t& element = data[row * stride + l];
        const bool any_code = !int8 && (setup_.data == Data::full_range || setup_.data == Data::cancelling);
        if (any_code) {
          do element = static_cast<std::uint8_t>(below(256));
          while ((element & 0x7f) == 0x7f);
        } else if (int8) {
          const double rounded = std::nearbyint(std::clamp(value(row, l, is_b), -128.0, 127.0));
          element = static_cast<std::uint8_t>(static_cast<std::int8_t>(rounded));
        } else {
          element = encode_float8_e4m3fn(value(row, l, is_b));
        }
        const std::int64_t half = setup_.k / 2;
        if (setup_.data == Data::cancelling && l >= half && l < 2 * half - 1) {  // the last pair does not cancel
          const std::uint8_t mirrored = data[row * stride + l - half];
          if (is_b)
            element = mirrored;
          else
            element = int8 ? static_cast<std::uint8_t>(-static_cast<std::int8_t>(mirrored)) : mirrored ^ 0x80;
        }
      }
    return data;
  }

  // Powers of two where sums must be exact; random magnitudes, some negative, elsewhere.
  float scale_value(std::int64_t outer, std::int64_t block, bool is_b) {
    if (setup_.data == Data::exact)
      return std::ldexp(1.0f, static_cast<int>((outer * (is_b ? 3 : 2) + block * (is_b ? 1 : 4)) % 5) - 2);
    const float magnitude = 0.25f + static_cast<float>(below(1 << 20)) * 0x1p-20f;
    return (below(8) == 0 ? -magnitude : magnitude) * 0x1p-6f;
  }
  Scale scale(ScaleMode mode, std::int64_t outer, std::int64_t k, bool is_b) {
    const bool blockwise = mode == ScaleMode::BlockWise1x128 || mode == ScaleMode::BlockWise128x128;
    const std::int64_t values = mode == ScaleMode::TensorWise ? 1 : outer, depth = blockwise ? blocks(k) : 1;
    Scale result;
    result.mode = mode;
    if (blockwise) {
      result.outer_stride = setup_.transposed_scales ? 1 : depth;
      result.k_stride = setup_.transposed_scales ? values : 1;
    } else if (mode == ScaleMode::RowWise) {
      result.outer_stride = setup_.vector_stride;
    }
    const std::int64_t last = std::max<std::int64_t>(values - 1, 0) * result.outer_stride +
                              std::max<std::int64_t>(depth - 1, 0) * result.k_stride;
    auto* data = allocate<float>(values * depth == 0 ? 0 : static_cast<std::size_t>(last + 1));
    for (std::int64_t i = 0; i < values; ++i)
      for (std::int64_t j = 0; j < depth; ++j)
        data[i * result.outer_stride + j * result.k_stride] = scale_value(i, j, is_b);
    result.data = data;
    return result;
  }

  const void* bias() {
    const std::size_t elements =
        setup_.n == 0 ? 0 : static_cast<std::size_t>((setup_.n - 1) * setup_.vector_stride + 1);
    if (setup_.output == DType::float32) {
      auto* data = allocate<float>(elements);
      for (std::int64_t j = 0; j < setup_.n; ++j) data[j * setup_.vector_stride] = bias_value(j);
      return data;
    }
    auto* data = allocate<std::uint16_t>(elements);
    for (std::int64_t j = 0; j < setup_.n; ++j)
      data[j * setup_.vector_stride] = sixteen_bits(static_cast<double>(bias_value(j)));
    return data;
  }
  float bias_value(std::int64_t j) {
    if (setup_.data == Data::exact) return static_cast<float>((j % 7) - 3);
    return static_cast<float>(gaussian()) * 8;
  }
  // The 16-bit code towards zero from a value: data needs no rounding, only variety.
  std::uint16_t sixteen_bits(double value) const {
    const auto single = static_cast<float>(value);
    std::uint32_t bits;
    std::memcpy(&bits, &single, sizeof bits);
    if (setup_.output == DType::bfloat16) return static_cast<std::uint16_t>(bits >> 16);
    const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000u);
    const int exponent = static_cast<int>(bits >> 23 & 0xffu) - 112;
    if (exponent <= 0) return sign;
    return static_cast<std::uint16_t>(sign | exponent << 10 | (bits >> 13 & 0x3ffu));
  }

  const std::int32_t* column_sums(std::int32_t zero_point) {
    auto* sums =
        allocate<std::int32_t>(setup_.n == 0 ? 0 : static_cast<std::size_t>((setup_.n - 1) * setup_.vector_stride + 1));
    const auto* b = static_cast<const std::int8_t*>(problem_.b);
    for (std::int64_t j = 0; j < setup_.n; ++j) {
      std::int64_t sum = 0;
      for (std::int64_t l = 0; l < setup_.k; ++l) sum += b[j * problem_.b_stride + l];
      sums[j * setup_.vector_stride] = static_cast<std::int32_t>(static_cast<std::uint32_t>(sum * zero_point));
    }
    return sums;
  }
  const std::int32_t* zero_points() {
    auto* azp =
        allocate<std::int32_t>(setup_.m == 0 ? 0 : static_cast<std::size_t>((setup_.m - 1) * setup_.vector_stride + 1));
    for (std::int64_t i = 0; i < setup_.m; ++i)
      azp[i * setup_.vector_stride] = static_cast<std::int32_t>(i == 0 ? -128 : i == 1 ? 127 : below(256) - 128);
    return azp;
  }

  GemmSetup setup_;
  std::mt19937_64 random_;
  std::normal_distribution<double> normal_;
  GemmProblem problem_;
  std::vector<GuardedBuffer> inputs_;
  std::unique_ptr<GuardedBuffer> out_;
};

}  // namespace evergemm::proof
