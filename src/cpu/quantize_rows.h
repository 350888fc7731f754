// SPDX-License-Identifier: Apache-2.0
// Quantization of rows, written once over vectors of the width that an instruction set has. Each of
// quantize_portable.cpp, quantize_avx2.cpp and quantize_avx512.cpp includes it with its own Isa and hands the result to
// quantize_registry.cpp. Every operation is lane by lane or independent of order (a largest magnitude), except the sum
// of squares, whose order numerics.md fixes; so all widths give the bits of the reference. Everything stands in an
// unnamed namespace and no function of the standard library is called: a function that the linker shares between files
// would be kept from one of them and run on a processor without its instructions.
//
// An Isa has: kLanes; vectors Float and Int (kLanes of 32 bits), Short (2 * kLanes of 16 bits); loads and stores of
// kLanes or of `count` < kLanes elements (load32, load16 zero-extended, load_float16, store16, store8 of the low
// bytes); fma; least(x, y) = x < y ? x : y and most(x, y) = x > y ? x : y in each lane, so y where x is NaN; largest of
// all lanes.
#pragma once
#include <cstdint>

#include "cpu/quantize_kernel.h"
#include "evergemm/numerics.h"

namespace evergemm::cpu {
namespace {

struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};
struct Whole {};  // as a count: all lanes

constexpr std::int64_t kChunk = 512;   // values produced at a time, in L1
constexpr std::int64_t kKept = 16384;  // produced values kept from the first pass over a group to the second
constexpr std::uint32_t kInfinityBits = 0x7f800000u;

template <class Isa>
class Rows {
  using Float = typename Isa::Float;
  using Int = typename Isa::Int;
  using Short = typename Isa::Short;
  static constexpr std::int64_t kLanes = Isa::kLanes;

  // ---- vectors
  // ---------------------------------------------------------------------------------------------------------

  static Float splat(float value) { return value - Float{}; }
  static Int splat(std::int32_t value) { return value - Int{}; }
  static Int bits(Float x) { return reinterpret_cast<Int>(x); }
  static Float floats(Int x) { return reinterpret_cast<Float>(x); }
  static Float magnitude(Float x) { return floats(bits(x) & 0x7fffffff); }

  static Float load(const float* p, Whole) { return floats(Isa::load32(p)); }
  static Float load(const float* p, std::int64_t count) { return floats(Isa::load32(p, count)); }
  static Float load(const BFloat16* p, Whole) { return floats(Isa::load16(p) << 16); }
  static Float load(const BFloat16* p, std::int64_t count) { return floats(Isa::load16(p, count) << 16); }
  static Float load(const Float16* p, Whole) { return Isa::load_float16(p); }
  static Float load(const Float16* p, std::int64_t count) { return Isa::load_float16(p, count); }

  // Rounds to the element type: numerics.h's float_to_bfloat16 and float_to_float16, lane by lane.
  static Int rounded(Float x, const BFloat16*) {
    const Int b = bits(x);
    return x == x ? ((b + 0x7fff + ((b >> 16) & 1)) >> 16) & 0xffff : splat(0x7fc0);
  }
  static Int rounded(Float x, const Float16*) {
    const Int sign = (bits(x) >> 16) & 0x8000;
    const Int b = bits(x) & 0x7fffffff;
    const Int subnormal = bits(floats(b) + 0.5f) - 0x3f000000;
    const Int normal = (b + 0xfff + ((b >> 13) & 1) - (112 << 23)) >> 13;
    Int code = b < 0x38800000 ? subnormal : normal;
    code = b >= 0x477ff000 ? splat(0x7c00) : code;
    code = b > 0x7f800000 ? splat(0x7e00) : code;
    return code | sign;
  }
  template <class T, class Count>
  static void store(T* p, Float x, Count count) {
    Isa::store16(p, rounded(x, p), count);
  }
  template <class Count>
  static void store(float* p, Float x, Count count) {
    Isa::store32(p, bits(x), count);
  }

