// SPDX-License-Identifier: Apache-2.0
// The quantizer that runs everything: a block of threads a scale block, element by element, in the words of the reference.
// Also the passes that surround it: a per-tensor scale, residual sums, zeros of the packed layout, and permute_cols.
// Must not go here: anything that needs alignment.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "cuda/device.h"
#include "cuda/quantize_kernels.h"
#include "cuda/quantize_values.cuh"
#include "cuda/quantize_vector.cuh"

namespace evergemm::cuda {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kMostBlocks = 132 * 16;  // the kernels stride over what is beyond

__device__ __forceinline__ float load_element(DType type, const void* data, std::int64_t at) {
  if (type == DType::bfloat16) return Bfloat16::widen(static_cast<const std::uint16_t*>(data)[at]);
  if (type == DType::float16) return Float16::widen(static_cast<const std::uint16_t*>(data)[at]);
  return static_cast<const float*>(data)[at];
}

// residual has been added and stored before (add_residual below).
__device__ __forceinline__ float input_at(const QuantizeProblem& p, std::int64_t row, std::int64_t column) {
  return p.residual != nullptr ? load_element(p.x_dtype, p.residual, row * p.residual_stride + column)
                               : load_element(p.x_dtype, p.x, row * p.x_stride + column);
}

__device__ __forceinline__ float value_at(const QuantizeProblem& p, std::int64_t row, std::int64_t column,
                                          float factor) {
  const float x = input_at(p, row, column);
  if (p.source == QuantizeSource::rms_norm)
    return numerics::mul32(numerics::mul32(x, factor), load_element(p.x_dtype, p.weight, column * p.weight_stride));
  if (p.source == QuantizeSource::copy) return x;
  const float gate = activated(p.activation, x);
  return p.gated ? numerics::mul32(gate, load_element(p.x_dtype, p.x, row * p.x_stride + p.columns + column)) : gate;
}

// The row's factor in every thread, by the first warp: lane l has columns 8 l to 8 l + 7 of each run.
__device__ __forceinline__ float factor_of_row(const QuantizeProblem& p, std::int64_t row, float& shared) {
  if (p.source != QuantizeSource::rms_norm) return 1.0f;
  __syncthreads();
  if (threadIdx.x < kWarp) {
    float partial = 0;  // of the runs whose number modulo 32 is this lane's
    unsigned run = 0;
    for (std::int64_t begin = 0; begin < p.columns; begin += numerics::kSquareRun, ++run) {
      float squares[8];
      for (int e = 0; e < 8; ++e) {
        const std::int64_t column = begin + threadIdx.x * 8 + e;
        const float x = column < p.columns ? input_at(p, row, column) : 0.0f;
        squares[e] = numerics::mul32(x, x);
      }
      const float sum = sum_of_run(squares);
      if (threadIdx.x == run % kWarp) partial = numerics::add32(partial, sum);
    }
    const float sum = sum_of_lanes(partial);
    if (threadIdx.x == 0) shared = numerics::inverse_rms(sum, p.columns, p.eps);
  }
  __syncthreads();
  return shared;
}

__device__ __forceinline__ std::uint32_t block_maximum(std::uint32_t value,
                                                       std::uint32_t (&scratch)[kThreads / kWarp]) {
  value = warp_maximum(value);
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
  __syncthreads();
  value = warp_maximum(threadIdx.x % kWarp < kThreads / kWarp ? scratch[threadIdx.x % kWarp] : 0u);
  __syncthreads();
  return value;
}

struct Blocks {
  std::int64_t rows, columns;              // of one
  std::int64_t row_blocks, column_blocks;  // how many
};

__global__ void __launch_bounds__(kThreads)
    quantize_blocks(const __grid_constant__ QuantizeProblem p, const Blocks blocks) {
  __shared__ std::uint32_t scratch[kThreads / kWarp];
  __shared__ float shared_factor;
  wait_for_previous_kernel();
  const bool asymmetric = p.scheme == QuantizeScheme::per_row_asymmetric;
  for (std::int64_t block = blockIdx.x; block < blocks.row_blocks * blocks.column_blocks; block += gridDim.x) {
    const std::int64_t i = block / blocks.column_blocks, j = block % blocks.column_blocks;
    const std::int64_t first_row = i * blocks.rows, end_row = min(p.rows, first_row + blocks.rows);
    const std::int64_t first_column = j * blocks.columns, end_column = min(p.columns, first_column + blocks.columns);
    float scale, factor = 1.0f;
    std::int32_t azp = 0;
    if (p.scheme == QuantizeScheme::with_given_scale) {
      scale = static_cast<const float*>(p.scale)[i * p.scale_row_stride + j * p.scale_group_stride];
    } else {
      std::uint32_t absmax = 0, low_key = 0, high_key = 0;  // keys: magnitudes of the negative and of the positive side
      bool any_nan = false;
      for (std::int64_t row = first_row; row < end_row; ++row) {
        factor = factor_of_row(p, row, shared_factor);
        for (std::int64_t column = first_column + threadIdx.x; column < end_column; column += kThreads) {
          const float value = value_at(p, row, column, factor);
          const std::uint32_t bits = magnitude_bits(value);
          const bool nan = bits > 0x7f800000u;
          any_nan = any_nan || nan;
          if (!(nan && is_dropin(p))) absmax = max(absmax, bits);
          if (!nan && value < 0) low_key = max(low_key, bits);
          if (!nan && value > 0) high_key = max(high_key, bits);
        }
      }
      if (asymmetric) {
        const float high = __uint_as_float(block_maximum(high_key, scratch));
        float low = -__uint_as_float(block_maximum(low_key, scratch));
        if (block_maximum(any_nan ? 1u : 0u, scratch) != 0) low = numerics::canonical_nan();
        scale = numerics::asymmetric_scale(low, high);
        azp = numerics::asymmetric_zero_point(low, scale);
        if (threadIdx.x == 0) p.azp[i * p.azp_stride] = azp;
      } else {
        scale = scale_of_block(p, block_maximum(absmax, scratch));
      }
      if (threadIdx.x == 0) store_scale(p, i, j, scale);
    }
    const Divider divide(scale);
    for (std::int64_t row = first_row; row < end_row; ++row) {
      factor = factor_of_row(p, row, shared_factor);
      for (std::int64_t column = first_column + threadIdx.x; column < end_column; column += kThreads) {
        const float value = value_at(p, row, column, factor);
        const std::int64_t at = row * p.q_stride + column;
        if (asymmetric)
          static_cast<std::int8_t*>(p.q)[at] = numerics::quantize_int8_asymmetric(value, scale, azp);
        else
          store_quantized(p, at, is_dropin(p) ? dropin_clamped(p, value, divide(value)) : divide(value));
      }
    }
  }
  allow_next_kernel();
}

// residual = x + residual, rounded to their type.
__global__ void __launch_bounds__(kThreads) add_residual(const __grid_constant__ QuantizeProblem p) {
  wait_for_previous_kernel();
  const std::int64_t elements = p.rows * p.columns;
  for (std::int64_t e = blockIdx.x * std::int64_t{kThreads} + threadIdx.x; e < elements;
       e += std::int64_t{gridDim.x} * kThreads) {
    const std::int64_t row = e / p.columns, column = e % p.columns, at = row * p.residual_stride + column;
    const float sum = numerics::add32(load_element(p.x_dtype, p.x, row * p.x_stride + column),
                                      load_element(p.x_dtype, p.residual, at));
    if (p.x_dtype == DType::float32)
      static_cast<float*>(p.residual)[at] = sum;
    else
      static_cast<std::uint16_t*>(p.residual)[at] =
          p.x_dtype == DType::float16 ? numerics::float_to_float16(sum) : numerics::float_to_bfloat16(sum);
  }
  allow_next_kernel();
}

// ---- a scale for the whole tensor -------------------------------------------------------------------------------------

__global__ void start_tensor_scale(const __grid_constant__ QuantizeProblem p) {
  wait_for_previous_kernel();
  *static_cast<std::uint32_t*>(p.scale) = 0;
  allow_next_kernel();
}

// The scale's own four bytes hold the largest magnitude's bits meanwhile; integer maxima have no order to depend on.
template <class Element>
__global__ void __launch_bounds__(kThreads)
    find_tensor_maximum(const __grid_constant__ QuantizeProblem p, const bool by_vectors) {
  __shared__ std::uint32_t scratch[kThreads / kWarp];
  wait_for_previous_kernel();
  std::uint32_t absmax = 0;
  using Bits = typename Element::Bits;
  const Bits* x = static_cast<const Bits*>(p.x);
  const std::int64_t thread = blockIdx.x * std::int64_t{kThreads} + threadIdx.x,
                     threads = std::int64_t{gridDim.x} * kThreads;
  if (by_vectors) {
    const std::int64_t in_row = p.columns / kVector, vectors = p.rows * in_row;
    const bool without_gaps = p.x_stride == p.columns;
    constexpr int kAhead = 4;
    LargestMagnitude<Element> largest;
    for (std::int64_t v = thread; v < vectors; v += threads * kAhead) {
      Vector<Element> loaded[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const std::int64_t at = min(v + i * threads, vectors - 1);  // the last one again changes no maximum
        loaded[i] =
            Vector<Element>::load(x, without_gaps ? at * kVector : at / in_row * p.x_stride + at % in_row * kVector);
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) largest.add(loaded[i]);
    }
    absmax = largest.bits();
  } else {
    for (std::int64_t e = thread; e < p.rows * p.columns; e += threads)
      absmax = max(absmax, magnitude_bits(Element::widen(x[e / p.columns * p.x_stride + e % p.columns])));
  }
  absmax = block_maximum(absmax, scratch);
  if (threadIdx.x == 0 && absmax != 0) atomicMax(static_cast<std::uint32_t*>(p.scale), absmax);
  allow_next_kernel();
}

__global__ void finish_tensor_scale(const __grid_constant__ QuantizeProblem p) {
  wait_for_previous_kernel();
  const std::uint32_t absmax = *static_cast<const std::uint32_t*>(p.scale);
  *static_cast<float*>(p.scale) = scale_of_block(p, absmax);
  allow_next_kernel();
}

// ---- dropin_group_packed ------------------------------------------------------------------------------------------------

__global__ void __launch_bounds__(kThreads)
    zero_packed(const __grid_constant__ QuantizeProblem p, const std::int64_t words) {
  wait_for_previous_kernel();
  const std::int64_t thread = blockIdx.x * std::int64_t{kThreads} + threadIdx.x,
                     threads = std::int64_t{gridDim.x} * kThreads;
  // every column of words is as long as the pitch, the last one ends with the last row
  const std::int64_t total = words == 0 ? 0 : (words - 1) * p.packed_columns_stride + p.rows;
  for (std::int64_t e = thread; e < total; e += threads) {
    const std::int64_t word = e / p.packed_columns_stride, row = e % p.packed_columns_stride;
    static_cast<std::uint32_t*>(p.scale)[row * p.scale_row_stride + word * p.packed_columns_stride] = 0;
  }
  for (std::int64_t e = thread; e < (p.q_rows - p.rows) * p.columns; e += threads)
    static_cast<std::uint8_t*>(p.q)[(p.rows + e / p.columns) * p.q_stride + e % p.columns] = 0;
  allow_next_kernel();
}

unsigned blocks_for(std::int64_t elements) {
  return static_cast<unsigned>(std::clamp<std::int64_t>((elements + kThreads - 1) / kThreads, 1, kMostBlocks));
}

std::int64_t ceil_divide(std::int64_t x, std::int64_t y) { return x / y + (x % y != 0 ? 1 : 0); }

}  // namespace

