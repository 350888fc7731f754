// SPDX-License-Identifier: Apache-2.0
// Grouped products against one dense product an expert, bit for bit, where a host could not sum them: sizes of real layers,
// weights beyond 2^31 elements, any number of experts; launches with hostile integers; graph replays with changed routing.
// Usage: grouped_dense_test [--quick] [--junit=FILE]
// Must not go here: proofs of the arithmetic (grouped_test), timing.
#include <array>
#include <cstring>
#include <limits>
#include <string>

#include "cuda/registry.h"
#include "evergemm/moe_index.h"
#include "evergemm/numerics.h"
#include "harness.h"
#include "plan/sm90_grouped.h"

namespace evergemm::gpu_test {
namespace {

using plan_tables::grouped_row_name_sm90;
using plan_tables::kSm90GroupedRows;

const DeviceFacts& facts() {
  static const DeviceFacts facts = [] {
    DeviceFacts found;
    const Status status = cuda_facts(0, found);
    if (status.ok()) return found;
    std::fprintf(stderr, "%s\n", status.text().c_str());
    std::exit(2);
  }();
  return facts;
}

// Codes of values around 1 (fp8) or all bytes (int8), drawn once and laid out again and again at shifting places.
void fill(DeviceBuffer& buffer, DType type) {
  constexpr std::size_t kBlock = 4 << 20;
  static std::vector<std::uint8_t> blocks[2];
  std::vector<std::uint8_t>& block = blocks[type == DType::int8 ? 0 : 1];
  if (block.empty()) {
    Random random{99};
    block.resize(kBlock);
    for (std::uint8_t& code : block) {
      code = static_cast<std::uint8_t>(random.next() >> 30);
      if (type != DType::int8) code = static_cast<std::uint8_t>((code & 0x87) | 0x20 | (code & 0x18));
    }
  }
  std::int64_t at = 0;
  for (std::size_t turn = 0; at < buffer.bytes(); ++turn) {
    const std::size_t shift = turn * 7919 % 65536;
    const std::int64_t part = std::min<std::int64_t>(buffer.bytes() - at, static_cast<std::int64_t>(kBlock - shift));
    require(
        cudaMemcpy(buffer.data() + at, block.data() + shift, static_cast<std::size_t>(part), cudaMemcpyHostToDevice),
        "fill");
    at += part;
  }
}

struct Size {
  std::int64_t experts, rows, n, k;
};

// A ragged problem whose operands lie on the device alone, and its offsets on both sides.
class DeviceProblem {
 public:
  DeviceProblem(const Size& size, DType type, bool fast)
      : a_(size.rows * size.k),
        b_(size.experts * size.n * size.k),
        out_(size.rows * size.n * 2),
        scales_((size.rows + size.experts * size.n) * 4),
        offsets_((size.experts + 1) * 4) {
    fill(a_, type);
    fill(b_, type);
    std::vector<float> scales(static_cast<std::size_t>(size.rows + size.experts * size.n));
    Random random{5};
    for (float& scale : scales) scale = static_cast<float>(0.01 + 0.02 * random.uniform());
    scales_.fill(scales.data(), scales_.bytes());
    problem_.experts = size.experts;
    problem_.rows = size.rows;
    problem_.n = size.n;
    problem_.k = size.k;
    problem_.input_dtype = type;
    problem_.fast_accumulation = fast;
    problem_.deterministic = true;
    problem_.a = a_.data();
    problem_.b = b_.data();
    problem_.out = out_.data();
    problem_.a_stride = problem_.b_stride = size.k;
    problem_.b_expert_stride = size.n * size.k;
    problem_.out_stride = size.n;
    problem_.device = Device{DeviceType::cuda, 0};
    const auto* scale_base = reinterpret_cast<const float*>(scales_.data());
    problem_.scale_a = Scale{ScaleMode::RowWise, scale_base, 1, 0};
    problem_.scale_b = Scale{ScaleMode::RowWise, scale_base + size.rows, 1, 0};
    problem_.scale_b_expert_stride = size.n;
    problem_.expert_rows = Indices{offsets_.data(), 1, false};
    device_ = problem_;
  }

