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
#include "cuda/quantize_vector.cuh"

namespace evergemm::cuda {
namespace {

constexpr int kMostThreads = 1024, kMostVectors = 4;  // vectors of a row that a thread keeps in registers
constexpr int kMostColumns = kMostThreads * kMostVectors * kVector;
constexpr int kMostRuns = kMostColumns / numerics::kSquareRun;

// The same value in every thread of the block. Each reduction of a kernel has a scratch of its own.
__device__ __forceinline__ std::uint32_t block_maximum(std::uint32_t value, std::uint32_t (&scratch)[kWarp]) {
  value = warp_maximum(value);
  if (blockDim.x <= kWarp) return value;
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
  __syncthreads();
  return warp_maximum(threadIdx.x % kWarp < blockDim.x / kWarp ? scratch[threadIdx.x % kWarp] : 0u);
}
// Two at a time.
__device__ __forceinline__ void block_maxima(std::uint32_t& x, std::uint32_t& y, std::uint32_t (&scratch)[2][kWarp]) {
  x = warp_maximum(x);
  y = warp_maximum(y);
  if (blockDim.x <= kWarp) return;
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  if (lane == 0) {
    scratch[0][warp] = x;
    scratch[1][warp] = y;
  }
  __syncthreads();
  const bool used = lane < blockDim.x / kWarp;
  x = warp_maximum(used ? scratch[0][lane] : 0u);
  y = warp_maximum(used ? scratch[1][lane] : 0u);
}

// Orders floats as unsigned numbers; a positive NaN comes last.
__device__ __forceinline__ std::uint32_t ordered(float x) {
  const std::uint32_t bits = __float_as_uint(x);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float unordered(std::uint32_t key) {
  return __uint_as_float((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

// The row's 1 / sqrt(mean of squares + eps) in every thread. A warp has whole runs, the i-th of each thread's vectors together;
// sums: of runs, in the order of the row.
template <class Element, int kVectors>
__device__ __forceinline__ float factor_of(const QuantizeProblem& p, const Vector<Element> (&inputs)[kVectors],
                                           const int (&vector)[kVectors], int vectors, float (&sums)[kMostRuns],
                                           float& shared_factor) {
  static_assert(numerics::kSquarePartials == kWarp && numerics::kSquareRun == kWarp * kVector);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    float squares[kVector];
    inputs[i].widen(squares);
#pragma unroll
    for (float& x : squares) x = vector[i] < vectors ? numerics::mul32(x, x) : 0.0f;
    const float sum = sum_of_run(squares);
    if (threadIdx.x % kWarp == 0) sums[vector[i] / kWarp] = sum;
  }
  __syncthreads();
  if (threadIdx.x < kWarp) {
    const int runs = static_cast<int>(blockDim.x / kWarp) * kVectors;
    float sum = 0;
    for (int run = static_cast<int>(threadIdx.x); run < runs; run += kWarp) sum = numerics::add32(sum, sums[run]);
    sum = sum_of_lanes(sum);
    if (threadIdx.x == 0) shared_factor = numerics::inverse_rms(sum, p.columns, p.eps);
  }
  __syncthreads();
  return shared_factor;
}

// x + residual in their type.
template <class Element>
__device__ __forceinline__ Vector<Element> sum_of(const Vector<Element>& x, const Vector<Element>& residual) {
  float values[kVector], added[kVector];
  x.widen(values);
  residual.widen(added);
#pragma unroll
  for (int e = 0; e < kVector; ++e) values[e] = numerics::add32(values[e], added[e]);
  Vector<Element> sum;
  if constexpr (sizeof(typename Element::Bits) == 4) {
    sum.pieces[0] = make_uint4(__float_as_uint(values[0]), __float_as_uint(values[1]), __float_as_uint(values[2]),
                               __float_as_uint(values[3]));
    sum.pieces[1] = make_uint4(__float_as_uint(values[4]), __float_as_uint(values[5]), __float_as_uint(values[6]),
                               __float_as_uint(values[7]));
  } else {
    sum.pieces[0] = make_uint4(Element::narrow_pair(values[0], values[1]), Element::narrow_pair(values[2], values[3]),
                               Element::narrow_pair(values[4], values[5]), Element::narrow_pair(values[6], values[7]));
  }
  return sum;
}

// What narrow_pair() made of a NaN becomes the NaN that numerics.h makes.
template <class Element>
__device__ __noinline__ void canonical_nans(typename Element::Bits* row, int columns) {
  if constexpr (sizeof(typename Element::Bits) == 2)
    for (int column = threadIdx.x * kVector; column < columns; column += blockDim.x * kVector)
      for (int e = column; e < column + kVector; ++e)
        if (row[e] == Element::kNewNan) row[e] = Element::kCanonicalNan;
}

// What happens between a scale and eight bits.
enum class Rounding { symmetric, asymmetric, dropin };

// What the kernel needs of the groups, in the sizes that it computes with.
struct Groups {
  int lanes;            // that share a scale block within a row (1, 2, .. 32), or 0 where the block is the whole row
  unsigned given_rows;  // with_given_scale: rows and vectors of a block; 0 vectors: the whole row
  unsigned given_vectors;
  bool from_the_end;  // rows in descending order: their ends were read just before, and are still in L2
};

// The maxima of groups of `lanes` lanes for kCount vectors of each lane. Where a group has at least kCount lanes, lane l ends
// with that of vector l % kCount (in maxima[0]): each step halves what a lane keeps, so that one lane forms one scale. True then.
template <int kCount>
__device__ __forceinline__ bool group_maxima(std::uint32_t (&maxima)[kCount], int lanes) {
  const unsigned lane = threadIdx.x % kWarp;
  if (lanes < kCount) {
    for (int distance = lanes / 2; distance > 0; distance /= 2)
#pragma unroll
      for (std::uint32_t& maximum : maxima) maximum = max(maximum, __shfl_xor_sync(~0u, maximum, distance));
    return false;
  }
#pragma unroll
  for (int kept = kCount / 2, distance = 1; kept > 0; kept /= 2, distance *= 2) {
    const bool odd = (lane & distance) != 0;
#pragma unroll
    for (int i = 0; i < kept; ++i) {
      const std::uint32_t mine = odd ? maxima[2 * i + 1] : maxima[2 * i];
      const std::uint32_t other = odd ? maxima[2 * i] : maxima[2 * i + 1];
      maxima[i] = max(mine, __shfl_xor_sync(~0u, other, distance));
    }
  }
  for (int distance = kCount; distance < lanes; distance *= 2)
    maxima[0] = max(maxima[0], __shfl_xor_sync(~0u, maxima[0], distance));
  return true;
}

// Every thread computes with a vector of the row: those past its end with the last one, which changes no maximum, and without
// storing. So nothing branches between the loads, and all of a thread's are in flight together. A row whose scales need no more
// than a warp may be divided among blocks (blockIdx.y).
template <class Element, QuantizeSource kSource, Rounding kRounding, int kVectors, int kThreads>
__global__ void __launch_bounds__(kThreads)
    quantize_rows(const __grid_constant__ QuantizeProblem p, const __grid_constant__ Groups groups) {
  __shared__ std::uint32_t scratch[2][kWarp];
  __shared__ float shared_factor;
  using Bits = typename Element::Bits;
  constexpr bool kCopies = kSource == QuantizeSource::copy;
  constexpr bool kSixteenBits = kCopies && sizeof(Bits) == 2;
  wait_for_previous_kernel();
  const std::int64_t row = groups.from_the_end ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
  const int vectors = static_cast<int>(p.columns / kVector);
  const int first_vector = static_cast<int>(blockIdx.y * kVectors * blockDim.x + threadIdx.x);
  const Bits* x = static_cast<const Bits*>(p.x) + row * p.x_stride;
  int vector[kVectors];  // which one this thread takes
  Vector<Element> inputs[kVectors];
  float values[kCopies ? 1 : kVectors][kVector];  // what is quantized, where that is not `inputs`
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    vector[i] = first_vector + i * blockDim.x;
    inputs[i] = Vector<Element>::load(x, min(vector[i], vectors - 1) * kVector);
  }

  if constexpr (kSource == QuantizeSource::activation) {
    if (p.gated) {
      Vector<Element> up[kVectors];
#pragma unroll
      for (int i = 0; i < kVectors; ++i)
        up[i] = Vector<Element>::load(x, p.columns + min(vector[i], vectors - 1) * kVector);
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        float factor[kVector];
        activate(p.activation, inputs[i], values[i]);
        up[i].widen(factor);
#pragma unroll
        for (int e = 0; e < kVector; ++e) values[i][e] = numerics::mul32(values[i][e], factor[e]);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kVectors; ++i) activate(p.activation, inputs[i], values[i]);
    }
  } else if constexpr (kSource == QuantizeSource::rms_norm) {
    // x, or x + residual rounded to its type and stored
    __shared__ float sums[kMostRuns];
    Bits* const residual = p.residual == nullptr ? nullptr : static_cast<Bits*>(p.residual) + row * p.residual_stride;
    const Bits* weight = static_cast<const Bits*>(p.weight);
    const bool weight_by_vectors = p.weight_stride == 1 && reinterpret_cast<std::uintptr_t>(weight) % 16 == 0;
    Vector<Element> weights[kVectors];
    if (residual != nullptr) {
      Vector<Element> before[kVectors];
#pragma unroll
      for (int i = 0; i < kVectors; ++i)
        before[i] = Vector<Element>::load(residual, min(vector[i], vectors - 1) * kVector);
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        inputs[i] = sum_of(inputs[i], before[i]);
        if (vector[i] < vectors) *reinterpret_cast<Vector<Element>*>(residual + vector[i] * kVector) = inputs[i];
      }
    }
#pragma unroll
    for (int i = 0; i < kVectors; ++i)
      if (weight_by_vectors) weights[i] = Vector<Element>::load(weight, min(vector[i], vectors - 1) * kVector);
    const float factor = factor_of(p, inputs, vector, vectors, sums, shared_factor);
    if (numerics::is_nan(factor) && residual != nullptr) canonical_nans<Element>(residual, static_cast<int>(p.columns));
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const bool active = vector[i] < vectors;  // what the residual holds past the end is another thread's business
      float by[kVector];
      inputs[i].widen(values[i]);
      if (weight_by_vectors) {
        weights[i].widen(by);
      } else {
#pragma unroll
        for (int e = 0; e < kVector; ++e)
          by[e] = Element::widen(weight[(std::int64_t{min(vector[i], vectors - 1)} * kVector + e) * p.weight_stride]);
      }
#pragma unroll
      for (int e = 0; e < kVector; ++e)
        values[i][e] = active ? numerics::mul32(numerics::mul32(values[i][e], factor), by[e]) : 0.0f;
    }
  }

