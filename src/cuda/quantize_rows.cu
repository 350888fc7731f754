// SPDX-License-Identifier: Apache-2.0
// The bandwidth-bound quantizer: rows of 8-column vectors, one block of threads a row, each element read once and written once.
// Serves every scheme whose scale blocks lie within a row (or come from the caller). Must not go here: unaligned layouts and
// group widths that a warp cannot reduce, which quantize_blocks.cu runs.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <limits>

#include "cuda/quantize_kernels.h"
#include "cuda/quantize_values.cuh"

namespace evergemm::cuda {
namespace {

constexpr int kMostThreads = 1024, kMostVectors = 4;  // vectors of a row that a thread keeps in registers
constexpr int kMostColumns = kMostThreads * kMostVectors * kVector;
// x of a row in shared memory, for the sum of squares; more would need an opt-in.
constexpr std::int64_t kMostStagedBytes = 40 * 1024;

template <class Element>
struct alignas(16) Vector {
  typename Element::Bits bits[kVector];
};

template <class Element>
__device__ __forceinline__ Vector<Element> load_vector(const void* base, std::int64_t at) {
  return *reinterpret_cast<const Vector<Element>*>(static_cast<const typename Element::Bits*>(base) + at);
}

// The same value in every thread of the block. Shared by all reductions here, so each use ends with a barrier.
__device__ __forceinline__ std::uint32_t block_maximum(std::uint32_t value, std::uint32_t (&scratch)[kWarp]) {
  value = __reduce_max_sync(~0u, value);
  if (blockDim.x <= kWarp) return value;
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
  __syncthreads();
  value = __reduce_max_sync(~0u, threadIdx.x % kWarp < blockDim.x / kWarp ? scratch[threadIdx.x % kWarp] : 0u);
  __syncthreads();
  return value;
}

// Orders floats without NaN as unsigned numbers.
__device__ __forceinline__ std::uint32_t ordered(float x) {
  const std::uint32_t bits = __float_as_uint(x);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float unordered(std::uint32_t key) {
  return __uint_as_float((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

// 1 / sqrt(mean of squares + eps): 32 strided partial sums, one a lane of the first warp, then a tree.
template <class Element>
__device__ __forceinline__ float inverse_rms_of_row(const QuantizeProblem& p, const typename Element::Bits* row, float& result) {
  static_assert(numerics::kSquarePartials == kWarp);
  if (threadIdx.x < kWarp) {
    float sum = 0;
    const int columns = static_cast<int>(p.columns);
#pragma unroll 8
    for (int column = threadIdx.x; column < columns; column += kWarp) {
      const float x = Element::widen(row[column]);
      sum = numerics::fma32(x, x, sum);
    }
#pragma unroll
    for (int half = kWarp / 2; half > 0; half /= 2) sum = numerics::add32(sum, __shfl_down_sync(~0u, sum, half));
    if (threadIdx.x == 0) result = numerics::inverse_rms(sum, p.columns, p.eps);
  }
  __syncthreads();
  return result;
}

// group_lanes: lanes that share a scale block within a row (1, 2, .. 32), or 0 where the block is the whole row.
template <class Element, QuantizeSource kSource, int kVectors>
__global__ void __launch_bounds__(kMostThreads) quantize_rows(const __grid_constant__ QuantizeProblem p, const int group_lanes) {
  extern __shared__ __align__(16) unsigned char staged[];
  __shared__ std::uint32_t scratch[kWarp];
  __shared__ float shared_factor;
  wait_for_previous_kernel();
  const std::int64_t row = blockIdx.x;
  const int vectors = static_cast<int>(p.columns / kVector);
  float values[kVectors][kVector];

  if constexpr (kSource == QuantizeSource::rms_norm) {
    // x, or x + residual rounded and stored; kept as its own type until the row's factor is known
    Vector<Element> inputs[kVectors];
    auto* row_bits = reinterpret_cast<typename Element::Bits*>(staged);
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int vector = threadIdx.x + i * blockDim.x;
      if (vector >= vectors) continue;
      inputs[i] = load_vector<Element>(p.x, row * p.x_stride + vector * kVector);
      if (p.residual != nullptr) {
        auto* residual = reinterpret_cast<Vector<Element>*>(static_cast<typename Element::Bits*>(p.residual) +
                                                            row * p.residual_stride + vector * kVector);
        const Vector<Element> before = *residual;
#pragma unroll
        for (int e = 0; e < kVector; ++e)
          inputs[i].bits[e] =
              Element::narrow(numerics::add32(Element::widen(inputs[i].bits[e]), Element::widen(before.bits[e])));
        *residual = inputs[i];
      }
      *reinterpret_cast<Vector<Element>*>(row_bits + vector * kVector) = inputs[i];
    }
    __syncthreads();
    const float factor = inverse_rms_of_row<Element>(p, row_bits, shared_factor);
    const bool weight_by_vectors = p.weight_stride == 1 && reinterpret_cast<std::uintptr_t>(p.weight) % sizeof(Vector<Element>) == 0;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int vector = threadIdx.x + i * blockDim.x;
      if (vector >= vectors) continue;
      Vector<Element> weights;
      if (weight_by_vectors) {
        weights = load_vector<Element>(p.weight, vector * kVector);
      } else {
#pragma unroll
        for (int e = 0; e < kVector; ++e)
          weights.bits[e] =
              static_cast<const typename Element::Bits*>(p.weight)[(std::int64_t{vector} * kVector + e) * p.weight_stride];
      }
#pragma unroll
      for (int e = 0; e < kVector; ++e)
        values[i][e] = numerics::mul32(numerics::mul32(Element::widen(inputs[i].bits[e]), factor), Element::widen(weights.bits[e]));
    }
  } else {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int vector = threadIdx.x + i * blockDim.x;
      if (vector >= vectors) continue;
      const Vector<Element> x = load_vector<Element>(p.x, row * p.x_stride + vector * kVector);
      if constexpr (kSource == QuantizeSource::activation) {
        Vector<Element> up{};
        if (p.gated) up = load_vector<Element>(p.x, row * p.x_stride + p.columns + vector * kVector);
#pragma unroll
        for (int e = 0; e < kVector; ++e) {
          const float gate = activated(p.activation, Element::widen(x.bits[e]));
          values[i][e] = p.gated ? numerics::mul32(gate, Element::widen(up.bits[e])) : gate;
        }
      } else {
#pragma unroll
        for (int e = 0; e < kVector; ++e) values[i][e] = Element::widen(x.bits[e]);
      }
    }
  }

  // ---- scales: a row's, or a group's for each vector ----
  float scale_of_row = 1.0f;
  std::int32_t azp = 0;
  const bool asymmetric = p.scheme == QuantizeScheme::per_row_asymmetric;
  const bool given = p.scheme == QuantizeScheme::with_given_scale;
  if (asymmetric) {
    float low = 0, high = 0;
    bool any_nan = false;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (threadIdx.x + i * blockDim.x >= vectors) continue;
#pragma unroll
      for (int e = 0; e < kVector; ++e) {
        low = fminf(low, values[i][e]);  // these two leave NaN out
        high = fmaxf(high, values[i][e]);
        any_nan = any_nan || numerics::is_nan(values[i][e]);
      }
    }
    high = unordered(block_maximum(ordered(high), scratch));
    low = unordered(~block_maximum(~ordered(low), scratch));
    if (block_maximum(any_nan ? 1u : 0u, scratch) != 0) low = numerics::canonical_nan();
    scale_of_row = numerics::asymmetric_scale(low, high);
    azp = numerics::asymmetric_zero_point(low, scale_of_row);
    if (threadIdx.x == 0) {
      store_scale(p, row, 0, scale_of_row);
      p.azp[row * p.azp_stride] = azp;
    }
  } else if (!given && group_lanes == 0) {
    std::uint32_t absmax = 0;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (threadIdx.x + i * blockDim.x >= vectors) continue;
#pragma unroll
      for (int e = 0; e < kVector; ++e) absmax = max(absmax, magnitude_bits(values[i][e]));
    }
    scale_of_row = scale_of_block(p, block_maximum(absmax, scratch));
    if (threadIdx.x == 0) store_scale(p, row, 0, scale_of_row);
  }

#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int vector = threadIdx.x + i * blockDim.x;
    float scale = scale_of_row;
    if (given) {
      if (vector >= vectors) continue;
      const std::int64_t group = p.group_columns == 0 ? 0 : vector * kVector / p.group_columns;
      scale = static_cast<const float*>(p.scale)[row / p.group_rows * p.scale_row_stride + group * p.scale_group_stride];
    } else if (group_lanes != 0) {
      std::uint32_t absmax = 0;
      if (vector < vectors) {
#pragma unroll
        for (int e = 0; e < kVector; ++e) {
          const std::uint32_t bits = magnitude_bits(values[i][e]);
          absmax = max(absmax, is_dropin(p) && bits > 0x7f800000u ? 0u : bits);
        }
      }
      for (int distance = group_lanes / 2; distance > 0; distance /= 2)  // every lane of the warp takes part
        absmax = max(absmax, __shfl_xor_sync(~0u, absmax, distance));
      scale = scale_of_block(p, absmax);
      if (vector < vectors && vector % group_lanes == 0) store_scale(p, row, vector / group_lanes, scale);
    }
    if (vector >= vectors) continue;
    const Divider divide(scale);
    float quotients[kVector];
#pragma unroll
    for (int e = 0; e < kVector; ++e) {
      if (is_dropin(p)) {
        quotients[e] = dropin_quotient(p, divide, values[i][e]);
      } else if (asymmetric) {
        // numerics::quantize_int8_asymmetric: round, limit, shift; exact in fp32, and NaN goes to 0 unshifted
        const float rounded = rintf(divide(values[i][e]));
        quotients[e] = fminf(fmaxf(rounded, -1024.0f), 1024.0f) + static_cast<float>(azp);
        if (numerics::is_nan(rounded)) quotients[e] = 0.0f;
      } else {
        quotients[e] = divide(values[i][e]);
      }
    }
    std::uint32_t words[2];
#pragma unroll
    for (int w = 0; w < 2; ++w) {
      const float* four = &quotients[w * 4];
      words[w] = p.q_dtype == DType::int8
                     ? round_int8(four[0]) | round_int8(four[1]) << 8 | round_int8(four[2]) << 16 | round_int8(four[3]) << 24
                     : round_float8_pair(four[0], four[1]) | round_float8_pair(four[2], four[3]) << 16;
    }
    *reinterpret_cast<uint2*>(static_cast<std::uint8_t*>(p.q) + row * p.q_stride + vector * kVector) = make_uint2(words[0], words[1]);
  }
  allow_next_kernel();
}

