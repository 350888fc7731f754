// SPDX-License-Identifier: Apache-2.0
// Every row of the GPU's GEMM table, forced over every case that it can run, against exact sums on the host.
// Usage: gemm_test [--rows=TEXT] [--quick | --tiny] [--junit=FILE]     rows whose name holds TEXT; a reduced set for
// sanitizers; two products a row for the slowest of them
// Must not go here: timing.
#include <array>
#include <cstring>
#include <string>

#include "cuda/registry.h"
#include "gemm_cases.h"
#include "plan/sm90.h"
#include "plan/table.h"

namespace evergemm::gpu_test {
namespace {

const plan_tables::ArchitectureTable& table() { return plan_tables::kSm90Table; }

DeviceFacts facts() {
  DeviceFacts facts;
  const Status status = cuda_facts(0, facts);
  if (!status.ok()) {
    std::fprintf(stderr, "%s\n", status.text().c_str());
    std::exit(2);
  }
  return facts;
}

// Runs a row; "" or the error. The stream is the default one unless given.
std::string run_row(const GemmProblem& problem, std::int32_t row, cudaStream_t stream = nullptr) {
  Plan plan;
  plan.architecture = Architecture::sm90a;
  plan.row = row;
  plan.name = table().row_name(row);
  table().finish(problem, facts(), plan);
  RunContext context;
  context.stream = stream;
  const Status status = run_cuda(plan, problem, context);
  return status.text();
}

struct Options {
  std::string rows;
  bool quick = false, tiny = false;
};

bool selected(const Options& options, std::int32_t row) {
  return options.rows.empty() || std::string(table().row_name(row)).find(options.rows) != std::string::npos;
}

bool any_selected(const Options& options, Kind kind) {
  const char* prefix = kind == Kind::int8 ? "sm90_int8_" : kind == Kind::fast ? "sm90_fp8_" : "sm90_fp8promoted_";
  for (std::int32_t row = 0; row < table().rows; ++row)
    if (selected(options, row) && std::string(table().row_name(row)).find(prefix) == 0) return true;
  return false;
}

// Draws what varies at run time; `index` walks through every combination that matters, the seed does the rest.
Variant draw_variant(Kind kind, Data data, int index, Random& random) {
  Variant variant;
  constexpr std::array kOutputs = {DType::bfloat16, DType::float16, DType::float32};
  variant.output = kOutputs[static_cast<std::size_t>(index % 3)];
  variant.bias = index / 2 % 2 == 0;
  variant.row_scale_a = index % 2 == 0;
  variant.row_scale_b = index / 3 % 2 == 0;
  variant.azp = kind == Kind::int8 ? index % 3 : 0;
  variant.a_pad = random.below(3) * 16;
  variant.b_pad = random.below(3) * 16;
  constexpr std::array<std::int64_t, 4> kOutPads = {0, 8, 3, 16};
  variant.out_pad = kOutPads[static_cast<std::size_t>(random.below(4))];
  variant.vector_stride = 1 + random.below(2);
  variant.scale_layout = index % 3;
  if (data == Data::exact && variant.output == DType::float16)
    variant.output = DType::bfloat16;  // keep clear of overflow
  return variant;
}

// Rows of the M side and columns in all residues that matter, one to many tiles for a CTA, k from one step to many stages.
constexpr Shape kShapes[] = {
    {1, 64, 16},       {1, 1288, 4096}, {7, 72, 128},     {16, 512, 256},   {17, 136, 144},    {33, 200, 1040},
    {64, 1000, 1040},  {65, 264, 2064}, {100, 264, 4400}, {129, 1032, 640}, {300, 776, 640},   {513, 1400, 384},
    {640, 1280, 1152}, {8, 50, 96},     {16, 20000, 384}, {40, 9992, 528},  {2050, 2056, 528}, {257, 5000, 784},
};
constexpr Shape kTinyShapes[] = {{70, 136, 1424}};  // longer than any ring
constexpr Shape kQuickShapes[] = {{5, 136, 272}, {130, 264, 656}, {260, 776, 528}};

std::string run_forced_rows(const Options& options, Kind kind, std::int64_t& cases, double& worst_rms) {
  Random random{static_cast<std::uint64_t>(kind) * 1000003 + 11};
  int index = static_cast<int>(kind);
  std::string failures;
  int failed = 0;
  const Shape* begin = options.tiny    ? std::begin(kTinyShapes)
                       : options.quick ? std::begin(kQuickShapes)
                                       : std::begin(kShapes);
  const Shape* end = options.tiny ? std::end(kTinyShapes) : options.quick ? std::end(kQuickShapes) : std::end(kShapes);
  for (const Shape* shape = begin; shape != end; ++shape)
    for (const Data data : {Data::random, Data::exact}) {
      if (kind == Kind::int8 && data == Data::exact && !options.quick) ++index;  // int8 is exact anyway: a second draw
      if (data == Data::exact && options.quick) continue;
      const Data drawn = kind == Kind::int8 ? Data::random : data;
      const std::uint64_t seed = random.next();
      GemmCase test(kind, drawn, *shape, draw_variant(kind, drawn, index++, random), seed);
      test.solve();
      std::int32_t first_unsplit = -1;
      for (std::int32_t row = 0; row < table().rows; ++row) {
        if (!selected(options, row) || !table().why_not(test.device_problem(), facts(), row).empty()) continue;
        test.poison_output();
        std::string failure = run_row(test.device_problem(), row);
        require(cudaDeviceSynchronize(), table().row_name(row));
        ++cases;
        Plan plan;
        plan.row = row;
        table().finish(test.device_problem(), facts(), plan);
        const bool one_order = plan.split_k == 1;  // rows that sum in the same order must agree bit for bit
        if (failure.empty() && one_order && first_unsplit >= 0 && !test.same_as_kept())
          failure = std::string("bits differ from ") + table().row_name(first_unsplit);
        else if (failure.empty())
          failure = test.judge(true, one_order);
        if (one_order && first_unsplit < 0) first_unsplit = row;
        if (failure.empty() || failed++ >= 12) continue;
        failures += std::string("\n    ") + table().row_name(row) + ", " + test.text() + ", seed " +
                    std::to_string(seed) + ": " + failure;
      }
      worst_rms = std::max(worst_rms, test.worst_rms());
    }
  return failed == 0 ? "" : std::to_string(failed) + " failures" + failures;
}

// A few tiles for each CTA, two for each warpgroup that takes its own, so that what one tile hands to the next is seen.
std::string run_tiles(const Options& options, Kind kind, std::int64_t& cases) {
  for (std::int32_t row = 0; row < table().rows; ++row) {
    if (!selected(options, row)) continue;
    const plan_tables::TileConfig& tile = plan_tables::kSm90Tiles[static_cast<std::size_t>(row)];
    const std::int64_t tokens = tile.swap_ab ? tile.n * tile.cluster_n : tile.m * tile.cluster_m,
                       features = tile.swap_ab ? tile.m * tile.cluster_m : tile.n * tile.cluster_n,
                       clusters = facts().cores / (tile.cluster_m * tile.cluster_n * tile.split_k),
                       each = tile.schedule == plan_tables::Schedule::pingpong ? 4 : 3;
    Variant variant;
    variant.bias = variant.row_scale_a = variant.row_scale_b = true;
    variant.azp = kind == Kind::int8 ? 2 : 0;
    variant.scale_layout = 2;  // block scales by plain loads; the tiny case has the copy engine's
    const Shape shape{std::min<std::int64_t>(tokens, 72) - 3, features * clusters * each - 8,
                      tile.split_k > 1 ? 400 : 144};  // enough of k for each CTA that shares it
    GemmCase test(kind, Data::exact, shape, variant, 31 + static_cast<std::uint64_t>(row));
    if (!table().why_not(test.device_problem(), facts(), row).empty()) continue;
    test.solve();
    test.poison_output();
    std::string failure = run_row(test.device_problem(), row);
    require(cudaDeviceSynchronize(), table().row_name(row));
    ++cases;
    if (failure.empty()) failure = test.judge(false);
    if (!failure.empty()) return std::string(table().row_name(row)) + ", " + test.text() + ": " + failure;
  }
  return "";
}

// How many fraction bits the tensor core keeps below the largest term: a one among 2^-j, in one step and in two.
std::string calibrate(const Options& options, std::int64_t& cases) {
  std::string text;
  for (std::int32_t row = 0; row < table().rows; ++row) {
    if (!selected(options, row) || std::string(table().row_name(row)).find("sm90_fp8_64x16x128_c1x1_basic") != 0)
      continue;
    for (const std::int64_t distance : {1, 32}) {  // the small term in the same step, in the next
      int kept = -1;
      for (int j = 0; j <= 23; ++j) {  // fp32 itself keeps 23
        const std::int64_t k = 64;
        std::vector<std::uint8_t> a(static_cast<std::size_t>(k), 0), b(static_cast<std::size_t>(k), 0);
        const int half = j / 2, rest = j - half;  // 2^-half * 2^-rest, each above e4m3's 2^-9... scaled up by 2^5
        const auto code = [](int exponent) { return numerics::float_to_float8_e4m3fn(std::ldexp(1.0f, exponent)); };
        a[0] = code(5);
        b[0] = code(5);
        a[static_cast<std::size_t>(distance)] = code(5 - half);
        b[static_cast<std::size_t>(distance)] = code(5 - rest);
        DeviceBuffer da(k), db(k), out(4), scale(4);
        const float one = 1.0f;
        da.fill(a.data(), k);
        db.fill(b.data(), k);
        scale.fill(&one, 4);
        GemmProblem p;
        p.m = p.n = 1;
        p.k = p.a_stride = p.b_stride = k;
        p.out_stride = 1;
        p.input_dtype = DType::float8_e4m3fn;
        p.output_dtype = DType::float32;
        p.a = da.data();
        p.b = db.data();
        p.out = out.data();
        p.scale_a.data = p.scale_b.data = reinterpret_cast<const float*>(scale.data());
        p.device = Device{DeviceType::cuda, 0};
        const std::string failure = run_row(p, row);
        require(cudaDeviceSynchronize(), "calibration");
        if (!failure.empty()) return failure;
        bool zones = false;
        float value;
        std::memcpy(&value, out.read(zones).data(), 4);
        ++cases;
        if (kept == j - 1 && value == 1024.0f + std::ldexp(1024.0f, -j)) kept = j;
      }
      std::printf("  calibration: a term 2^-%d of the largest survives %s (model: %d fraction bits)\n", kept,
                  distance == 1 ? "in its step" : "in the next step", proof::kHopperFractionBits);
      if (kept != proof::kHopperFractionBits)
        text += " kept " + std::to_string(kept) + " bits at distance " + std::to_string(distance);
    }
  }
  if (cases == 0) ++cases;  // the row was not selected
  return text;
}

// Replays of a captured graph see what the buffers hold at the time of the replay.
std::string replay_graphs(const Options& options, std::int64_t& cases) {
  for (const Kind kind : {Kind::int8, Kind::fast, Kind::block})
    for (std::int32_t row = 0; row < table().rows; ++row) {
      Variant variant;
      variant.row_scale_a = variant.row_scale_b = true;
      GemmCase test(kind, Data::random, Shape{72, 520, 1040}, variant, 5 + static_cast<std::uint64_t>(row));
      if (!selected(options, row) || !table().why_not(test.device_problem(), facts(), row).empty()) continue;
      cudaStream_t stream;
      require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
      std::string failure = run_row(test.device_problem(), row, stream);  // attributes are set outside the capture
      cudaGraph_t graph;
      cudaGraphExec_t executable;
      require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
      for (int i = 0; i < 3 && failure.empty(); ++i) failure = run_row(test.device_problem(), row, stream);
      require(cudaStreamEndCapture(stream, &graph), "end of capture");
      require(cudaGraphInstantiate(&executable, graph, 0), "instantiate");
      for (int round = 0; round < 2 && failure.empty(); ++round) {
        if (round > 0) test.redraw_a();
        test.solve();
        test.poison_output();
        for (int i = 0; i < (options.quick ? 2 : 100); ++i) require(cudaGraphLaunch(executable, stream), "replay");
        require(cudaStreamSynchronize(stream), "replays");
        failure = test.judge(true);
        ++cases;
      }
      require(cudaGraphExecDestroy(executable), "destroy");
      require(cudaGraphDestroy(graph), "destroy");
      require(cudaStreamDestroy(stream), "destroy");
      if (!failure.empty()) return std::string(table().row_name(row)) + ": " + failure;
    }
  return "";
}

// Graphs of many launches, each of another row over another run of tokens, as a loop over experts makes them: scales are slices of
// a longer matrix, some blocks of a cluster have no tokens, and whatever a kernel leaves behind meets a kernel of another kind.
// From graph to graph a run's row is the next of those that can run it.
std::string replay_mixed_rows(const Options& options, std::int64_t& cases) {
  constexpr std::int64_t kRuns[] = {1, 3, 12, 17, 40, 64, 70, 128, 131, 259, 330, 2, 16, 33};
  constexpr int kGraphs = 8;
  std::int64_t tokens = 0;
  for (const std::int64_t run : kRuns) tokens += run;
  for (const Kind kind : {Kind::int8, Kind::fast, Kind::block})
    for (const int scale_layout : {0, 1, 2}) {
      if (!any_selected(options, kind) || (kind != Kind::block && scale_layout > 0)) continue;
      Variant variant;
      variant.row_scale_a = variant.row_scale_b = true;
      variant.scale_layout = scale_layout;
      const std::uint64_t seed = 77 + static_cast<std::uint64_t>(scale_layout);
      const Shape shape{tokens, options.quick ? 264 : 1032, options.quick ? 528 : 2064};
      GemmCase test(kind, Data::random, shape, variant, seed);
      test.solve();
      const GemmProblem& whole = test.device_problem();
      cudaStream_t stream;
      require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
      const auto run_all = [&](int pass) -> std::string {
        std::int64_t first = 0;
        for (std::size_t i = 0; i < std::size(kRuns); first += kRuns[i++]) {
          GemmProblem part = whole;
          part.m = kRuns[i];
          part.a = static_cast<const char*>(whole.a) + first * whole.a_stride;
          part.out = static_cast<char*>(whole.out) + first * whole.out_stride * size_in_bytes(whole.output_dtype);
          part.scale_a.data += first * whole.scale_a.outer_stride;
          std::vector<std::int32_t> rows;
          for (std::int32_t row = 0; row < table().rows; ++row)
            if (selected(options, row) && table().why_not(part, facts(), row).empty()) rows.push_back(row);
          const std::string failure =
              rows.empty() ? "no row can run it"
                           : run_row(part, rows[(i * 5 + static_cast<std::size_t>(pass)) % rows.size()], stream);
          if (!failure.empty()) return failure;
        }
        return "";
      };
      std::string failure;
      for (int pass = 0; pass < kGraphs && failure.empty(); ++pass) {
        failure = run_all(pass);  // attributes are set outside the capture
        cudaGraph_t graph;
        cudaGraphExec_t executable;
        require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
        if (failure.empty()) failure = run_all(pass);
        require(cudaStreamEndCapture(stream, &graph), "end of capture");
        require(cudaGraphInstantiate(&executable, graph, 0), "instantiate");
        require(cudaStreamSynchronize(stream), "calls before the replays");
        test.poison_output();
        require(cudaDeviceSynchronize(), "poison");
        for (int i = 0; i < (options.quick ? 2 : 500); ++i) require(cudaGraphLaunch(executable, stream), "replay");
        require(cudaStreamSynchronize(stream), "replays of mixed rows");
        if (failure.empty()) failure = test.judge(false);
        ++cases;
        require(cudaGraphExecDestroy(executable), "destroy");
        require(cudaGraphDestroy(graph), "destroy");
        if (!failure.empty()) failure = "graph " + std::to_string(pass) + ": " + failure;
      }
      require(cudaStreamDestroy(stream), "destroy");
      if (!failure.empty())
        return std::string(name(kind)) + ", scale layout " + std::to_string(scale_layout) + ", seed " +
               std::to_string(seed) + ", " + failure;
    }
  return "";
}

// Sixteen streams at once, each with its own operands: no state is shared between launches.
std::string run_streams(const Options& options, std::int64_t& cases) {
  constexpr int kStreams = 16;
  std::vector<std::unique_ptr<GemmCase>> tests;
  std::vector<cudaStream_t> streams(kStreams);
  for (int s = 0; s < kStreams; ++s) {
    Variant variant;
    variant.row_scale_a = variant.row_scale_b = true;
    tests.push_back(std::make_unique<GemmCase>(s % 2 == 0 ? Kind::fast : Kind::int8, Data::random,
                                               Shape{40 + 16 * s, 1032, 2064}, variant,
                                               900 + static_cast<std::uint64_t>(s)));
    tests.back()->solve();
    require(cudaStreamCreateWithFlags(&streams[static_cast<std::size_t>(s)], cudaStreamNonBlocking),
            "cudaStreamCreate");
  }
  std::string failure;
  for (int round = 0; round < (options.quick ? 1 : 20); ++round)
    for (int s = 0; s < kStreams; ++s) {
      const GemmProblem& problem = tests[static_cast<std::size_t>(s)]->device_problem();
      std::int32_t row = (round * 7 + s * 3) % table().rows;
      int tried = 0;
      // of the rows that were asked for, where one of them can run it
      while ((tried < table().rows && !selected(options, row)) || !table().why_not(problem, facts(), row).empty()) {
        row = (row + 1) % table().rows;
        ++tried;
      }
      const std::string error = run_row(problem, row, streams[static_cast<std::size_t>(s)]);
      if (failure.empty()) failure = error;
    }
  require(cudaDeviceSynchronize(), "streams");
  for (int s = 0; s < kStreams && failure.empty(); ++s) {
    failure = tests[static_cast<std::size_t>(s)]->judge(false);
    ++cases;
  }
  for (cudaStream_t stream : streams) require(cudaStreamDestroy(stream), "destroy");
  return failure;
}

}  // namespace
}  // namespace evergemm::gpu_test

