// SPDX-License-Identifier: Apache-2.0
// What the backend refuses, in one sentence each: plans of other architectures, devices that are not there, rows that need
// more shared memory than a device has. After each refusal a product has its bits: nothing sticks.
// Usage: refusal_test [--junit=FILE]
// Must not go here: rules for arguments (tests/gpu/test_refusals.py, tests/cpp/validate_test.cpp).
#include <array>
#include <string>

#include "cuda/registry.h"
#include "harness.h"
#include "plan/table.h"

namespace evergemm::gpu_test {
namespace {

DeviceFacts facts_here() {
  DeviceFacts facts;
  if (!cuda_facts(0, facts).ok()) std::exit(2);
  return facts;
}

// An int8 product of ones: every element is k.
class Product {
 public:
  explicit Product(std::int64_t m, std::int64_t n, std::int64_t k) : a_(m * k), b_(n * k), out_(m * n * 4), scale_(4) {
    const std::vector<std::int8_t> ones(static_cast<std::size_t>(std::max(m, n) * k), 1);
    const float one = 1.0f;
    a_.fill(ones.data(), m * k);
    b_.fill(ones.data(), n * k);
    scale_.fill(&one, 4);
    problem.m = m;
    problem.n = problem.out_stride = n;
    problem.k = problem.a_stride = problem.b_stride = k;
    problem.output_dtype = DType::float32;
    problem.a = a_.data();
    problem.b = b_.data();
    problem.out = out_.data();
    problem.scale_a.data = problem.scale_b.data = reinterpret_cast<const float*>(scale_.data());
    problem.device = Device{DeviceType::cuda, 0};
  }

  // "" or what is wrong after a run with this plan.
  std::string run(const Plan& plan) {
    out_.poison();
    const Status status = run_cuda(plan, problem, RunContext());
    if (!status.ok()) return status.text();
    if (cudaDeviceSynchronize() != cudaSuccess) return "the context is gone";
    if (cudaGetLastError() != cudaSuccess) return "an error is left behind";
    bool zones = false;
    const std::vector<unsigned char> got = out_.read(zones);
    for (std::int64_t i = 0; i < problem.m * problem.n; ++i) {
      float value;
      std::memcpy(&value, got.data() + i * 4, 4);
      if (value != static_cast<float>(problem.k))
        return "element " + std::to_string(i) + " is " + std::to_string(value);
    }
    return zones ? "" : "wrote into a red zone";
  }
  std::string run_as_planned() {
    Plan chosen;
    const Status status = plan(problem, facts_here(), chosen);
    return status.ok() ? run(chosen) : status.text();
  }

  GemmProblem problem;

 private:
  DeviceBuffer a_, b_, out_, scale_;
};

// "" where `got` holds every piece of text and the next product is right.
std::string refused(const std::string& got, const std::vector<std::string>& pieces, Product& good) {
  for (const std::string& piece : pieces)
    if (got.find(piece) == std::string::npos) return "'" + got + "' does not say '" + piece + "'";
  if (cudaGetLastError() != cudaSuccess) return "an error is left behind after '" + got + "'";
  const std::string after = good.run_as_planned();
  return after.empty() ? "" : "after '" + got + "': " + after;
}

std::string other_architectures(std::int64_t& cases) {
  Product product(64, 256, 512);
  for (const Architecture architecture :
       {Architecture::sm75, Architecture::sm80, Architecture::sm86, Architecture::sm89, Architecture::sm100,
        Architecture::sm103, Architecture::sm110, Architecture::sm120, Architecture::sm121}) {
    Plan other;
    if (const Status status = plan(product.problem, nominal_facts(architecture), other); !status.ok())
      return status.text();
    const std::string wanted = std::string(": expected a device of architecture ") + name(architecture) + "; got sm90a";
    const std::string failure =
        refused(product.run(other), {other.name + wanted, "fix: plan with the facts of that device"}, product);
    if (!failure.empty()) return failure;
    QuantizeProblem quantize;
    quantize.device = product.problem.device;
    Plan quantizer;
    static_cast<void>(plan(quantize, nominal_facts(architecture), quantizer));
    const std::string text = run_cuda(quantizer, quantize, RunContext()).text();
    if (const std::string wrong = refused(text, {"cuda_quantize" + wanted}, product); !wrong.empty()) return wrong;
    cases += 2;
  }
  return "";
}

std::string other_devices(std::int64_t& cases) {
  Product product(64, 256, 512);
  int devices = 0;
  require(cudaGetDeviceCount(&devices), "device count");
  Plan chosen;
  if (const Status status = plan(product.problem, facts_here(), chosen); !status.ok()) return status.text();
  for (const std::int32_t index : {devices, 63, 64, 1000, -1}) {
    DeviceFacts facts;
    std::string failure =
        refused(cuda_facts(index, facts).text(), {"cuda: expected", std::to_string(index), "fix: "}, product);
    if (!failure.empty()) return failure;
    product.problem.device.index = index;
    const std::string text = run_cuda(chosen, product.problem, RunContext()).text();
    product.problem.device.index = 0;
    failure =
        refused(text, {std::string(chosen.name) + ": expected", "device " + std::to_string(index), "fix: "}, product);
    if (!failure.empty()) return failure;
    cases += 2;
  }
  return "";
}

// Every row of this device, where its blocks may have less shared memory than the row needs, and where they have none.
std::string little_shared_memory(std::int64_t& cases) {
  Product product(64, 256, 512);
  const DeviceFacts whole = facts_here();
  DeviceFacts none = whole, small = whole;
  none.shared_memory_bytes = 0;
  small.shared_memory_bytes = 48 * 1024;
  bool some_row_runs = false;
  for (std::int32_t row = 0; row < row_count(whole.architecture); ++row) {
    if (!why_not(product.problem, whole, row).empty()) continue;
    Plan forced;
    const std::string text = plan_row(product.problem, none, row, forced).text();
    const std::string failure =
        refused(text, {std::string("can run; got needs "), "bytes of shared memory a block, the device has 0", "fix: "},
                product);
    if (!failure.empty()) return failure;
    some_row_runs = some_row_runs || why_not(product.problem, small, row).empty();
    ++cases;
  }
  // The choice leaves such rows out: with 48 KB something smaller runs, or the refusal is a sentence.
  Plan chosen;
  const Status status = plan(product.problem, small, chosen);
  ++cases;
  if (status.ok() != some_row_runs) return "48 KB: " + (status.ok() ? std::string(chosen.name) : status.text());
  if (!status.ok()) return refused(status.text(), {"scaled_mm: expected", "fix: "}, product);
  return product.run(chosen);
}

}  // namespace
}  // namespace evergemm::gpu_test

int main(int argument_count, char** arguments) {
  using namespace evergemm::gpu_test;
  const char* junit = nullptr;
  for (int i = 1; i < argument_count; ++i)
    if (std::strncmp(arguments[i], "--junit=", 8) == 0) junit = arguments[i] + 8;
  Report report;
  report.test("refusals", "other_architectures", other_architectures);
  report.test("refusals", "other_devices", other_devices);
  report.test("refusals", "little_shared_memory", little_shared_memory);
  return report.finish(junit);
}
