// SPDX-License-Identifier: Apache-2.0
// Every CUDA quantizer and permute_cols against the reference, bit for bit: outputs, gaps between rows and red zones alike.
// Usage: quantize_test [--quick] [--only=TEXT] [--junit=FILE]     tests whose name holds TEXT
// Must not go here: timing.
#include <array>
#include <cmath>
#include <cstring>
#include <string>

#include "cuda/registry.h"
#include "evergemm/numerics.h"
#include "evergemm/reference.h"
#include "harness.h"

namespace evergemm::gpu_test {
namespace {

using Bytes = std::vector<unsigned char>;

void put(DType type, Bytes& bytes, std::int64_t at, float value) {
  const std::uint16_t half =
      type == DType::float16 ? numerics::float_to_float16(value) : numerics::float_to_bfloat16(value);
  if (type == DType::float32)
    std::memcpy(&bytes[static_cast<std::size_t>(at * 4)], &value, 4);
  else
    std::memcpy(&bytes[static_cast<std::size_t>(at * 2)], &half, 2);
}

// Mostly normal values; now and then the ones that break quantizers.
float draw(Random& random, bool special) {
  constexpr std::array kSpecial = {0.0f,     -0.0f,  INFINITY, -INFINITY, NAN,    3.4e38f,
                                   -3.4e38f, 1e-38f, 1e-44f,   65504.0f,  448.0f, -1e-30f};
  if (special && random.below(199) == 0) return kSpecial[static_cast<std::size_t>(random.below(kSpecial.size()))];
  const float x = static_cast<float>((random.uniform() + random.uniform() + random.uniform() - 1.5) * 4);
  return std::ldexp(x, static_cast<int>(random.below(7)) - 3);
}

struct Setup {
  QuantizeScheme scheme;
  QuantizeSource source;
  std::int64_t group_rows, group_columns;  // 0 columns: the whole row
};

std::string text_of(const QuantizeProblem& p) {
  return "scheme " + std::to_string(static_cast<int>(p.scheme)) + " source " +
         std::to_string(static_cast<int>(p.source)) + " " + std::to_string(p.rows) + " x " + std::to_string(p.columns) +
         " group " + std::to_string(p.group_rows) + " x " + std::to_string(p.group_columns) + " " + name(p.x_dtype) +
         " to " + name(p.q_dtype) + " strides " + std::to_string(p.x_stride) + ", " + std::to_string(p.q_stride) +
         " gated " + std::to_string(p.gated) + " activation " + std::to_string(static_cast<int>(p.activation)) +
         " power of two " + std::to_string(p.power_of_two_scales);
}

// One problem on host and device; "" or what differs.
std::string compare(const Setup& setup, std::int64_t rows, std::int64_t columns, DType x_type, DType q_type,
                    std::uint64_t seed, bool misaligned) {
  Random random{seed};
  const bool special = random.below(2) == 0;
  const bool dropin =
      setup.scheme == QuantizeScheme::dropin_group || setup.scheme == QuantizeScheme::dropin_group_packed;
  const bool packed = setup.scheme == QuantizeScheme::dropin_group_packed;
  const std::int64_t element = size_in_bytes(x_type);
  QuantizeProblem p;
  p.scheme = setup.scheme;
  p.source = setup.source;
  p.rows = rows;
  p.columns = columns;
  p.x_dtype = x_type;
  p.q_dtype = q_type;
  p.group_rows = setup.group_rows;
  p.group_columns = setup.group_columns;
  if (p.scheme == QuantizeScheme::per_row || p.scheme == QuantizeScheme::per_row_asymmetric) p.group_columns = columns;
  if (p.scheme == QuantizeScheme::per_tensor) p.group_rows = rows, p.group_columns = columns;
  p.gated = p.source == QuantizeSource::activation && random.below(2) == 0;
  p.activation = static_cast<Activation>(random.below(3));
  p.x_stride = (p.gated ? 2 : 1) * columns + (misaligned ? random.below(3) : random.below(2) * 16);
  p.q_stride = packed ? columns : columns + (misaligned ? random.below(3) : random.below(2) * 16);
  p.power_of_two_scales = !packed && random.below(3) == 0 && p.scheme != QuantizeScheme::per_row_asymmetric;
  p.eps = dropin ? 1e-10f : 1e-5f;
  p.q_max = q_type == DType::int8 ? 127.0f : 448.0f;
  p.q_min = q_type == DType::int8 ? -128.0f : -448.0f;
  p.device = Device{DeviceType::cuda, 0};
  p.q_rows = packed ? rows + random.below(4) : rows;

  const std::int64_t groups =
      p.group_columns == 0 ? 1 : std::max<std::int64_t>(1, (columns + p.group_columns - 1) / p.group_columns);
  const std::int64_t row_groups =
      std::max<std::int64_t>(1, (rows + p.group_rows - 1) / std::max<std::int64_t>(1, p.group_rows));
  const bool column_major = random.below(2) == 0;
  p.scale_row_stride = column_major ? 1 : groups;
  p.scale_group_stride = column_major ? row_groups + 1 : 1;
  std::int64_t scale_count = (groups + 1) * (row_groups + 1);
  if (packed) {
    p.scale_row_stride = 1;
    p.packed_columns_stride = (rows + 3) / 4 * 4;
    scale_count = rows + ((groups + 3) / 4 - 1) * p.packed_columns_stride;
  }

  const std::int64_t shift = misaligned ? element * (1 + random.below(3)) : 0;
  Bytes x(static_cast<std::size_t>(rows * p.x_stride * element), 0xFF), weight, residual, bound;
  for (std::int64_t i = 0; i < rows; ++i)
    for (std::int64_t j = 0; j < (p.gated ? 2 : 1) * columns; ++j)
      put(x_type, x, i * p.x_stride + j, draw(random, special));
  if (rows > 2 && columns > 0)
    for (std::int64_t j = 0; j < columns; ++j) put(x_type, x, p.x_stride + j, 0.0f);  // a row of zeros
  if (p.source == QuantizeSource::rms_norm) {
    p.weight_stride = 1 + random.below(2);
    weight.assign(static_cast<std::size_t>(columns * p.weight_stride * element), 0xFF);
    for (std::int64_t j = 0; j < columns; ++j) put(x_type, weight, j * p.weight_stride, draw(random, false));
    if (random.below(2) == 0) {
      p.residual_stride = columns + (misaligned ? 1 : 8);
      residual.assign(static_cast<std::size_t>(rows * p.residual_stride * element), 0xFF);
      for (std::int64_t i = 0; i < rows; ++i)
        for (std::int64_t j = 0; j < columns; ++j)
          put(x_type, residual, i * p.residual_stride + j, draw(random, special));
    }
  }
  if (p.scheme == QuantizeScheme::per_row && random.below(2) == 0) {
    const float limit = 0.75f;
    bound.resize(4);
    std::memcpy(bound.data(), &limit, 4);
  }
  Bytes q(static_cast<std::size_t>(std::max(p.q_rows, rows) * p.q_stride), 0xFF),
      scale(static_cast<std::size_t>(scale_count * 4), 0xFF), azp(static_cast<std::size_t>(rows * 4), 0xFF);
  if (p.scheme == QuantizeScheme::with_given_scale)
    for (std::int64_t i = 0; i < scale_count; ++i)
      put(DType::float32, scale, i,
          special && random.below(50) == 0 ? draw(random, true) : static_cast<float>(0.001 + random.uniform()));

  DeviceBuffer dx(static_cast<std::int64_t>(x.size()), shift), dq(static_cast<std::int64_t>(q.size())),
      dscale(static_cast<std::int64_t>(scale.size())), dazp(static_cast<std::int64_t>(azp.size())),
      dweight(static_cast<std::int64_t>(weight.size()), misaligned ? element : 0),
      dresidual(static_cast<std::int64_t>(residual.size())), dbound(4);
  dx.fill(x.data(), dx.bytes());
  dscale.fill(scale.data(), dscale.bytes());
  dweight.fill(weight.data(), dweight.bytes());
  dresidual.fill(residual.data(), dresidual.bytes());
  if (!bound.empty()) dbound.fill(bound.data(), 4);

  QuantizeProblem on_device = p;
  on_device.x = dx.data();
  on_device.q = dq.data();
  on_device.scale = dscale.data();
  on_device.azp = reinterpret_cast<std::int32_t*>(dazp.data());
  on_device.azp_stride = 1;
  on_device.weight = weight.empty() ? nullptr : dweight.data();
  on_device.residual = residual.empty() ? nullptr : dresidual.data();
  on_device.scale_upper_bound = bound.empty() ? nullptr : reinterpret_cast<const float*>(dbound.data());
  p.x = x.data();
  p.q = q.data();
  p.scale = scale.data();
  p.azp = reinterpret_cast<std::int32_t*>(azp.data());
  p.azp_stride = 1;
  p.weight = weight.empty() ? nullptr : weight.data();
  p.residual = residual.empty() ? nullptr : residual.data();
  p.scale_upper_bound = bound.empty() ? nullptr : reinterpret_cast<const float*>(bound.data());

  reference::quantize(p);
  const Status status = run_cuda(plan_here(), on_device, RunContext());
  require(cudaDeviceSynchronize(), text_of(p).c_str());
  if (!status.ok()) return text_of(p) + ": " + status.text();
  bool zones[5];
  const std::array<std::pair<const char*, std::pair<Bytes, const Bytes*>>, 4> pairs = {{
      {"q", {dq.read(zones[0]), &q}},
      {"scale", {dscale.read(zones[1]), &scale}},
      {"azp", {dazp.read(zones[2]), &azp}},
      {"residual", {dresidual.read(zones[3]), &residual}},
  }};
  const Bytes x_after = dx.read(zones[4]);
  const auto residual_is_nan = [&](std::size_t byte,
                                   const Bytes& bytes) {  // processors differ in the bits of a new NaN
    const std::size_t first = byte / static_cast<std::size_t>(element) * static_cast<std::size_t>(element);
    if (x_type == DType::float32) {
      float value;
      std::memcpy(&value, &bytes[first], 4);
      return std::isnan(value);
    }
    const unsigned code = bytes[first] + bytes[first + 1] * 256u;
    return (code & 0x7fffu) > (x_type == DType::bfloat16 ? 0x7f80u : 0x7c00u);
  };
  for (const auto& [what, bytes] : pairs)
    for (std::size_t i = 0; i < bytes.second->size(); ++i)
      if (bytes.first[i] != (*bytes.second)[i] &&
          !(bytes.second == &residual && residual_is_nan(i, bytes.first) && residual_is_nan(i, residual)))
        return text_of(p) + ", seed " + std::to_string(seed) + ": byte " + std::to_string(i) + " of " + what + " is " +
               std::to_string(bytes.first[i]) + ", the reference has " + std::to_string((*bytes.second)[i]);
  if (!(zones[0] && zones[1] && zones[2] && zones[3] && zones[4])) return text_of(p) + ": wrote into a red zone";
  return x_after == x ? "" : text_of(p) + ": changed x";
}

constexpr std::array kTypes = {DType::bfloat16, DType::float16, DType::float32};
constexpr std::array kEights = {DType::int8, DType::float8_e4m3fn};

std::string run_setup(const Setup& setup, bool quick, std::int64_t& cases) {
  constexpr std::array<std::array<std::int64_t, 2>, 15> kShapes = {{{1, 8},
                                                                    {3, 64},
                                                                    {5, 100},
                                                                    {2, 128},
                                                                    {7, 200},
                                                                    {4, 1000},
                                                                    {129, 256},
                                                                    {33, 1024},
                                                                    {1, 8192},
                                                                    {5, 7168},
                                                                    {300, 2048},
                                                                    {270, 1000},
                                                                    {2, 33000},
                                                                    {1, 1},
                                                                    {2, 40000}}};
  std::uint64_t seed =
      17 + 1000 * static_cast<std::uint64_t>(setup.scheme) + 100 * static_cast<std::uint64_t>(setup.source);
  for (const auto& [rows, columns] : kShapes) {
    if (quick && rows * columns > 8000) continue;
    for (const DType x_type : kTypes)
      for (const DType q_type : kEights) {
        if (setup.scheme == QuantizeScheme::per_row_asymmetric && q_type != DType::int8) continue;
        if (setup.scheme == QuantizeScheme::dropin_group_packed && q_type == DType::int8) continue;
        const bool dropin =
            setup.scheme == QuantizeScheme::dropin_group || setup.scheme == QuantizeScheme::dropin_group_packed;
        if (dropin && columns % setup.group_columns != 0) continue;
        for (const bool misaligned : {false, true}) {
          const std::string failure = compare(setup, rows, columns, x_type, q_type, seed++, misaligned);
          ++cases;
          if (!failure.empty()) return failure;
        }
      }
  }
  return "";
}

// All 65536 values of both 16-bit types, against scales of every size, signs and specials included.
std::string run_all_values(bool quick, std::int64_t& cases) {
  std::vector<float> scales = {1.0f,     0.5f, 3.0f,     1e-38f,   3e38f,    -1.0f,    0.0f,
                               INFINITY, NAN,  8.6e-19f, 8.7e-19f, 1.15e18f, 1.16e18f, 1e-44f};
  Random random{99};
  while (scales.size() < (quick ? 20u : 400u))
    scales.push_back(std::ldexp(1.0f + static_cast<float>(random.uniform()), static_cast<int>(random.below(60)) - 30));
  for (const DType x_type : {DType::bfloat16, DType::float16})
    for (const DType q_type : kEights) {
      const std::int64_t columns = 8192, rows = 8;
      Bytes x(65536 * 2), q(65536);
      for (std::uint32_t i = 0; i < 65536; ++i) {
        x[i * 2] = static_cast<unsigned char>(i);
        x[i * 2 + 1] = static_cast<unsigned char>(i >> 8);
      }
      DeviceBuffer dx(65536 * 2), dq(65536), dscale(4);
      dx.fill(x.data(), dx.bytes());
      for (const float value : scales) {
        float scale = value;
        dscale.fill(&scale, 4);
        QuantizeProblem p;
        p.scheme = QuantizeScheme::with_given_scale;
        p.rows = p.group_rows = rows;
        p.columns = p.group_columns = p.x_stride = p.q_stride = columns;
        p.x_dtype = x_type;
        p.q_dtype = q_type;
        p.device = Device{DeviceType::cuda, 0};
        QuantizeProblem on_device = p;
        on_device.x = dx.data();
        on_device.q = dq.data();
        on_device.scale = dscale.data();
        p.x = x.data();
        p.q = q.data();
        p.scale = &scale;
        reference::quantize(p);
        const Status status = run_cuda(plan_here(), on_device, RunContext());
        require(cudaDeviceSynchronize(), "all values");
        if (!status.ok()) return status.text();
        bool zones;
        const Bytes got = dq.read(zones);
        ++cases;
        for (std::size_t i = 0; i < 65536; ++i)
          if (got[i] != q[i])
            return std::string(name(x_type)) + " code " + std::to_string(i) + " over scale " + std::to_string(scale) +
                   " to " + name(q_type) + " is " + std::to_string(got[i]) + ", the reference has " +
                   std::to_string(q[i]);
      }
    }
  return "";
}

// Every value of both 16-bit types under the scale of a group's largest magnitude, for every mantissa that one can have (float16:
// each seventh): a quotient depends on nothing else but powers of two. Groups of eight: the largest, then seven values.
std::string run_all_ratios(bool quick, std::int64_t& cases) {
  constexpr std::int64_t kColumns = 8192, kGroup = 8, kRowsEach = 10;  // 10 x 1024 groups x 7 hold 65,536 codes
  for (const DType x_type : {DType::bfloat16, DType::float16}) {
    const int mantissa_bits = x_type == DType::bfloat16 ? 7 : 10, step = x_type == DType::bfloat16 ? 1 : 7;
    const std::uint32_t one = x_type == DType::bfloat16 ? 0x3f80u : 0x3c00u;
    for (std::uint32_t first = 0; first < 1u << mantissa_bits; first += 16u * static_cast<std::uint32_t>(step)) {
      if (quick && first > 0) continue;
      std::vector<std::uint32_t> largest;  // of one pass, between 8 and 16
      for (std::uint32_t i = first; i < 1u << mantissa_bits && largest.size() < 16;
           i += static_cast<std::uint32_t>(step))
        largest.push_back(one + (3u << mantissa_bits) + i);
      const std::int64_t rows = static_cast<std::int64_t>(largest.size()) * kRowsEach, elements = rows * kColumns;
      Bytes x(static_cast<std::size_t>(elements * 2));
      for (std::int64_t i = 0; i < elements; ++i) {
        const std::uint32_t top = largest[static_cast<std::size_t>(i / kColumns / kRowsEach)];
        const std::int64_t in_pass = i % (kRowsEach * kColumns);
        const auto code = static_cast<std::uint32_t>(in_pass / kGroup * 7 + in_pass % kGroup - 1);
        const std::uint32_t value = in_pass % kGroup == 0 ? top : code < 65536u && (code & 0x7fffu) <= top ? code : 0u;
        x[static_cast<std::size_t>(i * 2)] = static_cast<unsigned char>(value);
        x[static_cast<std::size_t>(i * 2 + 1)] = static_cast<unsigned char>(value >> 8);
      }
      DeviceBuffer dx(elements * 2), dq(elements), dscale(elements / kGroup * 4);
      dx.fill(x.data(), dx.bytes());
      for (const DType q_type : kEights) {
        Bytes q(static_cast<std::size_t>(elements));
        std::vector<float> scale(static_cast<std::size_t>(elements / kGroup));
        QuantizeProblem p;
        p.scheme = QuantizeScheme::per_block;
        p.rows = rows;
        p.columns = p.x_stride = p.q_stride = kColumns;
        p.group_columns = kGroup;
        p.scale_row_stride = kColumns / kGroup;
        p.scale_group_stride = 1;
        p.x_dtype = x_type;
        p.q_dtype = q_type;
        p.device = Device{DeviceType::cuda, 0};
        QuantizeProblem on_device = p;
        on_device.x = dx.data();
        on_device.q = dq.data();
        on_device.scale = dscale.data();
        p.x = x.data();
        p.q = q.data();
        p.scale = scale.data();
        for_all_threads(rows, [&](std::int64_t begin, std::int64_t end) {
          QuantizeProblem part = p;
          part.rows = end - begin;
          part.x = x.data() + begin * kColumns * 2;
          part.q = q.data() + begin * kColumns;
          part.scale = scale.data() + begin * kColumns / kGroup;
          reference::quantize(part);
        });
        const Status status = run_cuda(plan_here(), on_device, RunContext());
        require(cudaDeviceSynchronize(), "all ratios");
        if (!status.ok()) return status.text();
        bool zones;
        const Bytes got = dq.read(zones);
        ++cases;
        for (std::size_t i = 0; i < got.size(); ++i)
          if (got[i] != q[i])
            return std::string(name(x_type)) + " " + std::to_string(x[i * 2] + x[i * 2 + 1] * 256) + " under " +
                   std::to_string(largest[i / static_cast<std::size_t>(kColumns * kRowsEach)]) + " to " + name(q_type) +
                   " is " + std::to_string(got[i]) + ", the reference has " + std::to_string(q[i]);
      }
    }
  }
  return "";
}

// The activation of every value of both 16-bit types, each alone among zeros in a group of eight: the group's scale is its
// magnitude over 127 or 448, so that one wrong bit shows in one of the two.
std::string run_all_activations(std::int64_t& cases) {
  const std::int64_t rows = 512, columns = 1024, group = 8;
  for (const Activation activation : {Activation::silu, Activation::gelu, Activation::relu_squared})
    for (const DType x_type : {DType::bfloat16, DType::float16})
      for (const DType q_type : kEights) {
        Bytes x(65536 * group * 2, 0), q(65536 * group);
        std::vector<float> scale(65536);
        for (std::uint32_t code = 0; code < 65536; ++code) {
          const std::size_t at = (code * group + code % group) * 2;
          x[at] = static_cast<unsigned char>(code);
          x[at + 1] = static_cast<unsigned char>(code >> 8);
        }
        DeviceBuffer dx(static_cast<std::int64_t>(x.size())), dq(static_cast<std::int64_t>(q.size())),
            dscale(65536 * 4);
        dx.fill(x.data(), dx.bytes());
        QuantizeProblem p;
        p.scheme = QuantizeScheme::per_block;
        p.source = QuantizeSource::activation;
        p.activation = activation;
        p.rows = rows;
        p.columns = p.x_stride = p.q_stride = columns;
        p.group_columns = group;
        p.scale_row_stride = columns / group;
        p.scale_group_stride = 1;
        p.x_dtype = x_type;
        p.q_dtype = q_type;
        p.device = Device{DeviceType::cuda, 0};
        QuantizeProblem on_device = p;
        on_device.x = dx.data();
        on_device.q = dq.data();
        on_device.scale = dscale.data();
        p.x = x.data();
        p.q = q.data();
        p.scale = scale.data();
        reference::quantize(p);
        const Status status = run_cuda(plan_here(), on_device, RunContext());
        require(cudaDeviceSynchronize(), "all activations");
        if (!status.ok()) return status.text();
        bool zones;
        const Bytes got = dq.read(zones), got_scale = dscale.read(zones);
        ++cases;
        for (std::uint32_t code = 0; code < 65536; ++code)
          if (std::memcmp(&got_scale[code * 4], &scale[code], 4) != 0 ||
              std::memcmp(&got[static_cast<std::size_t>(code * group)], &q[static_cast<std::size_t>(code * group)],
                          static_cast<std::size_t>(group)) != 0)
            return "activation " + std::to_string(static_cast<int>(activation)) + " of " + name(x_type) + " code " +
                   std::to_string(code) + " to " + name(q_type) + " differs from the reference";
      }
  return "";
}

std::string run_permute(std::int64_t& cases) {
  Random random{3};
  for (const auto& [rows, columns] :
       {std::pair<std::int64_t, std::int64_t>{1, 1}, {3, 7}, {17, 256}, {130, 1000}, {9, 5000}}) {
    std::vector<std::uint16_t> a(static_cast<std::size_t>(rows * columns)), out(a.size(), 0xFFFF);
    std::vector<std::int32_t> perm(static_cast<std::size_t>(columns * 2));
    for (std::uint16_t& value : a) value = static_cast<std::uint16_t>(random.next());
    for (std::int32_t& value : perm)
      value = random.below(20) == 0 ? static_cast<std::int32_t>(random.next())
                                    : static_cast<std::int32_t>(random.below(columns));
    DeviceBuffer da(static_cast<std::int64_t>(a.size() * 2)), dperm(static_cast<std::int64_t>(perm.size() * 4)),
        dout(static_cast<std::int64_t>(a.size() * 2));
    da.fill(a.data(), da.bytes());
    dperm.fill(perm.data(), dperm.bytes());
    PermuteProblem p{rows, columns, a.data(), perm.data(), 2, out.data(), Device{DeviceType::cuda, 0}};
    reference::permute(p);
    p.a = reinterpret_cast<const std::uint16_t*>(da.data());
    p.perm = reinterpret_cast<const std::int32_t*>(dperm.data());
    p.out = reinterpret_cast<std::uint16_t*>(dout.data());
    const Status status = run_cuda(plan_here(), p, RunContext());
    require(cudaDeviceSynchronize(), "permute");
    if (!status.ok()) return status.text();
    bool zones;
    const Bytes got = dout.read(zones);
    ++cases;
    if (!zones || std::memcmp(got.data(), out.data(), got.size()) != 0)
      return std::to_string(rows) + " x " + std::to_string(columns) + " differs from the reference";
  }
  return "";
}

}  // namespace
}  // namespace evergemm::gpu_test

