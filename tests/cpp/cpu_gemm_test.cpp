// SPDX-License-Identifier: Apache-2.0
// Every GEMM row of the CPU's table, forced, against the reference: bit for bit, int8 and fp8 alike, under every way to
// split the work. A row that this processor cannot run is named with its reason and counted, never passed over
// silently.
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

#include "bound_checker.h"
#include "cases.h"
#include "evergemm/numerics.h"
#include "evergemm/plan.h"
#include "evergemm/reference.h"
#include "evergemm/run.h"
#include "gemm_operands.h"

namespace {

using namespace evergemm;
using namespace evergemm::proof;

constexpr DType kOutputs[] = {DType::bfloat16, DType::float16, DType::float32};
constexpr std::int32_t kReferenceRow = 0;

// ---- ways to split the work ----

// Pieces of 1, 3, 2, 5, ... items whatever the grain, from the last to the first: no piece may rely on another.
void uneven_backwards(std::int64_t begin, std::int64_t end, std::int64_t, ParallelForBody body, void* context) {
  constexpr std::int64_t kSizes[] = {1, 3, 2, 5, 1, 7};
  for (std::size_t i = 0; end > begin; ++i) {
    const std::int64_t first = std::max(begin, end - kSizes[i % std::size(kSizes)]);
    body(context, first, end);
    end = first;
  }
}
// Two halves at once, one of them much smaller; the grain is ignored, so that small problems are split too.
void threads_ignoring_grain(std::int64_t begin, std::int64_t end, std::int64_t, ParallelForBody body, void* context) {
  parallel_for_threads(begin, end, 1, body, context);
}

struct Split {
  const char* name;
  ParallelFor parallel_for;
  std::int32_t threads;
};
constexpr Split kSplits[] = {
    {"serial", nullptr, 1},
    {"threads", threads_ignoring_grain, 2},
    {"uneven, backwards", uneven_backwards, 5},
    {"one thread of a pool", uneven_backwards, 1},
};

// ---- the judge ----

std::int64_t runs_of_row[64];
std::int64_t compared_elements = 0;

// Runs every row that can run the problem and compares it with the reference's result. The result is first filled with
// `fill`, so that an element that nobody wrote differs.
void run_rows(GemmOperands& operands, std::initializer_list<int> splits) {
  GemmProblem& problem = operands.problem();
  reference::gemm(problem);
  const std::size_t bytes = problem.m == 0 || problem.n == 0
                                ? 0
                                : static_cast<std::size_t>(((problem.m - 1) * problem.out_stride + problem.n) *
                                                           size_in_bytes(problem.output_dtype));
  std::vector<unsigned char> expected(bytes);
  if (bytes != 0) std::memcpy(expected.data(), problem.out, bytes);
  const DeviceFacts facts = cpu_facts();
  for (std::int32_t row = kReferenceRow + 1; row < row_count(Architecture::cpu); ++row) {
    if (!why_not(problem, facts, row).empty()) continue;
    Plan plan;
    const Status planned = plan_row(problem, facts, row, plan);
    ASSERT_TRUE(planned.ok()) << planned.text();
    for (const int split : splits) {
      SCOPED_TRACE(std::string(row_name(Architecture::cpu, row)) + ", " + kSplits[split].name);
      operands.poison_out();
      const Status status =
          run(plan, problem, RunContext{kSplits[split].parallel_for, kSplits[split].threads, nullptr, nullptr});
      ASSERT_TRUE(status.ok()) << status.text();
      const Verdict verdict = check_same(problem, expected.data(), problem.out_stride);
      ASSERT_EQ(verdict.failure, "");
      ASSERT_EQ(verdict.elements, problem.m * problem.n);
      ASSERT_EQ(operands.damage(), "");
      ++runs_of_row[row];
      compared_elements += verdict.elements;
    }
  }
}
void run_rows(const GemmSetup& setup, std::initializer_list<int> splits) {
  SCOPED_TRACE(setup.text());
  GemmOperands operands(setup);
  run_rows(operands, splits);
}

// What is not the point of a test varies with `variant`, so that a suite meets every mixture.
GemmSetup setup_of(std::int64_t m, std::int64_t n, std::int64_t k, DType input, std::uint64_t variant) {
  GemmSetup setup;
  setup.m = m;
  setup.n = n;
  setup.k = k;
  setup.input = input;
  setup.output = kOutputs[variant % 3];
  setup.bias = variant / 3 % 2 == 1;
  setup.data = kAllData[variant % 8];
  setup.a_padding = static_cast<std::int64_t>(variant % 4) * 3;
  setup.b_padding = static_cast<std::int64_t>(variant % 5);
  setup.out_padding = static_cast<std::int64_t>(variant % 3) * 5;
  setup.vector_stride = 1 + static_cast<std::int64_t>(variant % 2);
  setup.transposed_scales = variant % 4 >= 2;
  setup.byte_offset = variant % 7;
  setup.seed = variant + 1;
  if (input == DType::int8) {
    setup.zero_point = static_cast<ZeroPoint>(variant / 2 % 3);
    setup.scale_a = variant % 3 == 0 ? ScaleMode::TensorWise : ScaleMode::RowWise;
    setup.scale_b = variant % 4 == 1 ? ScaleMode::TensorWise : ScaleMode::RowWise;
  } else if (variant % 2 == 1) {
    setup.scale_a = ScaleMode::BlockWise1x128;
    setup.scale_b = ScaleMode::BlockWise128x128;
  } else {
    setup.scale_a = variant % 3 == 1 ? ScaleMode::TensorWise : ScaleMode::RowWise;
    setup.scale_b = variant % 4 == 2 ? ScaleMode::TensorWise : ScaleMode::RowWise;
  }
  return setup;
}

constexpr DType kInputs[] = {DType::int8, DType::float8_e4m3fn};

// ---- shapes ----

std::vector<GemmCase> quick_cases() {
  std::vector<GemmCase> cases;
  for (const GemmCase& c : gemm_cases())
    if (!c.slow) cases.push_back(c);
  return cases;
}

class EveryCase : public ::testing::TestWithParam<GemmCase> {};
INSTANTIATE_TEST_SUITE_P(Cases, EveryCase, ::testing::ValuesIn(quick_cases()),
                         [](const auto& info) { return info.param.id; });

TEST_P(EveryCase, EqualsTheReference) {
  const GemmCase& c = GetParam();
  const std::uint64_t variants = c.m * c.n * c.k > 2'000'000 ? 2 : 6;
  for (const DType input : kInputs)
    for (std::uint64_t variant = 0; variant < variants; ++variant)
      run_rows(setup_of(c.m, c.n, c.k, input, 5 * variant + c.id.size()), {0, 1, 2});
}

// Tiles are 14, 6, 4 or 2 rows high; panels 64, 32, 16 or 8 columns wide in blocks of 128; k is loaded in steps of 64
// or 16, scaled by 128 and packed by 1024, 512, 256 or 128.
TEST(Residues, OfM) {
  for (std::int64_t m = 0; m <= 2 * 14 + 1; ++m)
    for (const DType input : kInputs) run_rows(setup_of(m, 35, 67, input, static_cast<std::uint64_t>(m)), {0, 2});
}
TEST(Residues, OfMAroundTheRowsOfABlock) {
  for (const std::int64_t m : {23, 24, 25, 63, 64, 65, 191, 192, 193, 251, 252, 253, 505})
    for (const DType input : kInputs)
      for (const std::int64_t k : {5, 1030}) {  // 1030: sums of a block wait for the second part of k
        if (m > 65 && m != 253 && k > 5) continue;
        run_rows(setup_of(m, 17, k, input, static_cast<std::uint64_t>(m)), {0, 2});
      }
}
TEST(Residues, OfN) {
  for (std::int64_t n = 0; n <= 2 * 128 + 1; ++n)
    for (const DType input : kInputs)
      run_rows(setup_of(n % 2 == 0 ? 3 : 9, n, 19, input, static_cast<std::uint64_t>(n)), {0, 2});
}
TEST(Residues, OfK) {
  for (std::int64_t k = 0; k <= 2 * 128 + 1; ++k)
    for (const DType input : kInputs) run_rows(setup_of(5, 18, k, input, static_cast<std::uint64_t>(k)), {0});
}
TEST(Residues, OfKAroundWhatIsPackedAtOnce) {
  for (const std::int64_t packed : {384, 512, 1024, 2048})
    for (std::int64_t k = packed - 2; k <= packed + 2; ++k)
      for (const DType input : kInputs) run_rows(setup_of(16, 33, k, input, static_cast<std::uint64_t>(k)), {0, 2});
}
TEST(Residues, OfAllThreeAtOnce) {
  for (std::int64_t m = 1; m <= 7; ++m)
    for (std::int64_t n = 1; n <= 33; n += 4)
      for (std::int64_t k = 1; k <= 70; k += 3)
        for (const DType input : kInputs)
          run_rows(setup_of(m, n, k, input, static_cast<std::uint64_t>(m + 7 * n + 31 * k)), {0});
}

// ---- epilogue ----

TEST(Epilogue, EveryMixtureOfInt8) {
  for (const DType output : kOutputs)
    for (const ScaleMode scale_a : {ScaleMode::TensorWise, ScaleMode::RowWise})
      for (const ScaleMode scale_b : {ScaleMode::TensorWise, ScaleMode::RowWise})
        for (const bool bias : {false, true})
          for (const ZeroPoint zero_point : {ZeroPoint::none, ZeroPoint::folded, ZeroPoint::per_row})
            for (const std::int64_t vector_stride : {1, 3})
              for (const std::int64_t m : {1, 19}) {
                GemmSetup setup = setup_of(m, 45, 77, DType::int8, 4);
                setup.data = Data::full_range;
                setup.output = output;
                setup.scale_a = scale_a;
                setup.scale_b = scale_b;
                setup.bias = bias;
                setup.zero_point = zero_point;
                setup.vector_stride = vector_stride;
                run_rows(setup, {0, 1});
              }
}
TEST(Epilogue, EveryMixtureOfFloat8) {
  for (const DType output : kOutputs)
    for (const ScaleMode scale_a : {ScaleMode::TensorWise, ScaleMode::RowWise, ScaleMode::BlockWise1x128})
      for (const ScaleMode scale_b : {ScaleMode::TensorWise, ScaleMode::RowWise, ScaleMode::BlockWise128x128}) {
        if ((scale_a == ScaleMode::BlockWise1x128) != (scale_b == ScaleMode::BlockWise128x128)) continue;
        for (const bool bias : {false, true})
          for (const bool transposed_scales : {false, true})
            for (const std::int64_t m : {1, 19}) {
              GemmSetup setup = setup_of(m, 141, 300, DType::float8_e4m3fn, 4);
              setup.data = Data::full_range;
              setup.output = output;
              setup.scale_a = scale_a;
              setup.scale_b = scale_b;
              setup.bias = bias;
              setup.transposed_scales = transposed_scales;
              run_rows(setup, {0, 1});
            }
      }
}

// Scales that overflow float16, underflow to subnormals of every output type, are infinite, NaN, zero or negative zero.
TEST(Epilogue, ScalesAtTheEdgeOfTheOutputTypes) {
  const float nan_of_ones = numerics::bits_to_float(0x7fffffff);  // rounding its bits as a number's would give -0
  for (const float scale :
       {1e3f, 1e30f, 1e-9f, 1e-12f, 3e-41f, 1e-44f, INFINITY, NAN, nan_of_ones, 0.0f, -0.0f, -7e-6f})
    for (const DType output : kOutputs)
      for (const DType input : kInputs)
        for (const bool bias : {false, true}) {
          GemmSetup setup = setup_of(15, 37, 40, input, 2);
          setup.data = Data::full_range;
          setup.output = output;
          setup.bias = bias;
          GemmOperands operands(setup);
          operands.problem().scale_a = Scale{ScaleMode::TensorWise, &scale, 0, 0};
          SCOPED_TRACE(setup.text() + " scale_a " + std::to_string(scale));
          run_rows(operands, {0});
        }
}

// Sums beyond 2^31 wrap, whichever operand a kernel has shifted into unsigned bytes.
TEST(Int8, SumsWrapAsTwosComplement) {
  for (const auto& [a_value, b_value] : {std::pair{-128, -128}, std::pair{127, 127}, std::pair{-128, 127}}) {
    GemmSetup setup = setup_of(15, 20, 140'001, DType::int8, 0);
    setup.output = DType::float32;
    setup.zero_point = ZeroPoint::none;
    GemmOperands operands(setup);
    const std::vector<std::int8_t> a(static_cast<std::size_t>(setup.m * setup.k), static_cast<std::int8_t>(a_value));
    const std::vector<std::int8_t> b(static_cast<std::size_t>(setup.n * setup.k), static_cast<std::int8_t>(b_value));
    operands.problem().a = a.data();
    operands.problem().b = b.data();
    operands.problem().a_stride = operands.problem().b_stride = setup.k;
    run_rows(operands, {0});
    const double sum = stored_at(operands.problem(), 0, 0) /
                       (scale_at(operands.problem().scale_a, 0, 0) * scale_at(operands.problem().scale_b, 0, 0));
    ASSERT_LT(sum * a_value * b_value, 0) << "the sum has not wrapped";
  }
}
// Zero points far outside int8, and sums of columns far outside what int8 can give: equal modulo 2^32.
TEST(Int8, ZeroPointsWrapAsTwosComplement) {
  GemmSetup setup = setup_of(17, 37, 65, DType::int8, 3);
  setup.zero_point = ZeroPoint::per_row;
  GemmOperands operands(setup);
  std::vector<std::int32_t> any(64);
  for (std::size_t i = 0; i < any.size(); ++i) any[i] = static_cast<std::int32_t>(0x9e3779b9u * (i + 1));
  operands.problem().azp = operands.problem().azp_adj = any.data();
  operands.problem().azp_stride = operands.problem().azp_adj_stride = 1;
  run_rows(operands, {0, 2});
}

// ---- fp8 codes ----

// k = 1: every pair of codes, NaN and subnormals included, is one element of the result.
TEST(Float8, EveryPairOfCodes) {
  std::array<std::uint8_t, 256> codes;
  for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::uint8_t>(i);
  for (const ScaleMode mode : {ScaleMode::TensorWise, ScaleMode::BlockWise1x128}) {
    GemmSetup setup;
    setup.m = setup.n = 256;
    setup.k = 1;
    setup.input = DType::float8_e4m3fn;
    setup.output = DType::float32;
    setup.scale_a = mode;
    setup.scale_b = mode == ScaleMode::TensorWise ? mode : ScaleMode::BlockWise128x128;
    GemmOperands operands(setup);
    operands.problem().a = operands.problem().b = codes.data();
    operands.problem().a_stride = operands.problem().b_stride = 1;
    run_rows(operands, {0, 1});
  }
}
// Every code at every place of a load, among others, NaN included: NaN reaches its own row and column only.
TEST(Float8, EveryCodeAtEveryPlace) {
  std::vector<std::uint8_t> codes(256 * 256);
  for (std::size_t i = 0; i < 256; ++i)
    for (std::size_t l = 0; l < 256; ++l) {
      const std::uint8_t code = static_cast<std::uint8_t>(l * 83 + i);
      codes[i * 256 + l] = (code & 0x7f) == 0x7f && i % 16 != 0 ? 0x01 : code;  // NaN in every 16th row
    }
  for (const std::int64_t m : {1, 3, 40}) {
    GemmSetup setup;
    setup.m = m;
    setup.n = 250;
    setup.k = 255;
    setup.input = DType::float8_e4m3fn;
    setup.output = DType::float32;
    GemmOperands operands(setup);
    operands.problem().a = codes.data() + 256;
    operands.problem().b = codes.data();
    operands.problem().a_stride = operands.problem().b_stride = 256;
    run_rows(operands, {0, 2});
    ASSERT_TRUE(std::isnan(stored_at(operands.problem(), 0, 16)));
    ASSERT_FALSE(std::isnan(stored_at(operands.problem(), 0, 17)));
  }
}

// ---- memory ----

// Operands that end where a page ends, and operands that start where one starts: a load beyond them is a crash.
TEST(Memory, NothingBeyondTheOperandsIsRead) {
  for (const auto edge : {PageEdgeBuffer::Edge::end, PageEdgeBuffer::Edge::start})
    for (const DType input : kInputs)
      for (const std::int64_t m : {1, 6, 15})
        for (const std::int64_t n : {1, 16, 33})
          for (const std::int64_t k : {1, 7, 16, 63, 65, 130}) {
            GemmSetup setup = setup_of(m, n, k, input, static_cast<std::uint64_t>(m + n + k));
            setup.a_padding = setup.b_padding = setup.out_padding = 0;
            GemmOperands operands(setup);
            GemmProblem& problem = operands.problem();
            const auto a_bytes = static_cast<std::size_t>(m * k), b_bytes = static_cast<std::size_t>(n * k);
            const auto out_bytes = static_cast<std::size_t>(m * n * size_in_bytes(setup.output));
            PageEdgeBuffer a(a_bytes, edge), b(b_bytes, edge), out(out_bytes, edge);
            std::memcpy(a.as<char>(), problem.a, a_bytes);
            std::memcpy(b.as<char>(), problem.b, b_bytes);
            problem.a = a.as<void>();
            problem.b = b.as<void>();
            problem.out = out.as<void>();
            SCOPED_TRACE(setup.text());
            run_rows(operands, {0});
          }
}

// ---- splitting ----

// Each item of the work alone: what it writes, as marks in a result that is poisoned before. The problem's result is fp32.
struct WrittenByItem {
  float* out = nullptr;
  std::size_t elements = 0;
  std::vector<int> times_written;
  std::int64_t items = 0;
} written;
void each_item_alone(std::int64_t begin, std::int64_t end, std::int64_t, ParallelForBody body, void* context) {
  for (std::int64_t item = begin; item < end; ++item) {
    std::fill_n(written.out, written.elements, NAN);
    body(context, item, item + 1);
    for (std::size_t i = 0; i < written.elements; ++i) written.times_written[i] += std::isnan(written.out[i]) ? 0 : 1;
    ++written.items;
  }
}
// Pieces that overlapped would give the right result and a data race.
TEST(Splitting, EveryElementBelongsToOneItem) {
  for (const DType input : kInputs)
    for (const std::int64_t m : {1, 90}) {
      GemmSetup setup = setup_of(m, 300, 40, input, 2);
      setup.data = Data::normal;
      setup.out_padding = 0;
      ASSERT_EQ(setup.output, DType::float32);
      GemmOperands operands(setup);
      const GemmProblem& problem = operands.problem();
      for (std::int32_t row = kReferenceRow + 1; row < row_count(Architecture::cpu); ++row) {
        Plan plan;
        if (!plan_row(problem, cpu_facts(), row, plan).ok()) continue;
        SCOPED_TRACE(plan.name);
        const auto elements = static_cast<std::size_t>(m * setup.n);
        written = WrittenByItem{static_cast<float*>(problem.out), elements, std::vector<int>(elements), 0};
        ASSERT_TRUE(run(plan, problem, RunContext{each_item_alone, 3, nullptr, nullptr}).ok());
        EXPECT_GT(written.items, 2);
        EXPECT_EQ(written.times_written, std::vector<int>(elements, 1));
      }
    }
}

TEST(Splitting, ThreadsCoverARangeOnce) {
  for (const std::int64_t length : {0, 1, 2, 3, 7, 1000})
    for (const std::int64_t grain : {0, 1, 2, 3, 999, 5000}) {
      std::vector<std::atomic<int>> visits(static_cast<std::size_t>(length));
      parallel_for_threads(
          -3, length - 3, grain,
          [](void* context, std::int64_t begin, std::int64_t end) {
            auto& counts = *static_cast<std::vector<std::atomic<int>>*>(context);
            for (std::int64_t i = begin; i < end; ++i) ++counts[static_cast<std::size_t>(i + 3)];
          },
          &visits);
      for (const auto& count : visits) ASSERT_EQ(count, 1) << "length " << length << ", grain " << grain;
    }
}

// ---- what ran ----

// Every row of the table runs here, or is named with the reason why this processor cannot run it.
TEST(Rows, AllRunOrAreNamed) {
  for (const DType input : kInputs) run_rows(setup_of(5, 20, 33, input, 6), {0});
  GemmSetup setup;
  setup.m = setup.n = setup.k = 1;
  GemmOperands int8(setup);
  setup.input = DType::float8_e4m3fn;
  GemmOperands float8(setup);
  const DeviceFacts facts = cpu_facts();
  std::int64_t run_here = 0, not_here = 0;
  for (std::int32_t row = kReferenceRow + 1; row < row_count(Architecture::cpu); ++row) {
    const std::string row_text = row_name(Architecture::cpu, row);
    const std::string for_int8 = why_not(int8.problem(), facts, row),
                      for_float8 = why_not(float8.problem(), facts, row);
    if (for_int8.empty() || for_float8.empty()) {
      EXPECT_GT(runs_of_row[row], 0) << row_text;
      ++run_here;
    } else {
      const bool is_int8 = row_text.find("int8") != std::string::npos;
      std::cout << row_text << ": NOT RUN, " << (is_int8 ? for_int8 : for_float8) << "\n";
      EXPECT_EQ(row_text.find("portable"), std::string::npos);
      ++not_here;
    }
  }
  std::cout << run_here << " rows run on this processor (" << name(facts.instruction_set) << "), " << not_here
            << " cannot\n";
}

class Totals : public ::testing::Environment {
  void TearDown() override {
    for (std::int32_t row = kReferenceRow + 1; row < row_count(Architecture::cpu); ++row)
      std::cout << row_name(Architecture::cpu, row) << ": " << runs_of_row[row] << " runs equal the reference\n";
    std::cout << compared_elements << " elements compared\n";
  }
};
const ::testing::Environment* const kTotals = ::testing::AddGlobalTestEnvironment(new Totals);

}  // namespace
