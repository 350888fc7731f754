// SPDX-License-Identifier: Apache-2.0
// Times every row of the GPU's GEMM table on shapes x m beside cuBLASLt (best of its heuristic's first eight), in one process.
// Protocol: CUDA-graph replay without programmatic overlap, weights rotated past three times the L2, normal random data;
// candidates in two passes of opposite order, then the best, the rules' choice and the peers interleaved, median of 5 rounds.
// Usage: row_bench OUTPUT.tsv ALL_ROWS.tsv "int8,fast,block" "1,16,64" "6144x4096,7168x8192" [portable]
// With a sixth argument the rows are the portable ones, on any GPU; otherwise Hopper's own. int8 has two more peers: the call
// that torch._int_mm makes (cuBLASLt without an algorithm or a workspace) and, where it is built in, CUTLASS 2.x (cutlass_peer.h).
// bench/tune.py reads the second file. Must not go here: verdicts on correctness (gemm_test), choices of rules.
#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <string>

#include "cuda/registry.h"
#if defined(EVERGEMM_WITH_CUTLASS)
#include "cutlass_peer.h"
#endif
#include "evergemm/numerics.h"
#include "harness.h"
#include "plan/portable.h"
#include "plan/table.h"

namespace evergemm::gpu_test {
namespace {

constexpr std::int64_t kRotatedBytes = 150 << 20;
constexpr double kBurstMilliseconds = 2.5, kFinalMilliseconds = 5;
constexpr int kRounds = 5;

cudaStream_t stream;
cudaEvent_t begin_event, end_event;
cublasLtHandle_t lt;
void* lt_workspace;
constexpr std::size_t kLtWorkspace = 32 << 20;
void* workspace;  // of evergemm's own plans
constexpr std::int64_t kWorkspace = 256 << 20;

// Device memory taken once: cells of one size after another use its start.
struct Arena {
  char* base = nullptr;
  std::int64_t bytes = 0;
  void reserve(std::int64_t wanted) {
    if (wanted <= bytes) return;
    if (base != nullptr) require(cudaFree(base), "cudaFree");
    require(cudaMalloc(&base, static_cast<std::size_t>(wanted)), "arena");
    bytes = wanted;
  }
};

// Fills with one random block, repeated at shifting offsets.
void fill(char* to, std::int64_t bytes, const std::vector<std::uint8_t>& block) {
  for (std::int64_t at = 0; at < bytes;) {
    const std::int64_t shift = at / 64 % 4096,
                       part = std::min<std::int64_t>(bytes - at, static_cast<std::int64_t>(block.size()) - shift);
    require(cudaMemcpy(to + at, block.data() + shift, static_cast<std::size_t>(part), cudaMemcpyHostToDevice), "fill");
    at += part;
  }
}

struct Contender {
  std::string name;
  std::function<bool(int)> call;  // enqueues one product of operand set i; false: it cannot
  cudaGraphExec_t graph = nullptr;
  double burst = 0, median = 0;
  std::vector<double> rounds;
};

bool capture(Contender& contender, int sets) {
  if (!contender.call(0)) return false;
  require(cudaStreamSynchronize(stream), contender.name.c_str());
  cudaGraph_t graph;
  require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  bool good = true;
  for (int i = 0; i < sets; ++i) good = contender.call(i) && good;
  require(cudaStreamEndCapture(stream, &graph), "end of capture");
  if (good) require(cudaGraphInstantiate(&contender.graph, graph, 0), "instantiate");
  require(cudaGraphDestroy(graph), "destroy");
  return good;
}

double replay(const Contender& contender, int sets, int times) {
  require(cudaEventRecord(begin_event, stream), "event");
  for (int i = 0; i < times; ++i) require(cudaGraphLaunch(contender.graph, stream), "replay");
  require(cudaEventRecord(end_event, stream), "event");
  require(cudaEventSynchronize(end_event), contender.name.c_str());
  float milliseconds;
  require(cudaEventElapsedTime(&milliseconds, begin_event, end_event), "elapsed");
  return milliseconds * 1e3 / times / sets;
}
double timed(const Contender& contender, int sets, double milliseconds) {
  const double once = replay(contender, sets, 1);
  return replay(contender, sets, std::max(1, static_cast<int>(milliseconds * 1e3 / (once * sets))));
}

enum class Kind { int8, fast, promoted, block };

struct Cell {
  Kind kind;
  std::int64_t m, n, k;
  int sets;
  char *a, *b, *out;  // set i at i * its bytes
  const float *scale_a, *scale_b, *block_a, *block_b;
  std::int64_t block_pitch;

