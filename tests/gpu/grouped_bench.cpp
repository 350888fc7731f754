// SPDX-License-Identifier: Apache-2.0
// Times every row of the grouped GEMM table on the first products of public mixture-of-experts layers, by CUDA-graph replay
// without programmatic overlap, beside the practical roofline: max(operations / 1450 TF, bytes / 3.08 TB/s), where bytes are
// the weights of experts that have rows, the routed rows and the output. Normal random data, seeded routing.
// Usage: grouped_bench OUTPUT.tsv "fast,int8,block" "E1,E3,E4" "8,64,256,1024,4096" [uniform|hot]
// Must not go here: verdicts on correctness (grouped_test), choices of rules.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/registry.h"
#include "evergemm/numerics.h"
#include "harness.h"
#include "plan/sm90_grouped.h"

namespace evergemm::gpu_test {
namespace {

struct Layer {
  const char* name;
  std::int64_t experts, local, top_k, n, k;
};
constexpr Layer kLayers[] = {
    {"E1", 128, 128, 8, 1536, 2048}, {"E2", 128, 16, 8, 3072, 4096},   {"E3", 256, 32, 8, 4096, 7168},
    {"E3t", 256, 256, 8, 512, 7168}, {"E4", 8, 8, 2, 28672, 4096},     {"E6", 512, 512, 10, 1024, 2048},
    {"F1", 256, 256, 8, 1024, 2048}, {"F1w2", 256, 256, 8, 2048, 512}, {"E1w2", 128, 128, 8, 2048, 768}};

cudaStream_t stream;
cudaEvent_t begin_event, end_event;

double replay(cudaGraphExec_t graph, int times) {
  require(cudaEventRecord(begin_event, stream), "event");
  for (int i = 0; i < times; ++i) require(cudaGraphLaunch(graph, stream), "replay");
  require(cudaEventRecord(end_event, stream), "event");
  require(cudaEventSynchronize(end_event), "replay");
  float milliseconds;
  require(cudaEventElapsedTime(&milliseconds, begin_event, end_event), "elapsed");
  return milliseconds * 1e3 / times;
}

struct Candidate {
  std::int32_t row;
  cudaGraphExec_t graph = nullptr;
  double microseconds = 0;
};

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t comma = std::min(text.find(',', at), text.size());
    if (comma > at) parts.push_back(text.substr(at, comma - at));
    at = comma + 1;
  }
  return parts;
}

// Rows of each local expert: every token goes to top_k different experts of all. hot: one of four goes to expert 0 first.
std::vector<std::int64_t> draw_counts(const Layer& layer, std::int64_t tokens, bool hot) {
  Random random{static_cast<std::uint64_t>(tokens) * 31 + static_cast<std::uint64_t>(layer.experts)};
  std::vector<std::int64_t> counts(static_cast<std::size_t>(layer.experts), 0);
  for (std::int64_t token = 0; token < tokens; ++token) {
    std::vector<std::int64_t> chosen;
    while (static_cast<std::int64_t>(chosen.size()) < layer.top_k) {
      const std::int64_t expert = hot && random.below(4) == 0 ? 0 : random.below(layer.experts);
      if (std::find(chosen.begin(), chosen.end(), expert) != chosen.end()) continue;
      chosen.push_back(expert);
      ++counts[static_cast<std::size_t>(expert)];
    }
  }
  counts.resize(static_cast<std::size_t>(layer.local));
  return counts;
}

char* allocate(std::int64_t bytes) {
  char* memory = nullptr;
  require(cudaMalloc(&memory, static_cast<std::size_t>(bytes)), "memory");
  return memory;
}

}  // namespace
}  // namespace evergemm::gpu_test

