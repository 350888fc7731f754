// SPDX-License-Identifier: Apache-2.0
// One grouped product of the GPU tests: host data with its answer, device copies, and a verdict on what a row stored. Who
// owns which rows is computed on the host by the rules of moe_index.h. Must not go here: which cases and rows there are.
#pragma once
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "bound_checker.h"
#include "evergemm/moe_index.h"
#include "evergemm/numerics.h"
#include "harness.h"

namespace evergemm::gpu_test {

enum class Kind { int8, fast, promoted, block };
inline const char* name(Kind kind) {
  return kind == Kind::int8 ? "int8" : kind == Kind::fast ? "fast" : kind == Kind::promoted ? "promoted" : "block";
}

struct GroupedShape {
  std::int64_t experts, rows, n, k;  // rows: in all, or of each masked expert
};

// Everything that is a run-time value.
struct GroupedVariant {
  GroupedForm form = GroupedForm::ragged;
  DType output = DType::bfloat16;
  bool row_scale_a = true, row_scale_b = true, clear = false, exact = false;
  std::int64_t a_pad = 0, b_pad = 0, out_pad = 0, shift = 0;
  int scale_layout = 0;  // block: 0 rows fastest, padded to 4; 1 k fastest
};

inline std::vector<std::uint8_t> normal_codes() {
  Random random{77};
  std::vector<std::uint8_t> codes(1 << 14);
  for (std::uint8_t& code : codes)
    code = numerics::float_to_float8_e4m3fn(static_cast<float>(std::sqrt(-2 * std::log(random.uniform() + 1e-12)) *
                                                               std::cos(6.283185307179586 * random.uniform())));
  return codes;
}

class GroupedCase {
 public:
  GroupedCase(Kind kind, const GroupedShape& shape, const GroupedVariant& variant, std::uint64_t seed)
      : kind_(kind), variant_(variant), random_{seed} {
    const auto [experts, rows, n, k] = shape;
    const bool masked = variant.form == GroupedForm::masked;
    planes_ = masked ? experts : 1;
    host_.form = variant.form;
    host_.experts = experts;
    host_.rows = rows;
    host_.n = n;
    host_.k = k;
    host_.input_dtype = kind == Kind::int8 ? DType::int8 : DType::float8_e4m3fn;
    host_.output_dtype = variant.output;
    host_.fast_accumulation = kind == Kind::fast;
    host_.clear_unowned = variant.clear;
    host_.device = Device{DeviceType::cuda, 0};
    host_.a_stride = k + variant.a_pad;
    host_.b_stride = k + variant.b_pad;
    host_.out_stride = n + variant.out_pad;
    host_.a_expert_stride = masked ? rows * host_.a_stride : 0;
    host_.b_expert_stride = n * host_.b_stride;
    host_.out_expert_stride = masked ? rows * host_.out_stride : 0;
    fill_operand(a_, planes_ * rows, host_.a_stride);
    fill_operand(b_, experts * n, host_.b_stride);
    host_.a = a_.data();
    host_.b = b_.data();
    make_scales();
    upload();
  }

  GroupedGemmProblem& problem() { return device_; }
  DeviceBuffer& output() { return *device_out_; }

  // int32 or int64 offsets, counts or start rows, as the form asks for them.
  void set_rows(const std::vector<std::int64_t>& values, bool wide) {
    put_indices(values, wide, index_bytes_, device_rows_, host_.expert_rows, device_.expert_rows);
  }
  void set_sizes(const std::vector<std::int32_t>& sizes) {
    sizes_ = sizes;
    host_.problem_sizes = sizes_.data();
    device_.problem_sizes = put(device_sizes_, sizes_);
  }
  void set_pitches(const std::vector<std::int64_t>& a, const std::vector<std::int64_t>& b,
                   const std::vector<std::int64_t>& out) {
    put_indices(a, true, pitch_bytes_[0], device_pitches_[0], host_.a_pitches, device_.a_pitches);
    put_indices(b, true, pitch_bytes_[1], device_pitches_[1], host_.b_pitches, device_.b_pitches);
    put_indices(out, true, pitch_bytes_[2], device_pitches_[2], host_.out_pitches, device_.out_pitches);
  }

