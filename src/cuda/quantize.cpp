// SPDX-License-Identifier: Apache-2.0
// Which quantizing kernels a problem takes, and their errors as sentences. Must not go here: kernels.
#include "cuda/quantize.h"

#include <string>

#include "cuda/device.h"
#include "cuda/permute.h"
#include "cuda/quantize_kernels.h"

namespace evergemm::cuda {
namespace {

cudaError_t quantize_blocks_or_rows(const QuantizeProblem& problem, cudaStream_t stream) {
  return rows_kernel_runs(problem) ? launch_rows_kernel(problem, stream) : launch_blocks_kernel(problem, stream);
}

// Above this many elements a single block of threads is too slow for a tensor's one scale.
constexpr std::int64_t kOneBlockElements = 16 * 1024;

cudaError_t launch(const QuantizeProblem& problem, cudaStream_t stream) {
  switch (problem.scheme) {
    case QuantizeScheme::per_tensor: {
      if (rows_kernel_runs(problem) || problem.source != QuantizeSource::copy ||
          problem.rows * problem.columns <= kOneBlockElements)
        return quantize_blocks_or_rows(problem, stream);
      const cudaError_t error = launch_tensor_scale(problem, stream);
      if (error != cudaSuccess) return error;
      QuantizeProblem scaled = problem;  // the scale is known on the device now
      scaled.scheme = QuantizeScheme::with_given_scale;
      scaled.group_rows = problem.rows;
      scaled.group_columns = 0;
      scaled.scale_row_stride = scaled.scale_group_stride = 0;
      if (rows_kernel_runs(scaled)) return launch_rows_kernel(scaled, stream, true);
      scaled.group_rows = 1;  // a block of threads a row
      return launch_blocks_kernel(scaled, stream);
    }
    case QuantizeScheme::with_given_scale: {
      if (problem.rows == 0 || problem.columns == 0) return cudaSuccess;
      return quantize_blocks_or_rows(problem, stream);
    }
    case QuantizeScheme::dropin_group_packed: {
      const cudaError_t error = launch_packed_zeros(problem, stream);
      return error == cudaSuccess ? quantize_blocks_or_rows(problem, stream) : error;
    }
    default:
      return quantize_blocks_or_rows(problem, stream);
  }
}

}  // namespace

Status quantize(const QuantizeProblem& problem, cudaStream_t stream) {
  const cudaError_t error = launch(problem, stream);
  if (error == cudaSuccess) return Status();
  return cuda_failure("cuda_quantize",
                      std::to_string(problem.rows) + " x " + std::to_string(problem.columns) + " " +
                          name(problem.x_dtype) + " to " + name(problem.q_dtype) + ", scheme " +
                          std::to_string(static_cast<int>(problem.scheme)),
                      error);
}

Status permute(const PermuteProblem& problem, cudaStream_t stream) {
  if (problem.rows == 0 || problem.columns == 0) return Status();
  const cudaError_t error = launch_permute(problem, stream);
  if (error == cudaSuccess) return Status();
  return cuda_failure("cuda_permute", std::to_string(problem.rows) + " x " + std::to_string(problem.columns), error);
}

}  // namespace evergemm::cuda