// Lanes that share a group of `columns`; 0 for a whole row, -1 where a warp cannot reduce it.
int lanes_of_group(const QuantizeProblem& p) {
  switch (p.scheme) {
    case QuantizeScheme::per_row:
    case QuantizeScheme::per_row_asymmetric:
    case QuantizeScheme::with_given_scale:
      return 0;
    case QuantizeScheme::per_block:
    case QuantizeScheme::dropin_group:
    case QuantizeScheme::dropin_group_packed: {
      if (p.group_columns == 0) return p.scheme == QuantizeScheme::per_block ? 0 : -1;
      const std::int64_t lanes = p.group_columns / kVector;
      const bool fits = p.group_columns % kVector == 0 && lanes <= kWarp && (lanes & (lanes - 1)) == 0;
      return fits ? static_cast<int>(lanes) : -1;
    }
    case QuantizeScheme::per_tensor:
      return p.rows == 1 ? 0 : -1;  // one row: its scale is the tensor's
  }
  return -1;
}

bool aligned(const void* pointer, std::int64_t stride_bytes, std::int64_t bytes, std::int64_t rows) {
  return reinterpret_cast<std::uintptr_t>(pointer) % static_cast<std::uintptr_t>(bytes) == 0 &&
         (rows <= 1 || stride_bytes % bytes == 0);
}