  // Calls step(j, Whole) for each whole vector of [0, count) and step(j, rest) for what is left.
  template <class Step>
  static void each(std::int64_t count, const Step& step) {
    std::int64_t j = 0;
    for (; j + kLanes <= count; j += kLanes) step(j, Whole());
    if (j < count) step(j, count - j);
  }

  // ---- one value -> one code
  // -------------------------------------------------------------------------------------------

  // A code is the low byte of its lane; what is above is not stored.

  static Float limited(Float x, float low, float high) { return Isa::least(Isa::most(x, splat(low)), splat(high)); }
  // Rounds |x| < 2^22 to the nearest integer, ties to even: 1.5 * 2^23 + x leaves no fraction bits. The integer stands
  // in the low bits of the sum, whose own last 22 bits are 0.
  static Int rounded_low_bits(Float x) { return bits(x + 12582912.0f); }
  static constexpr std::int32_t kRoundingBits = 0x4b400000;  // of 1.5 * 2^23

  static Int to_int8(Float quotient) {  // sat(rn(quotient)), NaN gives 0
    const Int code = rounded_low_bits(limited(quotient, -128.0f, 127.0f));
    return quotient == quotient ? code : Int{};
  }
  // numerics.h's float_to_float8_e4m3fn with one rounding step for normal and subnormal codes: 2^20 times the power of
  // two p = 2^e at or below the magnitude (e >= -6) aligns the last bit of the sum with the code's, so that the sum's
  // low bits are 8 .. 16 in units of p / 8. The code is that plus 8 * (e + 6), and the low byte of 8 * (e + 6) is the
  // low byte of (exponent bits >> 20) + 0x38: the 0x38 goes into the summand, an even number of its last bits. NaN
  // gives 0x7f.
  static Int to_float8(Float x) {
    const Int magnitude = Isa::least(bits(x) & 0x7fffffff, splat(0x43e00000));  // 448
    const Int exponent = Isa::most(magnitude & 0x7f800000, splat(0x3c800000));  // 2^-6
    const Int sum = bits(floats(magnitude) + floats(exponent + ((20 << 23) + 0x38)));
    const Int code = (sum + (exponent >> 20)) | ((bits(x) >> 24) & 0x80);
    return x == x ? code : splat(0x7f);
  }

  struct Int8Code {
    Float scale;
    Int operator()(Float x) const { return to_int8(x / scale); }
  };
  struct AsymmetricCode {
    Float scale;
    Int azp;
    Int operator()(Float x) const {
      const Float quotient = x / scale;
      const Int shifted = rounded_low_bits(limited(quotient, -1024.0f, 1024.0f)) - kRoundingBits + azp;
      const Int code = Isa::least(Isa::most(shifted, splat(-128)), splat(127));
      return quotient == quotient ? code : Int{};
    }
  };
  struct Float8Code {
    Float scale;
    Int operator()(Float x) const { return to_float8(x / scale); }
  };
  // numerics.h's dropin_clamp and dropin_int8.
  static Float dropin_clamp(Float x, Float scale, Float q_min, Float q_max) {
    const Float quotient = magnitude(x) > numerics::kFloatMax ? x : x / scale;
    return Isa::least(Isa::most(quotient, q_min), q_max);
  }
  struct DropinInt8Code {
    Float scale, q_min, q_max;
    Int operator()(Float x) const {
      // cuts toward zero
      return __builtin_convertvector(limited(dropin_clamp(x, scale, q_min, q_max), -128.0f, 127.0f), Int);
    }
  };
  struct DropinFloat8Code {
    Float scale, q_min, q_max;
    Int operator()(Float x) const { return to_float8(dropin_clamp(x, scale, q_min, q_max)); }
  };

  template <class T, class Code>
  static void encode_span(const T* x, std::int64_t count, std::uint8_t* q, const Code code) {
    each(count, [=](std::int64_t j, auto lanes) { Isa::store8(q + j, code(load(x + j, lanes)), lanes); });
  }

  // ---- largest magnitude
  // ----------------------------------------------------------------------------------------------- Magnitudes of
  // floats order like their bits, and a NaN's are above infinity's: integers of the element's width will do.