  GroupedGemmProblem& problem() { return device_; }
  DeviceBuffer& out() { return out_; }
  void set_offsets(const std::vector<std::int32_t>& offsets) {
    host_offsets_ = offsets;
    offsets_.fill(offsets.data(), offsets_.bytes());
  }
  // Offsets of a random routing of all rows.
  void route(Random& random, bool skewed) {
    std::vector<std::int32_t> offsets(static_cast<std::size_t>(problem_.experts + 1), 0);
    for (std::int64_t row = 0; row < problem_.rows; ++row) {
      const std::int64_t expert =
          skewed && random.below(4) == 0 ? problem_.experts / 2 : random.below(problem_.experts);
      ++offsets[static_cast<std::size_t>(expert + 1)];
    }
    for (std::size_t e = 1; e < offsets.size(); ++e) offsets[e] += offsets[e - 1];
    set_offsets(offsets);
  }

  // One dense product an expert into `to`; "" or an error.
  std::string run_dense(char* to) {
    GroupedGemmProblem host = device_;
    host.expert_rows.data = host_offsets_.data();
    std::int64_t owned_end = 0;
    for (std::int64_t expert = 0; expert < host.experts; ++expert) {
      const ExpertShare share = next_share(host, expert, owned_end);
      if (share.rows == 0) continue;
      GemmProblem dense = problem_of(host, expert, share, 0, share.rows, 0, host.n);
      dense.out = to + share.out_begin * 2;
      Plan plan;
      const Status planned = evergemm::plan(dense, facts(), plan);
      if (!planned.ok()) return planned.text();
      const Status done = run_cuda(plan, dense, RunContext());
      if (!done.ok()) return done.text();
    }
    return "";
  }
  // The row that the rules choose where `row` is -1.
  std::string run_grouped(std::int32_t row, cudaStream_t stream = nullptr) {
    Plan plan;
    const Status planned = row < 0 ? plan_tables::plan_grouped_sm90(device_, facts(), plan)
                                   : plan_tables::plan_grouped_row_sm90(device_, facts(), row, plan);
    if (!planned.ok()) return planned.text();
    RunContext context;
    context.stream = stream;
    return run_cuda(plan, device_, context).text();
  }

