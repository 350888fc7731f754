// SPDX-License-Identifier: Apache-2.0
// One GEMM case of the GPU tests: host data with its answer, device copies, and a verdict on what a row stored.
// The answer is computed once a case and judges every row. Must not go here: which cases and rows there are.
#pragma once
#include <cmath>
#include <memory>

#include "bound_checker.h"
#include "evergemm/numerics.h"
#include "evergemm/plan.h"
#include "evergemm/problem.h"
#include "harness.h"

namespace evergemm::gpu_test {

enum class Kind { int8, fast, promoted, block };
enum class Data { random, exact };  // exact: every partial sum is representable, so that every bit is known

inline const char* name(Kind kind) {
  return kind == Kind::int8 ? "int8" : kind == Kind::fast ? "fast" : kind == Kind::promoted ? "promoted" : "block";
}

struct Shape {
  std::int64_t m, n, k;
};

// Everything that is a run-time value, drawn from a seed.
struct Variant {
  DType output = DType::bfloat16;
  bool bias = false, row_scale_a = false, row_scale_b = false;
  int azp = 0;                                     // 0 none, 1 folded into azp_adj, 2 a value a token
  std::int64_t a_pad = 0, b_pad = 0, out_pad = 0;  // elements beyond the row
  std::int64_t vector_stride = 1;                  // of scales, bias, azp, azp_adj
  int scale_layout = 0;                            // block: 0 m-major padded to 4, 1 m-major, 2 k-major
  std::int64_t shift = 0;                          // bytes by which a, b and out miss a 16-byte boundary
};

class GemmCase {
 public:
  GemmCase(Kind kind, Data data, const Shape& shape, const Variant& variant, std::uint64_t seed)
      : kind_(kind), data_(data), variant_(variant), random_{seed} {
    const auto [m, n, k] = shape;
    host_.m = m;
    host_.n = n;
    host_.k = k;
    host_.input_dtype = kind == Kind::int8 ? DType::int8 : DType::float8_e4m3fn;
    host_.output_dtype = variant.output;
    host_.fast_accumulation = kind == Kind::fast;
    host_.device = Device{DeviceType::cuda, 0};
    host_.a_stride = k + variant.a_pad;
    host_.b_stride = k + variant.b_pad;
    host_.out_stride = n + variant.out_pad;
    make_operand(a_, m, host_.a_stride, k);
    make_operand(b_, n, host_.b_stride, k);
    host_.a = a_.data();
    host_.b = b_.data();
    make_scales();
    make_vectors();
    out_.assign(static_cast<std::size_t>(out_bytes()), 0);
    host_.out = out_.data();
    upload();
  }

  const GemmProblem& device_problem() const { return device_; }
  void poison_output() { device_out_->poison(); }