  static std::uint32_t float_bits(std::int32_t magnitude, const BFloat16*) {
    return static_cast<std::uint32_t>(magnitude) << 16;
  }
  static std::uint32_t float_bits(std::int32_t magnitude, const Float16*) {
    return numerics::float_to_bits(numerics::float16_to_float(static_cast<std::uint16_t>(magnitude)));
  }
  static constexpr std::int16_t infinity(const BFloat16*) { return 0x7f80; }
  static constexpr std::int16_t infinity(const Float16*) { return 0x7c00; }

  template <bool kIgnoreNan, class T>
  static std::uint32_t magnitude_of_span(const T* x, std::int64_t count) {
    Short most = {};
    const auto take = [&](Short value) {
      value &= 0x7fff;
      if constexpr (kIgnoreNan) value = value > infinity(x) ? Short{} : value;
      most = Isa::most(value, most);
    };
    std::int64_t j = 0;
    Short vector;
    for (; j + 2 * kLanes <= count; j += 2 * kLanes) {
      __builtin_memcpy(&vector, x + j, sizeof vector);
      take(vector);
    }
    if (j < count) {
      vector = Short{};
      __builtin_memcpy(&vector, x + j, static_cast<std::size_t>(count - j) * sizeof(T));
      take(vector);
    }
    return float_bits(Isa::largest(most), x);
  }
  template <bool kIgnoreNan>
  static std::uint32_t magnitude_of_span(const float* x, std::int64_t count) {
    Int most = {};
    each(count, [&](std::int64_t j, auto lanes) {
      Int value = bits(load(x + j, lanes)) & 0x7fffffff;
      if constexpr (kIgnoreNan) value = value > static_cast<std::int32_t>(kInfinityBits) ? Int{} : value;
      most = Isa::most(value, most);
    });
    return static_cast<std::uint32_t>(Isa::largest(most));
  }

  // ---- activations: numerics.h's definitions, lane by lane
  // -------------------------------------------------------------

  // NaN gives some finite value here: whoever calls it combines it with the NaN itself.
  static Float exp32(Float x) {
    const Float in_range = limited(x, -104.0f, 89.0f);
    const Float n = Isa::fma(in_range, splat(1.44269504088896341f), splat(12582912.0f)) + -12582912.0f;
    Float r = Isa::fma(n, splat(-0.693359375f), in_range);
    r = Isa::fma(n, splat(2.12194440e-4f), r);
    Float p = splat(1.9875691500e-4f);
    p = Isa::fma(p, r, splat(1.3981999507e-3f));
    p = Isa::fma(p, r, splat(8.3334519073e-3f));
    p = Isa::fma(p, r, splat(4.1665795894e-2f));
    p = Isa::fma(p, r, splat(1.6666665459e-1f));
    p = Isa::fma(p, r, splat(5.0000001201e-1f));
    const Float y = Isa::fma(r * r, p, r) + 1.0f;
    const Int exponent = __builtin_convertvector(n, Int);
    const Int half = exponent >> 1;
    return y * floats((half + 127) << 23) * floats((exponent - half + 127) << 23);
  }
  template <Activation kActivation>
  static Float activate(Float x) {
    if constexpr (kActivation == Activation::silu) {
      return x / (1.0f + exp32(-x));
    } else if constexpr (kActivation == Activation::gelu) {
      const Float y = magnitude(x) * 0.70710678118654752f;
      const Float t = 1.0f / Isa::fma(splat(0.3275911f), y, splat(1.0f));
      Float p = splat(1.061405429f);
      p = Isa::fma(p, t, splat(-1.453152027f));
      p = Isa::fma(p, t, splat(1.421413741f));
      p = Isa::fma(p, t, splat(-0.284496736f));
      p = Isa::fma(p, t, splat(0.254829592f));
      const Float half_erfc = p * t * exp32(-(y * y)) * 0.5f;
      const Float negative = half_erfc == 0.0f ? Float{} : x * half_erfc;
      return x > 0.0f ? x * (1.0f - half_erfc) : negative;
    } else {
      const Float r = x > 0.0f ? x : Float{};
      return x == x ? r * r : x;
    }
  }
  template <Activation kActivation, class T>
  static void activate_span(const T* gate, const T* up, std::int64_t count, float* out) {
    each(count, [=](std::int64_t j, auto lanes) {
      Float value = activate<kActivation>(load(gate + j, lanes));
      if (up != nullptr) value = value * load(up + j, lanes);
      store(out + j, value, Whole());  // `out` has room for whole vectors
    });
  }