 private:
  DeviceBuffer a_, b_, out_, scales_, offsets_;
  std::vector<std::int32_t> host_offsets_;
  GroupedGemmProblem problem_, device_;
};

std::string first_difference(const std::vector<unsigned char>& got, const std::vector<unsigned char>& expected,
                             std::int64_t n) {
  if (got == expected) return "";
  std::size_t at = 0;
  while (got[at] == expected[at]) ++at;
  const auto element = static_cast<std::int64_t>(at / 2);
  return "differs first at (" + std::to_string(element / n) + ", " + std::to_string(element % n) + ")";
}

// Rows that can run `test`, each against one dense product an expert.
std::string compare(DeviceProblem& test, const std::vector<std::int32_t>& rows, std::int64_t& cases) {
  DeviceBuffer expected(test.out().bytes());
  std::string failure = test.run_dense(expected.data());
  if (!failure.empty()) return failure;
  require(cudaDeviceSynchronize(), "dense");
  bool zones = false;
  const std::vector<unsigned char> wanted = expected.read(zones);
  for (const std::int32_t row : rows) {
    if (row >= 0 && !plan_tables::grouped_why_not_sm90(test.problem(), facts(), row).empty()) continue;
    test.out().poison();
    failure = test.run_grouped(row);
    require(cudaDeviceSynchronize(), row < 0 ? "chosen row" : grouped_row_name_sm90(row));
    ++cases;
    if (failure.empty()) failure = first_difference(test.out().read(zones), wanted, test.problem().n);
    if (failure.empty() && !zones) failure = "wrote into a red zone";
    if (!failure.empty()) return std::string(row < 0 ? "chosen row" : grouped_row_name_sm90(row)) + ": " + failure;
  }
  return "";
}

std::vector<std::int32_t> all_tiles() {
  std::vector<std::int32_t> rows;
  for (std::int32_t row = 0; row < kSm90GroupedRows; ++row) rows.push_back(row);
  return rows;
}

std::string run_sizes(bool quick, std::int64_t& cases) {
  Random random{2026};
  std::vector<Size> sizes = {{40, 7232, 2048, 5120}, {64, 40000, 2048, 5120}, {5, 96, 28672, 16384}};
  if (quick) sizes = {{5, 300, 520, 272}};
  for (const Size& size : sizes)
    for (const DType type : {DType::int8, DType::float8_e4m3fn}) {
      DeviceProblem test(size, type, true);
      test.route(random, type == DType::int8);
      // 2^31 elements of weights: every row that could count in 32 bits; else the row of the rules
      std::vector<std::int32_t> rows{-1};
      if (size.n > 20000) rows = all_tiles();
      const std::string failure = compare(test, rows, cases);
      if (!failure.empty())
        return std::string(name(type)) + " experts " + std::to_string(size.experts) + " rows " +
               std::to_string(size.rows) + ": " + failure;
    }
  return "";
}

std::string run_expert_counts(bool quick, std::int64_t& cases) {
  Random random{7};
  std::vector<std::int64_t> counts = {1, 2, 31, 32, 33, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512};
  if (quick) counts = {33};
  for (const std::int64_t experts : counts)
    for (const bool skewed : {false, true})
      for (int kind = 0; kind < 3; ++kind) {
        DeviceProblem test(Size{experts, 777, 136, 272}, kind == 0 ? DType::int8 : DType::float8_e4m3fn, kind == 1);
        test.route(random, skewed);
        const std::string failure = compare(test, all_tiles(), cases);
        if (!failure.empty())
          return "experts " + std::to_string(experts) + (skewed ? " skewed " : " ") + std::to_string(kind) + ": " +
                 failure;
      }
  return "";
}

// Offsets, counts, sizes and pitches of any value: nothing faults, hangs or writes outside, and a routing of good values has its bits afterwards.
std::string run_hostile(bool quick, std::int64_t& cases) {
  constexpr std::int64_t kSets = 1000;
  const std::int64_t launches = quick ? 200 : 100000;
  const Size size{19, 150, 136, 144};
  Random random{31337};
  std::vector<std::int32_t> values(static_cast<std::size_t>(kSets * (size.experts + 1)));
  constexpr std::int32_t kLeast = std::numeric_limits<std::int32_t>::min(),
                         kMost = std::numeric_limits<std::int32_t>::max();
  for (std::int32_t& value : values) {
    const std::int32_t choices[] = {0,
                                    -1,
                                    static_cast<std::int32_t>(size.rows),
                                    static_cast<std::int32_t>(size.rows + 1),
                                    kLeast,
                                    kMost,
                                    static_cast<std::int32_t>(random.next()),
                                    static_cast<std::int32_t>(random.below(size.rows)),
                                    static_cast<std::int32_t>(random.below(size.rows)),
                                    static_cast<std::int32_t>(random.below(size.rows))};
    value = choices[random.below(10)];
  }
  DeviceBuffer sets(static_cast<std::int64_t>(values.size() * 4));
  sets.fill(values.data(), sets.bytes());
  // Drop-in: sizes that mostly fit the problem, pitches that mostly are its own, and hostile ones.
  std::vector<std::int32_t> sizes;
  std::vector<std::int64_t> pitches;
  for (std::int64_t i = 0; i < kSets * size.experts; ++i) {
    for (const std::int64_t good : {random.below(20), size.n, size.k})
      sizes.push_back(random.below(6) == 0 ? values[static_cast<std::size_t>(i)] : static_cast<std::int32_t>(good));
    const std::int64_t own = random.below(2) == 0 ? size.k : size.n;
    pitches.push_back(random.below(8) == 0   ? static_cast<std::int64_t>(random.next())
                      : random.below(8) == 0 ? own * random.below(3)
                                             : own);
  }
  DeviceBuffer size_sets(static_cast<std::int64_t>(sizes.size() * 4)),
      pitch_sets(static_cast<std::int64_t>(pitches.size() * 8));
  size_sets.fill(sizes.data(), size_sets.bytes());
  pitch_sets.fill(pitches.data(), pitch_sets.bytes());
  DeviceProblem int8_test(size, DType::int8, true), fp8_test(size, DType::float8_e4m3fn, true),
      promoted_test(size, DType::float8_e4m3fn, false);
  DeviceProblem* tests[3] = {&int8_test, &fp8_test, &promoted_test};
  for (DeviceProblem* test : tests) test->route(random, false);
  std::vector<std::int32_t> rows_of[3];
  for (int i = 0; i < 3; ++i)
    for (const std::int32_t row : all_tiles())
      if (plan_tables::grouped_why_not_sm90(tests[i]->problem(), facts(), row).empty()) rows_of[i].push_back(row);
  for (std::int64_t launch = 0; launch < launches; ++launch) {
    const auto turn = static_cast<std::size_t>(launch);
    DeviceProblem& test = *tests[turn % 3];
    const std::vector<std::int32_t>& rows = rows_of[turn % 3];
    const GroupedGemmProblem good = test.problem();
    GroupedGemmProblem& problem = test.problem();
    problem.expert_rows.data = sets.data() + random.below(kSets) * (size.experts + 1) * 4;
    const auto form = static_cast<GroupedForm>(turn / 3 % 3);
    if (form == GroupedForm::masked) {
      problem.form = form;
      problem.rows = size.rows / size.experts;
      problem.a_expert_stride = problem.rows * size.k;
      problem.out_expert_stride = problem.rows * size.n;
      problem.scale_a_expert_stride = problem.rows;
    } else if (form == GroupedForm::dropin) {
      problem.form = form;
      problem.problem_sizes =
          reinterpret_cast<const std::int32_t*>(size_sets.data()) + random.below(kSets) * size.experts * 3;
      for (Indices* indices : {&problem.a_pitches, &problem.b_pitches, &problem.out_pitches})
        *indices = Indices{pitch_sets.data() + random.below(kSets) * size.experts * 8, 1, true};
    }
    problem.clear_unowned = form != GroupedForm::dropin && turn % 2 == 0;
    const std::string failure = test.run_grouped(rows[turn / 9 % rows.size()]);
    problem = good;
    if (!failure.empty()) return failure;
    ++cases;
    if (launch % 4096 == 0) require(cudaDeviceSynchronize(), "hostile offsets");
  }
  require(cudaDeviceSynchronize(), "hostile offsets");
  for (int i = 0; i < 3; ++i) {
    bool zones = false;
    tests[i]->out().read(zones);
    if (!zones) return "a red zone was written";
    const std::string failure = compare(*tests[i], all_tiles(), cases);
    if (!failure.empty()) return "afterwards, " + failure;
  }
  return "";
}

// A captured product reads the routing that lies there when it is replayed.
std::string run_graph(bool quick, std::int64_t& cases) {
  Random random{11};
  cudaStream_t stream;
  require(cudaStreamCreate(&stream), "stream");
  std::string failure;
  for (const std::int32_t row : all_tiles()) {
    const plan_tables::TileConfig& tile = plan_tables::kSm90GroupedTiles[static_cast<std::size_t>(row)];
    DeviceProblem test(Size{9, 400, 264, 528},
                       tile.mainloop == plan_tables::Mainloop::int8 ? DType::int8 : DType::float8_e4m3fn,
                       tile.mainloop == plan_tables::Mainloop::fp8_fast);
    test.route(random, false);
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
    failure = test.run_grouped(row, stream);
    require(cudaStreamEndCapture(stream, &graph), "end of capture");
    if (!failure.empty()) return failure;
    require(cudaGraphInstantiate(&executable, graph, 0), "instantiate");
    DeviceBuffer expected(test.out().bytes());
    for (int replay = 0; replay < (quick ? 2 : 8) && failure.empty(); ++replay) {
      test.route(random, replay % 2 == 0);
      failure = test.run_dense(expected.data());
      test.out().poison();
      require(cudaDeviceSynchronize(), "dense");
      for (int again = 0; again < 100; ++again) require(cudaGraphLaunch(executable, stream), "replay");
      require(cudaStreamSynchronize(stream), grouped_row_name_sm90(row));
      ++cases;
      bool zones = false;
      if (failure.empty()) failure = first_difference(test.out().read(zones), expected.read(zones), 264);
    }
    require(cudaGraphExecDestroy(executable), "destroy");
    require(cudaGraphDestroy(graph), "destroy");
    if (!failure.empty()) return std::string(grouped_row_name_sm90(row)) + ": " + failure;
  }
  require(cudaStreamDestroy(stream), "stream");
  return "";
}

}  // namespace
}  // namespace evergemm::gpu_test

int main(int argument_count, char** arguments) {
  using namespace evergemm::gpu_test;
  bool quick = false;
  const char* junit = nullptr;
  for (int i = 1; i < argument_count; ++i) {
    const std::string argument = arguments[i];
    if (argument.rfind("--junit=", 0) == 0) junit = arguments[i] + 8;
    if (argument == "--quick") quick = true;
  }
  Report report;
  report.test("dense", "experts", [=](std::int64_t& cases) { return run_expert_counts(quick, cases); });
  report.test("dense", "graph", [=](std::int64_t& cases) { return run_graph(quick, cases); });
  report.test("dense", "hostile", [=](std::int64_t& cases) { return run_hostile(quick, cases); });
  report.test("dense", "sizes", [=](std::int64_t& cases) { return run_sizes(quick, cases); });
  return report.finish(junit);
}
