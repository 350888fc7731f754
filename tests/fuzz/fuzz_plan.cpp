// SPDX-License-Identifier: Apache-2.0
// libFuzzer on the planner: for every problem that the validator lets through, each architecture's plan is a row that
// can run it or a refusal, the same twice, with a workspace that was computed without overflow. Spans are not bounded
// here by storage, so that sizes near 2^63 reach the planner's arithmetic.
#include <cstdio>
#include <cstdlib>

#include "calls.h"

namespace {

evergemm::GemmProblem any_problem(evergemm::fuzz::Bytes& bytes) {
  using evergemm::DType;
  evergemm::GemmProblem problem;
  auto size = [&bytes] { return bytes.quantity() & std::numeric_limits<std::int64_t>::max(); };
  problem.m = size();
  problem.n = size();
  problem.k = size() % (std::int64_t{1} << 31);
  problem.input_dtype = bytes.coin() ? DType::int8 : DType::float8_e4m3fn;
  constexpr DType kOutputs[] = {DType::bfloat16, DType::float16, DType::float32};
  problem.output_dtype = kOutputs[bytes.below(3)];
  problem.a = reinterpret_cast<const void*>(std::uint64_t{4096} + bytes.below(32));
  problem.b = reinterpret_cast<const void*>(std::uint64_t{8192} + bytes.below(32));
  problem.out = reinterpret_cast<void*>(std::uint64_t{16384});
  problem.a_stride = bytes.coin() ? problem.k : size();
  problem.b_stride = bytes.coin() ? problem.k : size();
  problem.out_stride = bytes.coin() ? problem.n : size();
  const bool blocks = problem.input_dtype == DType::float8_e4m3fn && bytes.coin();
  problem.scale_a.mode = blocks ? evergemm::ScaleMode::BlockWise1x128 : evergemm::ScaleMode::RowWise;
  problem.scale_b.mode = blocks ? evergemm::ScaleMode::BlockWise128x128 : evergemm::ScaleMode::RowWise;
  problem.scale_a.outer_stride = size();
  problem.scale_a.k_stride = size();
  problem.scale_b.outer_stride = size();
  problem.scale_b.k_stride = size();
  problem.has_azp = problem.input_dtype == DType::int8 && bytes.coin();
  problem.fast_accumulation = bytes.coin();
  problem.deterministic = bytes.coin();
  return problem;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  evergemm::fuzz::Bytes bytes(data, size);
  const std::uint32_t device = bytes.byte();
  const std::int32_t row = static_cast<std::int32_t>(bytes.byte()) - 8;
  evergemm::Prepared prepared;
  if (bytes.coin()) {
    prepared.problem = any_problem(bytes);
  } else {
    const evergemm::fuzz::Call call = evergemm::fuzz::any_call(bytes);
    if (!call.operation->prepare(*call.operation, call.arguments, prepared).ok()) return 0;
  }
  const std::string wrong = evergemm::fuzz::wrong_with_plans(prepared, device, row);
  if (!wrong.empty()) {
    std::fprintf(stderr, "%s\n", wrong.c_str());
    std::abort();
  }
  return 0;
}