  // ---- RMS norm
  // --------------------------------------------------------------------------------------------------------

  // sum of v^2 in the order of numerics.h. With a residual, v = x + residual rounded to T, stored there.
  template <class T>
  static float sum_of_squares(const T* x, T* residual, std::int64_t count) {
    constexpr std::int64_t kVectors = numerics::kSquareRun / kLanes;
    const auto square = [&](std::int64_t j, auto lanes) {
      Float value = load(x + j, lanes);
      if (residual != nullptr) {
        store(residual + j, value + load(residual + j, lanes), lanes);
        value = load(residual + j, lanes);
      }
      return value * value;
    };
    float partial[numerics::kSquarePartials] = {};
    for (std::int64_t begin = 0, run = 0; begin < count; begin += numerics::kSquareRun, ++run) {
      Float squares[kVectors] = {};
      if (begin + numerics::kSquareRun <= count) {
        for (std::int64_t i = 0; i < kVectors; ++i) squares[i] = square(begin + i * kLanes, Whole());
      } else {
        for (std::int64_t i = 0, j = begin; j < count; ++i, j += kLanes)
          squares[i] = square(j, count - j < kLanes ? count - j : kLanes);
      }
      for (std::int64_t half = kVectors / 2; half > 0; half /= 2)
        for (std::int64_t i = 0; i < half; ++i) squares[i] = squares[i] + squares[i + half];
      float lanes[kLanes];
      __builtin_memcpy(lanes, squares, sizeof lanes);
      float& sum = partial[run % numerics::kSquarePartials];
      sum = numerics::add32(sum, sum_of_halves<kLanes>(lanes));
    }
    return sum_of_halves<numerics::kSquarePartials>(partial);
  }
  template <std::int64_t kCount>
  static float sum_of_halves(float* values) {
    for (std::int64_t half = kCount / 2; half > 0; half /= 2)
      for (std::int64_t i = 0; i < half; ++i) values[i] = numerics::add32(values[i], values[i + half]);
    return values[0];
  }
  template <class T, class Count>
  static Float load_strided(const T* p, std::int64_t stride, Count count) {
    if (stride == 1) return load(p, count);
    T lanes[kLanes] = {};
    for (std::int64_t i = 0; i < lanes_of(count); ++i) lanes[i] = p[i * stride];
    return load(lanes, Whole());
  }
  static std::int64_t lanes_of(Whole) { return kLanes; }
  static std::int64_t lanes_of(std::int64_t count) { return count; }
  template <class T>
  static void normalize_span(const T* x, const T* weight, std::int64_t weight_stride, float factor, std::int64_t count,
                             float* out) {
    each(count, [=](std::int64_t j, auto lanes) {
      const Float value = load(x + j, lanes) * factor * load_strided(weight + j * weight_stride, weight_stride, lanes);
      store(out + j, value, Whole());
    });
  }

  // ---- one row
  // ---------------------------------------------------------------------------------------------------------

  template <class T>
  const T* element(const void* data, std::int64_t index) const {
    return static_cast<const T*>(data) + index;
  }

  // Calls body with a null pointer of the element type.
  template <class Body>
  void with_type(const Body& body) const {
    switch (problem_.x_dtype) {
      case DType::bfloat16:
        return body(static_cast<const BFloat16*>(nullptr));
      case DType::float16:
        return body(static_cast<const Float16*>(nullptr));
      default:
        return body(static_cast<const float*>(nullptr));
    }
  }