  // Fills the answer: an interval for each element (a point where arithmetic is exact), and what the emulator makes of it.
  void solve() { solve(kind_ == Kind::fast ? proof::kHopperFastModel : proof::kHopperPromotedModel); }
  void solve(const proof::AccumulationModel& model) {
    const std::size_t elements = static_cast<std::size_t>(host_.m * host_.n);
    low_.resize(elements);
    high_.resize(elements);
    if (kind_ == Kind::int8) {
      for_all_threads(host_.m, [this](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i)
          for (std::int64_t j = 0; j < host_.n; ++j)
            low_[index(i, j)] = high_[index(i, j)] = proof::int8_element(host_, i, j);
      });
      return;
    }
    exact_.resize(elements);
    unit_.resize(elements);
    emulator_.resize(elements);
    const proof::DecodedOperands operands = proof::decode_operands(host_);
    for_all_threads(host_.m, [&, this](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i)
        for (std::int64_t j = 0; j < host_.n; ++j) {
          const proof::Bounded element = proof::bound_of_element(host_, operands, model, i, j);
          const std::size_t at = index(i, j);
          exact_[at] = element.exact;
          if (data_ == Data::exact) {
            low_[at] = high_[at] = proof::round_to(host_.output_dtype, element.exact);
            continue;
          }
          low_[at] = proof::round_to(host_.output_dtype, element.exact - element.error);
          high_[at] = proof::round_to(host_.output_dtype, element.exact + element.error);
          unit_[at] = std::sqrt(element.squares) + std::fabs(proof::bias_at(host_, j));
          emulator_[at] = (proof::emulate_element(host_, operands, model, i, j) - element.exact) / unit_[at];
        }
    });
  }

  // Reads what the device holds now; "" or what is wrong with it. keep: the bytes are what same_as_kept() compares with.
  // emulated: compare RMS too (kernels of the emulated model).
  std::string judge(bool emulated, bool keep = false) {
    bool zones_whole = false;
    const std::vector<unsigned char> got = device_out_->read(zones_whole);
    if (!zones_whole) return "wrote into a red zone";
    const std::int64_t element_bytes = size_in_bytes(host_.output_dtype);
    for (std::int64_t i = 0; i + 1 < host_.m; ++i)
      for (std::int64_t at = (i * host_.out_stride + host_.n) * element_bytes;
           at < (i + 1) * host_.out_stride * element_bytes; ++at)
        if (got[static_cast<std::size_t>(at)] != 0xFF) return "wrote between rows, after row " + std::to_string(i);
    std::vector<std::string> failures(static_cast<std::size_t>(host_.m));
    for_all_threads(host_.m, [&, this](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i)
        for (std::int64_t j = 0; j < host_.n; ++j) {
          const double value = proof::load(host_.output_dtype, got.data(), i * host_.out_stride + j);
          const std::size_t at = index(i, j);
          const bool sign = kind_ != Kind::int8 || value != 0 || std::signbit(value) == std::signbit(low_[at]);
          if (value >= low_[at] && value <= high_[at] && sign) continue;
          if (std::isnan(value) && std::isnan(low_[at])) continue;
          failures[static_cast<std::size_t>(i)] = "element " + proof::at(i, j) + " is " + std::to_string(value) +
                                                  ", must lie in [" + std::to_string(low_[at]) + ", " +
                                                  std::to_string(high_[at]) + "]";
          break;
        }
    });
    std::string failure;
    std::int64_t bad_rows = 0;
    for (const std::string& text : failures) {
      if (text.empty()) continue;
      if (bad_rows++ == 0) failure = text;
    }
    if (bad_rows > 0)
      return failure + "; " + std::to_string(bad_rows) + " of " + std::to_string(host_.m) + " rows fail";
    if (emulated && kind_ != Kind::int8 && data_ == Data::random) failure = judge_rms(got);
    if (keep) kept_ = got;
    return failure;
  }

  // Whether the device's output has the bits that the kept one had.
  bool same_as_kept() {
    bool zones_whole = false;
    return device_out_->read(zones_whole) == kept_ && zones_whole;
  }
  std::vector<unsigned char> output_bytes() {
    bool zones_whole = false;
    return device_out_->read(zones_whole);
  }
  GemmProblem& host_problem() { return host_; }
  std::int64_t out_bytes() const {
    return ((host_.m - 1) * host_.out_stride + host_.n) * size_in_bytes(host_.output_dtype);
  }

  std::string text() const {
    return std::string(name(kind_)) + (data_ == Data::exact ? " exact" : "") + " m " + std::to_string(host_.m) + " n " +
           std::to_string(host_.n) + " k " + std::to_string(host_.k) + " out " + evergemm::name(host_.output_dtype) +
           " bias " + std::to_string(variant_.bias) + " scales " + std::to_string(variant_.row_scale_a) +
           std::to_string(variant_.row_scale_b) + " azp " + std::to_string(variant_.azp) + " pads " +
           std::to_string(variant_.a_pad) + "," + std::to_string(variant_.b_pad) + "," +
           std::to_string(variant_.out_pad) + " vector stride " + std::to_string(variant_.vector_stride) + " layout " +
           std::to_string(variant_.scale_layout) + " shift " + std::to_string(variant_.shift);
  }

  // Other values of a in place, host and device; solve() again afterwards.
  void redraw_a() {
    make_operand(a_, host_.m, host_.a_stride, host_.k);
    host_.a = a_.data();
    device_a_->fill(a_.data(), static_cast<std::int64_t>(a_.size()));
  }

 private:
  std::size_t index(std::int64_t i, std::int64_t j) const { return static_cast<std::size_t>(i * host_.n + j); }

  // Bytes behind a row's end are NaN (fp8) or noise (int8): a kernel that reads past k shows.
  void make_operand(std::vector<std::uint8_t>& bytes, std::int64_t rows, std::int64_t stride, std::int64_t k) {
    bytes.assign(static_cast<std::size_t>(rows * stride), 0x7F);
    static const std::vector<std::uint8_t> normal = normal_codes();
    for (std::int64_t i = 0; i < rows; ++i)
      for (std::int64_t l = 0; l < k; ++l) {
        const std::uint64_t bits = random_.next();
        std::uint8_t& byte = bytes[static_cast<std::size_t>(i * stride + l)];
        if (kind_ == Kind::int8)
          byte = static_cast<std::uint8_t>(bits >> 20);
        else if (data_ == Data::exact)
          byte = kExactCodes[bits % 4];
        else
          byte = normal[bits % normal.size()];
      }
  }
  static constexpr std::uint8_t kExactCodes[4] = {0xB8, 0x00, 0x38, 0x40};  // -1, 0, 1, 2
  static std::vector<std::uint8_t> normal_codes() {
    Random random{77};
    std::vector<std::uint8_t> codes(1 << 14);
    for (std::uint8_t& code : codes) {
      const double x =
          std::sqrt(-2 * std::log(random.uniform() + 1e-12)) * std::cos(6.283185307179586 * random.uniform());
      code = numerics::float_to_float8_e4m3fn(static_cast<float>(x));
    }
    return codes;
  }

  float draw_scale() {
    if (data_ == Data::exact) return std::ldexp(1.0f, static_cast<int>(random_.below(5)) - 2);
    const float sign = random_.below(8) == 0 ? -1.0f : 1.0f;
    return sign * static_cast<float>(0.01 + 0.02 * random_.uniform());
  }

  void make_scales() {
    Scale& a = host_.scale_a;
    Scale& b = host_.scale_b;
    const std::int64_t blocks = (host_.k + kScaleBlock - 1) / kScaleBlock,
                       features = (host_.n + kScaleBlock - 1) / kScaleBlock;
    std::int64_t a_count = 1, b_count = 1;
    if (kind_ == Kind::block) {
      a.mode = ScaleMode::BlockWise1x128;
      b.mode = ScaleMode::BlockWise128x128;
      const std::int64_t pitch = variant_.scale_layout == 0 ? (host_.m + 3) / 4 * 4 : host_.m;
      a.outer_stride = variant_.scale_layout == 2 ? blocks : 1;
      a.k_stride = variant_.scale_layout == 2 ? 1 : pitch;
      b.outer_stride = variant_.scale_layout == 1 ? 1 : blocks;
      b.k_stride = variant_.scale_layout == 1 ? features : 1;
      a_count = std::max<std::int64_t>(1, variant_.scale_layout == 2 ? host_.m * blocks : pitch * blocks);
      b_count = std::max<std::int64_t>(1, features * blocks);
    } else {
      a.mode = variant_.row_scale_a ? ScaleMode::RowWise : ScaleMode::TensorWise;
      b.mode = variant_.row_scale_b ? ScaleMode::RowWise : ScaleMode::TensorWise;
      a.outer_stride = variant_.row_scale_a ? variant_.vector_stride : 0;
      b.outer_stride = variant_.row_scale_b ? variant_.vector_stride : 0;
      a_count = variant_.row_scale_a ? host_.m * variant_.vector_stride : 1;
      b_count = variant_.row_scale_b ? host_.n * variant_.vector_stride : 1;
    }
    scale_a_.resize(static_cast<std::size_t>(a_count));
    scale_b_.resize(static_cast<std::size_t>(b_count));
    for (float& scale : scale_a_) scale = draw_scale();
    for (float& scale : scale_b_) scale = draw_scale();
    a.data = scale_a_.data();
    b.data = scale_b_.data();
  }

  void make_vectors() {
    const std::int64_t stride = variant_.vector_stride;
    if (variant_.bias) {
      host_.bias_stride = stride;
      bias_.assign(static_cast<std::size_t>(host_.n * stride * size_in_bytes(host_.output_dtype)), 0xFF);
      for (std::int64_t j = 0; j < host_.n; ++j) {
        const float value = data_ == Data::exact ? static_cast<float>(random_.below(17) - 8) / 16
                                                 : static_cast<float>(4 * random_.uniform() - 2);
        const std::uint16_t half = host_.output_dtype == DType::float16 ? numerics::float_to_float16(value)
                                                                        : numerics::float_to_bfloat16(value);
        if (host_.output_dtype == DType::float32)
          std::memcpy(&bias_[static_cast<std::size_t>(j * stride * 4)], &value, 4);
        else
          std::memcpy(&bias_[static_cast<std::size_t>(j * stride * 2)], &half, 2);
      }
      host_.bias = bias_.data();
    }
    if (kind_ != Kind::int8 || variant_.azp == 0) return;
    host_.has_azp = true;
    host_.azp_adj_stride = stride;
    azp_adj_.assign(static_cast<std::size_t>(host_.n * stride), 0x7FFFFFFF);
    for (std::int64_t j = 0; j < host_.n; ++j)
      azp_adj_[static_cast<std::size_t>(j * stride)] = static_cast<std::int32_t>(random_.below(60001) - 30000);
    host_.azp_adj = azp_adj_.data();
    if (variant_.azp == 1) return;
    host_.azp_stride = stride;
    azp_.assign(static_cast<std::size_t>(host_.m * stride), 0x7FFFFFFF);
    for (std::int64_t i = 0; i < host_.m; ++i)
      azp_[static_cast<std::size_t>(i * stride)] = static_cast<std::int32_t>(random_.below(256) - 128);
    host_.azp = azp_.data();
  }

  template <class T>
  const T* put(std::unique_ptr<DeviceBuffer>& buffer, const std::vector<T>& values, std::int64_t shift = 0) {
    if (values.empty()) return nullptr;
    const std::int64_t bytes = static_cast<std::int64_t>(values.size() * sizeof(T));
    buffer = std::make_unique<DeviceBuffer>(bytes, shift);
    buffer->fill(values.data(), bytes);
    return reinterpret_cast<const T*>(buffer->data());
  }

  void upload() {
    device_ = host_;
    device_.a = put(device_a_, a_, variant_.shift);
    device_.b = put(device_b_, b_, variant_.shift);
    device_.scale_a.data = put(device_scale_a_, scale_a_);
    device_.scale_b.data = put(device_scale_b_, scale_b_);
    device_.bias = put(device_bias_, bias_);
    device_.azp_adj = put(device_azp_adj_, azp_adj_);
    device_.azp = put(device_azp_, azp_);
    const std::int64_t element = size_in_bytes(host_.output_dtype);
    device_out_ = std::make_unique<DeviceBuffer>(out_bytes(), variant_.shift / element * element);
    device_.out = device_out_->data();
  }

  std::string judge_rms(const std::vector<unsigned char>& got) {
    if (host_.m * host_.n < proof::kMinimumTileElements) return "";
    const std::int64_t rows =
        std::min(host_.m, host_.n < proof::kTile ? proof::kTile * proof::kTile / host_.n : proof::kTile);
    const std::int64_t columns =
        std::min(host_.n, host_.m < proof::kTile ? proof::kTile * proof::kTile / host_.m : proof::kTile);
    for (std::int64_t i = 0; i < host_.m; i += rows)
      for (std::int64_t j = 0; j < host_.n; j += columns) {
        const std::int64_t top = std::min(i, host_.m - rows), left = std::min(j, host_.n - columns);
        double kernel = 0, emulator = 0;
        for (std::int64_t r = top; r < top + rows; ++r)
          for (std::int64_t c = left; c < left + columns; ++c) {
            const std::size_t at = index(r, c);
            if (!(unit_[at] > 0)) continue;
            const double value = proof::load(host_.output_dtype, got.data(), r * host_.out_stride + c);
            kernel += (value - exact_[at]) / unit_[at] * ((value - exact_[at]) / unit_[at]);
            emulator += emulator_[at] * emulator_[at];
          }
        if (kernel == 0) continue;
        const double ratio = std::sqrt(kernel / emulator);
        worst_rms_ = std::max(worst_rms_, ratio);
        if (ratio > proof::kRmsLimit)
          return "tile at " + proof::at(top, left) + ": RMS error is " + std::to_string(ratio) +
                 " times the emulator's";
      }
    return "";
  }

 public:
  double worst_rms() const { return worst_rms_; }

 private:
  Kind kind_;
  Data data_;
  Variant variant_;
  Random random_;
  GemmProblem host_, device_;
  std::vector<std::uint8_t> a_, b_, bias_, out_;
  std::vector<float> scale_a_, scale_b_;
  std::vector<std::int32_t> azp_adj_, azp_;
  std::unique_ptr<DeviceBuffer> device_a_, device_b_, device_scale_a_, device_scale_b_, device_bias_, device_azp_adj_,
      device_azp_, device_out_;
  std::vector<double> low_, high_, exact_, unit_, emulator_;
  std::vector<unsigned char> kept_;
  double worst_rms_ = 0;
};

}  // namespace evergemm::gpu_test