cudaError_t launch_overlapping(const void* kernel, dim3 blocks, unsigned threads, std::size_t shared_bytes,
                               cudaStream_t stream, void** arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = may_overlap() ? 1 : 0;
  return cudaLaunchKernelExC(&config, kernel, arguments);
}

cudaError_t launch_blocks_kernel(const QuantizeProblem& problem, cudaStream_t stream) {
  QuantizeProblem p = problem;
  if (p.residual != nullptr && p.rows > 0 && p.columns > 0) {
    void* arguments[] = {&p};
    const cudaError_t error = launch_overlapping(reinterpret_cast<const void*>(&add_residual),
                                                 blocks_for(p.rows * p.columns), kThreads, 0, stream, arguments);
    if (error != cudaSuccess) return error;
  }
  const bool per_tensor = p.scheme == QuantizeScheme::per_tensor;
  const bool per_row = p.scheme == QuantizeScheme::per_row || p.scheme == QuantizeScheme::per_row_asymmetric;
  const bool dropin = p.scheme == QuantizeScheme::dropin_group || p.scheme == QuantizeScheme::dropin_group_packed;
  const bool whole_row = per_tensor || per_row || p.group_columns == 0;
  Blocks blocks;
  blocks.rows = per_tensor ? std::max<std::int64_t>(p.rows, 1) : per_row || dropin ? 1 : p.group_rows;
  blocks.columns = whole_row ? std::max<std::int64_t>(p.columns, 1) : p.group_columns;
  // Without elements a tensor still has its one scale, and a row its own.
  blocks.row_blocks = per_tensor ? 1 : ceil_divide(p.rows, blocks.rows);
  blocks.column_blocks = whole_row ? 1 : ceil_divide(p.columns, blocks.columns);
  if (blocks.row_blocks == 0 || blocks.column_blocks == 0) return cudaSuccess;
  const std::int64_t count =
      blocks.row_blocks > kMostBlocks / blocks.column_blocks ? kMostBlocks : blocks.row_blocks * blocks.column_blocks;
  void* arguments[] = {&p, &blocks};
  return launch_overlapping(reinterpret_cast<const void*>(&quantize_blocks),
                            static_cast<unsigned>(std::max<std::int64_t>(count, 1)), kThreads, 0, stream, arguments);
}

