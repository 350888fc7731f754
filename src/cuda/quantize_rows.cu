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

// The same value in every thread of the block. Each reduction of a kernel has a scratch of its own.
__device__ __forceinline__ std::uint32_t block_maximum(std::uint32_t value, std::uint32_t (&scratch)[kWarp]) {
  value = __reduce_max_sync(~0u, value);
  if (blockDim.x <= kWarp) return value;
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
  __syncthreads();
  return __reduce_max_sync(~0u, threadIdx.x % kWarp < blockDim.x / kWarp ? scratch[threadIdx.x % kWarp] : 0u);
}

// Orders floats without NaN as unsigned numbers.
__device__ __forceinline__ std::uint32_t ordered(float x) {
  const std::uint32_t bits = __float_as_uint(x);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float unordered(std::uint32_t key) {
  return __uint_as_float((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

// x of a row in shared memory, column c at [c % 32][c / 32]: each lane of the summing warp finds its columns side by side.
template <class Element>
struct StagedRow {
  using Bits = typename Element::Bits;
  static constexpr int kPerLoad = 16 / sizeof(Bits);
  Bits* base;
  int pitch;  // elements; whole loads, and one more so that lanes start in different banks

  __host__ __device__ static int pitch_of(std::int64_t columns) {
    return (static_cast<int>((columns + kWarp - 1) / kWarp) + kPerLoad - 1) / kPerLoad * kPerLoad + kPerLoad;
  }
  __device__ __forceinline__ void put(int column, Bits value) const {
    base[column % kWarp * pitch + column / kWarp] = value;
  }

  // 1 / sqrt(mean of squares + eps): 32 strided partial sums, one a lane of the first warp, then a tree.
  __device__ __forceinline__ float inverse_rms(const QuantizeProblem& p, float& result) const {
    static_assert(numerics::kSquarePartials == kWarp);
    if (threadIdx.x < kWarp) {
      float sum = 0;
      const int count = (static_cast<int>(p.columns) - static_cast<int>(threadIdx.x) + kWarp - 1) / kWarp;
      const Bits* mine = base + threadIdx.x * pitch;
      for (int first = 0; first < count; first += kPerLoad) {
        alignas(16) Bits loaded[kPerLoad];
        *reinterpret_cast<uint4*>(loaded) = *reinterpret_cast<const uint4*>(mine + first);
#pragma unroll
        for (int i = 0; i < kPerLoad; ++i)
          if (first + i < count) {
            const float x = Element::widen(loaded[i]);
            sum = numerics::fma32(x, x, sum);
          }
      }
#pragma unroll
      for (int half = kWarp / 2; half > 0; half /= 2) sum = numerics::add32(sum, __shfl_down_sync(~0u, sum, half));
      if (threadIdx.x == 0) result = numerics::inverse_rms(sum, p.columns, p.eps);
    }
    __syncthreads();
    return result;
  }
};

// What happens between a scale and eight bits.
enum class Rounding { symmetric, asymmetric, dropin };

// What the kernel needs of the groups, in the sizes that it computes with.
struct Groups {
  int lanes;            // that share a scale block within a row (1, 2, .. 32), or 0 where the block is the whole row
  unsigned given_rows;  // with_given_scale: rows and vectors of a block; 0 vectors: the whole row
  unsigned given_vectors;
};

// Every thread computes with a vector of the row: those past its end with the last one, which changes no maximum, and without
// storing. So nothing branches between the loads, and all of a thread's are in flight together.
template <class Element, QuantizeSource kSource, Rounding kRounding, int kVectors>
__global__ void __launch_bounds__(kMostThreads)
    quantize_rows(const __grid_constant__ QuantizeProblem p, const __grid_constant__ Groups groups) {
  extern __shared__ __align__(16) unsigned char staged[];
  __shared__ std::uint32_t scratch[3][kWarp];
  __shared__ float shared_factor;
  using Bits = typename Element::Bits;
  wait_for_previous_kernel();
  const std::int64_t row = blockIdx.x;
  const int vectors = static_cast<int>(p.columns / kVector);
  const Bits* x = static_cast<const Bits*>(p.x) + row * p.x_stride;
  int vector[kVectors];  // which one this thread takes
  float values[kVectors][kVector];
  Vector<Element> inputs[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    vector[i] = threadIdx.x + i * blockDim.x;
    inputs[i] = Vector<Element>::load(x, min(vector[i], vectors - 1) * kVector);
  }

  if constexpr (kSource == QuantizeSource::copy) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) inputs[i].widen(values[i]);
  } else if constexpr (kSource == QuantizeSource::activation) {
    if (p.gated) {
      Vector<Element> up[kVectors];
#pragma unroll
      for (int i = 0; i < kVectors; ++i)
        up[i] = Vector<Element>::load(x, p.columns + min(vector[i], vectors - 1) * kVector);
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        float factor[kVector];
        inputs[i].widen(values[i]);
        up[i].widen(factor);
#pragma unroll
        for (int e = 0; e < kVector; ++e)
          values[i][e] = numerics::mul32(activated(p.activation, values[i][e]), factor[e]);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        inputs[i].widen(values[i]);
#pragma unroll
        for (int e = 0; e < kVector; ++e) values[i][e] = activated(p.activation, values[i][e]);
      }
    }
  } else {
    // x, or x + residual rounded to its type and stored
    const StagedRow<Element> staged_row{reinterpret_cast<Bits*>(staged), StagedRow<Element>::pitch_of(p.columns)};
    if (p.residual != nullptr) {
      Bits* residual = static_cast<Bits*>(p.residual) + row * p.residual_stride;
      Vector<Element> before[kVectors];
#pragma unroll
      for (int i = 0; i < kVectors; ++i)
        before[i] = Vector<Element>::load(residual, min(vector[i], vectors - 1) * kVector);
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        float added[kVector];
        inputs[i].widen(values[i]);
        before[i].widen(added);
        alignas(16) Bits sum[kVector];
#pragma unroll
        for (int e = 0; e < kVector; ++e) {
          sum[e] = Element::narrow(numerics::add32(values[i][e], added[e]));
          values[i][e] = Element::widen(sum[e]);
        }
        if (vector[i] < vectors)
          *reinterpret_cast<Vector<Element>*>(residual + vector[i] * kVector) =
              *reinterpret_cast<const Vector<Element>*>(sum);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kVectors; ++i) inputs[i].widen(values[i]);
    }
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (vector[i] >= vectors) continue;
#pragma unroll
      for (int e = 0; e < kVector; ++e) staged_row.put(vector[i] * kVector + e, Element::narrow(values[i][e]));
    }
    __syncthreads();
    const float factor = staged_row.inverse_rms(p, shared_factor);
    const Bits* weight = static_cast<const Bits*>(p.weight);
    const bool weight_by_vectors = p.weight_stride == 1 && reinterpret_cast<std::uintptr_t>(weight) % 16 == 0;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const bool active = vector[i] < vectors;  // what the residual holds past the end is another thread's business
      float weights[kVector];
      if (weight_by_vectors) {
        Vector<Element>::load(weight, min(vector[i], vectors - 1) * kVector).widen(weights);
      } else {
#pragma unroll
        for (int e = 0; e < kVector; ++e)
          weights[e] =
              Element::widen(weight[(std::int64_t{min(vector[i], vectors - 1)} * kVector + e) * p.weight_stride]);
      }
#pragma unroll
      for (int e = 0; e < kVector; ++e)
        values[i][e] = active ? numerics::mul32(numerics::mul32(values[i][e], factor), weights[e]) : 0.0f;
    }
  }

  // ---- scales: a row's, or a group's for each vector ----
  float scale_of_row = 1.0f;
  std::int32_t azp = 0;
  const bool given = p.scheme == QuantizeScheme::with_given_scale;
  if constexpr (kRounding == Rounding::asymmetric) {
    float low = 0, high = 0;
    bool any_nan = false;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
#pragma unroll
      for (int e = 0; e < kVector; ++e) {
        low = fminf(low, values[i][e]);  // these two leave NaN out
        high = fmaxf(high, values[i][e]);
        any_nan = any_nan || numerics::is_nan(values[i][e]);
      }
    }
    high = unordered(block_maximum(ordered(high), scratch[0]));
    low = unordered(~block_maximum(~ordered(low), scratch[1]));
    if (block_maximum(any_nan ? 1u : 0u, scratch[2]) != 0) low = numerics::canonical_nan();
    scale_of_row = numerics::asymmetric_scale(low, high);
    azp = numerics::asymmetric_zero_point(low, scale_of_row);
    if (threadIdx.x == 0) {
      store_scale(p, row, 0, scale_of_row);
      p.azp[row * p.azp_stride] = azp;
    }
  } else if (!given && groups.lanes == 0) {
    std::uint32_t absmax = 0;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
#pragma unroll
      for (int e = 0; e < kVector; ++e) absmax = max(absmax, magnitude_bits(values[i][e]));
    }
    scale_of_row = scale_of_block(p, block_maximum(absmax, scratch[0]));
    if (threadIdx.x == 0) store_scale(p, row, 0, scale_of_row);
  }

  const float* given_scales =
      static_cast<const float*>(p.scale) +
      (given ? static_cast<unsigned>(row) / groups.given_rows * p.scale_row_stride : std::int64_t{0});
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    float scale = scale_of_row;
    if (given) {
      const unsigned group =
          groups.given_vectors == 0 ? 0 : static_cast<unsigned>(min(vector[i], vectors - 1)) / groups.given_vectors;
      scale = __ldg(given_scales + group * p.scale_group_stride);
    } else if (groups.lanes != 0) {
      std::uint32_t absmax = 0;
#pragma unroll
      for (int e = 0; e < kVector; ++e) {
        if constexpr (kRounding == Rounding::dropin)  // fmaxf leaves NaN out
          absmax = __float_as_uint(fmaxf(__uint_as_float(absmax), fabsf(values[i][e])));
        else
          absmax = max(absmax, magnitude_bits(values[i][e]));
      }
      for (int distance = groups.lanes / 2; distance > 0; distance /= 2)
        absmax = max(absmax, __shfl_xor_sync(~0u, absmax, distance));
      scale = scale_of_block(p, absmax);
      const int group_shift = __ffs(groups.lanes) - 1;
      if (vector[i] < vectors && vector[i] % groups.lanes == 0) store_scale(p, row, vector[i] >> group_shift, scale);
    }
    float quotients[kVector];
    const Divider divider(scale);
    divider.divide(values[i], quotients, given || p.scale_upper_bound != nullptr);
    if constexpr (kRounding == Rounding::dropin) {
      // An ordinary scale means that no value is infinite; fmaxf and fminf then clamp as numerics::dropin_clamp does.
      const bool ordinary = divider.multiplies() && p.q_min < 0.0f && p.q_max > 0.0f;
#pragma unroll
      for (int e = 0; e < kVector; ++e) {
        if (ordinary) {
          quotients[e] = fminf(fmaxf(quotients[e], p.q_min), p.q_max);
          if (p.q_dtype == DType::int8) quotients[e] = truncf(quotients[e]);
        } else {
          quotients[e] = dropin_clamped(p, values[i][e], quotients[e]);
        }
      }
    }
    if constexpr (kRounding == Rounding::asymmetric) {
      const float shift = static_cast<float>(azp);
#pragma unroll
      for (int e = 0; e < kVector; ++e) {
        // numerics::quantize_int8_asymmetric: round, limit, shift; exact in fp32, and NaN goes to 0 unshifted. An ordinary scale
        // means that the row has neither NaN nor infinity and that no quotient passes 256.
        const float rounded = rintf(quotients[e]);
        quotients[e] = divider.multiplies()        ? rounded + shift
                       : numerics::is_nan(rounded) ? 0.0f
                                                   : fminf(fmaxf(rounded, -1024.0f), 1024.0f) + shift;
      }
    }
    std::uint32_t words[2];