  GemmProblem problem(int set) const {
    GemmProblem p;
    p.m = m;
    p.n = n;
    p.k = k;
    p.input_dtype = kind == Kind::int8 ? DType::int8 : DType::float8_e4m3fn;
    p.output_dtype = DType::bfloat16;
    p.fast_accumulation = kind == Kind::fast;
    p.a = a + set * m * k;
    p.b = b + set * n * k;
    p.out = out + set * m * n * 4;
    p.a_stride = p.b_stride = k;
    p.out_stride = n;
    p.device = Device{DeviceType::cuda, 0};
    if (kind == Kind::block) {
      p.scale_a = Scale{ScaleMode::BlockWise1x128, block_a, 1, block_pitch};
      p.scale_b = Scale{ScaleMode::BlockWise128x128, block_b, (k + 127) / 128, 1};
    } else {
      p.scale_a = Scale{ScaleMode::RowWise, scale_a, 1, 0};
      p.scale_b = Scale{ScaleMode::RowWise, scale_b, 1, 0};
    }
    return p;
  }
};

bool portable_family = false;
const plan_tables::ArchitectureTable* rows_here = &plan_tables::kSm90Table;
const plan_tables::ArchitectureTable& table() { return *rows_here; }

const plan_tables::PortableTile& portable_tile(std::int32_t row, const DeviceFacts& facts) {
  const std::int32_t first = table().rows - static_cast<std::int32_t>(plan_tables::kPortableRows);
  return plan_tables::portable_rows_of(
      plan_tables::entry_of(facts.architecture).memory)[static_cast<std::size_t>(row - first)];
}

// parts: into how many k is split; 0: what the row's plan says.
Contender row_contender(const Cell& cell, std::int32_t row, const DeviceFacts& facts, bool overlap,
                        std::int32_t parts = 0) {
  Contender contender;
  contender.name = table().row_name(row);
  if (parts > 1) contender.name.append("/").append(std::to_string(parts));
  contender.call = [&cell, row, facts, overlap, parts](int set) {
    const GemmProblem problem = cell.problem(set);
    Plan plan;
    plan.architecture = facts.architecture;
    plan.row = row;
    plan.name = table().row_name(row);
    table().finish(problem, facts, plan);
    if (parts > 0) {
      plan.split_k = parts;
      plan.workspace_bytes = parts * plan_tables::part_bytes_of(portable_tile(row, facts), problem.m, problem.n);
    }
    if (plan.workspace_bytes > kWorkspace) return false;
    RunContext context;
    context.workspace = workspace;
    context.stream = stream;
    context.overlap = overlap;
    const Status status = run_cuda(plan, problem, context);
    if (!status.ok()) std::printf("# %s\n", status.text().c_str());
    return status.ok();
  };
  return contender;
}

std::int32_t rule_row(const GemmProblem& problem, const DeviceFacts& facts) {
  if (portable_family && facts.architecture == Architecture::sm90a) return table().fallback(problem, facts);
  for (const plan_tables::Rule& rule : table().rules(problem, facts))
    if (problem.m <= rule.m && problem.n <= rule.n && problem.k <= rule.k)
      return table().why_not(problem, facts, rule.row).empty() ? rule.row : table().fallback(problem, facts);
  return -1;
}

// Rows that have a chance; the others would only heat the chip.
bool worth_timing(const Cell& cell, std::int32_t row) {
  const std::string name = table().row_name(row);
  int tile_m = 0, tile_n = 0;
  const std::size_t at = name.find('_', name.find('_') + 1) + 1;
  if (std::sscanf(name.c_str() + at, "%dx%d", &tile_m, &tile_n) != 2) return false;
  if (portable_family)
    return name.rfind("portable_", 0) == 0 && tile_m < 2 * cell.m + 32 && (tile_m > 32 || cell.m <= 2 * tile_m);
  if (cell.m >= 1024 && tile_m * tile_n < 128 * 96) return false;
  if (name.find("swap") != std::string::npos)
    return !(cell.m <= 16 && tile_n > 64) && !(cell.m > 32 && tile_n < 64) && tile_n < 2 * cell.m + 32;
  return cell.m >= 64 && !(cell.m < 128 && tile_m > 64) && !(cell.m <= 128 && tile_m > 128);
}

constexpr const char* kIntMm = "torch._int_mm's call";

// Portable rows: parts of k while there are multiprocessors that have too few tiles.
std::vector<std::int32_t> splits_worth_timing(const Cell& cell, std::int32_t row, const DeviceFacts& facts) {
  if (!portable_family) return {0};
  const plan_tables::PortableTile& tile = portable_tile(row, facts);
  const std::int64_t tiles = ((cell.m - 1) / tile.m + 1) * ((cell.n - 1) / tile.n + 1);
  std::vector<std::int32_t> splits = {1};
  for (const std::int64_t wanted : {2, 3, 4, 6, 8, 12, 16}) {
    const auto parts = static_cast<std::int32_t>(plan_tables::parts_of(cell.k, wanted));
    if (parts != splits.back() && tiles * parts <= 4 * facts.cores && plan_tables::may_split(tile))
      splits.push_back(parts);
  }
  return splits;
}

// cuBLASLt's call for the same product, one contender for each algorithm of its heuristic. mode: 0 per tensor, 1 per row and
// column, 2 int8 to int32 without scales, 3 block scales.
std::vector<Contender> peers(const Cell& cell, int mode) {
  std::vector<Contender> result;
  const bool fp8 = mode != 2;
  cublasLtMatmulDesc_t operation;
  cublasLtMatmulDescCreate(&operation, fp8 ? CUBLAS_COMPUTE_32F : CUBLAS_COMPUTE_32I, fp8 ? CUDA_R_32F : CUDA_R_32I);
  const cublasOperation_t transposed = CUBLAS_OP_T;
  cublasLtMatmulDescSetAttribute(operation, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed);
  if (fp8) {
    const std::int8_t fast = mode != 3;
    cublasLtMatmulDescSetAttribute(operation, CUBLASLT_MATMUL_DESC_FAST_ACCUM, &fast, sizeof fast);
    const void* scale_of_b = mode == 3 ? cell.block_b : cell.scale_b;
    const void* scale_of_a = mode == 3 ? cell.block_a : cell.scale_a;
    cublasLtMatmulDescSetAttribute(operation, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &scale_of_b, sizeof scale_of_b);
    cublasLtMatmulDescSetAttribute(operation, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &scale_of_a, sizeof scale_of_a);
    if (mode != 0) {
      const cublasLtMatmulMatrixScale_t of_b =
          mode == 3 ? CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F : CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
      const cublasLtMatmulMatrixScale_t of_a =
          mode == 3 ? CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F : CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
      cublasLtMatmulDescSetAttribute(operation, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &of_b, sizeof of_b);
      cublasLtMatmulDescSetAttribute(operation, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &of_a, sizeof of_a);
    }
  }
  const cudaDataType input = fp8 ? CUDA_R_8F_E4M3 : CUDA_R_8I, output = fp8 ? CUDA_R_16BF : CUDA_R_32I;
  cublasLtMatrixLayout_t weights, tokens, out;
  cublasLtMatrixLayoutCreate(&weights, input, static_cast<std::uint64_t>(cell.k), static_cast<std::uint64_t>(cell.n),
                             cell.k);
  cublasLtMatrixLayoutCreate(&tokens, input, static_cast<std::uint64_t>(cell.k), static_cast<std::uint64_t>(cell.m),
                             cell.k);
  cublasLtMatrixLayoutCreate(&out, output, static_cast<std::uint64_t>(cell.n), static_cast<std::uint64_t>(cell.m),
                             cell.n);
  cublasLtMatmulPreference_t preference;
  cublasLtMatmulPreferenceCreate(&preference);
  cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &kLtWorkspace,
                                       sizeof kLtWorkspace);
  constexpr int kAlgorithms = 8;
  cublasLtMatmulHeuristicResult_t found[kAlgorithms];
  int count = 0;
  if (cublasLtMatmulAlgoGetHeuristic(lt, operation, weights, tokens, out, out, preference, kAlgorithms, found,
                                     &count) != CUBLAS_STATUS_SUCCESS)
    count = 0;
  for (int i = 0; i < count; ++i) {
    Contender contender;
    contender.name = "cublaslt";
    const cublasLtMatmulAlgo_t algorithm = found[i].algo;
    contender.call = [&cell, operation, weights, tokens, out, algorithm, fp8](int set) {
      const float one = 1, zero = 0;
      const int one_int = 1, zero_int = 0;
      const GemmProblem p = cell.problem(set);
      return cublasLtMatmul(lt, operation, fp8 ? static_cast<const void*>(&one) : &one_int, p.b, weights, p.a, tokens,
                            fp8 ? static_cast<const void*>(&zero) : &zero_int, p.out, out, p.out, out, &algorithm,
                            lt_workspace, kLtWorkspace, stream) == CUBLAS_STATUS_SUCCESS;
    };
    result.push_back(contender);
  }
  if (mode == 2 && cell.m > 16) {
    Contender contender;
    contender.name = kIntMm;
    contender.call = [&cell, operation, weights, tokens, out](int set) {
      const int one = 1, zero = 0;
      const GemmProblem p = cell.problem(set);
      return cublasLtMatmul(lt, operation, &one, p.b, weights, p.a, tokens, &zero, p.out, out, p.out, out, nullptr,
                            nullptr, 0, stream) == CUBLAS_STATUS_SUCCESS;
    };
    result.push_back(contender);
  }
#if defined(EVERGEMM_WITH_CUTLASS)
  if (mode == 2)
    for (const CutlassKernel& kernel : cutlass_int8_kernels()) {
      Contender contender;
      contender.name = kernel.name;
      contender.call = [&cell, kernel](int set) {
        const GemmProblem p = cell.problem(set);
        return kernel.enqueue(p.a, p.b, p.out, static_cast<int>(p.m), static_cast<int>(p.n), static_cast<int>(p.k),
                              stream);
      };
      result.push_back(contender);
    }
#endif
  return result;
}

// Captures all, times each in a burst twice in opposite orders, and sorts; what cannot run is dropped.
void burst(std::vector<Contender>& contenders, int sets, bool warm) {
  std::vector<Contender> kept;
  for (Contender& contender : contenders)
    if (capture(contender, sets)) kept.push_back(contender);
  contenders = kept;
  if (contenders.empty()) return;
  if (warm) timed(contenders[0], sets, 30);
  for (Contender& contender : contenders) contender.burst = timed(contender, sets, kBurstMilliseconds);
  for (std::size_t i = contenders.size(); i-- > 0;)
    contenders[i].burst = 0.5 * (contenders[i].burst + timed(contenders[i], sets, kBurstMilliseconds));
}

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t comma = std::min(text.find(',', at), text.size());
    if (comma > at) parts.push_back(text.substr(at, comma - at));
    at = comma + 1;
  }
  return parts;
}

}  // namespace
}  // namespace evergemm::gpu_test