  // ---- scales: a row's, or a group's for each vector ----
  float scales[kVectors];
  std::int32_t azp = 0;
  bool any_nan = false;
  const bool given = p.scheme == QuantizeScheme::with_given_scale;
  if constexpr (kRounding == Rounding::asymmetric) {
    Range<Element> range;
#pragma unroll
    for (const Vector<Element>& input : inputs) range.add(input);
    std::uint32_t high_key = ordered(range.high()), low_key = ~ordered(range.low());
    block_maxima(high_key, low_key, scratch);
    const float high = unordered(high_key), low = unordered(~low_key);  // high is NaN where a value is
    const float scale = numerics::asymmetric_scale(low, high);
    azp = numerics::asymmetric_zero_point(low, scale);
    if (threadIdx.x == 0) {
      store_scale(p, row, 0, scale);
      p.azp[row * p.azp_stride] = azp;
    }
#pragma unroll
    for (float& one : scales) one = scale;
  } else if (given) {
    const float* given_scales =
        static_cast<const float*>(p.scale) + static_cast<unsigned>(row) / groups.given_rows * p.scale_row_stride;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const unsigned group =
          groups.given_vectors == 0 ? 0 : static_cast<unsigned>(min(vector[i], vectors - 1)) / groups.given_vectors;
      scales[i] = __ldg(given_scales + group * p.scale_group_stride);
    }
  } else {
    std::uint32_t maxima[kVectors];
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if constexpr (kCopies) {
        LargestMagnitude<Element> largest;
        largest.add(inputs[i]);
        maxima[i] = largest.bits();
      } else {
        maxima[i] = largest_bits(values[i], 0);
      }
      if constexpr (kRounding == Rounding::dropin) {
        if (maxima[i] > 0x7f800000u) {  // a NaN, which drop-in scales leave out
          any_nan = true;
          float wide[kVector];
          inputs[i].widen(wide);
          maxima[i] = 0;
#pragma unroll
          for (int e = 0; e < kVector; ++e)
            if (!numerics::is_nan(wide[e])) maxima[i] = max(maxima[i], magnitude_bits(wide[e]));
        }
      }
    }
    if (groups.lanes == 0) {
      std::uint32_t largest = maxima[0];
#pragma unroll
      for (int i = 1; i < kVectors; ++i) largest = max(largest, maxima[i]);
      const float scale = scale_of_block(p, block_maximum(largest, scratch[0]));
      if (threadIdx.x == 0) store_scale(p, row, 0, scale);
#pragma unroll
      for (float& one : scales) one = scale;
    } else {
      const int group_shift = __ffs(groups.lanes) - 1;
      if (group_maxima(maxima, groups.lanes)) {
        const int mine = static_cast<int>(threadIdx.x % kVectors);
        const float scale = scale_of_block(p, maxima[0]);
        const int of = first_vector + mine * static_cast<int>(blockDim.x);
        if (threadIdx.x % static_cast<unsigned>(groups.lanes) < kVectors && (of & ~(groups.lanes - 1)) < vectors)
          store_scale(p, row, of >> group_shift, scale);
#pragma unroll
        for (int i = 0; i < kVectors; ++i) scales[i] = __shfl_sync(~0u, scale, i, kVectors);
      } else {
#pragma unroll
        for (int i = 0; i < kVectors; ++i) {
          scales[i] = scale_of_block(p, maxima[i]);
          if (vector[i] < vectors && vector[i] % groups.lanes == 0)
            store_scale(p, row, vector[i] >> group_shift, scales[i]);
        }
      }
    }
  }

