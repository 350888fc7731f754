// SPDX-License-Identifier: Apache-2.0
// From a problem and a row of plan/portable.h to a kernel on a stream. Must not go here: choosing the row.
#pragma once
#include <cuda_runtime.h>

#include <array>
#include <cstdint>
#include <mutex>

#include "cuda/device.h"
#include "evergemm/error.h"
#include "evergemm/moe.h"
#include "evergemm/plan.h"
#include "evergemm/problem.h"
#include "plan/portable.h"

namespace evergemm::portable {

// A kernel and what is set or asked once per device.
struct Row {
  struct Prepared {
    std::once_flag once;
    cudaError_t error = cudaSuccess;
    bool overlaps = false;  // the code that the device runs waits for the kernel before it
    int resident = 0;       // blocks that the device holds at a time
    int multiprocessors = 0;
  };
  const void* (*kernel_of)() = nullptr;
  const void* (*sum_kernel_of)() = nullptr;  // adds the parts of a split k; null: such a row never splits
  std::array<Prepared, cuda::kMaxDevices> devices;
};

// The problem's device is current. `name` opens errors. k is split into `parts`, as plan_tables::parts_of() gives them; with more
// than one `workspace` holds part_bytes_of() each. overlap: the kernel may start while the one before it in the stream ends.
Status launch(const char* name, const plan_tables::PortableTile& tile, Row& row, const GemmProblem& problem,
              std::int32_t parts, void* workspace, cudaStream_t stream, bool overlap);

// Grouped: `row` has the grouped kernel of that tile; `workspace` is plan.workspace_bytes of the plan.
Status launch_grouped(const char* name, const plan_tables::PortableTile& tile, Row& row,
                      const GroupedGemmProblem& problem, void* workspace, cudaStream_t stream, bool overlap);

// The rows of this binary, for the architecture that a plan was made for.
Status launch(const Plan& plan, std::int32_t row, const GemmProblem& problem, void* workspace, cudaStream_t stream,
              bool overlap);
Status launch_grouped(const Plan& plan, std::int32_t row, const GroupedGemmProblem& problem, void* workspace,
                      cudaStream_t stream, bool overlap);

}  // namespace evergemm::portable
