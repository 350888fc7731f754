// SPDX-License-Identifier: Apache-2.0
// Times the steps of a mixture of experts and the whole layer on the device: graph replay of calls that follow each other,
// median of 5 rounds; weights and tokens rotated where they would stay in the L2. CSV on stdout with --csv.
// Usage: moe_bench [--csv] [--only=route|rows|layer]
// Must not go here: verdicts on correctness (moe_test), other libraries (evergemm bench --moe).
#include <algorithm>
#include <functional>
#include <memory>
#include <set>
#include <string>

#include "graph_timing.h"
#include "moe_operands.h"

namespace evergemm::gpu_test {
namespace {

bool csv = false;
cudaStream_t stream;

double median_microseconds(int calls, const std::function<void(int)>& call) {
  call(0);
  constexpr int kTimes = 4;
  return replayed_microseconds(stream, calls, kTimes, call);
}

void print(const std::string& what, double us, double bytes) {
  if (csv)
    std::printf("%s,%.3f,%.0f\n", what.c_str(), us, bytes);
  else
    std::printf("%-64s %9.2f us %8.0f GB/s\n", what.c_str(), us, bytes / us / 1e3);
  std::fflush(stdout);
}

template <class Problem>
void enqueue(const Problem& problem, void* workspace = nullptr) {
  Plan chosen;
  RunContext context;
  context.stream = stream;
  context.workspace = workspace;
  Status status = plan(problem, device_facts(), chosen);
  if (status.ok()) status = run_cuda(chosen, problem, context);
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.text().c_str());
  std::exit(1);
}

// Distinct experts of each token, as a router chooses them; hot: the first choice is always the same.
std::vector<std::int32_t> ids_of(std::int64_t tokens, std::int64_t top_k, std::int64_t experts, bool hot) {
  Random random{static_cast<std::uint64_t>(tokens * 7 + experts)};
  std::vector<std::int32_t> ids;
  for (std::int64_t token = 0; token < tokens; ++token) {
    std::set<std::int64_t> taken;
    while (static_cast<std::int64_t>(taken.size()) < top_k) {
      const std::int64_t expert = hot && taken.empty() ? experts / 2 : random.below(experts);
      if (taken.insert(expert).second) ids.push_back(static_cast<std::int32_t>(expert));
    }
  }
  return ids;
}

void time_routes() {
  struct Shape {
    std::int64_t tokens, top_k, experts;
  };
  for (const Shape& shape :
       {Shape{1, 8, 256}, Shape{8, 8, 256}, Shape{64, 8, 256}, Shape{128, 8, 256}, Shape{256, 8, 256},
        Shape{1024, 8, 256}, Shape{4096, 8, 256}, Shape{4096, 8, 512}, Shape{4096, 6, 64}, Shape{16384, 8, 256}})
    for (const int variant : {0, 1, 2}) {  // int32, one hot expert, int64
      const std::int64_t choices = shape.tokens * shape.top_k, width = variant == 2 ? 8 : 4;
      const std::vector<std::int32_t> values = ids_of(shape.tokens, shape.top_k, shape.experts, variant == 1);
      Mirror ids(choices * width), out((choices * 2 + shape.experts + 1) * 4);
      for (std::int64_t i = 0; i < choices; ++i)
        store_index(ids.host<void>(), variant == 2, i, values[static_cast<std::size_t>(i)]);
      ids.upload();
      MoeRouteProblem p;
      p.device = Device{DeviceType::cuda, 0};
      p.tokens = shape.tokens;
      p.top_k = shape.top_k;
      p.experts = shape.experts;
      p.ids = ids.device<void>();
      p.ids_are_int64 = variant == 2;
      p.ids_token_stride = shape.top_k;
      p.ids_choice_stride = 1;
      p.slot = out.device<std::int32_t>();
      p.source_row = p.slot + choices;
      p.expert_offsets = p.source_row + choices;
      const double us = median_microseconds(200, [&](int) { enqueue(p); });
      const char* names[] = {"int32", "int32 one hot", "int64"};
      print("route " + std::to_string(shape.tokens) + " x " + std::to_string(shape.top_k) + " of " +
                std::to_string(shape.experts) + " " + names[variant],
            us, static_cast<double>(choices * (width + 8)));
    }
}

void fill_random(DeviceBuffer& buffer, bool floats) {
  std::vector<std::uint16_t> block(1 << 20);
  Random random{7};
  for (std::uint16_t& value : block)
    value = floats ? numerics::float_to_bfloat16(draw(random)) : static_cast<std::uint16_t>(random.next() & 0xbfbf);
  const auto bytes = static_cast<std::int64_t>(block.size() * 2);
  for (std::int64_t at = 0; at < buffer.bytes(); at += bytes)
    require(cudaMemcpy(buffer.data() + at, block.data(), static_cast<std::size_t>(std::min(bytes, buffer.bytes() - at)),
                       cudaMemcpyHostToDevice),
            "fill");
}

void time_rows() {
  struct Shape {
    std::int64_t tokens, top_k, columns;
  };
  for (const Shape& shape : {Shape{1, 8, 2048}, Shape{8, 8, 2048}, Shape{64, 8, 7168}, Shape{1024, 8, 2048},
                             Shape{4096, 8, 2048}, Shape{4096, 8, 7168}}) {
    const std::int64_t rows = shape.tokens * shape.top_k, columns = shape.columns;
    const std::string size = std::to_string(shape.tokens) + " x " + std::to_string(shape.top_k) + ", " +
                             std::to_string(columns) + " columns";
    DeviceBuffer x(shape.tokens * columns * 2), q(rows * columns), y(rows * columns * 2),
        out(shape.tokens * columns * 2);
    fill_random(x, true);
    fill_random(y, true);
    Mirror source(rows * 4), slot(rows * 4), weights(rows * 4), scale(rows * columns / 128 * 4);
    const std::vector<std::int32_t> order = [&] {
      std::vector<std::int32_t> all(static_cast<std::size_t>(rows));
      for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::int32_t>(i);
      Random random{5};
      for (std::size_t i = all.size(); i > 1; --i) std::swap(all[i - 1], all[random.next() % i]);
      return all;
    }();
    for (std::int64_t i = 0; i < rows; ++i) {
      slot.host<std::int32_t>()[i] = order[static_cast<std::size_t>(i)];
      source.host<std::int32_t>()[order[static_cast<std::size_t>(i)]] = static_cast<std::int32_t>(i / shape.top_k);
      weights.host<float>()[i] = 0.125f;
    }
    for (Mirror* one : {&source, &slot, &weights}) one->upload();
    for (const std::int64_t group : {0, 128}) {
      MoeGatherQuantizeProblem p;
      p.device = Device{DeviceType::cuda, 0};
      p.tokens = shape.tokens;
      p.rows = rows;
      p.columns = p.x_stride = columns;
      p.x = x.data();
      p.source_row = {source.device<void>(), 1, false};
      p.scheme = group == 0 ? QuantizeScheme::per_row : QuantizeScheme::per_block;
      p.group_columns = group == 0 ? columns : group;
      p.q = q.data();
      p.scale = scale.device<float>();
      Plan chosen;
      const Status planned = plan(p, device_facts(), chosen);
      if (!planned.ok()) return static_cast<void>(std::fprintf(stderr, "%s\n", planned.text().c_str()));
      DeviceBuffer workspace(chosen.workspace_bytes);
      print("gather_quantize " + size + (group == 0 ? ", a scale a row" : ", 1 x 128"),
            median_microseconds(50, [&](int) { enqueue(p, workspace.data()); }),
            static_cast<double>(shape.tokens * columns * 2 + rows * columns));
    }
    MoeCombineProblem p;
    p.device = Device{DeviceType::cuda, 0};
    p.tokens = shape.tokens;
    p.top_k = shape.top_k;
    p.rows = rows;
    p.columns = p.y_stride = columns;
    p.y = y.data();
    p.slot = slot.device<void>();
    p.slot_token_stride = p.weights_token_stride = shape.top_k;
    p.slot_choice_stride = p.weights_choice_stride = 1;
    p.weights = weights.device<float>();
    p.out = out.data();
    print("combine " + size, median_microseconds(50, [&](int) { enqueue(p); }),
          static_cast<double>((rows + shape.tokens) * columns * 2));
  }
}

void time_layers() {
  struct Shape {
    std::int64_t experts, top_k, hidden, intermediate;
  };
  const Shape shape{256, 8, 2048, 512};
  const std::int64_t h = shape.hidden, i = shape.intermediate, each = 3 * h * i;
  DeviceBuffer weights(shape.experts * each);
  fill_random(weights, false);
  Mirror scales(shape.experts * (2 * i + h) * 4);
  std::fill_n(scales.host<float>(), scales.bytes() / 4, 0.001f);
  scales.upload();
  for (const DType dtype : {DType::float8_e4m3fn, DType::int8})
    for (const bool blocks : {false, true}) {
      if (blocks && dtype == DType::int8) continue;
      for (const std::int64_t tokens : {1, 2, 4, 8, 16, 64, 256, 1024, 4096}) {
        constexpr int kSets = 8;  // routings, so that weights come from memory
        const std::int64_t choices = tokens * shape.top_k;
        DeviceBuffer x(tokens * h * 2), out(tokens * h * 2);
        fill_random(x, true);
        Mirror ids(kSets * choices * 4), router(choices * 4);
        std::int64_t used = 0;
        for (int set = 0; set < kSets; ++set) {
          Random random{static_cast<std::uint64_t>(set * 1000 + tokens)};
          std::set<std::int64_t> experts;
          for (std::int64_t token = 0; token < tokens; ++token) {
            std::set<std::int64_t> taken;
            for (std::int64_t c = 0; c < shape.top_k; ++c) {
              std::int64_t expert = random.below(shape.experts);
              while (!taken.insert(expert).second) expert = random.below(shape.experts);
              ids.host<std::int32_t>()[set * choices + token * shape.top_k + c] = static_cast<std::int32_t>(expert);
            }
            experts.insert(taken.begin(), taken.end());
          }
          used += static_cast<std::int64_t>(experts.size());
        }
        std::fill_n(router.host<float>(), choices, 0.125f);
        ids.upload();
        router.upload();
        FusedMoeProblem p;
        p.device = p.route.device = Device{DeviceType::cuda, 0};
        p.route.tokens = tokens;
        p.route.top_k = shape.top_k;
        p.route.experts = shape.experts;
        p.route.ids_token_stride = shape.top_k;
        p.route.ids_choice_stride = 1;
        p.x = x.data();
        p.x_stride = h;
        p.weight_dtype = dtype;
        p.topk_weights = router.device<float>();
        p.topk_weights_token_stride = shape.top_k;
        p.topk_weights_choice_stride = 1;
        p.out = out.data();
        const auto bind = [&](MoeWeights& part, std::int64_t offset, std::int64_t n, std::int64_t k) {
          part.data = weights.data() + offset;
          part.n = n;
          part.k = part.row_stride = k;
          part.expert_stride = n * k;
          part.scale.data = scales.device<float>();
          part.scale.mode = blocks ? ScaleMode::BlockWise128x128 : ScaleMode::RowWise;
          part.scale.outer_stride = blocks ? k / 128 : 1;
          part.scale.k_stride = blocks ? 1 : 0;
          part.scale_expert_stride = blocks ? n / 128 * (k / 128) : n;
        };
        bind(p.w13, 0, 2 * i, h);
        bind(p.w2, shape.experts * 2 * i * h, h, i);
        Plan chosen;
        const Status planned = plan(p, device_facts(), chosen);
        if (!planned.ok()) return static_cast<void>(std::fprintf(stderr, "%s\n", planned.text().c_str()));
        DeviceBuffer workspace(chosen.workspace_bytes);
        const double us = median_microseconds(kSets, [&](int set) {
          FusedMoeProblem one = p;
          one.route.ids = ids.device<std::int32_t>() + set * choices;
          enqueue(one, workspace.data());
        });
        print("layer " + std::to_string(tokens) + " tokens, " + name(dtype) + (blocks ? " blocks" : " rows") +
                  ", 256 experts, top 8, 2048 -> 512",
              us, static_cast<double>(used) / kSets * static_cast<double>(each));
      }
    }
}

}  // namespace
}  // namespace evergemm::gpu_test

int main(int count, char** arguments) {
  using namespace evergemm::gpu_test;
  std::string only;
  for (int i = 1; i < count; ++i) {
    const std::string argument = arguments[i];
    if (argument == "--csv") csv = true;
    if (argument.rfind("--only=", 0) == 0) only = argument.substr(7);
  }
  require(cudaStreamCreate(&stream), "stream");
  if (csv) std::printf("what,microseconds,bytes\n");
  if (only.empty() || only == "route") time_routes();
  if (only.empty() || only == "rows") time_rows();
  if (only.empty() || only == "layer") time_layers();
  return 0;
}
