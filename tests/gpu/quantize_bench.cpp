// SPDX-License-Identifier: Apache-2.0
// Times the CUDA quantizers beside a device-to-device copy: microseconds, bytes counted, share of the copy's bandwidth.
// Graph replay over operands rotated past the L2, median of 5 rounds. Usage: quantize_bench [ROWSxCOLUMNS,...]
// Must not go here: verdicts on correctness (quantize_test).
#include <algorithm>
#include <cmath>
#include <string>

#include "cuda/registry.h"
#include "evergemm/numerics.h"
#include "graph_timing.h"
#include "harness.h"

namespace evergemm::gpu_test {
namespace {

double median_microseconds(cudaStream_t stream, int sets, const std::function<bool(int)>& call) {
  if (!call(0)) return 0;
  constexpr int kTimes = 20;
  return replayed_microseconds(stream, sets, kTimes, [&](int set) { call(set); });
}

}  // namespace
}  // namespace evergemm::gpu_test

int main(int argument_count, char** arguments) {
  using namespace evergemm;
  using namespace evergemm::gpu_test;
  std::vector<std::pair<std::int64_t, std::int64_t>> shapes = {{4096, 8192}, {1, 8192}, {64, 7168}};
  if (argument_count > 1) {
    shapes.clear();
    long long rows, columns;
    if (std::sscanf(arguments[1], "%lldx%lld", &rows, &columns) != 2) return 2;
    shapes.push_back({rows, columns});
  }
  cudaStream_t stream;
  require(cudaStreamCreate(&stream), "stream");
  constexpr int kSets = 4;
  struct Entry {
    const char* name;
    QuantizeScheme scheme;
    QuantizeSource source;
    std::int64_t group;
    DType q_dtype;
  };
  using Scheme = QuantizeScheme;
  using Source = QuantizeSource;
  const Entry entries[] = {
      {"per_tensor fp8", Scheme::per_tensor, Source::copy, 0, DType::float8_e4m3fn},
      {"static fp8", Scheme::with_given_scale, Source::copy, 0, DType::float8_e4m3fn},
      {"static int8", Scheme::with_given_scale, Source::copy, 0, DType::int8},
      {"per_token fp8", Scheme::per_row, Source::copy, 0, DType::float8_e4m3fn},
      {"per_token int8", Scheme::per_row, Source::copy, 0, DType::int8},
      {"per_token int8 asymmetric", Scheme::per_row_asymmetric, Source::copy, 0, DType::int8},
      {"per_group 128 fp8", Scheme::per_block, Source::copy, 128, DType::float8_e4m3fn},
      {"silu gated per_group 128 fp8", Scheme::per_block, Source::activation, 128, DType::float8_e4m3fn},
      {"silu gated per_token int8", Scheme::per_row, Source::activation, 0, DType::int8},
      {"rms_norm residual per_token fp8", Scheme::per_row, Source::rms_norm, 0, DType::float8_e4m3fn},
      {"dropin group 128 fp8", Scheme::dropin_group, Source::copy, 128, DType::float8_e4m3fn},
      {"dropin group 128 int8", Scheme::dropin_group, Source::copy, 128, DType::int8},
      {"dropin group 128 packed", Scheme::dropin_group_packed, Source::copy, 128, DType::float8_e4m3fn},
  };
  for (const auto& [rows, columns] : shapes) {
    const std::int64_t x_bytes = rows * columns * 4;  // gated: twice the columns of bfloat16
    DeviceBuffer x(x_bytes * kSets), q(rows * columns * kSets),
        scale(std::max<std::int64_t>(rows * columns / 16, 1024) * kSets), azp(rows * 4 * kSets),
        residual(rows * columns * 2 * kSets), weight(columns * 2);
    std::vector<std::uint16_t> block(1 << 20);
    Random random{7};
    for (std::uint16_t& value : block)
      value = numerics::float_to_bfloat16(static_cast<float>(std::sqrt(-2 * std::log(random.uniform() + 1e-12)) *
                                                             std::cos(6.283185307179586 * random.uniform())));
    for (DeviceBuffer* buffer : {&x, &residual, &weight})
      for (std::int64_t at = 0; at < buffer->bytes(); at += static_cast<std::int64_t>(block.size() * 2))
        require(cudaMemcpy(buffer->data() + at, block.data(),
                           static_cast<std::size_t>(std::min<std::int64_t>(static_cast<std::int64_t>(block.size() * 2),
                                                                           buffer->bytes() - at)),
                           cudaMemcpyHostToDevice),
                "fill");
    std::vector<float> ones(static_cast<std::size_t>(scale.bytes() / 4), 0.01f);
    scale.fill(ones.data(), scale.bytes());

    const std::int64_t half = x_bytes * kSets / 2 / kSets;
    const double copy = median_microseconds(stream, kSets, [&](int set) {
      return cudaMemcpyAsync(x.data() + set * half, x.data() + kSets * half + set * half,
                             static_cast<std::size_t>(half), cudaMemcpyDeviceToDevice, stream) == cudaSuccess;
    });
    const double copy_rate = 2.0 * static_cast<double>(half) / copy;
    std::printf("%lld x %lld bfloat16: copy of %lld bytes %.2f us, %.0f GB/s\n", static_cast<long long>(rows),
                static_cast<long long>(columns), static_cast<long long>(half), copy, copy_rate / 1e3);
    for (const Entry& entry : entries) {
      const bool gated = entry.source == Source::activation, residual_sum = entry.source == Source::rms_norm;
      const double us = median_microseconds(stream, kSets, [&](int set) {
        QuantizeProblem p;
        p.scheme = entry.scheme;
        p.source = entry.source;
        p.rows = p.q_rows = rows;
        p.columns = p.q_stride = columns;
        p.x_stride = gated ? 2 * columns : columns;
        p.x = x.data() + set * x_bytes;
        p.q = q.data() + set * rows * columns;
        p.q_dtype = entry.q_dtype;
        p.group_rows = entry.scheme == Scheme::with_given_scale ? rows : 1;
        p.group_columns = entry.group == 0 ? columns : entry.group;
        p.scale = scale.data() + set * scale.bytes() / kSets;
        p.scale_row_stride = entry.group == 0 ? 1 : columns / entry.group;
        p.scale_group_stride = 1;
        if (entry.scheme == Scheme::dropin_group_packed) {
          p.scale_row_stride = 1;
          p.packed_columns_stride = (rows + 3) / 4 * 4;
        }
        p.azp = reinterpret_cast<std::int32_t*>(azp.data() + set * rows * 4);
        p.azp_stride = 1;
        p.gated = gated;
        p.weight = residual_sum ? weight.data() : nullptr;
        p.weight_stride = 1;
        p.residual = residual_sum ? residual.data() + set * rows * columns * 2 : nullptr;
        p.residual_stride = columns;
        p.eps = 1e-6f;
        p.q_max = entry.q_dtype == DType::int8 ? 127 : 448;
        p.q_min = -p.q_max;
        p.device = Device{DeviceType::cuda, 0};
        RunContext context;
        context.stream = stream;
        return run_cuda(plan_here(), p, context).ok();
      });
      double bytes = static_cast<double>(rows * columns) * ((gated ? 4 : 2) + 1);
      if (entry.scheme == Scheme::per_tensor) bytes += static_cast<double>(rows * columns) * 2;
      if (residual_sum) bytes += static_cast<double>(rows * columns) * 4;
      bytes += static_cast<double>(entry.group == 0 ? rows : rows * columns / entry.group) * 4;
      std::printf("  %-34s %8.2f us  %6.0f GB/s  %.2f of copy\n", entry.name, us, bytes / us / 1e3,
                  bytes / us / copy_rate);
    }
  }
  return 0;
}