int main(int argument_count, char** arguments) {
  using namespace evergemm;
  using namespace evergemm::gpu_test;
  if (argument_count < 6) {
    std::fprintf(stderr, "usage: row_bench OUTPUT.tsv ALL_ROWS.tsv KINDS MS SHAPES [portable]\n");
    return 2;
  }
  portable_family = argument_count > 6;
  std::FILE* output = std::fopen(arguments[1], "w");
  std::FILE* all_rows = std::fopen(arguments[2], "w");
  if (output == nullptr || all_rows == nullptr) return 2;
  DeviceFacts facts;
  if (!cuda_facts(0, facts).ok()) return 2;
  if (portable_family) rows_here = plan_tables::table_of(facts.architecture);
  require(cudaStreamCreate(&stream), "stream");
  require(cudaEventCreate(&begin_event), "event");
  require(cudaEventCreate(&end_event), "event");
  cublasLtCreate(&lt);
  require(cudaMalloc(&lt_workspace, kLtWorkspace), "workspace");
  require(cudaMalloc(&workspace, static_cast<std::size_t>(kWorkspace)), "workspace");

  Random random{1};
  std::vector<std::uint8_t> bytes(32 << 20), codes(32 << 20);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::uint8_t>(random.next() >> 33);
  std::vector<std::uint8_t> normal(1 << 14);
  for (std::uint8_t& code : normal)
    code = numerics::float_to_float8_e4m3fn(static_cast<float>(std::sqrt(-2 * std::log(random.uniform() + 1e-12)) *
                                                               std::cos(6.283185307179586 * random.uniform())));
  for (std::uint8_t& code : codes) code = normal[random.next() % normal.size()];
  std::vector<float> scales(1 << 20);
  for (float& scale : scales) scale = static_cast<float>(0.01 + 0.02 * random.uniform());
  DeviceBuffer device_scales(static_cast<std::int64_t>(scales.size() * 4));
  device_scales.fill(scales.data(), device_scales.bytes());
  const float* scale_base = reinterpret_cast<const float*>(device_scales.data());

  std::fprintf(output,
               "kind\tn\tk\tm\tbest_row\tbest_us\trule_row\trule_us\toverlap_us\tpeer_us\tpeer_row_us\troof_us\t"
               "int_mm_us\tcutlass_us\tcutlass_bfloat16_us\tcutlass_row\n");
  std::fprintf(all_rows, "kind\tn\tk\tm\trow\tus\n");
  Arena a_arena, b_arena, out_arena;
  for (const std::string& kind_text : split(arguments[3])) {
    const Kind kind = kind_text == "int8"       ? Kind::int8
                      : kind_text == "fast"     ? Kind::fast
                      : kind_text == "promoted" ? Kind::promoted
                                                : Kind::block;
    b_arena.reserve(std::int64_t{1100} << 20);
    a_arena.reserve(std::int64_t{800} << 20);
    fill(b_arena.base, b_arena.bytes, kind == Kind::int8 ? bytes : codes);
    fill(a_arena.base, a_arena.bytes, kind == Kind::int8 ? bytes : codes);
    for (const std::string& shape : split(arguments[5]))
      for (const std::string& m_text : split(arguments[4])) {
        Cell cell;
        cell.kind = kind;
        long long n, k;
        if (std::sscanf(shape.c_str(), "%lldx%lld", &n, &k) != 2) return 2;
        cell.n = n;
        cell.k = k;
        cell.m = std::atoll(m_text.c_str());
        cell.sets = static_cast<int>(std::clamp<std::int64_t>((kRotatedBytes + n * k - 1) / (n * k), 2, 16));
        while (cell.sets > 1 && (cell.sets * n * k > b_arena.bytes || cell.sets * cell.m * k > a_arena.bytes))
          --cell.sets;
        out_arena.reserve(cell.sets * cell.m * n * 4);
        cell.a = a_arena.base;
        cell.b = b_arena.base;
        cell.out = out_arena.base;
        cell.scale_a = scale_base;
        cell.scale_b = scale_base + 65536;
        cell.block_pitch = (cell.m + 3) / 4 * 4;
        cell.block_a = scale_base;
        cell.block_b = scale_base + (1 << 18) * 3;
        if (kind == Kind::block && cell.block_pitch * ((k + 127) / 128) > (1 << 18) * 3) cell.block_a = nullptr;
        DeviceBuffer large_scales(cell.block_a == nullptr ? cell.block_pitch * ((k + 127) / 128) * 4 : 4);
        if (cell.block_a == nullptr) {
          fill(large_scales.data(), large_scales.bytes(),
               std::vector<std::uint8_t>(reinterpret_cast<const std::uint8_t*>(scales.data()),
                                         reinterpret_cast<const std::uint8_t*>(scales.data() + scales.size())));
          cell.block_a = reinterpret_cast<const float*>(large_scales.data());
        }

        std::vector<Contender> rows;
        std::vector<std::int32_t> indices;
        for (std::int32_t row = 0; row < table().rows; ++row)
          if (worth_timing(cell, row) && table().why_not(cell.problem(0), facts, row).empty())
            for (const std::int32_t parts : splits_worth_timing(cell, row, facts))
              rows.push_back(row_contender(cell, row, facts, false, parts));
        burst(rows, cell.sets, cell.m >= 256);
        for (const Contender& row : rows)
          std::fprintf(all_rows, "%s\t%lld\t%lld\t%lld\t%s\t%.2f\n", kind_text.c_str(), n, k,
                       static_cast<long long>(cell.m), row.name.c_str(), row.burst);
        std::fflush(all_rows);
        std::vector<std::size_t> order(rows.size());
        for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
        std::sort(order.begin(), order.end(),
                  [&](std::size_t x, std::size_t y) { return rows[x].burst < rows[y].burst; });

        std::vector<Contender> by_mode[4];
        std::vector<Contender*> finalists;
        for (std::size_t i = 0; i < std::min<std::size_t>(3, order.size()); ++i) finalists.push_back(&rows[order[i]]);
        Contender rule = row_contender(cell, rule_row(cell.problem(0), facts), facts, false);
        Contender overlapped = row_contender(cell, rule_row(cell.problem(0), facts), facts, true);
        if (!capture(rule, cell.sets) || !capture(overlapped, cell.sets)) return 1;
        finalists.push_back(&rule);
        finalists.push_back(&overlapped);
        const std::array<int, 2> modes = {kind == Kind::int8    ? 2
                                          : kind == Kind::fast  ? 0
                                          : kind == Kind::block ? 3
                                                                : -1,
                                          kind == Kind::fast ? 1 : -1};
        std::array<Contender*, 2> best_peer = {nullptr, nullptr}, best_cutlass = {nullptr, nullptr};
        Contender* int_mm = nullptr;
        for (std::size_t i = 0; i < 2; ++i) {
          if (modes[i] < 0 || (modes[i] == 3 && cell.m % 4 != 0)) continue;
          std::vector<Contender>& list = by_mode[modes[i]];
          list = peers(cell, modes[i]);
          burst(list, cell.sets, false);
          for (Contender& peer : list) {
            const bool cutlass = peer.name.rfind("cutlass", 0) == 0;
            Contender*& best = peer.name == kIntMm ? int_mm
                               : !cutlass          ? best_peer[i]
                                                   : best_cutlass[peer.name.find("bfloat16") != std::string::npos];
            if (best == nullptr || peer.burst < best->burst) best = &peer;
          }
          for (Contender* peer : {best_peer[i], int_mm, best_cutlass[0], best_cutlass[1]})
            if (peer != nullptr) finalists.push_back(peer);
        }
        for (int round = 0; round < kRounds; ++round)
          for (Contender* finalist : finalists)
            finalist->rounds.push_back(timed(*finalist, cell.sets, kFinalMilliseconds));
        for (Contender* finalist : finalists) {
          std::sort(finalist->rounds.begin(), finalist->rounds.end());
          finalist->median = finalist->rounds[kRounds / 2];
        }
        const Contender* best = &rule;
        for (std::size_t i = 0; i < std::min<std::size_t>(3, order.size()); ++i)
          if (rows[order[i]].median < best->median) best = &rows[order[i]];
        const double operations = 2.0 * static_cast<double>(cell.m) * static_cast<double>(n) * static_cast<double>(k);
        const double traffic = static_cast<double>(n) * static_cast<double>(k) +
                               static_cast<double>(cell.m) * static_cast<double>(k) +
                               2.0 * static_cast<double>(cell.m) * static_cast<double>(n);
        const double roof = std::max(operations / 1450e12, traffic / 3.08e12) * 1e6;
        std::fprintf(
            output, "%s\t%lld\t%lld\t%lld\t%s\t%.2f\t%s\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%s\n",
            kind_text.c_str(), n, k, static_cast<long long>(cell.m), best->name.c_str(), best->median,
            rule.name.c_str(), rule.median, overlapped.median, best_peer[0] != nullptr ? best_peer[0]->median : 0.0,
            best_peer[1] != nullptr ? best_peer[1]->median : 0.0, roof, int_mm != nullptr ? int_mm->median : 0.0,
            best_cutlass[0] != nullptr ? best_cutlass[0]->median : 0.0,
            best_cutlass[1] != nullptr ? best_cutlass[1]->median : 0.0,
            best_cutlass[0] != nullptr ? best_cutlass[0]->name.c_str() : "none");
        std::fflush(output);
        for (std::vector<Contender>* list : {&rows, &by_mode[0], &by_mode[1], &by_mode[2], &by_mode[3]})
          for (Contender& contender : *list) static_cast<void>(cudaGraphExecDestroy(contender.graph));
        static_cast<void>(cudaGraphExecDestroy(rule.graph));
        static_cast<void>(cudaGraphExecDestroy(overlapped.graph));
      }
  }
  std::fclose(output);
  std::fclose(all_rows);
  return 0;
}
