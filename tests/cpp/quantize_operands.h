// SPDX-License-Identifier: Apache-2.0
// Operands for quantizer tests: a description (shape, scheme, source, types, strides, data) becomes a QuantizeProblem
// whose every array lies in a GuardedBuffer. The same data in every suite: what the reference was judged on, each
// kernel is. Must not go here: expected results.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "evergemm/problem.h"
#include "red_zones.h"

namespace evergemm::proof {

enum class Values : std::uint8_t {
  normal,        // as activations are
  all_codes,     // every bit pattern of a 16-bit type in turn, shuffled; random patterns of fp32; NaN and infinities
                 // included
  finite,        // the same without NaN and infinities
  one_nan,       // normal, and one NaN in the middle row
  one_infinity,  // normal, and one infinity in the middle row
  zeros,
  tiny,  // subnormals of the type
  huge,  // next to the largest finite value
};
inline constexpr Values kAllValues[] = {Values::normal,       Values::all_codes, Values::finite, Values::one_nan,
                                        Values::one_infinity, Values::zeros,     Values::tiny,   Values::huge};

struct QuantizeSetup {
  QuantizeScheme scheme = QuantizeScheme::per_row;
  QuantizeSource source = QuantizeSource::copy;
  std::int64_t rows = 0, columns = 0;
  std::int64_t group_rows = 1, group_columns = 0;  // per_block, dropin_*, with_given_scale; 0: all of the row
  DType x = DType::bfloat16, q = DType::int8;
  Values values = Values::normal;
  std::int64_t x_padding = 0, q_padding = 0, residual_padding = 0, weight_stride = 1;
  std::size_t byte_offset = 0;  // of q behind a page boundary; of x in elements
  bool column_major_scales = false, power_of_two_scales = false;
  bool has_upper_bound = false;
  float upper_bound = 1.5f;
  Activation activation = Activation::silu;
  bool gated = false;
  bool has_residual = false;
  float eps = 1e-6f;
  float q_min = -448, q_max = 448;  // dropin_*
  std::int64_t extra_q_rows = 0;    // dropin_group_packed
  std::vector<float> given_scales;  // with_given_scale: taken in turn
  std::uint64_t seed = 1;

