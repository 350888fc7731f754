// SPDX-License-Identifier: Apache-2.0
// evergemm from C++ without torch: describe tensors, validate, plan, run. Multiplies a small int8 matrix by a weight,
// checks every element against plain loops, and shows the message of a mistake. Exit code 0 means that all was as it
// should be.
#include <cstdint>
#include <cstdio>
#include <vector>

#include "evergemm/plan.h"
#include "evergemm/run.h"
#include "evergemm/validate.h"

int main() {
  constexpr std::int64_t m = 5, n = 48, k = 200;
  std::vector<std::int8_t> a(m * k), weight(n * k);  // a [m, k]; weight [n, k], so that b = weight.t() is column-major
  for (std::size_t i = 0; i < a.size(); ++i) a[i] = static_cast<std::int8_t>(i * 37 % 255 - 127);
  for (std::size_t i = 0; i < weight.size(); ++i) weight[i] = static_cast<std::int8_t>(i * 91 % 255 - 127);
  std::vector<float> scale_a(m), scale_b(n, 0.25f), out(m * n);
  for (std::int64_t i = 0; i < m; ++i) scale_a[i] = 1.0f / static_cast<float>(1 << i);

  const std::int64_t a_sizes[] = {m, k}, a_strides[] = {k, 1};
  const std::int64_t b_sizes[] = {k, n}, b_strides[] = {1, k};
  const std::int64_t scale_a_sizes[] = {m, 1}, scale_b_sizes[] = {1, n}, one_by_n_strides[] = {n, 1},
                     m_by_one_strides[] = {1, 1};
  const std::int64_t out_sizes[] = {m, n}, out_strides[] = {n, 1};
  auto view = [](const void* data, evergemm::DType dtype, const std::int64_t* sizes, const std::int64_t* strides) {
    evergemm::TensorView tensor;
    tensor.data = data;
    tensor.dtype = dtype;
    tensor.rank = 2;
    tensor.sizes = sizes;
    tensor.strides = strides;
    return tensor;
  };

  evergemm::ScaledMmArguments arguments;
  arguments.a = view(a.data(), evergemm::DType::int8, a_sizes, a_strides);
  arguments.b = view(weight.data(), evergemm::DType::int8, b_sizes, b_strides);
  arguments.scale_a = view(scale_a.data(), evergemm::DType::float32, scale_a_sizes, m_by_one_strides);
  arguments.scale_b = view(scale_b.data(), evergemm::DType::float32, scale_b_sizes, one_by_n_strides);
  arguments.out = view(out.data(), evergemm::DType::float32, out_sizes, out_strides);

  evergemm::GemmProblem problem;
  if (evergemm::Status status = evergemm::validate(arguments, problem); !status.ok()) {
    std::printf("%s\n", status.text().c_str());
    return 1;
  }
  const evergemm::DeviceFacts facts = evergemm::cpu_facts();
  evergemm::Plan plan;
  if (evergemm::Status status = evergemm::plan(problem, facts, plan); !status.ok()) {
    std::printf("%s\n", status.text().c_str());
    return 1;
  }
  std::printf("row: %s (%s)\n", plan.name, plan.why);

  std::vector<unsigned char> workspace(static_cast<std::size_t>(plan.workspace_bytes) + 256);
  const std::uintptr_t start = reinterpret_cast<std::uintptr_t>(workspace.data());
  evergemm::RunContext context;
  context.parallel_for = evergemm::parallel_for_threads;
  context.threads = facts.cores;
  context.workspace = workspace.data() + (256 - start % 256) % 256;
  if (evergemm::Status status = evergemm::run(plan, problem, context); !status.ok()) {
    std::printf("%s\n", status.text().c_str());
    return 1;
  }

  for (std::int64_t i = 0; i < m; ++i)
    for (std::int64_t j = 0; j < n; ++j) {
      std::int32_t sum = 0;
      for (std::int64_t l = 0; l < k; ++l) sum += a[i * k + l] * weight[j * k + l];
      const float expected = scale_a[i] * (scale_b[j] * static_cast<float>(sum));
      if (out[i * n + j] != expected) {
        std::printf("out[%ld, %ld] is %g, expected %g\n", static_cast<long>(i), static_cast<long>(j), out[i * n + j],
                    expected);
        return 1;
      }
    }
  std::printf("%ld elements, all equal to the plain loops\n", static_cast<long>(m * n));

  arguments.b = view(weight.data(), evergemm::DType::int8, b_sizes, one_by_n_strides);  // row-major: refused by name
  const evergemm::Status refused = evergemm::validate(arguments, problem);
  std::printf("a mistake reads: %s\n", refused.text().c_str());
  return refused.ok() ? 1 : 0;
}