#pragma unroll
    for (int w = 0; w < 2; ++w) {
      const float* four = &quotients[w * 4];
      words[w] =
          p.q_dtype == DType::int8
              ? round_int8(four[0]) | round_int8(four[1]) << 8 | round_int8(four[2]) << 16 | round_int8(four[3]) << 24
              : round_float8_pair(four[0], four[1]) | round_float8_pair(four[2], four[3]) << 16;
    }
    if (vector[i] < vectors)
      *reinterpret_cast<uint2*>(static_cast<std::uint8_t*>(p.q) + row * p.q_stride + vector[i] * kVector) =
          make_uint2(words[0], words[1]);
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

template <class Element, QuantizeSource kSource, Rounding kRounding>
const void* kernel_for(int vectors) {
  if (vectors == 1) return reinterpret_cast<const void*>(&quantize_rows<Element, kSource, kRounding, 1>);
  return reinterpret_cast<const void*>(&quantize_rows<Element, kSource, kRounding, kMostVectors>);
}
template <class Element>
const void* kernel_for(const QuantizeProblem& p, int vectors) {
  if (p.source == QuantizeSource::activation)
    return kernel_for<Element, QuantizeSource::activation, Rounding::symmetric>(vectors);
  if (p.source == QuantizeSource::rms_norm)
    return kernel_for<Element, QuantizeSource::rms_norm, Rounding::symmetric>(vectors);
  if (p.scheme == QuantizeScheme::per_row_asymmetric)
    return kernel_for<Element, QuantizeSource::copy, Rounding::asymmetric>(vectors);
  if (p.scheme == QuantizeScheme::dropin_group || p.scheme == QuantizeScheme::dropin_group_packed)
    return kernel_for<Element, QuantizeSource::copy, Rounding::dropin>(vectors);
  return kernel_for<Element, QuantizeSource::copy, Rounding::symmetric>(vectors);
}