  // Goes to row `row`. The first visit adds the residual; later ones find the sum in its place.
  void open_row(std::int64_t row, bool first_visit) {
    row_ = row;
    if (problem_.source != QuantizeSource::rms_norm) return;
    with_type([&]<class T>(const T*) {
      T* residual =
          problem_.residual == nullptr ? nullptr : static_cast<T*>(problem_.residual) + row * problem_.residual_stride;
      const T* x = static_cast<const T*>(problem_.x) + row * problem_.x_stride;
      const float sum = first_visit || residual == nullptr ? sum_of_squares(x, residual, problem_.columns)
                                                           : sum_of_squares<T>(residual, nullptr, problem_.columns);
      factor_ = numerics::inverse_rms(sum, problem_.columns, problem_.eps);
    });
  }
  // Produced values are kept from here on.
  void open_group(std::int64_t column) {
    kept_from_ = column;
    kept_ = 0;
  }

  // Values [begin, begin + count) of the row, count <= kChunk, produced now or by an earlier call since open_group().
  const float* produce(std::int64_t begin, std::int64_t count) {
    const std::int64_t offset = begin - kept_from_;
    if (offset + count <= kept_) return values_ + offset;
    const bool keep = offset + count <= kKept;
    float* out = keep ? values_ + offset : values_ + kKept;
    with_type([&]<class T>(const T*) {
      const T* x = static_cast<const T*>(problem_.x) + row_ * problem_.x_stride + begin;
      if (problem_.source == QuantizeSource::rms_norm) {
        if (problem_.residual != nullptr)
          x = static_cast<const T*>(problem_.residual) + row_ * problem_.residual_stride + begin;
        normalize_span(x, static_cast<const T*>(problem_.weight) + begin * problem_.weight_stride,
                       problem_.weight_stride, factor_, count, out);
        return;
      }
      const T* up = problem_.gated ? x + problem_.columns : nullptr;
      switch (problem_.activation) {
        case Activation::silu:
          return activate_span<Activation::silu>(x, up, count, out);
        case Activation::gelu:
          return activate_span<Activation::gelu>(x, up, count, out);
        case Activation::relu_squared:
          return activate_span<Activation::relu_squared>(x, up, count, out);
      }
    });
    if (keep) kept_ = offset + count;
    return out;
  }

  // Calls body(pointer to values, first column, how many) until all columns of [begin, end) are through.
  template <class Body>
  void each_span(std::int64_t begin, std::int64_t end, const Body& body) {
    if (problem_.source == QuantizeSource::copy) {
      with_type([&]<class T>(const T*) {
        body(static_cast<const T*>(problem_.x) + row_ * problem_.x_stride + begin, begin, end - begin);
      });
      return;
    }
    for (std::int64_t column = begin; column < end; column += kChunk) {
      const std::int64_t count = end - column < kChunk ? end - column : kChunk;
      body(produce(column, count), column, count);
    }
  }

  template <bool kIgnoreNan = false>
  std::uint32_t magnitude_of(std::int64_t begin, std::int64_t end) {
    std::uint32_t most = 0;
    each_span(begin, end, [&](const auto* x, std::int64_t, std::int64_t count) {
      const std::uint32_t found = magnitude_of_span<kIgnoreNan>(x, count);
      most = found > most ? found : most;
    });
    return most;
  }

  template <class Code>
  void encode(std::int64_t begin, std::int64_t end, const Code& code) {
    std::uint8_t* q = static_cast<std::uint8_t*>(problem_.q) + row_ * problem_.q_stride;
    each_span(begin, end,
              [&](const auto* x, std::int64_t column, std::int64_t count) { encode_span(x, count, q + column, code); });
  }
  void encode_with(std::int64_t begin, std::int64_t end, float scale) {
    if (problem_.q_dtype == DType::int8)
      encode(begin, end, Int8Code{splat(scale)});
    else
      encode(begin, end, Float8Code{splat(scale)});
  }

  // The end of the group that starts at `begin`; a group may be wider than what is left, and 0 is the whole row.
  std::int64_t group_end(std::int64_t begin) const {
    const bool last = problem_.group_columns == 0 || problem_.columns - begin <= problem_.group_columns;
    return last ? problem_.columns : begin + problem_.group_columns;
  }
  float* scale_at(std::int64_t row_group, std::int64_t group) const {
    return static_cast<float*>(problem_.scale) + row_group * problem_.scale_row_stride +
           group * problem_.scale_group_stride;
  }

