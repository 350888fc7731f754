// SPDX-License-Identifier: Apache-2.0
// Torch's threads for the CPU, torch's current stream for a GPU; see device.h.
#include "device.h"

#if defined(EVERGEMM_WITH_CUDA)
#include "cuda/registry.h"
#endif

namespace evergemm::bindings {

namespace {

struct Loop {
  ParallelForBody body;
  void* context;
};
void run_piece(std::int64_t begin, std::int64_t end, void* loop) {
  const Loop& whole = *static_cast<const Loop*>(loop);
  whole.body(whole.context, begin, end);
}

// Set by the thread that calls the operator: a loop has no way to report through run().
thread_local bool loop_failed = false;

void parallel_for_torch(std::int64_t begin, std::int64_t end, std::int64_t grain, ParallelForBody body, void* context) {
  Loop loop{body, context};
  if (torch_parallel_for(begin, end, grain, run_piece, &loop) != AOTI_TORCH_SUCCESS) loop_failed = true;
}

}  // namespace

DeviceScope::DeviceScope(const Device& device, const char* operator_name) {
  if (device.type == DeviceType::cpu) {
    static const DeviceFacts processor = cpu_facts();
    std::uint32_t threads = 1;
    require(torch_get_num_threads(&threads), operator_name, "asking for its number of threads");
    facts_ = processor;
    facts_.cores = static_cast<std::int32_t>(threads);
    context_.parallel_for = parallel_for_torch;
    context_.threads = facts_.cores;
    loop_failed = false;
    return;
  }
#if defined(EVERGEMM_WITH_CUDA)
  if (device.type == DeviceType::cuda) {
    if (aoti_torch_get_current_cuda_stream == nullptr)
      throw std::runtime_error(std::string(operator_name) +
                               ": expected a torch with CUDA for tensors on cuda:" + std::to_string(device.index) +
                               "; got one for the cpu only; fix: install torch with CUDA.");
    const Status status = cuda_facts(device.index, facts_);
    if (!status.ok()) throw std::runtime_error(std::string(operator_name) + ": " + status.text());
    // Allocations name their device, and run() makes it current for its launches: no guard of torch's besides.
    require(aoti_torch_get_current_cuda_stream(device.index, &context_.stream), operator_name,
            "asking for its current stream");
    return;
  }
#endif
  throw std::runtime_error(
      std::string(operator_name) +
      ": expected tensors on the cpu (this library was built without GPU "
      "kernels); got tensors on cuda:" +
      std::to_string(device.index) +
      "; fix: rebuild it for this GPU with EVERGEMM_ARCHS=native, or move the tensors to the cpu.");
}

void DeviceScope::check_threads(const char* operator_name) const {
  if (loop_failed) require(AOTI_TORCH_FAILURE, operator_name, "running a parallel loop");
}

}  // namespace evergemm::bindings