template <class Element, QuantizeSource kSource>
const void* kernel_for(int vectors) {
  if (vectors == 1) return reinterpret_cast<const void*>(&quantize_rows<Element, kSource, 1>);
  return reinterpret_cast<const void*>(&quantize_rows<Element, kSource, kMostVectors>);
}
template <class Element>
const void* kernel_for(QuantizeSource source, int vectors) {
  if (source == QuantizeSource::activation) return kernel_for<Element, QuantizeSource::activation>(vectors);
  if (source == QuantizeSource::rms_norm) return kernel_for<Element, QuantizeSource::rms_norm>(vectors);
  return kernel_for<Element, QuantizeSource::copy>(vectors);
}

}  // namespace

bool rows_kernel_runs(const QuantizeProblem& p) {
  if (p.rows < 1 || p.rows > std::numeric_limits<std::int32_t>::max() || p.columns < 1 || p.columns > kMostColumns ||
      p.columns % kVector != 0)
    return false;
  if (lanes_of_group(p) < 0) return false;
  if (p.scheme == QuantizeScheme::per_block && p.group_rows != 1) return false;
  if (p.scheme == QuantizeScheme::with_given_scale && p.group_columns % kVector != 0 && p.group_columns < p.columns) return false;
  const std::int64_t element = size_in_bytes(p.x_dtype), vector_bytes = 16;
  if (!aligned(p.x, p.x_stride * element, vector_bytes, p.rows) || !aligned(p.q, p.q_stride, kVector, p.rows)) return false;
  if (p.source == QuantizeSource::rms_norm && p.columns * element > kMostStagedBytes) return false;
  if (p.residual != nullptr && !aligned(p.residual, p.residual_stride * element, vector_bytes, p.rows)) return false;
  if (p.gated && p.columns * element % vector_bytes != 0) return false;
  return true;
}

cudaError_t launch_rows_kernel(const QuantizeProblem& problem, cudaStream_t stream) {
  const std::int64_t vectors = problem.columns / kVector;
  // Few rows: as many threads as there are vectors, for the shortest way. Many: four vectors a thread, for loads in flight.
  constexpr std::int64_t kFewRows = 264;
  const int kept = problem.rows <= kFewRows && vectors <= kMostThreads ? 1 : vectors <= kWarp ? 1 : kMostVectors;
  const std::int64_t threads = ((vectors + kept - 1) / kept + kWarp - 1) / kWarp * kWarp;
  const void* kernel = problem.x_dtype == DType::bfloat16  ? kernel_for<Bfloat16>(problem.source, kept)
                       : problem.x_dtype == DType::float16 ? kernel_for<Float16>(problem.source, kept)
                                                           : kernel_for<Float32>(problem.source, kept);
  const std::size_t staged =
      problem.source == QuantizeSource::rms_norm ? static_cast<std::size_t>(problem.columns * size_in_bytes(problem.x_dtype)) : 0;
  QuantizeProblem argument = problem;
  int group_lanes = lanes_of_group(problem);
  void* arguments[] = {&argument, &group_lanes};
  return launch_overlapping(kernel, static_cast<unsigned>(problem.rows), static_cast<unsigned>(threads), staged, stream, arguments);
}

}  // namespace evergemm::cuda
