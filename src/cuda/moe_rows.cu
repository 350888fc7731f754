// SPDX-License-Identifier: Apache-2.0
// Quantizes the rows of a mixture of experts straight to where the products read them: gathered by source_row, scattered to
// slots, or in place behind an activation, with a row count that the device knows. The arithmetic of a value is
// quantize_values.cuh's. Must not go here: rows that no routing moves (quantize_rows.cu, quantize_blocks.cu).
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <limits>

#include "cuda/device.h"
#include "cuda/moe_kernels.h"
#include "cuda/moe_rows.cuh"
#include "cuda/quantize_kernels.h"
#include "cuda/quantize_values.cuh"
#include "evergemm/moe_index.h"

namespace evergemm::cuda {
namespace {

constexpr int kMostVectors = 4;     // of a row that a thread keeps
constexpr int kBlockThreads = 256;  // several narrow rows share a block of about so many
constexpr std::int64_t kFewRows = 264;
constexpr int kAnyThreads = 256;
constexpr std::int64_t kMostAnyBlocks = 132 * 16;

__device__ __forceinline__ std::int64_t rows_of(const RoutedRows& r) {  // past the L1, which may be older
  return r.row_count == nullptr ? r.quantize.rows : limited(__ldcg(r.row_count), 0, r.quantize.rows);
}

// The row of x that row `row` reads, -1 where none is.
__device__ __forceinline__ std::int64_t source_of(const RoutedRows& r, std::int64_t row) {
  if (r.source_row.data == nullptr) return row;
  const std::int64_t source = read_index(r.source_row, row);
  return source >= 0 && source < r.tokens ? source : -1;
}

// The one scale of per_tensor and with_given_scale; every block reads it, the first one stores it.
__device__ __forceinline__ float one_scale_of(const RoutedRows& r) {
  const float scale = r.quantize.scheme == QuantizeScheme::per_tensor ? scale_of_block(r.quantize, *r.largest)
                                                                      : *static_cast<const float*>(r.quantize.scale);
  if (r.one_scale != nullptr && blockIdx.x == 0 && threadIdx.x == 0 && threadIdx.y == 0) *r.one_scale = scale;
  return scale;
}

// blockDim.y rows a block, blockDim.x threads a row.
template <class Element, bool kActivation, bool kInt8, int kVectors>
__global__ void __launch_bounds__(kMostRowThreads)
    quantize_routed(const __grid_constant__ RoutedRows r, const int lanes) {
  __shared__ std::uint32_t scratch[kMostRowThreads / kWarp];
  // Product 2 comes next: its CTAs take the multiprocessors that product 1 leaves and fetch weights; for the rows they wait.
  // Nothing but its weights and the offsets, which were there before product 1 started, do they read early.
  if constexpr (kActivation) allow_next_kernel();
  const QuantizeProblem& p = r.quantize;
  std::int64_t count = 0;
  if (r.early_row_count) count = rows_of(r);
  wait_for_previous_kernel();
  if (!r.early_row_count) count = rows_of(r);
  const std::int64_t first = std::int64_t{blockIdx.x} * blockDim.y;
  const float one_scale = lanes < 0 ? one_scale_of(r) : 1.0f;
  if (first >= count) return;
  const bool active = first + threadIdx.y < count;
  const std::int64_t row = active ? first + threadIdx.y : count - 1, source = source_of(r, row);
  float values[kVectors][kVector] = {};
  if (source >= 0) {
    RowInputs<Element, kActivation, kVectors> inputs;
    inputs.load(p, source);
    inputs.widen(r, row, values);
  }
  constexpr bool kSixteenBits = !kActivation && sizeof(typename Element::Bits) == 2;
  RowBytes<kVectors> bytes = quantize_row<kInt8, kSixteenBits>(values, lanes, one_scale, scratch);
  if (source < 0)  // whatever the one scale is (NaN too), a row that nothing is gathered for is 0
#pragma unroll
    for (uint2& words : bytes.words) words = make_uint2(0, 0);
  if (!kActivation && r.slot != nullptr) {
    const std::int32_t* const slots = r.slot + row * r.top_k;
    for (std::int64_t begin = 0; begin < r.top_k; begin += kWarp) {  // a lane reads one slot, all lanes use it
      const std::int64_t choice = begin + threadIdx.x % kWarp;
      const std::int32_t mine = choice < r.top_k ? slots[choice] : -1;
      const int here = static_cast<int>(min(r.top_k - begin, std::int64_t{kWarp}));
#pragma unroll 1
      for (int lane = 0; lane < here; ++lane) {
        const std::int32_t to = __shfl_sync(~0u, mine, lane);
        if (active && to >= 0 && to < r.slot_rows) store_row(p, bytes, lanes, to);
      }
    }
  } else if (active) {
    store_row(p, bytes, lanes, row);
  }
  if constexpr (!kActivation) allow_next_kernel();
}

// ---- element by element: any alignment, any group -------------------------------------------------------------------

// Calls body(row of q) for each place that row `row` goes to.
template <class Body>
__device__ __forceinline__ void for_destinations(const RoutedRows& r, std::int64_t row, const Body& body) {
  if (r.slot == nullptr) return body(row);
  for (std::int64_t choice = 0; choice < r.top_k; ++choice) {
    const std::int64_t to = r.slot[row * r.top_k + choice];
    if (to >= 0 && to < r.slot_rows) body(to);
  }
}

template <class Element>
__device__ __forceinline__ float value_at(const RoutedRows& r, std::int64_t row, std::int64_t source,
                                          std::int64_t column) {
  const QuantizeProblem& p = r.quantize;
  const auto* x = static_cast<const typename Element::Bits*>(p.x) + source * p.x_stride;
  float value = Element::widen(x[column]);
  if (p.source == QuantizeSource::activation) {
    value = activated(p.activation, value);
    return p.gated ? numerics::mul32(value, Element::widen(x[p.columns + column])) : value;
  }
  if (r.row_weights == nullptr) return value;
  return rounded<Element>(numerics::mul32(value, rounded<Element>(r.row_weights[row * r.row_weights_stride])));
}

// The same value in every thread.
__device__ __forceinline__ std::uint32_t block_maximum(std::uint32_t value,
                                                       std::uint32_t (&scratch)[kAnyThreads / kWarp]) {
  value = warp_maximum(value);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
  __syncthreads();
  return warp_maximum(threadIdx.x % kWarp < kAnyThreads / kWarp ? scratch[threadIdx.x % kWarp] : 0u);
}

// A block of threads a scale block of a row; it reads its values twice.
template <class Element>
__global__ void __launch_bounds__(kAnyThreads)
    quantize_routed_any(const __grid_constant__ RoutedRows r, const std::int64_t groups) {
  __shared__ std::uint32_t scratch[kAnyThreads / kWarp];
  wait_for_previous_kernel();
  const QuantizeProblem& p = r.quantize;
  const bool given = p.scheme == QuantizeScheme::with_given_scale, of_tensor = p.scheme == QuantizeScheme::per_tensor;
  float scale = 1.0f;
  if (given || of_tensor) scale = one_scale_of(r);
  const std::int64_t blocks = rows_of(r) * groups;
  for (std::int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    const std::int64_t row = block / groups, group = block % groups, source = source_of(r, row);
    const std::int64_t begin = groups > 1 ? group * p.group_columns : 0,
                       end = groups > 1 ? min(p.columns, begin + p.group_columns) : p.columns;
    if (!given && !of_tensor) {
      std::uint32_t absmax = 0;
      if (source >= 0)
        for (std::int64_t column = begin + threadIdx.x; column < end; column += kAnyThreads)
          absmax = max(absmax, magnitude_bits(value_at<Element>(r, row, source, column)));
      scale = scale_of_block(p, block_maximum(absmax, scratch));
      if (threadIdx.x == 0) for_destinations(r, row, [&](std::int64_t to) { store_scale(p, to, group, scale); });
    }
    const Divider divide(scale);
    for (std::int64_t column = begin + threadIdx.x; column < end; column += kAnyThreads) {
      const float quotient = source >= 0 ? divide(value_at<Element>(r, row, source, column)) : 0.0f;
      for_destinations(r, row, [&](std::int64_t to) { store_quantized(p, to * p.q_stride + column, quotient); });
    }
  }
  allow_next_kernel();
}

template <class Element>
__global__ void __launch_bounds__(kAnyThreads)
    find_largest(const __grid_constant__ RoutedRows r, std::uint32_t* const largest) {
  __shared__ std::uint32_t scratch[kAnyThreads / kWarp];
  wait_for_previous_kernel();
  std::uint32_t absmax = 0;
  for (std::int64_t row = blockIdx.x; row < rows_of(r); row += gridDim.x) {
    const std::int64_t source = source_of(r, row);
    if (source < 0) continue;
    for (std::int64_t column = threadIdx.x; column < r.quantize.columns; column += kAnyThreads)
      absmax = max(absmax, magnitude_bits(value_at<Element>(r, row, source, column)));
  }
  absmax = block_maximum(absmax, scratch);
  if (threadIdx.x == 0 && absmax != 0) atomicMax(largest, absmax);  // integers: no order to depend on
  allow_next_kernel();
}

// ---- launches -------------------------------------------------------------------------------------------------------

template <class Element, bool kActivation, bool kInt8>
const void* kernel_of(int vectors) {
  return vectors == 1 ? reinterpret_cast<const void*>(&quantize_routed<Element, kActivation, kInt8, 1>)
                      : reinterpret_cast<const void*>(&quantize_routed<Element, kActivation, kInt8, kMostVectors>);
}
template <class Element>
const void* kernel_of(const QuantizeProblem& p, int vectors) {
  const bool int8 = p.q_dtype == DType::int8;
  if (p.source == QuantizeSource::activation)
    return int8 ? kernel_of<Element, true, true>(vectors) : kernel_of<Element, true, false>(vectors);
  return int8 ? kernel_of<Element, false, true>(vectors) : kernel_of<Element, false, false>(vectors);
}

cudaError_t launch(const void* kernel, dim3 grid, dim3 block, cudaStream_t stream, void** arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.stream = stream;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = may_overlap() ? 1 : 0;
  return cudaLaunchKernelExC(&config, kernel, arguments);
}

cudaError_t launch_by_vectors(const RoutedRows& rows, cudaStream_t stream) {
  const QuantizeProblem& p = rows.quantize;
  // Few rows: a vector a thread, for the shortest way. Many: more loads in flight, and narrow rows share a block.
  const std::int64_t vectors = p.columns / kVector;
  const bool few = p.rows <= kFewRows && vectors <= kMostRowThreads;
  const int kept = few || vectors <= kBlockThreads / kMostVectors ? 1 : kMostVectors;
  const std::int64_t threads = ((vectors + kept - 1) / kept + kWarp - 1) / kWarp * kWarp;
  // Few activated rows stand close together: product 2 has the other multiprocessors meanwhile.
  const bool activation = p.source == QuantizeSource::activation;
  const std::int64_t block_threads = !few ? kBlockThreads : activation ? kMostRowThreads : threads;
  const std::int64_t block_rows = std::max<std::int64_t>(1, block_threads / threads);
  const void* kernel = p.x_dtype == DType::bfloat16  ? kernel_of<Bfloat16>(p, kept)
                       : p.x_dtype == DType::float16 ? kernel_of<Float16>(p, kept)
                                                     : kernel_of<Float32>(p, kept);
  RoutedRows argument = rows;
  int lanes = lanes_of_scale(p);
  void* arguments[] = {&argument, &lanes};
  const auto blocks = static_cast<unsigned>((std::max<std::int64_t>(p.rows, 1) - 1) / block_rows + 1);
  return launch(kernel, dim3(blocks), dim3(static_cast<unsigned>(threads), static_cast<unsigned>(block_rows)), stream,
                arguments);
}

}  // namespace

int lanes_of_scale(const QuantizeProblem& p) {
  switch (p.scheme) {
    case QuantizeScheme::with_given_scale:
      return kOneScale;
    case QuantizeScheme::per_tensor:
      return kOneBoundedScale;
    case QuantizeScheme::per_block:
      return static_cast<int>(p.group_columns / kVector);
    default:
      return kWholeRow;
  }
}

static bool warps_reduce_groups(const QuantizeProblem& p) {
  const std::int64_t lanes = p.group_columns / kVector;
  return p.group_columns % kVector == 0 && lanes >= 1 && lanes <= kWarp && (lanes & (lanes - 1)) == 0;
}

static bool aligned(const void* pointer, std::int64_t stride_bytes, std::int64_t bytes) {
  return reinterpret_cast<std::uintptr_t>(pointer) % static_cast<std::uintptr_t>(bytes) == 0 &&
         stride_bytes % bytes == 0;
}

bool rows_have_vectors(const QuantizeProblem& p) {
  const std::int64_t element = size_in_bytes(p.x_dtype);
  return p.columns >= kVector && p.columns % kVector == 0 &&
         p.columns <= std::int64_t{kMostRowThreads} * kMostVectors * kVector &&
         (p.scheme != QuantizeScheme::per_block || warps_reduce_groups(p)) &&
         p.rows <= std::numeric_limits<std::int32_t>::max() && aligned(p.x, p.x_stride * element, 16) &&
         aligned(p.q, p.q_stride, kVector);
}

cudaError_t launch_quantize_routed(const RoutedRows& rows, cudaStream_t stream) {
  const QuantizeProblem& p = rows.quantize;
  // Without rows a tensor still has its one scale; without columns a row has its own.
  if (p.rows == 0 && rows.one_scale == nullptr) return cudaSuccess;
  if (rows_have_vectors(p)) return launch_by_vectors(rows, stream);
  const bool in_groups = p.scheme == QuantizeScheme::per_block;
  // A group may be wider than any row: no sum with its width.
  std::int64_t groups = in_groups ? p.columns / p.group_columns + (p.columns % p.group_columns != 0 ? 1 : 0) : 1;
  if (groups == 0) return cudaSuccess;
  const void* kernel = p.x_dtype == DType::bfloat16  ? reinterpret_cast<const void*>(&quantize_routed_any<Bfloat16>)
                       : p.x_dtype == DType::float16 ? reinterpret_cast<const void*>(&quantize_routed_any<Float16>)
                                                     : reinterpret_cast<const void*>(&quantize_routed_any<Float32>);
  const std::int64_t blocks = p.rows > kMostAnyBlocks / groups ? kMostAnyBlocks : p.rows * groups;
  RoutedRows argument = rows;
  void* arguments[] = {&argument, &groups};
  return launch(kernel, dim3(static_cast<unsigned>(std::max<std::int64_t>(blocks, 1))), dim3(kAnyThreads), stream,
                arguments);
}

cudaError_t launch_largest_magnitude(const RoutedRows& rows, std::uint32_t* largest, cudaStream_t stream) {
  const QuantizeProblem& p = rows.quantize;
  if (p.rows == 0 || p.columns == 0) return cudaSuccess;
  const void* kernel = p.x_dtype == DType::bfloat16  ? reinterpret_cast<const void*>(&find_largest<Bfloat16>)
                       : p.x_dtype == DType::float16 ? reinterpret_cast<const void*>(&find_largest<Float16>)
                                                     : reinterpret_cast<const void*>(&find_largest<Float32>);
  RoutedRows argument = rows;
  void* arguments[] = {&argument, &largest};
  return launch(kernel, dim3(static_cast<unsigned>(std::min(p.rows, kMostAnyBlocks))), dim3(kAnyThreads), stream,
                arguments);
}

}  // namespace evergemm::cuda