  // ---- schemes: one unit
  // -----------------------------------------------------------------------------------------------

  void given_scale(std::int64_t row) {
    open_row(row, true);
    for (std::int64_t begin = 0, group = 0; begin < problem_.columns; begin = group_end(begin), ++group) {
      open_group(begin);
      encode_with(begin, group_end(begin), *scale_at(row / problem_.group_rows, group));
    }
  }

  void whole_row(std::int64_t row) {
    open_row(row, true);
    open_group(0);
    const float scale = scale_from(problem_, magnitude_of(0, problem_.columns));
    *scale_at(row, 0) = scale;
    encode_with(0, problem_.columns, scale);
  }

  void groups_of_row(std::int64_t row) {
    open_row(row, true);
    for (std::int64_t begin = 0, group = 0; begin < problem_.columns; begin = group_end(begin), ++group) {
      open_group(begin);
      const float scale = scale_from(problem_, magnitude_of(begin, group_end(begin)));
      *scale_at(row, group) = scale;
      encode_with(begin, group_end(begin), scale);
    }
  }

  // Blocks of several rows: the scales hold the largest magnitudes until all rows of the unit are seen.
  void blocks(std::int64_t unit) {
    const std::int64_t row_begin = unit * problem_.group_rows;
    const std::int64_t left = problem_.rows - row_begin;
    const std::int64_t row_end = row_begin + (left < problem_.group_rows ? left : problem_.group_rows);
    for (std::int64_t row = row_begin; row < row_end; ++row) {
      open_row(row, true);
      for (std::int64_t begin = 0, group = 0; begin < problem_.columns; begin = group_end(begin), ++group) {
        open_group(begin);
        const std::uint32_t found = magnitude_of(begin, group_end(begin));
        float* most = scale_at(unit, group);
        if (row == row_begin || found > numerics::float_to_bits(*most)) *most = numerics::bits_to_float(found);
      }
    }
    for (std::int64_t begin = 0, group = 0; begin < problem_.columns; begin = group_end(begin), ++group)
      *scale_at(unit, group) = scale_from(problem_, numerics::float_to_bits(*scale_at(unit, group)));
    for (std::int64_t row = row_begin; row < row_end; ++row) {
      open_row(row, false);
      for (std::int64_t begin = 0, group = 0; begin < problem_.columns; begin = group_end(begin), ++group) {
        open_group(begin);
        encode_with(begin, group_end(begin), *scale_at(unit, group));
      }
    }
  }

  void asymmetric(std::int64_t row) {
    open_row(row, true);
    open_group(0);
    Float least = {}, most = {};
    Int nan = {};
    each_span(0, problem_.columns, [&](const auto* x, std::int64_t, std::int64_t count) {
      each(count, [&](std::int64_t j, auto lanes) {
        const Float value = load(x + j, lanes);
        least = Isa::least(value, least);
        most = Isa::most(value, most);
        nan |= bits(value) & (value != value);
      });
    });
    float low = 0.0f, high = 0.0f;
    for (std::int64_t i = 0; i < kLanes; ++i) {
      low = least[i] < low ? least[i] : low;
      high = most[i] > high ? most[i] : high;
    }
    for (std::int64_t i = 0; i < kLanes; ++i)
      if (nan[i] != 0) low = high = numerics::canonical_nan();
    const float scale = numerics::asymmetric_scale(low, high);
    const std::int32_t azp = numerics::asymmetric_zero_point(low, scale);
    *scale_at(row, 0) = scale;
    problem_.azp[row * problem_.azp_stride] = azp;
    encode(0, problem_.columns, AsymmetricCode{splat(scale), splat(azp)});
  }

