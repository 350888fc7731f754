// SPDX-License-Identifier: Apache-2.0
// Every row of the portable family, forced over every case, against exact sums on the host: as machine code of this GPU, and as
// PTX of compute_75, compute_80 and compute_89 that the driver translates for it, with no machine code of these rows there.
// Usage: portable_test [--variant=native|ptx75|ptx80|ptx89] [--rows=TEXT] [--quick] [--junit=FILE]
// Must not go here: timing.
#include <array>
#include <cstring>
#include <memory>
#include <string>

#include "cuda/portable/instances.h"
#include "cuda/portable/launch.h"
#include "cuda/registry.h"
#include "gemm_cases.h"

namespace evergemm::portable {
extern const Kernels kKernels_ptx75, kKernels_ptx80, kKernels_ptx89;
}  // namespace evergemm::portable

namespace evergemm::gpu_test {
namespace {

using plan_tables::kPortableRows;
using plan_tables::Mainloop;
using plan_tables::MemoryClass;
using plan_tables::PortableTile;

// Products of e4m3 values are exact in fp16's tensor cores, and terms of a step are aligned to the largest: fp32's fraction is
// kept of it at least. A step is what one instruction adds: 16 of k, 8 with Turing's.
constexpr int kFloat16FractionBits = 23;
constexpr proof::AccumulationModel model_of(bool promoted, std::int64_t step) {
  return proof::AccumulationModel{promoted ? "fp16 products, promoted every 128" : "fp16 products",
                                  proof::Accumulator::aligned_truncation, kFloat16FractionBits, step,
                                  promoted ? proof::kPromotionBlock : 0};
}

struct VariantOfBuild {
  const char* name;
  MemoryClass memory;
  const portable::Kernels* kernels;
  std::int64_t step;
  int ptx;  // of the code that runs: 10 * major + minor
};
const std::array kBuilds = {
    VariantOfBuild{"native", MemoryClass::large, &portable::kKernels, 16, 90},
    VariantOfBuild{"ptx75", MemoryClass::turing, &portable::kKernels_ptx75, 8, 75},
    VariantOfBuild{"ptx80", MemoryClass::large, &portable::kKernels_ptx80, 16, 80},
    VariantOfBuild{"ptx89", MemoryClass::small, &portable::kKernels_ptx89, 16, 89},
};

struct Options {
  std::string variant, rows;
  bool quick = false;
};

portable::Row& row_of(const VariantOfBuild& build, std::size_t row) {
  static std::array<std::array<portable::Row, kPortableRows>, kBuilds.size()> rows;
  portable::Row& entry = rows[static_cast<std::size_t>(&build - kBuilds.data())][row];
  entry.kernel_of = (*build.kernels)[static_cast<std::size_t>(build.memory)][row];
  return entry;
}
const PortableTile& tile_of(const VariantOfBuild& build, std::size_t row) {
  return plan_tables::portable_rows_of(build.memory)[row];
}
std::string name_of_row(const VariantOfBuild& build, std::size_t row) {
  return std::string(build.name) + " " + plan_tables::name_of(tile_of(build, row)).text.data();
}

bool selected(const Options& options, const VariantOfBuild& build, std::size_t row) {
  return (options.variant.empty() || options.variant == build.name) &&
         (options.rows.empty() || name_of_row(build, row).find(options.rows) != std::string::npos);
}

Mainloop mainloop_of(Kind kind) {
  return kind == Kind::int8 ? Mainloop::int8 : kind == Kind::fast ? Mainloop::fp8_fast : Mainloop::fp8_promoted;
}

std::string run_row(const VariantOfBuild& build, std::size_t row, const GemmProblem& problem,
                    cudaStream_t stream = nullptr) {
  return portable::launch(name_of_row(build, row).c_str(), tile_of(build, row), row_of(build, row), problem, stream,
                          true)
      .text();
}

Variant draw_variant(Kind kind, Data data, int index, Random& random) {
  Variant variant;
  constexpr std::array kOutputs = {DType::bfloat16, DType::float16, DType::float32};
  variant.output = kOutputs[static_cast<std::size_t>(index % 3)];
  variant.bias = index / 2 % 2 == 0;
  variant.row_scale_a = index % 2 == 0;
  variant.row_scale_b = index / 3 % 2 == 0;
  variant.azp = kind == Kind::int8 ? index % 3 : 0;
  if (index % 2 == 0) {  // aligned operands
    variant.a_pad = random.below(3) * 16;
    variant.b_pad = random.below(3) * 16;
  } else {
    variant.a_pad = random.below(20);
    variant.b_pad = random.below(20);
    variant.shift = random.below(3) == 0 ? 0 : random.below(16);
  }
  constexpr std::array<std::int64_t, 4> kOutPads = {0, 8, 3, 16};
  variant.out_pad = kOutPads[static_cast<std::size_t>(random.below(4))];
  variant.vector_stride = 1 + random.below(2);
  variant.scale_layout = index % 3;
  if (data == Data::exact && variant.output == DType::float16)
    variant.output = DType::bfloat16;  // keep clear of overflow
  return variant;
}

// Residues of m, n and k over a tile and a stage; k from nothing to many rounds of every ring.
constexpr Shape kShapes[] = {
    {1, 64, 16},     {3, 5, 7},        {1, 1, 1},        {7, 72, 128},     {16, 512, 256},   {17, 136, 144},
    {33, 200, 1040}, {70, 131, 257},   {65, 264, 2064},  {1, 300, 4095},   {129, 1032, 640}, {128, 96, 0},
    {300, 776, 640}, {100, 520, 4400}, {257, 1400, 384}, {2050, 264, 528}, {40, 4000, 530},
};
constexpr Shape kQuickShapes[] = {{5, 136, 272}, {130, 264, 656}, {70, 131, 257}};

std::string run_forced_rows(const Options& options, Kind kind, std::int64_t& cases, double& worst_rms) {
  Random random{static_cast<std::uint64_t>(kind) * 1000003 + 17};
  int index = static_cast<int>(kind);
  std::string failures;
  int failed = 0;
  const Shape* begin = options.quick ? std::begin(kQuickShapes) : std::begin(kShapes);
  const Shape* end = options.quick ? std::end(kQuickShapes) : std::end(kShapes);
  for (const Shape* shape = begin; shape != end; ++shape)
    for (const Data data : {Data::random, Data::exact}) {
      if (data == Data::exact && options.quick) continue;
      const Data drawn = kind == Kind::int8 ? Data::random : data;  // int8 is exact anyway: a second draw
      for (const std::int64_t step : {std::int64_t{16}, std::int64_t{8}}) {
        const std::uint64_t seed = random.next();
        bool wanted = false;
        for (const VariantOfBuild& build : kBuilds)
          wanted = wanted || (build.step == step && (options.variant.empty() || options.variant == build.name));
        const Variant variant = draw_variant(kind, drawn, index++, random);
        if (!wanted) continue;
        GemmCase test(kind, drawn, *shape, variant, seed);
        const proof::AccumulationModel model = model_of(kind != Kind::fast, step);
        test.solve(model);
        for (const VariantOfBuild& build : kBuilds) {
          if (build.step != step) continue;
          for (std::size_t row = 0; row < kPortableRows; ++row) {
            if (!selected(options, build, row) || tile_of(build, row).mainloop != mainloop_of(kind)) continue;
            test.poison_output();
            std::string failure = run_row(build, row, test.device_problem());
            require(cudaDeviceSynchronize(), name_of_row(build, row).c_str());
            ++cases;
            if (failure.empty()) failure = test.judge(true);
            if (failure.empty() || failed++ >= 12) continue;
            failures += "\n    " + name_of_row(build, row) + ", " + test.text() + ", seed " + std::to_string(seed) +
                        ": " + failure;
          }
        }
        worst_rms = std::max(worst_rms, test.worst_rms());
      }
    }
  return failed == 0 ? "" : std::to_string(failed) + " failures" + failures;
}

// NaN of either operand reaches its row or column, and nothing else.
std::string spread_nan(const Options& options, std::int64_t& cases) {
  for (const VariantOfBuild& build : kBuilds)
    for (std::size_t row = 0; row < kPortableRows; ++row) {
      if (!selected(options, build, row) || tile_of(build, row).mainloop == Mainloop::int8) continue;
      constexpr std::int64_t m = 40, n = 72, k = 160;
      Random random{99};
      std::vector<std::uint8_t> a(m * k), b(n * k);
      for (std::uint8_t& code : a) code = static_cast<std::uint8_t>(0x30 + random.below(9));
      for (std::uint8_t& code : b) code = static_cast<std::uint8_t>(0x30 + random.below(9));
      a[17 * k + 93] = 0x7f;
      b[33 * k + 150] = 0xff;
      a[20 * k + 3] = 0x7e;  // the largest value is none
      const float one = 1.0f;
      DeviceBuffer da(m * k), db(n * k), scale(4), out(m * n * 4);
      da.fill(a.data(), m * k);
      db.fill(b.data(), n * k);
      scale.fill(&one, 4);
      GemmProblem p;
      p.m = m;
      p.n = n;
      p.k = p.a_stride = p.b_stride = k;
      p.out_stride = n;
      p.input_dtype = DType::float8_e4m3fn;
      p.output_dtype = DType::float32;
      p.a = da.data();
      p.b = db.data();
      p.out = out.data();
      p.scale_a.data = p.scale_b.data = reinterpret_cast<const float*>(scale.data());
      p.device = Device{DeviceType::cuda, 0};
      const std::string failure = run_row(build, row, p);
      require(cudaDeviceSynchronize(), "nan");
      ++cases;
      if (!failure.empty()) return failure;
      bool zones = false;
      const std::vector<unsigned char> got = out.read(zones);
      for (std::int64_t i = 0; i < m; ++i)
        for (std::int64_t j = 0; j < n; ++j) {
          float value;
          std::memcpy(&value, got.data() + (i * n + j) * 4, 4);
          if (std::isnan(value) != (i == 17 || j == 33))
            return name_of_row(build, row) + ": element " + proof::at(i, j) + " is " + std::to_string(value);
        }
    }
  return "";
}

// Every code of e4m3 times one, so that each conversion shows.
std::string convert_every_code(const Options& options, std::int64_t& cases) {
  for (const VariantOfBuild& build : kBuilds)
    for (std::size_t row = 0; row < kPortableRows; ++row) {
      if (!selected(options, build, row) || tile_of(build, row).mainloop == Mainloop::int8) continue;
      constexpr std::int64_t codes = 256, k = 32;
      for (const bool of_a : {true, false}) {
        std::vector<std::uint8_t> every(codes * k), one(k);
        for (std::int64_t code = 0; code < codes; ++code)
          every[static_cast<std::size_t>(code * k + code % k)] = static_cast<std::uint8_t>(code);
        for (std::uint8_t& byte : one) byte = 0x38;
        const float unit = 1.0f;
        DeviceBuffer d_every(codes * k), d_one(k), scale(4), out(codes * 4);
        d_every.fill(every.data(), codes * k);
        d_one.fill(one.data(), k);
        scale.fill(&unit, 4);
        GemmProblem p;
        p.m = of_a ? codes : 1;
        p.n = of_a ? 1 : codes;
        p.k = p.a_stride = p.b_stride = k;
        p.out_stride = p.n;
        p.input_dtype = DType::float8_e4m3fn;
        p.output_dtype = DType::float32;
        p.a = of_a ? d_every.data() : d_one.data();
        p.b = of_a ? d_one.data() : d_every.data();
        p.out = out.data();
        p.scale_a.data = p.scale_b.data = reinterpret_cast<const float*>(scale.data());
        p.device = Device{DeviceType::cuda, 0};
        const std::string failure = run_row(build, row, p);
        require(cudaDeviceSynchronize(), "codes");
        ++cases;
        if (!failure.empty()) return failure;
        bool zones = false;
        const std::vector<unsigned char> got = out.read(zones);
        for (std::int64_t code = 0; code < codes; ++code) {
          float value;
          std::memcpy(&value, got.data() + code * 4, 4);
          const double expected = proof::decode_float8_e4m3fn(static_cast<std::uint8_t>(code));
          if (std::isnan(expected) ? !std::isnan(value) : static_cast<double>(value) != expected)
            return name_of_row(build, row) + ": code " + std::to_string(code) + " is " + std::to_string(value);
        }
      }
    }
  return "";
}

// Which code runs: the PTX variants must not have found machine code.
std::string check_origin(const Options& options, std::int64_t& cases) {
  for (const VariantOfBuild& build : kBuilds)
    for (std::size_t row = 0; row < kPortableRows; ++row) {
      if (!selected(options, build, row)) continue;
      cudaFuncAttributes attributes{};
      require(cudaFuncGetAttributes(&attributes, row_of(build, row).kernel_of()), name_of_row(build, row).c_str());
      ++cases;
      if (attributes.ptxVersion != build.ptx)
        return name_of_row(build, row) + ": compiled from PTX " + std::to_string(attributes.ptxVersion) +
               ", expected " + std::to_string(build.ptx);
      if (attributes.localSizeBytes > 64)
        std::printf("  %s spills %zu bytes a thread\n", name_of_row(build, row).c_str(), attributes.localSizeBytes);
    }
  return "";
}

}  // namespace
}  // namespace evergemm::gpu_test