std::int64_t staged_bytes(const QuantizeProblem& p) {
  if (p.source != QuantizeSource::rms_norm) return 0;
  return p.x_dtype == DType::float32 ? std::int64_t{kWarp} * StagedRow<Float32>::pitch_of(p.columns) * 4
                                     : std::int64_t{kWarp} * StagedRow<Bfloat16>::pitch_of(p.columns) * 2;
}

}  // namespace

bool rows_kernel_runs(const QuantizeProblem& p) {
  if (p.rows < 1 || p.rows > std::numeric_limits<std::int32_t>::max() || p.columns < 1 || p.columns > kMostColumns ||
      p.columns % kVector != 0)
    return false;
  if (lanes_of_group(p) < 0) return false;
  const bool symmetric = p.scheme == QuantizeScheme::per_tensor || p.scheme == QuantizeScheme::per_row ||
                         p.scheme == QuantizeScheme::per_block || p.scheme == QuantizeScheme::with_given_scale;
  if (p.source != QuantizeSource::copy && !symmetric) return false;
  if (p.scheme == QuantizeScheme::per_block && p.group_rows != 1) return false;
  if (p.scheme == QuantizeScheme::with_given_scale && p.group_columns % kVector != 0 && p.group_columns < p.columns)
    return false;
  const std::int64_t element = size_in_bytes(p.x_dtype), vector_bytes = 16;
  if (!aligned(p.x, p.x_stride * element, vector_bytes, p.rows) || !aligned(p.q, p.q_stride, kVector, p.rows))
    return false;
  if (staged_bytes(p) > kMostStagedBytes) return false;
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
  const void* kernel = problem.x_dtype == DType::bfloat16  ? kernel_for<Bfloat16>(problem, kept)
                       : problem.x_dtype == DType::float16 ? kernel_for<Float16>(problem, kept)
                                                           : kernel_for<Float32>(problem, kept);
  const auto staged = static_cast<std::size_t>(staged_bytes(problem));
  QuantizeProblem argument = problem;
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  Groups groups;
  groups.lanes = lanes_of_group(problem);
  groups.given_rows = static_cast<unsigned>(std::clamp<std::int64_t>(problem.group_rows, 1, kMost));
  groups.given_vectors =
      problem.group_columns >= problem.columns ? 0 : static_cast<unsigned>(problem.group_columns / kVector);
  void* arguments[] = {&argument, &groups};
  return launch_overlapping(kernel, static_cast<unsigned>(problem.rows), static_cast<unsigned>(threads), staged, stream,
                            arguments);
}

}  // namespace evergemm::cuda
