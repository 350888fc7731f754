// SPDX-License-Identifier: Apache-2.0
// Every row of the portable family, forced over every case, against exact sums on the host: as machine code of this GPU, and as
// PTX of compute_75, compute_80 and compute_89 that the driver translates for it, with no machine code of these rows there.
// Usage: portable_test [--variant=native|ptx75|ptx80|ptx89] [--rows=TEXT] [--quick | --tiny] [--junit=FILE]     rows whose name
// holds TEXT; a reduced set for compute-sanitizer, and the least that takes a row through all its barriers.
// Must not go here: timing.
#include <array>
#include <cstring>
#include <memory>
#include <string>

#include "cuda/portable/instances.h"
#include "cuda/portable/launch.h"
#include "cuda/registry.h"
#include "gemm_cases.h"
#include "plan/portable_grouped.h"

namespace evergemm::portable {
extern const Kernels kKernels_ptx75, kKernels_ptx80, kKernels_ptx89;
extern const Kernels kGroupedKernels_ptx75, kGroupedKernels_ptx80, kGroupedKernels_ptx89;
extern const Kernels kSumKernels_ptx75, kSumKernels_ptx80, kSumKernels_ptx89;
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
  const portable::Kernels* grouped;
  const portable::Kernels* sums;
  std::int64_t step;
  int ptx;  // of the code that runs: 10 * major + minor
};
const std::array kBuilds = {
    VariantOfBuild{"native", MemoryClass::large, &portable::kKernels, &portable::kGroupedKernels,
                   &portable::kSumKernels, 16, 90},
    VariantOfBuild{"ptx75", MemoryClass::turing, &portable::kKernels_ptx75, &portable::kGroupedKernels_ptx75,
                   &portable::kSumKernels_ptx75, 8, 75},
    VariantOfBuild{"ptx80", MemoryClass::large, &portable::kKernels_ptx80, &portable::kGroupedKernels_ptx80,
                   &portable::kSumKernels_ptx80, 16, 80},
    VariantOfBuild{"ptx89", MemoryClass::small, &portable::kKernels_ptx89, &portable::kGroupedKernels_ptx89,
                   &portable::kSumKernels_ptx89, 16, 89},
};

struct Options {
  std::string variant, rows;
  bool quick = false, tiny = false;
};