  void dropin(std::int64_t row) {
    const bool packed = problem_.scheme == QuantizeScheme::dropin_group_packed;
    const Float q_min = splat(problem_.q_min), q_max = splat(problem_.q_max);
    open_row(row, true);
    std::uint32_t word = 0;
    for (std::int64_t begin = 0, group = 0; begin < problem_.columns; begin = group_end(begin), ++group) {
      const std::int64_t end = group_end(begin);
      open_group(begin);
      float scale = numerics::dropin_group_scale(numerics::bits_to_float(magnitude_of<true>(begin, end)), problem_.eps,
                                                 problem_.q_max);
      if (packed || problem_.power_of_two_scales) {
        const std::uint32_t exponent = numerics::dropin_group_exponent(scale);
        scale = numerics::bits_to_float(exponent << 23);
        word |= exponent << (8 * (group % 4));
      }
      if (!packed) {
        *scale_at(row, group) = scale;
      } else if (group % 4 == 3 || end == problem_.columns) {  // four exponents, or the last ones
        static_cast<std::uint32_t*>(
            problem_.scale)[row * problem_.scale_row_stride + group / 4 * problem_.packed_columns_stride] = word;
        word = 0;
      }
      if (problem_.q_dtype == DType::int8)
        encode(begin, end, DropinInt8Code{splat(scale), q_min, q_max});
      else
        encode(begin, end, DropinFloat8Code{splat(scale), q_min, q_max});
    }
  }

  explicit Rows(const QuantizeProblem& problem) : problem_(problem) {}

  const QuantizeProblem& problem_;
  std::int64_t row_ = 0;
  float factor_ = 0;  // rms_norm: 1 / rms of the row
  std::int64_t kept_from_ = 0, kept_ = 0;
  alignas(64) float values_[kKept + kChunk + kLanes];  // kept values, then room for a chunk that is not kept

 public:
  static void units(const QuantizeProblem& problem, std::int64_t begin, std::int64_t end) {
    Rows rows(problem);
    for (std::int64_t unit = begin; unit < end; ++unit) {
      switch (problem.scheme) {
        case QuantizeScheme::per_tensor:
          break;  // has its own passes
        case QuantizeScheme::with_given_scale:
          rows.given_scale(unit);
          break;
        case QuantizeScheme::per_row:
          rows.whole_row(unit);
          break;
        case QuantizeScheme::per_row_asymmetric:
          rows.asymmetric(unit);
          break;
        case QuantizeScheme::per_block:
          if (problem.group_rows == 1)
            rows.groups_of_row(unit);
          else
            rows.blocks(unit);
          break;
        case QuantizeScheme::dropin_group:
        case QuantizeScheme::dropin_group_packed:
          rows.dropin(unit);
          break;
      }
    }
  }

  static std::uint32_t magnitude(const QuantizeProblem& problem, std::int64_t begin, std::int64_t end) {
    Rows rows(problem);
    std::uint32_t most = 0;
    for (std::int64_t row = begin; row < end; ++row) {
      rows.open_row(row, true);
      rows.open_group(0);
      const std::uint32_t found = rows.magnitude_of(0, problem.columns);
      most = found > most ? found : most;
    }
    return most;
  }

  static void with_scale(const QuantizeProblem& problem, float scale, std::int64_t begin, std::int64_t end) {
    Rows rows(problem);
    for (std::int64_t row = begin; row < end; ++row) {
      rows.open_row(row, false);
      rows.open_group(0);
      rows.encode_with(0, problem.columns, scale);
    }
  }

  static float scale_from(const QuantizeProblem& problem, std::uint32_t magnitude) {
    float absmax = numerics::bits_to_float(magnitude);
    if (problem.scale_upper_bound != nullptr && absmax > *problem.scale_upper_bound)
      absmax = *problem.scale_upper_bound;
    const float scale =
        numerics::scale_of(absmax, problem.q_dtype == DType::int8 ? 127.0f : numerics::kFloat8E4m3fnMax);
    return problem.power_of_two_scales ? numerics::power_of_two_at_least(scale) : scale;
  }
};

template <class Isa>
constexpr QuantizeKernel kernel_of() {
  return {Rows<Isa>::units, Rows<Isa>::magnitude, Rows<Isa>::with_scale, Rows<Isa>::scale_from};
}

}  // namespace
}  // namespace evergemm::cpu