  std::string text() const {
    std::ostringstream s;
    s << rows << "x" << columns << " scheme " << static_cast<int>(scheme) << " source " << static_cast<int>(source)
      << " groups " << group_rows << "x" << group_columns << " " << evergemm::name(x) << "->" << evergemm::name(q)
      << " values " << static_cast<int>(values) << " pads " << x_padding << "," << q_padding << "," << residual_padding
      << " weight stride " << weight_stride << " offset " << byte_offset << (column_major_scales ? " column-major" : "")
      << (power_of_two_scales ? " power-of-two" : "") << (has_upper_bound ? " bounded" : "") << " activation "
      << static_cast<int>(activation) << (gated ? " gated" : "") << (has_residual ? " residual" : "") << " seed "
      << seed;
    return s.str();
  }
};

class QuantizeOperands {
 public:
  explicit QuantizeOperands(const QuantizeSetup& setup) : setup_(setup), random_(setup.seed * 6271 + 5) {
    const std::int64_t rows = setup.rows, columns = setup.columns;
    const bool packed = setup.scheme == QuantizeScheme::dropin_group_packed;
    QuantizeProblem& p = problem_;
    p.scheme = setup.scheme;
    p.source = setup.source;
    p.rows = rows;
    p.columns = columns;
    p.x_dtype = setup.x;
    p.q_dtype = setup.q;
    p.activation = setup.activation;
    p.gated = setup.gated;
    p.eps = setup.eps;
    p.q_min = setup.q_min;
    p.q_max = setup.q_max;
    p.power_of_two_scales = setup.power_of_two_scales;
    // What validate() makes of each scheme.
    p.group_rows = setup.group_rows;
    p.group_columns = setup.group_columns == 0 ? columns : setup.group_columns;
    if (setup.scheme == QuantizeScheme::per_tensor) p.group_rows = rows;
    if (setup.scheme == QuantizeScheme::per_row || setup.scheme == QuantizeScheme::per_row_asymmetric) p.group_rows = 1;
    if (setup.scheme == QuantizeScheme::per_tensor || setup.scheme == QuantizeScheme::per_row ||
        setup.scheme == QuantizeScheme::per_row_asymmetric)
      p.group_columns = columns;
    p.group_rows = std::max<std::int64_t>(p.group_rows, 1);
    p.group_columns = std::max<std::int64_t>(p.group_columns, 1);

    const std::int64_t x_columns = setup.gated ? 2 * columns : columns;
    p.x_stride = x_columns + setup.x_padding;
    p.x = input(rows, x_columns, p.x_stride, setup.byte_offset, setup.values);
    if (setup.source == QuantizeSource::rms_norm) {
      p.weight_stride = setup.weight_stride;
      p.weight = input(columns, 1, p.weight_stride, 0, Values::normal);
    }
    if (setup.has_upper_bound) {
      inputs_.emplace_back(sizeof(float));
      *inputs_.back().as<float>() = setup.upper_bound;
      p.scale_upper_bound = inputs_.back().as<float>();
    }
    const bool one_a_row =
        setup.scheme == QuantizeScheme::per_row || setup.scheme == QuantizeScheme::per_row_asymmetric;
    const bool one = setup.scheme == QuantizeScheme::per_tensor;
    row_blocks_ = one ? 1 : (rows + p.group_rows - 1) / p.group_rows;
    column_blocks_ = one || one_a_row ? 1 : (columns + p.group_columns - 1) / p.group_columns;
    std::int64_t scales = row_blocks_ * column_blocks_;
    if (packed) {
      const std::int64_t words = (column_blocks_ + 3) / 4;
      p.scale_row_stride = 1;
      p.packed_columns_stride = (rows + 3) / 4 * 4;
      scales = words == 0 || rows == 0 ? 0 : rows + (words - 1) * p.packed_columns_stride;
    } else if (!one) {
      p.scale_row_stride = setup.column_major_scales ? 1 : column_blocks_;
      p.scale_group_stride = one_a_row ? 0 : setup.column_major_scales ? row_blocks_ : 1;
    }
    scale_ = std::make_unique<GuardedBuffer>(static_cast<std::size_t>(scales) * 4);
    p.scale = scale_->as<void>();
    if (setup.scheme == QuantizeScheme::with_given_scale) {
      for (std::int64_t i = 0; i < scales; ++i)
        scale_->as<float>()[i] = setup.given_scales[static_cast<std::size_t>(i) % setup.given_scales.size()];
      scale_->seal();
    }
    for (GuardedBuffer& buffer : inputs_) buffer.seal();

    if (setup.has_residual) {
      p.residual_stride = columns + setup.residual_padding;
      residual_ =
          std::make_unique<GuardedBuffer>(span(rows, columns, p.residual_stride) * static_cast<std::size_t>(size()));
      fill(residual_->as<unsigned char>(), rows, columns, p.residual_stride, Values::normal);
      p.residual = residual_->as<void>();
    }
    p.q_stride = columns + setup.q_padding;
    p.q_rows = rows + (packed ? setup.extra_q_rows : 0);
    q_ = std::make_unique<GuardedBuffer>(span(p.q_rows, columns, p.q_stride), setup.byte_offset);
    p.q = q_->as<void>();
    if (setup.scheme == QuantizeScheme::per_row_asymmetric) {
      p.azp_stride = 2;
      azp_ = std::make_unique<GuardedBuffer>(span(rows, 1, 2) * 4);
      p.azp = azp_->as<std::int32_t>();
    }
  }

  QuantizeProblem& problem() { return problem_; }
  const QuantizeSetup& setup() const { return setup_; }
  std::int64_t row_blocks() const { return row_blocks_; }
  std::int64_t column_blocks() const { return column_blocks_; }
  const GuardedBuffer& q() const { return *q_; }
  const GuardedBuffer& scale() const { return *scale_; }
  const GuardedBuffer* azp() const { return azp_.get(); }
  const GuardedBuffer* residual() const { return residual_.get(); }

  // "" where no input, no red zone and no byte between rows was written.
  std::string damage() const {
    for (const GuardedBuffer& buffer : inputs_)
      if (std::string text = buffer.damage(); !text.empty()) return "input: " + text;
    for (const GuardedBuffer* buffer : {scale_.get(), q_.get(), azp_.get(), residual_.get()})
      if (buffer != nullptr)
        if (std::string text = buffer->damage(); !text.empty()) return "output: " + text;
    const QuantizeProblem& p = problem_;
    std::string text = q_->gap_damage(static_cast<std::size_t>(p.q_rows), static_cast<std::size_t>(p.columns),
                                      static_cast<std::size_t>(p.q_stride));
    if (text.empty() && residual_)
      text = residual_->gap_damage(static_cast<std::size_t>(p.rows), static_cast<std::size_t>(p.columns * size()),
                                   static_cast<std::size_t>(p.residual_stride * size()));
    if (text.empty() && azp_) text = azp_->gap_damage(static_cast<std::size_t>(p.rows), 4, 8);
    return text;
  }
  // "" where every output of `other`, made from the same setup, has the same bytes, poisoned gaps included. (A NaN in a
  // residual may have other bits: compare those by value.)
  std::string difference(const QuantizeOperands& other) const {
    const auto differs = [](const GuardedBuffer& x, const GuardedBuffer& y) -> std::int64_t {
      for (std::size_t i = 0; i < x.bytes(); ++i)
        if (x.as()[i] != y.as()[i]) return static_cast<std::int64_t>(i);
      return -1;
    };
    if (const std::int64_t i = differs(*scale_, *other.scale_); i >= 0)
      return "scale " + std::to_string(i / 4) + " has bits " + std::to_string(scale_->as<std::uint32_t>()[i / 4]) +
             ", the other " + std::to_string(other.scale_->as<std::uint32_t>()[i / 4]);
    if (azp_)
      if (const std::int64_t i = differs(*azp_, *other.azp_); i >= 0) return "azp at byte " + std::to_string(i);
    if (const std::int64_t i = differs(*q_, *other.q_); i >= 0)
      return "q[" + std::to_string(i / problem_.q_stride) + ", " + std::to_string(i % problem_.q_stride) + "] is " +
             std::to_string(q_->as()[i]) + ", the other " + std::to_string(other.q_->as()[i]);
    return "";
  }