portable::Row& row_of(const VariantOfBuild& build, std::size_t row, bool grouped = false) {
  static std::array<std::array<std::array<portable::Row, kPortableRows>, kBuilds.size()>, 2> rows;
  portable::Row& entry = rows[grouped ? 1 : 0][static_cast<std::size_t>(&build - kBuilds.data())][row];
  entry.kernel_of = (grouped ? *build.grouped : *build.kernels)[static_cast<std::size_t>(build.memory)][row];
  entry.sum_kernel_of = (*build.sums)[static_cast<std::size_t>(build.memory)][row];
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

bool any_selected(const Options& options, Kind kind, bool grouped = false) {
  for (const VariantOfBuild& build : kBuilds)
    for (std::size_t row = 0; row < kPortableRows; ++row)
      if (selected(options, build, row) && tile_of(build, row).mainloop == mainloop_of(kind) &&
          (!grouped || plan_tables::has_grouped(tile_of(build, row))))
        return true;
  return false;
}

std::string run_row(const VariantOfBuild& build, std::size_t row, const GemmProblem& problem,
                    cudaStream_t stream = nullptr) {
  return portable::launch(name_of_row(build, row).c_str(), tile_of(build, row), row_of(build, row), problem, 1, nullptr,
                          stream, true)
      .text();
}

// The same with k split: exact where the answer is, inside the bound elsewhere, twice the same bits. "" also where k is too
// short for two parts.
std::string run_row_split(const VariantOfBuild& build, std::size_t row, GemmCase& test, std::int64_t wanted,
                          std::int64_t& cases) {
  const GemmProblem& problem = test.device_problem();
  const PortableTile& tile = tile_of(build, row);
  const std::int64_t parts = plan_tables::parts_of(problem.k, wanted);
  if (parts < 2 || !plan_tables::may_split(tile)) return "";
  DeviceBuffer workspace(parts * plan_tables::part_bytes_of(tile, problem.m, problem.n));
  for (const bool again : {false, true}) {
    test.poison_output();
    workspace.poison();
    const Status status = portable::launch(name_of_row(build, row).c_str(), tile, row_of(build, row), problem,
                                           static_cast<std::int32_t>(parts), workspace.data(), nullptr, true);
    require(cudaDeviceSynchronize(), name_of_row(build, row).c_str());
    if (!status.ok()) return status.text();
    if (again) return test.same_as_kept() ? "" : "k in " + std::to_string(parts) + " parts: bits differ between calls";
    ++cases;
    const std::string failure = test.judge(false, true);
    if (!failure.empty()) return "k in " + std::to_string(parts) + " parts: " + failure;
  }
  return "";
}

Variant draw_variant(Kind kind, Data data, int index, Random& random) {
  Variant variant;
  constexpr std::array kOutputs = {DType::bfloat16, DType::float16, DType::float32};
  variant.output = kOutputs[static_cast<std::size_t>(index % 3)];
  variant.bias = index / 2 % 2 == 0;
  variant.row_scale_a = index % 2 == 0;
  variant.row_scale_b = index / 3 % 2 == 0;
  variant.azp = kind == Kind::int8 ? index % 3 : 0;
  if (random.below(2) == 0) {  // aligned operands
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
// Longer than every ring (twelve stages of 128 bytes of k), and a tile with tails.
constexpr Shape kTinyShapes[] = {{5, 40, 1936}, {70, 131, 257}};

std::string run_forced_rows(const Options& options, Kind kind, std::int64_t& cases, double& worst_rms) {
  Random random{static_cast<std::uint64_t>(kind) * 1000003 + 17};
  int index = static_cast<int>(kind);
  std::string failures;
  int failed = 0;
  const Shape* begin = options.tiny    ? std::begin(kTinyShapes)
                       : options.quick ? std::begin(kQuickShapes)
                                       : std::begin(kShapes);
  const Shape* end = options.tiny ? std::end(kTinyShapes) : options.quick ? std::end(kQuickShapes) : std::end(kShapes);
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
          bool first = true;  // every row of a build adds in the same order: the bits of all are those of the first
          for (std::size_t row = 0; row < kPortableRows; ++row) {
            if (!selected(options, build, row) || tile_of(build, row).mainloop != mainloop_of(kind)) continue;
            test.poison_output();
            std::string failure = run_row(build, row, test.device_problem());
            require(cudaDeviceSynchronize(), name_of_row(build, row).c_str());
            ++cases;
            if (failure.empty() && !first && !test.same_as_kept())
              failure = "bits differ from those of another row";
            else if (failure.empty())
              failure = test.judge(true, first);
            first = false;
            if (failure.empty() || failed++ >= 12) continue;
            failures += "\n    " + name_of_row(build, row) + ", " + test.text() + ", seed " + std::to_string(seed) +
                        ": " + failure;
          }
          for (std::size_t row = 0; row < kPortableRows; ++row) {
            if (!selected(options, build, row) || tile_of(build, row).mainloop != mainloop_of(kind)) continue;
            const std::string failure = run_row_split(build, row, test, 2 + static_cast<std::int64_t>(row) % 5, cases);
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

// Grouped products give the bits that the dense kernel of the same row gives each expert, and touch what it would: that one is
// judged above. Offsets, counts and size triples are any numbers.
std::string run_grouped_rows(const Options& options, Kind kind, std::int64_t& cases) {
  Random random{static_cast<std::uint64_t>(kind) * 77 + 3};
  struct Group {
    std::int64_t experts, rows, n, k;
  };
  constexpr Group kGroups[] = {{1, 5, 64, 128}, {8, 100, 136, 272}, {37, 300, 200, 259}, {300, 520, 72, 130}};
  int index = 0;
  for (const Group& group : kGroups)
    for (const GroupedForm form : {GroupedForm::ragged, GroupedForm::masked, GroupedForm::dropin})
      for (const bool hostile : {false, true}) {
        ++index;
        if (options.tiny && (hostile || group.experts > 8)) continue;
        if (kind == Kind::block && form == GroupedForm::dropin) continue;
        if (form == GroupedForm::masked && group.experts > 100) continue;
        const std::int64_t experts = group.experts, n = group.n, k = group.k;
        const std::int64_t rows = form == GroupedForm::masked ? group.rows / 3 + 1 : group.rows;
        const std::int64_t all_rows = form == GroupedForm::masked ? rows * experts : rows;
        const std::int64_t pad = form == GroupedForm::dropin ? 0 : index % 3 * 8, item = index % 2 == 0 ? 2 : 4;
        const std::int64_t pitch = k + pad, out_pitch = n + pad, blocks = (k + 127) / 128, features = (n + 127) / 128;
        std::vector<std::uint8_t> a(static_cast<std::size_t>(all_rows * pitch)),
            b(static_cast<std::size_t>(experts * n * pitch));
        for (std::vector<std::uint8_t>* operand : {&a, &b})
          for (std::uint8_t& code : *operand)
            code = static_cast<std::uint8_t>(kind == Kind::int8 ? random.next() >> 20
                                                                : random.below(2) * 128 + random.below(0x50));
        std::vector<float> scale_a(static_cast<std::size_t>(all_rows * blocks)),
            scale_b(static_cast<std::size_t>(experts * n * blocks));
        for (std::vector<float>* scales : {&scale_a, &scale_b})
          for (float& scale : *scales) scale = static_cast<float>(0.01 + random.uniform());
        // how many rows each expert has: most few, one many
        std::vector<std::int64_t> counts(static_cast<std::size_t>(experts), 0);
        for (std::int64_t row = 0; row < rows * 9 / 10; ++row)
          ++counts[static_cast<std::size_t>(row % 3 == 0 ? experts / 2 : random.below(experts))];
        std::vector<std::int32_t> offsets(static_cast<std::size_t>(experts + 1), 0), sizes;
        std::vector<std::int64_t> pitches_a, pitches_b, pitches_out;
        for (std::int64_t e = 0; e < experts; ++e)
          offsets[static_cast<std::size_t>(e + 1)] =
              offsets[static_cast<std::size_t>(e)] + static_cast<std::int32_t>(counts[static_cast<std::size_t>(e)]);
        if (form == GroupedForm::masked)
          for (std::int64_t e = 0; e < experts; ++e)
            offsets[static_cast<std::size_t>(e)] = static_cast<std::int32_t>(random.below(rows + 1));
        const auto wild = [&random, rows] {
          constexpr std::array<std::int32_t, 4> kWild = {-1, -2147483647 - 1, 2147483647, 7};
          return random.below(2) == 0 ? kWild[static_cast<std::size_t>(random.below(4))]
                                      : static_cast<std::int32_t>(random.below(rows + 3));
        };
        if (hostile)
          for (std::int32_t& offset : offsets)
            if (random.below(3) == 0) offset = wild();
        for (std::int64_t e = 0; e < experts; ++e) {
          const auto m = static_cast<std::int32_t>(counts[static_cast<std::size_t>(e)]);
          const bool odd = hostile && random.below(4) == 0;
          sizes.insert(sizes.end(), {odd ? wild() : m, static_cast<std::int32_t>(n), static_cast<std::int32_t>(k)});
          if (index % 2 == 0) std::swap(sizes[sizes.size() - 3], sizes[sizes.size() - 2]);
          pitches_a.push_back(odd && random.below(2) == 0 ? wild() : k);
          pitches_b.push_back(odd && random.below(4) == 0 ? wild() : k);
          pitches_out.push_back(odd && random.below(2) == 0 ? wild() : n);
        }
        const auto bytes = [](const auto& values) {
          return static_cast<std::int64_t>(values.size() * sizeof(values[0]));
        };
        DeviceBuffer da(bytes(a)), db(bytes(b)), dsa(bytes(scale_a)), dsb(bytes(scale_b)), doff(bytes(offsets)),
            dsizes(bytes(sizes)), dpa(bytes(pitches_a)), dpb(bytes(pitches_b)), dpo(bytes(pitches_out)),
            got(all_rows * out_pitch * item), wanted(all_rows * out_pitch * item);
        da.fill(a.data(), bytes(a));
        db.fill(b.data(), bytes(b));
        dsa.fill(scale_a.data(), bytes(scale_a));
        dsb.fill(scale_b.data(), bytes(scale_b));
        doff.fill(offsets.data(), bytes(offsets));
        dsizes.fill(sizes.data(), bytes(sizes));
        dpa.fill(pitches_a.data(), bytes(pitches_a));
        dpb.fill(pitches_b.data(), bytes(pitches_b));
        dpo.fill(pitches_out.data(), bytes(pitches_out));

        GroupedGemmProblem p;
        p.form = form;
        p.experts = experts;
        p.rows = rows;
        p.n = n;
        p.k = k;
        p.input_dtype = kind == Kind::int8 ? DType::int8 : DType::float8_e4m3fn;
        p.output_dtype = item == 4 ? DType::float32 : DType::bfloat16;
        p.a_stride = p.b_stride = pitch;
        p.a_expert_stride = rows * pitch;
        p.b_expert_stride = n * pitch;
        p.out_stride = out_pitch;
        p.out_expert_stride = rows * out_pitch;
        if (kind == Kind::block) {
          p.scale_a = Scale{ScaleMode::BlockWise1x128, nullptr, blocks, 1};
          p.scale_b = Scale{ScaleMode::BlockWise128x128, nullptr, 1, features};
          p.scale_b_expert_stride = blocks * features;
        } else {
          p.scale_a = Scale{ScaleMode::RowWise, nullptr, 1, 0};
          p.scale_b = Scale{ScaleMode::RowWise, nullptr, 1, 0};
          p.scale_b_expert_stride = n;
        }
        p.scale_a_expert_stride = form == GroupedForm::masked ? rows * p.scale_a.outer_stride : 0;
        p.clear_unowned = form != GroupedForm::dropin && index % 3 != 0;
        p.fast_accumulation = kind == Kind::fast;
        p.device = Device{DeviceType::cuda, 0};
        const auto bind = [&](bool host) {
          GroupedGemmProblem bound = p;
          const auto pick = [host](auto& values, DeviceBuffer& buffer) {
            return host ? static_cast<const void*>(values.data()) : static_cast<const void*>(buffer.data());
          };
          bound.a = da.data();
          bound.b = db.data();
          bound.scale_a.data = reinterpret_cast<const float*>(dsa.data());
          bound.scale_b.data = reinterpret_cast<const float*>(dsb.data());
          bound.expert_rows.data = pick(offsets, doff);
          bound.problem_sizes = static_cast<const std::int32_t*>(pick(sizes, dsizes));
          bound.a_pitches = Indices{pick(pitches_a, dpa), 1, true};
          bound.b_pitches = Indices{pick(pitches_b, dpb), 1, true};
          bound.out_pitches = Indices{pick(pitches_out, dpo), 1, true};
          return bound;
        };
        GroupedGemmProblem on_device = bind(false), on_host = bind(true);  // the host reads indices, kernels the rest
        for (const VariantOfBuild& build : kBuilds)
          for (std::size_t row = 0; row < kPortableRows; ++row) {
            const PortableTile& tile = tile_of(build, row);
            if (!selected(options, build, row) || tile.mainloop != mainloop_of(kind) || !plan_tables::has_grouped(tile))
              continue;
            const std::string text = name_of_row(build, row) + " grouped, " + name(kind) + " form " +
                                     std::to_string(static_cast<int>(form)) + " experts " + std::to_string(experts) +
                                     " rows " + std::to_string(rows) + (hostile ? " hostile" : "");
            plan_tables::GroupedWorkspace layout;
            if (!plan_tables::grouped_workspace(p, tile.m, layout)) return text + ": no workspace";
            DeviceBuffer workspace(layout.bytes);
            got.poison();
            wanted.poison();
            on_device.out = got.data();
            on_host.out = wanted.data();
            const std::string failure = portable::launch_grouped(text.c_str(), tile, row_of(build, row, true),
                                                                 on_device, workspace.data(), nullptr, true)
                                            .text();
            require(cudaDeviceSynchronize(), text.c_str());
            if (!failure.empty()) return failure;
            if (p.clear_unowned)
              for (std::int64_t line = 0; line < all_rows; ++line)
                require(cudaMemset(wanted.data() + line * out_pitch * item, 0, static_cast<std::size_t>(n * item)),
                        "clear");
            std::int64_t owned_end = 0;
            for (std::int64_t e = 0; e < experts; ++e) {
              const ExpertShare share = next_share(on_host, e, owned_end);
              if (share.rows == 0) continue;
              const std::string dense = run_row(build, row, problem_of(on_host, e, share, 0, share.rows, 0, n));
              if (!dense.empty()) return dense;
            }
            require(cudaDeviceSynchronize(), text.c_str());
            ++cases;
            bool whole = false, wanted_whole = false, workspace_whole = false;
            if (got.read(whole) != wanted.read(wanted_whole)) return text + ": bits differ from the dense row's";
            static_cast<void>(workspace.read(workspace_whole));
            if (!whole || !wanted_whole || !workspace_whole) return text + ": wrote into a red zone";
          }
      }
  return "";
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

// Replays of a captured graph see what the buffers hold at the time of the replay; launches share no state.
std::string replay_graphs(const Options& options, std::int64_t& cases) {
  for (const Kind kind : {Kind::int8, Kind::fast, Kind::block})
    for (const VariantOfBuild& build : kBuilds)
      for (std::size_t row = 0; row < kPortableRows; ++row) {
        if (!selected(options, build, row) || tile_of(build, row).mainloop != mainloop_of(kind)) continue;
        Variant variant;
        variant.row_scale_a = variant.row_scale_b = true;
        GemmCase test(kind, Data::random, Shape{72, 200, 1040}, variant, 5 + static_cast<std::uint64_t>(row));
        cudaStream_t stream;
        require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
        std::string failure =
            run_row(build, row, test.device_problem(), stream);  // attributes are set outside the capture
        cudaGraph_t graph;
        cudaGraphExec_t executable;
        require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
        for (int i = 0; i < 3 && failure.empty(); ++i) failure = run_row(build, row, test.device_problem(), stream);
        require(cudaStreamEndCapture(stream, &graph), "end of capture");
        require(cudaGraphInstantiate(&executable, graph, 0), "instantiate");
        for (int round = 0; round < 2 && failure.empty(); ++round) {
          if (round > 0) test.redraw_a();
          test.solve(model_of(kind != Kind::fast, build.step));
          test.poison_output();
          require(cudaDeviceSynchronize(), "poison");
          for (int i = 0; i < (options.quick ? 2 : 20); ++i) require(cudaGraphLaunch(executable, stream), "replay");
          require(cudaStreamSynchronize(stream), "replays");
          failure = test.judge(true);
          ++cases;
        }
        require(cudaGraphExecDestroy(executable), "destroy");
        require(cudaGraphDestroy(graph), "destroy");
        require(cudaStreamDestroy(stream), "destroy");
        if (!failure.empty()) return name_of_row(build, row) + ": " + failure;
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
    if (std::strcmp(arguments[i], "--tiny") == 0) options.tiny = true;
    if (std::strcmp(arguments[i], "--quick") == 0 || options.tiny) options.quick = true;
    if (std::strncmp(arguments[i], "--junit=", 8) == 0) junit = arguments[i] + 8;
  }
  Report report;
  report.test("portable", "origin", [&](std::int64_t& cases) { return check_origin(options, cases); });
  if (any_selected(options, Kind::fast) || any_selected(options, Kind::promoted)) {
    report.test("portable", "codes", [&](std::int64_t& cases) { return convert_every_code(options, cases); });
    report.test("portable", "nan", [&](std::int64_t& cases) { return spread_nan(options, cases); });
  }
  for (const Kind kind : {Kind::int8, Kind::fast, Kind::promoted, Kind::block}) {
    if (!any_selected(options, kind)) continue;  // --rows names none of this kind
    double worst_rms = 0;
    report.test("portable", std::string("rows_") + name(kind),
                [&](std::int64_t& cases) { return run_forced_rows(options, kind, cases, worst_rms); });
    if (worst_rms > 0) std::printf("  worst RMS error of a tile: %.3f of the emulator's\n", worst_rms);
    if (any_selected(options, kind, true))
      report.test("portable", std::string("grouped_") + name(kind),
                  [&](std::int64_t& cases) { return run_grouped_rows(options, kind, cases); });
  }
  if (!options.tiny)
    report.test("portable", "graphs", [&](std::int64_t& cases) { return replay_graphs(options, cases); });
  return report.finish(junit);
}