int main(int argument_count, char** arguments) {
  using namespace evergemm::gpu_test;
  Options options;
  const char* junit = nullptr;
  for (int i = 1; i < argument_count; ++i) {
    if (std::strncmp(arguments[i], "--variant=", 10) == 0) options.variant = arguments[i] + 10;
    if (std::strncmp(arguments[i], "--rows=", 7) == 0) options.rows = arguments[i] + 7;
    if (std::strcmp(arguments[i], "--quick") == 0) options.quick = true;
    if (std::strncmp(arguments[i], "--junit=", 8) == 0) junit = arguments[i] + 8;
  }
  Report report;
  report.test("portable", "origin", [&](std::int64_t& cases) { return check_origin(options, cases); });
  report.test("portable", "codes", [&](std::int64_t& cases) { return convert_every_code(options, cases); });
  report.test("portable", "nan", [&](std::int64_t& cases) { return spread_nan(options, cases); });
  for (const Kind kind : {Kind::int8, Kind::fast, Kind::promoted, Kind::block}) {
    double worst_rms = 0;
    report.test("portable", std::string("rows_") + name(kind),
                [&](std::int64_t& cases) { return run_forced_rows(options, kind, cases, worst_rms); });
    if (worst_rms > 0) std::printf("  worst RMS error of a tile: %.3f of the emulator's\n", worst_rms);
  }
  return report.finish(junit);
}