#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    float now[kVector];
    if constexpr (kCopies) {
      inputs[i].widen(now);
    } else {
#pragma unroll
      for (int e = 0; e < kVector; ++e) now[e] = values[i][e];
    }
    const Bracket bracket(scales[i]);
    uint2 words;
    if constexpr (kRounding == Rounding::asymmetric) {
      words = to_asymmetric_int8(now, bracket, azp);
    } else if constexpr (kRounding == Rounding::dropin) {
      const bool to_int8_codes = p.q_dtype == DType::int8;
      if (to_int8_codes && kSixteenBits && divides_nearly(bracket) && !any_nan && p.q_min <= -p.q_max &&
          p.q_max <= 127.0f)
        words = to_cut_int8(now, bracket);
      else if (to_int8_codes || any_nan || !bracket.ordinary || p.q_min > -numerics::kFloat8E4m3fnMax ||
               p.q_max < numerics::kFloat8E4m3fnMax)
        words = dropin_words(make_float4(now[0], now[1], now[2], now[3]), make_float4(now[4], now[5], now[6], now[7]),
                             bracket.scale, p.q_min, p.q_max, to_int8_codes);
      else  // saturation clamps, as the limits are those of the format
        words = to_float8<kSixteenBits>(now, bracket, true);
    } else {
      const bool bounded = !given && p.scale_upper_bound == nullptr;
      words = p.q_dtype == DType::int8 ? to_int8<kSixteenBits>(now, bracket, bounded)
                                       : to_float8<kSixteenBits>(now, bracket, bounded);
    }
    if (vector[i] < vectors)
      *reinterpret_cast<uint2*>(static_cast<std::uint8_t*>(p.q) + row * p.q_stride + vector[i] * kVector) = words;
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