 private:
  static std::size_t span(std::int64_t rows, std::int64_t columns, std::int64_t stride) {
    return rows == 0 || columns == 0 ? 0 : static_cast<std::size_t>((rows - 1) * stride + columns);
  }
  std::int64_t size() const { return size_in_bytes(setup_.x); }

  const void* input(std::int64_t rows, std::int64_t columns, std::int64_t stride, std::size_t offset, Values values) {
    inputs_.emplace_back(span(rows, columns, stride) * static_cast<std::size_t>(size()),
                         offset * static_cast<std::size_t>(size()));
    fill(inputs_.back().as(), rows, columns, stride, values);
    return inputs_.back().as();
  }

  void fill(unsigned char* data, std::int64_t rows, std::int64_t columns, std::int64_t stride, Values values) {
    const bool wide = setup_.x == DType::float32;
    const std::uint32_t infinity = setup_.x == DType::float16 ? 0x7c00u : wide ? 0x7f800000u : 0x7f80u;
    const std::uint32_t sign = wide ? 0x80000000u : 0x8000u;
    const std::uint32_t smallest_normal = setup_.x == DType::float16 ? 0x400u : wide ? 0x00800000u : 0x80u;
    std::uint32_t counter = static_cast<std::uint32_t>(setup_.seed) * 7919u;
    for (std::int64_t i = 0; i < rows; ++i)
      for (std::int64_t j = 0; j < columns; ++j) {
        std::uint32_t bits = 0;
        const bool special = i == rows / 2 && j == columns / 3;
        switch (values) {
          case Values::all_codes:
          case Values::finite:
            do bits = wide ? static_cast<std::uint32_t>(random_()) : (counter++ * 40503u) & 0xffffu;  // odd: visits all
            while (values == Values::finite && (bits & (sign - 1)) >= infinity);
            break;
          case Values::zeros:
            bits = random_() % 2 != 0 ? sign : 0;
            break;
          case Values::tiny:
            bits = static_cast<std::uint32_t>(random_() % smallest_normal) | (random_() % 2 != 0 ? sign : 0);
            break;
          case Values::huge:
            bits = (infinity - 1 - static_cast<std::uint32_t>(random_() % 3)) | (random_() % 2 != 0 ? sign : 0);
            break;
          default:
            bits = bits_of(static_cast<float>(normal_(random_)));
            if (special && values == Values::one_nan) bits = infinity + 1 + static_cast<std::uint32_t>(random_() % 3);
            if (special && values == Values::one_infinity) bits = infinity | (setup_.seed % 2 != 0 ? sign : 0);
        }
        std::memcpy(data + (i * stride + j) * size(), &bits, static_cast<std::size_t>(size()));  // little-endian
      }
  }
  // The bits of a number of ordinary size in x's type, cut towards zero: data needs variety, not rounding.
  std::uint32_t bits_of(float value) const {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if (setup_.x == DType::float32) return bits;
    if (setup_.x == DType::bfloat16) return bits >> 16;
    const int exponent = static_cast<int>(bits >> 23 & 0xffu) - 112;
    if (exponent <= 0 || exponent >= 31) return bits >> 16 & 0x8000u;
    return (bits >> 16 & 0x8000u) | static_cast<std::uint32_t>(exponent) << 10 | (bits >> 13 & 0x3ffu);
  }

  QuantizeSetup setup_;
  std::mt19937_64 random_;
  std::normal_distribution<double> normal_{0.0, 2.0};
  QuantizeProblem problem_;
  std::int64_t row_blocks_ = 0, column_blocks_ = 0;
  std::vector<GuardedBuffer> inputs_;
  std::unique_ptr<GuardedBuffer> scale_, q_, azp_, residual_;
};

}  // namespace evergemm::proof