  // The answer: an interval for each element that an expert owns, NaN bounds for those that nobody owns.
  void solve() {
    const std::size_t elements = static_cast<std::size_t>(out_elements());
    low_.assign(elements, std::nan(""));
    high_ = exact_ = emulated_ = unit_ = low_;
    std::int64_t owned_end = 0;
    const proof::AccumulationModel model = kind_ == Kind::fast ? proof::kHopperFastModel : proof::kHopperPromotedModel;
    for (std::int64_t expert = 0; expert < host_.experts; ++expert) {
      const ExpertShare share = next_share(host_, expert, owned_end);
      if (share.rows == 0) continue;
      const GemmProblem dense = problem_of(host_, expert, share, 0, share.rows, 0, host_.n);
      proof::DecodedOperands operands;
      if (kind_ != Kind::int8) operands = proof::decode_operands(dense);
      for_all_threads(share.rows, [&, this](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i)
          for (std::int64_t j = 0; j < host_.n; ++j) {
            const auto at = static_cast<std::size_t>(share.out_begin + i * share.out_stride + j);
            if (kind_ == Kind::int8) {
              low_[at] = high_[at] = proof::int8_element(dense, i, j);
              continue;
            }
            const proof::Bounded element = proof::bound_of_element(dense, operands, model, i, j);
            const double error = variant_.exact ? 0 : element.error;
            low_[at] = proof::round_to(host_.output_dtype, element.exact - error);
            high_[at] = proof::round_to(host_.output_dtype, element.exact + error);
            if (variant_.exact) continue;
            exact_[at] = element.exact;
            unit_[at] = std::sqrt(element.squares);
            emulated_[at] = (proof::emulate_element(dense, operands, model, i, j) - element.exact) / unit_[at];
          }
      });
    }
  }

  // What is wrong with what the device holds, or "". emulated: the row sums as the emulator does, so compare RMS errors.
  std::string judge(bool emulated, bool keep) {
    bool zones_whole = false;
    std::vector<unsigned char> got = device_out_->read(zones_whole);
    if (!zones_whole) return "wrote into a red zone";
    const std::int64_t item = size_in_bytes(host_.output_dtype);
    double kernel = 0, emulator = 0;
    std::int64_t counted = 0;
    for (std::int64_t at = 0; at < out_elements(); ++at) {
      const auto i = static_cast<std::size_t>(at);
      if (std::isnan(low_[i])) {
        const bool in_row = at % host_.out_stride < host_.n;
        const unsigned char expected = host_.clear_unowned && in_row ? 0 : 0xFF;
        for (std::int64_t byte = 0; byte < item; ++byte)
          if (got[static_cast<std::size_t>(at * item + byte)] != expected)
            return "element " + place(at) + " is nobody's and holds " +
                   std::to_string(got[static_cast<std::size_t>(at * item + byte)]);
        continue;
      }
      const double value = proof::load(host_.output_dtype, got.data(), at);
      if (!(value >= low_[i] && value <= high_[i]))
        return "element " + place(at) + " is " + std::to_string(value) + ", must lie in [" + std::to_string(low_[i]) +
               ", " + std::to_string(high_[i]) + "]";
      if (!emulated || variant_.exact || kind_ == Kind::int8 || !(unit_[i] > 0)) continue;
      const double error = (value - exact_[i]) / unit_[i];
      kernel += error * error;
      emulator += emulated_[i] * emulated_[i];
      ++counted;
    }
    if (counted >= proof::kMinimumTileElements && std::sqrt(kernel / emulator) > proof::kRmsLimit)
      return "RMS error is " + std::to_string(std::sqrt(kernel / emulator)) + " times the emulator's";
    if (keep) kept_ = std::move(got);
    return "";
  }
  bool same_as_kept() {
    bool zones_whole = false;
    return device_out_->read(zones_whole) == kept_ && zones_whole;
  }
  std::string text() const {
    const char* form = host_.form == GroupedForm::ragged   ? "ragged"
                       : host_.form == GroupedForm::masked ? "masked"
                                                           : "dropin";
    return std::string(form) + " " + name(kind_) + " experts " + std::to_string(host_.experts) + " rows " +
           std::to_string(host_.rows) + " n " + std::to_string(host_.n) + " k " + std::to_string(host_.k) + " to " +
           evergemm::name(host_.output_dtype) + (variant_.exact ? " exact" : "") + (variant_.clear ? " clear" : "") +
           " scales " + std::to_string(variant_.row_scale_a) + std::to_string(variant_.row_scale_b) + " layout " +
           std::to_string(variant_.scale_layout) + " pads " + std::to_string(variant_.a_pad) + "," +
           std::to_string(variant_.b_pad) + "," + std::to_string(variant_.out_pad) + " shift " +
           std::to_string(variant_.shift);
  }

 private:
  std::int64_t out_elements() const { return planes_ * host_.rows * host_.out_stride; }
  std::string place(std::int64_t at) const {
    return "(" + std::to_string(at / host_.out_stride) + ", " + std::to_string(at % host_.out_stride) + ")";
  }

  // Bytes behind a row's end are NaN (fp8) or noise (int8): a kernel that reads past k shows.
  void fill_operand(std::vector<std::uint8_t>& bytes, std::int64_t rows, std::int64_t stride) {
    static const std::vector<std::uint8_t> normal = normal_codes();
    static constexpr std::uint8_t kExact[4] = {0xB8, 0x00, 0x38, 0x40};  // -1, 0, 1, 2
    bytes.assign(static_cast<std::size_t>(rows * stride), 0x7F);
    for (std::int64_t i = 0; i < rows; ++i)
      for (std::int64_t l = 0; l < host_.k; ++l) {
        const std::uint64_t bits = random_.next();
        bytes[static_cast<std::size_t>(i * stride + l)] = kind_ == Kind::int8 ? static_cast<std::uint8_t>(bits >> 20)
                                                          : variant_.exact    ? kExact[bits % 4]
                                                                              : normal[bits % normal.size()];
      }
  }