int main(int argument_count, char** arguments) {
  using namespace evergemm;
  using namespace evergemm::gpu_test;
  if (argument_count < 5) {
    std::fprintf(stderr, "usage: grouped_bench OUTPUT.tsv KINDS LAYERS TOKENS [uniform|hot]\n");
    return 2;
  }
  std::FILE* output = std::fopen(arguments[1], "w");
  if (output == nullptr) return 2;
  const bool hot = argument_count > 5 && std::strcmp(arguments[5], "hot") == 0;
  DeviceFacts facts;
  if (!cuda_facts(0, facts).ok()) return 2;
  require(cudaStreamCreate(&stream), "stream");
  require(cudaEventCreate(&begin_event), "event");
  require(cudaEventCreate(&end_event), "event");

  Random random{1};
  std::vector<std::uint8_t> codes(32 << 20);
  for (std::uint8_t& code : codes)
    code = numerics::float_to_float8_e4m3fn(static_cast<float>(std::sqrt(-2 * std::log(random.uniform() + 1e-12)) *
                                                               std::cos(6.283185307179586 * random.uniform())));
  constexpr std::int64_t kWeightBytes = std::int64_t{1} << 30, kTokenBytes = 64 << 20,
                         kOutBytes = std::int64_t{512} << 20, kScales = 4 << 20;
  char *weights = allocate(kWeightBytes), *tokens_memory = allocate(kTokenBytes), *out = allocate(kOutBytes);
  for (std::int64_t at = 0; at < kWeightBytes; at += 32 << 20)
    require(cudaMemcpy(weights + at, codes.data(), codes.size(), cudaMemcpyHostToDevice), "fill");
  for (std::int64_t at = 0; at < kTokenBytes; at += 32 << 20)
    require(cudaMemcpy(tokens_memory + at, codes.data(), codes.size(), cudaMemcpyHostToDevice), "fill");
  std::vector<float> scales(kScales, 0.02f);
  auto* device_scales = reinterpret_cast<float*>(allocate(kScales * 4));
  require(cudaMemcpy(device_scales, scales.data(), scales.size() * 4, cudaMemcpyHostToDevice), "fill");
  auto* device_offsets = reinterpret_cast<std::int32_t*>(allocate(4096));

  std::fprintf(output, "kind\tlayer\trouting\ttokens\trows\tactive\trow\tus\tshare\n");
  std::printf("kind layer tokens rows active: best us (share), chosen us (share) | all rows\n");
  for (const std::string& kind : split(arguments[2]))
    for (const std::string& layer_name : split(arguments[3]))
      for (const std::string& tokens_text : split(arguments[4])) {
        const Layer* layer = std::find_if(std::begin(kLayers), std::end(kLayers),
                                          [&](const Layer& one) { return layer_name == one.name; });
        if (layer == std::end(kLayers)) return 2;
        const std::vector<std::int64_t> counts = draw_counts(*layer, std::atoll(tokens_text.c_str()), hot);
        std::vector<std::int32_t> offsets{0};
        std::int64_t active = 0;
        for (const std::int64_t count : counts) {
          offsets.push_back(offsets.back() + static_cast<std::int32_t>(count));
          active += count > 0;
        }
        require(cudaMemcpy(device_offsets, offsets.data(), offsets.size() * 4, cudaMemcpyHostToDevice), "offsets");
        GroupedGemmProblem p;
        p.experts = layer->local;
        p.rows = offsets.back();
        p.n = layer->n;
        p.k = layer->k;
        if (p.rows == 0 || p.rows * p.k > kTokenBytes || p.rows * p.n * 2 > kOutBytes) continue;
        p.input_dtype = kind == "int8" ? DType::int8 : DType::float8_e4m3fn;
        p.output_dtype = DType::bfloat16;
        p.fast_accumulation = kind == "fast";
        p.a = tokens_memory;
        p.b = weights;
        p.out = out;
        p.a_stride = p.b_stride = p.k;
        p.b_expert_stride = p.n * p.k;
        p.out_stride = p.n;
        p.device = Device{DeviceType::cuda, 0};
        p.expert_rows = Indices{device_offsets, 1, false};
        const std::int64_t k_blocks = (p.k + 127) / 128;
        if (kind == "block" || kind == "blockk") {  // token scales rows fastest, or as quantizers write them
          const bool k_fastest = kind == "blockk";
          p.scale_a = Scale{ScaleMode::BlockWise1x128, device_scales, k_fastest ? k_blocks : 1,
                            k_fastest ? 1 : (p.rows + 3) / 4 * 4};
          p.scale_b = Scale{ScaleMode::BlockWise128x128, device_scales, k_blocks, 1};
          p.scale_b_expert_stride = (p.n + 127) / 128 * k_blocks;
        } else {
          p.scale_a = Scale{ScaleMode::RowWise, device_scales, 1, 0};
          p.scale_b = Scale{ScaleMode::RowWise, device_scales, 1, 0};
          p.scale_b_expert_stride = p.n;
        }
        const double bytes = static_cast<double>(active) * static_cast<double>(p.n * p.k) +
                             static_cast<double>(p.rows) * static_cast<double>(p.k + 2 * p.n);
        const double operations = 2.0 * static_cast<double>(p.rows) * static_cast<double>(p.n * p.k);
        const double roofline = std::max(operations / 1450e6, bytes / 3.08e6);

        Plan chosen;
        if (!plan_tables::plan_grouped_sm90(p, facts, chosen).ok()) return 2;
        std::vector<Candidate> candidates;
        for (std::int32_t row = 0; row < plan_tables::kSm90GroupedRows; ++row) {
          Plan plan;
          if (!plan_tables::plan_grouped_row_sm90(p, facts, row, plan).ok()) continue;
          RunContext context;
          context.stream = stream;
          context.overlap = false;
          Candidate candidate{row};
          cudaGraph_t graph;
          if (!run_cuda(plan, p, context).ok()) return 2;
          require(cudaStreamSynchronize(stream), plan.name);
          require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
          const int repeats = roofline > 100 ? 2 : 8;
          for (int i = 0; i < repeats; ++i)
            if (!run_cuda(plan, p, context).ok()) return 2;
          require(cudaStreamEndCapture(stream, &graph), "end of capture");
          require(cudaGraphInstantiate(&candidate.graph, graph, 0), "instantiate");
          require(cudaGraphDestroy(graph), "destroy");
          candidates.push_back(candidate);
        }
        const int repeats = roofline > 100 ? 2 : 8;
        const int times = std::max(1, static_cast<int>(4000 / (roofline * repeats)));
        replay(candidates[0].graph, times);
        for (int pass = 0; pass < 4; ++pass)
          for (std::size_t i = 0; i < candidates.size(); ++i) {
            Candidate& candidate = candidates[pass % 2 == 0 ? i : candidates.size() - 1 - i];
            candidate.microseconds += replay(candidate.graph, times) / repeats / 4;
          }
        const Candidate* best = &candidates[0];
        double chosen_us = 0;
        std::string all;
        for (const Candidate& candidate : candidates) {
          if (candidate.microseconds < best->microseconds) best = &candidate;
          if (candidate.row == chosen.row) chosen_us = candidate.microseconds;
          const char* name = plan_tables::grouped_row_name_sm90(candidate.row);
          std::fprintf(output, "%s\t%s\t%s\t%s\t%lld\t%lld\t%s\t%.2f\t%.3f\n", kind.c_str(), layer->name,
                       hot ? "hot" : "uniform", tokens_text.c_str(), static_cast<long long>(p.rows),
                       static_cast<long long>(active), name, candidate.microseconds, roofline / candidate.microseconds);
          char text[96];
          std::snprintf(text, sizeof text, " %d:%.1f", candidate.row, candidate.microseconds);
          all += text;
          require(cudaGraphExecDestroy(candidate.graph), "destroy");
        }
        std::printf("%s %s %s %lld %lld: %d %.1f (%.3f), %d %.1f (%.3f) |%s\n", kind.c_str(), layer->name,
                    tokens_text.c_str(), static_cast<long long>(p.rows), static_cast<long long>(active), best->row,
                    best->microseconds, roofline / best->microseconds, chosen.row, chosen_us, roofline / chosen_us,
                    all.c_str());
        std::fflush(stdout);
      }
  std::fclose(output);
  return 0;
}