// Few threads that keep two vectors each have the registers for what needs more than one tensor.
constexpr int kPairThreads = 512;

template <class Element, QuantizeSource kSource, Rounding kRounding>
const void* kernel_for(int vectors) {
  if (vectors == 1) return reinterpret_cast<const void*>(&quantize_rows<Element, kSource, kRounding, 1, kMostThreads>);
  if (vectors == 2) return reinterpret_cast<const void*>(&quantize_rows<Element, kSource, kRounding, 2, kPairThreads>);
  return reinterpret_cast<const void*>(&quantize_rows<Element, kSource, kRounding, kMostVectors, kMostThreads>);
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
  if (p.residual != nullptr && !aligned(p.residual, p.residual_stride * element, vector_bytes, p.rows)) return false;
  if (p.gated && p.columns * element % vector_bytes != 0) return false;
  return true;
}

cudaError_t launch_rows_kernel(const QuantizeProblem& problem, cudaStream_t stream, bool from_the_end) {
  const std::int64_t vectors = problem.columns / kVector;
  // Few rows: as many threads as there are vectors, for the shortest way. Many: several vectors a thread, for loads in flight.
  constexpr std::int64_t kFewRows = 264;
  int kept = kMostVectors;
  if (vectors <= kWarp || (problem.rows <= kFewRows && vectors <= kMostThreads))
    kept = 1;
  else if (vectors <= 2 * kPairThreads && problem.source != QuantizeSource::copy)
    kept = 2;
  std::int64_t threads = ((vectors + kept - 1) / kept + kWarp - 1) / kWarp * kWarp, blocks_of_row = 1;
  const bool by_warps = problem.scheme == QuantizeScheme::with_given_scale || lanes_of_group(problem) > 0;
  constexpr std::int64_t kFewThreads = 128;
  if (kept == 1 && by_warps && problem.source != QuantizeSource::rms_norm && threads > kFewThreads) {
    threads = kFewThreads;
    blocks_of_row = (vectors + kFewThreads - 1) / kFewThreads;
  }
  const void* kernel = problem.x_dtype == DType::bfloat16  ? kernel_for<Bfloat16>(problem, kept)
                       : problem.x_dtype == DType::float16 ? kernel_for<Float16>(problem, kept)
                                                           : kernel_for<Float32>(problem, kept);
  QuantizeProblem argument = problem;
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  Groups groups;
  groups.lanes = lanes_of_group(problem);
  groups.given_rows = static_cast<unsigned>(std::clamp<std::int64_t>(problem.group_rows, 1, kMost));
  groups.given_vectors =
      problem.group_columns >= problem.columns ? 0 : static_cast<unsigned>(problem.group_columns / kVector);
  groups.from_the_end = from_the_end;
  void* arguments[] = {&argument, &groups};
  const dim3 blocks(static_cast<unsigned>(problem.rows), static_cast<unsigned>(blocks_of_row));
  return launch_overlapping(kernel, blocks, static_cast<unsigned>(threads), 0, stream, arguments);
}

}  // namespace evergemm::cuda