  float draw_scale() {
    if (variant_.exact) return std::ldexp(1.0f, static_cast<int>(random_.below(5)) - 2);
    return (random_.below(8) == 0 ? -1.0f : 1.0f) * static_cast<float>(0.01 + 0.02 * random_.uniform());
  }

  void make_scales() {
    Scale& a = host_.scale_a;
    Scale& b = host_.scale_b;
    const bool masked = host_.form == GroupedForm::masked;
    const std::int64_t blocks = (host_.k + kScaleBlock - 1) / kScaleBlock,
                       features = (host_.n + kScaleBlock - 1) / kScaleBlock;
    std::int64_t a_count = 1, b_count = host_.experts;
    host_.scale_b_expert_stride = 1;
    if (kind_ == Kind::block) {
      a.mode = ScaleMode::BlockWise1x128;
      b.mode = ScaleMode::BlockWise128x128;
      const std::int64_t pitch = (host_.rows + 3) / 4 * 4;
      a.outer_stride = variant_.scale_layout == 1 ? blocks : 1;
      a.k_stride = variant_.scale_layout == 1 ? 1 : pitch;
      host_.scale_a_expert_stride = masked ? pitch * blocks : 0;
      b.outer_stride = variant_.scale_layout == 1 ? 1 : blocks;
      b.k_stride = variant_.scale_layout == 1 ? features : 1;
      host_.scale_b_expert_stride = features * blocks;
      a_count = planes_ * pitch * blocks;
      b_count = host_.experts * features * blocks;
    } else {
      if (variant_.row_scale_a) {
        a.mode = ScaleMode::RowWise;
        a.outer_stride = 1;
        host_.scale_a_expert_stride = masked ? host_.rows : 0;
        a_count = planes_ * host_.rows;
      } else if (host_.form == GroupedForm::dropin) {  // one an expert
        host_.scale_a_expert_stride = 1;
        a_count = host_.experts;
      }
      if (variant_.row_scale_b) {
        b.mode = ScaleMode::RowWise;
        b.outer_stride = 1;
        host_.scale_b_expert_stride = host_.n;
        b_count = host_.experts * host_.n;
      }
    }
    scale_a_.resize(static_cast<std::size_t>(std::max<std::int64_t>(a_count, 1)));
    scale_b_.resize(static_cast<std::size_t>(std::max<std::int64_t>(b_count, 1)));
    for (float& scale : scale_a_) scale = draw_scale();
    for (float& scale : scale_b_) scale = draw_scale();
    a.data = scale_a_.data();
    b.data = scale_b_.data();
  }

  template <class T>
  const T* put(std::unique_ptr<DeviceBuffer>& buffer, const std::vector<T>& values, std::int64_t shift = 0) {
    const auto bytes = static_cast<std::int64_t>(values.size() * sizeof(T));
    if (!buffer || buffer->bytes() != bytes) buffer = std::make_unique<DeviceBuffer>(bytes, shift);
    if (bytes > 0) buffer->fill(values.data(), bytes);
    return reinterpret_cast<const T*>(buffer->data());
  }
  void put_indices(const std::vector<std::int64_t>& values, bool wide, std::vector<std::int32_t>& bytes,
                   std::unique_ptr<DeviceBuffer>& buffer, Indices& host, Indices& device) {
    bytes.assign(values.size() * (wide ? 2 : 1), 0);
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (wide)
        std::memcpy(&bytes[2 * i], &values[i], 8);
      else
        bytes[i] = static_cast<std::int32_t>(values[i]);
    }
    host = Indices{bytes.data(), 1, wide};
    device = Indices{put(buffer, bytes), 1, wide};
  }

  void upload() {
    device_ = host_;
    device_.a = put(device_a_, a_, variant_.shift);
    device_.b = put(device_b_, b_, variant_.shift);
    device_.scale_a.data = put(device_scale_a_, scale_a_);
    device_.scale_b.data = put(device_scale_b_, scale_b_);
    const std::int64_t item = size_in_bytes(host_.output_dtype);
    device_out_ = std::make_unique<DeviceBuffer>(out_elements() * item, variant_.shift / item * item);
    device_.out = device_out_->data();
  }

  Kind kind_;
  GroupedVariant variant_;
  Random random_;
  std::int64_t planes_ = 1;
  GroupedGemmProblem host_, device_;
  std::vector<std::uint8_t> a_, b_;
  std::vector<float> scale_a_, scale_b_;
  std::vector<std::int32_t> index_bytes_, pitch_bytes_[3], sizes_;
  std::unique_ptr<DeviceBuffer> device_a_, device_b_, device_scale_a_, device_scale_b_, device_out_, device_rows_,
      device_sizes_, device_pitches_[3];
  std::vector<double> low_, high_, exact_, unit_, emulated_;
  std::vector<unsigned char> kept_;
};

}  // namespace evergemm::gpu_test
