// SPDX-License-Identifier: Apache-2.0
// The runtime's and driver's calls that the Hopper launches make, for the emulated multiprocessor.
#include <cuda_runtime.h>

namespace {

// As the driver's manual says of tiled maps; the kernels use no other kind of step, interleaving or fill.
bool accepted(CUtensorMapDataType type, cuuint32_t dimensions, const void* data, const cuuint64_t* sizes,
              const cuuint64_t* pitches, const cuuint32_t* box, const cuuint32_t* steps, CUtensorMapSwizzle swizzle) {
  const cuuint64_t element = type == CU_TENSOR_MAP_DATA_TYPE_UINT8 ? 1 : type == CU_TENSOR_MAP_DATA_TYPE_UINT16 ? 2 : 4;
  const cuuint64_t inner_bytes = box[0] * element;
  const cuuint64_t span = swizzle == CU_TENSOR_MAP_SWIZZLE_128B  ? 128
                          : swizzle == CU_TENSOR_MAP_SWIZZLE_64B ? 64
                          : swizzle == CU_TENSOR_MAP_SWIZZLE_32B ? 32
                                                                 : 0;
  if (dimensions < 2 || dimensions > 3 || reinterpret_cast<std::uintptr_t>(data) % 16 != 0) return false;
  if (dimensions == 3 && box[2] != 1) return false;  // of several planes: not emulated
  if (inner_bytes % 16 != 0 || (span != 0 && inner_bytes > span)) return false;
  for (cuuint32_t d = 0; d < dimensions; ++d)
    if (sizes[d] == 0 || sizes[d] > (cuuint64_t{1} << 32) || box[d] == 0 || box[d] > 256 || steps[d] != 1) return false;
  for (cuuint32_t d = 0; d + 1 < dimensions; ++d)
    if (pitches[d] % 16 != 0 || pitches[d] >= (cuuint64_t{1} << 40)) return false;
  return true;
}

}  // namespace

CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t dimensions, void* data,
                                const cuuint64_t* sizes, const cuuint64_t* pitches, const cuuint32_t* box,
                                const cuuint32_t* steps, CUtensorMapInterleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  if (!accepted(type, dimensions, data, sizes, pitches, box, steps, swizzle)) return CUDA_ERROR_INVALID_VALUE;
  *map = CUtensorMap();
  map->data = data;
  map->dimensions = dimensions;
  for (cuuint32_t d = 0; d < dimensions; ++d) {
    map->sizes[d] = sizes[d];
    map->box[d] = box[d];
    if (d + 1 < dimensions) map->pitches[d] = pitches[d];
  }
  map->element_bytes = type == CU_TENSOR_MAP_DATA_TYPE_UINT8 ? 1 : type == CU_TENSOR_MAP_DATA_TYPE_UINT16 ? 2 : 4;
  map->swizzle = swizzle;
  return CUDA_SUCCESS;
}

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void*, const cudaLaunchConfig_t* config) {
  *clusters = evergemm::emulator::kMultiprocessors / static_cast<int>(config->attrs[0].val.clusterDim.x);
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, std::size_t) {
  *blocks = 1;
  return cudaSuccess;
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel, void** arguments) {
  evergemm::emulator::Grid grid;
  grid.blocks = static_cast<int>(config->gridDim.x);
  grid.threads = static_cast<int>(config->blockDim.x);
  grid.shared_bytes = static_cast<int>(config->dynamicSmemBytes);
  for (unsigned i = 0; i < config->numAttrs; ++i)
    if (config->attrs[i].id == cudaLaunchAttributeClusterDimension)
      grid.cluster = static_cast<int>(config->attrs[i].val.clusterDim.x);
  void (*const run)(const void*) = static_cast<const EmulatedKernel*>(kernel)->run;
  const std::string failure = evergemm::emulator::launch(grid, [=] { run(arguments[0]); });
  return failure.empty() ? cudaSuccess : cudaErrorLaunchFailure;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return evergemm::emulator::last_failure().c_str(); }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) return cudaErrorInvalidDevice;
  *value = attribute == cudaDevAttrComputeCapabilityMajor   ? 9
           : attribute == cudaDevAttrComputeCapabilityMinor ? 0
           : attribute == cudaDevAttrMultiProcessorCount    ? evergemm::emulator::kMultiprocessors
                                                            : evergemm::emulator::kSharedMemory;
  return cudaSuccess;
}
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** entry, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* found) {
  const bool known = std::strcmp(name, "cuTensorMapEncodeTiled") == 0;
  *entry = known ? reinterpret_cast<void*>(&cuTensorMapEncodeTiled) : nullptr;
  *found = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}
