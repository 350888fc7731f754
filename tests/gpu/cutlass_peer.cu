// SPDX-License-Identifier: Apache-2.0
// CUTLASS 2.x's device::Gemm for int8 on Ampere's tensor cores (mma m16n8k32, cp.async), its usual tiles, for portable_bench.
// Must not go here: kernels of this project.
#include "cutlass_peer.h"

#include <cutlass/epilogue/thread/linear_combination.h>
#include <cutlass/gemm/device/gemm.h>

namespace evergemm::gpu_test {
namespace {

template <class Output, int kM, int kN, int kK, int kWarpM, int kWarpN, int kStages>
bool enqueue(const void* a, const void* b, void* out, int m, int n, int k, cudaStream_t stream) {
  using Scale = std::conditional_t<std::is_same_v<Output, int>, int, float>;
  using Epilogue =
      cutlass::epilogue::thread::LinearCombination<Output, 128 / cutlass::sizeof_bits<Output>::value, int, Scale,
                                                   cutlass::epilogue::thread::ScaleType::OnlyAlphaScaling>;
  using Gemm =
      cutlass::gemm::device::Gemm<std::int8_t, cutlass::layout::RowMajor, std::int8_t, cutlass::layout::ColumnMajor,
                                  Output, cutlass::layout::RowMajor, int, cutlass::arch::OpClassTensorOp,
                                  cutlass::arch::Sm80, cutlass::gemm::GemmShape<kM, kN, kK>,
                                  cutlass::gemm::GemmShape<kWarpM, kWarpN, kK>, cutlass::gemm::GemmShape<16, 8, 32>,
                                  Epilogue, cutlass::gemm::threadblock::GemmIdentityThreadblockSwizzle<8>, kStages>;
  const typename Gemm::Arguments arguments({m, n, k}, {static_cast<const std::int8_t*>(a), k},
                                           {static_cast<const std::int8_t*>(b), k}, {static_cast<Output*>(out), n},
                                           {static_cast<Output*>(out), n}, {Scale(1), Scale(0)});
  Gemm gemm;
  return gemm.initialize(arguments, nullptr, stream) == cutlass::Status::kSuccess &&
         gemm.run(stream) == cutlass::Status::kSuccess;
}

}  // namespace

std::vector<CutlassKernel> cutlass_int8_kernels() {
  using cutlass::bfloat16_t;
  return {
      {"cutlass_256x128x64_s3_int32", true, enqueue<int, 256, 128, 64, 64, 64, 3>},
      {"cutlass_128x256x64_s3_int32", true, enqueue<int, 128, 256, 64, 64, 64, 3>},
      {"cutlass_128x256x64_s4_int32", true, enqueue<int, 128, 256, 64, 64, 64, 4>},
      {"cutlass_128x128x64_s4_int32", true, enqueue<int, 128, 128, 64, 64, 64, 4>},
      {"cutlass_128x128x128_s3_int32", true, enqueue<int, 128, 128, 128, 64, 64, 3>},
      {"cutlass_128x64x128_s4_int32", true, enqueue<int, 128, 64, 128, 64, 32, 4>},
      {"cutlass_64x64x128_s5_int32", true, enqueue<int, 64, 64, 128, 32, 32, 5>},
      {"cutlass_256x128x64_s3_bfloat16", false, enqueue<bfloat16_t, 256, 128, 64, 64, 64, 3>},
      {"cutlass_128x256x64_s3_bfloat16", false, enqueue<bfloat16_t, 128, 256, 64, 64, 64, 3>},
      {"cutlass_128x128x64_s4_bfloat16", false, enqueue<bfloat16_t, 128, 128, 64, 64, 64, 4>},
  };
}

}  // namespace evergemm::gpu_test