int main(int argument_count, char** arguments) {
  using namespace evergemm::gpu_test;
  Options options;
  const char* junit = nullptr;
  for (int i = 1; i < argument_count; ++i) {
    if (std::strncmp(arguments[i], "--rows=", 7) == 0) options.rows = arguments[i] + 7;
    if (std::strcmp(arguments[i], "--tiny") == 0) options.tiny = true;
    if (std::strcmp(arguments[i], "--quick") == 0 || options.tiny) options.quick = true;
    if (std::strncmp(arguments[i], "--junit=", 8) == 0) junit = arguments[i] + 8;
  }
  Report report;
  if (!options.tiny) report.test("gemm", "calibration", [&](std::int64_t& cases) { return calibrate(options, cases); });
  for (const Kind kind : {Kind::int8, Kind::fast, Kind::promoted, Kind::block}) {
    if (!any_selected(options, kind)) continue;  // --rows names none of this kind
    double worst_rms = 0;
    report.test("gemm", std::string("rows_") + name(kind),
                [&](std::int64_t& cases) { return run_forced_rows(options, kind, cases, worst_rms); });
    if (worst_rms > 0) std::printf("  worst RMS error of a tile: %.3f of the emulator's\n", worst_rms);
    if (options.tiny)
      report.test("gemm", std::string("tiles_") + name(kind),
                  [&](std::int64_t& cases) { return run_tiles(options, kind, cases); });
  }
  if (options.tiny) return report.finish(junit);
  report.test("gemm", "streams", [&](std::int64_t& cases) { return run_streams(options, cases); });
  report.test("gemm", "graphs", [&](std::int64_t& cases) { return replay_graphs(options, cases); });
  report.test("gemm", "graphs_of_mixed_rows", [&](std::int64_t& cases) { return replay_mixed_rows(options, cases); });
  return report.finish(junit);
}