cudaError_t launch_tensor_scale(const QuantizeProblem& problem, cudaStream_t stream) {
  QuantizeProblem p = problem;
  const std::int64_t element = size_in_bytes(p.x_dtype);
  bool by_vectors =
      p.columns % kVector == 0 && reinterpret_cast<std::uintptr_t>(p.x) % 16 == 0 && p.x_stride * element % 16 == 0;
  void* arguments[] = {&p, &by_vectors};
  const void* find = p.x_dtype == DType::bfloat16  ? reinterpret_cast<const void*>(&find_tensor_maximum<Bfloat16>)
                     : p.x_dtype == DType::float16 ? reinterpret_cast<const void*>(&find_tensor_maximum<Float16>)
                                                   : reinterpret_cast<const void*>(&find_tensor_maximum<Float32>);
  cudaError_t error =
      launch_overlapping(reinterpret_cast<const void*>(&start_tensor_scale), 1, 1, 0, stream, arguments);
  if (error == cudaSuccess)
    error = launch_overlapping(find, blocks_for(p.rows * p.columns / (by_vectors ? kVector : 1)), kThreads, 0, stream,
                               arguments);
  if (error == cudaSuccess)
    error = launch_overlapping(reinterpret_cast<const void*>(&finish_tensor_scale), 1, 1, 0, stream, arguments);
  return error;
}

cudaError_t launch_packed_zeros(const QuantizeProblem& problem, cudaStream_t stream) {
  QuantizeProblem p = problem;
  std::int64_t words = p.columns == 0 ? 0 : ceil_divide(ceil_divide(p.columns, p.group_columns), 4);
  void* arguments[] = {&p, &words};
  return launch_overlapping(reinterpret_cast<const void*>(&zero_packed),
                            blocks_for(words * p.packed_columns_stride + (p.q_rows - p.rows) * p.columns), kThreads, 0,
                            stream, arguments);
}

}  // namespace evergemm::cuda