int main(int argument_count, char** arguments) {
  using namespace evergemm;
  using namespace evergemm::gpu_test;
  bool quick = false;
  const char* junit = nullptr;
  std::string only;
  for (int i = 1; i < argument_count; ++i) {
    if (std::strcmp(arguments[i], "--quick") == 0) quick = true;
    if (std::strncmp(arguments[i], "--only=", 7) == 0) only = arguments[i] + 7;
    if (std::strncmp(arguments[i], "--junit=", 8) == 0) junit = arguments[i] + 8;
  }
  using Scheme = QuantizeScheme;
  using Source = QuantizeSource;
  struct Named {
    const char* name;
    Setup setup;
  };
  const Named setups[] = {
      {"per_tensor", {Scheme::per_tensor, Source::copy, 1, 0}},
      {"given_tensor", {Scheme::with_given_scale, Source::copy, 1 << 20, 1 << 20}},
      {"given_row", {Scheme::with_given_scale, Source::copy, 1, 1 << 20}},
      {"given_group", {Scheme::with_given_scale, Source::copy, 1, 128}},
      {"given_block", {Scheme::with_given_scale, Source::copy, 128, 128}},
      {"per_row", {Scheme::per_row, Source::copy, 1, 0}},
      {"per_row_asymmetric", {Scheme::per_row_asymmetric, Source::copy, 1, 0}},
      {"per_group_128", {Scheme::per_block, Source::copy, 1, 128}},
      {"per_group_64", {Scheme::per_block, Source::copy, 1, 64}},
      {"per_group_100", {Scheme::per_block, Source::copy, 1, 100}},
      {"per_group_32", {Scheme::per_block, Source::copy, 1, 32}},
      {"per_group_16", {Scheme::per_block, Source::copy, 1, 16}},
      {"per_block", {Scheme::per_block, Source::copy, 128, 128}},
      {"activation_row", {Scheme::per_row, Source::activation, 1, 0}},
      {"activation_group", {Scheme::per_block, Source::activation, 1, 128}},
      {"activation_group_16", {Scheme::per_block, Source::activation, 1, 16}},
      {"rms_norm_row", {Scheme::per_row, Source::rms_norm, 1, 0}},
      {"rms_norm_group", {Scheme::per_block, Source::rms_norm, 1, 128}},
      {"dropin_group", {Scheme::dropin_group, Source::copy, 1, 128}},
      {"dropin_group_8", {Scheme::dropin_group, Source::copy, 1, 8}},
      {"dropin_group_50", {Scheme::dropin_group, Source::copy, 1, 50}},
      {"dropin_group_packed", {Scheme::dropin_group_packed, Source::copy, 1, 128}},
  };
  Report report;
  const auto test = [&](const char* suite, const char* name, const std::function<std::string(std::int64_t&)>& body) {
    if (std::string(name).find(only) != std::string::npos) report.test(suite, name, body);
  };
  for (const Named& entry : setups)
    test("quantize", entry.name, [&](std::int64_t& cases) { return run_setup(entry.setup, quick, cases); });
  test("quantize", "all_values", [&](std::int64_t& cases) { return run_all_values(quick, cases); });
  test("quantize", "all_ratios", [&](std::int64_t& cases) { return run_all_ratios(quick, cases); });
  test("quantize", "all_activations", [&](std::int64_t& cases) { return run_all_activations(cases); });
  test("permute", "columns", [&](std::int64_t& cases) { return run_permute(cases); });
  return report.finish(junit);
}
